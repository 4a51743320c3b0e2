"""A release's files: copied once, named by what is in them, found again unchanged or not at all."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Written by interpreters and tests while a tree is used: not what the release is.
PASSING = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")


def keep(source: Path, into: Path, *, exclude: Sequence[str]) -> str:
    """Copy `source` to `into`, which appears whole or not at all, and return its artifact. exclude: paths relative to
    `source`.

    Raises FileExistsError, nothing changed, when something else is kept there; OSError when it cannot be copied.
    """
    into.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    left_out = {source / name for name in exclude}

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name in PASSING or Path(folder) / name in left_out}

    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".tree-") as passing:
        fresh = Path(passing) / "tree"
        shutil.copytree(source, fresh, symlinks=True, ignore=ignore)
        made = artifact(fresh)
        if not into.exists():
            fresh.rename(into)
        elif artifact(into) != made:
            raise FileExistsError(f"{into} holds other files")
    return made


def artifact(root: Path) -> str:
    """`tree:` and the SHA-256 over every path, whether it can be executed, and its content.

    Files are read again only when the size or time of one of them is new: a watch asks every few seconds.
    """
    signature: list[tuple[str, int, int, int]] = []
    for path in _files(root):
        shown = path.lstat()
        signature.append((str(path), shown.st_mode, shown.st_size, shown.st_mtime_ns))
    return _artifact(root, tuple(signature))


@functools.lru_cache(maxsize=32)
def _artifact(root: Path, signature: tuple[tuple[str, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, mode, _, _ in signature:
        path = Path(name)
        digest.update(f"{path.relative_to(root)}\0{int(bool(mode & stat.S_IXUSR))}\0".encode())
        content = str(path.readlink()).encode() if stat.S_ISLNK(mode) else path.read_bytes()
        digest.update(hashlib.sha256(content).digest())
    return f"tree:{digest.hexdigest()}"


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in PASSING)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*files, *links]))

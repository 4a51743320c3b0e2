"""A release's files: copied once, named by what is in them, found again unchanged or not at all."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Written by interpreters and tests while a tree is used: not what the release is.
PASSING: Final = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")

_KIND: Final = "tree:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A copy that is kept by its content."""

    artifact: str
    path: Path


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


def keep_by_content(source: Path, shelf: Path, *, leave_out: Collection[Path], hollow: Collection[Path]) -> Kept:
    """Copy a folder or file into `shelf`, under a name made of its content: a second copy of the same is none.

    leave_out: paths that are not copied. hollow: folders of which only the folder is, since nobody can see into them.
    Raises FileExistsError, nothing changed, when the copy there was changed since; OSError when it cannot be made.
    """
    shelf.mkdir(mode=0o700, parents=True, exist_ok=True)

    def ignore(folder: str, names: list[str]) -> set[str]:
        here = Path(folder)
        if here in hollow:
            return set(names)
        return {name for name in names if name in PASSING or here / name in leave_out}

    with tempfile.TemporaryDirectory(dir=shelf, prefix=".code-") as passing:
        fresh = Path(passing) / "tree"
        fresh.mkdir(mode=0o700)
        if source.is_dir():
            shutil.copytree(source, fresh / source.name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, fresh / source.name)
        _give_to_the_same(source, fresh / source.name)
        made = artifact(fresh)
        into = shelf / _folder(made)
        if not into.exists():
            fresh.rename(into)
        elif not holds(shelf, made):
            raise FileExistsError(f"{into} was changed since it was kept")
    return Kept(artifact=made, path=into / source.name)


def size_bytes(source: Path, *, leave_out: Collection[Path]) -> int:
    """How large a copy of `source` would be. leave_out: paths that would not be copied."""
    if not source.is_dir():
        return source.stat().st_size
    total = 0
    for folder, folders, files in os.walk(source):
        here = Path(folder)
        folders[:] = [name for name in folders if name not in PASSING and here / name not in leave_out]
        total += sum((here / name).lstat().st_size for name in files if here / name not in leave_out)
    return total


def holds(shelf: Path, wanted: str) -> bool:
    """Whether the copy of that artifact is in `shelf`, unchanged."""
    folder = shelf / _folder(wanted)
    return folder.is_dir() and artifact(folder) == wanted


def named(folder: Path) -> str:
    """The artifact that a folder of a shelf stands for."""
    return f"{_KIND}{folder.name}"


def _folder(wanted: str) -> str:
    return wanted.removeprefix(_KIND)


def _give_to_the_same(source: Path, copy: Path) -> None:
    """Let the owners of the files own the copies, where this user may: a container's user reads what is its own."""
    if os.geteuid() != 0:
        return
    below = (Path(folder) / name for folder, folders, files in os.walk(copy) for name in (*folders, *files))
    for path in (copy, *below):
        owner = (source / path.relative_to(copy)).lstat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


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
    return f"{_KIND}{digest.hexdigest()}"


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in PASSING)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (Path(folder) / name for name in sorted([*files, *links]))

"""What git says of the folder that is deployed: its commit, whether the files are still those of it, and whether all of
it is there.

Reads only. A commit is noted with a release so that a report can say which one the checkout still holds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lastgood.targets import child

GIT_S: Final = 20.0
"""`git status` of a large tree on a cold disk."""
DEEPEST: Final = 5
"""Submodules within submodules."""
_GITLINK: Final = "160000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """commit: full id of what is checked out, None where there is no git, no checkout, or no answer in time. dirty: the
    files differ from it, untracked files and submodules included. unresolved: submodules whose commit is not here, and
    why, one line each."""

    commit: str | None = None
    dirty: bool = False
    unresolved: tuple[str, ...] = ()


def checkout(root: Path, *, state: Path) -> Checkout:
    """Look at the checkout in `root`. state: our own folder, which does not count."""
    besides = str(state.relative_to(root)) if state.is_relative_to(root) else ""
    try:
        head = _git(commit(root))
        if head.code != 0:
            return Checkout()
        changed = _git(changes(root, besides=besides))
        modules = _git(submodules(root))
        top = _git(toplevel(root)).out.rstrip("\n")
        unresolved = tuple(_unresolved(Path(top), "HEAD", named="", depth=1)) if top else ()
    except (child.Overran, FileNotFoundError):
        return Checkout()
    # A submodule line begins with a blank only when what is checked out there is what the commit names; a pointer
    # without an entry in .gitmodules ends the command with an error.
    astray = modules.code != 0 or any(not line.startswith(" ") for line in modules.out.splitlines())
    dirty = changed.code != 0 or bool(changed.out.strip()) or astray
    return Checkout(commit=head.out.strip(), dirty=dirty, unresolved=unresolved)


def _unresolved(top: Path, at: str, *, named: str, depth: int) -> Iterator[str]:
    """Say which gitlinks of the commit cannot be followed. Git itself is silent about one whose commit is gone."""
    links = list(_links(_git(tree(top, at)).out))
    if not links:
        return
    known = {line.partition(" ")[2] for line in _git(module_paths(top)).out.splitlines()}
    for path, wanted in links:
        name, folder = f"{named}{path}", top / path
        if path not in known:
            yield f"{name} has no entry in .gitmodules"
        if not (folder / ".git").exists():
            yield f"{name} is not checked out"
        elif _git(has_commit(folder, wanted)).code != 0:
            yield f"{name} has no commit {wanted[:12]}"
        elif depth < DEEPEST:
            yield from _unresolved(folder, wanted, named=f"{name}/", depth=depth + 1)


def _links(listed: str) -> Iterator[tuple[str, str]]:
    """Path and commit of each gitlink of `git ls-tree -z`: `160000 commit ID<tab>PATH`."""
    for entry in listed.split("\0"):
        shown, _, path = entry.partition("\t")
        if shown.startswith(_GITLINK):
            yield path, shown.split(" ")[2]


def _git(words: Sequence[str]) -> child.Ended:
    return child.run(words, deadline_s=GIT_S, env=child.bare_environment(os.environ))


def commit(root: Path) -> list[str]:
    """Print the commit that is checked out."""
    return ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]


def toplevel(root: Path) -> list[str]:
    """Print the folder of the whole checkout."""
    return ["git", "-C", str(root), "rev-parse", "--show-toplevel"]


def changes(root: Path, *, besides: str) -> list[str]:
    """Print what differs from the commit, untracked files included. besides: a folder in `root` that does not count,
    empty for none."""
    words = ["git", "-C", str(root), "status", "--porcelain", "--", "."]
    return [*words, f":(exclude){besides}"] if besides else words


def submodules(root: Path) -> list[str]:
    """Print the commit of each submodule, marked where it is not the one that the commit names."""
    return ["git", "-C", str(root), "submodule", "status", "--recursive"]


def tree(top: Path, at: str) -> list[str]:
    """Print every entry of a commit, gitlinks included, each ended by a NUL."""
    return ["git", "-C", str(top), "ls-tree", "-r", "-z", at]


def module_paths(top: Path) -> list[str]:
    """Print `KEY PATH` of each submodule that .gitmodules knows."""
    return ["git", "-C", str(top), "config", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$"]


def has_commit(folder: Path, wanted: str) -> list[str]:
    """Exit 0 when the commit is in the repository of `folder`."""
    return ["git", "-C", str(folder), "cat-file", "-e", f"{wanted}^{{commit}}"]

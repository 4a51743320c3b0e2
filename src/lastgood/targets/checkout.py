"""What git says of the folder that is deployed: its commit, and whether the files are still those of it.

Reads only. A commit is noted with a release so that a report can say which one the checkout still holds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from lastgood.targets import child

GIT_S: Final = 20.0
"""`git status` of a large tree on a cold disk."""


def checkout(root: Path, *, state: Path) -> tuple[str | None, bool]:
    """Return the full id of the commit that is checked out at `root`, and whether the files differ from it, untracked
    files and submodules included.

    state: our own folder, which does not count. (None, False) where there is no git, no checkout, or no answer in time.
    """
    env = child.bare_environment(os.environ)
    besides = str(state.relative_to(root)) if state.is_relative_to(root) else ""
    try:
        head = child.run(commit(root), deadline_s=GIT_S, env=env)
        if head.code != 0:
            return None, False
        changed = child.run(changes(root, besides=besides), deadline_s=GIT_S, env=env)
        modules = child.run(submodules(root), deadline_s=GIT_S, env=env)
    except (child.Overran, FileNotFoundError):
        return None, False
    # A submodule line begins with a blank only when what is checked out there is what the commit names; a pointer
    # without an entry in .gitmodules ends the command with an error.
    astray = modules.code != 0 or any(not line.startswith(" ") for line in modules.out.splitlines())
    return head.out.strip(), changed.code != 0 or bool(changed.out.strip()) or astray


def commit(root: Path) -> list[str]:
    """Print the commit that is checked out."""
    return ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]


def changes(root: Path, *, besides: str) -> list[str]:
    """Print what differs from the commit, untracked files included. besides: a folder in `root` that does not count,
    empty for none."""
    words = ["git", "-C", str(root), "status", "--porcelain", "--", "."]
    return [*words, f":(exclude){besides}"] if besides else words


def submodules(root: Path) -> list[str]:
    """Print the commit of each submodule, marked where it is not the one that the commit names."""
    return ["git", "-C", str(root), "submodule", "status", "--recursive"]

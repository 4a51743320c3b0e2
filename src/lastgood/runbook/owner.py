"""Whose a state folder is: one stack's. Two lastgood.yaml beside each other have the same folder unless they say so,
and production would go back to the release that staging vouched for.

What tells stacks apart is the compose project; for another engine, the name of the stack. The first one that uses the
folder leaves its mark there. A folder without one, of an older version, is that of its newest release.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from lastgood.core.config import Config
from lastgood.core.errors import NeedsHuman
from lastgood.runbook.rooms import Memory

MARK: Final = "stack"


def of_project(name: str) -> str:
    """Name a compose project as the mark does."""
    return f"compose project {name}"


def named(config: Config) -> str:
    """Name the stack of a lastgood.yaml as the mark does."""
    return of_project(config.containers.compose.project) if config.containers else f"stack {config.stack}"


def owner(state: Path, memory: Memory) -> str:
    """Say whose the folder is; empty while nothing is kept there, and where nobody can tell.

    Raises NeedsHuman when only the journal could tell, and it cannot be read.
    """
    mark = _mark(state)
    # whoever mistyped a name at the first command has left a mark there, and nothing else
    if not any(next(state.glob(f"{folder}/*"), None) for folder in ("releases", "edge")):
        with contextlib.suppress(NeedsHuman):  # it has records, then
            if memory.history().last_seq == 0:
                return ""
    if mark:
        return mark
    composed = [known.release.composed for known in memory.history().releases.values()]
    return next((of_project(found.project) for found in reversed(composed) if found), "")


def take(state: Path, memory: Memory, own: str) -> str:
    """Take the folder for the stack `own`; return whose it is, and stays, when it is another's."""
    if _mark(state) == own:
        return own
    try:
        whose = owner(state, memory)
    except NeedsHuman:
        return own  # what reads the journal says why, and `audit verify` must be able to
    if whose not in ("", own):
        return whose
    with contextlib.suppress(OSError):  # the next command leaves it: a full disk keeps nobody from `status`
        fresh = state / f"{MARK}.{os.getpid()}"
        fresh.write_text(f"{own}\n", encoding="utf-8")
        fresh.replace(state / MARK)
    return own


def _mark(state: Path) -> str:
    try:
        return (state / MARK).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

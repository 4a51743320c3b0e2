"""One rig per target: a small real world that the target acts on, and how to count what it did there.

`tests/contract/test_target.py` runs the same suite over every rig that is listed in RIGS. Those of signal sources are
in `sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lastgood.core.plan import Step
from lastgood.core.ports import Target


class TargetRig(Protocol):
    """A world of its own for one target, made for one test and gone after it."""

    @property
    def target(self) -> Target:
        """The adapter under test."""
        ...

    @property
    def steps(self) -> Sequence[Step]:
        """Steps in an order in which each can be applied after the one before; none is done at the start."""
        ...

    @property
    def refused(self) -> Step:
        """A step of this target's role that must be refused, because something that it names is not there."""
        ...

    @property
    def foreign(self) -> Step:
        """A step of another role."""
        ...

    def effects(self) -> int:
        """Count every effect on the world so far (containers created and removed, databases created, renamed,
        requests that changed something ...), counted outside of the adapter. Looking must not raise it."""
        ...

    def unreachable(self) -> AbstractContextManager[None]:
        """Make the world stop answering the target for the length of the block."""
        ...


RigMaker = Callable[[Path], AbstractContextManager[TargetRig]]

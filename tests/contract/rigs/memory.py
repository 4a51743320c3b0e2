"""The stack in memory, seen by each of its three hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lastgood.core.errors import Retryable
from lastgood.core.plan import (
    Action,
    CatchUp,
    ClearCandidates,
    EndCapture,
    ExportWrites,
    Fence,
    HoldRequests,
    LiftFence,
    Migrate,
    MigrateDown,
    PassGate,
    PassRequests,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    Retire,
    ReturnFrontend,
    Role,
    SaveDump,
    Serve,
    Step,
    SwapDatabase,
    TakeRestorePoint,
)
from lastgood.core.release import Down
from lastgood.testing.stack import SERVICES, MemoryContainers, MemoryDatabase, MemoryFrontend, Stack, artifact_of
from lastgood.testing.world import START, Hand, SteppedClock, clone_of

KEPT_AS = "app_bad_r1"
DROPPED = "dropped"
DOWN = Down(migrations=("m2",), sql="down m2")


def step(action: Action) -> Step:
    """A step named after what it does."""
    return Step(name=action.kind, action=action, deadline_s=10.0, explain=action.kind)


class MemoryRig:
    """One hand on a stack in which v1 serves and v2 is prepared."""

    def __init__(self, stack: Stack, target: Hand, actions: Sequence[Action], refused: Action) -> None:
        self._stack = stack
        self.target = target
        self.steps = [step(action) for action in actions]
        self.refused = step(refused)
        foreign: Action = Serve(release="v1", service="core", artifact="x")
        self.foreign = step(Fence(kept_as=KEPT_AS) if target.role is Role.CONTAINERS else foreign)

    def effects(self) -> int:
        return self._stack.effects.total()

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        self._stack.away[self.target.role] = Retryable("no answer", delay_s=1.0)
        try:
            yield
        finally:
            del self._stack.away[self.target.role]


def stack() -> Stack:
    """v1 serves everywhere, and v2, which is prepared, has one service less."""
    made = Stack(SteppedClock())
    hand = MemoryContainers(made)
    for release in ("v1", "v2"):
        hand.prepare(release, START)
        made.push(release)
    for service in SERVICES:
        made.put(service, artifact_of(service, "v1"))
    made.put(DROPPED, artifact_of(DROPPED, "v1"))
    return made


@contextmanager
def containers(_folder: Path) -> Iterator[MemoryRig]:
    made = stack()
    artifacts = tuple((service, artifact_of(service, "v2")) for service in SERVICES)
    serve = [Serve(release="v2", service=service, artifact=artifact) for service, artifact in artifacts]
    yield MemoryRig(
        made,
        MemoryContainers(made),
        (
            PassGate(release="v2", artifacts=artifacts),
            HoldRequests(),
            *serve,
            PassRequests(),
            Retire(release="v2", service=DROPPED),
            ClearCandidates(),
        ),
        replace(serve[0], artifact="core-v9"),
    )


@contextmanager
def database(_folder: Path) -> Iterator[MemoryRig]:
    made = stack()
    made.captures = True
    fence, swap = Fence(kept_as=KEPT_AS), SwapDatabase(swap="s1", restore_point="rp", clone="", kept_as=KEPT_AS)
    yield MemoryRig(
        made,
        MemoryDatabase(made),
        (
            TakeRestorePoint(restore_point="rp"),
            Migrate(release="v2", migrations=("m2",)),
            SaveDump(name="dump"),
            RehearseDown(
                rehearsal="w1", dump="dump", downs=(DOWN,), migrations=("m2",), made_for="f2", restore_point="rp"
            ),
            MigrateDown(aside="w1", downs=(DOWN,), migrations=("m2",), made_for="f2", restore_point="rp"),
            CatchUp(replay="p1", restore_point="rp"),
            RestoreClone(restore_point="rp", clone=clone_of("rp")),
            fence,
            LiftFence(kept_as=KEPT_AS),
            fence,
            ExportWrites(export="e1", restore_point="rp", kept_as=KEPT_AS),
            ReplayWrites(replay="p1", restore_point="rp", kept_as=KEPT_AS, by_rows=False),
            replace(swap, clone=clone_of("rp")),
            EndCapture(),
        ),
        replace(swap, clone="clone_nowhere"),
    )


@contextmanager
def frontend(_folder: Path) -> Iterator[MemoryRig]:
    made = stack()
    yield MemoryRig(
        made, MemoryFrontend(made), (ReturnFrontend(deployment="dpl_v1"),), ReturnFrontend(deployment="dpl_v9")
    )

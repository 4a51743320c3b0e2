"""A run that dies anywhere, once or twice, and is taken up again, ends the same with every effect exactly once."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast, get_args

import pytest

from lastgood.core.config import Config, parse_config
from lastgood.core.plan import Action, CatchUp, EndCapture, HoldRequests, MigrateDown, Plan, RestoreClone, Role, Switch
from lastgood.core.ports import Containers, Database, Frontend
from lastgood.core.record import ApprovalGiven, RunStarted
from lastgood.core.run import Finish
from lastgood.runbook.carry_out import carry_out
from lastgood.runbook.rooms import Memory, Rooms
from lastgood.testing.world import Crash, Crashes, MemoryJournal, SteppedClock, World
from tests.core.examples import HELD, OWN_DUMP, RESTORE_POINT, SHAPES, behind_an_edge, serving

CONFIG = """
version: 1
stack: sim
process:
  services:
    core: {command: [core], port: 1}
"""


@cache
def config() -> Config:
    return parse_config(CONFIG, file="sim", env={}, read_file=lambda _name: "")


class Simulation:
    """One plan, one world, one journal; as many lives as it takes."""

    def __init__(self, plan: Plan, *crash_at: int) -> None:
        self.plan = plan
        self.clock = SteppedClock()
        self.journal = MemoryJournal(self.clock)
        down = any(isinstance(step.action, MigrateDown) for step in plan.steps)
        migrations = ("m1", "m2") if down else ("m1",)
        self.world = World(serving=serving(plan.from_release), held=HELD, migrations=migrations)
        self.lives = 0
        if any(isinstance(step.action, Switch | HoldRequests) for step in plan.steps):
            self.world.containers = behind_an_edge(self.world.containers, plan.from_release)
        if any(step.role is Role.DATABASE for step in plan.steps):
            self.world.database = replace(
                self.world.database,
                pools=True,
                databases=frozenset({"app", "app_bad_r0", RESTORE_POINT.clone, OWN_DUMP.clone}),
                manifests=tuple((point.id, point.manifest) for point in (RESTORE_POINT, OWN_DUMP)),
            )
        if any(isinstance(step.action, CatchUp | EndCapture) for step in plan.steps):
            self.world.database = replace(self.world.database, captures=frozenset({"rp-d2"}))
        if any(isinstance(step.action, RestoreClone) for step in plan.steps):
            ours = frozenset({RESTORE_POINT.id})
            self.world.database = replace(self.world.database, restore_points=ours, filled=ours)
        self.journal.append(RunStarted(run="r1", plan=plan, trigger="person", sentence="", by="t"))
        self.journal.append(ApprovalGiven(run="r1", plan_hash=plan.hash, by="t"))
        self.crashes = Crashes(*crash_at)
        self.journal.crashes = self.world.crashes = self.crashes

    def fork(self, *crash_at: int) -> Simulation:
        """The same moment once more, to go on differently. Facts and records are values; only what counts is copied."""
        other = copy(self)
        other.clock, other.world = copy(self.clock), copy(self.world)
        other.journal = MemoryJournal(other.clock)
        other.journal.kept = list(self.journal.kept)
        other.world.asked, other.world.effects = Counter(self.world.asked), Counter(self.world.effects)
        other.crashes = Crashes(*crash_at)
        other.crashes.count = self.crashes.count
        other.journal.crashes = other.world.crashes = other.crashes
        return other

    def rooms(self) -> Rooms:
        """The rooms of one life: nothing is remembered but what the journal and the world hold."""
        return Rooms(
            config=config(),
            memory=Memory(self.journal),
            clock=self.clock,
            containers=cast("Containers", self.world.hand(Role.CONTAINERS)),
            database=cast("Database", self.world.hand(Role.DATABASE)),
            frontend=cast("Frontend", self.world.hand(Role.FRONTEND)),
            sources=(),
            checkers=(),
            notifiers=(),
            root=Path(),
            state=Path(),
            who="t",
            story=lambda _line: None,
            if_slow=self.clock.if_slow,
        )

    def live(self) -> object:
        """Carry the plan on through every crash; return how it ended."""
        while True:
            self.lives += 1
            assert self.lives < 10, "the run never ends"
            try:
                ended = carry_out(self.rooms(), "r1")
            except Crash:
                continue
            assert not (self.world.database.exists and self.world.database.paused), "clients wait for nothing"
            return ended


def moments(plan: Plan) -> int:
    """How many moments an uninterrupted run has at which it could die."""
    simulation = Simulation(plan)
    assert simulation.live() == Finish()
    return simulation.crashes.count


@pytest.mark.parametrize("shape", SHAPES)
def test_every_crash_point_ends_the_same_with_each_effect_once(shape: str) -> None:
    plan = SHAPES[shape]()
    once = Counter(step.name for step in plan.steps)
    for at in range(1, moments(plan) + 1):
        simulation = Simulation(plan, at)
        assert simulation.live() == Finish()
        assert simulation.world.asked == simulation.world.effects == once, f"crash at {at}"
        assert simulation.lives == 2, f"crash at {at} did not happen"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pair_of_crash_points_ends_the_same_with_each_effect_once(shape: str) -> None:
    plan = SHAPES[shape]()
    once = Counter(step.name for step in plan.steps)
    last = moments(plan)
    for first in range(1, last + 1):
        died = Simulation(plan, first)
        with pytest.raises(Crash):
            carry_out(died.rooms(), "r1")
        for second in range(first + 1, last + 1):
            simulation = died.fork(second)
            assert simulation.live() == Finish()
            assert simulation.world.asked == simulation.world.effects == once, f"crashes at {first} and {second}"


def test_every_kind_of_step_is_in_a_shape_that_is_killed_and_resumed() -> None:
    kinds = {type(step.action) for make in SHAPES.values() for step in make().steps}
    known = {kind for union in get_args(Action) for kind in (get_args(union) or (union,))}
    assert {k.__name__ for k in known} <= {k.__name__ for k in kinds}

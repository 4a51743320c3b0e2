"""What is drawn for one rollback of the campaign: the migration, who is killed, in which step and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from tests.campaign.market import SHAPES
from tests.contract.rigs.postgres_shapes import Shape

STEPS: Final = ("catch-up", "fence", "replay-writes", "swap-database")
NAMES: Final = tuple(SHAPES)
LATEST: Final = 0.95
"""Of a step's usual duration."""


class Kill(StrEnum):
    """Who dies by kill -9."""

    CONTROLLER = "controller"
    BACKEND = "backend"
    POSTMASTER = "postmaster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """moment: of the step's usual duration. backlog: transactions before the way back begins. at_once, decoded: how
    many transactions the replay commits together, and how many changes the server decodes at once: data are small
    here, and everything would be one piece. away_s: until a killed server is started again."""

    seed: str
    number: int
    attempt: int
    shape_name: str
    kill: Kill
    step: str
    moment: float
    backlog: int
    users: int
    pause_s: float
    at_once: int
    decoded: int
    away_s: float

    @property
    def label(self) -> str:
        """By which it can be drawn again."""
        return f"{self.seed}/{self.number}" + (f"/{self.attempt}" if self.attempt else "")

    @property
    def shape(self) -> Shape:
        return SHAPES[self.shape_name]

    def __str__(self) -> str:
        return f"{self.label}: {self.shape_name}, {self.kill} killed at {self.moment:.0%} of {self.step}"


def draw(seed: str, number: int, attempt: int = 0) -> Case:
    """Draw one. Ninety-six in a row have every migration, every victim and every step together once."""
    chance = Random(f"{seed}/{number}/{attempt}")  # noqa: S311 # it shall be drawn again
    kills = tuple(Kill)
    return Case(
        seed=seed,
        number=number,
        attempt=attempt,
        shape_name=NAMES[(number + number // (len(kills) * len(STEPS))) % len(NAMES)],
        kill=kills[number % len(kills)],
        step=STEPS[number // len(kills) % len(STEPS)],
        moment=chance.uniform(0, LATEST),
        backlog=chance.randint(30, 200),
        users=chance.randint(2, 4),
        pause_s=chance.choice((0.01, 0.03, 0.1)),
        at_once=chance.choice((3, 20, 500)),
        decoded=chance.choice((100, 400, 20_000)),
        away_s=chance.choice((0.0, 0.1, 0.4)),
    )


def parse(label: str) -> Case:
    """Draw what a label names. Raises ValueError."""
    seed, number, *attempt = label.split("/")
    return draw(seed, int(number), int(attempt[0]) if attempt else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of it. landed: the kill fell inside of the step. wrong: one line each. counts: by what is counted.
    steps_s: seconds of each step that nobody disturbed."""

    case: Case
    landed: bool
    after_s: float
    took_s: float
    counts: Mapping[str, int]
    wrong: tuple[str, ...]
    steps_s: Mapping[str, float]

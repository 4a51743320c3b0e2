"""The cases in tests/cases/plan: what a rollback is planned from, and what the plan must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, TypeAdapter
from ruamel.yaml import YAML

from lastgood.core.errors import Refused
from lastgood.core.plan import Plan, Role
from lastgood.core.release import Release
from lastgood.core.returning import World, make_plan
from lastgood.testing.world import START
from tests.core.examples import DEADLINES

CASES = Path(__file__).parent.parent / "cases"


class Expected(BaseModel):
    """The plan. steps: names in order. waits: those that need a person. database: its rung, None where nothing is
    decided about it. skipped, warnings, invalid_rows: how each line begins, in order."""

    model_config = ConfigDict(extra="forbid")

    steps: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()
    database: str | None = None
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    invalid_rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a plan is made from."""

    release: Release
    world: World
    only: frozenset[Role]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One file. refused: how the refusal begins, empty when there is a plan; then `expected` is what it says."""

    given: Given
    expected: Expected
    refused: str

    def plan(self) -> Plan:
        """Make the plan. Raises Refused."""
        return make_plan(
            self.given.release,
            self.given.world,
            plan_id="r1",
            now=START,
            serving="bad",
            deadlines=DEADLINES,
            only=self.given.only,
        )


def names(*, refused: bool) -> list[str]:
    """The names of the cases that end in a refusal, or of those that end in a plan."""
    return [path.stem for path in sorted(CASES.glob("plan/*.yaml")) if bool(case(path.stem).refused) is refused]


@cache
def case(name: str) -> Case:
    """Read one case. Raises KeyError for a key that the ground does not have."""
    said = _read(CASES / "plan" / f"{name}.yaml")
    expected, refused = said.pop("plan", None), cast("str", said.pop("refused", ""))
    assert (expected is None) is bool(refused), f"{name}: expected either a plan or a refusal"
    return Case(
        given=TypeAdapter(Given).validate_python(_merged(_ground(), said)),
        expected=Expected.model_validate(expected or {}),
        refused=refused,
    )


@cache
def planned(name: str) -> Plan:
    """Return the plan of a case that has one."""
    return case(name).plan()


def refusal(name: str) -> str:
    """Return the words of a case's refusal; empty when it was not refused."""
    try:
        case(name).plan()
    except Refused as refused:
        return refused.message
    return ""


@cache
def _ground() -> Mapping[str, object]:
    return _read(CASES / "ground.yaml")


def _read(path: Path) -> dict[str, object]:
    return cast("dict[str, object]", YAML(typ="safe").load(path))


def _merged(ground: Mapping[str, object], said: Mapping[str, object]) -> dict[str, object]:
    """`ground`, with what a case says in its place, down to the keys below the keys."""
    if unknown := said.keys() - ground.keys():
        raise KeyError(*unknown)
    merged = dict(ground)
    for key, value in said.items():
        below = ground[key]
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged

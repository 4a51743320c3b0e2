"""What every target promises (core.ports.Target), shown on a real world each, and on the stack in memory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.plan import Seen, seen
from tests.contract.rigs import RigMaker, TargetRig

RIGS = [
    pytest.param("memory:containers", id="memory-containers"),
    pytest.param("memory:database", id="memory-database"),
    pytest.param("memory:frontend", id="memory-frontend"),
    pytest.param("process", id="process", marks=pytest.mark.needs_server),
    pytest.param("postgres_embedded", id="postgres-embedded", marks=pytest.mark.needs_server),
    pytest.param("vercel", id="vercel", marks=pytest.mark.needs_server),
    pytest.param("compose", id="compose", marks=pytest.mark.needs_docker),
    pytest.param("postgres_container", id="postgres-container", marks=pytest.mark.needs_docker),
]


def rig_of(name: str) -> RigMaker:
    """Find `module:maker` among the rigs; the maker is called `rig` where none is named."""
    module, _, maker = name.partition(":")
    found: RigMaker = getattr(import_module(f"tests.contract.rigs.{module}"), maker or "rig")
    return found


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TargetRig]:
    with rig_of(request.param)(tmp_path) as made:
        yield made


@pytest.fixture(scope="module", params=RIGS)
def still(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TargetRig]:
    """One world for all tests that leave it as it is, which is what they show."""
    with rig_of(request.param)(tmp_path_factory.mktemp("still")) as made:
        yield made


def test_looking_changes_nothing(still: TargetRig) -> None:
    before = still.effects()
    still.target.observe()
    still.target.observe()
    assert still.effects() == before


def test_each_step_is_seen_not_done_then_applied_then_seen_done(rig: TargetRig) -> None:
    for step in rig.steps:
        assert seen(step, rig.target.observe()) is Seen.NOT_DONE, step.name
        rig.target.apply(step)
        assert seen(step, rig.target.observe()) is Seen.DONE, step.name


def test_applying_a_done_step_again_has_no_effect(rig: TargetRig) -> None:
    for step in rig.steps:
        rig.target.apply(step)
        after = rig.effects()
        rig.target.apply(step)
        assert rig.effects() == after, step.name
        assert seen(step, rig.target.observe()) is Seen.DONE, step.name


def test_a_step_that_names_what_is_not_there_is_refused_and_changes_nothing(still: TargetRig) -> None:
    before = still.effects()
    with pytest.raises(Refused) as refused:
        still.target.apply(still.refused)
    assert still.effects() == before
    assert refused.value.message


def test_a_step_of_another_role_is_refused_and_changes_nothing(still: TargetRig) -> None:
    before = still.effects()
    with pytest.raises(Refused):
        still.target.apply(still.foreign)
    assert still.effects() == before


def test_a_world_that_does_not_answer_gives_an_error_and_never_facts(still: TargetRig) -> None:
    with still.unreachable(), pytest.raises(Retryable):
        still.target.observe()


def test_applying_to_a_world_that_does_not_answer_is_a_named_error_and_works_afterwards(rig: TargetRig) -> None:
    first = rig.steps[0]
    with rig.unreachable(), pytest.raises(LastgoodError):
        rig.target.apply(first)
    rig.target.apply(first)
    assert seen(first, rig.target.observe()) is Seen.DONE

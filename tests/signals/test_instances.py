"""Container states, from what the target showed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lastgood.core.errors import LastgoodError, Refused, Retryable
from lastgood.core.facts import ContainerFacts, Health, InstanceFacts
from lastgood.core.reading import Instances, InstanceState, SourceDown, Window
from lastgood.signals.instances import InstanceStates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = Window(since=NOW, until=NOW)


def instance(service: str, **settings: object) -> InstanceFacts:
    facts = {"running": True, "health": Health.HEALTHY, **settings}
    return InstanceFacts(service=service, instance=service, artifact="a", **facts)  # type: ignore[arg-type] # settings by name


def test_only_what_serves_is_shown_as_it_was_seen() -> None:
    facts = ContainerFacts(
        observed_at=NOW,
        serving=(
            instance("core", restarts=4, health=Health.STARTING),
            instance("agent", running=False, health=Health.UNHEALTHY, oom_killed=True),
        ),
        candidates=(instance("candidate"),),
        stateful=(instance("postgres"),),
    )
    assert InstanceStates("instances", lambda: facts).read(WINDOW) == Instances(
        instances=(
            InstanceState(service="core", running=True, unhealthy=False, restarts=4, oom_killed=False),
            InstanceState(service="agent", running=False, unhealthy=True, restarts=0, oom_killed=True),
        )
    )


@pytest.mark.parametrize("error", [Retryable("no answer", delay_s=1), Refused("no answer")])
def test_an_engine_that_does_not_answer_is_a_source_that_is_down(error: LastgoodError) -> None:
    def observe() -> ContainerFacts:
        raise error

    assert InstanceStates("instances", observe).read(WINDOW) == SourceDown(reason="no answer")

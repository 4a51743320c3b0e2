"""Telling the team: a channel that fails stops nothing, and an event is one event whoever else speaks there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.config import SlackConfig
from lastgood.core.record import Frozen, Told
from lastgood.core.secret import Secret
from lastgood.journal.sqlite import SqliteJournal
from lastgood.notify.slack import SlackNotifier
from lastgood.runbook.rooms import Memory, Rooms
from lastgood.runbook.tell import AGAIN_AFTER, tell
from lastgood.testing.slack import DEFAULT_TOKEN, SlackStandIn, doubles
from lastgood.testing.standin import Fault, FaultKind
from tests.core.examples import rollback_plan
from tests.runbook.test_crash_points import Simulation

pytestmark = pytest.mark.needs_server


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SlackStandIn]:
    with SlackStandIn(messages=tmp_path / "slack.jsonl") as standin:
        yield standin


def stack(state: Path, service: SlackStandIn) -> Rooms:
    """A stack with a journal of its own, in which something has happened, and the team's channel."""
    rooms = Simulation(rollback_plan(None)).rooms()
    memory = Memory(SqliteJournal(state, clock=rooms.clock))
    memory.note(Frozen(by="t", why=state.name))
    notifier = SlackNotifier(SlackConfig(channel="#dev-ops", token=Secret(DEFAULT_TOKEN), url=service.api_url))
    return replace(rooms, memory=memory, notifiers=(notifier,))


def test_the_first_event_of_one_stack_is_not_that_of_another(tmp_path: Path, service: SlackStandIn) -> None:
    """Ids count from 1 in every journal, and Slack would take the second message for the first sent again."""
    for name in ("production", "staging"):
        tell(stack(tmp_path / name, service), "", "d1 is bad", event_id="d1-refused")
    assert len(service.messages) == 2
    assert doubles(service.messages) == ()


def test_an_event_that_is_taken_up_is_the_same_event(tmp_path: Path, service: SlackStandIn) -> None:
    service.fail(Fault(kind=FaultKind.DROP, on="chat.postMessage", after_accept=True))
    for life in range(2):
        rooms = stack(tmp_path / "production", service)
        rooms.clock.sleep(life * (AGAIN_AFTER.total_seconds() + 1))
        tell(rooms, "", "d1 is bad", event_id="d1-refused")
    assert len(service.messages) == 2
    assert len(doubles(service.messages)) == 1


@pytest.mark.parametrize("kind", [FaultKind.DROP, FaultKind.RATE_LIMIT, FaultKind.ERROR])
def test_a_channel_that_fails_is_noted_and_stops_nothing(
    tmp_path: Path, service: SlackStandIn, kind: FaultKind
) -> None:
    service.fail(Fault(kind=kind, on="chat.postMessage", count=2))
    rooms = stack(tmp_path / "production", service)
    tell(rooms, "", "d1 is bad", event_id="d1-refused")
    (told,) = [r.event for r in rooms.memory.journal.records() if isinstance(r.event, Told)]
    assert not told.delivered
    assert "slack #dev-ops" in told.error

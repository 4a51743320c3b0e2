"""What every signal source promises (core.ports.SignalSource), shown on a real world each: loopback servers, Postgres.

To take a new source in, write a rig for it (a context manager that yields a SourceRig) and add it to RIGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from lastgood.core.config import ProbeConfig
from lastgood.core.errors import Retryable
from lastgood.core.facts import ContainerFacts, Health, InstanceFacts
from lastgood.core.ports import SignalSource
from lastgood.core.reading import Instances, NoData, Probed, Reading, SourceDown, Traffic, Violations, Window
from lastgood.signals import metrics_page
from lastgood.signals.instances import InstanceStates
from lastgood.signals.invariants import Invariants
from lastgood.signals.metrics_page import MetricsPage
from lastgood.signals.probe import Probe
from lastgood.testing.stack import (
    SERVICES,
    MemoryContainers,
    MemorySource,
    Stack,
    artifact_of,
    see_data,
    see_feature,
    see_instances,
    see_traffic,
)
from lastgood.testing.world import SteppedClock
from tests.signals.database import database
from tests.signals.loopback import answer, drip_body, drip_headers, flood, hang, loopback

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
needs_server = pytest.mark.needs_server
Act = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRig:
    """A world of its own for one source. It is well at first.

    troubles: what makes it unwell in one way each (away, slow, nonsense), by name. footprint: whatever a source that
    only reads must not change. counting: its first reading has nothing to compare with.
    """

    source: SignalSource
    troubles: Mapping[str, Act]
    footprint: Callable[[], object]
    counting: bool = False


def shows_health(reading: Reading) -> bool:
    """Whether a judge would take this for a world that was seen and is well."""
    match reading:
        case SourceDown() | NoData():
            return False
        case Probed():
            return reading.failed == 0
        case Violations():
            return not reading.unchecked and not reading.found
        case Traffic() | Instances():
            return True


@contextmanager
def metrics_page_rig() -> Iterator[SourceRig]:
    text = (
        'http_requests_total{handler="/a",status="200"} 5\n'
        'http_request_duration_seconds_bucket{handler="/a",le="0.5"} 5\n'
        'http_request_duration_seconds_count{handler="/a"} 5\n'
    )
    with loopback(answer(text)) as server:

        def reply(what: object) -> Act:
            return lambda: setattr(server, "reply", what)

        yield SourceRig(
            source=MetricsPage("the source", [f"{server.url}/metrics"], ("/health",), 0.5),
            troubles={
                "away": reply(b""),
                "hangs": reply(hang),
                "drips": reply(drip_body),
                "drips-headers": reply(drip_headers),
                "floods": reply(flood),
                "nonsense": reply(answer(b"\xff\x00{{{")),
                "not-http": reply(b"\x00" * 100 + b"\r\n"),
                "error": reply(answer(text, status=500)),
                "elsewhere": reply(answer("", status=302, headers=f"location: {server.url}/other\r\n")),
                "not-numbers": reply(answer(text.replace(" 5", " NaN"))),
            },
            footprint=lambda: [line for line, _ in server.requests if line != "GET /metrics HTTP/1.1"],
            counting=True,
        )


@contextmanager
def probe_rig() -> Iterator[SourceRig]:
    with loopback(answer('{"status": "completed"}')) as server:

        def reply(what: object) -> Act:
            return lambda: setattr(server, "reply", what)

        asking = ("POST /execute HTTP/1.1", b'{"task": "ping"}')
        settings = {"post": f"{server.url}/execute", "json": {"task": "ping"}, "expect": {"status": "completed"}}
        yield SourceRig(
            source=Probe("the source", ProbeConfig.model_validate({**settings, "timeout": "300ms"})),
            troubles={
                "away": reply(b""),
                "hangs": reply(hang),
                "drips": reply(drip_body),
                "drips-headers": reply(drip_headers),
                "floods": reply(flood),
                "nonsense": reply(answer(b"\xff\x00{{{")),
                "deep": reply(answer("[" * 500_000)),
                "not-http": reply(b"\x00" * 100 + b"\r\n"),
                "error": reply(answer('{"status": "completed"}', status=500)),
                "elsewhere": reply(answer("", status=302, headers=f"location: {server.url}/other\r\n")),
            },
            footprint=lambda: [asked for asked in server.requests if asked != asking],
        )


@dataclass(slots=True)
class _Reach:
    """How the rig's source gets to its database."""

    address: str
    opened: list[psycopg.Connection] = field(default_factory=list[psycopg.Connection])

    def connect(self) -> psycopg.Connection:
        connection = psycopg.connect(self.address, connect_timeout=2)
        self.opened.append(connection)
        return connection


@contextmanager
def invariants_rig() -> Iterator[SourceRig]:
    with database("CREATE TABLE missions (id int, credits int)", "INSERT INTO missions VALUES (1, 5)") as address:
        reach = _Reach(address)

        def run(statement: str) -> Act:
            def act() -> None:
                with psycopg.connect(address, autocommit=True) as connection:
                    connection.execute(statement.encode())

            return act

        def rows() -> object:
            assert all(connection.closed for connection in reach.opened), "a reading leaves no session behind"
            with psycopg.connect(address) as connection:
                return connection.execute("SELECT xmin::text, m.* FROM missions m").fetchall()

        yield SourceRig(
            source=Invariants(
                "the source", {"credits": "SELECT id FROM missions WHERE credits <= 0"}, reach.connect, 1.0
            ),
            troubles={
                "away": lambda: setattr(reach, "address", address.replace("signals_", "nowhere_")),
                "slow": run(
                    "ALTER TABLE missions RENAME TO kept; CREATE VIEW missions AS"
                    " SELECT id, credits - (SELECT count(*) FROM pg_sleep(600)) AS credits FROM kept"
                ),
                "another-schema": run("ALTER TABLE missions RENAME credits TO points"),
            },
            footprint=rows,
        )


@contextmanager
def instances_rig() -> Iterator[SourceRig]:
    answers = True

    def observe() -> ContainerFacts:
        if not answers:
            raise Retryable("the engine does not answer", delay_s=1)
        core = InstanceFacts(service="core", instance="1", artifact="a", running=True, health=Health.HEALTHY)
        return ContainerFacts(observed_at=BEGAN, serving=(core,))

    def away() -> None:
        nonlocal answers
        answers = False

    yield SourceRig(source=InstanceStates("the source", observe), troubles={"away": away}, footprint=lambda: None)


def memory_rig(see: Callable[[Stack, Window], Reading]) -> AbstractContextManager[SourceRig]:
    """An eye on the stack in memory."""
    stack = Stack(SteppedClock())
    MemoryContainers(stack).prepare("v1", BEGAN)
    for service in SERVICES:
        stack.put(service, artifact_of(service, "v1"))
    return nullcontext(
        SourceRig(
            source=MemorySource("the source", stack, see),
            troubles={"away": lambda: stack.blindfold("the source")},
            footprint=lambda: (dict(stack.effects), stack.containers, stack.database, dict(stack.broken)),
        )
    )


RIGS: Mapping[str, Callable[[], AbstractContextManager[SourceRig]]] = {
    "metrics-page": metrics_page_rig,
    "probe": probe_rig,
    "invariants": invariants_rig,
    "instances": instances_rig,
    "memory-traffic": lambda: memory_rig(see_traffic),
    "memory-feature": lambda: memory_rig(see_feature),
    "memory-data": lambda: memory_rig(see_data),
    "memory-instances": lambda: memory_rig(see_instances),
}
IN_MEMORY = ("instances", "memory-traffic", "memory-feature", "memory-data", "memory-instances")


@pytest.fixture(params=[pytest.param(name, marks=() if name in IN_MEMORY else needs_server) for name in RIGS])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceRig]:
    monkeypatch.setattr(metrics_page, "DEADLINE_S", 0.3)
    with RIGS[request.param]() as made:
        yield made


def window(number: int) -> Window:
    return Window(since=BEGAN + timedelta(seconds=5 * number), until=BEGAN + timedelta(seconds=5 * number + 5))


def test_it_keeps_the_name_that_it_was_given(rig: SourceRig) -> None:
    assert rig.source.name == "the source"


def test_a_world_that_is_well_is_seen(rig: SourceRig) -> None:
    first = rig.source.read(window(0))
    assert isinstance(first, NoData) is rig.counting
    assert shows_health(rig.source.read(window(1)))


def test_trouble_is_never_raised_never_hangs_and_never_looks_like_health(rig: SourceRig) -> None:
    """That this test comes to its end is the deadline's proof: none of these worlds lets go by itself."""
    rig.source.read(window(0))
    for number, (trouble, begin) in enumerate(rig.troubles.items(), start=1):
        begin()
        assert not shows_health(rig.source.read(window(number))), trouble


def test_reading_leaves_nothing_behind(rig: SourceRig) -> None:
    before = rig.footprint()
    for number in range(3):
        rig.source.read(window(number))
    assert rig.footprint() == before


def test_what_it_says_fits_on_one_line(rig: SourceRig) -> None:
    rig.source.read(window(0))
    for number, begin in enumerate(rig.troubles.values(), start=1):
        begin()
        reading = rig.source.read(window(number))
        if isinstance(reading, SourceDown | NoData):
            assert reading.reason
            assert reading.reason.isprintable()

"""What every signal source promises (core.ports.SignalSource), shown on a real world each: loopback servers, Postgres.

A new source comes with a module in tests/contract/rigs/sources; this file finds it there.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module

import pytest

from lastgood.core.reading import Instances, NoData, Probed, Reading, SourceDown, Traffic, Violations, Window
from lastgood.signals import metrics_page
from tests.contract.rigs import sources
from tests.contract.rigs.sources import BEGAN, SourceRig

MODULES = [import_module(f"{sources.__name__}.{found.name}") for found in pkgutil.iter_modules(sources.__path__)]
RIGS = [
    pytest.param(make, id=name, marks=[pytest.mark.needs_server] if getattr(module, "NEEDS_SERVER", True) else [])
    for module in MODULES
    for name, make in module.RIGS.items()
]


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


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceRig]:
    monkeypatch.setattr(metrics_page, "DEADLINE_S", 0.3)
    with request.param() as made:
        yield made


def window(number: int) -> Window:
    return Window(since=BEGAN + timedelta(seconds=5 * number), until=BEGAN + timedelta(seconds=5 * number + 5))


def test_it_keeps_the_name_that_it_was_given(rig: SourceRig) -> None:
    assert rig.source.name == "the source"


def test_a_world_that_is_well_is_seen(rig: SourceRig) -> None:
    first = rig.source.read(window(0))
    assert isinstance(first, NoData) is rig.counting
    assert shows_health(rig.source.read(window(1)))


def test_a_window_without_length_begins_the_counting_anew(rig: SourceRig) -> None:
    rig.source.read(window(0))
    assert isinstance(rig.source.read(Window(since=BEGAN, until=BEGAN)), NoData) or not rig.counting


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

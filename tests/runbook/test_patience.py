"""What takes long is said while it still takes long."""

from __future__ import annotations

from threading import Event

from lastgood.runbook.patience import if_slow
from lastgood.testing.world import SteppedClock


def test_a_block_that_takes_long_is_said_before_it_ends() -> None:
    said = Event()
    with if_slow(0.0, said.set):
        assert said.wait(timeout=30)


def test_a_block_that_ends_in_time_says_nothing() -> None:
    said = Event()
    with if_slow(60.0, said.set):
        pass
    assert not said.is_set()


def test_a_stepped_clock_says_it_by_its_own_time() -> None:
    clock, said = SteppedClock(), list[str]()
    with clock.if_slow(1.0, lambda: said.append("short")):
        clock.sleep(0.5)
    with clock.if_slow(1.0, lambda: said.append("long")):
        clock.sleep(1.5)
    assert said == ["long"]

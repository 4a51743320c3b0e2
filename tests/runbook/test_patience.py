"""What takes long is said while it still takes long, and what was seen is good for a while."""

from __future__ import annotations

from datetime import timedelta
from threading import Event

import pytest

from lastgood.runbook.carry_out import is_fresh
from lastgood.runbook.patience import if_slow
from lastgood.testing.world import START, SteppedClock


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


@pytest.mark.parametrize("age_s,good", [(0.0, True), (9.9, True), (10.0, False), (-1.0, False), (-3600.0, False)])
def test_a_look_is_not_good_for_longer_because_the_clock_was_set_back(age_s: float, good: bool) -> None:
    assert is_fresh(START, START + timedelta(seconds=age_s), for_s=10.0) is good
    assert not is_fresh(None, START, for_s=10.0)

"""Which releases are let go of: by count, and never one that somebody may still need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.history import History, fold
from lastgood.core.record import (
    DeploymentEnded,
    DeploymentStarted,
    Event,
    ReleaseJudged,
    ReleaseLetGo,
    ReleaseRecorded,
    RunEnded,
    RunStarted,
    WatchStarted,
)
from lastgood.core.release import Deployment, Standing
from lastgood.core.report import TerminalState
from lastgood.core.retention import DECIDED_WITHIN_S, capture_over, capture_until, needed, to_let_go
from lastgood.testing.world import START
from tests.core.examples import database_facts, release, rollback_plan
from tests.core.run_records import records


def deployed(name: str, *, number: int, previous: str = "", good: bool = True, ended: bool = True) -> list[Event]:
    """A release is recorded, serves, and is judged."""
    deployment = Deployment(id=f"d{number}", release=name, previous=previous or None, started_at=START)
    told: list[Event] = [
        ReleaseRecorded(release=release(name)),
        DeploymentStarted(deployment=deployment, serving=True),
        WatchStarted(deployment=deployment.id, at=START, window_s=60.0),
    ]
    if good:
        told.append(ReleaseJudged(release=name, good=True, by="lastgood"))
    if ended:
        told.append(DeploymentEnded(deployment=deployment.id, terminal=TerminalState.HEALTHY_KEPT, sentence=""))
    return told


def barred(name: str, back: str, *, number: int) -> list[Event]:
    """A rollback from one release to another."""
    plan = replace(rollback_plan(None), id=f"r{number}", from_release=name, to_release=back)
    run = RunStarted(run=plan.id, plan=plan, trigger="person", sentence="", by="ada", deployment=f"d{number}")
    return [run, RunEnded(run=plan.id, terminal=TerminalState.ROLLED_BACK_VERIFIED, serving=back)]


def told(*events: Iterable[Event]) -> History:
    return fold(records(*(event for part in events for event in part)))


def row(*names: str) -> list[Event]:
    """Good releases, one after the other; the last one serves."""
    return [event for number, name in enumerate(names, start=1) for event in deployed(name, number=number)]


BAD = deployed("e", number=5, previous="d", good=False, ended=False)

CASES: dict[str, tuple[list[Event], int, tuple[str, ...]]] = {
    "nothing is known": ([], 1, ()),
    "fewer than may be kept": (row("a", "b", "c"), 5, ()),
    "the oldest go first": (row("a", "b", "c", "d", "e"), 3, ("a", "b")),
    "what serves and the last good one stay though only one may": (row("a", "b", "c", "d"), 1, ("a", "b")),
    "a release that is watched keeps its way back": ([*row("a", "b", "c", "d"), *BAD], 1, ("a", "b", "c")),
    "bad ones do not push good ones out": (
        [
            *row("a", "b"),
            *deployed("x", number=3, previous="b", good=False),
            *barred("x", "b", number=3),
            *deployed("y", number=4, previous="b", good=False),
            *barred("y", "b", number=4),
        ],
        2,
        (),
    ),
    "bad ones go when they are old": (
        [
            *row("a"),
            *deployed("x", number=2, previous="a", good=False),
            *barred("x", "a", number=2),
            *(e for n, name in enumerate("bcde", start=3) for e in deployed(name, number=n)),
        ],
        2,
        ("a", "x", "b", "c"),
    ),
    "one that was deployed again is young": ([*row("a", "b", "c"), *deployed("a", number=4)], 2, ("b",)),
    "one that is not kept is not let go of again": (
        [*row("a", "b", "c", "d"), ReleaseLetGo(release="a", why="old")],
        2,
        ("b",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_by_count_and_never_what_is_needed(case: str) -> None:
    story, retain, gone = CASES[case]
    assert to_let_go(told(story), retain=retain) == gone


def test_a_run_that_did_not_end_keeps_both_its_releases() -> None:
    run, _ = barred("d", "a", number=4)
    story = [*row("a", "b", "c", "d"), run]
    assert {"a", "d"} <= needed(told(story))
    assert "a" not in to_let_go(told(story), retain=1)


def test_the_bake_after_a_rollback_keeps_the_release_that_was_left() -> None:
    bake = WatchStarted(deployment="d5", at=START + timedelta(minutes=1), window_s=60.0, bake=True)
    story = [*row("a", "b", "c", "d"), *BAD, *barred("e", "d", number=5), bake]
    assert {"e", "d", "c"} <= needed(told(story))


@pytest.mark.slow
@given(
    kinds=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans(), st.booleans()), max_size=12),
    retain=st.integers(min_value=1, max_value=4),
)
@settings(max_examples=200)
def test_whatever_happened_the_way_back_is_kept_and_so_are_enough_good_ones(
    kinds: list[tuple[str, bool, bool]], retain: int
) -> None:
    story = [
        event
        for number, (name, good, ended) in enumerate(kinds, start=1)
        for event in deployed(
            name, number=number, previous=kinds[number - 2][0] if number > 1 else "", good=good, ended=ended
        )
    ]
    history = told(story)
    gone = to_let_go(history, retain=retain)
    back = history.last_good(before=history.serving)
    assert history.serving not in gone
    assert back is None or back.release.id not in gone
    good = [name for name, known in history.releases.items() if known.standing is Standing.GOOD]
    assert len([name for name in good if name not in gone]) >= min(retain, len(good))
    after = told(story, (ReleaseLetGo(release=name, why="old") for name in gone))
    assert (after.last_good(before=after.serving) is None) == (back is None)
    assert to_let_go(after, retain=retain) == ()


# --- the log that is kept for a replay -------------------------------------------------------------------------------

LATER = START + timedelta(seconds=100)


def until(*events: Event) -> float | None:
    """Seconds from the start of it all until when the log is kept."""
    found = capture_until(fold(records(*events)), window_s=30.0)
    return (found - START).total_seconds() if found else None


def ended(terminal: TerminalState) -> list[Event]:
    return [
        *deployed("v2", number=1, ended=False),
        DeploymentEnded(deployment="d1", terminal=terminal, sentence=""),
    ]


def test_the_log_is_kept_until_the_window_of_the_watch_is_over() -> None:
    assert until(*deployed("v2", number=1, ended=False)) == 60.0


def test_without_a_deployment_nothing_is_known_of_the_log() -> None:
    assert until() is None


def test_while_a_run_is_under_way_the_log_has_no_end() -> None:
    begun = RunStarted(run="r1", plan=rollback_plan(None), trigger="person", sentence="", by="ada")
    assert until(*deployed("v2", number=1, ended=False), begun) is None


def test_a_deployment_that_never_came_to_be_watched_has_the_length_of_a_window() -> None:
    assert until(*[e for e in deployed("v2", number=1, ended=False) if not isinstance(e, WatchStarted)]) == 30.0


@pytest.mark.parametrize(
    "terminal,seconds",
    [
        (TerminalState.HEALTHY_KEPT, 0.0),
        (TerminalState.INCONCLUSIVE_KEPT, 0.0),
        (TerminalState.REFUSED, 60.0 + DECIDED_WITHIN_S),
        (TerminalState.NEEDS_HUMAN, 60.0 + DECIDED_WITHIN_S),
    ],
)
def test_the_log_is_kept_longer_where_a_person_is_needed_and_no_longer_where_all_is_well(
    terminal: TerminalState, seconds: float
) -> None:
    assert until(*ended(terminal)) == seconds


def test_the_log_outlives_a_rollback_until_its_bake_is_over() -> None:
    bake = WatchStarted(deployment="d1", at=LATER, window_s=20.0, bake=True)
    assert until(*ended(TerminalState.ROLLED_BACK_VERIFIED), bake) == 120.0


def test_a_log_is_over_by_its_size_or_its_end_and_else_stays() -> None:
    facts = replace(database_facts(), capture_bytes=3 << 20)
    assert capture_over(facts, limit_bytes=4 << 20, until=None, now=LATER) == ""
    assert capture_over(facts, limit_bytes=4 << 20, until=LATER, now=LATER) == ""
    assert "3 MiB of log for a replay, limit 2 MiB" in capture_over(facts, limit_bytes=2 << 20, until=None, now=START)
    assert "until 2026-01-01 00:00 UTC" in capture_over(facts, limit_bytes=4 << 20, until=START, now=LATER)


def test_what_the_restore_point_itself_wrote_into_the_log_is_not_held_against_it() -> None:
    facts = replace(database_facts(), capture_bytes=9 << 20, capture_own_bytes=8 << 20)
    assert capture_over(facts, limit_bytes=2 << 20, until=None, now=LATER) == ""
    grown = replace(facts, capture_bytes=11 << 20)
    assert "3 MiB of log" in capture_over(grown, limit_bytes=2 << 20, until=None, now=LATER)

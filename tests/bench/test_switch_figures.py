"""What the figures of a switch say of requests whose story is known."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench.switch.figures import Command, commands, late_ms, middle, noticed, percentile, posts, worst
from bench.switch.request import Kind, Lost, Request, read, to_line

BACK = Command(leaves="v2", to="v1", steady_from=0.0, began_at=10.0, ended_at=12.0, until=20.0)
NUMBERS = count()


def asked(at: float, release: str = "v2", *, took: float = 0.02, **different: object) -> Request:
    """A request that was sent when it was due."""
    told: dict[str, Any] = {"n": next(NUMBERS), "kind": Kind.NEW, "service": 1, "status": 200, **different}
    return Request(due_at=at, sent_at=at, ended_at=at + took, release=release, **told)


def test_a_clean_switch_is_told_by_its_first_good_and_its_last_bad_answer() -> None:
    story = [*(asked(t / 10) for t in range(90, 110)), *(asked(11.0 + t / 10, "v1") for t in range(50))]
    seen = noticed(story, BACK)
    assert seen.failed == {}
    assert seen.first_good_s == pytest.approx(1.02)
    assert seen.last_bad_s == pytest.approx(0.92)
    assert seen.gap_s == pytest.approx(0.1)
    assert seen.command_s == 2.0


def test_the_gap_reaches_from_the_last_good_answer_before_the_command_to_the_next_one() -> None:
    story = [asked(9.9), asked(10.5, "", status=Lost.REFUSED), asked(14.0, "v1"), asked(15.0, "v1")]
    assert noticed(story, BACK).gap_s == pytest.approx(4.1)


def test_of_several_services_the_one_that_was_away_longest_and_came_back_last_counts() -> None:
    one = [asked(9.0 + t / 10, "v1", service=1) for t in range(60)]
    two = [asked(9.9, service=2), asked(11.0, "", service=2, status=503), asked(13.0, "v1", service=2)]
    seen = noticed([*one, *two], BACK)
    assert seen.gap_s == pytest.approx(3.1)
    assert seen.first_good_s == pytest.approx(3.02)
    assert noticed([*one, *two[:2]], BACK).first_good_s is None


def test_the_last_good_answer_before_counts_although_it_was_in_the_span_of_another_command() -> None:
    later = Command(leaves="v2", to="v1", steady_from=10.0, began_at=10.0, ended_at=12.0, until=20.0)
    assert noticed([asked(9.0), asked(11.0, "v1")], later).gap_s == pytest.approx(2.0)


def test_an_outage_without_an_end_lasts_as_long_as_the_span() -> None:
    seen = noticed([asked(9.9), asked(11.0, "", status=503)], BACK)
    assert seen.gap_s == pytest.approx(20 - 9.92)
    assert seen.first_good_s is None


def test_a_request_of_ten_seconds_bridges_no_gap_and_is_no_late_answer_of_the_bad_release() -> None:
    story = [asked(9.9), asked(5.0, took=10.0, kind=Kind.SLOW), asked(19.0, "v1")]
    seen = noticed(story, BACK)
    assert seen.gap_s == pytest.approx(9.1)
    assert seen.last_bad_s == 0.0
    assert seen.drained_s == pytest.approx(5.0)


@pytest.mark.parametrize("status,why", [(503, "503"), (Lost.RESET, "reset"), (Lost.TIMEOUT, "timeout"), (404, "404")])
def test_anything_but_a_whole_200_failed_and_the_reason_is_kept(status: int | Lost, why: str) -> None:
    assert noticed([asked(11.0, status=status)], BACK).failed == {why: 1}


def test_a_request_that_was_sent_before_and_was_cut_off_by_the_command_is_its_failure() -> None:
    seen = noticed([asked(9.0, "", took=1.5, status=Lost.RESET)], BACK)
    assert (seen.failures, seen.failed_before) == (1, 0)


def test_what_failed_before_is_told_apart_and_what_belongs_to_an_earlier_command_is_left_out() -> None:
    steady = Command(leaves="v2", to="v1", steady_from=8.0, began_at=10.0, ended_at=12.0, until=20.0)
    story = [asked(t, "", status=503) for t in (7.0, 9.0, 11.0, 21.0)]
    seen = noticed(story, steady)
    assert (seen.failures, seen.failed_before, seen.requests) == (1, 1, 1)


def test_an_error_that_the_bad_release_answers_is_still_an_answer_of_the_bad_release() -> None:
    assert noticed([asked(11.0, "v2", status=500)], BACK).last_bad_s == pytest.approx(1.02)


def test_the_latency_of_a_request_counts_from_when_it_was_due() -> None:
    late = Request(n=0, kind=Kind.NEW, service=1, due_at=10, sent_at=11, ended_at=11.5, status=200, release="v1")
    assert noticed([late], BACK).slowest_ms == pytest.approx(1500)
    assert late_ms([late]) == pytest.approx(1000)


def test_ids_are_compared_on_both_sides() -> None:
    story = [
        asked(1, kind=Kind.POST, n=1),
        asked(2, kind=Kind.POST, n=2),
        asked(3, kind=Kind.POST, n=3, status=Lost.RESET),
        asked(4, kind=Kind.POST, n=4, status=503),
        asked(5, kind=Kind.NEW, n=5),
    ]
    seen = posts(story, ["r-1", "r-1", "r-3"], run="r")
    assert (seen.acknowledged, seen.lost, seen.doubled, seen.unanswered) == (2, 1, 1, 1)


def test_the_span_of_a_command_ends_where_the_next_one_begins() -> None:
    marks = [
        Command(leaves="a", to="b", steady_from=0, began_at=at, ended_at=at + 1, until=at + 1) for at in (1.0, 5.0)
    ]
    assert [c.until for c in commands(marks, last=9.0)] == [5.0, 9.0]


@pytest.mark.parametrize("percent,expected", [(50, 50), (99, 99), (100, 100), (1, 1), (0, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([float(v) for v in range(100, 0, -1)], percent) == expected


def test_what_never_came_is_later_than_all() -> None:
    assert worst([1.0, None]) is None
    assert worst([1.0, 3.0]) == 3.0
    assert middle([1.0, None, 2.0]) == 2.0
    assert middle([None, None, 2.0]) is None


def test_a_request_reads_as_it_was_written(tmp_path: Path) -> None:
    story = (asked(1.0), asked(2.0, "", status=Lost.TIMEOUT, kind=Kind.POST, service=3))
    file = tmp_path / "load"
    file.write_text("".join(f"{to_line(r)}\n" for r in story))
    assert read(file) == story

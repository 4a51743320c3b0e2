"""The table and the page say what was measured, and no more."""

from __future__ import annotations

from bench.switch.figures import Noticed, Posts, Result, Switched
from bench.switch.report import from_json, lines, page, to_json

POSTS = Posts(acknowledged=100, lost=0, doubled=0, unanswered=0)


def seen(*, gap_s: float, first_good_s: float | None = 1.0, failed: int = 0, last_bad_s: float = 0.5) -> Noticed:
    return Noticed(
        command_s=2.0,
        requests=1_000,
        failed={"reset": failed} if failed else {},
        failed_slow=0,
        gap_s=gap_s,
        first_good_s=first_good_s,
        last_bad_s=last_bad_s,
        drained_s=0.0,
        slowest_ms=30.0,
        failed_before=0,
    )


def result(way: str, *rollbacks: Noticed, services: int = 1, rate: float = 150.0) -> Result:
    return Result(
        way=way,
        services=services,
        rate=rate,
        deploys=(seen(gap_s=0.01),),
        rollbacks=rollbacks,
        posts=POSTS,
        standby_bytes=0,
        late_ms=0.5,
    )


def test_figures_read_as_they_were_written() -> None:
    switched = Switched(services=1, rate=150.0, switches=(seen(gap_s=0.01),), told=(), posts=POSTS, late_ms=0.1)
    for figures in (result("L0", seen(gap_s=0.01, first_good_s=None)), switched):
        assert from_json(to_json(figures)) == figures


def test_the_table_goes_up_the_ladder_and_gives_ratios_to_the_procedure() -> None:
    told = list(lines([result("L0", seen(gap_s=0.01)), result("by-hand", seen(gap_s=14.0, failed=2_115))]))
    by_hand, warm = (next(n for n, line in enumerate(told) if line.startswith(way)) for way in ("by-hand:", "L0:"))
    assert by_hand < warm
    assert "2,115 / 1,000" in told[by_hand]
    assert "by hand / L0: gap 1,400.0 x, first good answer 1.0 x, failed 2,115 to 0 a rollback" in told


def test_what_never_came_back_is_said() -> None:
    told = "\n".join(lines([result("L4", seen(gap_s=9.0, first_good_s=None))]))
    assert "never" in told


def test_several_runs_show_the_median_and_the_worst() -> None:
    told = "\n".join(lines([result("L1", seen(gap_s=0.01), seen(gap_s=0.02), seen(gap_s=3.0))]))
    assert "20 ms, 3.0 s" in told


def test_a_bar_that_is_missed_is_said_to_be_missed() -> None:
    def switched(*last_bad_s: float) -> str:
        switches = tuple(seen(gap_s=0.01, last_bad_s=s) for s in last_bad_s)
        return "\n".join(
            lines([Switched(services=1, rate=150.0, switches=switches, told=switches, posts=POSTS, late_ms=0.1)])
        )

    assert "p99: held" in switched(*[0.03] * 99, 0.2)
    assert "p99: MISSED" in switched(*[0.03] * 98, 0.2, 0.2)


def test_the_page_has_a_table_for_each_load_and_one_for_the_growth() -> None:
    told = "\n".join(
        page(
            [
                result("L0", seen(gap_s=0.01)),
                result("L0", seen(gap_s=0.9), rate=1_000.0),
                result("L0", seen(gap_s=0.2), services=50),
            ]
        )
    )
    for heading in ("## 1 service, 150 requests/s", "## 1 service, 1000 requests/s", "## 50 services, 150 requests/s"):
        assert heading in told
    assert "| L0 | 500 ms, 10 ms, 0 | 500 ms, 200 ms, 0 |" in told

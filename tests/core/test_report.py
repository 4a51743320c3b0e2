"""What the team is told: the procedure's sentence only when it is true, and for every other ending its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.plan import Seen
from lastgood.core.record import Event
from lastgood.core.report import (
    Check,
    Loss,
    Progress,
    Replayed,
    Report,
    RowProgress,
    RowWork,
    TerminalState,
    announcement,
    progress_line,
)
from lastgood.core.run import outcomes
from lastgood.testing.world import START
from tests.core.examples import EVIDENCE, rollback_plan
from tests.core.run_records import approved, done, failed, found, records, started

PLAN = rollback_plan(None)
ASKING = rollback_plan(EVIDENCE)


def report(terminal: TerminalState, *events: Event, asking: bool = False, **other: object) -> Report:
    plan = ASKING if asking else PLAN
    told = Report(
        run="r7",
        terminal=terminal,
        trigger="error-rate",
        sentence="5xx 31.0% of 120 requests (limit 1%)",
        from_release="v2.1.0",
        to_release="v2.0.3",
        began_at=START,
        ended_at=START,
        steps=outcomes(plan, records(*events)),
        owner="ada",
    )
    return replace(told, **other)  # type: ignore[arg-type]  # a test names what is different


VERIFIED = report(TerminalState.ROLLED_BACK_VERIFIED, *done(*(step.name for step in PLAN.steps)))
PROCEDURE = "🚨 Deployment failed. Rollback to v2.0.3 completed. System operating normally. Investigation started."


def test_a_verified_rollback_is_announced_in_the_words_of_the_procedure() -> None:
    assert announcement(VERIFIED) == PROCEDURE


def test_rows_that_stay_invalid_are_a_second_line_and_not_a_change_of_the_first() -> None:
    told = announcement(replace(VERIFIED, remaining=("7 rows break credits: 1, 2", "1 rows break owner: 9")))
    assert told == f"{PROCEDURE}\nInvalid rows remain: 7 rows break credits: 1, 2; 1 rows break owner: 9"


def test_rows_that_do_not_fit_are_counted_and_their_file_named() -> None:
    losses = (
        Loss(table="missions", rows=12, file="replays/replay-r7/quarantine.jsonl"),
        Loss(table="audit", rows=0, file="replays/replay-r7/quarantine.jsonl"),
        Loss(table="users", rows=3, file="replays/replay-r7/quarantine.jsonl"),
    )
    assert announcement(replace(VERIFIED, losses=losses)) == (
        f"{PROCEDURE}\nRows that do not fit wait in quarantine (12 of missions, 3 of users): "
        "replays/replay-r7/quarantine.jsonl"
    )


def test_what_left_with_an_own_dump_is_said_with_where_it_is() -> None:
    left = "everything written since 2026-01-01 00:20:00 UTC; it is in app_bad_r7"
    told = announcement(replace(VERIFIED, uncounted=left))
    assert told == f"{PROCEDURE}\nNot in the live data any more: {left}"


def test_what_was_neither_replayed_nor_waits_is_said_with_where_it_is() -> None:
    replayed = Replayed(
        units="transactions",
        total=40,
        quarantined=2,
        skipped=3,
        without_place=5,
        left_out=(Loss(table="totals", rows=7, file="r7/left-out.jsonl"),),
        skipped_file="r7/skipped.jsonl",
    )
    assert replayed.replayed == 30
    assert announcement(replace(VERIFIED, replayed=replayed)).splitlines() == [
        PROCEDURE,
        "Values for which the old schema has no place (7 of totals): r7/left-out.jsonl",
        "Not replayed, as the migration's own: 3 transactions: r7/skipped.jsonl",
    ]
    assert announcement(replace(VERIFIED, replayed=replace(replayed, skipped=0, left_out=()))) == PROCEDURE


def test_an_export_without_rows_is_no_loss() -> None:
    assert announcement(replace(VERIFIED, losses=(Loss(table="audit", rows=0, file="x"),))) == PROCEDURE


def test_a_part_that_went_back_is_not_announced_as_a_rollback() -> None:
    told = announcement(replace(VERIFIED, parts=("containers", "frontend"), serving="v2.1.0"))
    assert told == "ℹ️ containers and frontend went back to v2.0.3, and the checks passed. v2.1.0 serves."


NO_IMAGE = failed("serve-core", again=False, reason="no image")


@pytest.mark.parametrize(
    "ending,told",
    [
        pytest.param(
            report(
                TerminalState.ROLLED_BACK_DEGRADED,
                checks=(
                    Check(name="health", passed=True),
                    Check(name="smoke: login", passed=False, detail="401"),
                    Check(name="smoke: chat", passed=False),
                ),
            ),
            "⚠️ Deployment of v2.1.0 failed. v2.0.3 runs again, but these checks fail: smoke: login, smoke: chat. "
            "ada is needed.",
            id="degraded",
        ),
        pytest.param(
            report(TerminalState.REFUSED, *done("pass-gate"), started("serve-core"), NO_IMAGE),
            "⚠️ v2.1.0 is bad (5xx 31.0% of 120 requests (limit 1%)). Rollback refused at serve-core (no image), "
            "nothing was touched. ada is needed.",
            id="refused",
        ),
        pytest.param(
            report(TerminalState.DENIED, *done("save-dump"), asking=True),
            "ℹ️ Rollback of v2.1.0 was denied. v2.1.0 still serves.",
            id="denied-at-once",
        ),
        pytest.param(
            report(TerminalState.DENIED, *done("pass-gate", "serve-core")),
            "⚠️ Rollback of v2.1.0 was denied at serve-orchestrator; done: serve-core. What serves: lastgood status",
            id="denied-half-way",
        ),
        pytest.param(
            report(TerminalState.DENIED, *done("pass-gate", "serve-core"), serving="v2.1.0"),
            "⚠️ Rollback of v2.1.0 was denied at serve-orchestrator; done: serve-core. v2.1.0 serves.",
            id="denied-half-way-and-what-serves-is-known",
        ),
        pytest.param(
            report(TerminalState.ABORTED_BY_HUMAN, *done("pass-gate")),
            "⚠️ Rollback of v2.1.0 was aborted by a person. v2.1.0 still serves.",
            id="aborted-at-once",
        ),
        pytest.param(
            report(
                TerminalState.ABORTED_BY_HUMAN,
                *done("save-dump"),
                approved(ASKING),
                *done("fence", "export-writes", "replay-writes", "swap-database"),
                asking=True,
            ),
            "⚠️ Rollback of v2.1.0 was aborted by a person at pass-gate; done: fence, swap-database. "
            "What serves: lastgood status",
            id="aborted-half-way",
        ),
        pytest.param(
            report(TerminalState.ABORTED_BY_HUMAN, *done("pass-gate"), started("serve-core"), NO_IMAGE),
            "⚠️ Rollback of v2.1.0 was aborted by a person at serve-core. What serves: lastgood status",
            id="aborted-after-an-attempt",
        ),
        pytest.param(
            report(
                TerminalState.NEEDS_HUMAN,
                *done("pass-gate", "serve-core"),
                started("serve-orchestrator"),
                found("serve-orchestrator", Seen.UNKNOWN, note="no answer"),
                next_steps=("lastgood explain r7", "lastgood rollback v2.0.3"),
            ),
            "🚨 Rollback of v2.1.0 stopped at serve-orchestrator (no answer) and needs ada. "
            "Next: lastgood explain r7; lastgood rollback v2.0.3",
            id="needs-a-person",
        ),
        pytest.param(
            report(TerminalState.INCONCLUSIVE_KEPT, sentence="blind to traffic: refused"),
            "⚠️ v2.1.0 was kept, but is not proved good: blind to traffic: refused",
            id="inconclusive",
        ),
        pytest.param(report(TerminalState.HEALTHY_KEPT), "✅ v2.1.0 was watched and is kept as good.", id="healthy"),
        pytest.param(
            report(TerminalState.SUPERSEDED),
            "ℹ️ The watch of v2.1.0 ended: a newer deployment took over.",
            id="superseded",
        ),
    ],
)
def test_every_other_ending_has_a_sentence_of_its_own(ending: Report, told: str) -> None:
    assert announcement(ending) == told


@pytest.mark.parametrize("terminal", sorted(set(TerminalState) - {TerminalState.ROLLED_BACK_VERIFIED}), ids=str)
def test_no_other_ending_says_that_the_system_operates_normally(terminal: TerminalState) -> None:
    assert "operating normally" not in announcement(replace(VERIFIED, terminal=terminal))


@pytest.mark.parametrize("terminal", [TerminalState.DENIED, TerminalState.ABORTED_BY_HUMAN], ids=str)
@pytest.mark.parametrize("step", [step.name for step in PLAN.steps if step.changes_what_serves])
def test_a_release_is_not_said_to_serve_once_a_step_began_that_users_can_notice(
    terminal: TerminalState, step: str
) -> None:
    assert "still serves" not in announcement(report(terminal, *done("pass-gate"), started(step)))


@pytest.mark.parametrize("terminal", TerminalState, ids=str)
def test_nothing_is_left_open_where_nothing_is_known(terminal: TerminalState) -> None:
    """No owner, no step, no next step, no check: the sentence still is one."""
    told = announcement(replace(VERIFIED, terminal=terminal, steps=(), owner="", sentence="it did not answer"))
    assert told.count("  ") == 0
    assert told.rstrip(" :;,") == told


@given(terminal=st.sampled_from(TerminalState), left=st.text(min_size=1), back=st.text(min_size=1))
@settings(max_examples=50)
def test_every_ending_of_any_release_can_be_told(terminal: TerminalState, left: str, back: str) -> None:
    assert announcement(replace(VERIFIED, terminal=terminal, from_release=left, to_release=back))


# --- how far a replay is ---------------------------------------------------------------------------------------------

FIRST = Progress(done=100, at_bytes=1_000, end_bytes=500_000)


@pytest.mark.parametrize(
    "now,told",
    [
        pytest.param(FIRST, "100 transactions replayed, 0.5 MB of log left", id="nothing-was-measured-yet"),
        pytest.param(
            Progress(done=1_100, at_bytes=101_000, end_bytes=500_000),
            "1,100 transactions replayed, about 3,990 left, about 40 s",
            id="nobody-writes",
        ),
        pytest.param(
            Progress(done=1_100, at_bytes=101_000, end_bytes=590_000),
            "1,100 transactions replayed, about 4,890 left, about 8 min",
            id="what-is-written-meanwhile-counts",
        ),
        pytest.param(
            Progress(done=1_100, at_bytes=101_000, end_bytes=700_000),
            "1,100 transactions replayed, about 5,990 left; as much is written as is replayed, so there is no end yet",
            id="it-falls-behind",
        ),
        pytest.param(
            Progress(done=1_100, at_bytes=501_000, end_bytes=500_000),
            "1,100 transactions replayed, about 0 left, about 0 s",
            id="the-end",
        ),
    ],
)
def test_a_replay_tells_how_far_it_is_and_how_long_it_takes_by_what_was_measured(now: Progress, told: str) -> None:
    assert progress_line(FIRST, now, took_s=10.0) == told


COMPARED = RowProgress(work=RowWork.COMPARED, done=0, of=8_000_000_000)
PUT_BACK = RowProgress(work=RowWork.PUT_BACK, done=500, of=40_000)


@pytest.mark.parametrize(
    "first,now,told",
    [
        pytest.param(COMPARED, COMPARED, "0.0 of 8,000.0 MB of tables compared", id="nothing-was-measured-yet"),
        pytest.param(
            COMPARED,
            replace(COMPARED, done=2_000_000_000),
            "2,000.0 of 8,000.0 MB of tables compared, about 30 s",
            id="tables-are-compared",
        ),
        pytest.param(
            PUT_BACK,
            replace(PUT_BACK, done=1_500),
            "1,500 of 40,000 rows put back, about 6 min",
            id="rows-are-put-back",
        ),
        pytest.param(COMPARED, PUT_BACK, "500 of 40,000 rows put back", id="one-work-does-not-measure-another"),
        pytest.param(FIRST, PUT_BACK, "500 of 40,000 rows put back", id="nor-do-transactions"),
        pytest.param(PUT_BACK, FIRST, "100 transactions replayed, 0.5 MB of log left", id="nor-rows-transactions"),
    ],
)
def test_a_replay_by_rows_tells_how_far_it_is_by_what_was_measured_of_the_same_work(
    first: Progress | RowProgress, now: Progress | RowProgress, told: str
) -> None:
    assert progress_line(first, now, took_s=10.0) == told

"""Records of a run, written down by hand or drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import cache

from hypothesis import strategies as st

from lastgood.core.plan import Plan, Seen
from lastgood.core.record import (
    AbortAsked,
    ApprovalDenied,
    ApprovalGiven,
    Event,
    Record,
    StepFailed,
    StepSeen,
    StepStarted,
)
from lastgood.testing.world import START


def started(step: str, attempt: int = 1) -> StepStarted:
    return StepStarted(run="r1", step=step, attempt=attempt)


def found(step: str, answer: Seen, *, applied: bool = True, note: str = "") -> StepSeen:
    return StepSeen(run="r1", step=step, seen=answer, applied=applied, note=note)


def failed(
    step: str, *, again: bool, delay_s: float = 0.0, hint: str = "", needs_human: bool = False, reason: str = "no"
) -> StepFailed:
    return StepFailed(
        run="r1", step=step, reason=reason, again=again, delay_s=delay_s, hint=hint, needs_human=needs_human
    )


def done(*steps: str) -> list[Event]:
    """Intent and answer of each step."""
    return [event for step in steps for event in (started(step), found(step, Seen.DONE))]


def approved(plan: Plan) -> ApprovalGiven:
    return ApprovalGiven(run="r1", plan_hash=plan.hash, by="ada")


def denied(why: str = "") -> ApprovalDenied:
    return ApprovalDenied(run="r1", by="ada", why=why)


def aborted(why: str = "") -> AbortAsked:
    return AbortAsked(run="r1", by="ada", why=why)


def records(*events: Event, every_s: float = 1.0) -> list[Record]:
    """One record an event, the first at START, `every_s` apart."""
    return list(_records(events, every_s))


def _records(events: tuple[Event, ...], every_s: float) -> Iterator[Record]:
    for seq, event in enumerate(events, start=1):
        yield Record(seq=seq, at=START + timedelta(seconds=every_s * (seq - 1)), event=event, hash="")


def events_of(plan: Plan) -> st.SearchStrategy[Event]:
    """Any event that a run of this plan may be told of, whether or not a run would write it then."""
    steps = st.sampled_from([step.name for step in plan.steps])
    return st.one_of(
        st.builds(started, steps, st.integers(1, 3)),
        st.builds(found, steps, st.sampled_from(Seen), applied=st.booleans()),
        st.builds(failed, steps, again=st.booleans(), needs_human=st.booleans()),
        st.sampled_from([plan.hash, "another"]).map(lambda h: ApprovalGiven(run="r1", plan_hash=h, by="ada")),
        st.just(denied()),
        st.just(aborted()),
    )


@cache
def any_records(plan: Plan) -> st.SearchStrategy[list[Record]]:
    """Any records of a run in any order, the clock jumping back and forth between them."""
    jumps = st.sampled_from([0, 1, 60, 599, 601, 3600, -1, -3600])
    return st.lists(st.tuples(events_of(plan), jumps), max_size=14).map(_at_their_times)


def _at_their_times(told: list[tuple[Event, int]]) -> list[Record]:
    at, kept = START, list[Record]()
    for seq, (event, jump_s) in enumerate(told, start=1):
        at += timedelta(seconds=jump_s)
        kept.append(Record(seq=seq, at=at, event=event, hash=""))
    return kept

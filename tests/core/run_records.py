"""Records of a run, written down by hand or drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

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


def events_about(plan: Plan, steps: Iterable[str]) -> list[Event]:
    """Whatever a run of this plan may be told of these steps, whether or not a run would write it then."""
    about: list[Event] = []
    for step in steps:
        about += [started(step), started(step, 2)]
        about += [found(step, answer, applied=applied) for answer in Seen for applied in (True, False)]
        about += [failed(step, again=True), failed(step, again=False), failed(step, again=False, needs_human=True)]
    people: list[Event] = [approved(plan), ApprovalGiven(run="r1", plan_hash="another", by="ada"), denied(), aborted()]
    return [*about, *people * max(1, len(about) // 10)]


JUMPS_S = (0, 1, 60, 599, 601, 3600, -1, -3600)


def any_records(events: Sequence[Event], *, max_size: int = 10) -> st.SearchStrategy[list[Record]]:
    """Some of these events in any order, the clock jumping back and forth between them."""
    return st.lists(st.tuples(st.sampled_from(events), st.sampled_from(JUMPS_S)), max_size=max_size).map(_told)


def _told(story: Iterable[tuple[Event, int]]) -> list[Record]:
    at, kept = START, list[Record]()
    for seq, (event, jump_s) in enumerate(story, start=1):
        at += timedelta(seconds=jump_s)
        kept.append(Record(seq=seq, at=at, event=event, hash=""))
    return kept

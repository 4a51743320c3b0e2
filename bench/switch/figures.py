"""From requests to figures: what users noticed of one command, and of many. Pure: no clock, no file.

A request belongs to the command in whose span it ended. Its latency counts from when it was due.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from bench.switch.load import posted
from bench.switch.request import Kind, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something that moves traffic from one release to another. ended_at: of the command. until: where the span of the
    next one begins. steady_from: since when before it there was nothing else to notice."""

    leaves: str
    to: str
    steady_from: float
    began_at: float
    ended_at: float
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """What users noticed of one command. Seconds count from its begin.

    failed: reason to count. gap_s: the longest time in which one service gave no good answer to a quick request.
    first_good_s: when every service had answered from the release that it leads to, None if one never did. last_bad_s:
    last answer of the release that it leaves to a quick request; drained_s: the same for requests of 10 s.
    failed_before: what failed in the steady time before, which is not the command's and shows whether the run can be
    trusted.
    """

    command_s: float
    requests: int
    failed: Mapping[str, int]
    failed_slow: int
    gap_s: float
    first_good_s: float | None
    last_bad_s: float
    drained_s: float
    slowest_ms: float
    failed_before: int

    @property
    def failures(self) -> int:
        return sum(self.failed.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Posts:
    """Ids counted on both sides. lost: acknowledged and not there. doubled: there twice. unanswered: there, but the
    client was told of a failure, or of nothing."""

    acknowledged: int
    lost: int
    doubled: int
    unanswered: int


def noticed(requests: Iterable[Request], command: Command) -> Noticed:
    """Compute what users noticed of a command. Requests in any order, of any time."""
    ordered = sorted(requests, key=lambda r: r.ended_at)
    own = [r for r in ordered if command.began_at <= r.ended_at < command.until]
    before = [r for r in ordered if r.ended_at < command.began_at]
    failed = [r for r in own if r.failed]
    of_each = [[r for r in own if r.service == service] for service in sorted({r.service for r in own})]
    leaving = [r for r in ordered if r.release == command.leaves and r.sent_at <= command.ended_at]
    return Noticed(
        command_s=command.ended_at - command.began_at,
        requests=len(own),
        failed=dict(Counter(r.why for r in failed)),
        failed_slow=sum(r.kind is Kind.SLOW for r in failed),
        gap_s=max((_gap(before, mine, command) for mine in of_each), default=0.0),
        first_good_s=worst(_first_good(mine, command) for mine in of_each),
        last_bad_s=_last((r for r in own if r.release == command.leaves and r.kind is not Kind.SLOW), command),
        drained_s=_last((r for r in leaving if r.kind is Kind.SLOW), command),
        slowest_ms=1000 * max((r.ended_at - r.due_at for r in own if r.kind is not Kind.SLOW), default=0.0),
        failed_before=sum(r.failed for r in before if r.ended_at >= command.steady_from),
    )


def _gap(before: Sequence[Request], own: Sequence[Request], command: Command) -> float:
    """From one good answer of a service to its next. The span's own end closes a gap that nothing else closed."""
    earlier = (r.ended_at for r in reversed(before) if r.service == own[0].service and _counts(r))
    good = [r.ended_at for r in own if _counts(r)]
    times = [next(earlier, command.began_at), *good, *([] if good else [command.until])]
    return max((later - sooner for sooner, later in pairwise(times)), default=0.0)


def _counts(request: Request) -> bool:
    return not request.failed and request.kind is not Kind.SLOW


def _first_good(own: Iterable[Request], command: Command) -> float | None:
    return next((r.ended_at - command.began_at for r in own if _counts(r) and r.release == command.to), None)


def _last(requests: Iterable[Request], command: Command) -> float:
    return max((r.ended_at - command.began_at for r in requests if r.ended_at >= command.began_at), default=0.0)


def posts(requests: Iterable[Request], written: Iterable[str], *, run: str) -> Posts:
    """Compare what was posted with what was written down. written: every id, as often as it stands there."""
    there = Counter(written)
    acknowledged = {posted(run, r.n) for r in requests if r.kind is Kind.POST and not r.failed}
    return Posts(
        acknowledged=len(acknowledged),
        lost=sum(name not in there for name in acknowledged),
        doubled=sum(times > 1 for times in there.values()),
        unanswered=sum(name not in acknowledged for name in there),
    )


def commands(marks: Sequence[Command], *, last: float) -> tuple[Command, ...]:
    """Let the span of each command reach to the begin of the next one, and that of the last to `last`."""
    ends = [*(mark.began_at for mark in marks[1:]), last]
    return tuple(replace(mark, until=end) for mark, end in zip(marks, ends, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: a value that was measured, never one in between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One way on one stack: a deploy and a rollback each run. standby_bytes: memory of what is kept running between the
    two. late_ms: how far the load itself was behind, at the 99th percentile."""

    way: str
    services: int
    rate: float
    deploys: tuple[Noticed, ...]
    rollbacks: tuple[Noticed, ...]
    posts: Posts
    standby_bytes: int
    late_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """Many switches back and forth between two running releases. late_ms: as in Result."""

    services: int
    rate: float
    switches: tuple[Noticed, ...]
    posts: Posts
    late_ms: float


def late_ms(requests: Iterable[Request]) -> float:
    """How far the load was behind its own times: what it says of others is not better than that."""
    return 1000 * percentile([r.sent_at - r.due_at for r in requests] or [0.0], 99)


def worst(values: Iterable[float | None]) -> float | None:
    """The largest; None when one of them never came, or when there is none."""
    known = list(values)
    return None if None in known else max((v for v in known if v is not None), default=None)


def middle(values: Iterable[float | None]) -> float | None:
    """The median; what never came counts as later than all."""
    found = median(math.inf if v is None else v for v in values)
    return None if math.isinf(found) else found

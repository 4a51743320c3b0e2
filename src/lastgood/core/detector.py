"""One statistical trigger: is more than the allowed share of the requests bad, so surely that production goes back?

Both limits of the procedure are statements about a share ("5xx over 1%", "p95 over 500 ms" = over 5% slow), so one
test serves them, and the probes of the features too. It is a bet against the claim "every request is bad with
probability at most the limit": the evidence starts at 1, and while the claim is true its expectation never grows. So
the chance that it ever reaches `e_needed` is at most 1 in `e_needed` (Ville's inequality), whenever and however often
one looks, in whatever batches, at whatever traffic. Half of the stake is on a fault that is there from the start, the
other half is spread over the later starts, so that an hour of healthy requests cannot hide a fault that begins late.

It never contradicts the limit: evidence above 1 exists only where a window is literally over the limit, and that
window is quoted. It must never read silence as health or as failure: a bucket without requests changes nothing.

Source of the method: e-processes and e-detectors (Shin, Ramdas, Rinaldo 2023), with start weights that sum to one, so
that the false alarm is bounded over the whole watch. Why it is ours: docs/decisions/0003-the-detector-is-ours.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, lgamma, log
from typing import Final, Self

_ODDS_RATIOS: Final = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 90.0)
"""How much worse than the limit the bets assume it is. From 1.1: rates up to about 1.05 of the limit cannot fire."""
_WORST_RATIO: Final = 0.98
"""The steepest bet. At 1 a single good request would ruin it."""
_START_WEIGHT: Final = 0.5
"""Stake on "bad from the start"; the rest is shared by the later starts."""
_PARTIAL_BUCKET: Final = 0.25
"""How far the first and the last bucket of `hot_buckets` count: a fault rarely begins with a bucket."""
_EARLY: Final = 0.1
"""Share of a bucket by which a reading may come early and still close it. Shorter readings gather."""
_LEFT_OUT: Final = 0.05
"""The bounds shown to people, and the proof of health, hold with 95%, at any time."""
_QUIET_AFTER_S: Final = 120.0
_MIN_BAD: Final = 5
"""Failures below which nothing is decided: a person would not roll back for four of them."""
_BASELINE_BAD: Final = 20
"""Failures a baseline must hold before its burst factor means anything."""
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What must hold: bad / total <= limit_ratio. limit_ratio: 0..1 exclusive, not percent."""

    limit_ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.limit_ratio < 1:
            raise ValueError(f"limit_ratio is {self.limit_ratio}, expected more than 0 and less than 1")

    def broken_by(self, *, total: int, bad: int) -> bool:
        """True if these counts are literally over the limit. Exactly at it is not over, whatever floats make of it."""
        return bad > total * self.limit_ratio * (1 + _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorPolicy:
    """How sure, how patient.

    alpha: chance of a false alarm in the whole watch, shared by `statistical_triggers`. warm_up_s: counts as one
    bucket, 0 for probes. hot_buckets: bad buckets needed at least; a blip of (hot_buckets - 2) * bucket_s never fires,
    whatever its phase. min_bad: failures needed at least, since the start. burst_factor: how much more the failures
    clump than independent ones would, from the function of that name.
    """

    alpha: float = 0.001
    statistical_triggers: int = 1
    window_s: float = 3600.0
    bucket_s: float = 5.0
    warm_up_s: float = 35.0
    hot_buckets: int = 4
    min_bad: int = _MIN_BAD
    burst_factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}, expected more than 0 and less than 1")
        if self.statistical_triggers < 1 or self.hot_buckets < 1 or self.bucket_s <= 0 or self.warm_up_s < 0:
            raise ValueError(f"impossible policy: {self}")
        if self.burst_factor < 1:
            raise ValueError(f"burst_factor is {self.burst_factor}, expected 1 or more")

    @property
    def e_needed(self) -> float:
        """The evidence at which the trigger fires."""
        return self.statistical_triggers / self.alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedWindow:
    """A part of the watch and what was counted in it. since_s, until_s: seconds since the watch began."""

    since_s: float
    until_s: float
    total: int
    bad: int

    @property
    def length_s(self) -> float:
        return self.until_s - self.since_s

    @property
    def bad_ratio(self) -> float:
        """0..1, of a window that holds requests."""
        return self.bad / self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """The upper 95% bound of the rate is under the limit, at whatever time one looks. counted: after the warm-up."""

    counted: CountedWindow
    warm_up: CountedWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Unproved:
    """Within the limit, and not yet proved to be. more_requests: error-free ones that would prove it."""

    counted: CountedWindow
    warm_up: CountedWindow
    more_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteralBreach:
    """Over the limit when counted, without the evidence that a rollback needs: neither good nor proved bad."""

    counted: CountedWindow
    warm_up: CountedWindow


Ending = Proved | Unproved | LiteralBreach


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bets:
    """What stays the same through a watch: the grid of bets, and the most that one bucket may add to a bet's logarithm.

    gains: per bet, what the logarithm of the evidence gains by a bad request and (less than 0) by a good one.
    """

    gains: tuple[tuple[float, float], ...]
    first_cap: float
    later_cap: float
    later_weight: float

    @classmethod
    def on(cls, objective: Objective, policy: DetectorPolicy) -> Self:
        limit = objective.limit_ratio
        odds = limit / (1 - limit)
        ratios = (min(_WORST_RATIO, odds * r / (1 + odds * r)) for r in _ODDS_RATIOS)
        # A limit above _WORST_RATIO leaves no bet against it: then only bets that are worse than the limit are made.
        bets = tuple(q for q in ratios if q > limit)
        if not bets:
            raise ValueError(f"limit_ratio is {limit}, expected less than {_WORST_RATIO}")
        needed = log(policy.e_needed)
        later_buckets = max(1, ceil((policy.window_s - policy.warm_up_s) / policy.bucket_s))
        later_weight = (1 - _START_WEIGHT) / later_buckets
        full_buckets = policy.hot_buckets - _PARTIAL_BUCKET
        return cls(
            gains=tuple((log(q / limit), log((1 - q) / (1 - limit))) for q in bets),
            first_cap=(needed - log(_START_WEIGHT)) / full_buckets,
            later_cap=(needed - log(later_weight)) / full_buckets,
            later_weight=later_weight,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """The state of one trigger: begin, then `after` each bucket. Immutable; every method returns a new one.

    e_value: the evidence, frozen once it fired. quoted: None until then. total, bad: all since the watch began, the
    warm-up included. from_start, from_later: per bet, the stake on a fault from the start, and on all later starts so
    far. unstaked: weight of the starts still to come. The bucket that is open gathers counts until it is as long as a
    bucket must be; the first one lasts as long as the warm-up.
    """

    objective: Objective
    policy: DetectorPolicy
    bets: _Bets
    from_start: tuple[float, ...]
    from_later: tuple[float, ...]
    unstaked: float = 1 - _START_WEIGHT
    e_value: float = 1.0
    quoted: CountedWindow | None = None
    closed: tuple[CountedWindow, ...] = ()
    open_since_s: float = 0.0
    open_until_s: float
    open_total: int = 0
    open_bad: int = 0
    total: int = 0
    bad: int = 0
    seen_until_s: float = 0.0
    last_request_s: float = 0.0

    @classmethod
    def begin(cls, objective: Objective, policy: DetectorPolicy) -> Detector:
        """Start a watch. Raises ValueError for a limit of 98% or more: no evidence could ever reach it."""
        bets = _Bets.on(objective, policy)
        return cls(
            objective=objective,
            policy=policy,
            bets=bets,
            from_start=(_START_WEIGHT,) * len(bets.gains),
            from_later=(0.0,) * len(bets.gains),
            open_until_s=policy.warm_up_s or policy.bucket_s,
        )

    @property
    def e_needed(self) -> float:
        return self.policy.e_needed

    @property
    def fired(self) -> bool:
        """Stays true: evidence that was enough once is enough."""
        return self.quoted is not None

    @property
    def warming_up(self) -> bool:
        """True while the warm-up gathers: nothing counts as evidence yet."""
        return self.policy.warm_up_s > 0 and not self.closed

    @property
    def low_evidence(self) -> bool:
        """True after 2 minutes without a request: neither healthy nor failed, and a person may want to know."""
        return self.seen_until_s - self.last_request_s >= _QUIET_AFTER_S

    def after(self, *, at_s: float, total: int, bad: int) -> Detector:
        """Take in what was counted since the previous call; total 0 where nothing was seen.

        at_s: end of the reading, in seconds since the watch began; not before the previous one. A reading that ends
        early joins the next one; one that comes a whole bucket late, or after a gap, is a bucket of its own.
        """
        if not 0 <= bad <= total:
            raise ValueError(f"{bad} bad of {total}, expected 0 <= bad <= total")
        early_s = self.policy.bucket_s * _EARLY
        late = at_s > self.open_until_s + self.policy.bucket_s - early_s
        before = _close(self, self.open_until_s) if late else self
        seen = replace(
            before,
            open_total=before.open_total + total,
            open_bad=before.open_bad + bad,
            total=before.total + total,
            bad=before.bad + bad,
            seen_until_s=at_s,
            last_request_s=at_s if total else before.last_request_s,
        )
        return _close(seen, at_s) if at_s >= seen.open_until_s - early_s else seen

    def ending(self) -> Ending:
        """Say how the window ended for a trigger that did not fire. The warm-up is left out of the rate."""
        warm_up = self._warm_up()
        counted = CountedWindow(
            since_s=warm_up.until_s,
            until_s=self.seen_until_s,
            total=self.total - warm_up.total,
            bad=self.bad - warm_up.bad,
        )
        if self.objective.broken_by(total=counted.total, bad=counted.bad):
            return LiteralBreach(counted=counted, warm_up=warm_up)
        more = _more_to_prove(self.objective, counted)
        if more:
            return Unproved(counted=counted, warm_up=warm_up, more_requests=more)
        return Proved(counted=counted, warm_up=warm_up)

    def _warm_up(self) -> CountedWindow:
        if not self.policy.warm_up_s:
            return CountedWindow(since_s=0.0, until_s=0.0, total=0, bad=0)
        if self.closed:
            return self.closed[0]
        return CountedWindow(since_s=0.0, until_s=self.seen_until_s, total=self.total, bad=self.bad)


def _close(detector: Detector, at_s: float) -> Detector:
    """Turn the open bucket into evidence, see whether that is enough, and open the next one. at_s: where it ends."""
    bucket = CountedWindow(
        since_s=detector.open_since_s, until_s=at_s, total=detector.open_total, bad=detector.open_bad
    )
    closed = (*detector.closed, bucket)
    from_start, from_later, unstaked = detector.from_start, detector.from_later, detector.unstaked
    e_value, quoted = detector.e_value, detector.quoted
    if not detector.fired:
        from_start, from_later, unstaked = _weigh(detector, bucket)
        e_value = unstaked + (sum(from_start) + sum(from_later)) / len(from_start)
        if e_value >= detector.e_needed and detector.bad >= detector.policy.min_bad:
            quoted = _clearest(closed, detector.objective)
    return replace(  # one for all of it: a watch closes a bucket every few seconds, for every trigger
        detector,
        closed=closed,
        open_since_s=at_s,
        open_until_s=at_s + detector.policy.bucket_s,
        open_total=0,
        open_bad=0,
        from_start=from_start,
        from_later=from_later,
        unstaked=unstaked,
        e_value=e_value,
        quoted=quoted,
    )


def _weigh(detector: Detector, bucket: CountedWindow) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Let the bets win and lose on the newest bucket; return what is staked from the start, from later, and not yet."""
    bets, bad, good = detector.bets, bucket.bad, bucket.total - bucket.bad
    # The first bucket has a stake of its own. Each later one stakes its part on "from here on" before it is counted.
    later = bool(detector.closed) and detector.unstaked > bets.later_weight / 2
    staked = bets.later_weight if later else 0.0
    gained = [(bad * up + good * down) / detector.policy.burst_factor for up, down in bets.gains]
    from_start = tuple(s * exp(min(g, bets.first_cap)) for s, g in zip(detector.from_start, gained, strict=True))
    from_later = tuple(
        (s + staked) * exp(min(g, bets.later_cap)) for s, g in zip(detector.from_later, gained, strict=True)
    )
    return from_start, from_later, detector.unstaked - staked


def sentence(detector: Detector, *, what: str, counted: str = "requests") -> str:
    """Say what fired a detector, the value beside its limit. what: the bad ones ("5xx"). counted: all of them.

    Raises ValueError when it has not fired: there is nothing to say.
    """
    quoted = detector.quoted
    if quoted is None:
        raise ValueError(f"nothing fired: evidence {detector.e_value:,.0f} of {detector.e_needed:,.0f}")
    return (
        f"{what}: {quoted.bad:,} of {quoted.total:,} {counted} = {quoted.bad_ratio:.1%} in the last"
        f" {quoted.length_s:,.0f} s, limit {_percent(detector.objective.limit_ratio)}"
    )


def proof(detector: Detector) -> str:
    """Say how sure it is. The interval is for the reader (the window was picked after the fact); the decision rests on
    the evidence. Raises ValueError when it has not fired."""
    quoted = detector.quoted
    if quoted is None:
        raise ValueError(f"nothing fired: evidence {detector.e_value:,.0f} of {detector.e_needed:,.0f}")
    low, high = _bounds(total=quoted.total, bad=quoted.bad)
    return (
        f"evidence {detector.e_value:,.0f}, needed {detector.e_needed:,.0f}: were the true rate at most"
        f" {_percent(detector.objective.limit_ratio)}, evidence this strong would turn up in at most 1 of"
        f" {detector.e_needed:,.0f} watches, however often we look (95% interval {low * 100:.1f}-{high * 100:.1f}%)"
    )


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.6g}%"


def burst_factor(buckets: Sequence[tuple[int, int]]) -> float:
    """How much more the failures of a baseline clump than independent ones: variance / mean per bucket, at least 1.

    buckets: (total, bad) each, of equal length, before the deploy. 1 with fewer than 20 failures: nothing is known.
    """
    failures = [bad for _, bad in buckets]
    if len(failures) < 2 or sum(failures) < _BASELINE_BAD:
        return 1.0
    mean = sum(failures) / len(failures)
    variance = sum((bad - mean) ** 2 for bad in failures) / (len(failures) - 1)
    return max(1.0, variance / mean)


def already_red(buckets: Sequence[tuple[int, int]], objective: Objective) -> bool:
    """True if the baseline is proved to break the limit: putting the release back would not help.

    buckets: (total, bad) each, before the deploy. Proved: the lower 95% bound is over the limit, with as many failures
    as a trigger needs. A baseline that is only literally over it (1 error in 20 requests), or in a burst (the deploy
    itself keeps the host busy), leaves the trigger armed, because an unarmed one is blind for the whole watch.
    """
    total, bad = sum(total for total, _ in buckets), sum(bad for _, bad in buckets)
    if bad < _MIN_BAD or not objective.broken_by(total=total, bad=bad):
        return False
    clumped = burst_factor(buckets)  # failures that come together count as so many fewer
    return _excludes(objective.limit_ratio, total=total / clumped, bad=bad / clumped)


def _clearest(buckets: Sequence[CountedWindow], objective: Objective) -> CountedWindow | None:
    """Return the stretch up to now that maximises total * KL(rate || limit) among those over the limit."""
    until_s, total, bad = buckets[-1].until_s, 0, 0
    clearest, most = None, 0.0
    for bucket in reversed(buckets):
        total, bad = total + bucket.total, bad + bucket.bad
        if not bucket.total or not objective.broken_by(total=total, bad=bad):
            continue
        said = _divergence(objective.limit_ratio, total=total, bad=bad)
        if said > most:
            most = said
            clearest = CountedWindow(since_s=bucket.since_s, until_s=until_s, total=total, bad=bad)
    return clearest


def _divergence(limit: float, *, total: int, bad: int) -> float:
    """Return total * KL(bad/total || limit), in nats."""
    good = total - bad
    return (bad * log(bad / total / limit) if bad else 0.0) + (good * log(good / total / (1 - limit)) if good else 0.0)


def _excludes(ratio: float, *, total: float, bad: float) -> bool:
    """True if `ratio` lies outside the 95% confidence sequence: the Beta(1/2, 1/2) mixture against it reached 20."""
    good = total - bad
    mixture = lgamma(bad + 0.5) + lgamma(good + 0.5) - lgamma(total + 1) - 2 * lgamma(0.5)
    return mixture - bad * log(ratio) - good * log(1 - ratio) >= -log(_LEFT_OUT)


def _bounds(*, total: int, bad: int) -> tuple[float, float]:
    """Return the ends of the 95% confidence sequence, 0..1. total: at least 1."""
    rate = bad / total

    def edge(outer: float) -> float:
        inside, outside = rate, outer
        for _ in range(40):
            middle = (inside + outside) / 2
            if 0 < middle < 1 and _excludes(middle, total=total, bad=bad):
                outside = middle
            else:
                inside = middle
        return inside

    return (edge(0.0) if bad else 0.0), (edge(1.0) if bad < total else 1.0)


def _more_to_prove(objective: Objective, counted: CountedWindow) -> int:
    """Return how many more error-free requests exclude the limit; 0 if it is excluded. Not over the limit now."""

    def proved(more: int) -> bool:
        total = counted.total + more
        under = total > 0 and counted.bad < total * objective.limit_ratio
        return under and _excludes(objective.limit_ratio, total=total, bad=counted.bad)

    # Under the limit the evidence only grows with error-free requests, so the first number that proves it is found by
    # halving.
    if proved(0):
        return 0
    enough = 1
    while not proved(enough):
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        enough, too_few = (middle, too_few) if proved(middle) else (enough, middle)
    return enough

"""Simulated traffic in simulated time: what a source would have counted, bucket by bucket, an hour in milliseconds.

Requests arrive as a Poisson process whose rate swings with the day and jumps every 10 s, as real traffic does; each
request fails, or is slow, with a probability that a fault may change for a while. Counts are drawn exactly, not by a
normal approximation, because the rare counts are those that decide. Nothing is seeded here: the caller's dice decide,
so a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, floor, lgamma, log, pi, sin, sqrt
from typing import Final

_DAY_S: Final = 86_400.0
_SWING: Final = 0.2
"""The rate swings by a fifth around its mean with the time of day."""
_GUST_S: Final = 10.0
_GUST_VARIATION: Final = 0.3
"""Standard deviation / mean of the rate from one 10 s stretch to the next (gamma distributed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedService:
    """A service as its users see it. The ratios are 0..1; error_burst: mean number of errors that come together
    (1: each by itself), drawn geometrically."""

    requests_per_s: float
    error_ratio: float = 0.001
    slow_ratio: float = 0.002
    error_burst: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedFault:
    """What a fault makes of the ratios between begin_s and end_s, in seconds since the deploy."""

    begin_s: float
    end_s: float = float("inf")
    error_ratio: float | None = None
    slow_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedBucket:
    """What was counted up to at_s since the bucket before. An error is never counted as slow too."""

    at_s: float
    requests: int
    errors: int
    slow: int


def dice(seed: int | str) -> random.Random:
    """Return a source of chance that throws the same again for the same seed."""
    return random.Random(seed)  # noqa: S311  # made-up traffic, not secrets


def simulate(
    service: SimulatedService,
    rng: random.Random,
    *,
    faults: Sequence[SimulatedFault] = (),
    window_s: float = 3600.0,
    bucket_s: float = 5.0,
) -> Iterator[SimulatedBucket]:
    """Yield the buckets of one watch in order; the last one ends at window_s or just after."""
    time_of_day_s = rng.uniform(0, _DAY_S)
    shape = 1 / _GUST_VARIATION**2
    gust, gust_until_s = rng.gammavariate(shape, 1 / shape), rng.uniform(0, _GUST_S)
    # Buckets are counted, not added up: 0.1 s added 36,000 times is not an hour.
    number, at_s = 0, 0.0
    while at_s < window_s:
        since_s, number = at_s, number + 1
        at_s = number * bucket_s
        swing = 1 + _SWING * sin(2 * pi * (time_of_day_s + at_s) / _DAY_S)
        gusty_s, from_s = 0.0, since_s
        while gust_until_s < at_s:
            gusty_s += gust * (gust_until_s - from_s)
            from_s, gust_until_s = gust_until_s, gust_until_s + _GUST_S
            gust = rng.gammavariate(shape, 1 / shape)
        gusty_s += gust * (at_s - from_s)
        requests = service.requests_per_s * swing * gusty_s
        error_ratio, slow_ratio = _ratios(service, faults, since_s, at_s)
        # Marks on a Poisson process are independent Poisson processes: three draws instead of a binomial one each.
        errors = _bursts(rng, requests * error_ratio, service.error_burst)
        slow = poisson(rng, requests * (1 - error_ratio) * slow_ratio)
        rest = poisson(rng, requests * (1 - error_ratio) * (1 - slow_ratio))
        yield SimulatedBucket(at_s=at_s, requests=errors + slow + rest, errors=errors, slow=slow)


def poisson(rng: random.Random, mean: float) -> int:
    """Draw a Poisson variate of any mean, exactly.

    Source: from 10 on Hörmann's transformed rejection (PTRS), Insurance: Mathematics and Economics 12 (1993) 39-45,
    whose constants stand here as published; below it, Knuth's product of uniforms.
    """
    if mean <= 0:
        return 0
    if mean < 10:
        stop, drawn, product = exp(-mean), 0, rng.random()
        while product > stop:
            drawn += 1
            product *= rng.random()
        return drawn
    b = 0.931 + 2.53 * sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    accept_at_once = 0.9277 - 3.6224 / (b - 2)
    log_mean = log(mean)
    while True:
        u = rng.random() - 0.5
        v = 1 - rng.random()
        us = 0.5 - abs(u)
        if us <= 0:
            continue
        k = floor((2 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= accept_at_once:
            return k
        if k < 0 or (us < 0.013 and v > us):
            continue
        if log(v * inverse_alpha / (a / us**2 + b)) <= k * log_mean - mean - lgamma(k + 1):
            return k


def _bursts(rng: random.Random, mean: float, size: float) -> int:
    """Draw a count of the given mean that comes in bursts of the given mean size (geometric, at least 1)."""
    if size <= 1:
        return poisson(rng, mean)
    go_on = log(1 - 1 / size)
    return sum(1 + floor(log(1 - rng.random()) / go_on) for _ in range(poisson(rng, mean / size)))


def _ratios(
    service: SimulatedService, faults: Sequence[SimulatedFault], since_s: float, until_s: float
) -> tuple[float, float]:
    """Return the mean error and slow ratio of a bucket that faults cover in part. Faults do not overlap."""
    error_ratio, slow_ratio = service.error_ratio, service.slow_ratio
    for fault in faults:
        covered = max(0.0, min(until_s, fault.end_s) - max(since_s, fault.begin_s)) / (until_s - since_s)
        if fault.error_ratio is not None:
            error_ratio += covered * (fault.error_ratio - service.error_ratio)
        if fault.slow_ratio is not None:
            slow_ratio += covered * (fault.slow_ratio - service.slow_ratio)
    return error_ratio, slow_ratio

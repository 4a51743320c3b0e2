"""False rollbacks and delays of the detector, beside the rules that people write by hand, on the same traffic.

    .venv/bin/python bench/detection.py --watches 1000

Simulated hours, repeatable by --seed. Two other rules read the same buckets:
literal: a rollback at the end of the first clock minute that is over a limit, which is the procedure word for word;
flagger: one check a minute, five failed ones (not in a row) lead to a rollback at the next check, as
pkg/controller/scheduler.go does it at interval 1m, threshold 5 (fluxcd/flagger, read 2026-11).
Faults begin within 5 s after a full minute, which favours the rules that think in minutes.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from lastgood.core.detector import Detector, DetectorPolicy, Objective, burst_factor
from lastgood.testing.traffic_model import SimulatedBucket, SimulatedFault, SimulatedService, dice, simulate

RATES = (0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0)
ERROR_LIMIT, SLOW_LIMIT, PROBE_LIMIT = 0.01, 0.05, 0.05
HOUR_S, MINUTE_S, BUCKET_S, LATE_S = 3600.0, 60.0, 5.0, 1_200.0
FLAGGER_THRESHOLD = 5
RULES = ("lastgood", "literal", "flagger")

Fired = float | None
"""When a rule rolled back, in seconds since the deploy; None if it never did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: what the service does, and what a fault makes of it. learns_bursts: a baseline hour is read first."""

    name: str
    error_ratio: float = 0.001
    slow_ratio: float = 0.002
    error_burst: float = 1.0
    fault: SimulatedFault | None = None
    learns_bursts: bool = False


# Each of them keeps its limits, or breaks them for a moment only: a rollback is a false one.
HARMLESS = (
    Case(name="0.05% 5xx", error_ratio=0.0005),
    Case(name="0.3% 5xx", error_ratio=0.003),
    Case(name="0.9% 5xx", error_ratio=0.009),
    Case(name="1.0% 5xx, at the limit", error_ratio=0.01),
    Case(name="4.5% slow", slow_ratio=0.045),
    Case(name="5.0% slow, at the limit", slow_ratio=0.05),
    Case(name="30 s outage at the deploy", fault=SimulatedFault(begin_s=0, end_s=30, error_ratio=1)),
    Case(name="10 s outage in mid-watch", fault=SimulatedFault(begin_s=LATE_S, end_s=LATE_S + 10, error_ratio=1)),
    Case(name="0.3% in bursts of 10", error_ratio=0.003, error_burst=10, learns_bursts=True),
    Case(name="0.9% in bursts of 10", error_ratio=0.009, error_burst=10, learns_bursts=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A fault that must be found. within_s: the bar, at `share` of the watches; None: measured, not judged."""

    rate: float
    case: Case
    within_s: float | None = None
    share: float = 0.95


HARMFUL = (
    Bar(
        rate=20, case=Case(name="30% 5xx from the start", fault=SimulatedFault(begin_s=0, error_ratio=0.3)), within_s=60
    ),
    Bar(rate=20, case=Case(name="30% 5xx, late", fault=SimulatedFault(begin_s=LATE_S, error_ratio=0.3)), within_s=30),
    Bar(
        rate=20,
        case=Case(name="5% 5xx, late", fault=SimulatedFault(begin_s=LATE_S, error_ratio=0.05)),
        within_s=60,
        share=0.5,
    ),
    Bar(rate=20, case=Case(name="2% 5xx from the start", fault=SimulatedFault(begin_s=0, error_ratio=0.02))),
    Bar(rate=20, case=Case(name="30% slow, late", fault=SimulatedFault(begin_s=LATE_S, slow_ratio=0.3))),
    Bar(rate=2, case=Case(name="30% 5xx, late", fault=SimulatedFault(begin_s=LATE_S, error_ratio=0.3))),
    Bar(rate=2, case=Case(name="5% 5xx from the start", fault=SimulatedFault(begin_s=0, error_ratio=0.05))),
    Bar(rate=200, case=Case(name="100% 5xx from the start", fault=SimulatedFault(begin_s=0, error_ratio=1))),
    Bar(rate=200, case=Case(name="1.5% 5xx from the start", fault=SimulatedFault(begin_s=0, error_ratio=0.015))),
)


def lastgood(buckets: Sequence[SimulatedBucket], *, errors_burst: float) -> Fired:
    """Watch 5xx and latency together, as a deploy does."""
    errors = Detector.begin(
        Objective(limit_ratio=ERROR_LIMIT), DetectorPolicy(statistical_triggers=2, burst_factor=errors_burst)
    )
    slow = Detector.begin(Objective(limit_ratio=SLOW_LIMIT), DetectorPolicy(statistical_triggers=2))
    for bucket in buckets:
        errors = errors.after(at_s=bucket.at_s, total=bucket.requests, bad=bucket.errors)
        slow = slow.after(at_s=bucket.at_s, total=bucket.requests, bad=bucket.slow)
        if errors.fired or slow.fired:
            return bucket.at_s
    return None


def minutes(buckets: Sequence[SimulatedBucket]) -> list[tuple[float, bool | None]]:
    """Return (end in s, over a limit; None without a request) of each clock minute."""
    per_minute = round(MINUTE_S / BUCKET_S)
    found: list[tuple[float, bool | None]] = []
    for first in range(0, len(buckets) - per_minute + 1, per_minute):
        minute = buckets[first : first + per_minute]
        requests = sum(b.requests for b in minute)
        over = (
            sum(b.errors for b in minute) > ERROR_LIMIT * requests
            or sum(b.slow for b in minute) > SLOW_LIMIT * requests
        )
        found.append((minute[-1].at_s, over if requests else None))
    return found


def literal(buckets: Sequence[SimulatedBucket]) -> Fired:
    return next((at_s for at_s, over in minutes(buckets) if over), None)


def flagger(buckets: Sequence[SimulatedBucket]) -> Fired:
    """A minute without a request fails too: Flagger takes "no values found" for a failed check."""
    failed = 0
    for at_s, over in minutes(buckets):
        if failed >= FLAGGER_THRESHOLD:
            return at_s
        failed += over is not False
    return None


def one_watch(case: Case, rate: float, rng: random.Random, *, window_s: float) -> tuple[list[SimulatedBucket], float]:
    """Return the buckets of a watch, and the burst factor that the hour before it taught."""
    service = SimulatedService(
        requests_per_s=rate, error_ratio=case.error_ratio, slow_ratio=case.slow_ratio, error_burst=case.error_burst
    )
    burst = 1.0
    if case.learns_bursts:
        burst = burst_factor([(b.requests, b.errors) for b in simulate(service, rng, bucket_s=BUCKET_S)])
    faults = [case.fault] if case.fault else []
    return list(simulate(service, rng, faults=faults, window_s=window_s, bucket_s=BUCKET_S)), burst


def judged(buckets: Sequence[SimulatedBucket], burst: float) -> tuple[Fired, Fired, Fired]:
    """Ask each rule, in the order of RULES."""
    return lastgood(buckets, errors_burst=burst), literal(buckets), flagger(buckets)


def false_rollbacks(watches: int, rates: Sequence[float], seed: int) -> None:
    print(f"\nFalse rollbacks in {watches:,} watches of 1 h each: {' / '.join(RULES)}")
    print(f"{'':28}" + "".join(f"{f'{rate:g}/s':>20}" for rate in rates))
    fired_in_all = dict.fromkeys(RULES, 0)
    for case in HARMLESS:
        cells: list[str] = []
        for rate in rates:
            fired = dict.fromkeys(RULES, 0)
            for number in range(watches):
                buckets, burst = one_watch(case, rate, dice(f"{seed} {case.name} {rate} {number}"), window_s=HOUR_S)
                for rule, at_s in zip(RULES, judged(buckets, burst), strict=True):
                    fired[rule] += at_s is not None
            for rule in RULES:
                fired_in_all[rule] += fired[rule]
            cells.append(" / ".join(f"{fired[rule]:,}" for rule in RULES))
        print(f"{case.name:28}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    hours = watches * len(rates) * len(HARMLESS)
    for rule in RULES:
        print(f"{rule:9} {fired_in_all[rule]:,} of {hours:,} hours = {fired_in_all[rule] / hours:.2%} (bar 0.10%)")
    for rule in RULES[1:]:
        print(f"{rule} / lastgood: {_ratio(fired_in_all[rule], fired_in_all['lastgood'])}")


def delays(watches: int, seed: int) -> None:
    print(f"\nDelay in s from the fault, median / 95th percentile, and bad requests until then; {watches:,} watches")
    print(f"{'':34}{'lastgood':>22}{'literal':>22}{'flagger':>22}   flagger / lastgood")
    for bar in HARMFUL:
        waited: dict[str, list[float]] = {rule: [] for rule in RULES}
        hurt: dict[str, list[float]] = {rule: [] for rule in RULES}
        for number in range(watches):
            rng = dice(f"{seed} {bar.rate} {bar.case.name} {number}")
            case, begin_s = _shifted(bar.case, rng)
            buckets, burst = one_watch(case, bar.rate, rng, window_s=begin_s + HOUR_S)
            for rule, at_s in zip(RULES, judged(buckets, burst), strict=True):
                if at_s is not None and at_s > begin_s:
                    waited[rule].append(at_s - begin_s)
                    hurt[rule].append(sum(b.errors + b.slow for b in buckets if begin_s < b.at_s <= at_s))
        cells = "".join(f"{_cell(waited[rule], hurt[rule], watches):>22}" for rule in RULES)
        ratios = f"{_times(waited)} the delay, {_times(hurt)} the requests"
        print(
            f"{f'{bar.rate:g}/s {bar.case.name}':34}{cells}   {ratios}{_against(bar, waited['lastgood'])}", flush=True
        )


def features(watches: int) -> None:
    """A feature's probe asks once in 5 s; its failures are certain, so one run tells."""
    print("\nA feature that stops answering, probed every 5 s, four triggers (bar 35 s)")
    for answered in (0, 12, 300, 700):
        detector = Detector.begin(
            Objective(limit_ratio=PROBE_LIMIT), DetectorPolicy(statistical_triggers=4, warm_up_s=0)
        )
        number = 0
        while not detector.fired:
            number += 1
            detector = detector.after(at_s=number * BUCKET_S, total=1, bad=int(number > answered))
        print(f"after {answered:3} answers: {detector.bad} failures, {detector.bad * BUCKET_S:.0f} s")
    flaky = 0
    for number in range(watches):
        rng = dice(number)
        detector = Detector.begin(
            Objective(limit_ratio=PROBE_LIMIT), DetectorPolicy(statistical_triggers=4, warm_up_s=0)
        )
        for at in range(1, 721):
            detector = detector.after(at_s=at * BUCKET_S, total=1, bad=int(rng.random() < 0.03))
        flaky += detector.fired
    print(f"a probe that fails 3% of the time: {flaky:,} of {watches:,} hours rolled back")


def cost() -> None:
    rng = dice(0)
    buckets, _ = one_watch(HARMLESS[1], 20, rng, window_s=HOUR_S)
    began = time.perf_counter()
    lastgood(buckets, errors_burst=1)
    print(
        f"\nTwo triggers, {len(buckets)} buckets: {(time.perf_counter() - began) * 1000:.0f} ms of one core in an hour"
    )


def _shifted(case: Case, rng: random.Random) -> tuple[Case, float]:
    """Let a late fault begin anywhere in a bucket: its phase must not be chosen in anybody's favour."""
    fault = case.fault
    if fault is None or not fault.begin_s:
        return case, 0.0
    begin_s = fault.begin_s + rng.uniform(0, BUCKET_S)
    shifted = SimulatedFault(begin_s=begin_s, error_ratio=fault.error_ratio, slow_ratio=fault.slow_ratio)
    return Case(name=case.name, error_ratio=case.error_ratio, slow_ratio=case.slow_ratio, fault=shifted), begin_s


def _percentile(values: Sequence[float], share: float) -> float:
    if len(values) < 2:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def _cell(waited: Sequence[float], hurt: Sequence[float], watches: int) -> str:
    if not waited:
        return "never"
    found = "" if len(waited) == watches else f" ({len(waited) / watches:.0%})"
    return f"{median(waited):,.0f} / {_percentile(waited, 0.95):,.0f}, {median(hurt):,.0f}{found}"


def _times(values: dict[str, list[float]]) -> str:
    ours, theirs = values["lastgood"], values["flagger"]
    return f"{median(theirs) / median(ours):.1f} x" if ours and theirs else "no ratio of"


def _ratio(theirs: int, ours: int) -> str:
    return f"{theirs / ours:,.0f}" if ours else f"{theirs:,} to none"


def _against(bar: Bar, waited: Sequence[float]) -> str:
    if bar.within_s is None:
        return ""
    seen = _percentile(waited, bar.share) if waited else float("inf")
    held = "held" if seen <= bar.within_s else "MISSED"
    return f"; bar {bar.within_s:.0f} s at {bar.share:.0%}: {seen:.0f}, {held}"


def main() -> None:
    parser = argparse.ArgumentParser(description="False rollbacks and delays, beside rules written by hand.")
    parser.add_argument("--watches", type=int, default=100, help="simulated hours per cell")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests per second")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    tables: tuple[Callable[[], None], ...] = (
        cost,
        lambda: features(asked.watches),
        lambda: delays(asked.watches, asked.seed),
        lambda: false_rollbacks(asked.watches, asked.rates, asked.seed),
    )
    for table in tables:
        table()


if __name__ == "__main__":
    main()

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil, comb, exp, inf, log, log1p
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastgood.core.detector import (
    CountedWindow,
    Detector,
    DetectorPolicy,
    LiteralBreach,
    Objective,
    Proved,
    Unproved,
    already_red,
    burst_factor,
    proof,
    sentence,
)
from lastgood.testing.traffic_model import SimulatedBucket, SimulatedFault, SimulatedService, dice, poisson, simulate

ERRORS = Objective(limit_ratio=0.01)
LATENCY = Objective(limit_ratio=0.05)
TRAFFIC = DetectorPolicy(statistical_triggers=2)
PROBE = DetectorPolicy(statistical_triggers=4, warm_up_s=0)
# Fires as easily as a policy can: what holds here holds for every other one.
EAGER = DetectorPolicy(alpha=0.6, window_s=25, warm_up_s=0, hot_buckets=1, min_bad=1)

Counts = tuple[int, int]
counts = st.integers(0, 400).flatmap(
    lambda total: st.tuples(st.just(total), st.one_of(st.integers(0, total), st.integers(0, min(total, 8))))
)
limits = st.sampled_from([0.001, 0.01, 0.05, 0.09999999999999998, 0.3])


def watch(detector: Detector, buckets: Iterable[Counts], *, every_s: float | None = None) -> Detector:
    """Feed buckets on time, and stop where the watch would: at the first trigger."""
    step_s = every_s or detector.policy.bucket_s
    for number, (total, bad) in enumerate(buckets, start=1):
        detector = detector.after(at_s=number * step_s, total=total, bad=bad)
        if detector.fired:
            break
    return detector


def watch_errors(detector: Detector, buckets: Iterable[SimulatedBucket]) -> Detector:
    return watch(detector, ((b.requests, b.errors) for b in buckets))


def begin(objective: Objective = ERRORS, policy: DetectorPolicy = TRAFFIC) -> Detector:
    return Detector.begin(objective, policy)


# --- the limit is honoured literally ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.5])
def test_a_single_bucket_fires_only_when_it_is_over_the_limit(limit: float) -> None:
    objective, fired = Objective(limit_ratio=limit), 0
    for total in range(1, 130):
        for bad in range(total + 1):
            detector = begin(objective, EAGER).after(at_s=5, total=total, bad=bad)
            fired += detector.fired
            assert not detector.fired or bad > limit * total, (total, bad)
    assert fired > 1_000


@given(buckets=st.lists(counts, max_size=30), limit=limits, burst=st.floats(1, 9))
def test_a_trigger_quotes_a_window_that_is_over_the_limit(buckets: list[Counts], limit: float, burst: float) -> None:
    detector = watch(begin(Objective(limit_ratio=limit), replace(EAGER, burst_factor=burst)), buckets)
    quoted = detector.quoted
    if quoted is None:
        return
    seen = buckets[round(quoted.since_s / 5) : round(quoted.until_s / 5)]
    assert (quoted.total, quoted.bad) == (sum(n for n, _ in seen), sum(k for _, k in seen))
    assert quoted.bad > limit * quoted.total
    assert quoted.until_s == detector.seen_until_s


@pytest.mark.slow
@given(buckets=st.lists(counts, max_size=40), limit=limits)
def test_enough_evidence_is_never_without_a_window_to_quote(buckets: list[Counts], limit: float) -> None:
    policy = replace(EAGER, alpha=0.9)
    detector = watch(begin(Objective(limit_ratio=limit), policy), buckets)
    assert detector.fired == (detector.e_value >= detector.e_needed and detector.bad >= policy.min_bad)


def test_exactly_at_the_limit_is_not_over_it_whatever_a_float_says() -> None:
    assert not Objective(limit_ratio=1 - 0.95).broken_by(total=100, bad=5)
    assert not Objective(limit_ratio=1 - 0.9).broken_by(total=100, bad=10)
    assert Objective(limit_ratio=1 - 0.9).broken_by(total=100, bad=11)


def test_an_hour_at_the_limit_is_neither_healthy_nor_rolled_back() -> None:
    detector = watch(begin(), [(1_000, 10)] * 720)
    assert not detector.fired
    assert isinstance(detector.ending(), Unproved)
    over = watch(begin(), [(2_000, 20)] * 719 + [(2_000, 21)])
    assert not over.fired
    assert isinstance(over.ending(), LiteralBreach)


@pytest.mark.parametrize("bad", range(5))
def test_fewer_than_five_failures_never_fire(bad: int) -> None:
    detector = begin(policy=replace(TRAFFIC, hot_buckets=1, warm_up_s=0))
    assert not watch(detector, [(1, 1)] * bad + [(0, 0)] * 20).fired


def test_five_failures_in_a_row_are_enough_where_one_bucket_may_decide() -> None:
    detector = begin(policy=replace(TRAFFIC, hot_buckets=1, warm_up_s=0))
    assert watch(detector, [(1, 1)] * 5).fired


# --- why it may look as often as it likes ----------------------------------------------------------------------------


def expected_evidence(detector: Detector, *, total: int, rate: float) -> float:
    """The evidence after one more bucket, averaged over all its outcomes at this true rate."""
    at_s = detector.open_until_s
    return sum(
        comb(total, bad)
        * rate**bad
        * (1 - rate) ** (total - bad)
        * detector.after(at_s=at_s, total=total, bad=bad).e_value
        for bad in range(total + 1)
    )


@settings(max_examples=60)
@given(
    history=st.lists(counts, max_size=8),
    total=st.integers(0, 60),
    limit=limits,
    share=st.floats(0, 1),
    burst=st.sampled_from([1.0, 2.5]),
    warm_up_s=st.sampled_from([0.0, 35.0]),
)
def test_evidence_is_not_expected_to_grow_while_the_limit_is_kept(
    *, history: list[Counts], total: int, limit: float, share: float, burst: float, warm_up_s: float
) -> None:
    # From any state, for any next bucket: so looking at any time, in any batches, is as safe as looking once.
    policy = replace(TRAFFIC, warm_up_s=warm_up_s, burst_factor=burst, min_bad=10**9, window_s=60)
    detector = begin(Objective(limit_ratio=limit), policy)
    for seen, failed in history:
        detector = detector.after(at_s=detector.open_until_s, total=seen, bad=failed)
    assert expected_evidence(detector, total=total, rate=limit * share) <= detector.e_value * (1 + 1e-9)


def test_evidence_begins_at_one_and_needs_a_thousand_for_each_trigger() -> None:
    assert begin().e_value == 1
    assert begin().e_needed == 2_000
    assert begin(policy=PROBE).e_needed == 4_000


def reference(objective: Objective, policy: DetectorPolicy, buckets: Sequence[Counts]) -> list[float]:
    """The published recipe, in logarithms, written down as it was measured: log evidence after each bucket."""
    p0, alpha = objective.limit_ratio, policy.alpha / policy.statistical_triggers
    h, d = policy.hot_buckets, policy.burst_factor
    odds = [p0 / (1 - p0) * r for r in (1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 90)]
    grid = [min(0.98, o / (1 + o)) for o in odds]

    def lae(x: float, y: float) -> float:
        high, low = max(x, y), min(x, y)
        return high if low == -inf else high + log1p(exp(low - high))

    thr, w0 = log(1 / alpha), 0.5
    w = (1 - w0) / ceil((policy.window_s - policy.warm_up_s) / policy.bucket_s)
    c0, c1 = (thr - log(w0)) / (h - 0.25), (thr - log(w)) / (h - 0.25)
    s0, s1, unused, started, out = [log(w0)] * 9, [-inf] * 9, 1 - w0, False, []
    for n, k in buckets:
        if started and unused > w / 2:
            s1 = [lae(s, log(w)) for s in s1]
            unused -= w
        started = True
        tot = log(unused) if unused > w / 2 else -inf
        for i, q in enumerate(grid):
            gain = (k * log(q / p0) + (n - k) * log((1 - q) / (1 - p0))) / d
            s0[i] += min(gain, c0)
            s1[i] += min(gain, c1)
            tot = lae(tot, lae(s0[i], s1[i]) - log(9))
        out.append(tot)
    return out


@given(
    buckets=st.lists(counts, min_size=1, max_size=60),
    limit=st.sampled_from([0.01, 0.05]),
    burst=st.sampled_from([1.0, 3.7]),
    hot=st.sampled_from([2, 4]),
    warm_up_s=st.sampled_from([0.0, 35.0]),
)
def test_the_evidence_is_that_of_the_published_recipe(
    *, buckets: list[Counts], limit: float, burst: float, hot: int, warm_up_s: float
) -> None:
    objective = Objective(limit_ratio=limit)
    policy = replace(TRAFFIC, warm_up_s=warm_up_s, hot_buckets=hot, burst_factor=burst, min_bad=10**9, window_s=300)
    detector, begun = begin(objective, policy), warm_up_s or 5
    for number, ((total, bad), expected) in enumerate(zip(buckets, reference(objective, policy, buckets), strict=True)):
        detector = detector.after(at_s=begun + 5 * number, total=total, bad=bad)
        assert log(detector.e_value) == pytest.approx(expected, rel=1e-9, abs=1e-9)


# --- buckets as they come --------------------------------------------------------------------------------------------


def test_the_warm_up_is_one_bucket_and_no_evidence_before_it_ends() -> None:
    piecewise = watch(begin(), [(100, 40)] * 6)
    assert piecewise.warming_up
    assert (piecewise.e_value, piecewise.total, piecewise.bad) == (1, 600, 240)
    piecewise = piecewise.after(at_s=35, total=100, bad=40)
    assert not piecewise.warming_up
    assert piecewise.e_value == begin().after(at_s=35, total=700, bad=280).e_value > 1


@given(
    cuts=st.lists(st.integers(1, 3), min_size=1, max_size=40),
    bad=st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_readings_shorter_than_a_bucket_gather_into_one(cuts: list[int], bad: list[int]) -> None:
    # Whole buckets of 6 s, read in pieces of 1, 2 or 3 s: a short outage must not touch more buckets than it would.
    policy = replace(TRAFFIC, bucket_s=6, warm_up_s=0)
    pieces, whole = begin(policy=policy), begin(policy=policy)
    number = 0
    for piece_s in cuts:
        total = failed = 0
        for _ in range(6 // piece_s):
            total, failed = total + 9, failed + bad[number % 40]
            pieces = pieces.after(at_s=pieces.seen_until_s + piece_s, total=9, bad=bad[number % 40])
            number += 1
        whole = whole.after(at_s=whole.seen_until_s + 6, total=total, bad=failed)
        assert pieces.e_value == whole.e_value


def test_a_reading_that_comes_a_little_early_or_late_is_a_bucket() -> None:
    detector = begin(policy=PROBE)
    for at_s in (5.3, 10.1, 15.4, 20.0):
        detector = detector.after(at_s=at_s, total=1, bad=0)
    assert len(detector.closed) == 4


def test_after_a_gap_the_warm_up_stands_apart_and_the_gap_is_one_bucket() -> None:
    detector = begin().after(at_s=5, total=100, bad=100).after(at_s=300, total=5_000, bad=3)
    assert [(w.since_s, w.until_s, w.total) for w in detector.closed] == [(0, 35, 100), (35, 300, 5_000)]
    ending = detector.ending()
    assert (ending.warm_up.total, ending.warm_up.bad) == (100, 100)
    assert (ending.counted.total, ending.counted.bad) == (5_000, 3)


@pytest.mark.parametrize("every_s", [5.0, 5.05, 15.0])
def test_silence_changes_nothing(every_s: float) -> None:
    detector = watch(begin(), [(20, 0)] * 10 + [(0, 0)] * 400, every_s=every_s)
    assert not detector.fired
    assert detector.e_value == pytest.approx(watch(begin(), [(20, 0)] * 10, every_s=every_s).e_value)


def test_two_minutes_without_a_request_are_said() -> None:
    detector = watch(begin(), [(20, 0)] * 10 + [(0, 0)] * 23)
    assert not detector.low_evidence
    detector = detector.after(at_s=170, total=0, bad=0)
    assert detector.low_evidence
    assert not detector.after(at_s=175, total=1, bad=0).low_evidence


def test_what_fired_stays_fired_and_keeps_its_window() -> None:
    fired = watch(begin(), [(100, 30)] * 30)
    later = fired
    for number in range(50):
        later = later.after(at_s=fired.seen_until_s + 5 * (number + 1), total=1_000, bad=0)
    assert fired.fired
    assert (later.quoted, later.e_value) == (fired.quoted, fired.e_value)
    assert later.total == fired.total + 50_000


@pytest.mark.parametrize("total,bad", [(1, 2), (3, -1)])
def test_impossible_counts_are_refused(total: int, bad: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= bad <= total"):
        begin().after(at_s=5, total=total, bad=bad)


@pytest.mark.parametrize("limit", [0.0, 1.0, 0.985])
def test_a_limit_that_no_evidence_could_reach_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="limit_ratio"):
        begin(Objective(limit_ratio=limit))


# --- hiccups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_second", [0.2, 2, 20, 2_000])
@pytest.mark.parametrize("phase_s", [0.0, 0.7, 2.5, 4.9])
def test_ten_seconds_of_nothing_but_errors_never_fire(per_second: float, phase_s: float) -> None:
    blip = SimulatedFault(begin_s=600 + phase_s, end_s=610 + phase_s, error_ratio=1)
    service = SimulatedService(requests_per_s=per_second, error_ratio=0.003)
    for seed in range(3):
        buckets = simulate(service, dice(f"{per_second} {phase_s} {seed}"), faults=[blip], window_s=900)
        assert not watch_errors(begin(), buckets).fired


@given(
    before=st.integers(8, 200),
    hot=st.lists(st.integers(1, 100_000), min_size=1, max_size=3),
    objective=st.sampled_from([ERRORS, LATENCY]),
)
def test_three_buckets_of_nothing_but_errors_never_fire_whatever_the_traffic(
    before: int, hot: list[int], objective: Objective
) -> None:
    buckets = [(1_000, 0)] * before + [(n, n) for n in hot] + [(1_000, 0)] * 40
    assert not watch(begin(objective), buckets).fired


@pytest.mark.parametrize("per_second", [0.2, 2, 20, 2_000])
def test_thirty_seconds_of_errors_at_the_start_never_fire(per_second: float) -> None:
    blip = SimulatedFault(begin_s=0, end_s=30, error_ratio=1)
    service = SimulatedService(requests_per_s=per_second, error_ratio=0.001)
    for seed in range(8):
        buckets = simulate(service, dice(f"{per_second} {seed}"), faults=[blip], window_s=600)
        assert not watch_errors(begin(), buckets).fired


# --- how soon, in simulated time -------------------------------------------------------------------------------------


def delays_s(fault: SimulatedFault, *, watches: int = 40, per_second: float = 20) -> list[float]:
    """Seconds from the fault to the trigger, of several watches; the last moment of the hour where it never fired."""
    found: list[float] = []
    for seed in range(watches):
        service = SimulatedService(requests_per_s=per_second)
        detector = watch_errors(begin(), simulate(service, dice(seed), faults=[fault], window_s=fault.begin_s + 600))
        found.append((detector.seen_until_s if detector.fired else inf) - fault.begin_s)
    return found


def test_a_third_of_errors_from_the_start_is_found_within_a_minute() -> None:
    assert max(delays_s(SimulatedFault(begin_s=0, error_ratio=0.3))) <= 60


@pytest.mark.parametrize("begin_s", [1_230.0, 1_233.7])
def test_a_third_of_errors_that_begin_late_is_found_within_half_a_minute(begin_s: float) -> None:
    assert max(delays_s(SimulatedFault(begin_s=begin_s, error_ratio=0.3), watches=20)) <= 30


def test_five_percent_of_errors_that_begin_late_are_found_within_a_minute_at_the_median() -> None:
    assert median(delays_s(SimulatedFault(begin_s=1_230, error_ratio=0.05), watches=20)) <= 60


@pytest.mark.parametrize("answers_before,failures_needed", [(0, 5), (1, 5), (300, 7), (700, 7)])
def test_a_feature_that_stops_answering_is_found_after_five_probes_or_seven_late_ones(
    answers_before: int, failures_needed: int
) -> None:
    detector = watch(begin(LATENCY, PROBE), [(1, 0)] * answers_before + [(1, 1)] * 10)
    assert detector.fired
    assert detector.bad == failures_needed


@pytest.mark.slow
def test_a_probe_that_fails_now_and_then_never_fires() -> None:
    for seed in range(40):
        rng = dice(seed)
        assert not watch(begin(LATENCY, PROBE), ((1, int(rng.random() < 0.03)) for _ in range(720))).fired


@pytest.mark.slow
@pytest.mark.parametrize("per_second", [0.2, 20, 2_000])
def test_an_hour_at_the_limit_is_rolled_back_at_most_once_in_a_thousand_times(per_second: float) -> None:
    # 60 watches at each rate. Were the true chance 1 in 1,000, one false alarm would turn up in 6% of runs with other
    # seeds; more than one in 0.2%. With these seeds there is none.
    service = SimulatedService(requests_per_s=per_second, error_ratio=0.01)
    fired = sum(watch_errors(begin(), simulate(service, dice(f"edge {per_second} {seed}"))).fired for seed in range(60))
    assert fired == 0


# --- the end of the window -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("errors,needed", [(0, 680), (1, 998), (2, 1_242)])
def test_proof_of_health_takes_this_many_requests(errors: int, needed: int) -> None:
    detector = begin(policy=replace(TRAFFIC, warm_up_s=0)).after(at_s=5, total=errors, bad=errors)
    short = detector.after(at_s=10, total=needed - errors - 1, bad=0).ending()
    assert isinstance(short, Unproved)
    assert short.more_requests == 1
    assert isinstance(detector.after(at_s=10, total=needed - errors, bad=0).ending(), Proved)


def test_without_a_request_health_is_not_proved() -> None:
    ending = begin().ending()
    assert isinstance(ending, Unproved)
    assert ending.more_requests == 680


@given(total=st.integers(0, 5_000), share=st.floats(0, 1), limit=limits)
def test_as_many_more_requests_as_said_prove_health_and_no_fewer(total: int, share: float, limit: float) -> None:
    objective = Objective(limit_ratio=limit)
    detector = begin(objective, replace(TRAFFIC, warm_up_s=0)).after(
        at_s=5, total=total, bad=int(total * limit * share)
    )
    ending = detector.ending()
    if isinstance(ending, Unproved):
        assert isinstance(detector.after(at_s=10, total=ending.more_requests, bad=0).ending(), Proved)
        if ending.more_requests > 1:
            fewer = detector.after(at_s=10, total=ending.more_requests - 1, bad=0).ending()
            assert isinstance(fewer, Unproved)


def test_the_warm_up_is_left_out_of_the_rate_and_reported_apart() -> None:
    ending = watch(begin(), [(100, 5)] * 7 + [(100, 0)] * 100).ending()
    assert isinstance(ending, Proved)
    assert (ending.warm_up.total, ending.warm_up.bad) == (700, 35)
    assert (ending.counted.total, ending.counted.bad) == (10_000, 0)
    assert (ending.counted.since_s, ending.counted.until_s) == (35, 535)


def test_a_rate_over_the_limit_that_is_not_proved_is_neither_good_nor_bad() -> None:
    detector = watch(begin(), [(100, 1)] * 600 + [(100, 2)] * 10)
    assert not detector.fired
    ending = detector.ending()
    assert isinstance(ending, LiteralBreach)
    assert ending.counted.bad_ratio > 0.01


# --- what a person reads ---------------------------------------------------------------------------------------------


def test_the_sentence_puts_the_value_beside_its_limit_and_the_proof_says_how_sure_it_is() -> None:
    quoted = CountedWindow(since_s=1_240, until_s=1_355, total=2_339, bad=56)
    fired = replace(begin(), quoted=quoted, e_value=2_260.4)
    assert sentence(fired, what="5xx") == "5xx: 56 of 2,339 requests = 2.4% in the last 115 s, limit 1%"
    assert proof(fired) == (
        "evidence 2,260, needed 2,000: were the true rate at most 1%, evidence this strong would turn up in at most 1"
        " of 2,000 watches, however often we look (95% interval 1.4-3.8%)"
    )


def test_the_sentence_of_a_probe_speaks_of_probes() -> None:
    fired = watch(begin(Objective(limit_ratio=1 - 0.95), PROBE), [(1, 1)] * 5)
    said = sentence(fired, what="failed probes of coder-agent", counted="probes")
    assert said == "failed probes of coder-agent: 5 of 5 probes = 100.0% in the last 25 s, limit 5%"


def test_there_is_no_sentence_before_it_fired() -> None:
    with pytest.raises(ValueError, match="nothing fired: evidence 1 of 2,000"):
        sentence(begin(), what="5xx")
    with pytest.raises(ValueError, match="nothing fired: evidence 1 of 2,000"):
        proof(begin())


def test_the_quoted_window_begins_where_the_fault_began() -> None:
    fault = SimulatedFault(begin_s=1_230, error_ratio=0.025)
    fired = watch_errors(begin(), simulate(SimulatedService(requests_per_s=20), dice(4), faults=[fault]))
    assert fired.quoted is not None
    assert fired.quoted.since_s == pytest.approx(1_230, abs=60)


# --- before the deploy -----------------------------------------------------------------------------------------------


def test_failures_that_come_one_by_one_have_no_burst_factor() -> None:
    rng = dice(1)
    assert burst_factor([(100, poisson(rng, 1.0)) for _ in range(720)]) == pytest.approx(1, abs=0.15)


def test_failures_that_come_ten_at_a_time_have_one() -> None:
    service = SimulatedService(requests_per_s=20, error_ratio=0.003, error_burst=10)
    assert burst_factor([(b.requests, b.errors) for b in simulate(service, dice(1))]) > 5


@pytest.mark.parametrize("baseline", [[], [(500, 30)], [(100, 19), (100, 0), (100, 0)], [(100, 5)] * 6])
def test_too_little_or_even_failures_give_a_burst_factor_of_one(baseline: list[Counts]) -> None:
    assert burst_factor(baseline) == 1


@pytest.mark.parametrize(
    "baseline,red",
    [
        ([], False),
        ([(100, 0)] * 6, False),
        ([(20, 1)], False),
        ([(3, 3)], False),
        ([(100, 1)] * 6, False),
        ([(100, 2)] * 6, False),
        ([(100, 5)] * 6, True),
        ([(1, 1)] * 6, True),
        ([(100_000, 1_000)], False),
    ],
)
def test_a_baseline_is_red_only_when_it_is_proved_to_break_the_limit(baseline: list[Counts], red: bool) -> None:
    assert already_red(baseline, ERRORS) is red


@pytest.mark.parametrize(
    "slow, red", [((41, 0, 0, 5, 43, 2), False), ((40, 44, 35, 41, 52, 38), True), ((12, 9, 11, 14, 8, 12), True)]
)
def test_what_a_deploy_slows_down_for_some_seconds_is_no_baseline_that_breaks_the_limit(
    slow: tuple[int, ...], red: bool
) -> None:
    assert already_red([(100, bad) for bad in slow], LATENCY) is red

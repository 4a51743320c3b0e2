"""Judging a release while it is watched: buckets in, one of four verdicts out.

The watch is a fold: `Watch.begin(rules, baseline)`, then `after(bucket)` for each bucket, then `judge(now)` at any
time. The journal keeps every bucket, so a watch that is taken up again reaches the same state. A trigger that was
already red before the deploy is not armed, because a rollback would not help; a source that cannot be seen is never
read as healthy nor as failed (docs/decisions/0003).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, assert_never

from lastgood.core.config import (
    ContainersTrigger,
    DataTrigger,
    ErrorRateTrigger,
    FeatureTrigger,
    LatencyTrigger,
    TriggerConfig,
    WatchConfig,
)
from lastgood.core.detector import (
    Detector,
    DetectorPolicy,
    LiteralBreach,
    Objective,
    Unproved,
    already_red,
    burst_factor,
    proof,
    sentence,
)
from lastgood.core.reading import Bucket, Instances, NoData, Probed, SourceDown, Traffic, Violation, Violations

TRAFFIC_SOURCE: Final = "traffic"
INSTANCES_SOURCE: Final = "instances"
NEEDED_COVERAGE: Final = 0.9
"""Share of the window's buckets that must have been observed before a release is called good."""
BLIND_AFTER: Final = 3
"""Intervals without an answer after which a source counts as blind (a single missed scrape is ordinary)."""
SEEN_TWICE: Final = 2
SHOWN_KEYS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What made a trigger fire. value and limit: of the same unit; sentence: for people, the value beside its limit.

    proof: how sure it is, empty where one look suffices.
    """

    trigger: str
    kind: str
    sentence: str
    value: float
    limit: float
    proof: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthy:
    """The window ended without a trigger. proved: an anytime bound shows the rate under its limit; else more_requests
    say how many more would."""

    proved: bool
    more_requests: int
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """The window is open and nothing fired. blind_to: sources that do not answer now, with the reason."""

    left_s: float
    lines: tuple[str, ...]
    blind_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unhealthy:
    """At least one trigger fired."""

    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inconclusive:
    """The window ended, and it cannot be called healthy: what was not seen, or is over its limit without proof."""

    reasons: tuple[str, ...]


Verdict = Healthy | Watching | Unhealthy | Inconclusive


def source_of(name: str, trigger: TriggerConfig) -> str:
    """Return the name of the signal source that feeds a trigger."""
    match trigger:
        case ErrorRateTrigger() | LatencyTrigger():
            return TRAFFIC_SOURCE
        case FeatureTrigger() | DataTrigger():
            return name
        case ContainersTrigger():
            return INSTANCES_SOURCE
        case _:
            assert_never(trigger)


def counts(trigger: TriggerConfig, bucket: Bucket, source: str) -> tuple[int, int] | None:
    """Return (total, bad) that a bucket holds for a statistical trigger; None when it was not seen or is not
    statistical."""
    match trigger, bucket.reading(source):
        case ErrorRateTrigger(), Traffic(requests=requests, errors=errors):
            return requests, errors
        case LatencyTrigger(), Traffic(requests=requests, slow=slow):
            return requests, slow
        case FeatureTrigger(), Probed(asked=asked, failed=failed):
            return asked, failed
        case _:
            return None


def objective_of(trigger: ErrorRateTrigger | LatencyTrigger | FeatureTrigger) -> Objective:
    """p95 > 500 ms is the same statement as: more than 5% of requests take longer than 500 ms."""
    match trigger:
        case ErrorRateTrigger() | FeatureTrigger():
            return Objective(limit_ratio=trigger.limit)
        case LatencyTrigger():
            return Objective(limit_ratio=1 - trigger.quantile)
        case _:
            assert_never(trigger)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Eye:
    """How well a source is seen. missed: intervals without an answer, in a row."""

    missed: int = 0
    reason: str = ""
    observed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The state of a watch. Immutable; every method returns a new one."""

    rules: WatchConfig
    started_at: datetime
    detectors: Mapping[str, Detector]
    unarmed: Mapping[str, str]
    known_violations: frozenset[Violation]
    violations: Mapping[str, Mapping[Violation, int]] = field(default_factory=dict[str, Mapping[Violation, int]])
    restarts: Mapping[str, int] = field(default_factory=dict[str, int])
    instances: Instances | None = None
    probe_detail: Mapping[str, str] = field(default_factory=dict[str, str])
    eyes: Mapping[str, _Eye] = field(default_factory=dict[str, _Eye])
    buckets: int = 0

    @classmethod
    def begin(
        cls,
        rules: WatchConfig,
        *,
        started_at: datetime,
        baseline: Sequence[Bucket],
        known: Iterable[Bucket] = (),
    ) -> Watch:
        """Arm the triggers. baseline: readings before the first effect, oldest first; empty: everything is armed,
        burst factor 1. known: readings whose invalid rows are no news, and of which nothing else counts."""
        statistical = {
            name: t
            for name, t in rules.triggers.items()
            if isinstance(t, ErrorRateTrigger | LatencyTrigger | FeatureTrigger)
        }
        detectors: dict[str, Detector] = {}
        unarmed: dict[str, str] = {}
        for name, trigger in statistical.items():
            objective = objective_of(trigger)
            before = [c for b in baseline if (c := counts(trigger, b, source_of(name, trigger))) is not None]
            if already_red(before, objective):
                bad, total = sum(b for _, b in before), sum(n for n, _ in before)
                unarmed[name] = (
                    f"already over its limit before the deploy ({bad} of {total}); a rollback would not help"
                )
                continue
            feature = isinstance(trigger, FeatureTrigger)
            policy = DetectorPolicy(
                alpha=rules.false_alarm,
                statistical_triggers=len(statistical),
                window_s=rules.window,
                bucket_s=rules.interval,
                warm_up_s=0.0 if feature else rules.warm_up,
                burst_factor=1.0 if feature else burst_factor(before),
            )
            detectors[name] = Detector.begin(objective, policy)
        rows: set[Violation] = set()
        for bucket in (*baseline, *known):
            for look in bucket.looks:
                if isinstance(look.reading, Violations):
                    rows |= look.reading.found
        return cls(
            rules=rules,
            started_at=started_at,
            detectors=detectors,
            unarmed=unarmed,
            known_violations=frozenset(rows),
        )

    def after(self, bucket: Bucket) -> Watch:
        """Take one bucket in. Buckets come in the order of time."""
        at_s = (bucket.at - self.started_at).total_seconds()
        detectors, details = dict(self.detectors), dict(self.probe_detail)
        violations, restarts, instances = dict(self.violations), dict(self.restarts), self.instances
        eyes = dict(self.eyes)
        for name, trigger in self.rules.triggers.items():
            source = source_of(name, trigger)
            reading = bucket.reading(source)
            eyes[source] = _looked(self.eyes.get(source, _Eye()), reading)
            if name in detectors:
                total, bad = counts(trigger, bucket, source) or (0, 0)
                detectors[name] = detectors[name].after(at_s=at_s, total=total, bad=bad)
            if isinstance(reading, Probed) and reading.failed:
                details[name] = reading.detail
            if isinstance(trigger, DataTrigger) and isinstance(reading, Violations):
                seen_before = self.violations.get(name, {})
                violations[name] = {v: seen_before.get(v, 0) + 1 for v in reading.found - self.known_violations}
            if isinstance(reading, Instances):
                instances = reading
                for state in reading.instances:
                    restarts.setdefault(state.service, state.restarts)
        return replace(
            self,
            detectors=detectors,
            probe_detail=details,
            violations=violations,
            restarts=restarts,
            instances=instances,
            eyes=eyes,
            buckets=self.buckets + 1,
        )

    def judge(self, now: datetime) -> Verdict:
        """Give the verdict at `now`. Unhealthy at any time; Healthy and Inconclusive only once the window is over."""
        evidence = tuple(e for name in self.rules.triggers for e in self._evidence(name))
        if evidence:
            return Unhealthy(evidence=evidence)
        left_s = self.rules.window - (now - self.started_at).total_seconds()
        blind = tuple(f"{source}: {eye.reason}" for source, eye in self.eyes.items() if eye.missed >= BLIND_AFTER)
        if left_s > 0:
            return Watching(left_s=left_s, lines=self.lines(), blind_to=blind)
        return self._ending(blind)

    def lines(self) -> tuple[str, ...]:
        """One line a trigger: where it stands now, the value beside its limit."""
        return tuple(self._line(name, trigger) for name, trigger in self.rules.triggers.items())

    def invalid_rows(self) -> tuple[str, ...]:
        """Rows that break an invariant now and did not before the deploy: `invariant key`, sorted."""
        found = {v for seen in self.violations.values() for v in seen}
        return tuple(sorted(f"{v.invariant} {v.key}" for v in found))

    def _evidence(self, name: str) -> tuple[Evidence, ...]:
        trigger = self.rules.triggers[name]
        match trigger:
            case ErrorRateTrigger() | LatencyTrigger() | FeatureTrigger():
                detector = self.detectors.get(name)
                if detector is None or not detector.fired or detector.quoted is None:
                    return ()
                quoted = detector.quoted
                said = sentence(
                    detector,
                    what=label(name, trigger),
                    counted="probes" if isinstance(trigger, FeatureTrigger) else "requests",
                )
                if isinstance(trigger, FeatureTrigger) and self.probe_detail.get(name):
                    said += f"; last answer: {self.probe_detail[name]}"
                return (
                    Evidence(
                        trigger=name,
                        kind=trigger.kind,
                        sentence=said,
                        value=quoted.bad / quoted.total,
                        limit=detector.objective.limit_ratio,
                        proof=proof(detector),
                    ),
                )
            case DataTrigger():
                new = [v for v, times in self.violations.get(name, {}).items() if times >= SEEN_TWICE]
                if not new:
                    return ()
                by_invariant: dict[str, list[str]] = {}
                for violation in sorted(new, key=lambda v: (v.invariant, v.key)):
                    by_invariant.setdefault(violation.invariant, []).append(violation.key)
                said = "; ".join(
                    f"{len(keys)} new rows break {invariant}: {', '.join(keys[:SHOWN_KEYS])}"
                    + (", ..." if len(keys) > SHOWN_KEYS else "")
                    for invariant, keys in by_invariant.items()
                )
                return (
                    Evidence(
                        trigger=name,
                        kind=trigger.kind,
                        sentence=f"invalid writes: {said}, seen twice, not there before the deploy, limit 0",
                        value=float(len(new)),
                        limit=0.0,
                    ),
                )
            case ContainersTrigger():
                return self._instance_evidence(name, trigger)
            case _:
                assert_never(trigger)

    def _instance_evidence(self, name: str, trigger: ContainersTrigger) -> tuple[Evidence, ...]:
        found: list[Evidence] = []
        for state in self.instances.instances if self.instances else ():
            grown = max(0, state.restarts - self.restarts.get(state.service, state.restarts))
            reason = ""
            if grown >= trigger.restarts:
                reason = f"{state.service} restarted {grown} times since the deploy, limit {trigger.restarts - 1}"
            elif state.oom_killed:
                reason = f"{state.service} was killed for its memory"
            if reason:
                found.append(
                    Evidence(
                        trigger=name,
                        kind=trigger.kind,
                        sentence=reason,
                        value=float(grown),
                        limit=float(trigger.restarts - 1),
                    )
                )
        return tuple(found)

    def _ending(self, blind: tuple[str, ...]) -> Verdict:
        reasons = [f"blind to {line}" for line in blind]
        expected = max(1, int(self.rules.window / self.rules.interval))
        for source in dict.fromkeys(source_of(n, t) for n, t in self.rules.triggers.items()):
            observed = self.eyes.get(source, _Eye()).observed
            # the first look of a counting source has nothing to compare with
            if observed + 1 < NEEDED_COVERAGE * expected:
                reasons.append(
                    f"{source} was observed in {observed} of {expected} intervals, needed {NEEDED_COVERAGE:.0%}"
                )
        more = 0
        for name, detector in self.detectors.items():
            ending = detector.ending()
            if isinstance(ending, LiteralBreach):
                reasons.append(
                    f"{label(name, self.rules.triggers[name])}: over its limit, not proved: {self._rate(name)}"
                )
            elif isinstance(ending, Unproved) and not isinstance(self.rules.triggers[name], FeatureTrigger):
                more = max(more, ending.more_requests)
        if reasons:
            return Inconclusive(reasons=tuple(reasons))
        said = "; ".join(self.lines()) or "no trigger is configured"
        return Healthy(proved=more == 0, more_requests=more, sentence=said)

    def _rate(self, name: str) -> str:
        detector = self.detectors[name]
        if not detector.total:
            return f"no requests yet (limit {detector.objective.limit_ratio:.0%})"
        return f"{detector.bad / detector.total:.1%} of {detector.total:,} (limit {detector.objective.limit_ratio:.0%})"

    def _line(self, name: str, trigger: TriggerConfig) -> str:
        if name in self.unarmed:
            return f"{name}: not armed, {self.unarmed[name]}"
        match trigger:
            case ErrorRateTrigger() | LatencyTrigger():
                return f"{label(name, trigger)} {self._rate(name)}"
            case FeatureTrigger():
                detector = self.detectors[name]
                return f"{name} {detector.total - detector.bad} of {detector.total}"
            case DataTrigger():
                return f"invalid rows {len(self.violations.get(name, {}))}"
            case ContainersTrigger():
                well = sum(i.running and not i.unhealthy for i in self.instances.instances) if self.instances else 0
                return f"{name} {well} of {len(self.instances.instances) if self.instances else 0}"
            case _:
                assert_never(trigger)


def label(name: str, trigger: TriggerConfig) -> str:
    """Name a trigger as a person would: what is counted."""
    match trigger:
        case ErrorRateTrigger():
            return "5xx"
        case LatencyTrigger():
            return f"over {trigger.limit * 1000:.0f} ms"
        case FeatureTrigger():
            return f"failed probes of {name}"
        case DataTrigger() | ContainersTrigger():
            return name
        case _:
            assert_never(trigger)


def _looked(eye: _Eye, reading: object) -> _Eye:
    if isinstance(reading, SourceDown):
        return replace(eye, missed=eye.missed + 1, reason=reading.reason)
    if isinstance(reading, NoData):
        return replace(eye, missed=eye.missed + 1, reason=reading.reason)
    return replace(eye, missed=0, reason="", observed=eye.observed + 1)


def ends_at(started_at: datetime, rules: WatchConfig) -> datetime:
    """When the window is over."""
    return started_at + timedelta(seconds=rules.window)

"""Buckets in, one of four verdicts out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest

from lastgood.core.config import WatchConfig
from lastgood.core.reading import (
    Bucket,
    Instances,
    InstanceState,
    Look,
    NoData,
    Probed,
    Reading,
    SourceDown,
    Traffic,
    Violation,
    Violations,
)
from lastgood.core.verdict import Healthy, Inconclusive, Unhealthy, Verdict, Watch, Watching
from lastgood.testing.world import START

WINDOW_S = 600
RULES = WatchConfig.model_validate(
    {
        "window": f"{WINDOW_S}s",
        "traffic": {"metrics": "http://127.0.0.1/metrics"},
        "triggers": {
            "error-rate": {"kind": "error_rate", "limit": "1%"},
            "latency": {"kind": "latency", "quantile": "p95", "limit": "500ms"},
            "agent": {"kind": "feature", "probe": {"post": "http://127.0.0.1/execute"}},
            "data": {"kind": "data", "invariants": "*.sql"},
            "containers": {"kind": "containers", "restarts": 3},
        },
    }
)
HEALTHY = Traffic(requests=100, errors=0, slow=0)
OK = Probed(asked=1, failed=0)
FAILED = Probed(asked=1, failed=1, detail="no answer")
CLEAN = Violations(found=frozenset(), total=0)
BROKEN = Violations(found=frozenset({Violation(invariant="credits", key="7")}), total=1)


def running(restarts: int = 0, *, oom_killed: bool = False) -> Instances:
    state = InstanceState(service="core", running=True, unhealthy=False, restarts=restarts, oom_killed=oom_killed)
    return Instances(instances=(state,))


STEADY = running()


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the sources show in one interval."""

    traffic: Reading = HEALTHY
    agent: Reading = OK
    data: Reading = CLEAN
    instances: Reading = STEADY

    def bucket(self, at_s: float) -> Bucket:
        shown = {"traffic": self.traffic, "agent": self.agent, "data": self.data, "instances": self.instances}
        looks = tuple(Look(source=source, reading=reading) for source, reading in shown.items())
        return Bucket(at=START + timedelta(seconds=at_s), looks=looks)


def watched(*scenes: Scene, baseline: tuple[Scene, ...] = ()) -> Watch:
    before = tuple(scene.bucket(-5.0 * (len(baseline) - i)) for i, scene in enumerate(baseline))
    watch = Watch.begin(RULES, started_at=START, baseline=before)
    for i, scene in enumerate(scenes, start=1):
        watch = watch.after(scene.bucket(5.0 * i))
    return watch


def judged(*scenes: Scene, baseline: tuple[Scene, ...] = (), at_s: float | None = None) -> Verdict:
    now = START + timedelta(seconds=5.0 * len(scenes) if at_s is None else at_s)
    return watched(*scenes, baseline=baseline).judge(now)


def trigger_of(verdict: Verdict) -> str:
    assert isinstance(verdict, Unhealthy), verdict
    return verdict.evidence[0].trigger


WHOLE = int(WINDOW_S / 5)


def test_a_whole_healthy_window_is_healthy_and_proved() -> None:
    verdict = judged(*[Scene()] * WHOLE)
    assert isinstance(verdict, Healthy)
    assert verdict.proved


def test_a_healthy_window_with_few_requests_says_how_many_more_it_needs() -> None:
    verdict = judged(*[Scene(traffic=Traffic(requests=1, errors=0, slow=0))] * WHOLE)
    assert isinstance(verdict, Healthy)
    assert not verdict.proved
    assert verdict.more_requests > 0


def test_an_open_window_is_watching_and_says_how_long_it_lasts() -> None:
    verdict = judged(*[Scene()] * 10)
    assert isinstance(verdict, Watching)
    assert verdict.left_s == WINDOW_S - 50


@pytest.mark.parametrize(
    "scene, trigger",
    [
        (Scene(traffic=Traffic(requests=100, errors=30, slow=0)), "error-rate"),
        (Scene(traffic=Traffic(requests=100, errors=0, slow=30)), "latency"),
        (Scene(agent=FAILED), "agent"),
        (Scene(data=BROKEN), "data"),
    ],
)
def test_a_fault_from_the_start_fires_its_own_trigger(scene: Scene, trigger: str) -> None:
    assert trigger_of(judged(*[scene] * 12)) == trigger


def test_an_invariant_broken_once_is_not_evidence_yet() -> None:
    assert isinstance(judged(Scene(), Scene(data=BROKEN)), Watching)
    assert isinstance(judged(Scene(data=BROKEN), Scene(), Scene(data=BROKEN)), Watching)


def test_an_invariant_that_was_broken_before_the_deploy_is_not_blamed_on_it() -> None:
    before = (Scene(data=BROKEN),) * 6
    assert isinstance(judged(*[Scene(data=BROKEN)] * 5, baseline=before), Watching)


def test_an_invariant_that_could_not_run_before_is_new_not_red() -> None:
    unchecked = Violations(found=frozenset(), total=0, unchecked=(("credits", "no such table"),))
    assert trigger_of(judged(*[Scene(data=BROKEN)] * 2, baseline=(Scene(data=unchecked),) * 6)) == "data"


def test_a_trigger_that_was_red_before_the_deploy_is_not_armed_and_says_so() -> None:
    red = Scene(traffic=Traffic(requests=100, errors=30, slow=0))
    watch = watched(*[red] * 20, baseline=(red,) * 6)
    assert isinstance(watch.judge(START + timedelta(seconds=100)), Watching)
    assert any("not armed" in line for line in watch.lines())


@pytest.mark.parametrize("blind", [NoData(reason="nothing"), SourceDown(reason="refused")])
def test_blindness_never_fires_and_is_said_after_three_intervals(blind: Reading) -> None:
    scene = Scene(traffic=blind)
    two, three = judged(Scene(), scene, scene), judged(Scene(), scene, scene, scene)
    assert isinstance(two, Watching)
    assert not two.blind_to
    assert isinstance(three, Watching)
    assert three.blind_to


def test_a_window_that_was_mostly_not_seen_is_inconclusive() -> None:
    verdict = judged(*[Scene(traffic=SourceDown(reason="refused"))] * 20, *[Scene()] * (WHOLE - 20))
    assert isinstance(verdict, Inconclusive)
    assert "traffic was observed in" in verdict.reasons[0]


def test_a_watch_that_lost_its_process_for_a_while_is_inconclusive() -> None:
    assert isinstance(judged(*[Scene()] * (WHOLE // 2), at_s=WINDOW_S), Inconclusive)


def test_a_literal_breach_without_proof_is_inconclusive_and_never_a_rollback() -> None:
    barely = [Scene(traffic=Traffic(requests=100, errors=1, slow=0))] * (WHOLE - 1)
    verdict = judged(*barely, Scene(traffic=Traffic(requests=100, errors=4, slow=0)))
    assert isinstance(verdict, Inconclusive)
    assert "not proved" in verdict.reasons[0]


def test_a_container_that_keeps_restarting_fires_and_old_restarts_do_not_count() -> None:
    before = [Scene(instances=running(7))] * 2
    assert isinstance(judged(*before, Scene(instances=running(9))), Watching)
    assert trigger_of(judged(*before, Scene(instances=running(10)))) == "containers"
    assert trigger_of(judged(Scene(instances=running(oom_killed=True)))) == "containers"


def test_a_watch_rebuilt_from_its_buckets_is_the_same_watch() -> None:
    scenes = [Scene(), Scene(traffic=Traffic(requests=50, errors=5, slow=3)), Scene(agent=FAILED)] * 4
    assert watched(*scenes) == watched(*scenes)

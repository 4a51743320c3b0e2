"""How the facts show that a frontend is back, by what its domains say; and what became of a service, by who is
there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lastgood.core.facts import ContainerFacts, FrontendFacts, Health, InstanceFacts
from lastgood.core.plan import PassGate, ReturnFrontend, Seen, Serve, Step, Switch, seen
from lastgood.testing.world import START

STEP = Step(name="return-frontend", action=ReturnFrontend(deployment="dpl_old"), deadline_s=10, explain="")


@pytest.mark.parametrize(
    "production,busy,shown,expected",
    [
        ("dpl_old", False, ["dpl_old", "dpl_old"], Seen.DONE),
        ("dpl_old", False, [], Seen.DONE),
        ("dpl_old", False, ["dpl_old", "dpl_bad"], Seen.NOT_DONE),
        ("dpl_bad", False, ["dpl_bad"], Seen.NOT_DONE),
        ("dpl_bad", True, ["dpl_bad"], Seen.UNKNOWN),
    ],
)
def test_it_is_back_when_the_host_says_so_and_no_domain_shows_another(
    production: str, *, busy: bool, shown: list[str], expected: Seen
) -> None:
    domains = tuple((f"{number}.example", what) for number, what in enumerate(shown))
    facts = FrontendFacts(observed_at=START, production=production, auto_assign=True, busy=busy, domains=domains)
    assert seen(STEP, facts) is expected


def test_a_page_that_does_not_say_which_deployment_it_is_never_keeps_a_rollback_from_its_end() -> None:
    silent = (("a.example", ""), ("b.example", ""))
    assert seen(STEP, _facts("dpl_old", silent)) is Seen.DONE


def test_a_silent_page_hides_neither_another_domain_nor_what_the_host_says() -> None:
    assert seen(STEP, _facts("dpl_old", (("a.example", ""), ("b.example", "dpl_bad")))) is Seen.NOT_DONE
    assert seen(STEP, _facts("dpl_bad", (("a.example", ""),))) is Seen.NOT_DONE


def _facts(production: str, domains: tuple[tuple[str, str], ...]) -> FrontendFacts:
    return FrontendFacts(observed_at=START, production=production, auto_assign=False, domains=domains)


GATE = Step(name="pass-gate", action=PassGate(release="v2", artifacts=(("web", "image"),)), deadline_s=10, explain="")


@pytest.mark.parametrize(
    "artifact,release,health,expected",
    [
        ("image", "v2", Health.HEALTHY, Seen.DONE),
        ("image", "v2", Health.STARTING, Seen.NOT_DONE),
        ("other", "v2", Health.HEALTHY, Seen.NOT_DONE),
        pytest.param("image", "v1", Health.HEALTHY, Seen.NOT_DONE, id="the-same-image-for-another-release"),
        pytest.param("image", "", Health.HEALTHY, Seen.NOT_DONE, id="one-that-somebody-else-started"),
    ],
)
@pytest.mark.parametrize("where", ["serving", "candidates"])
def test_a_gate_is_passed_by_an_instance_of_the_release_itself(
    where: str, artifact: str, release: str, health: Health, expected: Seen
) -> None:
    there = InstanceFacts(service="web", instance="i", artifact=artifact, running=True, health=health, release=release)
    serving, beside = ((there,), ()) if where == "serving" else ((), (there,))
    facts = ContainerFacts(observed_at=START, serving=serving, candidates=beside)
    assert seen(GATE, facts) is expected


SWITCH = Step(name="switch", action=Switch(release="v2", artifacts=(("web", "image"),)), deadline_s=10, explain="")
SERVE = Step(name="serve", action=Serve(release="v2", service="web", artifact="image"), deadline_s=10, explain="")
ASKED = frozenset({("v2", "web", 3), ("v1", "web", 4)})


def webs(count: int) -> tuple[InstanceFacts, ...]:
    """So many healthy instances of one release."""
    one = InstanceFacts(service="web", instance="", artifact="image", running=True, health=Health.HEALTHY, release="v2")
    return tuple(replace(one, instance=str(number)) for number in range(count))


@pytest.mark.parametrize("step", [SWITCH, SERVE], ids=lambda step: step.name)
@pytest.mark.parametrize("count,expected", [(0, Seen.NOT_DONE), (2, Seen.NOT_DONE), (3, Seen.DONE), (4, Seen.DONE)])
def test_a_service_serves_with_as_many_instances_as_its_release_asks_for(
    step: Step, count: int, expected: Seen
) -> None:
    facts = ContainerFacts(observed_at=START, serving=webs(count), switchable=frozenset({"web"}), asked=ASKED)
    assert seen(step, facts) is expected


@pytest.mark.parametrize("count,expected", [(1, Seen.NOT_DONE), (2, Seen.NOT_DONE), (3, Seen.DONE)])
@pytest.mark.parametrize("serve", [0, 1])
def test_a_gate_is_passed_by_all_that_an_edge_will_send_requests_to(serve: int, count: int, expected: Seen) -> None:
    there = webs(count)
    facts = ContainerFacts(
        observed_at=START,
        serving=there[:serve],
        candidates=there[serve:],
        switchable=frozenset({"web"}),
        asked=ASKED,
    )
    assert seen(GATE, facts) is expected


def test_a_gate_of_what_is_recreated_is_passed_by_one() -> None:
    assert seen(GATE, ContainerFacts(observed_at=START, serving=(), candidates=webs(1), asked=ASKED)) is Seen.DONE


def test_a_number_that_is_in_no_file_is_what_is_found() -> None:
    assert seen(SERVE, ContainerFacts(observed_at=START, serving=webs(2))) is Seen.DONE

"""The Vercel target's own: what its facts come from, each way in which the API and the domains fail, and secrets.

The clock only moves when the target waits, so a deadline passes at once; what happens meanwhile hangs on the waiting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from lastgood.core.errors import ConfigError, LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.plan import Seen, seen
from lastgood.core.secret import Secret
from lastgood.targets.vercel import VercelTarget, api
from lastgood.testing.standin import Answer, Call, Fault, FaultKind
from lastgood.testing.vercel import DEFAULT_DOMAIN, DEFAULT_TOKEN, VercelStandIn
from lastgood.testing.vercel_world import JobStatus, PageMark, Plan, ReadyState, Stale
from lastgood.testing.world import START, SteppedClock
from tests.contract.rigs.vercel import CHANGING, config, step
from tests.signals.loopback import Reply, answer, drip_body, drip_headers, flood, hang, loopback, nobody

PROJECT_HOST = "hypercode-web.vercel.app"
Act = Callable[[], object]


class Clock(SteppedClock):
    """Moves when somebody waits, and then lets the next thing happen."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Act] = []

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.meanwhile:
            self.meanwhile.pop(0)()


class BusyStandIn(VercelStandIn):
    """Others use the project, too. before: what they do just before the next call of an operation is looked at."""

    before: dict[str, list[Act]]

    def respond(self, call: Call) -> Answer | None:
        if waiting := self.before.get(self.operation(call)):
            waiting.pop(0)()
        return super().respond(call)


@dataclass(slots=True)
class Stage:
    """A project whose newest deployment is bad. The commits are aaa..., bbb... and ccc..."""

    vercel: BusyStandIn
    clock: Clock
    older: str
    good: str
    bad: str

    @classmethod
    def on(cls, vercel: BusyStandIn) -> Stage:
        vercel.before = {}
        older, good, bad = (vercel.deploy(commit * 40) for commit in "abc")
        return cls(vercel=vercel, clock=Clock(), older=older, good=good, bad=bad)

    def target(self, **settings: object) -> VercelTarget:
        return VercelTarget(config(self.vercel, **settings), clock=self.clock)

    def fail(
        self,
        kind: FaultKind,
        on: str = "rollback",
        *,
        after_accept: bool = False,
        status: int = 500,
        retry_after_s: int = 1,
    ) -> None:
        fault = Fault(kind=kind, on=on, after_accept=after_accept, status=status, retry_after_s=retry_after_s)
        self.vercel.fail(fault)

    def sent(self) -> int:
        """How often a change was asked for."""
        return sum(len(self.vercel.calls(operation)) for operation in CHANGING)

    def production(self) -> str:
        current = self.vercel.world.current
        return current.id if current else ""

    def by_somebody_else(self, deployment: str) -> None:
        """Somebody else asks for a rollback, as Vercel's own tool does."""
        asked = f"{self.vercel.url}/v9/projects/{self.vercel.world.project_id}/rollback/{deployment}"
        headers = {"Authorization": f"Bearer {DEFAULT_TOKEN}"}
        httpx.post(asked, params={"slug": "hypercode"}, headers=headers, trust_env=False).raise_for_status()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with BusyStandIn(state=tmp_path / "vercel.json") as vercel:
        yield Stage.on(vercel)


def refusal(stage: Stage, deployment: str, **settings: object) -> LastgoodError:
    """What an attempt raises, and that it named one thing to type or to do."""
    with pytest.raises(LastgoodError) as raised:
        stage.target(**settings).apply(step(deployment))
    return raised.value


# --- facts ----------------------------------------------------------------------------------------------------------


def test_it_shows_what_serves_and_what_could_serve_again(stage: Stage) -> None:
    failed = stage.vercel.deploy("d" * 40, becomes=ReadyState.ERROR)
    stage.vercel.deploy("e" * 40, production=False)
    facts = stage.target().observe()
    assert (facts.production, facts.auto_assign, facts.busy, facts.observed_at) == (stage.bad, True, False, START)
    assert facts.domains == ((DEFAULT_DOMAIN, stage.bad),)
    assert [(d.id, d.commit[:1], d.state, d.can_return) for d in facts.deployments] == [
        (failed, "d", "ERROR", False),
        (stage.bad, "c", "READY", False),
        (stage.good, "b", "READY", True),
        (stage.older, "a", "READY", True),
    ]
    made = [d.created_at for d in facts.deployments]
    assert made == sorted(made, reverse=True)


def test_a_project_that_serves_nothing_yet_is_told_so(tmp_path: Path) -> None:
    with VercelStandIn(state=tmp_path / "empty.json") as vercel:
        facts = VercelTarget(config(vercel), clock=Clock()).observe()
    assert (facts.production, facts.deployments, facts.domains) == ("", (), ((DEFAULT_DOMAIN, ""),))


def test_a_long_list_is_read_page_by_page_to_a_bound(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = [stage.vercel.deploy(f"{number:040x}") for number in range(5)]
    monkeypatch.setattr(api, "PAGE", 2)
    assert [d.id for d in stage.target().observe().deployments] == [
        *reversed(pushed),
        stage.bad,
        stage.good,
        stage.older,
    ]
    monkeypatch.setattr(api, "PAGES", 2)
    assert [d.id for d in stage.target().observe().deployments] == pushed[:0:-1]


@pytest.mark.parametrize("mark", [PageMark.ALL, PageMark.FRAMEWORK, PageMark.COMMIT])
def test_a_page_tells_its_deployment_in_each_way_that_pages_do(stage: Stage, mark: PageMark) -> None:
    stage.vercel.mark_pages(mark)
    assert stage.target().observe().domains == ((DEFAULT_DOMAIN, stage.bad),)
    stage.target().apply(step(stage.good))
    assert stage.target().observe().domains == ((DEFAULT_DOMAIN, stage.good),)


def test_a_silent_page_is_not_made_to_speak(stage: Stage) -> None:
    stage.vercel.mark_pages(PageMark.NONE)
    assert stage.target().observe().domains == ((DEFAULT_DOMAIN, ""),)
    stage.target().apply(step(stage.good))
    facts = stage.target().observe()
    assert facts.domains == ((DEFAULT_DOMAIN, ""),)
    assert seen(step(stage.good), facts) is Seen.DONE


def test_a_silent_page_is_elsewhere_where_its_alias_is(stage: Stage) -> None:
    stage.vercel.mark_pages(PageMark.NONE)
    stage.vercel.end_next_job(JobStatus.FAILED, stays=(DEFAULT_DOMAIN,))
    stage.by_somebody_else(stage.good)
    facts = stage.target().observe()
    assert (facts.production, facts.domains) == (stage.good, ((DEFAULT_DOMAIN, stage.bad),))


def test_two_deployments_of_one_commit_are_told_apart_by_the_alias(stage: Stage) -> None:
    stage.vercel.mark_pages(PageMark.COMMIT)
    again = stage.vercel.deploy("c" * 40)
    assert stage.target().observe().domains == ((DEFAULT_DOMAIN, again),)
    stage.target().apply(step(stage.bad))
    assert stage.target().observe().domains == ((DEFAULT_DOMAIN, stage.bad),)


@pytest.mark.parametrize(
    "page,shown",
    [
        ('<meta name="commit" content="ffffffff">', "ffffffff"),
        ('<html data-dpl-id="dpl_elsewhere">', "dpl_elsewhere"),
        ('<script src="/app.js?a=1&amp;dpl=dpl_elsewhere">', "dpl_elsewhere"),
        ('<meta name="commit" content="ccccccc">', "bad"),
        ('<meta name="commit" content="cc">', "cc"),
        ("<html><html><meta name='commit'", ""),
        ("", ""),
    ],
)
def test_what_a_page_says_is_taken_as_it_is(stage: Stage, page: str, shown: str) -> None:
    with loopback(answer(page)) as site:
        facts = stage.target(site=f"{site.url}/?of={{domain}}").observe()
        (asked, _), *_ = site.requests
    assert facts.domains == ((DEFAULT_DOMAIN, stage.bad if shown == "bad" else shown),)
    assert asked.startswith(f"GET /?of={DEFAULT_DOMAIN}&lastgood=")


@pytest.mark.parametrize("reply", [b"", hang, drip_headers, drip_body, flood, answer("", status=503)])
def test_a_domain_that_cannot_be_fetched_is_not_told(stage: Stage, reply: Reply) -> None:
    with loopback(reply) as site:
        facts = stage.target(site=f"{site.url}/{{domain}}", timeout="500ms").observe()
    assert facts.domains == ((DEFAULT_DOMAIN, ""),)


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_look_that_the_api_fails_is_worth_another(stage: Stage, status: int) -> None:
    stage.fail(FaultKind.ERROR, "project", status=status)
    with pytest.raises(Retryable, match=str(status)) as raised:
        stage.target().observe()
    assert raised.value.delay_s > 0


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        hang,
        drip_headers,
        drip_body,
        flood,
        b"\x00" * 100,
        answer("[]"),
        answer("[" * 100_000),
        answer("{}"),
        answer('{"id": 3}'),
        answer('{"id": "prj_1", "targets": []}'),
        answer('{"deployments": [{"uid": "dpl_1", "createdAt": 1e300}], "id": "prj_1"}'),
    ],
)
def test_an_api_that_talks_nonsense_or_not_at_all_never_gives_facts(stage: Stage, reply: Reply) -> None:
    with loopback(reply) as server, pytest.raises(Retryable) as raised:
        stage.target(url=server.url, timeout="300ms").observe()
    assert raised.value.message.isprintable()


def test_an_api_that_is_not_there_is_worth_another_try_and_nothing_was_asked(stage: Stage) -> None:
    with nobody() as url:
        assert isinstance(refusal(stage, stage.good, url=url), Retryable)


def test_a_redirect_does_not_carry_the_token_elsewhere(stage: Stage) -> None:
    with loopback(answer("{}")) as thief, loopback() as server:
        server.reply = answer("", status=307, headers=f"location: {thief.url}/\r\n")
        assert "307" in refusal(stage, stage.good, url=server.url).message
        assert thief.requests == []


# --- going back -----------------------------------------------------------------------------------------------------


def test_it_asks_once_and_the_domain_follows(stage: Stage) -> None:
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (1, stage.good)
    facts = stage.target().observe()
    assert seen(step(stage.good), facts) is Seen.DONE
    assert not facts.auto_assign


def test_what_is_production_already_is_done_and_nothing_is_sent(stage: Stage) -> None:
    stage.target().apply(step(stage.bad))
    assert stage.sent() == 0


def test_a_project_of_nobodys_team_is_asked_without_a_scope(stage: Stage) -> None:
    with pytest.raises(Refused, match="project hypercode-web: vercel does not know it"):
        stage.target(team=None).observe()
    assert "slug" not in stage.vercel.calls("project")[0].query


@pytest.mark.parametrize(
    "kind,status",
    [(FaultKind.DROP, 0), (FaultKind.HANG, 0), *((FaultKind.ERROR, status) for status in (408, 500, 502, 503, 504))],
)
@pytest.mark.parametrize("after_accept", [True, False])
def test_a_lost_answer_is_looked_at_and_never_sent_again_blindly(
    stage: Stage, kind: FaultKind, status: int, *, after_accept: bool
) -> None:
    stage.fail(kind, after_accept=after_accept, status=status)
    with pytest.raises(OutcomeUnknown):
        stage.target().apply(step(stage.good, deadline_s=0.5))
    assert stage.sent() == 1
    expected = Seen.DONE if after_accept else Seen.NOT_DONE
    assert seen(step(stage.good), stage.target().observe()) is expected
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (1 if after_accept else 2, stage.good)


@pytest.mark.parametrize("status", [409, 422])
def test_a_refusal_that_means_it_is_done_already_is_done(stage: Stage, status: int) -> None:
    """Somebody was quicker between our look and our request; Vercel has said this with either number."""
    stage.fail(FaultKind.ERROR, status=status, after_accept=True)
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (1, stage.good)


def test_each_refusal_changes_nothing_and_says_what_is_wrong_and_what_to_do(stage: Stage) -> None:
    said: dict[int, tuple[str, str]] = {}
    for status in (400, 401, 402, 403, 404, 409, 410, 418, 422):
        stage.fail(FaultKind.ERROR, status=status)
        error = refusal(stage, stage.good)
        assert isinstance(error, Refused), status
        assert str(status) in error.message
        assert error.hint
        said[status] = (error.message.replace(str(status), ""), error.hint)
    assert stage.production() == stage.bad
    assert len({message for message, _ in said.values()}) == len(said)


@pytest.mark.parametrize("on", ["project", "get", "rollback"])
def test_too_many_requests_are_waited_for_as_long_as_vercel_asks(stage: Stage, on: str) -> None:
    stage.fail(FaultKind.RATE_LIMIT, on, retry_after_s=17)
    error = refusal(stage, stage.good)
    assert isinstance(error, Retryable)
    assert error.delay_s == 17
    assert stage.production() == stage.bad
    stage.target().apply(step(stage.good))
    assert stage.production() == stage.good


@pytest.mark.parametrize(
    "headers,limit,expected",
    [
        ("", {"reset": START.timestamp() + 30}, 30),
        ("retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n", {"reset": START.timestamp() + 30}, 30),
        ("", {"reset": START.timestamp() - 30}, api.AGAIN_S),
        ("", {"reset": START.timestamp() * 1000}, api.LONGEST_WAIT_S),
        ("retry-after: 999999999\r\n", {}, api.LONGEST_WAIT_S),
        ("", None, api.AGAIN_S),
    ],
)
def test_a_wait_is_read_from_what_there_is_and_has_a_bound(
    stage: Stage, headers: str, limit: dict[str, float] | None, expected: float
) -> None:
    body = json.dumps({"error": {"code": "rate_limited", "message": "slow down", "limit": limit}})
    with loopback(answer(body, status=429, headers=headers)) as server:
        error = refusal(stage, stage.good, url=server.url)
    assert isinstance(error, Retryable)
    assert error.delay_s == expected


# --- what Vercel itself refuses -------------------------------------------------------------------------------------


def test_a_deleted_deployment_is_refused_before_anything_is_sent(stage: Stage) -> None:
    stage.vercel.delete(stage.good)
    assert f"deployment {stage.good}: vercel does not know it" in refusal(stage, stage.good).message
    assert stage.sent() == 0


def test_a_deployment_deleted_between_the_look_and_the_request_is_refused_by_name(stage: Stage) -> None:
    stage.fail(FaultKind.ERROR, status=410)
    assert "deleted" in refusal(stage, stage.good).message


def test_the_hobby_plan_goes_back_one_step_and_says_so(tmp_path: Path) -> None:
    with BusyStandIn(state=tmp_path / "hobby.json", plan=Plan.HOBBY) as vercel:
        stage = Stage.on(vercel)
        error = refusal(stage, stage.older)
        assert isinstance(error, Refused)
        assert "Hobby" in error.message
        stage.target().apply(step(stage.good))
        assert stage.production() == stage.good


def test_a_preview_a_build_and_a_deployment_of_another_name_are_never_asked_for(stage: Stage) -> None:
    preview = stage.vercel.deploy("d" * 40, production=False)
    failed = stage.vercel.deploy("e" * 40, becomes=ReadyState.ERROR)
    assert "not built for production" in refusal(stage, preview).message
    assert "ERROR, not READY" in refusal(stage, failed).message
    assert "not a deployment of this project" in refusal(stage, DEFAULT_DOMAIN).message
    assert stage.sent() == 0


def test_a_deployment_of_another_project_is_never_asked_for(stage: Stage) -> None:
    """A token that sees the whole team sees other projects' deployments as well."""
    project = {"id": "prj_1", "targets": {"production": {"id": "dpl_bad"}}, "projectId": "prj_2"}
    with loopback(answer(json.dumps(project | {"id": "dpl_x"}))) as server:
        assert "not a deployment of this project" in refusal(stage, "dpl_x", url=server.url).message
        assert all(line.startswith("GET") for line, _ in server.requests)


def test_an_expired_token_a_foreign_team_and_an_unknown_project_are_told_apart(stage: Stage) -> None:
    said = [
        refusal(stage, stage.good, token=Secret("expired")),
        refusal(stage, stage.good, team="strangers"),
        refusal(stage, stage.good, project="unheard-of"),
    ]
    assert all(isinstance(error, Refused) and error.hint for error in said)
    assert ["token" in said[0].message, "team strangers" in said[1].message, "unheard-of" in said[2].message] == [
        True
    ] * 3
    assert len({error.hint for error in said}) == 3
    with pytest.raises(Refused, match="token"):
        stage.target(token=Secret("expired")).observe()


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_is_waited_for(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.clock.meanwhile = [lambda: None, lambda: stage.vercel.end_job(JobStatus.SUCCEEDED)]
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (1, stage.good)


def test_a_job_that_never_ends_is_unknown_and_not_asked_for_again(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match="not finished"):
            stage.target().apply(step(stage.good, deadline_s=60))
        assert seen(step(stage.good), stage.target().observe()) is Seen.UNKNOWN
    assert stage.sent() == 1


def test_trouble_while_a_job_is_waited_for_does_not_end_the_waiting(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.clock.meanwhile = [
        lambda: stage.fail(FaultKind.ERROR, "project", status=503),
        lambda: stage.fail(FaultKind.RATE_LIMIT, "project"),
        lambda: stage.vercel.end_job(JobStatus.SUCCEEDED),
    ]
    stage.target().apply(step(stage.good))
    assert stage.production() == stage.good


def test_a_token_that_expires_while_a_job_is_waited_for_never_says_that_nothing_changed(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.clock.meanwhile = [lambda: stage.fail(FaultKind.ERROR, "project", status=401)]
    assert isinstance(refusal(stage, stage.good), OutcomeUnknown)


def test_a_job_that_failed_and_moved_nothing_is_refused_and_names_the_domains(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.FAILED)
    error = refusal(stage, stage.good)
    assert isinstance(error, Refused)
    assert DEFAULT_DOMAIN in error.message
    assert PROJECT_HOST in error.message
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (2, stage.good)


@pytest.mark.parametrize("stays", [DEFAULT_DOMAIN, PROJECT_HOST])
def test_a_job_that_failed_half_way_needs_a_person_and_names_what_stayed(stage: Stage, stays: str) -> None:
    stage.vercel.end_next_job(JobStatus.FAILED, stays=(stays,))
    error = refusal(stage, stage.good)
    assert isinstance(error, NeedsHuman)
    assert error.message.endswith(f"left behind: {stays}")
    assert error.hint == f"vercel alias set {stage.good} {stays}"


def test_a_job_that_failed_in_the_dark_needs_a_person(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.FAILED)
    stage.fail(FaultKind.ERROR, "rollback_aliases", status=500)
    assert isinstance(refusal(stage, stage.good), NeedsHuman)


def test_a_job_that_vercel_skipped_is_refused(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.SKIPPED)
    assert "skipped" in refusal(stage, stage.good).message
    assert stage.production() == stage.bad


def test_a_request_that_was_taken_and_never_heard_of_again_is_unknown(stage: Stage) -> None:
    stage.fail(FaultKind.ERROR, status=201)
    assert isinstance(refusal(stage, stage.good), OutcomeUnknown)
    assert stage.sent() == 1


def test_somebody_elses_rollback_to_the_same_place_is_waited_for_and_is_enough(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.by_somebody_else(stage.good)
    stage.clock.meanwhile = [lambda: stage.vercel.end_job(JobStatus.SUCCEEDED)]
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (1, stage.good)


def test_somebody_elses_move_is_waited_for_and_then_ours_is_made(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.by_somebody_else(stage.older)
    stage.clock.meanwhile = [lambda: stage.vercel.end_job(JobStatus.SUCCEEDED)]
    stage.target().apply(step(stage.good))
    assert (stage.sent(), stage.production()) == (2, stage.good)


def test_somebody_elses_move_that_never_ends_is_not_interfered_with(stage: Stage) -> None:
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.by_somebody_else(stage.older)
    assert isinstance(refusal(stage, stage.good), Retryable)
    assert stage.sent() == 1


def test_a_request_that_meets_somebody_elses_is_tried_later(stage: Stage) -> None:
    """Somebody else asks between our look and our request, which is refused with 409: it changed nothing."""
    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.vercel.before["rollback"] = [lambda: stage.by_somebody_else(stage.older)]
    stage.clock.meanwhile = [lambda: stage.vercel.end_job(JobStatus.SUCCEEDED)]
    with pytest.raises(Retryable, match=stage.older):
        stage.target().apply(step(stage.good))
    assert stage.production() == stage.older
    stage.target().apply(step(stage.good))
    assert stage.production() == stage.good


def test_a_move_by_somebody_else_while_ours_is_under_way_needs_a_person(stage: Stage) -> None:
    def overtaken() -> None:
        stage.vercel.end_job(JobStatus.SUCCEEDED)
        stage.by_somebody_else(stage.older)

    stage.vercel.end_next_job(JobStatus.PENDING)
    stage.clock.meanwhile = [overtaken]
    error = refusal(stage, stage.good)
    assert isinstance(error, NeedsHuman)
    assert stage.older in error.message


# --- domains --------------------------------------------------------------------------------------------------------


def test_a_domain_that_stays_on_the_bad_deployment_needs_a_person_and_is_named(stage: Stage) -> None:
    stage.vercel.hold_domain(DEFAULT_DOMAIN, Stale.STUCK)
    for _ in range(2):
        error = refusal(stage, stage.good)
        assert isinstance(error, NeedsHuman)
        assert f"{DEFAULT_DOMAIN} still shows {stage.bad}" in error.message
        assert error.hint.startswith("vercel alias set ")
        assert error.hint.endswith(f" {DEFAULT_DOMAIN}")
        assert seen(step(stage.good), stage.target().observe()) is Seen.NOT_DONE
    assert stage.sent() == 1


def test_a_domain_that_cannot_be_fetched_at_first_is_looked_at_again(stage: Stage) -> None:
    stage.vercel.hold_domain(DEFAULT_DOMAIN, Stale.STUCK)
    stage.vercel.fail(Fault(kind=FaultKind.DROP, on="site", count=1))
    error = refusal(stage, stage.good)
    assert isinstance(error, NeedsHuman)
    assert f"{DEFAULT_DOMAIN} still shows {stage.bad}" in error.message


def test_a_domain_that_cannot_be_fetched_any_more_has_not_followed_by_that(stage: Stage) -> None:
    stage.vercel.hold_domain(DEFAULT_DOMAIN, Stale.STUCK)
    stage.clock.meanwhile = [lambda: stage.vercel.fail(Fault(kind=FaultKind.DROP, on="site", count=1000))]
    error = refusal(stage, stage.good)
    assert isinstance(error, NeedsHuman)
    assert f"{DEFAULT_DOMAIN} still shows {stage.bad}" in error.message


def test_a_domain_that_follows_late_is_waited_for(stage: Stage) -> None:
    stage.vercel.hold_domain(DEFAULT_DOMAIN, Stale.STUCK)
    stage.clock.meanwhile = [lambda: None, lambda: stage.vercel.hold_domain(DEFAULT_DOMAIN, None)]
    stage.target().apply(step(stage.good))
    assert seen(step(stage.good), stage.target().observe()) is Seen.DONE


def test_a_cache_on_the_way_is_seen_through(stage: Stage) -> None:
    stage.vercel.hold_domain(DEFAULT_DOMAIN, Stale.CACHED)
    stage.target().apply(step(stage.good))
    assert stage.target().observe().domains == ((DEFAULT_DOMAIN, stage.good),)


def test_without_domains_the_host_is_the_only_witness(stage: Stage) -> None:
    stage.target(domains=[]).apply(step(stage.good))
    assert [(c.name, c.passed) for c in stage.target(domains=[]).checks(stage.good)] == [("frontend production", True)]


# --- checks ---------------------------------------------------------------------------------------------------------


def checks(stage: Stage, **settings: object) -> dict[str, tuple[bool, str]]:
    return {c.name: (c.passed, c.detail) for c in stage.target(**settings).checks(stage.good)}


DOMAIN_CHECK = f"domain {DEFAULT_DOMAIN}"


def test_a_frontend_that_is_back_passes_every_check(stage: Stage) -> None:
    stage.target().apply(step(stage.good))
    assert checks(stage) == {
        "frontend production": (True, stage.good),
        DOMAIN_CHECK: (True, f"shows {stage.good}"),
    }


def test_a_frontend_that_is_not_back_fails_every_check_with_what_was_seen_and_expected(stage: Stage) -> None:
    for passed, detail in checks(stage).values():
        assert not passed
        assert stage.bad in detail
        assert stage.good in detail


def test_a_stuck_domain_fails_its_check_alone(stage: Stage) -> None:
    stage.vercel.hold_domain(DEFAULT_DOMAIN, Stale.STUCK)
    stage.by_somebody_else(stage.good)
    found = checks(stage)
    assert found["frontend production"][0]
    assert found[DOMAIN_CHECK] == (
        False,
        f"shows {stage.bad}, expected {stage.good}; its alias points at {stage.good}",
    )


def test_a_silent_page_passes_on_its_alias_and_the_report_says_that_no_more_is_known(stage: Stage) -> None:
    stage.vercel.mark_pages(PageMark.NONE)
    assert not checks(stage)[DOMAIN_CHECK][0]
    stage.target().apply(step(stage.good))
    passed, detail = checks(stage)[DOMAIN_CHECK]
    assert passed
    assert detail == f"its alias points at {stage.good}; its page does not say which deployment it is"


def test_a_silent_page_of_a_domain_that_vercel_does_not_know_proves_nothing(stage: Stage) -> None:
    stage.target().apply(step(stage.good))
    with loopback(answer("hello")) as site:
        found = checks(stage, domains=["proxied.example"], site=site.url)
    assert not found["domain proxied.example"][0]


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_domain_that_answers_with_an_error_is_not_back(stage: Stage, status: int) -> None:
    stage.target().apply(step(stage.good))
    stage.fail(FaultKind.ERROR, "site", status=status)
    passed, detail = checks(stage)[DOMAIN_CHECK]
    assert not passed
    assert f"answered {status}" in detail


# --- later pushes ---------------------------------------------------------------------------------------------------


def test_later_pushes_go_live_again_and_production_does_not_move(stage: Stage) -> None:
    stage.target().apply(step(stage.good))
    stage.target().resume_auto_assign()
    assert (stage.production(), stage.target().observe().auto_assign) == (stage.good, True)
    fixed = stage.vercel.deploy("d" * 40)
    assert stage.production() == fixed
    before = stage.sent()
    stage.target().resume_auto_assign()
    assert stage.sent() == before


def test_a_setting_whose_answer_is_lost_is_unknown(stage: Stage) -> None:
    stage.target().apply(step(stage.good))
    stage.fail(FaultKind.DROP, "update", after_accept=True)
    with pytest.raises(OutcomeUnknown):
        stage.target().resume_auto_assign()
    stage.target().resume_auto_assign()
    assert len(stage.vercel.calls("update")) == 1


@pytest.mark.parametrize(
    "fault,kind",
    [
        (Fault(kind=FaultKind.ERROR, on="update", status=403), Refused),
        (Fault(kind=FaultKind.ERROR, on="update", status=409), Refused),
        (Fault(kind=FaultKind.ERROR, on="update", status=503), OutcomeUnknown),
        (Fault(kind=FaultKind.RATE_LIMIT, on="update"), Retryable),
    ],
)
def test_a_setting_that_is_refused_says_so(stage: Stage, fault: Fault, kind: type[LastgoodError]) -> None:
    stage.target().apply(step(stage.good))
    stage.vercel.fail(fault)
    with pytest.raises(kind):
        stage.target().resume_auto_assign()
    assert not stage.target().observe().auto_assign


# --- secrets --------------------------------------------------------------------------------------------------------


def everything(error: BaseException | None) -> str:
    """What a person could be shown of an error, its causes included."""
    said = ""
    while error is not None:
        said += f"{error} {error!r} {getattr(error, 'hint', '')} {vars(error)}"
        error = error.__cause__ or error.__context__
    return said


@pytest.mark.parametrize("status", [200, 307, 400, 401, 403, 429, 500])
def test_an_answer_that_repeats_the_token_does_not_show_it(stage: Stage, status: int) -> None:
    echo = json.dumps({"error": {"code": DEFAULT_TOKEN, "message": f"Bearer {DEFAULT_TOKEN} is not it"}})
    with loopback(answer(echo, status=status, headers=f"retry-after: {DEFAULT_TOKEN}\r\n")) as server:
        assert DEFAULT_TOKEN not in everything(refusal(stage, stage.good, url=server.url))


def test_no_failure_shows_the_token(stage: Stage) -> None:
    for kind in FaultKind:
        for on in ("project", "get", "rollback"):
            stage.fail(kind, on)
            with pytest.raises(LastgoodError) as raised:
                stage.target().apply(step(stage.good, deadline_s=0.3))
            assert DEFAULT_TOKEN not in everything(raised.value)


@pytest.mark.parametrize("token", ["with space", "line\nbreak", "trailing\r", "ünprintable", ""])
def test_a_token_that_cannot_be_sent_is_refused_when_the_house_is_built_and_not_quoted(
    stage: Stage, token: str
) -> None:
    with pytest.raises(ConfigError, match=r"frontend\.vercel\.token") as raised:
        stage.target(token=Secret(token))
    assert not token or token not in everything(raised.value)


def test_what_the_api_says_is_shown_on_one_line_and_cut(stage: Stage) -> None:
    hostile = json.dumps({"error": {"code": "x", "message": "\x1b[31m red \u202e\n" + "long " * 1000}})
    with loopback(answer(hostile, status=402)) as server:
        message = refusal(stage, stage.good, url=server.url).message
    assert message.isprintable()
    assert len(message) < 500

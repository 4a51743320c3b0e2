"""The stand-in of Vercel over HTTP: what it holds, what it refuses, and each way in which it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from lastgood.testing.standin import Fault, FaultKind
from lastgood.testing.vercel import DEFAULT_DOMAIN, DEFAULT_TOKEN, VercelStandIn
from lastgood.testing.vercel_world import JobStatus, PageMark, Plan, ReadyState, RefusedError, Stale, World

GOOD, BAD = "a" * 40, "b" * 40
WAIT_S = 30
NEVER = timedelta(hours=1)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "vercel.json"


@pytest.fixture
def vercel(state: Path) -> Iterator[VercelStandIn]:
    with VercelStandIn(state=state) as standin:
        yield standin


@pytest.fixture
def good(vercel: VercelStandIn) -> str:
    """The id of a deployment that was in production; the bad one is there now."""
    good = vercel.deploy(GOOD)
    vercel.deploy(BAD)
    return good


def ask(
    vercel: VercelStandIn,
    method: str,
    path: str,
    *,
    token: str | None = DEFAULT_TOKEN,
    scope: Mapping[str, str] = {"slug": "hypercode"},
    query: Mapping[str, str] = {},
    body: object = None,
    timeout_s: float = WAIT_S,
) -> httpx.Response:
    with httpx.Client(base_url=vercel.url, timeout=timeout_s, trust_env=False) as client:
        return client.request(
            method,
            path,
            params={**scope, **query},
            json=body,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        )


def roll_back(vercel: VercelStandIn, deployment: str, *, timeout_s: float = WAIT_S) -> httpx.Response:
    return ask(vercel, "POST", f"/v1/projects/{vercel.world.project_id}/rollback/{deployment}", timeout_s=timeout_s)


def promote(vercel: VercelStandIn, deployment: str) -> httpx.Response:
    return ask(vercel, "POST", f"/v10/projects/{vercel.world.project_id}/promote/{deployment}")


def project(vercel: VercelStandIn) -> dict[str, object]:
    answer = ask(vercel, "GET", "/v9/projects/hypercode-web")
    assert answer.status_code == 200
    body: dict[str, object] = answer.json()
    return body


def served(vercel: VercelStandIn, **query: str) -> str:
    """The commit that the production domain serves."""
    answer = httpx.get(vercel.domain_url(DEFAULT_DOMAIN), params=query, timeout=WAIT_S, trust_env=False)
    assert answer.headers["x-commit"] in answer.text
    return str(answer.headers["x-commit"])


def listed(vercel: VercelStandIn, **query: str) -> list[str]:
    answer = ask(vercel, "GET", "/v7/deployments", query={"projectId": vercel.world.project_id, **query})
    return [deployment["uid"] for deployment in answer.json()["deployments"]]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json()["error"]["code"])


def test_a_push_takes_production_once_it_is_built(vercel: VercelStandIn) -> None:
    first = vercel.deploy(GOOD)
    building = vercel.deploy(BAD, delay=NEVER)
    assert served(vercel) == GOOD
    described = ask(vercel, "GET", f"/v13/deployments/{building}").json()
    assert (described["readyState"], described["target"]) == ("BUILDING", "production")
    assert described["meta"]["githubCommitSha"] == BAD
    assert listed(vercel, state="READY") == [first]


def test_a_build_that_fails_and_a_preview_leave_production_alone(vercel: VercelStandIn) -> None:
    vercel.deploy(GOOD)
    failed = vercel.deploy(BAD, becomes=ReadyState.ERROR)
    preview = vercel.deploy(BAD, production=False)
    assert served(vercel) == GOOD
    assert listed(vercel, state="ERROR") == [failed]
    assert preview not in listed(vercel, target="production")


def test_a_rollback_moves_every_domain_and_stops_automatic_assignment(vercel: VercelStandIn, good: str) -> None:
    bad = listed(vercel)[0]
    assert listed(vercel, rollbackCandidate="true") == [good]
    answer = roll_back(vercel, good)
    assert (answer.status_code, answer.content) == (201, b"")
    settled = project(vercel)
    request = settled["lastAliasRequest"]
    assert isinstance(request, dict)
    assert (request["fromDeploymentId"], request["toDeploymentId"]) == (bad, good)
    assert (request["jobStatus"], request["type"]) == ("succeeded", "rollback")
    assert (settled["autoAssignCustomDomains"], settled["lastRollbackTarget"]) == (False, None)
    assert served(vercel) == GOOD
    vercel.deploy("c" * 40)
    assert served(vercel) == GOOD


def test_a_promote_ends_what_the_rollback_began(vercel: VercelStandIn, good: str) -> None:
    bad = listed(vercel)[0]
    roll_back(vercel, good)
    assert promote(vercel, bad).status_code == 201
    assert project(vercel)["autoAssignCustomDomains"] is True
    assert served(vercel) == BAD


def update(vercel: VercelStandIn, project: str, **settings: object) -> httpx.Response:
    return ask(vercel, "PATCH", f"/v9/projects/{project}", body=settings)


def test_automatic_assignment_is_a_setting_that_can_be_turned_on_without_moving_production(
    vercel: VercelStandIn, good: str
) -> None:
    roll_back(vercel, good)
    answer = update(vercel, vercel.world.project_id, autoAssignCustomDomains=True)
    assert (answer.status_code, answer.json()["autoAssignCustomDomains"]) == (200, True)
    assert project(vercel)["autoAssignCustomDomains"] is True
    assert served(vercel) == GOOD
    vercel.deploy("c" * 40)
    assert served(vercel) == "c" * 40


def test_a_setting_that_is_not_one_is_refused(vercel: VercelStandIn, good: str) -> None:
    roll_back(vercel, good)
    project_id = vercel.world.project_id
    assert refusal(update(vercel, project_id, autoAssignCustomDomains="yes")) == (400, "bad_request")
    assert refusal(update(vercel, project_id, nonsense=True)) == (400, "bad_request")
    assert refusal(update(vercel, "hypercode-web", autoAssignCustomDomains=True)) == (404, "not_found")
    assert project(vercel)["autoAssignCustomDomains"] is False


def test_a_promoted_preview_is_built_anew(vercel: VercelStandIn, good: str) -> None:
    preview = vercel.deploy("c" * 40, production=False)
    assert promote(vercel, preview).status_code == 201
    rebuilt = listed(vercel)[0]
    assert rebuilt not in (preview, good)
    assert served(vercel) == "c" * 40


def test_what_is_deployed_in_one_millisecond_is_ready_in_it_and_the_last_one_serves() -> None:
    world = World.new(team="team", project="web", domains=(), job_ms=0, plan=Plan.PRO)
    for commit in (GOOD, "c" * 40, BAD):
        world.deploy(
            commit=commit, ref="main", production=True, becomes=ReadyState.READY, delay_ms=0, now_ms=1_700_000_000_000
        )
    world.settle(1_700_000_000_000)
    assert world.current is not None
    assert world.current.commit == BAD


def test_deployments_are_found_by_id_host_and_domain(vercel: VercelStandIn, good: str) -> None:
    host = ask(vercel, "GET", f"/v13/deployments/{good}").json()["url"]
    assert ask(vercel, "GET", f"/v13/deployments/{host}").json()["id"] == good
    assert ask(vercel, "GET", f"/v13/deployments/{DEFAULT_DOMAIN}").json()["meta"]["githubCommitSha"] == BAD


def test_a_long_list_is_read_page_by_page(vercel: VercelStandIn) -> None:
    pushed = [vercel.deploy(f"{n:040x}") for n in range(5)]
    query = {"projectId": vercel.world.project_id, "limit": "3"}
    first = ask(vercel, "GET", "/v6/deployments", query=query).json()
    query["until"] = str(first["pagination"]["next"])
    second = ask(vercel, "GET", "/v6/deployments", query=query).json()
    found = [deployment["uid"] for page in (first, second) for deployment in page["deployments"]]
    assert found == pushed[::-1]
    assert second["pagination"]["next"] is None


def test_it_knows_its_token_its_team_and_its_project(vercel: VercelStandIn, good: str) -> None:
    path = f"/v13/deployments/{good}"
    assert refusal(ask(vercel, "GET", path, token=None)) == (401, "unauthorized")
    assert refusal(ask(vercel, "GET", path, token="other")) == (403, "forbidden")
    assert refusal(ask(vercel, "GET", path, scope={"teamId": "team_other"})) == (403, "forbidden")
    assert refusal(ask(vercel, "GET", path, scope={})) == (404, "not_found")
    assert ask(vercel, "GET", path, scope={"teamId": vercel.world.team_id}).status_code == 200
    assert refusal(ask(vercel, "GET", "/v9/projects/other")) == (404, "not_found")
    assert refusal(ask(vercel, "POST", f"/v1/projects/hypercode-web/rollback/{good}")) == (404, "not_found")


def test_it_refuses_a_rollback_that_cannot_be(vercel: VercelStandIn, good: str) -> None:
    staged = vercel.deploy("c" * 40, production=False)
    gone = vercel.deploy("d" * 40)
    current = vercel.deploy("e" * 40)
    vercel.delete(gone)
    assert refusal(roll_back(vercel, "dpl_unknown")) == (404, "not_found")
    assert refusal(roll_back(vercel, gone)) == (410, "deployment_deleted")
    assert refusal(roll_back(vercel, staged)) == (422, "unprocessable_entity")
    assert refusal(roll_back(vercel, current)) == (409, "conflict")
    vercel.end_next_job(JobStatus.PENDING)
    assert roll_back(vercel, good).status_code == 201
    assert refusal(roll_back(vercel, good)) == (409, "conflict")
    assert served(vercel) == "e" * 40


def test_the_hobby_plan_goes_back_one_step(tmp_path: Path) -> None:
    with VercelStandIn(state=tmp_path / "hobby.json", plan=Plan.HOBBY) as vercel:
        oldest, previous, _ = (vercel.deploy(commit * 40) for commit in "123")
        assert refusal(roll_back(vercel, oldest)) == (402, "payment_required")
        assert roll_back(vercel, previous).status_code == 201


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 422, 500, 502, 503, 504])
def test_an_error_on_demand_changes_nothing_and_is_used_up(vercel: VercelStandIn, good: str, status: int) -> None:
    vercel.fail(Fault(kind=FaultKind.ERROR, on="rollback", status=status))
    answer = roll_back(vercel, good)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}
    assert served(vercel) == BAD
    assert roll_back(vercel, good).status_code == 201
    assert served(vercel) == GOOD


def test_too_many_requests_say_how_long_to_wait(vercel: VercelStandIn) -> None:
    vercel.fail(Fault(kind=FaultKind.RATE_LIMIT, on="project", count=2, retry_after_s=7))
    for _ in range(2):
        answer = ask(vercel, "GET", "/v9/projects/hypercode-web")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
        assert set(answer.json()["error"]["limit"]) == {"remaining", "reset", "resetMs", "total"}
    assert project(vercel)["name"] == "hypercode-web"


def test_a_rollback_whose_answer_is_lost_took_place(vercel: VercelStandIn, good: str) -> None:
    vercel.fail(Fault(kind=FaultKind.DROP, on="rollback", after_accept=True))
    with pytest.raises(httpx.RemoteProtocolError):
        roll_back(vercel, good)
    assert served(vercel) == GOOD
    assert refusal(roll_back(vercel, good)) == (409, "conflict")
    assert len(vercel.calls("rollback")) == 2


def test_a_rollback_that_was_answered_by_a_gateway_error_took_place(vercel: VercelStandIn, good: str) -> None:
    vercel.fail(Fault(kind=FaultKind.ERROR, on="rollback", status=504, after_accept=True))
    assert roll_back(vercel, good).status_code == 504
    assert served(vercel) == GOOD


def test_a_connection_dropped_before_changes_nothing(vercel: VercelStandIn, good: str) -> None:
    vercel.fail(Fault(kind=FaultKind.DROP, on="rollback"))
    with pytest.raises(httpx.RemoteProtocolError):
        roll_back(vercel, good)
    assert served(vercel) == BAD


@pytest.mark.parametrize("after_accept,commit", [(False, BAD), (True, GOOD)])
def test_a_call_that_hangs_is_left_by_the_callers_deadline(
    vercel: VercelStandIn, good: str, *, after_accept: bool, commit: str
) -> None:
    vercel.fail(Fault(kind=FaultKind.HANG, on="rollback", after_accept=after_accept))
    with pytest.raises(httpx.ReadTimeout):
        roll_back(vercel, good, timeout_s=0.5)
    assert served(vercel) == commit


def test_a_job_can_stay_pending(vercel: VercelStandIn, good: str) -> None:
    vercel.end_next_job(JobStatus.PENDING)
    assert roll_back(vercel, good).status_code == 201
    waiting = project(vercel)
    request = waiting["lastAliasRequest"]
    assert isinstance(request, dict)
    assert request["jobStatus"] == "pending"
    assert waiting["lastRollbackTarget"] == {"id": good}
    assert served(vercel) == BAD
    vercel.end_job(JobStatus.SUCCEEDED)
    assert served(vercel) == GOOD
    with pytest.raises(RefusedError):
        vercel.end_job(JobStatus.SUCCEEDED)


def test_a_job_can_fail_and_names_the_domains_it_did_not_move(vercel: VercelStandIn, good: str) -> None:
    vercel.end_next_job(JobStatus.FAILED)
    assert roll_back(vercel, good).status_code == 201
    request = project(vercel)["lastAliasRequest"]
    assert isinstance(request, dict)
    assert request["jobStatus"] == "failed"
    path = f"/v9/projects/{vercel.world.project_id}/rollback/aliases"
    failed = ask(vercel, "GET", path, query={"failedOnly": "true"}).json()["aliases"]
    assert {alias["status"] for alias in failed} == {"failed"}
    assert DEFAULT_DOMAIN in {alias["alias"]["alias"] for alias in failed}
    assert served(vercel) == BAD


def test_a_job_can_fail_half_way(vercel: VercelStandIn, good: str) -> None:
    vercel.end_next_job(JobStatus.FAILED, stays=(DEFAULT_DOMAIN,))
    assert roll_back(vercel, good).status_code == 201
    path = f"/v9/projects/{vercel.world.project_id}/rollback/aliases"
    aliases = {one["alias"]["alias"]: one["status"] for one in ask(vercel, "GET", path).json()["aliases"]}
    assert aliases == {"hypercode-web.vercel.app": "completed", DEFAULT_DOMAIN: "failed"}
    failed = ask(vercel, "GET", path, query={"failedOnly": "true"}).json()["aliases"]
    assert [one["alias"]["alias"] for one in failed] == [DEFAULT_DOMAIN]
    assert served(vercel) == BAD


def test_a_queued_promote_says_so(vercel: VercelStandIn, good: str) -> None:
    vercel.end_next_job(JobStatus.PENDING)
    assert promote(vercel, good).status_code == 202


def test_a_domain_can_stay_on_the_bad_deployment_after_success(vercel: VercelStandIn, good: str) -> None:
    vercel.hold_domain(DEFAULT_DOMAIN, Stale.STUCK)
    roll_back(vercel, good)
    assert ask(vercel, "GET", f"/v13/deployments/{DEFAULT_DOMAIN}").json()["id"] == good
    assert served(vercel) == served(vercel, fresh="1") == BAD
    vercel.hold_domain(DEFAULT_DOMAIN, None)
    assert served(vercel) == GOOD


def test_a_cache_in_between_is_seen_through_by_a_query(vercel: VercelStandIn, good: str) -> None:
    vercel.hold_domain(DEFAULT_DOMAIN, Stale.CACHED)
    roll_back(vercel, good)
    assert served(vercel) == BAD
    assert served(vercel, fresh="1") == GOOD


@pytest.mark.parametrize("mark", PageMark)
def test_a_page_tells_its_deployment_as_its_framework_or_its_team_lets_it(
    vercel: VercelStandIn, good: str, mark: PageMark
) -> None:
    vercel.mark_pages(mark)
    page = httpx.get(vercel.domain_url(DEFAULT_DOMAIN), timeout=WAIT_S, trust_env=False)
    current = vercel.world.deployments[-1].id
    told = {
        "header": page.headers.get("x-deployment-id") == current and page.headers.get("x-commit") == BAD,
        "framework": f'<html data-dpl-id="{current}">' in page.text,
        "commit": f'<meta name="commit" content="{BAD}">' in page.text,
    }
    expected = {
        PageMark.ALL: ["header", "commit"],
        PageMark.FRAMEWORK: ["framework"],
        PageMark.COMMIT: ["commit"],
        PageMark.NONE: [],
    }
    assert [name for name, seen in told.items() if seen] == expected[mark]
    assert (current in page.text) is (mark is PageMark.FRAMEWORK)
    assert (BAD in page.text) is (mark in (PageMark.ALL, PageMark.COMMIT))


def test_a_restart_keeps_everything(vercel: VercelStandIn, good: str, state: Path) -> None:
    roll_back(vercel, good)
    before = vercel.world
    with VercelStandIn(state=state) as restarted:
        assert restarted.world == before
        assert served(restarted) == GOOD


@pytest.fixture
def process_url(state: Path) -> Iterator[Callable[[], str]]:
    running: list[subprocess.Popen[str]] = []

    def begin() -> str:
        command = [sys.executable, "-m", "lastgood.testing.vercel", "--state", str(state)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return process.stdout.readline().removeprefix("listening on ").strip()

    yield begin
    for process in running:
        process.terminate()
        process.communicate(timeout=WAIT_S)
        assert process.returncode == 0


def test_as_a_process_it_is_driven_over_http(process_url: Callable[[], str], state: Path) -> None:
    url = process_url()
    with httpx.Client(base_url=f"{url}/_control/", trust_env=False, timeout=WAIT_S) as control:
        good = control.post("deployments", json={"commit": GOOD}).json()["id"]
        control.post("deployments", json={"commit": BAD}).raise_for_status()
        control.post("domains/hypercode.example", json={"stale": "stuck"}).raise_for_status()
        control.post("jobs", json={"ends": "failed"}).raise_for_status()
        control.post("pages", json={"mark": "all"}).raise_for_status()
        control.post("faults", json={"kind": "error", "on": "site", "status": 503}).raise_for_status()
        assert httpx.get(f"{url}/_site/{DEFAULT_DOMAIN}/", trust_env=False).status_code == 503
        assert httpx.get(f"{url}/_site/{DEFAULT_DOMAIN}/", trust_env=False).headers["x-commit"] == BAD
        assert len(control.get("calls/site").json()) == 2
        assert control.get("state").json()["deployments"][0]["id"] == good
        assert control.post("faults", json={"kind": "unheard-of"}).status_code == 400
        assert control.post("nothing").status_code == 400
        assert control.post("domains/other.example", json={}).status_code == 404
        control.delete(f"deployments/{good}").raise_for_status()
    assert json.loads(state.read_text())["deployments"][0]["deleted"] is True


def test_a_port_in_use_is_said_in_one_line(vercel: VercelStandIn, tmp_path: Path) -> None:
    port = vercel.url.rpartition(":")[2]
    command = [sys.executable, "-m", "lastgood.testing.vercel", "--port", port, "--state", str(tmp_path / "other.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"vercel stand-in: cannot listen on port {port}: Address already in use\n",
    )

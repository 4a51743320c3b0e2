"""A stand-in of Vercel on loopback: its REST API, its production domains, and every way in which they fail.

    with VercelStandIn(state=Path("vercel.json")) as vercel:
        vercel.deploy("4e1f...")
        httpx.get(vercel.domain_url("hypercode.example"))

or `python -m lastgood.testing.vercel --port 7001 --state vercel.json`, driven over HTTP under `/_control/`.
Shapes as the vendor's own command line tool (vercel 60.1.3) accepts them. The state is one file, replaced whole at each
change, so a restart keeps it. Ids are strict: a project's name is good for reading the project and for nothing else.
"""

from __future__ import annotations

import argparse
import html
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from lastgood.testing.standin import Answer, Call, Fault, FaultKind, StandIn, number, serve_until_told
from lastgood.testing.vercel_world import (
    AliasJob,
    Deployment,
    Domain,
    JobStatus,
    PageMark,
    Plan,
    ReadyState,
    RefusedError,
    Stale,
    World,
)

# The real tool refuses a token that contains "-".
DEFAULT_TOKEN = "vercel_standin_token"  # noqa: S105 (it opens nothing but the stand-in)
DEFAULT_TEAM, DEFAULT_PROJECT, DEFAULT_DOMAIN = "hypercode", "hypercode-web", "hypercode.example"
USER_ID, USER_NAME = "standin", "standin"
LIST_LIMIT = 20
CODES = {
    400: "bad_request",
    401: "unauthorized",
    402: "payment_required",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "deployment_deleted",
    422: "unprocessable_entity",
    429: "rate_limited",
    500: "internal_server_error",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "gateway_timeout",
}


class VercelStandIn(StandIn):
    """One team with one project.

    Operations that faults can wait for: list, get, builds, project, update, rollback, promote, rollback_aliases, site.
    """

    def __init__(
        self,
        *,
        state: Path,
        port: int = 0,
        token: str = DEFAULT_TOKEN,
        team: str = DEFAULT_TEAM,
        project: str = DEFAULT_PROJECT,
        domains: tuple[str, ...] = (DEFAULT_DOMAIN,),
        job: timedelta = timedelta(0),
        plan: Plan = Plan.PRO,
    ) -> None:
        """job: how long a rollback takes. All but port and token are read from `state` where the file exists.

        Raises OSError when the port is in use, pydantic.ValidationError when the file is not a state of this stand-in.
        """
        super().__init__(port=port)
        self._token = token
        self._state = state
        self._lock = threading.RLock()
        if state.exists():
            self._world = World.model_validate_json(state.read_text(encoding="utf-8"))
        else:
            job_ms = int(job / timedelta(milliseconds=1))
            self._world = World.new(team=team, project=project, domains=domains, job_ms=job_ms, plan=plan)
            self._save()

    def domain_url(self, domain: str) -> str:
        """Where the production page of `domain` is served."""
        return f"{self.url}/_site/{domain}/"

    @property
    def world(self) -> World:
        """A copy of what it holds now."""
        with self._lock:
            self._settle()
            return self._world.model_copy(deep=True)

    def deploy(
        self,
        commit: str,
        *,
        ref: str = "main",
        production: bool = True,
        becomes: ReadyState = ReadyState.READY,
        delay: timedelta = timedelta(0),
    ) -> str:
        """Push a commit; the id of the deployment, which is ready after `delay`."""
        with self._lock:
            self._settle()
            deployment = self._world.deploy(
                commit=commit,
                ref=ref,
                production=production,
                becomes=becomes,
                delay_ms=int(delay / timedelta(milliseconds=1)),
                now_ms=_now_ms(),
            )
            self._settle()
            self._save()
            return deployment.id

    def delete(self, deployment_id: str) -> None:
        """Delete a deployment; it stays known as deleted. Raises RefusedError when there is none."""
        with self._lock:
            self._find(deployment_id).deleted = True
            self._save()

    def end_next_job(self, *ends: JobStatus, stays: Sequence[str] = ()) -> None:
        """How the next rollbacks or promotes end: SUCCEEDED, FAILED, SKIPPED, or PENDING for never. stays: domains that
        one which fails leaves behind; none named: all of them."""
        with self._lock:
            self._world.job_ends.extend(ends)
            self._world.stays = list(stays)
            self._save()

    def end_job(self, ends: JobStatus) -> None:
        """End the rollback or promote that is under way, at once. Raises RefusedError when there is none."""
        with self._lock:
            self._settle()
            self._world.end_job(ends, _now_ms())
            self._save()

    def hold_domain(self, domain: str, stale: Stale | None) -> None:
        """Let a domain go on serving what it serves now; None lets it follow again. Raises RefusedError."""
        with self._lock:
            self._settle()
            self._world.hold(domain, stale)
            self._save()

    def mark_pages(self, mark: PageMark) -> None:
        """How every page tells from now on which deployment it is."""
        with self._lock:
            self._world.mark = mark
            self._save()

    def operation(self, call: Call) -> str:
        match call.method, call.parts:
            case "GET", ("_site", _, *_):
                return "site"
            case "GET", ("v6" | "v7", "deployments"):
                return "list"
            case "GET", ("v13", "deployments", _):
                return "get"
            case "GET", ("v11", "deployments", _, "builds"):
                return "builds"
            case "GET", ("v9", "projects", _):
                return "project"
            case "PATCH", ("v9", "projects", _):
                return "update"
            case "POST", ("v1" | "v9", "projects", _, "rollback", _):
                return "rollback"
            case "POST", ("v10", "projects", _, "promote", _):
                return "promote"
            case "GET", ("v9", "projects", _, "rollback", "aliases"):
                return "rollback_aliases"
            case _:
                return ""

    def answer(self, call: Call) -> Answer:
        with self._lock:
            self._settle()
            if call.parts[:1] == ("_site",):
                return self._site(call)
            try:
                return self._stranger(call) or _account(call, self._world) or self._scoped(call)
            except RefusedError as refusal:
                return _error(refusal.status, str(refusal))
            except ValueError as error:
                return _error(400, f"bad request: {error}")

    def failure(self, fault: Fault) -> Answer:
        if fault.kind is FaultKind.RATE_LIMIT:
            reset_ms = _now_ms() + fault.retry_after_s * 1000
            limit = {"remaining": 0, "reset": reset_ms // 1000, "resetMs": reset_ms, "total": 100}
            answer = _error(429, "too many requests", code=fault.code, limit=limit)
            return Answer(status=429, body=answer.body, headers={"Retry-After": str(fault.retry_after_s)})
        return _error(fault.status, f"the stand-in was told to answer {fault.status}", code=fault.code)

    def _stranger(self, call: Call) -> Answer | None:
        """The refusal of a caller whom the token does not make known."""
        if call.bearer is None:
            return _error(401, "the request has no bearer token")
        if not secrets.compare_digest(call.bearer.encode(), self._token.encode()):
            return _error(403, "not authorized", invalidToken=True)
        return None

    def _scoped(self, call: Call) -> Answer:
        """What is asked inside the team."""
        if call.query.get("teamId", call.query.get("slug")) not in (self._world.team_id, self._world.team):
            scoped = "teamId" in call.query or "slug" in call.query
            return _error(403, "not authorized for this scope") if scoped else _error(404, "not found in this scope")
        match self.operation(call), call.parts:
            case "list", _:
                return self._list(call)
            case "get", (*_, wanted):
                return Answer(body=self._described(self._find(wanted)))
            case "builds", (*_, wanted, _):
                self._find(wanted)
                return Answer(body={"builds": []})
            case "project", (*_, wanted):
                self._require_project(wanted, by_name=True)
                return Answer(body=self._project())
            case "update", (*_, wanted):
                self._require_project(wanted)
                return self._update(call)
            case "rollback", (_, _, project, _, wanted):
                self._require_project(project)
                self._world.roll_back(wanted, _now_ms())
                self._save()
                return Answer(status=201)
            case "promote", (_, _, project, _, wanted):
                self._require_project(project)
                job = self._world.promote(wanted, _now_ms())
                self._save()
                return Answer(status=202 if job is not None and job.due_ms is None else 201)
            case "rollback_aliases", (_, _, project, *_):
                self._require_project(project)
                return self._rollback_aliases(call)
            case _:
                return _error(404, f"the stand-in has no {call.method} {call.path}")

    def _require_project(self, wanted: str, *, by_name: bool = False) -> None:
        if wanted != self._world.project_id and not (by_name and wanted == self._world.project):
            raise RefusedError(404, f"project {wanted} not found")

    def _find(self, id_or_host: str) -> Deployment:
        deployment = self._world.find(id_or_host)
        if deployment is None or deployment.deleted:
            raise RefusedError(404, f"deployment {id_or_host} not found")
        return deployment

    def _list(self, call: Call) -> Answer:
        query = call.query
        if "projectId" in query:
            self._require_project(query["projectId"])
        limit = int(query.get("limit", LIST_LIMIT))
        until = int(query.get("until", sys.maxsize))
        states = query["state"].split(",") if "state" in query else list(ReadyState)
        found = [
            deployment
            for deployment in reversed(self._world.deployments)
            if not deployment.deleted
            and deployment.created_ms < until
            and deployment.state in states
            and query.get("target", _target(deployment)) == _target(deployment)
            and query.get("sha", deployment.commit) == deployment.commit
            and (query.get("rollbackCandidate") != "true" or self._world.is_rollback_candidate(deployment))
        ]
        page = found[:limit]
        following = page[-1].created_ms if len(found) > limit else None
        pagination = {"count": len(page), "next": following, "prev": page[0].created_ms if page else None}
        return Answer(body={"deployments": [self._listed(one) for one in page], "pagination": pagination})

    def _common(self, deployment: Deployment) -> dict[str, object]:
        return {
            "name": self._world.project,
            "url": deployment.url,
            "createdAt": deployment.created_ms,
            "buildingAt": deployment.created_ms,
            "ready": deployment.ready_ms if deployment.state is not ReadyState.BUILDING else None,
            "readyState": deployment.state,
            "readySubstate": "PROMOTED" if deployment.served else "STAGED",
            "target": _target(deployment),
            "type": "LAMBDAS",
            "projectId": self._world.project_id,
            "creator": {"uid": USER_ID, "username": USER_NAME, "email": f"{USER_NAME}@standin.invalid"},
            "inspectorUrl": f"{self.url}/{self._world.team}/{self._world.project}/{deployment.id}",
            "meta": {
                "githubCommitSha": deployment.commit,
                "githubCommitRef": deployment.ref,
                "githubCommitMessage": f"commit {deployment.commit[:7]}",
            },
        }

    def _listed(self, deployment: Deployment) -> dict[str, object]:
        return self._common(deployment) | {
            "uid": deployment.id,
            "created": deployment.created_ms,
            "state": deployment.state,
            "aliasAssigned": deployment.ready_ms if deployment.served else None,
            "aliasError": None,
            "isRollbackCandidate": self._world.is_rollback_candidate(deployment),
        }

    def _described(self, deployment: Deployment) -> dict[str, object]:
        team = self._world
        return self._common(deployment) | {
            "id": deployment.id,
            "version": 2,
            "status": deployment.state,
            "ownerId": team.team_id,
            "team": {"id": team.team_id, "name": team.team, "slug": team.team},
            "alias": [domain.name for domain in team.domains if domain.alias == deployment.id],
            "aliasAssigned": deployment.served,
            "aliasError": None,
            "regions": ["iad1"],
            "public": False,
            "builds": [],
            "routes": None,
        }

    def _project(self) -> dict[str, object]:
        world, current = self._world, self._world.current
        job = world.job
        moving = job is not None and job.status in (JobStatus.PENDING, JobStatus.IN_PROGRESS)
        return {
            "id": world.project_id,
            "name": world.project,
            "accountId": world.team_id,
            "nodeVersion": "22.x",
            "directoryListing": False,
            "autoAssignCustomDomains": world.auto_assign,
            "targets": {"production": self._described(current)} if current else {},
            "alias": [
                {"domain": domain.name, "target": "PRODUCTION", "environment": "production"} for domain in world.domains
            ],
            "latestDeployments": [self._described(one) for one in reversed(world.deployments[-3:]) if not one.deleted],
            "lastAliasRequest": _alias_request(job) if job else None,
            "lastRollbackTarget": {"id": job.to} if job and moving else None,
        }

    def _update(self, call: Call) -> Answer:
        """The one setting that a rollback changes, as Vercel's Terraform provider sends it. What is not known here is
        refused; Vercel knows many more."""
        match call.fields():
            case {"autoAssignCustomDomains": bool(wanted), **others} if not others:
                self._world.auto_assign = wanted
                self._save()
                return Answer(body=self._project())
            case fields:
                raise ValueError(f"expected autoAssignCustomDomains, true or false, and nothing else, not {fields}")

    def _rollback_aliases(self, call: Call) -> Answer:
        """What the last job did to each domain."""
        failed_only = call.query.get("failedOnly") == "true"
        aliases = [
            {"status": status, "id": domain.name, "alias": {"alias": domain.name, "deploymentId": domain.alias}}
            for domain in self._world.domains
            if self._world.job and ((status := self._world.job_status_of(domain)) == "failed" or not failed_only)
        ]
        return Answer(body={"aliases": aliases, "pagination": {"count": len(aliases), "next": None, "prev": None}})

    def _site(self, call: Call) -> Answer:
        name = call.parts[1] if len(call.parts) > 1 else ""
        domain = next((one for one in self._world.domains if one.name == name), None)
        shown = self._world.shown_by(domain, with_query=bool(call.query)) if domain else None
        headers = {"x-vercel-id": f"iad1::standin-{secrets.token_hex(6)}", "Cache-Control": "public, max-age=0"}
        if domain is None or shown is None or shown.deleted:
            return Answer(status=404, body=b"", headers=headers | {"x-vercel-error": "DEPLOYMENT_NOT_FOUND"})
        headers["x-vercel-cache"] = "HIT" if domain.stale is Stale.CACHED and not call.query else "MISS"
        mark = self._world.mark
        if mark is PageMark.ALL:
            headers |= {"x-deployment-id": shown.id, "x-commit": shown.commit}
        return Answer(body=_page(domain, shown, mark), headers=headers)

    def control(self, call: Call, parts: tuple[str, ...]) -> Answer:
        """What the methods above do, over HTTP; the bodies' fields bear the names of their parameters."""
        try:
            return self._driven(call, parts)
        except RefusedError as refusal:
            return _error(refusal.status, str(refusal))

    def _driven(self, call: Call, parts: tuple[str, ...]) -> Answer:
        fields = call.fields()
        match call.method, parts:
            case "GET", ("state",):
                return Answer(body=self.world.model_dump(mode="json"))
            case "POST", ("deployments",):
                deployment_id = self.deploy(
                    str(fields["commit"]),
                    ref=str(fields.get("ref", "main")),
                    production=bool(fields.get("production", True)),
                    becomes=ReadyState(str(fields.get("becomes", ReadyState.READY))),
                    delay=timedelta(seconds=number(fields, "delay_s", 0)),
                )
                return Answer(status=201, body={"id": deployment_id})
            case "DELETE", ("deployments", deployment_id):
                self.delete(deployment_id)
            case "POST", ("jobs",):
                self.end_next_job(JobStatus(str(fields["ends"])))
            case "POST", ("pages",):
                self.mark_pages(PageMark(str(fields["mark"])))
            case "POST", ("domains", name):
                self.hold_domain(name, Stale(str(fields["stale"])) if fields.get("stale") else None)
            case _:
                return super().control(call, parts)
        return Answer(status=204)

    def _settle(self) -> None:
        if self._world.settle(_now_ms()):
            self._save()

    def _save(self) -> None:
        beside = self._state.with_name(self._state.name + ".new")
        beside.write_text(self._world.model_dump_json(indent=1), encoding="utf-8")
        beside.replace(self._state)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _target(deployment: Deployment) -> str | None:
    return "production" if deployment.production else None


def _error(status: int, message: str, *, code: str = "", **more: object) -> Answer:
    body = {"code": code or CODES.get(status, "unexpected_error"), "message": message, **more}
    return Answer(status=status, body={"error": body})


def _alias_request(job: AliasJob) -> dict[str, object]:
    return {
        "fromDeploymentId": job.source,
        "toDeploymentId": job.to,
        "jobStatus": job.status,
        "requestedAt": job.requested_ms,
        "type": job.type,
    }


def _account(call: Call, world: World) -> Answer | None:
    """Who is asking and for which team: what the real tool wants to know before it does anything."""
    team = {"id": world.team_id, "slug": world.team, "name": world.team, "membership": {"role": "OWNER"}}
    billing = {"plan": world.plan}
    match call.method, call.parts:
        case "GET", ("v2", "user"):
            user = {
                "id": USER_ID,
                "username": USER_NAME,
                "email": f"{USER_NAME}@standin.invalid",
                "version": "northstar",
            }
            return Answer(body={"user": user | {"defaultTeamId": world.team_id}})
        case "GET", ("v1" | "v2", "teams"):
            return Answer(body={"teams": [team | {"billing": billing}], "pagination": {"count": 1, "next": None}})
        case "GET", ("teams" | "v2", *_, wanted) if wanted in (world.team_id, world.team):
            return Answer(body=team | {"billing": billing})
        case _:
            return None


def _page(domain: Domain, shown: Deployment, mark: PageMark) -> bytes:
    commit, name = html.escape(shown.commit, quote=True), html.escape(domain.name)
    told = mark in (PageMark.ALL, PageMark.COMMIT)
    root = f'<html data-dpl-id="{html.escape(shown.id, quote=True)}">' if mark is PageMark.FRAMEWORK else "<html>"
    meta = f'<meta name="commit" content="{commit}">' if told else ""
    serves = f" serves commit {commit}" if told else ""
    return (
        f"<!doctype html>{root}<head>{meta}<title>{name}</title></head>"
        f"<body><h1>HyperCode</h1><p>{name}{serves}</p></body></html>\n"
    ).encode()


def main(words: Sequence[str] | None = None) -> int:
    """Exit 0 after an ordered end, 1 when the port is in use."""
    parser = argparse.ArgumentParser(prog="lastgood.testing.vercel", description="a stand-in of Vercel on loopback")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the address is printed")
    parser.add_argument("--state", type=Path, required=True, help="file that keeps the state")
    parser.add_argument("--token", default=DEFAULT_TOKEN)
    parser.add_argument("--team", default=DEFAULT_TEAM)
    parser.add_argument("--project", default=DEFAULT_PROJECT)
    parser.add_argument("--domain", action="append", help=f"may be given more than once ({DEFAULT_DOMAIN})")
    parser.add_argument("--job-s", type=float, default=0.0, help="how long a rollback takes, in seconds (0)")
    options = parser.parse_args(words)
    try:
        standin = VercelStandIn(
            state=options.state,
            port=options.port,
            token=options.token,
            team=options.team,
            project=options.project,
            domains=tuple(options.domain or (DEFAULT_DOMAIN,)),
            job=timedelta(seconds=options.job_s),
        )
    except OSError as error:
        sys.stderr.write(f"vercel stand-in: cannot listen on port {options.port}: {error.strerror}\n")
        return 1
    serve_until_told(standin)
    return 0


if __name__ == "__main__":
    sys.exit(main())

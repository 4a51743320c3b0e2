"""What the stand-in of Vercel holds, and the rules by which it changes: deployments, domains, alias jobs.

Pure: the time is a value, nothing happens by itself. `settle(now_ms)` brings about what has become due, so builds and
jobs go on across a restart. Where the rules come from: Vercel's REST reference and its command line tool 60.1.3, read
2026-11. What a stand-in cannot show is the timing of the real service and the exact meaning of its 409.
"""

from __future__ import annotations

import secrets
from enum import StrEnum

from pydantic import BaseModel

HOBBY_STEPS_BACK = 1


class ReadyState(StrEnum):
    BUILDING = "BUILDING"
    READY = "READY"
    ERROR = "ERROR"


class JobStatus(StrEnum):
    PENDING = "pending"
    IN_PROGRESS = "in-progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"


class JobType(StrEnum):
    ROLLBACK = "rollback"
    PROMOTE = "promote"


class Plan(StrEnum):
    PRO = "pro"
    HOBBY = "hobby"


class Stale(StrEnum):
    """Why a domain still shows a deployment that its alias has left."""

    STUCK = "stuck"  # every request; seen in public for 25 minutes after "succeeded"
    CACHED = "cached"  # only requests without a query string, as a cache in between does


class PageMark(StrEnum):
    """How a page tells which deployment it is. Vercel itself adds nothing that does."""

    ALL = "all"  # headers and a meta element, so that a person sees it too
    FRAMEWORK = "framework"  # <html data-dpl-id>, which Next.js writes where Skew Protection is on
    COMMIT = "commit"  # <meta name="commit">, which a team writes from VERCEL_GIT_COMMIT_SHA
    NONE = "none"


class RefusedError(Exception):
    """The service says no; nothing changed. status: the HTTP status that Vercel documents for it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Deployment(BaseModel):
    """Times in milliseconds since 1970. becomes: the state that its build ends in. served: it has been production."""

    id: str
    url: str
    commit: str
    ref: str
    production: bool
    state: ReadyState
    becomes: ReadyState
    created_ms: int
    ready_ms: int
    served: bool = False
    deleted: bool = False


class AliasJob(BaseModel):
    """One rollback or promote: the work of moving every domain. due_ms: None never ends."""

    type: JobType
    source: str | None
    to: str
    status: JobStatus
    ends: JobStatus
    requested_ms: int
    due_ms: int | None


class Domain(BaseModel):
    """alias: the deployment that the API says it points at. shown: what it keeps serving while `stale` is set."""

    name: str
    alias: str | None = None
    shown: str | None = None
    stale: Stale | None = None


class World(BaseModel):
    """One team with one project. Deployments oldest first. stays: domains that a job which fails leaves behind; none
    named: all of them."""

    team_id: str
    team: str
    plan: Plan = Plan.PRO
    project_id: str
    project: str
    auto_assign: bool = True
    job_ms: int = 0
    deployments: list[Deployment] = []
    domains: list[Domain] = []
    job: AliasJob | None = None
    job_ends: list[JobStatus] = []
    stays: list[str] = []
    mark: PageMark = PageMark.ALL

    @classmethod
    def new(cls, *, team: str, project: str, domains: tuple[str, ...], job_ms: int, plan: Plan) -> World:
        return cls(
            team_id=f"team_{secrets.token_hex(12)}",
            team=team,
            plan=plan,
            project_id=f"prj_{secrets.token_hex(12)}",
            project=project,
            job_ms=job_ms,
            domains=[Domain(name=name) for name in (f"{project}.vercel.app", *domains)],
        )

    @property
    def current(self) -> Deployment | None:
        """The deployment in production, by the first domain: the project's own, which always follows."""
        return self.find(self.domains[0].alias) if self.domains[0].alias else None

    def find(self, id_or_host: str) -> Deployment | None:
        """By id, by the deployment's own host, or by a domain that points at it. Deleted ones are found too."""
        names = {domain.name: domain.alias for domain in self.domains}
        wanted = names.get(id_or_host, id_or_host)
        return next((one for one in self.deployments if wanted in (one.id, one.url)), None)

    def shown_by(self, domain: Domain, *, with_query: bool) -> Deployment | None:
        """What somebody who fetches the domain gets, which is not always what the API says."""
        stale = domain.stale is Stale.STUCK or (domain.stale is Stale.CACHED and not with_query)
        wanted = domain.shown if stale and domain.shown else domain.alias
        return self.find(wanted) if wanted else None

    def is_rollback_candidate(self, deployment: Deployment) -> bool:
        return deployment.served and not deployment.deleted and deployment is not self.current

    def deploy(
        self, *, commit: str, ref: str, production: bool, becomes: ReadyState, delay_ms: int, now_ms: int
    ) -> Deployment:
        """A push: builds for `delay_ms`, then is ready and, while domains are assigned by themselves, production."""
        created_ms = max(now_ms, self.deployments[-1].created_ms + 1) if self.deployments else now_ms
        token = secrets.token_hex(14)
        deployment = Deployment(
            id=f"dpl_{token}",
            url=f"{self.project}-{token[:9]}-{self.team}.vercel.app",
            commit=commit,
            ref=ref,
            production=production,
            state=ReadyState.BUILDING,
            becomes=becomes,
            created_ms=created_ms,
            ready_ms=now_ms + delay_ms,
        )
        self.deployments.append(deployment)
        return deployment

    def hold(self, name: str, stale: Stale | None) -> None:
        """Let a domain go on serving what it serves now, whatever its alias says; None lets it follow again.

        Raises RefusedError when there is no such domain.
        """
        domain = next((one for one in self.domains if one.name == name), None)
        if domain is None:
            raise RefusedError(404, f"domain {name} not found, known: {', '.join(one.name for one in self.domains)}")
        domain.stale, domain.shown = stale, domain.alias if stale else None

    def end_job(self, ends: JobStatus, now_ms: int) -> None:
        """End the job that is under way, whatever it was meant to do. Raises RefusedError when there is none."""
        if self.job is None or self.job.status not in (JobStatus.PENDING, JobStatus.IN_PROGRESS):
            raise RefusedError(409, "no job is under way")
        self.job.ends, self.job.due_ms = ends, now_ms
        self._settle_job(now_ms)

    def roll_back(self, deployment_id: str, now_ms: int) -> AliasJob:
        """Ask for production to go back. Raises RefusedError: nothing changed."""
        deployment = self._promotable(deployment_id)
        if not deployment.served:
            raise RefusedError(422, f"{deployment.id} was never in production and is no rollback candidate")
        earlier = [one for one in self.deployments if one.served and one is not self.current]
        if self.plan is Plan.HOBBY and deployment not in earlier[-HOBBY_STEPS_BACK:]:
            raise RefusedError(402, "the Hobby plan goes back to the previous production deployment only")
        return self._start(JobType.ROLLBACK, deployment, now_ms)

    def promote(self, deployment_id: str, now_ms: int) -> AliasJob | None:
        """Ask for a deployment to become production; None: it was built for preview and is built anew instead.

        Raises RefusedError: nothing changed.
        """
        deployment = self._promotable(deployment_id)
        if not deployment.production:
            self.deploy(
                commit=deployment.commit,
                ref=deployment.ref,
                production=True,
                becomes=ReadyState.READY,
                delay_ms=self.job_ms,
                now_ms=now_ms,
            )
            return None
        return self._start(JobType.PROMOTE, deployment, now_ms)

    def settle(self, now_ms: int) -> bool:
        """Bring about what is due by `now_ms`; True when anything changed."""
        changed = False
        for deployment in self.deployments:
            if deployment.state is ReadyState.BUILDING and deployment.ready_ms <= now_ms:
                deployment.state = deployment.becomes
                changed = True
                if deployment.state is ReadyState.READY and deployment.production and self.auto_assign:
                    self._point_at(deployment)
        return self._settle_job(now_ms) or changed

    def _settle_job(self, now_ms: int) -> bool:
        job = self.job
        if job is None or job.status not in (JobStatus.PENDING, JobStatus.IN_PROGRESS):
            return False
        if job.due_ms is None or now_ms < job.due_ms:
            started = job.due_ms is not None and now_ms * 2 >= job.requested_ms + job.due_ms
            status = JobStatus.IN_PROGRESS if started else JobStatus.PENDING
            changed, job.status = job.status is not status, status
            return changed
        job.status = job.ends
        deployment = self.find(job.to)
        if deployment is None:
            return True
        if job.status is JobStatus.SUCCEEDED:
            self._point_at(deployment)
            # A rollback also stops later pushes from going live, until a promote.
            self.auto_assign = job.type is JobType.PROMOTE
        elif job.status is JobStatus.FAILED and self.stays:
            for domain in self.domains:
                domain.alias = domain.alias if domain.name in self.stays else deployment.id
        return True

    def job_status_of(self, domain: Domain) -> str:
        """What the last job did to a domain, in the words of the rollback/aliases call."""
        job = self.job
        if job is None or job.status in (JobStatus.PENDING, JobStatus.IN_PROGRESS):
            return "pending"
        return "completed" if domain.alias == job.to else "failed"

    def _promotable(self, deployment_id: str) -> Deployment:
        deployment = next((one for one in self.deployments if one.id == deployment_id), None)
        if deployment is None:
            raise RefusedError(404, f"deployment {deployment_id} not found")
        if deployment.deleted:
            raise RefusedError(410, f"deployment {deployment_id} was deleted")
        if deployment.state is not ReadyState.READY:
            raise RefusedError(422, f"deployment {deployment_id} is {deployment.state}, not READY")
        if self.job is not None and self.job.status in (JobStatus.PENDING, JobStatus.IN_PROGRESS):
            raise RefusedError(409, f"a {self.job.type} to {self.job.to} is in progress")
        if deployment is self.current:
            raise RefusedError(409, f"deployment {deployment_id} is already in production")
        return deployment

    def _start(self, job_type: JobType, deployment: Deployment, now_ms: int) -> AliasJob:
        ends = self.job_ends.pop(0) if self.job_ends else JobStatus.SUCCEEDED
        self.job = AliasJob(
            type=job_type,
            source=self.current.id if self.current else None,
            to=deployment.id,
            status=JobStatus.PENDING,
            ends=ends,
            requested_ms=now_ms,
            due_ms=None if ends is JobStatus.PENDING else now_ms + self.job_ms,
        )
        return self.job

    def _point_at(self, deployment: Deployment) -> None:
        deployment.served = True
        for domain in self.domains:
            domain.alias = deployment.id

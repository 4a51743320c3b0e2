"""The journal, folded: which releases are known and good, what serves, what is under way. Nothing is stored but
events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, assert_never

from lastgood.core.answering import Answering
from lastgood.core.plan import Plan, Purpose, Role
from lastgood.core.quarantine import QuarantineDecision
from lastgood.core.reading import Bucket
from lastgood.core.record import (
    AbortAsked,
    ApprovalDenied,
    ApprovalGiven,
    BaselineTaken,
    BucketSeen,
    DatabaseReleased,
    DeploymentEnded,
    DeploymentStarted,
    Event,
    Frozen,
    QuarantineDecided,
    Record,
    ReleaseCompleted,
    ReleaseJudged,
    ReleaseLetGo,
    ReleaseRecorded,
    RepairBegun,
    RepairSeen,
    RestorePointKept,
    RunEnded,
    RunStarted,
    StepFailed,
    StepSeen,
    StepStarted,
    Told,
    Unfrozen,
    WatchStarted,
)
from lastgood.core.release import Deployment, Release, RestorePoint, Standing
from lastgood.core.repair import RepairState
from lastgood.core.report import TerminalState
from lastgood.core.run import began_serving_change


@dataclass(slots=True)
class ReleaseHistory:
    """A release with what was learnt of it. judged_by: who made it good or barred, and why. says: the names by which
    its health addresses called it while it served. let_go: why it is not kept any more, empty while it is."""

    release: Release
    standing: Standing = Standing.RECORDED
    judged_by: str = ""
    fingerprint: str = ""
    frontend: str = ""
    says: tuple[str, ...] = ()
    let_go: str = ""

    @property
    def is_way_back(self) -> bool:
        """Good, and still kept."""
        return self.standing is Standing.GOOD and not self.let_go

    @property
    def names(self) -> frozenset[str]:
        """What it may call itself: what it said when it served, or else its own name."""
        return frozenset(self.says or (self.release.id,))


@dataclass(slots=True)
class RunHistory:
    """A run: how it began, its own records oldest first, how it ended (None: it did not, or its process died)."""

    started: RunStarted
    record: Record
    records: list[Record] = field(default_factory=list[Record])
    ended: RunEnded | None = None
    told: list[Told] = field(default_factory=list[Told])

    @property
    def plan(self) -> Plan:
        """The plan that was stored when the run began."""
        return self.started.plan

    @property
    def is_at_its_gate(self) -> bool:
        """A deploy that changed nothing that serves so far: only a rollback goes on from there, if its process died."""
        return self.plan.purpose is Purpose.DEPLOY and not began_serving_change(self.plan, self.records)


@dataclass(slots=True)
class DeploymentHistory:
    """A deployment and its watch. runs: its own, and what a person began later to go back from it. baseline and
    buckets: oldest first; after a rollback, buckets are those of the bake, and watched those of the watch before it.
    ended: the newest of its endings. by_others: somebody else's tool had put it there before it was journaled.
    deployed: how many deployments there were when its watch began, or its bake; in the journal's order, since a clock
    may be set back."""

    deployment: Deployment
    by_others: bool = False
    deployed: int = 0
    runs: list[str] = field(default_factory=list[str])
    watch: WatchStarted | None = None
    baseline: tuple[Bucket, ...] = ()
    buckets: list[Bucket] = field(default_factory=list[Bucket])
    watched: list[Bucket] = field(default_factory=list[Bucket])
    ended: DeploymentEnded | None = None


@dataclass(slots=True)
class RepairHistory:
    """A repair of invalid rows, and what became of it."""

    begun: RepairBegun
    record: Record
    state: RepairState = RepairState.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """A message that did not arrive yet. tried_at: the newest of its tries."""

    told: Told
    tries: int
    tried_at: datetime


@dataclass(slots=True)
class History:
    """Everything the journal knows. Built by `fold`; keys are ids, in the order of their first record.

    journal: hash of the first record, which tells one journal from every other. told: (channel, event) that arrived;
    untold: those that did not. quarantine: the newest decision about an entry, by `replay/id`. repairs: all
    that were begun. serving: the release of the newest deployment or rollback that was carried out; answering: which
    release each service answers from while that is not all of it. ended_last: the deployment with the newest ending.
    """

    releases: dict[str, ReleaseHistory] = field(default_factory=dict[str, ReleaseHistory])
    deployments: dict[str, DeploymentHistory] = field(default_factory=dict[str, DeploymentHistory])
    runs: dict[str, RunHistory] = field(default_factory=dict[str, RunHistory])
    restore_points: dict[str, RestorePoint] = field(default_factory=dict[str, RestorePoint])
    serving: str = ""
    answering: Answering = field(default_factory=Answering)
    ended_last: DeploymentHistory | None = None
    frozen: Frozen | None = None
    last_seq: int = 0
    told: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    untold: dict[tuple[str, str], Untold] = field(default_factory=dict[tuple[str, str], Untold])
    journal: str = ""
    quarantine: dict[str, QuarantineDecision] = field(default_factory=dict[str, QuarantineDecision])
    repairs: dict[str, RepairHistory] = field(default_factory=dict[str, RepairHistory])

    @property
    def open_run(self) -> RunHistory | None:
        """The newest run without an end: one is under way, or its process died."""
        return next((run for run in reversed(self.runs.values()) if run.ended is None), None)

    @property
    def open_deployment(self) -> DeploymentHistory | None:
        """The newest deployment, if it did not come to its end yet. One that ended before users could notice any of it
        does not count: it leaves the watch of the one before it alone."""
        return self.open_beneath(None)

    def open_beneath(self, given_up: DeploymentHistory | None) -> DeploymentHistory | None:
        """The open deployment as it will be once `given_up` ended unnoticed."""
        known = (d for d in reversed(self.deployments.values()) if d is not given_up)
        newest = next((d for d in known if d.ended is None or self._was_noticed(d, d.ended)), None)
        return newest if newest and newest.ended is None else None

    @property
    def unserved(self) -> DeploymentHistory | None:
        """The open deployment where nothing that serves was changed for it: its deploy is that far, stopped or died."""
        under = self.open_deployment
        if under is None or under.by_others or under.watch is not None:
            return None
        run = self.deploy_run(under.deployment.id)
        if run is None:  # its process died before it journaled one
            return under
        finished = run.ended is not None and not run.ended.stopped
        return None if finished or began_serving_change(run.plan, run.records) else under

    def _was_noticed(self, deployment: DeploymentHistory, ended: DeploymentEnded) -> bool:
        run = self.deploy_run(deployment.deployment.id)
        noticed = run is None or began_serving_change(run.plan, run.records)
        return noticed and ended.terminal is not TerminalState.REFUSED

    def deploy_run(self, deployment: str) -> RunHistory | None:
        """The run that carries the deployment out; None when somebody else's tool deployed."""
        runs = (self.runs[r] for r in self.deployments[deployment].runs)
        return next((run for run in runs if run.plan.purpose is Purpose.DEPLOY), None)

    def last_good(self, *, before: str) -> ReleaseHistory | None:
        """The newest good release deployed before the one that runs; never `before` itself, never a barred one or one
        that is not kept, never one that was deployed later: a rollback of a rollback would come back to it. Never one
        of another compose project, which an older version noted in the same journal."""
        order = [d.deployment.release for d in self.deployments.values()]
        at = len(order) - 1 - order[::-1].index(before) if before in order else len(order)
        never = {before, *order[at:]}
        ranked = [*reversed(order[:at]), *reversed(self.releases)]
        composed = self.releases[before].release.composed if before in self.releases else None
        project = composed.project if composed else ""
        found = (self.releases[r] for r in ranked if r not in never)
        return next((r for r in found if r.is_way_back and not r.release.is_of_another(project)), None)

    def goes_back_to(self) -> tuple[ReleaseHistory, ...]:
        """Return the good releases to which a rollback would go: from what runs now, and from what is deployed next."""
        under = self.open_deployment
        leaving = under.deployment.release if under else self.serving
        found = (self.last_good(before=leaving), self.releases.get(self.serving))
        return tuple({known.release.id: known for known in found if known and known.is_way_back}.values())

    def restore_point_of(self, deployment: str) -> RestorePoint | None:
        """The proved restore point taken when this deployment began."""
        return self.restore_points.get(self.restore_point_id(deployment))

    def restore_point_id(self, deployment: str) -> str:
        """Name the restore point of a deployment: restore points outlive a journal that is lost, and a new one counts
        its deployments from 1 again."""
        return f"rp-{self.journal[:4]}-{deployment}"


def fold(records: Iterable[Record], history: History | None = None) -> History:
    """Fold records, oldest first, into `history` (changed in place and returned) or into a new one."""
    history = history or History()
    for record in records:
        _take(history, record.event, record)
        history.journal = history.journal or record.hash
        history.last_seq = record.seq
    return history


def _take(history: History, event: Event, record: Record) -> None:
    match event:
        case ReleaseRecorded() | ReleaseCompleted() | ReleaseJudged() | ReleaseLetGo():
            _take_release(history, event)
        case DeploymentStarted() | BaselineTaken() | WatchStarted() | BucketSeen() | DeploymentEnded():
            _take_deployment(history, event)
        case RunStarted():
            history.runs[event.run] = RunHistory(started=event, record=record)
            if event.deployment in history.deployments:
                history.deployments[event.deployment].runs.append(event.run)
        case StepStarted() | StepSeen() | StepFailed() | ApprovalGiven() | ApprovalDenied() | AbortAsked():
            run = history.runs[event.run]
            run.records.append(record)
            serving = history.releases.get(history.serving)
            history.answering.take(run.plan, event, serving.release if serving else None)
        case RunEnded():
            _end_run(history, event)
        case RestorePointKept(restore_point=restore_point):
            history.restore_points[restore_point.id] = restore_point
        case Told():
            _take_told(history, event, record.at)
            if event.run in history.runs:
                history.runs[event.run].told.append(event)
        case Frozen() | Unfrozen():
            history.frozen = event if isinstance(event, Frozen) else None
        case QuarantineDecided(entry=entry, decision=decision):
            history.quarantine[entry] = decision
        case DatabaseReleased():
            pass  # whether it is there is what the server says
        case RepairBegun():
            history.repairs[event.repair] = RepairHistory(begun=event, record=record)
        case RepairSeen():
            history.repairs[event.repair].state = event.state
        case _:
            assert_never(event)


def _take_told(history: History, event: Told, at: datetime) -> None:
    key = (event.channel, event.event)
    if event.delivered:
        history.told.add(key)
        history.untold.pop(key, None)
    elif key not in history.told:
        before = history.untold.get(key)
        history.untold[key] = Untold(told=event, tries=before.tries + 1 if before else 1, tried_at=at)


def _take_release(history: History, event: ReleaseRecorded | ReleaseCompleted | ReleaseJudged | ReleaseLetGo) -> None:
    match event:
        case ReleaseRecorded(release=release):
            known = history.releases.setdefault(release.id, ReleaseHistory(release=release))
            if known.let_go or release == replace(known.release, downs=release.downs):
                known.release, known.let_go = release, ""
        case ReleaseCompleted():
            known = history.releases[event.release]
            known.fingerprint, known.frontend = event.fingerprint, event.frontend or known.frontend
            known.says = event.says or known.says
        case ReleaseJudged():
            known = history.releases[event.release]
            known.standing = Standing.GOOD if event.good else Standing.BARRED
            known.judged_by = f"{event.by}: {event.why}" if event.why else event.by
        case ReleaseLetGo():
            history.releases[event.release].let_go = event.why
        case _:
            assert_never(event)


def _take_deployment(
    history: History, event: DeploymentStarted | BaselineTaken | WatchStarted | BucketSeen | DeploymentEnded
) -> None:
    match event:
        case DeploymentStarted(deployment=deployment):
            history.deployments[deployment.id] = DeploymentHistory(deployment=deployment, by_others=event.serving)
            if event.serving:
                history.serving = deployment.release
                history.answering = Answering()
        case BaselineTaken():
            history.deployments[event.deployment].baseline = event.buckets
        case WatchStarted():
            under = history.deployments[event.deployment]
            if not (under.watch and under.watch.bake):
                under.watched = under.buckets if event.bake else []
            under.watch, under.buckets, under.deployed = event, [], len(history.deployments)
        case BucketSeen():
            history.deployments[event.deployment].buckets.append(event.bucket)
        case DeploymentEnded():
            _end_deployment(history, history.deployments[event.deployment], event)
        case _:
            assert_never(event)


def _end_deployment(history: History, deployment: DeploymentHistory, ended: DeploymentEnded) -> None:
    deployment.ended, history.ended_last = ended, deployment


def _end_run(history: History, event: RunEnded) -> None:
    """A run with a terminal state ends its deployment too. A release that a rollback put out of production is barred,
    also where the rollback was stopped after that."""
    run = history.runs[event.run]
    run.ended = event
    history.serving = event.serving
    history.answering.end(run.plan, event)
    if event.terminal is None:
        return
    deployment = _concerned(history, run)
    if deployment and event.run not in deployment.runs:
        deployment.runs.append(event.run)
    if deployment and _is_its_end(deployment, run, event.terminal):
        ended = DeploymentEnded(
            deployment=deployment.deployment.id, terminal=event.terminal, sentence=run.started.sentence
        )
        _end_deployment(history, deployment, ended)
    untouched = event.terminal is TerminalState.REFUSED
    went_back = event.serving == run.plan.to_release and Role.CONTAINERS in run.plan.scope and not untouched
    if went_back and run.plan.purpose is Purpose.ROLLBACK and run.plan.from_release != run.plan.to_release:
        left = history.releases.get(run.plan.from_release)
        if left:
            left.standing, left.judged_by = Standing.BARRED, f"rolled back by run {event.run}"


def _concerned(history: History, run: RunHistory) -> DeploymentHistory | None:
    """The deployment that a run is about: the one that it was begun for. A rollback that a person began once that had
    ended names none: then the newest one of the release that it left; and where it put right what served already, that
    may also be the one from which a rollback had come there."""
    if (named := history.deployments.get(run.started.deployment)) is not None:
        return named
    left, back = run.plan.from_release, run.plan.to_release

    def went_there(known: DeploymentHistory) -> bool:
        plans = (history.runs[name].plan for name in known.runs)
        return any(plan.purpose is Purpose.ROLLBACK and plan.to_release == back for plan in plans)

    known = reversed(history.deployments.values())
    return next((d for d in known if d.deployment.release == left or (left == back and went_there(d))), None)


_STANDS: Final = frozenset(
    {
        TerminalState.HEALTHY_KEPT,
        TerminalState.INCONCLUSIVE_KEPT,
        TerminalState.SUPERSEDED,
        TerminalState.ROLLED_BACK_VERIFIED,
    }
)


def _is_its_end(deployment: DeploymentHistory, run: RunHistory, terminal: TerminalState) -> bool:
    """Whether the deployment ends as this run did. An ending from before stands where the run touched nothing that
    serves, and where it only put right what served already."""
    plan = run.plan
    if plan.purpose is Purpose.ROLLBACK and Role.CONTAINERS not in plan.scope:
        return False
    if deployment.ended is None:
        return True
    match terminal:
        case TerminalState.REFUSED | TerminalState.DENIED | TerminalState.ABORTED_BY_HUMAN:
            return began_serving_change(plan, run.records)
        case TerminalState.ROLLED_BACK_VERIFIED:
            return plan.from_release != plan.to_release or deployment.ended.terminal not in _STANDS
        case _:
            return True

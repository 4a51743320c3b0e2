"""Plans: ordered intentions, and for each step how the facts show that it is done.

A plan is computed, shown, hashed and stored; the run carries out that object and nothing else. A deploy and a
rollback are both plans: a rollback is forward motion to an earlier release. How plans are made is in
`core.deploying` and `core.returning`; how they are carried out, one record at a time, in `core.run`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, assert_never

from pydantic import TypeAdapter

from lastgood.core.facts import ContainerFacts, DatabaseFacts, Facts, FrontendFacts, InstanceFacts
from lastgood.core.migration import Outlook, Rung, SchemaChange, WritesSince
from lastgood.core.release import LATER, Down, Release, RestorePoint, ServiceRecord

HELD_AT_MOST_S: Final = 60.0
"""For how long new requests are made to wait for a database that is exchanged, whatever becomes of the run."""
ANSWERED_WITHIN_S: Final = 5.0
"""How long those that are being answered then may take to end."""
CLONE_SHARE: Final = 1.2
"""A clone is as large as the database, a dump at most about as large, and a fifth is left over."""


class Role(StrEnum):
    """Which hand carries a step out."""

    CONTAINERS = "containers"
    DATABASE = "database"
    FRONTEND = "frontend"


class Purpose(StrEnum):
    """Why a plan was made."""

    DEPLOY = "deploy"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGate:
    """Start each service's candidate from `artifacts` beside what serves and wait until it is healthy. Traffic does
    not move.

    artifacts: (service, artifact) pairs. standby: another release that stands beside and stays there, empty for none.
    """

    release: str
    artifacts: tuple[tuple[str, str], ...]
    standby: Annotated[str, LATER] = ""
    kind: Literal["pass_gate"] = "pass_gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """Make one service serve from `artifact` of `release`; the instance that served is stopped, not deleted, where
    the engine allows.

    config_hash: of the resolved configuration it must run with, empty when the release does not know it.
    """

    release: str
    service: str
    artifact: str
    config_hash: str = ""
    kind: Literal["serve"] = "serve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Move the traffic of several services at once to the healthy instances of `release` beside what serves. What
    served goes on running.

    artifacts: (service, artifact) pairs.
    """

    release: str
    artifacts: tuple[tuple[str, str], ...]
    kind: Literal["switch"] = "switch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearCandidates:
    """End what the gate started and what no longer serves. Never touches a serving or a stateful instance.

    standby: release whose instances stay beside, ready to serve; empty for none.
    """

    standby: Annotated[str, LATER] = ""
    kind: Literal["clear_candidates"] = "clear_candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Let what no longer serves answer its last requests, and stop it. It is kept for who looks for the cause.

    standby: release whose instances stay beside, ready to serve again; empty for none.
    """

    standby: str
    kind: Literal["settle"] = "settle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Stop a service that `release` does not have. Its instances are kept for who looks for the cause, and nothing but
    a person or a later release starts them again. Never touches a stateful one."""

    release: str
    service: str
    kind: Literal["retire"] = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRequests:
    """Let new requests from outside wait, HELD_AT_MOST_S at most, and those that are being answered end. What the
    services ask each other for that is passed on."""

    kind: Literal["hold_requests"] = "hold_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRequests:
    """Pass on the requests that wait, to whoever serves now. Also the compensation of HoldRequests."""

    kind: Literal["pass_requests"] = "pass_requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRestorePoint:
    """Dump the live database, hash the dump, restore it beside the live one, prove it, and keep that clone.

    pause_s: copy it instead, and dump the clone, where that keeps nobody out of it for longer than so many seconds; 0
    to keep nobody out at all.
    """

    restore_point: str
    pause_s: Annotated[float, LATER] = 0.0
    kind: Literal["take_restore_point"] = "take_restore_point"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrate:
    """Run the release's own migration command. migrations: those that must be finished afterwards."""

    release: str
    migrations: tuple[str, ...]
    kind: Literal["migrate"] = "migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveDump:
    """Dump the live database as it is now, bad rows and all, before anything destructive."""

    name: str
    kind: Literal["save_dump"] = "save_dump"


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearseDown:
    """Restore the dump that was just saved beside, and take the migrations down there: the schema must become that of
    the restore point, with every row that it had. The copy is removed. Changes nothing that is live.

    downs: oldest first, as their releases shipped them: what is rehearsed is what is run. migrations: what leaves the
    history. made_for: fingerprint of the schema that they take down, empty for any. manifest: as in RestorePoint.
    """

    rehearsal: str
    dump: str
    downs: tuple[Down, ...]
    migrations: tuple[str, ...]
    made_for: str
    restore_point: str
    manifest: str = ""
    kind: Literal["rehearse_down"] = "rehearse_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateDown:
    """Take the migrations down in the live database: one transaction, in which it is checked as it was in the
    rehearsal. aside: names the files with what the old schema has no place for. The others: as in RehearseDown."""

    aside: str
    downs: tuple[Down, ...]
    migrations: tuple[str, ...]
    made_for: str
    restore_point: str
    manifest: str = ""
    kind: Literal["migrate_down"] = "migrate_down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Refuse connections to the live database, end its sessions, rename it to `kept_as`, and let tools connect to it
    there. Where its clients come through a pooler they are made to wait before that.

    A rename is the only fence that holds against an application which connects as superuser.
    """

    kept_as: str
    kind: Literal["fence"] = "fence"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiftFence:
    """Give a database its name back and let everybody in, also who waits at a pooler. Compensation of Fence before the
    swap; after it, behind another fence, it takes the swap back.

    go_on_from: the database whose sequences it goes on from, empty for none.
    """

    kept_as: str
    go_on_from: Annotated[str, LATER] = ""
    kind: Literal["lift_fence"] = "lift_fence"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportWrites:
    """Write the rows of `kept_as` changed since the restore point to files, and count them. Runs behind the fence.
    manifest: as in RestorePoint."""

    export: str
    restore_point: str
    kept_as: str
    manifest: Annotated[str, LATER] = ""
    kind: Literal["export_writes"] = "export_writes"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreClone:
    """Restore the dump of a restore point beside once more, where its clone is gone or holds more than it did, and
    prove it as it was proved. Changes nothing that is live. manifest: as in RestorePoint."""

    restore_point: str
    clone: str
    manifest: str = ""
    kind: Literal["restore_clone"] = "restore_clone"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchUp:
    """Replay the transactions written since the restore point into its clone while the live database still serves,
    until the little that is left can be replayed behind the fence.

    replay: names the replay of this run; what it could not fit is kept under that name. manifest: as in RestorePoint.
    """

    replay: str
    restore_point: str
    manifest: Annotated[str, LATER] = ""
    kind: Literal["catch_up"] = "catch_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayWrites:
    """Put everything written since the restore point and not yet replayed into the clone, behind the fence. What does
    not fit goes to quarantine.

    by_rows: by comparing the rows of `kept_as` with the clone's; else the transactions that the capture kept, in the
    order of their commits. manifest: as in RestorePoint.
    """

    replay: str
    restore_point: str
    kept_as: str
    by_rows: bool
    manifest: Annotated[str, LATER] = ""
    kind: Literal["replay_writes"] = "replay_writes"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndCapture:
    """Stop keeping the transactions written since the restore points of this database: the server may let go of
    their log. Changes no row."""

    kind: Literal["end_capture"] = "end_capture"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapDatabase:
    """Give the verified clone the live name, and let in who waits at a pooler. `swap` is the key of the ledger row that
    makes it happen once.

    kept_as: what the replaced database is called; the clone's sequences go on where those of it stopped. replay: what
    must have been put into the clone, empty for a clone that must be as it was proved. manifest: as in RestorePoint.
    """

    swap: str
    restore_point: str
    clone: str
    kept_as: str
    replay: Annotated[str, LATER] = ""
    manifest: Annotated[str, LATER] = ""
    kind: Literal["swap_database"] = "swap_database"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnFrontend:
    """Make an earlier frontend deployment serve production again (the host's rollback call)."""

    deployment: str
    kind: Literal["return_frontend"] = "return_frontend"


ContainerAction = PassGate | Serve | Switch | Retire | ClearCandidates | Settle | HoldRequests | PassRequests
DatabaseAction = (
    TakeRestorePoint
    | Migrate
    | SaveDump
    | RehearseDown
    | MigrateDown
    | RestoreClone
    | CatchUp
    | Fence
    | LiftFence
    | ExportWrites
    | ReplayWrites
    | SwapDatabase
    | EndCapture
)
FrontendAction = ReturnFrontend
Action = ContainerAction | DatabaseAction | FrontendAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One intention. name: unique within its plan. deadline_s: for one attempt, seconds.

    explain: what it does, one calm line. loses: what it takes away, empty for nothing.
    needs_approval: a point of no return that only a person may pass.
    """

    name: str
    action: Action
    deadline_s: float
    explain: str
    loses: str = ""
    needs_approval: bool = False
    attempts: int = 3

    @property
    def role(self) -> Role:
        """The hand that carries this step out."""
        match self.action:
            case PassGate() | Serve() | Switch() | Retire() | ClearCandidates() | Settle():
                return Role.CONTAINERS
            case HoldRequests() | PassRequests():
                return Role.CONTAINERS
            case ReturnFrontend():
                return Role.FRONTEND
            case TakeRestorePoint() | Migrate() | SaveDump() | CatchUp() | Fence() | LiftFence():
                return Role.DATABASE
            case RehearseDown() | MigrateDown() | RestoreClone():
                return Role.DATABASE
            case ExportWrites() | ReplayWrites() | SwapDatabase() | EndCapture():
                return Role.DATABASE
            case _:
                assert_never(self.action)

    @property
    def serves(self) -> tuple[tuple[str, str], ...]:
        """(service, artifact) of what it makes serve, empty when it moves no traffic."""
        match self.action:
            case Serve(service=service, artifact=artifact):
                return ((service, artifact),)
            case Switch(artifacts=artifacts):
                return artifacts
            case _:
                return ()

    @property
    def changes_what_serves(self) -> bool:
        """Whether users can notice that this step began: the moment from which a deploy is taken up, not undone."""
        noticed = Serve | Switch | Retire | SwapDatabase | Fence | ReturnFrontend | Migrate | MigrateDown
        return isinstance(self.action, noticed)

    @property
    def only_spares(self) -> bool:
        """Whether the plan comes to its end without it: all that it is for is that no request fails meanwhile."""
        return isinstance(self.action, HoldRequests)


class Seen(StrEnum):
    """What the facts say of a step."""

    DONE = "done"
    NOT_DONE = "not done"
    UNKNOWN = "unknown"


def seen(step: Step, facts: Facts) -> Seen:
    """Say whether `facts` show that the step is done. UNKNOWN when these facts cannot tell: then nothing is
    repeated."""
    match step.action, facts:
        case (
            PassGate() | Serve() | Switch() | Retire() | ClearCandidates() | Settle() | HoldRequests() | PassRequests()
        ) as action, ContainerFacts():
            return _when(_shows(action, facts))
        case (
            TakeRestorePoint()
            | Migrate()
            | SaveDump()
            | RehearseDown()
            | MigrateDown()
            | RestoreClone()
            | CatchUp()
            | Fence()
            | LiftFence()
            | ExportWrites()
            | ReplayWrites()
            | SwapDatabase()
            | EndCapture()
        ) as action, DatabaseFacts():
            return _database_shows(action, facts)
        case ReturnFrontend() as action, FrontendFacts():
            if facts.production != action.deployment:
                return Seen.UNKNOWN if facts.busy else Seen.NOT_DONE
            # A page that does not say which deployment it is contradicts nothing: the host's word is what there is.
            return _when(all(shown in ("", action.deployment) for _, shown in facts.domains))
        case _:
            return Seen.UNKNOWN


def _database_shows(action: DatabaseAction, facts: DatabaseFacts) -> Seen:
    match action:
        case TakeRestorePoint():
            return _when(action.restore_point in facts.restore_points)
        case Migrate():
            if facts.failed_migrations:
                return Seen.UNKNOWN
            return _when(set(action.migrations) <= set(facts.migrations))
        case SaveDump():
            return _when(action.name in facts.dumps)
        case RehearseDown():
            return _when(action.rehearsal in facts.rehearsals)
        case MigrateDown():
            # the history is changed in the transaction of the schema: no ledger could tell it better
            return _when(facts.exists and not set(action.migrations) & set(facts.migrations))
        case Fence():
            return _when(action.kept_as in facts.databases)
        case LiftFence():
            return _when_let_in(facts.exists and action.kept_as not in facts.databases, facts)
        case ExportWrites():
            return _when(action.export in facts.exports)
        case RestoreClone():
            return _when(action.clone in facts.databases and action.restore_point not in facts.filled)
        case CatchUp():
            return _when(action.replay in facts.caught_up)
        case ReplayWrites():
            return _when(action.replay in facts.replays)
        case SwapDatabase():
            return _when_let_in(action.swap in facts.swaps and facts.exists, facts)
        case EndCapture():
            return _when(not facts.captures and not facts.capture_left)
        case _:
            assert_never(action)


def _when(done: bool) -> Seen:
    return Seen.DONE if done else Seen.NOT_DONE


def _when_let_in(done: bool, facts: DatabaseFacts) -> Seen:
    """Who waits at a pooler is let in only then."""
    if done and facts.paused is None:
        return Seen.UNKNOWN
    return _when(done and not facts.paused)


def _shows(action: ContainerAction, facts: ContainerFacts) -> bool:
    match action:
        case PassGate(release=release, artifacts=artifacts):
            return all(_gate_passed(release, *wanted, facts) for wanted in artifacts)
        case Serve(release=release, service=service):
            return _is_whole(release, service, facts) and all(i.serves and runs(action, i) for i in facts.of(service))
        case Switch(release=release, artifacts=artifacts):
            return all(_has_switched(release, *wanted, facts) for wanted in artifacts)
        case Retire(service=service):
            beside = [i for i in facts.candidates if i.service == service]
            return not facts.of(service) and not any(i.running for i in beside)
        case ClearCandidates(standby=standby):
            ready = (i for i in facts.candidates if i.running and i.service in facts.switchable)
            stays = {*facts.strays, *(i for i in ready if _may_stay(i, standby, facts))}
            return set(facts.candidates) <= stays and not facts.unwritten
        case Settle(standby=standby):
            return all(_may_stay(i, standby, facts) for i in facts.candidates) and not facts.unwritten
        case HoldRequests():
            return facts.holding
        case PassRequests():
            return not (facts.holding or facts.left_waiting)
        case _:
            assert_never(action)


def _may_stay(instance: InstanceFacts, standby: str, facts: ContainerFacts) -> bool:
    return facts.standby_runs and instance.release == standby != ""


def runs(wanted: Serve | ServiceRecord, instance: InstanceFacts) -> bool:
    """Whether an instance runs the wanted artifact with the wanted configuration, as far as both are known."""
    same_config = not wanted.config_hash or instance.config_hash in ("", wanted.config_hash)
    return instance.artifact == wanted.artifact and same_config


def _gate_passed(release: str, service: str, artifact: str, facts: ContainerFacts) -> bool:
    """What was started for another release from the same artifact, or by somebody else, has another configuration, or
    other code beside it, and proves nothing of this one's. Behind an edge all of them will get requests; without one
    the gate starts one to see whether it boots."""
    there = [i for i in (*facts.candidates, *facts.of(service)) if i.service == service and i.artifact == artifact]
    own = [i for i in there if i.serves and i.release == release]
    return len(own) >= (facts.at_least(release, service) if service in facts.switchable else 1)


def _has_switched(release: str, service: str, artifact: str, facts: ContainerFacts) -> bool:
    well = all(i.serves and i.artifact == artifact and i.release == release for i in facts.of(service))
    return well and _is_whole(release, service, facts)


def _is_whole(release: str, service: str, facts: ContainerFacts) -> bool:
    return len(facts.of(service)) >= facts.at_least(release, service)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDecision:
    """What the plan does with the database, and why: shown before anybody is asked.

    restore_point: its id, empty on D0. carries: rows written since it, per table, that are replayed. loses: rows that
    would leave the live data, where nothing is replayed. lossy_because: why transactions are not replayed one by one.
    leaves_since: from when on everything written leaves the live data, where nobody can count it: an own dump.
    aside: (column or table, values in it) that down migrations take away and that are saved first; None without any.
    With them, restore_point is what the schema is compared with, and nothing goes back to it.
    changes: what is different in the schema since the restore point, the foremost; more: how many others are.
    storage: as in DatabaseEvidence.
    """

    rung: Rung
    reasons: tuple[str, ...]
    restore_point: str = ""
    restore_point_taken_at: datetime | None = None
    loses: WritesSince | None = None
    size_bytes: int = 0
    carries: Annotated[WritesSince | None, LATER] = None
    lossy_because: Annotated[tuple[str, ...], LATER] = ()
    leaves_since: Annotated[datetime | None, LATER] = None
    aside: Annotated[tuple[tuple[str, int], ...] | None, LATER] = None
    changes: Annotated[tuple[SchemaChange, ...], LATER] = ()
    more: Annotated[int, LATER] = 0
    storage: Annotated[str, LATER] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """The pause in which a database is copied: its sessions are ended, and new ones wait.

    most_s: what lastgood.yaml allows, seconds. takes_s: what is to be expected; by: what that is reckoned from.
    dumped_because: why there is none and the database is dumped, empty where it is copied.
    """

    most_s: float
    takes_s: float
    by: str
    dumped_because: str = ""

    @property
    def copies(self) -> bool:
        """Whether the database is copied."""
        return not self.dumped_because

    @property
    def told(self) -> str:
        """What becomes of a database and of its users, in words."""
        if self.dumped_because:
            return f"none, it is dumped: {self.dumped_because}"
        return (
            "it is copied: its sessions are ended, transactions under way with them, and new ones wait for about "
            f"{self.takes_s:.1f} s ({self.by}), {self.most_s:g} s at most"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployCost:
    """What the restore point of a deploy costs beyond the deploy itself: said before it is taken.

    size_bytes: of the database. disk_bytes: what a dump and a clone of it need at most, as `preflight` asks for.
    free: (where, bytes) of each filesystem that they go to, empty where it cannot be seen. log_bytes: of the server's
    log, at most, until the watch is over. takes_s: seconds to be expected; by: what that is reckoned from.
    pause: None where none is allowed.
    """

    size_bytes: int
    disk_bytes: int
    free: tuple[tuple[str, int], ...]
    log_bytes: int
    takes_s: float
    by: str
    pause: Annotated[Pause | None, LATER] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered steps from one release to another. `skipped`: parts with nothing to do and the reason, one line each.

    from_release: what serves now, empty on a first deploy. warnings: what a person should know before saying yes.
    scope: the parts that were asked for; less than all of them is no rollback of the release.
    invalid_rows: what breaks an invariant and stays, one line an invariant.
    found: (service, artifact) of what served of the release's services when it was made; beside: of what stood beside
    them and is of no release; stateful: (service, instance) of what is never touched. outlook: of the migrations that
    it applies, None without any. cost: of a deploy's restore point, None without a database.
    """

    id: str
    purpose: Purpose
    made_at: datetime
    from_release: str
    to_release: str
    steps: tuple[Step, ...]
    rung: str
    reasons: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    invalid_rows: tuple[str, ...] = ()
    database: DatabaseDecision | None = None
    scope: tuple[Role, ...] = tuple(Role)
    found: tuple[tuple[str, str], ...] = ()
    beside: Annotated[tuple[tuple[str, str], ...], LATER] = ()
    stateful: Annotated[tuple[tuple[str, str], ...], LATER] = ()
    outlook: Annotated[Outlook | None, LATER] = None
    cost: Annotated[DeployCost | None, LATER] = None

    @property
    def needs_approval(self) -> bool:
        """Whether some step waits for a person."""
        return any(step.needs_approval for step in self.steps)

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical form: what an approval is bound to."""
        return hashlib.sha256(_PLAN.dump_json(self)).hexdigest()

    def step(self, name: str) -> Step:
        """Return the step of that name. KeyError when the plan has none."""
        return {step.name: step for step in self.steps}[name]


_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


def world_agrees(plan: Plan, facts: Mapping[Role, Facts]) -> tuple[str, ...]:
    """Return what a plan needs and `facts` no longer show, one line each; empty when it can start.

    Only preconditions that the facts can tell: every artifact it starts is held, the clone it swaps in exists, the
    schema that it takes down is the one it was made for, and nobody else put anything in the place of what served when
    it was made.
    """
    missing: list[str] = []
    restored = {step.action.clone for step in plan.steps if isinstance(step.action, RestoreClone)}
    containers, database = facts.get(Role.CONTAINERS), facts.get(Role.DATABASE)
    if isinstance(containers, ContainerFacts):
        missing += put_by_others(plan, containers)
    for step in plan.steps:
        if isinstance(containers, ContainerFacts):
            missing += [
                f"{service}: {artifact[:19]} of {plan.to_release} is not on this host"
                for service, artifact in step.serves
                if artifact not in containers.held
                and not any(i.artifact == artifact and i.serves for i in containers.of(service))
            ]
        match step.action:
            case SwapDatabase() as action if isinstance(database, DatabaseFacts):
                there = database.databases | (
                    restored if action.restore_point in database.restore_points else set[str]()
                )
                if action.swap not in database.swaps and action.clone not in there:
                    missing.append(
                        f"database {action.clone}, the clone of restore point {action.restore_point}, is gone"
                    )
                if action.swap not in database.swaps:
                    missing += filter(None, [other_manifest(action.restore_point, action.manifest, database)])
            case CatchUp() as action if isinstance(database, DatabaseFacts):
                if action.replay not in database.caught_up and action.restore_point not in database.captures:
                    missing.append(f"what was written since {action.restore_point} is no longer captured")
            case MigrateDown() as action if isinstance(database, DatabaseFacts):
                if seen(step, database) is not Seen.DONE:
                    missing += filter(None, [other_manifest(action.restore_point, action.manifest, database)])
                    if action.made_for and database.fingerprint != action.made_for:
                        missing.append("the schema is not the one for which the down migrations were tried")
            case _:
                pass
    return tuple(missing)


def other_manifest(restore_point: str, manifest: str, database: DatabaseFacts) -> str:
    """Say what lies there of a restore point in the place of `manifest`; empty when it is that one, or nobody knows
    which it must be."""
    there = dict(database.manifests).get(restore_point)
    if not manifest or there == manifest:
        return ""
    if there is None:
        return f"what is kept of restore point {restore_point} is gone or damaged: expected manifest {manifest[:12]}"
    told = f"its manifest is {there[:12]}, expected {manifest[:12]}"
    return f"restore point {restore_point} is not the one that was proved: {told}"


def why_restored_first(point: RestorePoint, database: DatabaseFacts) -> str:
    """Say why the clone of a restore point must be restored from its dump before the database can go back to it; empty
    where it stands as it was proved, or with what can be gone on with."""
    if point.clone not in database.databases:
        return f"{point.clone}, the clone of restore point {point.id}, is gone"
    if point.id in database.filled and point.id not in database.captures:
        return (
            f"{point.clone} holds a part of what was written since, and the rest can no longer be replayed one by one"
        )
    return ""


def why_no_way_back(point: RestorePoint, database: DatabaseFacts) -> str:
    """Say why the database could not go back to a restore point now; empty when it could, if need be with its clone
    restored first. An own dump's is not."""
    first = why_restored_first(point, database)
    if first and (point.own or point.id not in database.restore_points):
        return first
    if point.id in database.foreign:
        return f"restore point {point.id} is of a database that was replaced since"
    return other_manifest(point.id, point.manifest, database)


def strangers(release: Release, containers: ContainerFacts) -> tuple[str, ...]:
    """Return what runs in the place of a service of `release` and is not of it, one line each. What is down is nobody's
    doing."""
    wanted = {service.name: service.artifact for service in release.services}
    return tuple(
        f"{i.service}: {i.artifact[:19]} serves, which is not of {release.id}"
        for i in containers.serving
        if i.running and i.artifact != wanted.get(i.service, i.artifact)
    )


def put_by_others(plan: Plan, containers: ContainerFacts) -> tuple[str, ...]:
    """Return what serves and was neither found nor put there by the plan, one line each. A service that was down then
    may have come back."""
    found = set(plan.found)
    known = found | {served for step in plan.steps for served in step.serves}
    return tuple(
        f"{i.service}: {i.artifact[:19]} serves, which was not there when the plan was made"
        for i in containers.serving
        if i.running and (i.service, i.artifact) not in known and any(service == i.service for service, _ in found)
    )


def started_beside(plan: Plan, containers: ContainerFacts) -> tuple[str, ...]:
    """Return what somebody started beside an edge since the plan was made, one line each. It gets no requests from
    outside, and would be stopped at the end."""
    known = {*plan.found, *plan.beside}
    return tuple(
        f"{i.service}: {i.artifact[:19]} runs beside, which was not there when the plan was made"
        for i in containers.strays
        if i.running and (i.service, i.artifact) not in known
    )

"""The lines of the journal: what happened, in the order in which it happened.

Every event is an immutable value; the journal stores its canonical JSON and chains the hashes. State is never stored:
`core.history` folds these events. New fields get defaults, so that a journal written by an older version is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from lastgood.core.plan import Plan, Seen
from lastgood.core.quarantine import QuarantineDecision
from lastgood.core.reading import Bucket
from lastgood.core.release import LATER, Deployment, Release, RestorePoint
from lastgood.core.repair import RepairPlan, RepairState
from lastgood.core.report import Report, TerminalState


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRecorded:
    """A release became known."""

    release: Release
    kind: Literal["release_recorded"] = "release_recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseCompleted:
    """What was learnt once the release served: the schema it left, the frontend deployment that belongs to it (empty:
    unchanged or none), the names by which its health addresses called it."""

    release: str
    fingerprint: str = ""
    frontend: str = ""
    says: tuple[str, ...] = ()
    kind: Literal["release_completed"] = "release_completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseJudged:
    """A release became good (its watch ended Healthy, or a person vouches) or barred (it was rolled back)."""

    release: str
    good: bool
    by: str
    why: str = ""
    kind: Literal["release_judged"] = "release_judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLetGo:
    """A release is not kept any more, and from now on no target: its tags and files are removed after this. It is kept
    again when it is recorded again."""

    release: str
    why: str
    kind: Literal["release_let_go"] = "release_let_go"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStarted:
    """A release is being put into production. serving: somebody else's tool did it already; there is no run for it."""

    deployment: Deployment
    serving: bool = False
    kind: Literal["deployment_started"] = "deployment_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTaken:
    """Readings before the first effect, oldest first; violations that stood already and failing triggers are not
    blamed on the release."""

    deployment: str
    buckets: tuple[Bucket, ...]
    kind: Literal["baseline_taken"] = "baseline_taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStarted:
    """The watch window of a deployment began. The hour is counted from `at`, not from a process.

    bake: the window after a rollback, whose failure opens a linked incident instead of another rollback.
    """

    deployment: str
    at: datetime
    window_s: float
    bake: bool = False
    kind: Literal["watch_started"] = "watch_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSeen:
    """All readings of one interval of a watch."""

    deployment: str
    bucket: Bucket
    kind: Literal["bucket_seen"] = "bucket_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentEnded:
    """The incident that every deployment is came to its one end."""

    deployment: str
    terminal: TerminalState
    sentence: str
    kind: Literal["deployment_ended"] = "deployment_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePointKept:
    """A restore point was taken and proved."""

    restore_point: RestorePoint
    kind: Literal["restore_point_kept"] = "restore_point_kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A plan began to be carried out. trigger: what asked for it: a trigger's name, or `person`. sentence: why, one
    sentence; proof: how sure that is. asks_itself: whether the plan waits for a person only because nobody had asked
    for it: who asks for the same need not be asked."""

    run: str
    plan: Plan
    trigger: str
    sentence: str
    by: str
    deployment: str = ""
    decided_at: datetime | None = None
    proof: str = ""
    asks_itself: Annotated[bool, LATER] = False
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """The intent, durable before the target is touched. attempt: from 1."""

    run: str
    step: str
    attempt: int
    kind: Literal["step_started"] = "step_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeen:
    """What the target showed of the step when it was looked at. elapsed_s: since the attempt began.

    applied: this process had just applied it; False when a step left by a process that died is looked at.
    """

    run: str
    step: str
    seen: Seen
    elapsed_s: float = 0.0
    note: str = ""
    applied: bool = False
    kind: Literal["step_seen"] = "step_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """The target said no, and that nothing changed by this attempt. again: worth another attempt, after delay_s.

    needs_human: it said that a person must look, and something may have changed.
    """

    run: str
    step: str
    reason: str
    again: bool
    delay_s: float = 0.0
    hint: str = ""
    needs_human: bool = False
    kind: Literal["step_failed"] = "step_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalGiven:
    """A person approved the plan with this hash. Valid for ten minutes from its record, for one run."""

    run: str
    plan_hash: str
    by: str
    why: Annotated[str, LATER] = ""
    kind: Literal["approval_given"] = "approval_given"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDenied:
    """A person said no."""

    run: str
    by: str
    why: str = ""
    kind: Literal["approval_denied"] = "approval_denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortAsked:
    """A person wants the run to stop before its next effect."""

    run: str
    by: str
    why: str = ""
    kind: Literal["abort_asked"] = "abort_asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run is over. terminal: None for a deploy whose ending the watch or a rollback decides. serving: what serves
    now.

    stopped: why a deploy's plan was not carried out to its end, empty when it was.
    """

    run: str
    terminal: TerminalState | None
    serving: str
    report: Report | None = None
    stopped: str = ""
    kind: Literal["run_ended"] = "run_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Deploys are refused until a person lifts it."""

    by: str
    why: str
    kind: Literal["frozen"] = "frozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseReleased:
    """A person let a kept database go: it is dropped after this line."""

    database: str
    by: str
    kind: Literal["database_released"] = "database_released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfrozen:
    """Deploys are allowed again."""

    by: str
    why: str
    kind: Literal["unfrozen"] = "unfrozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineDecided:
    """What a person decided about an entry of the quarantine, or what looking showed. entry: `replay/id`."""

    entry: str
    decision: QuarantineDecision
    kind: Literal["quarantine_decided"] = "quarantine_decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairBegun:
    """Invalid rows were about to be put right, by a transaction of that xid. The plan has the values that were there
    before."""

    repair: str
    plan: RepairPlan
    xid: int
    by: str
    kind: Literal["repair_begun"] = "repair_begun"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSeen:
    """What became of a repair."""

    repair: str
    state: RepairState
    kind: Literal["repair_seen"] = "repair_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A message was sent, or could not be. A failure never stops a rollback; it stands in the report.

    event: what it tells of, told once to each channel. again: it certainly did not arrive, and is worth another try.
    """

    run: str
    channel: str
    text: str
    delivered: bool
    error: str = ""
    event: str = ""
    again: bool = False
    kind: Literal["told"] = "told"


Event = (
    ReleaseRecorded
    | ReleaseCompleted
    | ReleaseJudged
    | ReleaseLetGo
    | DeploymentStarted
    | BaselineTaken
    | WatchStarted
    | BucketSeen
    | DeploymentEnded
    | RestorePointKept
    | RunStarted
    | StepStarted
    | StepSeen
    | StepFailed
    | ApprovalGiven
    | ApprovalDenied
    | AbortAsked
    | RunEnded
    | Frozen
    | Unfrozen
    | DatabaseReleased
    | QuarantineDecided
    | RepairBegun
    | RepairSeen
    | Told
)

EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
"""Canonical JSON of events: `EVENT.dump_json(event)` and `EVENT.validate_json(text)` are each other's inverse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One journal line. seq: from 1, without gaps. at: aware UTC. hash: over (previous hash, seq, at, event)."""

    seq: int
    at: datetime
    event: Event
    hash: str

"""The plan of a rollback: what goes back, in which order, on which rung, and what it would lose.

If the last good release can run on today's schema, containers and frontend go back first and at once. If it cannot,
containers alone would make things worse: the database goes first, and the whole plan waits for a person. If nobody can
tell, a person is asked before anything serves from the old release. Where it can run, the database goes back only for
rows that the migration itself broke, and what cannot be had for that never holds up the containers.

A down migration comes before a swap wherever one was tried and gives the old schema back: every row stays where it is.
It mends no row, so it is none where the migration itself broke some.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from lastgood.core.deploying import (
    beside,
    changed_services,
    clear_step,
    found,
    gate_step,
    leaving,
    left_alone,
    serve_steps,
    settle_step,
)
from lastgood.core.errors import Refused
from lastgood.core.facts import ContainerFacts, DatabaseFacts, FrontendFacts
from lastgood.core.migration import Blame, DatabaseEvidence, Fit, MigrationVerdict, Rung, foremost, judge_migration
from lastgood.core.plan import (
    HELD_AT_MOST_S,
    CatchUp,
    ClearCandidates,
    DatabaseDecision,
    EndCapture,
    ExportWrites,
    Fence,
    HoldRequests,
    LiftFence,
    MigrateDown,
    PassGate,
    PassRequests,
    Plan,
    Purpose,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    ReturnFrontend,
    Role,
    SaveDump,
    Step,
    SwapDatabase,
    Switch,
    why_no_way_back,
    why_restored_first,
)
from lastgood.core.release import Release, RestorePoint

_DOES_NOT_FIT: Final = "what does not fit the old schema, in quarantine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds for one attempt of a step, from the configuration."""

    boot_s: float = 60.0
    drain_s: float = 0.0
    frontend_s: float = 60.0
    database_s: float = 3600.0
    fence_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a rollback plan is made from, all observed just now. None: that part is not configured.

    restore_point: the proved one from before the deployment. fingerprint: of the schema that the target release left,
    empty when it is not known; so is frontend_target, its deployment.
    own_dump: an operator's, for where that restore point is no way back. recoverable: the restore point whose place in
    the log pgBackRest could bring back, for where there is no such dump either; empty without. unusable: why nothing
    was compared with that restore point, empty where it was.
    frontend_unseen, database_unseen: why a configured one could not be looked at. migrated: whether the release that is
    left brought migrations. untouched: whether the target serves all the while, because the release that is left never
    came to serve. standby: where it does, the release that stands ready beside it. rung: what the container target says
    of itself.
    """

    containers: ContainerFacts
    rung: str
    database: DatabaseFacts | None = None
    evidence: DatabaseEvidence | None = None
    restore_point: RestorePoint | None = None
    own_dump: RestorePoint | None = None
    recoverable: str = ""
    unusable: str = ""
    fingerprint: str = ""
    frontend: FrontendFacts | None = None
    frontend_target: str = ""
    frontend_unseen: str = ""
    database_unseen: str = ""
    migrated: bool = False
    untouched: bool = False
    standby: str = ""


@dataclass(slots=True)
class _Draft:
    before: list[Step] = field(default_factory=list[Step])
    after: list[Step] = field(default_factory=list[Step])
    decision: DatabaseDecision | None = None
    serve_needs_approval: bool = False
    reasons: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    invalid_rows: list[str] = field(default_factory=list[str])


def make_plan(
    target: Release,
    world: World,
    *,
    plan_id: str,
    now: datetime,
    serving: str,
    deadlines: Deadlines,
    only: frozenset[Role] = frozenset(Role),
) -> Plan:
    """Plan the way back to `target`. serving: the release that serves now.

    Raises Refused, nothing changed, when the database would have to go back and cannot, or when `only` would leave the
    last good release on a schema that it cannot run on.
    """
    if Role.CONTAINERS not in only:  # what is in front of them is not touched either
        world = replace(world, containers=replace(world.containers, can_hold=False))
    draft = _Draft()
    _decide_database(draft, target, world, plan_id=plan_id, deadlines=deadlines, only=only)
    gate, serve = _containers(draft, target, world, only=only, deadlines=deadlines)
    if any(isinstance(step.action, HoldRequests) for step in draft.before):
        # the release that is left cannot run on the old schema: whoever waits is answered by the one that goes back
        moved = max((at for at, step in enumerate(serve, start=1) if step.serves), default=0)
        serve = [*serve[:moved], _pass_requests(deadlines), *serve[moved:]]
    # a candidate of a release that cannot run on today's schema would only show that, or change the schema itself
    steps = (*draft.before, *gate, *serve, *_frontend(draft, world, only=only, deadlines=deadlines), *draft.after)
    return Plan(
        id=plan_id,
        purpose=Purpose.ROLLBACK,
        made_at=now,
        from_release=serving,
        to_release=target.id,
        steps=steps,
        rung=world.rung,
        reasons=tuple(draft.reasons),
        skipped=tuple(draft.skipped),
        warnings=tuple(draft.warnings),
        invalid_rows=tuple(draft.invalid_rows),
        database=_with_changes(draft.decision, world.evidence),
        scope=tuple(role for role in Role if role in only),
        found=found(target, world.containers),
        beside=beside(world.containers),
        stateful=tuple((i.service, i.instance) for i in world.containers.stateful),
    )


def _with_changes(decision: DatabaseDecision | None, evidence: DatabaseEvidence | None) -> DatabaseDecision | None:
    """What is different in the schema, and how the storage was looked at, whatever is done about it."""
    if decision is None or evidence is None:
        return decision
    changes, more = foremost(evidence.changes)
    return replace(decision, changes=changes, more=more, storage=evidence.storage)


def _containers(
    draft: _Draft, target: Release, world: World, *, only: frozenset[Role], deadlines: Deadlines
) -> tuple[list[Step], list[Step]]:
    """The gate, which moves no traffic, and the steps that do."""
    if Role.CONTAINERS not in only:
        draft.skipped.append("containers: not asked for")
        return [], []
    draft.warnings += left_alone(target, world.containers)
    changed = changed_services(target, world.containers, untouched=world.untouched)
    if not changed and not leaving(target, world.containers):
        draft.skipped.append(f"containers: every service already runs {target.id}")
        clear = clear_step(boot_s=deadlines.boot_s, standby=world.standby)
        left = world.containers.candidates or world.containers.unwritten
        return [], [clear] if left else []
    return (
        gate_step(target, changed, world.containers, boot_s=deadlines.boot_s, attempts=2),
        serve_steps(
            target,
            changed,
            world.containers,
            boot_s=deadlines.boot_s,
            drain_s=deadlines.drain_s,
            needs_approval=draft.serve_needs_approval,
        ),
    )


def _frontend(draft: _Draft, world: World, *, only: frozenset[Role], deadlines: Deadlines) -> list[Step]:
    if Role.FRONTEND not in only:
        draft.skipped.append("frontend: not asked for")
    elif world.frontend is None and not world.frontend_unseen:
        draft.skipped.append("frontend: none configured")
    elif not world.frontend_target:
        draft.skipped.append("frontend: the last good release recorded no frontend deployment")
    elif world.frontend is not None and world.frontend.production == world.frontend_target:
        draft.skipped.append(f"frontend: {world.frontend_target} is production already")
    else:
        if world.frontend_unseen:
            draft.warnings.append(f"frontend: could not be looked at ({world.frontend_unseen}); its step looks first")
        draft.warnings.append(
            "frontend: after this, pushes do not go live by themselves until `lastgood unfreeze`; "
            "environment variables stay those of the older build"
        )
        return [
            Step(
                name="return-frontend",
                action=ReturnFrontend(deployment=world.frontend_target),
                deadline_s=deadlines.frontend_s,
                explain=f"{world.frontend_target} is production again",
            )
        ]
    return []


def _decide_database(
    draft: _Draft, target: Release, world: World, *, plan_id: str, deadlines: Deadlines, only: frozenset[Role]
) -> None:
    """Fill the draft's database steps: before the containers when the old release cannot run without them, else
    after."""
    evidence = world.evidence
    if world.database_unseen:
        draft.skipped.append(f"database: could not be looked at ({world.database_unseen})")
        if world.migrated:
            _ask(draft, f"{target.id} may not run on the schema, and nobody can look: a person decides", only=only)
        return
    if world.database is None:
        draft.skipped.append("database: none configured")
        return
    if evidence is None:
        _without_evidence(draft, target, world.database, world.fingerprint, only=only)
        return
    verdict = judge_migration(evidence)
    draft.reasons += verdict.reasons
    fit, what = evidence.old_release, "schema" if evidence.changes else "history of the migrations"
    if not evidence.changes and fit.fit is Fit.YES:
        _leave(draft, evidence, verdict.reasons, "no step, the schema did not change")
    elif fit.fit is Fit.NO and only & {Role.CONTAINERS, Role.DATABASE}:
        _swap_first(draft, target, world, evidence, verdict, plan_id=plan_id, deadlines=deadlines, only=only)
    elif fit.fit is Fit.NO:
        _leave(draft, evidence, (fit.reason,), "not asked for")
    elif fit.fit is Fit.UNKNOWN:
        _ask(
            draft,
            f"the {what} changed and it is not known whether {target.id} runs on it ({fit.reason}): a person decides",
            only=only,
        )
        _leave(draft, evidence, (fit.reason,), "")
    elif verdict.blame is not Blame.MIGRATION or not any(broken.by_migration for broken in evidence.broken):
        _leave(draft, evidence, (fit.reason,), f"no step, {target.id} runs on this schema ({fit.reason})")
    elif Role.DATABASE not in only:
        _leave(draft, evidence, (fit.reason,), "not asked for; the rows that the migration broke stay")
    elif isinstance(point := _way_back(world), str):
        _leave(draft, evidence, (fit.reason,), f"no step, {point}; the rows that the migration broke stay")
    else:
        _check_what_will_serve(target, world, only=only)
        draft.decision, draft.after = _swap(
            point, world, evidence, verdict.reasons, plan_id=plan_id, deadlines=deadlines
        )
        if world.containers.can_hold:
            draft.after.append(_pass_requests(deadlines))


def _leave(draft: _Draft, evidence: DatabaseEvidence, reasons: tuple[str, ...], said: str) -> None:
    """The schema stays, and with it every row."""
    draft.decision = DatabaseDecision(rung=Rung.D0, reasons=reasons, size_bytes=evidence.size_bytes)
    if said:
        draft.skipped.append(f"database: {said}")
    _name_invalid_rows(draft, evidence)


def _name_invalid_rows(draft: _Draft, evidence: DatabaseEvidence) -> None:
    """What breaks an invariant stays where every row does: so many by now, and the release that may write more of them
    serves still."""
    for broken in evidence.broken:
        keys = ", ".join(broken.keys[:5])
        rows = "1 row breaks" if broken.rows == 1 else f"{broken.rows} rows break"
        draft.invalid_rows.append(f"at least {rows} {broken.invariant}: {keys}")


def _ask(draft: _Draft, why: str, *, only: frozenset[Role]) -> None:
    """Nothing serves from the old release before a person said yes."""
    if Role.CONTAINERS in only:
        draft.serve_needs_approval = True
        draft.warnings.append(why)


def _without_evidence(
    draft: _Draft, target: Release, database: DatabaseFacts, fingerprint: str, *, only: frozenset[Role]
) -> None:
    """There is no restore point to compare with. The schema that the target left may be known all the same."""
    if not fingerprint or not database.fingerprint:
        unsure = f"it is not known whether the schema is the one that {target.id} left"
    elif database.fingerprint != fingerprint:
        unsure = f"the schema is not the one that {target.id} left"
    else:
        draft.skipped.append(f"database: no step, the schema is the one that {target.id} left")
        return
    _ask(draft, f"{unsure}, and there is no restore point to compare it with: a person decides", only=only)


def _swap_first(
    draft: _Draft,
    target: Release,
    world: World,
    evidence: DatabaseEvidence,
    verdict: MigrationVerdict,
    *,
    plan_id: str,
    deadlines: Deadlines,
    only: frozenset[Role],
) -> None:
    fit = evidence.old_release
    if verdict.blame is Blame.STORAGE:
        raise Refused(
            f"{target.id} cannot run on today's schema, and the storage reports faults: {'; '.join(verdict.reasons)}",
            hint="look at the disk before anything is restored",
        )
    if Role.DATABASE not in only:
        raise Refused(
            f"{target.id} cannot run on today's schema ({fit.reason}): containers alone would make things worse",
            hint="lastgood rollback",
        )
    _check_what_will_serve(target, world, only=only)
    point, reasons = _way_back(world), (*verdict.reasons, fit.reason)
    down = _down(world, evidence, reasons, plan_id=plan_id, deadlines=deadlines)
    if isinstance(point, str) and world.own_dump is None and down is None:
        raise Refused(
            f"the database would have to go back, and {point}",
            hint=recover_by_hand(world.recoverable) or "lastgood restore-points add FILE",
        )
    draft.reasons.append(f"{target.id} cannot run on today's schema: {fit.reason}")
    if verdict.blame is not Blame.MIGRATION:
        draft.warnings.append(f"the migration is not proved to be the cause ({verdict.blame.value})")
    if down is not None:
        draft.decision, draft.before = down
        _name_invalid_rows(draft, evidence)
        return
    if evidence.way_down:
        broke = "" if not evidence.way_down.downs else "the migration itself broke rows, which none would mend"
        draft.reasons.append(f"no down migration: {broke or evidence.way_down.reason}")
    if not isinstance(point, str):
        draft.decision, draft.before = _swap(point, world, evidence, reasons, plan_id=plan_id, deadlines=deadlines)
    elif own := world.own_dump:
        which = f"what pgBackRest recovered, {own.id}" if own.log else f"an own dump, {own.id}"
        draft.warnings.append(f"{point}: the database goes back to {which}")
        if not world.fingerprint:
            draft.warnings.append(f"it is not known whether the schema of {own.id} is the one that {target.id} left")
        draft.decision, draft.before = _swap_to_own(own, world, evidence, reasons, plan_id=plan_id, deadlines=deadlines)


def _check_what_will_serve(target: Release, world: World, *, only: frozenset[Role]) -> None:
    """Raise Refused where the old schema would come back under a release that was not made for it."""
    others = changed_services(target, world.containers) or leaving(target, world.containers)
    if Role.CONTAINERS not in only and others:
        raise Refused(
            f"the schema of {target.id} under another release would make things worse", hint="lastgood rollback"
        )


def own_dump_for(
    fingerprint: str, known: Iterable[RestorePoint], database: DatabaseFacts, *, before: datetime | None
) -> RestorePoint | None:
    """Return the newest of an operator's own dumps with that schema to which the database could go back now.

    fingerprint: that the target release left. Where it is not known, the dump must be older than `before`, until when
    the deployment that is undone had changed nothing.
    """
    fit = (
        point
        for point in known
        if point.own
        and point.proved_at is not None
        and not why_no_way_back(point, database)
        and (point.fingerprint == fingerprint if fingerprint else before is None or point.taken_at <= before)
    )
    return max(fit, key=lambda point: point.taken_at, default=None)


def _way_back(world: World) -> RestorePoint | str:
    """The restore point that the database could go back to now, or why it could not."""
    point = world.restore_point
    if world.unusable:
        return world.unusable
    if point is None or point.proved_at is None:
        return "there is no proved restore point from before the deployment"
    if world.database is None:
        return "no database is configured"
    return why_no_way_back(point, world.database) or point


def _swap_to_own(
    own: RestorePoint,
    world: World,
    evidence: DatabaseEvidence,
    reasons: tuple[str, ...],
    *,
    plan_id: str,
    deadlines: Deadlines,
) -> tuple[DatabaseDecision, list[Step]]:
    """The swap to an own dump: safety dump, then a person, fence, swap.

    Without the dump's snapshot nobody can tell what was written since from what was there before, so nothing is
    replayed, counted or exported: all of it leaves the live data, and stays in the replaced database, which is kept.
    """
    name = evidence.database
    kept_as, since = f"{name}_bad_{plan_id}", f"{own.taken_at:%Y-%m-%d %H:%M:%S} UTC"
    decision = DatabaseDecision(
        rung=Rung.D5 if own.log else Rung.D4,
        reasons=reasons,
        restore_point=own.id,
        restore_point_taken_at=own.taken_at,
        size_bytes=evidence.size_bytes,
        leaves_since=own.taken_at,
    )
    swap = Step(
        name="swap-database",
        action=SwapDatabase(
            swap=f"swap-{plan_id}",
            restore_point=own.id,
            clone=own.clone,
            kept_as=kept_as,
            manifest=own.manifest,
        ),
        deadline_s=deadlines.database_s,
        explain=f"{own.clone}, verified, becomes {name}; {kept_as} is kept",
        loses=f"everything written since {since}; it stays in {kept_as}",
        needs_approval=True,
    )
    return decision, [_save_dump(name, plan_id, deadlines), *_fence(world, name, kept_as, deadlines), swap]


def _down(
    world: World, evidence: DatabaseEvidence, reasons: tuple[str, ...], *, plan_id: str, deadlines: Deadlines
) -> tuple[DatabaseDecision, list[Step]] | None:
    """The down migrations: safety dump, rehearsal on that dump, then a person, then one transaction. None where they do
    not give the old schema back, or would leave what is broken as it is.

    The release that is left cannot run on the old schema, so requests wait as they do for a swap.
    """
    way, point, database = evidence.way_down, world.restore_point, world.database
    if way is None or not way.downs or point is None or database is None or world.unusable:
        return None
    if any(broken.by_migration for broken in evidence.broken):
        return None
    name, dump, aside = evidence.database, _save_dump(evidence.database, plan_id, deadlines), f"down-{plan_id}"
    decision = DatabaseDecision(
        rung=Rung.D2,
        reasons=(*reasons, way.reason, "every row stays where it is, and nothing that was written is lost"),
        restore_point=point.id,
        restore_point_taken_at=point.taken_at,
        size_bytes=evidence.size_bytes,
        aside=way.aside,
    )
    which = ", ".join(way.migrations)
    rehearse = Step(
        name="rehearse-down",
        action=RehearseDown(
            rehearsal=aside,
            dump=f"{name}-{plan_id}",
            downs=way.downs,
            migrations=way.migrations,
            made_for=database.fingerprint,
            restore_point=point.id,
            manifest=point.manifest,
        ),
        deadline_s=deadlines.database_s,
        explain=f"take {which} down in a copy of that dump, and compare",
    )
    down = Step(
        name="migrate-down",
        action=MigrateDown(
            aside=aside,
            downs=way.downs,
            migrations=way.migrations,
            made_for=database.fingerprint,
            restore_point=point.id,
            manifest=point.manifest,
        ),
        deadline_s=deadlines.database_s,
        explain=f"take {which} down in {name}, in one transaction",
        loses=", ".join(f"{place} ({values})" for place, values in way.aside if values),
        needs_approval=True,
    )
    hold = [_hold(deadlines)] if world.containers.can_hold else []
    return decision, [dump, rehearse, *hold, down]


def _save_dump(name: str, plan_id: str, deadlines: Deadlines) -> Step:
    return Step(
        name="save-dump",
        action=SaveDump(name=f"{name}-{plan_id}"),
        deadline_s=deadlines.database_s,
        explain=f"dump {name} as it is now",
    )


def _hold(deadlines: Deadlines) -> Step:
    return Step(
        name="hold-requests",
        action=HoldRequests(),
        deadline_s=deadlines.fence_s,
        explain=f"requests from outside wait, for at most {HELD_AT_MOST_S:.0f} s, and those under way end",
        needs_approval=True,
    )


def _fence(world: World, name: str, kept_as: str, deadlines: Deadlines) -> list[Step]:
    """The fence, and before it the hold where there is something that can."""
    pooled = world.database is not None and world.database.pools
    waits = "clients of the pooler wait, transactions under way end; " if pooled else ""
    fence = Step(
        name="fence",
        action=Fence(kept_as=kept_as),
        deadline_s=deadlines.fence_s,
        explain=f"{waits}end every session of {name} and rename it to {kept_as}",
        needs_approval=True,
    )
    return [_hold(deadlines), fence] if world.containers.can_hold else [fence]


def _swap(
    point: RestorePoint,
    world: World,
    evidence: DatabaseEvidence,
    reasons: tuple[str, ...],
    *,
    plan_id: str,
    deadlines: Deadlines,
) -> tuple[DatabaseDecision, list[Step]]:
    """The swap to the clone: safety dump, then a person, then everything written since is put into the clone, the last
    of it behind the fence, and the clone takes the name. Nothing is dropped.

    Transactions are replayed in their order, and all but the last while the database serves, where the server kept
    them; else behind the fence their last state is told from the rows.
    """
    name, captured, first, more = evidence.database, False, "", tuple[str, ...]()
    if world.database is not None:
        first = why_restored_first(point, world.database)
        # what was put into a clone that is gone the server tells no more
        captured = point.id in world.database.captures and not (first and point.id in world.database.filled)
    if first:
        more = (f"{first}: its dump is restored beside first",)
    kept_as, export, replay = f"{name}_bad_{plan_id}", f"export-{plan_id}", f"replay-{plan_id}"
    lossy = (
        ()
        if captured
        else point.lossy_because or (f"what was written since {point.id} can no longer be replayed one by one",)
    )
    carries = None if first else evidence.writes  # which were counted by what is not in the clone
    decision = DatabaseDecision(
        rung=Rung.D3 if captured else Rung.D3B,
        reasons=(*reasons, *more),
        restore_point=point.id,
        restore_point_taken_at=point.taken_at,
        carries=carries,
        size_bytes=evidence.size_bytes,
        lossy_because=lossy,
    )
    rows = f"{carries.total} rows written since" if carries else "the rows written since"
    slow, quick = deadlines.database_s, deadlines.fence_s
    dump, fence = _save_dump(name, plan_id, deadlines), _fence(world, name, kept_as, deadlines)
    catch_up = Step(
        name="catch-up",
        action=CatchUp(replay=replay, restore_point=point.id, manifest=point.manifest),
        deadline_s=slow,
        explain=f"replay the transactions since {point.id} into {point.clone} while {name} serves",
        loses=_DOES_NOT_FIT,
        needs_approval=True,
    )
    export_writes = Step(
        name="export-writes",
        action=ExportWrites(export=export, restore_point=point.id, kept_as=kept_as, manifest=point.manifest),
        deadline_s=slow,
        explain=f"write the rows changed since {point.id} to files",
        needs_approval=True,
    )
    replay_writes = Step(
        name="replay-writes",
        action=ReplayWrites(
            replay=replay, restore_point=point.id, kept_as=kept_as, by_rows=not captured, manifest=point.manifest
        ),
        deadline_s=slow,
        explain=(
            f"replay what was written last into {point.clone}"
            if captured
            else f"put {rows} into {point.clone}, in their last state"
        ),
        loses=_DOES_NOT_FIT + ("" if captured else "; all but the last state of a row"),
        needs_approval=True,
    )
    swap = Step(
        name="swap-database",
        action=SwapDatabase(
            swap=f"swap-{plan_id}",
            restore_point=point.id,
            clone=point.clone,
            kept_as=kept_as,
            replay=replay,
            manifest=point.manifest,
        ),
        deadline_s=quick,
        explain=f"{point.clone}, verified, becomes {name}; {kept_as} is kept",
        needs_approval=True,
    )
    restore = Step(
        name="restore-clone",
        action=RestoreClone(restore_point=point.id, clone=point.clone, manifest=point.manifest),
        deadline_s=slow,
        explain=f"restore the dump of {point.id} beside, as {point.clone}, and prove it",
    )
    before = [dump, restore] if first else [dump]
    if captured:
        return decision, [*before, catch_up, *fence, replay_writes, swap]
    return decision, [*before, *fence, export_writes, replay_writes, swap]


def _pass_requests(deadlines: Deadlines) -> Step:
    return Step(
        name="pass-requests",
        action=PassRequests(),
        deadline_s=deadlines.fence_s,
        explain="the requests that wait are passed on",
    )


def make_swap_back_plan(
    swapped: Plan,
    world: World,
    *,
    at: datetime,
    name: str,
    serving: str,
    plan_id: str,
    now: datetime,
    deadlines: Deadlines,
) -> Plan:
    """The way back of a swap of the database: what it replaced takes the name again, and what has it now is kept. The
    person who asks for it has said yes already.

    at: when the swap's run began.
    """
    replaced, kept_as = replaced_by(swapped), f"{name}_aside_{plan_id}"
    since = f"{at:%Y-%m-%d %H:%M} UTC, {(now - at).total_seconds() / 60:.0f} min ago"
    back = Step(
        name="swap-back",
        action=LiftFence(kept_as=replaced, go_on_from=kept_as),
        deadline_s=deadlines.fence_s,
        explain=f"{replaced} becomes {name}; its sequences go on from those of {kept_as}",
        loses=f"what was written since the swap of run {swapped.id} ({since}); it stays in {kept_as}",
    )
    steps = [*(replace(step, needs_approval=False) for step in _fence(world, name, kept_as, deadlines)), back]
    reasons = swapped.database.reasons if swapped.database else ()
    return _compensation(
        replace(swapped, from_release=serving, rung=world.rung),
        *steps,
        *([_pass_requests(deadlines)] if world.containers.can_hold else ()),
        plan_id=plan_id,
        now=now,
        why=f"the swap of run {swapped.id} is taken back",
        warnings=(f"{serving} serves on, whether or not it runs on the schema of {replaced}", *reasons),
    )


def replaced_by(plan: Plan) -> str:
    """What the database is called that the swap of a plan replaces."""
    return next(step.action.kept_as for step in plan.steps if isinstance(step.action, Fence))


def make_lift_plan(plan: Plan, *, plan_id: str, now: datetime, deadlines: Deadlines) -> Plan | None:
    """The compensation for a rollback that stopped between fence and swap: give the database its name back.

    None when `plan` has no fence. Needs no approval: it only takes back what the fence did.
    """
    fence = next((s.action for s in plan.steps if isinstance(s.action, Fence)), None)
    if fence is None:
        return None
    step = Step(
        name="lift-fence",
        action=LiftFence(kept_as=fence.kept_as),
        deadline_s=deadlines.fence_s,
        explain=f"{fence.kept_as} gets its name back",
    )
    return _compensation(plan, step, plan_id=plan_id, now=now, why=f"plan {plan.id} stopped behind the fence")


def recover_by_hand(restore_point: str) -> str:
    """What a person types where only pgBackRest can bring the database back; empty when it cannot."""
    return f"lastgood restore-points recover --to {restore_point}" if restore_point else ""


def lift_by_hand(plan: Plan) -> str:
    """What a person types in psql where the fence of `plan` could not be lifted; empty when it has none."""
    fence = next((s.action for s in plan.steps if isinstance(s.action, Fence)), None)
    if fence is None:
        return ""
    name = fence.kept_as.removesuffix(f"_{plan.id}").rpartition("_")[0]
    # all or nothing: in a database that has its name already, nothing is renamed
    renames = f'"{name}" RENAME TO "{name}_lg__fence"; ALTER DATABASE "{fence.kept_as}" RENAME TO "{name}"'
    return f'psql -d postgres: BEGIN; ALTER DATABASE {renames}; ALTER DATABASE "{name}" ALLOW_CONNECTIONS true; COMMIT;'


def make_pass_plan(plan: Plan, *, plan_id: str, now: datetime, deadlines: Deadlines) -> Plan:
    """The compensation for a plan that stopped while requests waited. Needs no approval."""
    why = f"plan {plan.id} stopped while requests waited"
    return _compensation(plan, _pass_requests(deadlines), plan_id=plan_id, now=now, why=why)


def make_clear_plan(plan: Plan, *, plan_id: str, now: datetime, deadlines: Deadlines) -> Plan:
    """The compensation for a plan that stopped after its gate: remove what that started. A release to go back to that
    stands ready beside stays there, for the next try, and so does the one that the plan itself left there. Needs no
    approval."""
    returns = plan.purpose is Purpose.ROLLBACK and any(isinstance(s.action, Switch) for s in plan.steps)
    left = (s.action.standby for s in plan.steps if isinstance(s.action, PassGate | ClearCandidates))
    step = clear_step(boot_s=deadlines.boot_s, standby=plan.to_release if returns else next(filter(None, left), ""))
    return _compensation(plan, step, plan_id=plan_id, now=now, why=f"plan {plan.id} stopped behind its gate")


def make_stand_down_plan(
    serving: str, *, plan_id: str, now: datetime, deadlines: Deadlines, rung: str, standby: int, captures: bool
) -> Plan:
    """The end of a watch: the release before no longer stands ready, and is stopped; what is written is no longer kept
    to be replayed. Needs no approval.

    standby: how many stand beside. captures: whether there is one to be ended.
    """
    steps = [settle_step(deadline_s=deadlines.drain_s + deadlines.boot_s * standby)] if standby else []
    if captures:
        steps.append(
            Step(
                name="end-capture",
                action=EndCapture(),
                deadline_s=deadlines.fence_s,
                explain="the server may let go of the transactions kept for a replay",
            )
        )
    return Plan(
        id=plan_id,
        purpose=Purpose.ROLLBACK,
        made_at=now,
        from_release=serving,
        to_release=serving,
        steps=tuple(steps),
        rung=rung,
        reasons=(f"the watch of {serving} is over",),
    )


def _compensation(
    plan: Plan, *steps: Step, plan_id: str, now: datetime, why: str, warnings: tuple[str, ...] = ()
) -> Plan:
    return Plan(
        id=plan_id,
        purpose=Purpose.ROLLBACK,
        made_at=now,
        from_release=plan.from_release,
        to_release=plan.from_release,
        steps=steps,
        rung=plan.rung,
        reasons=(why,),
        warnings=warnings,
    )

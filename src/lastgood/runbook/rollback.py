"""A rollback from decision to report: plan journaled, evidence saved, carried out, verified, told; resumable at any
point.

`roll_back` begins one; `take_up` goes on with one whose process died. Both end in the same function, because what is
left to do is read from the journal.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from lastgood.core.config import Mode
from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import DatabaseFacts, FrontendFacts, ServiceLog
from lastgood.core.history import DeploymentHistory, History, ReleaseHistory, RunHistory
from lastgood.core.migration import DatabaseEvidence
from lastgood.core.plan import (
    HELD_AT_MOST_S,
    CatchUp,
    ClearCandidates,
    Fence,
    HoldRequests,
    MigrateDown,
    Plan,
    Purpose,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    Role,
    Seen,
    Step,
    SwapDatabase,
    Switch,
    seen,
    why_no_way_back,
)
from lastgood.core.ports import Database
from lastgood.core.reading import Bucket
from lastgood.core.record import DeploymentEnded, Frozen, RestorePointKept, RunEnded, RunStarted, Unfrozen, WatchStarted
from lastgood.core.release import Down, Release, RestorePoint, Standing
from lastgood.core.report import Check, DryRun, Loss, Replayed, Report, TerminalState, announcement
from lastgood.core.retention import capture_over
from lastgood.core.returning import (
    World,
    lift_by_hand,
    make_clear_plan,
    make_lift_plan,
    make_pass_plan,
    make_plan,
    make_stand_down_plan,
    own_dump_for,
    recover_by_hand,
)
from lastgood.core.run import Finish, Stop, began_serving_change, outcomes
from lastgood.runbook.carry_out import carry_out
from lastgood.runbook.killpoint import killpoint
from lastgood.runbook.looking import patiently
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell
from lastgood.runbook.verify import verify

BY_LASTGOOD: Final = "lastgood"
BY_PERSON: Final = "person"
BY_GATE: Final = "gate"
COMPENSATION: Final = "compensation"
STORY_FILE: Final = "incident.json"
WENT_BACK: Final = frozenset({TerminalState.ROLLED_BACK_VERIFIED, TerminalState.ROLLED_BACK_DEGRADED})
PER_DAY: Final = 2
"""Automatic rollbacks in 24 h; then it proposes."""
LOOKS: Final = 3
_BUCKETS: Final = TypeAdapter(list[Bucket])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a rollback begins. trigger: a trigger's name or `person`. proof: how sure the sentence is. by: who.

    invalid_rows: rows that broke an invariant.
    """

    trigger: str
    sentence: str
    by: str
    proof: str = ""
    deployment: str = ""
    invalid_rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A plan that nothing was begun of. asks_itself: it waits for a person only because none had asked for it."""

    plan: Plan
    decided_at: datetime
    asks_itself: bool


def choose_target(history: History, name: str | None) -> ReleaseHistory:
    """Return the release to go back to: the named one, else the newest good one before what serves. A deployment that
    never came to serve leaves what serves, whether or not that is proved good.

    Raises Refused, nothing changed, when there is none, or the named one is not good or not kept.
    """
    if name is None:
        if (untouched := _still_serves(history)) is not None:
            return untouched
        newest = next(reversed(history.deployments.values()), None)
        went_back = newest is not None and newest.ended is not None and newest.ended.terminal in WENT_BACK
        # what is watched is what a rollback leaves, also where a later one failed at its gate and was undone
        watched = history.open_deployment is not None
        if newest is not None and went_back and not watched and newest.deployment.release != history.serving:
            raise Refused(
                f"{newest.deployment.release} was rolled back already, and {history.serving} serves",
                hint="lastgood rollback RELEASE   (to go back further)",
            )
        found = history.last_good(before=bad_release(history))
        if found is None:
            raise Refused("no good release to go back to", hint="lastgood releases")
        return found
    if name not in history.releases:
        known = ", ".join(history.releases) or "none"
        raise Refused(f"release {name!r} not found; known: {known}", hint="lastgood releases")
    found = history.releases[name]
    if found.let_go:
        raise Refused(f"{name} is not kept any more: {found.let_go}", hint="lastgood releases")
    if found.standing is not Standing.GOOD:
        raise Refused(
            f"{name} is {found.standing.value}, and only a good release can be a target",
            hint="lastgood releases"
            if found.standing is Standing.BARRED
            else f"lastgood record --good --release {name}   (if you vouch for it)",
        )
    return found


def _still_serves(history: History) -> ReleaseHistory | None:
    """What serves while a deployment is unfinished that changed nothing that serves; None when there is none."""
    under = history.unserved
    if under is None or history.serving == under.deployment.release:
        return None
    return history.releases.get(history.serving)


def passed_over(history: History, target: str) -> DeploymentHistory | None:
    """The deployment that changed nothing that serves and that a rollback to `target` gives up, since it leaves what
    serves; None where there is none, or where to undo it is all that the rollback does."""
    still = _still_serves(history)
    return history.unserved if target and still and still.release.id != target else None


def left_by(history: History, target: str) -> DeploymentHistory | None:
    """The unfinished deployment that a rollback to `target` leaves; None when there is none. target: empty while it is
    not known."""
    return history.open_beneath(passed_over(history, target))


def bad_release(history: History, target: str = "") -> str:
    """What is left by a rollback now: the release of an unfinished deployment, else the one that serves. target: as in
    `left_by`."""
    deployment = left_by(history, target)
    return deployment.deployment.release if deployment else history.serving


def plan_rollback(
    rooms: Rooms, target: ReleaseHistory, *, plan_id: str, only: frozenset[Role] = frozenset(Role)
) -> Plan:
    """Look at everything and plan the way back. Changes nothing. Raises Refused or Retryable."""
    history = rooms.memory.history()
    _refuse_another_stacks(rooms, history, target.release)
    facts = rooms.containers.observe()
    undone = _undone(history.deployments.values(), target.release.id)
    point = restore_point_before(history, target.release.id)
    bad = bad_release(history, target.release.id)
    left = history.releases.get(bad)
    began_at = undone.deployment.started_at if undone else None
    if began_at and point and point.log:  # what pgBackRest recovers of a deployment is of when its plan had begun
        began_at = max(began_at, point.log.at)
    known, downs = tuple(history.restore_points.values()), _downs(history, undone)
    seen = _look_at_database(rooms, point, known, target, downs, before=began_at)
    frontend, frontend_unseen = _look_at_frontend(rooms)
    still = _still_serves(history)
    untouched = still is not None and still.release.id == target.release.id
    ready = history.last_good(before=bad) if untouched else None
    world = World(
        containers=facts,
        rung=rooms.containers.rung(target.release.id),
        database=seen.facts,
        evidence=seen.evidence,
        restore_point=point,
        own_dump=seen.own_dump,
        recoverable=seen.recoverable,
        unusable=seen.unusable,
        fingerprint=target.fingerprint,
        frontend=frontend,
        frontend_target=target.frontend,
        frontend_unseen=frontend_unseen,
        database_unseen=seen.not_seen,
        migrated=left is None or left.release.migrations != target.release.migrations,
        untouched=untouched,
        standby=ready.release.id if ready and ready.release.id != target.release.id else "",
    )
    return make_plan(
        target.release,
        world,
        plan_id=plan_id,
        now=rooms.clock.now(),
        serving=bad,
        deadlines=rooms.deadlines,
        only=only,
    )


def _refuse_another_stacks(rooms: Rooms, history: History, target: Release) -> None:
    """Two stacks may have noted their releases in one journal, before a state folder was of one stack."""
    project = rooms.config.containers.compose.project if rooms.config.containers else ""
    if target.composed is None or not target.is_of_another(project):
        return
    good = (known.release for known in reversed(history.releases.values()) if known.is_way_back)
    ours = next((release.id for release in good if release.composed and not release.is_of_another(project)), "")
    raise Refused(
        f"{target.id} is of compose project {target.composed.project}, and this is {project}",
        hint=f"lastgood rollback {ours}" if ours else "lastgood releases",
    )


def look_ahead(rooms: Rooms, name: str | None, *, only: frozenset[Role] = frozenset(Role)) -> Plan:
    """Plan the way back as a rollback would that began now. Changes nothing. Raises Refused or Retryable, also where
    the plan needs something that is nowhere any more."""
    history = rooms.memory.history()
    target = choose_target(history, name)
    plan = plan_rollback(rooms, target, plan_id=new_run_id(history), only=only)
    if not any(step.role is Role.CONTAINERS for step in plan.steps):
        return plan
    missing = rooms.containers.missing(target.release)
    if lost := [m for m in missing if m.lost]:
        raise Refused(f"{target.release.id} cannot serve again: {'; '.join(m.what for m in lost)}", hint=lost[0].fix)
    more = (f"{m.what}; next: {m.fix}" for m in missing if m.what not in plan.warnings)
    return replace(plan, warnings=(*plan.warnings, *more))


def restore_point_before(history: History, target: str, *, at: datetime | None = None) -> RestorePoint | None:
    """The restore point with which a rollback to `target` compares, or compared when it began, at `at`."""
    deployments = [d for d in history.deployments.values() if at is None or d.deployment.started_at <= at]
    under = left_by(history, target) if at is None else None
    latest = under or next(reversed(deployments), None)
    points = (history.restore_point_of(d.deployment.id) for d in (_undone(deployments, target), latest) if d)
    return next((point for point in points if point is not None), None)


def _undone(deployments: Collection[DeploymentHistory], target: str) -> DeploymentHistory | None:
    """The oldest deployment that a rollback to `target` undoes: rows written and schemas changed count from there."""
    return next((d for d in reversed([*deployments]) if d.deployment.previous == target), None)


def _downs(history: History, undone: DeploymentHistory | None) -> tuple[Down, ...]:
    """What every release that is undone shipped to take its own migrations down again, oldest first."""
    if undone is None:
        return ()
    deployments = [*history.deployments.values()]
    since = (history.releases[d.deployment.release].release for d in deployments[deployments.index(undone) :])
    return tuple(dict.fromkeys(down for release in since for down in release.downs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeenDatabase:
    """What looking at the database showed. unusable: why the restore point was no ground to compare with, so that the
    own dump was taken for it. recoverable: the restore point to whose place in the log pgBackRest could go, asked only
    where there is no other way back. not_seen: why nothing could be seen."""

    facts: DatabaseFacts | None = None
    evidence: DatabaseEvidence | None = None
    own_dump: RestorePoint | None = None
    recoverable: str = ""
    unusable: str = ""
    not_seen: str = ""


def _look_at_database(
    rooms: Rooms,
    point: RestorePoint | None,
    known: tuple[RestorePoint, ...],
    target: ReleaseHistory,
    downs: tuple[Down, ...],
    *,
    before: datetime | None,
) -> _SeenDatabase:
    """Look, or say why not. A bad release may have used up every connection, or somebody changed the password: the
    containers go back all the same, where no migration speaks against it."""
    if (database := rooms.database) is None:
        return _SeenDatabase()
    for attempt in range(LOOKS):
        try:
            facts = database.observe()
            own = own_dump_for(target.fingerprint, known, facts, before=before)
            evidence, unusable = _evidence(rooms, database, point, own, target, downs)
        except Refused as error:
            by_hand = recover_by_hand(_recoverable(database, point))
            return _SeenDatabase(not_seen=error.message + (f"; next: {by_hand}" if by_hand else ""))
        except (Retryable, OutcomeUnknown) as error:
            if attempt + 1 == LOOKS:
                return _SeenDatabase(not_seen=error.message)
            rooms.clock.sleep(error.delay_s if isinstance(error, Retryable) else 1.0)
        else:
            none_left = own is None and (point is None or unusable or why_no_way_back(point, facts))
            recoverable = _recoverable(database, point) if none_left else ""
            return _SeenDatabase(
                facts=facts, evidence=evidence, own_dump=own, recoverable=recoverable, unusable=unusable
            )
    return _SeenDatabase(not_seen="not asked")


def _recoverable(database: Database, point: RestorePoint | None) -> str:
    """The restore point, where pgBackRest has a backup from before its place in the log; else empty."""
    if point is None or point.log is None:
        return ""
    try:
        backups = database.backups()
    except LastgoodError:  # nothing that a person could type would work now
        return ""
    begins_at = backups.oldest_at if backups else None
    return point.id if begins_at and begins_at < point.log.at else ""


def _evidence(
    rooms: Rooms,
    database: Database,
    point: RestorePoint | None,
    own: RestorePoint | None,
    target: ReleaseHistory,
    downs: tuple[Down, ...],
) -> tuple[DatabaseEvidence | None, str]:
    """Compare with the restore point; where that is not what was proved, or there is none, with the own dump. Raises
    Refused where neither can be compared with."""
    unusable = ""
    if point is not None:
        try:
            logs = _logs(rooms, point.taken_at)
            return database.inspect(since=point, target=target.release, downs=downs, logs=logs), ""
        except Refused as error:
            if own is None:
                raise
            unusable = error.message
    if own is None:
        return None, unusable
    return database.inspect(since=own, target=target.release, logs=_logs(rooms, own.taken_at)), unusable


def _logs(rooms: Rooms, since: datetime) -> tuple[ServiceLog, ...]:
    """What the services wrote; of those that are bound to no release, what serves did. They are one piece of evidence
    of several: an engine that is silent keeps nobody from going back."""
    try:
        logs = rooms.containers.logs(since)
    except LastgoodError as error:
        rooms.story(f"  the services' logs could not be read: {error.message}")
        return ()
    serving = rooms.memory.history().serving
    return tuple(replace(log, release=log.release or serving) for log in logs)


def _look_at_frontend(rooms: Rooms) -> tuple[FrontendFacts | None, str]:
    """Look, or say why not: a host that is away must not keep the containers from going back."""
    if rooms.frontend is None:
        return None, ""
    try:
        return rooms.frontend.observe(), ""
    except LastgoodError as error:
        return None, error.message


def new_run_id(history: History) -> str:
    """Six hexadecimal digits and no count: databases and exports bear a run's id and outlive a journal that is lost."""
    while (made := secrets.token_hex(3)) in history.runs:
        pass
    return made


def roll_back(
    rooms: Rooms,
    cause: Cause,
    *,
    target: str | None = None,
    only: frozenset[Role] = frozenset(Role),
    confirm: bool = False,
) -> Report:
    """Begin a rollback and carry it to its end. Needs the RUN lease. As `propose` and `begin`."""
    return begin(rooms, cause, propose(rooms, cause, target=target, only=only, confirm=confirm))


def propose(
    rooms: Rooms,
    cause: Cause,
    *,
    target: str | None = None,
    only: frozenset[Role] = frozenset(Role),
    confirm: bool = False,
    agreed: Callable[[Plan], bool] = lambda _plan: True,
) -> Proposal:
    """Plan a rollback that begins now. Changes nothing, and needs no lease.

    confirm: a person must approve the plan in the journal, before its first effect. agreed: is shown the plan that
    will be carried out, and says whether it begins. Raises Refused or Retryable when it could not be planned, or was
    not agreed to.
    """
    history, decided_at = rooms.memory.history(), rooms.clock.now()
    chosen = choose_target(history, target)
    run = new_run_id(history)
    rooms.story(f"collecting evidence and planning the way back to {chosen.release.id}")
    plan = plan_rollback(rooms, chosen, plan_id=run, only=only)
    if not plan.steps and cause.trigger == BY_PERSON and not cause.deployment:
        raise Refused(f"nothing to roll back: everything is as {chosen.release.id} left it", hint="lastgood status")
    asks_itself = confirm and not plan.needs_approval
    if confirm:
        plan = asking(plan)
    if not agreed(plan):
        # the same once more: without its name another release may be the target
        named = f" {target}" if target else ""
        part = f" --only {','.join(role for role in Role if role in only)}" if only != frozenset(Role) else ""
        again = f"lastgood rollback{named}{part} --yes"
        raise Refused("not confirmed", hint=again)
    return Proposal(plan=plan, decided_at=decided_at, asks_itself=asks_itself)


def begin(rooms: Rooms, cause: Cause, proposal: Proposal) -> Report:
    """Carry a proposal to its end. Needs the RUN lease, and that what the plan was made on is still so."""
    run, plan = proposal.plan.id, proposal.plan
    # what serves is only started again as it was: no release is to blame, and the next deploy has nothing to wait for
    only_again = plan.from_release == plan.to_release and all(step.role is Role.CONTAINERS for step in plan.steps)
    if not rooms.memory.history().frozen and not only_again:
        rooms.memory.note(Frozen(by=BY_LASTGOOD, why=f"rollback {run}"))
    rooms.memory.note(
        RunStarted(
            run=run,
            plan=plan,
            trigger=cause.trigger,
            sentence=cause.sentence,
            by=cause.by,
            deployment=cause.deployment,
            decided_at=proposal.decided_at,
            proof=cause.proof,
            asks_itself=proposal.asks_itself,
        )
    )
    save_evidence(rooms, run, cause)
    killpoint("after-plan", "rollback")
    return finish(rooms, run)


def asking(plan: Plan) -> Plan:
    """The same plan, whose every step that users can notice waits for a person."""
    return replace(
        plan, steps=tuple(replace(s, needs_approval=s.needs_approval or s.changes_what_serves) for s in plan.steps)
    )


def automatic_allowed(rooms: Rooms, history: History) -> str:
    """Return why no rollback may begin without a person; empty when it may: mode automatic, and the budget is not
    used up. A rollback that moved nothing, as after a gate that failed, uses up none of it."""
    if rooms.config.mode is not Mode.AUTOMATIC:
        return f"mode is {rooms.config.mode.value}"
    day_ago = rooms.clock.now() - timedelta(days=1)
    own = [
        r
        for r in history.runs.values()
        if r.plan.purpose is Purpose.ROLLBACK
        and r.started.by == BY_LASTGOOD
        # what stopped at the gate never served, whatever the frontend host had made of the push
        and r.started.trigger not in (COMPENSATION, BY_GATE)
        and began_serving_change(r.plan, r.records)
    ]
    if any(r.plan.from_release == bad_release(history) for r in own):
        return f"{bad_release(history)} was rolled back automatically before"
    if sum(r.record.at > day_ago for r in own) >= PER_DAY:
        return f"{PER_DAY} automatic rollbacks in 24 h are the limit"
    return ""


def finish(rooms: Rooms, run: str) -> Report:
    """Carry a journaled rollback on from where it stands, verify, tell, end it. Needs the RUN lease."""
    started = rooms.memory.history().runs[run]
    plan = started.plan
    if not started.records and not (rooms.state / "incidents" / run / STORY_FILE).exists():
        begun = started.started
        cause = Cause(trigger=begun.trigger, sentence=begun.sentence, by=begun.by, deployment=begun.deployment)
        save_evidence(rooms, run, cause)

    def before(step: Step) -> None:
        if step.role is Role.CONTAINERS and step.changes_what_serves:
            supersede(rooms, started.started.deployment, f"{plan.to_release} came back", but=plan.to_release)

    ending = _fetch(rooms, started) or carry_out(
        rooms, run, before=before, ask=lambda history, step: ask_approval(rooms, history, step)
    )
    if isinstance(ending, Stop):
        return _stopped(rooms, started, ending)
    history = rooms.memory.history()
    target = history.releases[plan.to_release]
    point = history.restore_points.get(plan.database.restore_point) if plan.database else None
    rooms.story(f"verifying {target.release.id}")
    checks = verify(rooms, plan, target, point)
    good = all(check.passed for check in checks)
    replayed, notes = _replayed(rooms, plan)
    aside, told = _set_aside(rooms, plan)
    named = name_again(rooms, plan.to_release) if Role.CONTAINERS in plan.scope else ()
    report = _report(
        rooms,
        started,
        TerminalState.ROLLED_BACK_VERIFIED if good else TerminalState.ROLLED_BACK_DEGRADED,
        checks=checks,
        replayed=replayed,
        uncounted=_left(plan),
        aside=aside,
        notes=(*notes, *told, *named),
    )
    serving = plan.to_release if Role.CONTAINERS in plan.scope else history.serving
    return _end(rooms, report, serving=serving)


def name_again(rooms: Rooms, release: str) -> tuple[str, ...]:
    """Have the names from which others start the services lead to what serves: they are of the release that was made
    last, and a `docker compose up` from habit would bring it back. Returns what a person should know.

    Never raises: nothing that lastgood does goes by these names.
    """
    known = rooms.memory.history().releases.get(release)
    try:
        return rooms.containers.name_again(known.release) if known else ()
    except LastgoodError as error:
        return (f"whose images docker compose would start now is not known: {error.message}; next: docker image ls",)


def supersede(rooms: Rooms, deployment: str, why: str, *, but: str = "") -> None:
    """End the watches of all other deployments than this one, once users notice something of it. but: the release that
    goes on being watched."""
    for under in rooms.memory.history().deployments.values():
        release = under.deployment.release
        if under.ended is None and under.deployment.id != deployment and release != but:
            rooms.memory.note(
                DeploymentEnded(
                    deployment=under.deployment.id,
                    terminal=TerminalState.SUPERSEDED,
                    sentence=f"{why} before the watch of {release} ended",
                )
            )


def _fetch(rooms: Rooms, started: RunHistory) -> Stop | None:
    """Before the first step: have here what the plan starts, and no more: what it leaves alone may be gone. One that
    finds nothing to start would stop half-way. Returns why it cannot be had, None when it is here."""
    starts = {service for step in started.plan.steps for service, _ in step.serves}
    if started.records or not starts:
        return None
    target = rooms.memory.history().releases[started.plan.to_release].release
    target = replace(target, services=tuple(service for service in target.services if service.name in starts))
    try:
        with rooms.if_slow(1.0, lambda: rooms.story(f"  fetching what {target.id} needs ...")):
            patiently(rooms.clock, lambda: rooms.containers.fetch(target))
    except (Refused, Retryable, OutcomeUnknown) as error:
        return Stop(terminal=TerminalState.REFUSED, reason=error.message, hint=error.hint)
    return None


def _stopped(rooms: Rooms, started: RunHistory, stop: Stop) -> Report:
    plan, run = started.plan, started.started.run
    notes = [stop.reason]
    next_steps = [stop.hint] if stop.hint else []
    terminal = stop.terminal
    if _behind_fence(rooms, plan):
        failed = _lift(rooms, plan)
        notes.append(f"the fence could not be lifted: {failed.reason}" if failed else "the fence was lifted again")
        if failed:
            terminal = TerminalState.NEEDS_HUMAN
            next_steps += filter(None, (failed.hint, lift_by_hand(plan)))
    notes += filter(None, [_pass_requests(rooms, plan), clear_candidates(rooms, plan)])
    if terminal is TerminalState.NEEDS_HUMAN:
        next_steps += [f"lastgood explain {run}", "lastgood status", f"lastgood rollback {plan.to_release}"]
    elif terminal in (TerminalState.REFUSED, TerminalState.DENIED):
        next_steps.append("lastgood plan")
    report = _report(rooms, started, terminal, notes=tuple(notes), next_steps=tuple(dict.fromkeys(next_steps)))
    report = _end(rooms, report, serving=_serving_now(rooms, plan))
    _let_go_of_log(rooms)
    untouched = not began_serving_change(plan, rooms.memory.history().runs[run].records)
    if terminal in (TerminalState.REFUSED, TerminalState.DENIED, TerminalState.ABORTED_BY_HUMAN) and untouched:
        frozen = rooms.memory.history().frozen
        if frozen and frozen.why == f"rollback {run}":
            rooms.memory.note(Unfrozen(by=BY_LASTGOOD, why=f"{run} touched nothing"))
    return report


def _serving_now(rooms: Rooms, plan: Plan) -> str:
    """What serves after a stopped run, by looking: the target only when every one of its services serves, else what
    served before."""
    history = rooms.memory.history()
    try:
        checks = rooms.containers.checks(history.releases[plan.to_release].release)
    except LastgoodError:
        return history.serving
    return plan.to_release if all(c.passed for c in checks) else history.serving


def _behind_fence(rooms: Rooms, plan: Plan) -> bool:
    fence = next((step.action for step in plan.steps if isinstance(step.action, Fence)), None)
    if rooms.database is None or fence is None:
        return False
    try:
        facts = rooms.database.observe()
    except LastgoodError:
        return True
    return not facts.exists or (facts.paused is not False and fence.kept_as not in facts.databases)


def _lift(rooms: Rooms, plan: Plan) -> Stop | None:
    """Compensate a fence without a swap. Returns where that stopped, None when it did not."""
    run = new_run_id(rooms.memory.history())
    lift = make_lift_plan(plan, plan_id=run, now=rooms.clock.now(), deadlines=rooms.deadlines)
    return _compensate(rooms, lift, after=plan) if lift else None


def _pass_requests(rooms: Rooms, plan: Plan) -> str:
    """Pass on what a plan that stopped left waiting. Returns what a person should know, empty when nothing waits."""
    if not any(isinstance(step.action, HoldRequests) for step in plan.steps):
        return ""
    try:
        facts = rooms.containers.observe()
        if not (facts.holding or facts.left_waiting):
            return ""
    except LastgoodError as error:
        return f"whether requests still wait is not known: {error.message}; none waits over {HELD_AT_MOST_S:.0f} s"
    run = new_run_id(rooms.memory.history())
    passing = make_pass_plan(plan, plan_id=run, now=rooms.clock.now(), deadlines=rooms.deadlines)
    failed = _compensate(rooms, passing, after=plan)
    return f"requests still wait: {failed.reason}" if failed else "the requests that waited were passed on"


def clear_candidates(rooms: Rooms, plan: Plan) -> str:
    """Remove what the gate of a plan that stopped had started and what does not serve: it would take work from what
    does. Where an edge began to move traffic it may be what serves, and stays. Returns what a person should know, empty
    when there was nothing."""
    run = rooms.memory.history().runs[plan.id]
    states = {o.name: o.state for o in outcomes(plan, run.records)}
    if any(isinstance(step.action, Switch) for step in plan.steps if states[step.name] != "not started"):
        return ""
    new = new_run_id(rooms.memory.history())
    clear = make_clear_plan(plan, plan_id=new, now=rooms.clock.now(), deadlines=rooms.deadlines)
    (step,) = clear.steps
    try:
        if seen(step, rooms.containers.observe()) is Seen.DONE:
            return ""
    except LastgoodError as error:
        return f"whether the gate left anything running is not known: {error.message}"
    if failed := _compensate(rooms, clear, after=plan):
        return f"what the gate had started still runs: {failed.reason}"
    if step.action == ClearCandidates():
        return "what the gate had started was removed"
    return f"what the gate had started was removed; a standby of {plan.to_release} is as containers.edge.standby says"


def stand_down(rooms: Rooms, *, only_captures: bool = False) -> bool:
    """Stop what stood ready beside, and what the server kept to be replayed: the watch for which that was is over.
    What stood beside is kept, and can be started again. only_captures: it goes on standing there. Returns whether
    nothing of it is left.

    Takes the RUN lease; whoever has it goes first, and what stands beside is then theirs to end.
    """
    what = "the server's log" if only_captures else "the release before, or the server's log"
    try:
        with rooms.memory.journal.claim(rooms.who):
            stopped = _stand_down(rooms, only_captures=only_captures)
    except (Refused, Retryable) as error:
        stopped = error.message
    if stopped:
        rooms.story(f"  what was kept ready for the watch is still there ({what}): {stopped}")
    return not stopped


def _stand_down(rooms: Rooms, *, only_captures: bool) -> str:
    """Returns why something is still there, empty when nothing is. Needs the RUN lease."""
    standby = 0 if only_captures else len(rooms.containers.observe().candidates)
    facts = rooms.database.observe() if rooms.database else None
    captures = facts is not None and (bool(facts.captures) or facts.capture_left)
    if not standby and not captures:
        return ""
    history = rooms.memory.history()
    made = make_stand_down_plan(
        history.serving,
        plan_id=new_run_id(history),
        now=rooms.clock.now(),
        deadlines=rooms.deadlines,
        rung=rooms.containers.rung(),
        standby=standby,
        captures=captures,
    )
    rooms.memory.note(
        RunStarted(run=made.id, plan=made, trigger=COMPENSATION, sentence=made.reasons[0], by=BY_LASTGOOD)
    )
    stopped = finish_compensation(rooms, made)
    return stopped.reason if stopped else ""


def _let_go_of_log(rooms: Rooms) -> None:
    """After a run that stopped: what the server keeps for a replay ends where it is over its limit. Needs the RUN
    lease."""
    config = rooms.config.database
    if rooms.database is None or config is None:
        return
    limit = config.restore_points.capture_limit
    try:
        over = capture_over(rooms.database.observe(), limit_bytes=limit, until=None, now=rooms.clock.now())
        said = _stand_down(rooms, only_captures=True) if over else ""
    except LastgoodError as error:
        said = error.message
    if said:
        rooms.story(f"  the server may keep more of its log than it should: {said}")


def _compensate(rooms: Rooms, made: Plan, *, after: Plan) -> Stop | None:
    """Carry a compensation out as a journaled run of its own. Returns where it stopped, None when it did not."""
    rooms.memory.note(
        RunStarted(run=made.id, plan=made, trigger=COMPENSATION, sentence=f"run {after.id} stopped", by=BY_LASTGOOD)
    )
    return finish_compensation(rooms, made)


def finish_compensation(rooms: Rooms, made: Plan) -> Stop | None:
    """Carry one on from where it stands, and end it. Returns where it stopped, with whoever waited let in again; None
    when it did not stop."""
    ending = carry_out(rooms, made.id)
    stopped = None if isinstance(ending, Finish) else ending
    if stopped and _behind_fence(rooms, made):
        lifting = _lift(rooms, made)
        by_hand = f"{lifting.hint}; {lift_by_hand(made)}".removeprefix("; ") if lifting else stopped.hint
        stopped = replace(stopped, hint=by_hand)
    if stopped:
        _pass_requests(rooms, made)
    # last: one that died before is taken up, and stops at the same place
    said = stopped.reason if stopped else ""
    rooms.memory.note(RunEnded(run=made.id, terminal=None, serving=rooms.memory.history().serving, stopped=said))
    return stopped


def _replayed(rooms: Rooms, plan: Plan) -> tuple[Replayed | None, tuple[str, ...]]:
    """What became of the rows written since, or a note why that cannot be told now: by then everything is done."""
    replay = next((s.action.replay for s in plan.steps if isinstance(s.action, ReplayWrites)), None)
    if rooms.database is None or replay is None:
        return None, ()
    try:
        return rooms.database.replayed(replay), ()
    except LastgoodError as error:
        return None, (
            f"{replay} put what was written since into the live data, and cannot be counted: {error.message}",
        )


def _set_aside(rooms: Rooms, plan: Plan) -> tuple[tuple[Loss, ...], tuple[str, ...]]:
    """What the down migrations took away, and on which rung; or a note why that cannot be told now."""
    action = next((s.action for s in plan.steps if isinstance(s.action, MigrateDown)), None)
    if rooms.database is None or action is None or plan.database is None:
        return (), ()
    rung = f"database: {plan.database.rung.value}, every row stayed in its place"
    try:
        return rooms.database.set_aside(action.aside), (rung,)
    except LastgoodError as error:
        return (), (rung, f"what {action.aside} set aside cannot be counted: {error.message}")


def _left(plan: Plan) -> str:
    """What left the live data and could not be counted, once the plan is carried out: that of a swap to an own dump."""
    kept_as = next((s.action.kept_as for s in plan.steps if isinstance(s.action, SwapDatabase)), "")
    since = plan.database.leaves_since if plan.database else None
    return f"everything written since {since:%Y-%m-%d %H:%M:%S} UTC; it is in {kept_as}" if since and kept_as else ""


def _report(
    rooms: Rooms,
    started: RunHistory,
    terminal: TerminalState,
    *,
    checks: tuple[Check, ...] = (),
    replayed: Replayed | None = None,
    uncounted: str = "",
    aside: tuple[Loss, ...] = (),
    notes: tuple[str, ...] = (),
    next_steps: tuple[str, ...] = (),
) -> Report:
    history = rooms.memory.history()
    run = history.runs[started.started.run]
    plan = run.plan
    left = history.releases.get(plan.from_release)
    commit = left.release.commit if left else None
    deployment = history.deployments.get(run.started.deployment)
    rolled_back = terminal in (TerminalState.ROLLED_BACK_VERIFIED, TerminalState.ROLLED_BACK_DEGRADED)
    deploy = history.deploy_run(run.started.deployment) if deployment else None
    stopped = deploy is not None and deploy.ended is not None and deploy.ended.stopped
    noticed = any(began_serving_change(r.plan, r.records) for r in (deploy, run) if r)
    left_something = plan.from_release != plan.to_release
    advice: list[str] = []
    if rolled_back and Role.CONTAINERS in plan.scope:
        if commit and left_something:
            still = f"the checkout still holds commit {commit[:12]}; deploying {plan.from_release} again is refused"
            notes = (*notes, still)
        if rooms.sources and terminal is TerminalState.ROLLED_BACK_VERIFIED and left_something:
            still = _still_watched(history, deployment)
            minutes = f"the next {rooms.config.watch.bake / 60:.0f} min"
            advice.append(f"lastgood watch   ({f'the watch of {still} goes on' if still else minutes})")
        if plan.invalid_rows:
            advice.append("lastgood repair   (shows what the invalid rows were before, and asks)")
        advice.append(f"read the evidence in {incident(rooms, plan.id)}")
        if history.frozen:
            advice.append("lastgood unfreeze -m 'fixed: ...' once the cause is known")
    return Report(
        run=plan.id,
        terminal=terminal,
        trigger=run.started.trigger,
        sentence=run.started.sentence,
        from_release=plan.from_release,
        to_release=plan.to_release,
        began_at=run.record.at,
        ended_at=rooms.clock.now(),
        steps=outcomes(plan, run.records),
        checks=checks,
        losses=replayed.losses if replayed else (),
        replayed=replayed,
        uncounted=uncounted,
        aside=aside,
        remaining=plan.invalid_rows,
        next_steps=(*next_steps, *advice),
        notes=(*filter(None, (run.started.proof,)), *plan.skipped, *plan.warnings, *notes),
        evidence_file=incident(rooms, plan.id),
        owner=rooms.config.notify.owner,
        served_at=deployment.watch.at if deployment and deployment.watch and not deployment.watch.bake else None,
        decided_at=run.started.decided_at,
        parts=tuple(role.value for role in plan.scope) if len(plan.scope) < len(Role) else (),
        never_served=rolled_back and left_something and bool(stopped) and not noticed,
    )


def _end(rooms: Rooms, report: Report, *, serving: str) -> Report:
    # of what stopped half-way nobody is told that it serves
    whole = serving == report.to_release or not rooms.memory.history().answering.services
    report = replace(report, serving=serving if whole else "")
    tell(rooms, report.run, announcement(report), event_id=f"{report.run}-{report.terminal.value}")
    history = rooms.memory.history()
    unheard = tuple(f"{t.channel} could not be told: {t.error}" for t in history.runs[report.run].told if t.error)
    report = replace(report, notes=(*report.notes, *unheard))
    killpoint("before-end", "rollback")
    # before the end, so that a process that dies here is taken up: nobody else would begin it
    if report.terminal is TerminalState.ROLLED_BACK_VERIFIED and rooms.sources and serving == report.to_release:
        _begin_bake(rooms, report)
    rooms.memory.note(RunEnded(run=report.run, terminal=report.terminal, serving=serving, report=report))
    return report


def _begin_bake(rooms: Rooms, report: Report) -> None:
    """The system is watched again: the minutes count from here, whoever takes the watch up. Where no release was left
    there is none to be watched after."""
    if report.from_release == report.to_release:
        return
    deployments = rooms.memory.history().deployments.values()
    left = next((d for d in reversed(deployments) if d.deployment.release == report.from_release), None)
    if _still_watched(rooms.memory.history(), left):
        return
    if left is None or (left.watch and left.watch.bake and left.watch.at >= report.began_at):
        return
    window_s = rooms.config.watch.bake
    rooms.memory.note(WatchStarted(deployment=left.deployment.id, at=rooms.clock.now(), window_s=window_s, bake=True))
    rooms.story(f"the system is watched again for {window_s / 60:.0f} min; to be told how it goes: lastgood watch")


def _still_watched(history: History, left: DeploymentHistory | None) -> str:
    """The release whose own watch goes on when one is left that never came to serve; empty where there is none."""
    others = (d for d in history.deployments.values() if d.ended is None and d is not left)
    return next((d.deployment.release for d in others), "")


def ask_approval(rooms: Rooms, run: RunHistory, step: Step) -> None:
    """Show what is asked, and tell the team once that a person is needed."""
    for line in (*approval_text(rooms, run.plan), *dry_run(rooms, run.plan)):
        rooms.story(line)
    rooms.story(
        f"waiting at {step.name} for: lastgood approve {run.started.run}   (or: lastgood deny {run.started.run})"
    )
    tell(
        rooms,
        run.started.run,
        f"✋ {run.plan.from_release} is bad ({run.started.sentence}). A person must approve: "
        f"lastgood approve {run.started.run}",
        event_id=f"{run.started.run}-ask",
    )


def approval_text(rooms: Rooms, plan: Plan) -> tuple[str, ...]:
    """What an approval binds: the plan's hash, the objects by name, and what would be replayed at this moment."""
    lines = [f"plan {plan.id} ({plan.hash[:12]})  {plan.from_release} -> {plan.to_release}"]
    decision, database = plan.database, rooms.config.database
    if decision and decision.restore_point and database:
        postgres = database.postgres
        taken = decision.restore_point_taken_at
        age = f", {(rooms.clock.now() - taken).total_seconds() / 60:.0f} min old" if taken else ""
        place = f"{postgres.name} at {postgres.container or postgres.host}"
        lines += [
            f"database       {place}, {decision.size_bytes / 1e6:.1f} MB",
            f"rung           {decision.rung.value}",
            f"restore point  {decision.restore_point}{age}",
        ]
        lines += [f"because        {reason}" for reason in decision.reasons]
        lines += [f"schema         {change}" for change in decision.changes]
        lines += [f"schema         and {decision.more} more differences"] if decision.more else []
        lines += [f"storage        {decision.storage}"] if decision.storage else []
        if decision.loses:  # a plan made before rows were replayed
            lines.append(f"leaves         {decision.loses.total} rows; exported first, the replaced database is kept")
        if decision.leaves_since:
            lines.append(
                f"leaves         everything written since {decision.leaves_since:%Y-%m-%d %H:%M:%S} UTC; nobody can "
                "count it: an own dump has no snapshot; the replaced database is kept"
            )
        if decision.carries:
            tables = ", ".join(f"{table} {rows}" for table, rows in decision.carries.tables if rows)
            lines.append(
                f"replays        {decision.carries.total} rows now ({tables or 'none'}), "
                f"{decision.carries.rate_per_s:.1f} more a second; what does not fit goes to quarantine, "
                "and the replaced database is kept"
            )
        if decision.aside is not None:
            held = ", ".join(f"{place} {values}" for place, values in decision.aside if values)
            lines.append(f"sets aside     {held or 'nothing'}; every other value stays where it is")
        lines += [f"by rows        {why}: only the last state of a row can be told" for why in decision.lossy_because]
        swapped = [n for n, step in enumerate(plan.steps) if isinstance(step.action, SwapDatabase | MigrateDown)]
        if waits := [service for n in swapped for step in plan.steps[n:] for service, _ in step.serves]:
            lines.append(f"then           {', '.join(waits)} of {plan.to_release} must serve before they answer again")
    lines += [f"stays          {line}" for line in plan.invalid_rows]
    lines += [f"note           {warning}" for warning in plan.warnings]
    return tuple(lines)


def dry_run(rooms: Rooms, plan: Plan) -> tuple[str, ...]:
    """Try what a plan does to the database, take it back, and say what would become of what was written, and how long
    nobody could write; or how the rehearsal of its down migrations went. What cannot be had is said, with the reason.
    Empty for a plan that leaves the database."""
    down = next((s.action for s in plan.steps if isinstance(s.action, RehearseDown)), None)
    if down is not None and rooms.database is not None:
        return _rehearsed(rooms.database, down)
    restore = next((step for step in plan.steps if isinstance(step.action, RestoreClone)), None)
    # the first of them that a plan has takes everything that the others would
    action = next((s.action for s in plan.steps if isinstance(s.action, CatchUp | ReplayWrites | SwapDatabase)), None)
    if action is None or rooms.database is None:
        return ()
    try:
        if restore is not None and seen(restore, rooms.database.observe()) is not Seen.DONE:
            return (
                f"tried          not yet: {restore.explain}, first",
                "so not known   what would be replayed, wait or be lost, and for how long nobody could write",
            )
        with rooms.if_slow(1.0, lambda: rooms.story("  trying it, which is taken back ...")):
            tried = rooms.database.try_replay(action)
    except LastgoodError as error:
        return (
            f"tried          nothing: {error.message}",
            "so not known   what would be replayed, wait or be lost, and for how long nobody could write",
        )
    told = _would_leave(tried) if tried.replayed is None else _would_become(tried, tried.replayed)
    return (*told, f"pause          about {tried.pause_s:.1f} s in which nobody can write")


def _would_leave(tried: DryRun) -> tuple[str, ...]:
    """Of a swap into which nothing is replayed. Rows that were changed are as many as before, and in no count."""
    tables = ", ".join(f"{table} {rows}" for table, rows in tried.more)
    return (
        f"would lose     rows that are more now than in it: {tables or 'none'}",
        "               rows that were changed cannot be counted; all of them stay in the replaced database",
    )


def _would_become(tried: DryRun, of: Replayed) -> tuple[str, ...]:
    which, tables = "" if tried.whole else "the first ", ", ".join(f"{name} {rows}" for name, rows in of.carried)
    lines = [
        f"tried          {of.replayed} of {which}{of.total - of.skipped} {of.units} written since can be replayed"
        + (f" (rows: {tables})" if tables else "")
    ]
    if of.skipped:
        where = f": {of.skipped_file}" if of.skipped_file else ""
        lines.append(f"would skip     {of.skipped} of the migration's own{where}")
    if of.quarantined:
        tables = ", ".join(f"{loss.table} {loss.rows}" for loss in of.losses)
        lines.append(f"would wait     {of.quarantined} in quarantine ({tables}); why: {of.losses[0].file}")
    if of.without_place:
        lines.append(f"without place  {of.without_place} of which the old schema has a place for nothing")
    lines += [f"left out       {left.rows} rows of {left.table}; {left.file}" for left in of.left_out]
    if of.units == "rows":
        lines.append("would lose     every state of a row but its last; the replaced database is kept")
    elif tried.whole:
        lines.append("would lose     none of them: each is replayed, waits, is skipped or is listed here")
    else:
        lines.append("not tried      the rest: what becomes of it is known when it is replayed")
    return (*lines, *(f"note           {note}" for note in of.notes))


def _rehearsed(database: Database, action: RehearseDown) -> tuple[str, ...]:
    try:
        done = database.rehearsed(action.rehearsal)
    except LastgoodError as error:
        return (f"rehearsed      not yet: {error.message}",)
    return (
        f"rehearsed      on a copy with all rows: {done.rows} before and after, and the schema is the old one",
        f"pause          about {done.took_s:.1f} s in which nobody can write, as in the rehearsal",
    )


def incident(rooms: Rooms, name: str) -> str:
    """Where the evidence of an incident lies, as a person would type it."""
    folder = rooms.state / "incidents" / name
    return str(folder.relative_to(rooms.root) if folder.is_relative_to(rooms.root) else folder)


def save_evidence(rooms: Rooms, name: str, cause: Cause, *, linked_to: str = "") -> None:
    """Logs, inspect output and the metrics window. What cannot be saved is told, not fatal. linked_to: the run that
    this incident follows."""
    folder = rooms.state / "incidents" / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _save_story(rooms, name, cause, folder, linked_to=linked_to)
        rooms.containers.evidence(folder)
    except (LastgoodError, OSError) as error:
        rooms.story(f"  not all evidence could be saved: {error}")


def _save_story(rooms: Rooms, name: str, cause: Cause, folder: Path, *, linked_to: str) -> None:
    history = rooms.memory.history()
    deployment, run = history.deployments.get(cause.deployment), history.runs.get(name)
    story = {
        "run": name,
        "linked_to": linked_to,
        "owner": rooms.config.notify.owner,
        "trigger": cause.trigger,
        "sentence": cause.sentence,
        "invalid_rows": list(cause.invalid_rows),
        "commits": {
            release: history.releases[release].release.commit
            for release in (bad_release(history), run.plan.to_release if run else "")
            if release in history.releases
        },
        "window": _BUCKETS.dump_python(deployment.buckets, mode="json") if deployment else [],
    }
    (folder / STORY_FILE).write_text(json.dumps(story, indent=2, ensure_ascii=False) + "\n")


def keep_restore_point(rooms: Rooms, restore_point: str) -> None:
    """Put a restore point that was just proved into the journal, once."""
    if rooms.database and restore_point not in rooms.memory.history().restore_points:
        kept = rooms.database.restore_point(restore_point)
        rooms.memory.note(RestorePointKept(restore_point=kept))
        if kept.paused_s:
            why = f", in vain, and it was dumped: {kept.not_copied}" if kept.not_copied else " while it was copied"
            rooms.story(f"  everybody was kept out of {kept.database} for {kept.paused_s:.1f} s{why} ({restore_point})")
        elif kept.not_copied:
            rooms.story(f"  {kept.database} was dumped, not copied: {kept.not_copied} ({restore_point})")
        for why in kept.lossy_because:
            rooms.story(
                f"  a rollback of the database would lose writes since {kept.taken_at:%Y-%m-%d %H:%M} UTC "
                f"({restore_point}), all but the last state of each row: {why}"
            )


def take_up(rooms: Rooms) -> Report | None:
    """Go on with a rollback whose process died. None when there is none. Needs the RUN lease."""
    report = None
    while (run := rooms.memory.history().open_run) is not None and run.plan.purpose is Purpose.ROLLBACK:
        rooms.story(f"taking up {run.started.run}, begun at {run.record.at:%H:%M:%S} UTC by {run.started.by}")
        if run.started.trigger == COMPENSATION:
            if (stopped := finish_compensation(rooms, run.plan)) is not None:
                rooms.story(f"  stopped: {stopped.reason}; {stopped.hint}")
        else:
            report = finish(rooms, run.started.run)
    return report

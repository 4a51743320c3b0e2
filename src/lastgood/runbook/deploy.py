"""A deployment: prepare, restore point, gate, migrate, roll out, then watch. What could not be rolled back is refused
first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event as Flag
from threading import Thread
from typing import Self

from lastgood.core.deploying import expected, make_deploy_plan, not_run, pending_migrations
from lastgood.core.errors import LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import DatabaseFacts
from lastgood.core.history import History, RunHistory
from lastgood.core.migration import Outlook
from lastgood.core.plan import (
    CLONE_SHARE,
    DeployCost,
    Migrate,
    PassGate,
    Pause,
    Plan,
    Purpose,
    Step,
    TakeRestorePoint,
    put_by_others,
)
from lastgood.core.ports import Right
from lastgood.core.reading import Bucket
from lastgood.core.record import (
    BaselineTaken,
    DeploymentEnded,
    DeploymentStarted,
    Record,
    ReleaseCompleted,
    ReleaseRecorded,
    RunEnded,
    RunStarted,
    StepStarted,
)
from lastgood.core.release import NAME_GRAMMAR, Deployment, Release, Standing
from lastgood.core.report import Report, TerminalState
from lastgood.core.run import Stop, began_serving_change
from lastgood.runbook.captures import bound_by_hand
from lastgood.runbook.carry_out import carry_out
from lastgood.runbook.given_up import keep_restore_points
from lastgood.runbook.ground import Ground
from lastgood.runbook.holding import let_go_of_old, let_go_of_unrecorded, look_through, warn
from lastgood.runbook.looking import Eyes, patiently
from lastgood.runbook.restore_points import next_pause
from lastgood.runbook.rollback import (
    BY_GATE,
    BY_LASTGOOD,
    BY_PERSON,
    Cause,
    automatic_allowed,
    clear_candidates,
    name_again,
    new_run_id,
    roll_back,
    supersede,
)
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell
from lastgood.runbook.watch import start_watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What became of a deploy's plan. report: of the rollback that followed when it stopped; None: it serves and is
    watched."""

    deployment: str
    report: Report | None = None


def check_may_deploy(history: History) -> None:
    """Raise Refused, nothing changed, when deploys are frozen or something unfinished lies in the way."""
    if history.frozen:
        raise Refused(
            f"deploys are frozen by {history.frozen.by}: {history.frozen.why}",
            hint="lastgood unfreeze -m 'why it is safe'",
        )
    if (run := history.open_run) is not None:
        raise Refused(
            f"{run.plan.purpose.value} {run.started.run} of {run.plan.to_release} did not finish",
            hint="lastgood rollback",
        )


def check_release(history: History, name: str, *, first: bool, override: bool) -> None:
    """Raise Refused, nothing changed, when this release may not be deployed, or could not be rolled back."""
    if not NAME_GRAMMAR.fullmatch(name):
        raise Refused(f"{name!r} is not a release name", hint="lastgood deploy --release NAME")
    known = history.releases.get(name)
    if known and known.standing is Standing.BARRED and not override:
        raise Refused(
            f"{name} is barred ({known.judged_by})", hint=f"lastgood deploy --release {name} --even-if-barred"
        )
    good = [r for r in history.releases.values() if r.is_way_back and r.release.id != name]
    if not good and not first:
        if known and known.is_way_back and name == history.serving:
            raise Refused(
                f"{name} is recorded already, is good and serves; another release needs a name of its own",
                hint="lastgood deploy --release ANOTHER-NAME",
            )
        hint = "lastgood record --good" if history.serving else f"lastgood deploy --release {name} --first"
        raise Refused("there is no good release to go back to, so this deploy could not be rolled back", hint=hint)


def check_way_back(rooms: Rooms, history: History, name: str) -> None:
    """Raise Refused, nothing changed, when the release to which this deploy would be rolled back cannot serve again."""
    way_back = history.last_good(before=name)
    for release, missing in look_through(rooms, (way_back.release,) if way_back else ()):
        if lost := [m.what for m in missing if m.lost]:
            raise Refused(
                f"this deploy could not be rolled back: {release.id} cannot serve again: {'; '.join(lost)}",
                hint=f"lastgood deploy --release {name} --first",
            )


def deploy(
    rooms: Rooms,
    name: str,
    *,
    first: bool,
    override: bool,
    confirm: Callable[[Plan], bool],
    watched: bool = True,
) -> Deployed:
    """Deploy what the files on disk say, as release `name`. Takes the RUN lease once confirm said yes: until then
    whoever wants to go back can.

    confirm: is shown the plan and says whether to go on. watched: whether somebody watches it from when it serves; else
    what the server keeps for a replay may have to end then (`captures.leave`). Raises Refused, nothing changed, when it
    may not be done.
    """
    with rooms.memory.journal.claim(rooms.who, Right.PREPARE), _Baseline(rooms) as baseline:
        if holder := rooms.memory.journal.holder():
            raise Refused(f"the right to run is held by {holder}", hint="lastgood status")
        history = rooms.memory.history()
        check_may_deploy(history)
        check_release(history, name, first=first, override=override)
        if not first:
            check_way_back(rooms, history, name)
        rooms.story(f"preparing {name}")
        release = _prepared(rooms, name, override=override)
        history = rooms.memory.history()
        ground, way_back = Ground.of(history), history.last_good(before=name)
        plan = _plan(rooms, release, history, watched=watched)
        if not confirm(plan):
            # without its name what the checkout is called would be deployed
            how = f"{' --first' if first else ''}{' --even-if-barred' if override else ''}"
            again = f"lastgood deploy --release {name}{how} --yes"
            raise Refused(f"{name} was not deployed: not confirmed", hint=again)
        with rooms.memory.journal.claim(rooms.who):
            # minutes may have passed since the plan was made, and anybody may have gone back in them
            history = rooms.memory.history()
            check_may_deploy(history)
            check_release(history, name, first=first, override=override)
            lost = ground.lost(history)
            if not lost and (found := history.last_good(before=name)) is not way_back:
                lost = f"the way back is {found.release.id if found else 'none'} now"
            if lost:
                raise Refused(f"{name} was not deployed: {lost}", hint=f"lastgood deploy --release {name}")
            deployment = _begin(rooms, release, plan)
            return _go_on(rooms, rooms.memory.history().runs[plan.id], deployment, baseline.taken)


def take_up(rooms: Rooms) -> Deployed | None:
    """Go on with a deploy whose process died after it changed what serves. None when there is none. Needs the RUN
    lease.

    Raises Refused when it died before: then `rollback` removes what it began.
    """
    history = rooms.memory.history()
    run = history.open_run
    if run is None or run.plan.purpose is not Purpose.DEPLOY:
        return None
    if not began_serving_change(run.plan, run.records):
        raise Refused(f"deploy of {run.plan.to_release} died before it changed what serves", hint="lastgood rollback")
    rooms.story(f"taking up the deploy of {run.plan.to_release} ({run.started.run})")
    with rooms.memory.journal.claim(rooms.who, Right.PREPARE):  # at its end old releases are let go of
        return _go_on(rooms, run, run.started.deployment, lambda: ())


def _barred_by_another_name(history: History, release: Release) -> str:
    """Return the barred release with the same artifacts, or from the same clean commit; empty when there is none."""
    for known in history.releases.values():
        other = known.release
        same = other.content == release.content
        commit = release.commit is not None and release.commit == other.commit and not (release.dirty or other.dirty)
        if known.standing is Standing.BARRED and other.id != release.id and (same or commit):
            return other.id
    return ""


def _prepared(rooms: Rooms, name: str, *, override: bool) -> Release:
    """Build or pull, hold, describe, record. What is not recorded after all is not kept either: nobody could go back to
    it, and its name would stand for it."""
    release, known = rooms.containers.prepare(name, rooms.clock.now()), rooms.memory.history().releases.get(name)
    try:
        # who went back meanwhile may have put the names of images back to what serves: then nobody knows what was held
        check_may_deploy(rooms.memory.history())
        return _recorded(rooms, release, override=override)
    except LastgoodError:
        if known is None or known.let_go:
            let_go_of_unrecorded(rooms, release)
        raise


def _recorded(rooms: Rooms, release: Release, *, override: bool) -> Release:
    """With what the release says of the database. The same name with other content is refused."""
    name = release.id
    if rooms.database:
        shipped = rooms.database.ships(name)
        release = replace(release, migrations=shipped.migrations, statements=shipped.statements, downs=shipped.downs)
    known = rooms.memory.history().releases.get(name)
    if not override and (barred := _barred_by_another_name(rooms.memory.history(), release)):
        raise Refused(
            f"{name} is {barred} by another name, which was rolled back",
            hint=f"lastgood deploy --release {name} --even-if-barred",
        )
    if known is not None and known.release.content != release.content:
        raise Refused(f"{name} was recorded with other content before", hint="lastgood deploy --release ANOTHER-NAME")
    warn(rooms, release)
    if known is not None and not known.let_go:
        if not release.downs or release.downs == known.release.downs:  # of what the database has already, none is told
            return known.release
        release = replace(known.release, downs=release.downs)
    rooms.memory.note(ReleaseRecorded(release=release))
    return release


def _plan(rooms: Rooms, release: Release, history: History, *, watched: bool) -> Plan:
    containers = rooms.containers.observe()
    database = rooms.database.observe() if rooms.database else None
    if rooms.database and (missing := rooms.database.preflight()):
        raise Refused(f"no restore point could be taken: {'; '.join(missing)}", hint="lastgood doctor")
    for caution in rooms.database.cautions() if rooms.database else ():
        rooms.story(f"  note: {caution}")
    for why in rooms.database.thrown_out_because() if rooms.database else ():
        rooms.story(f"  a rollback of the database would throw its clients out: {why}")
    config = rooms.config.database
    waits = next_pause(rooms, history, database) if database else None
    copied = waits is not None and waits.copies
    lossy = rooms.database.lossy_because(copied=copied) if rooms.database else ()
    unbounded = ""
    if config and database and not lossy and database.slot_limit_bytes is None:
        unbounded = (
            "max_slot_wal_keep_size is not set on the server; to set it: "
            f"{bound_by_hand(config.restore_points.capture_limit + database.restore_log_bytes)}"
        )
    if unbounded and not watched:
        lossy = (f"nobody will watch, so its log is kept no longer than the deploy: {unbounded}",)
    if config and config.restore_points.require_lossless and lossy:
        raise Refused(
            f"database.restore_points.require_lossless: not every transaction could be replayed: {'; '.join(lossy)}",
            hint="lastgood doctor",
        )
    deadlines = rooms.deadlines
    outlook = _outlook(rooms, release, database, history) if database else None
    good = history.last_good(before=release.id)
    last_good = good.release.id if good else ""
    return make_deploy_plan(
        release,
        plan_id=new_run_id(history),
        now=rooms.clock.now(),
        serving=history.serving,
        last_good=last_good,
        containers=containers,
        database=database,
        restore_point=history.restore_point_id(_next_deployment(history)),
        lossy_because=lossy,
        unbounded=unbounded if watched else "",
        unrecoverable=_unrecoverable(rooms),
        left_to_people=(*left_to_people(rooms), *_left_alone(rooms)),
        rung=rooms.containers.rung("" if last_good in ("", history.serving) else last_good),
        boot_s=deadlines.boot_s,
        drain_s=deadlines.drain_s,
        restore_s=deadlines.database_s,
        migrate_s=config.migrations.timeout if config and config.migrations else deadlines.database_s,
        outlook=outlook,
        cost=_cost(rooms, database, history, waits, lossy=bool(lossy)) if database else None,
    )


def _cost(
    rooms: Rooms, database: DatabaseFacts, history: History, waits: Pause | None, *, lossy: bool
) -> DeployCost | None:
    config = rooms.config.database
    if rooms.database is None or config is None:
        return None
    copied = waits is not None and waits.copies
    takes_s, by = expected(history, database.size_bytes, copied=copied)
    log_bytes = config.restore_points.capture_limit + (0 if copied else database.restore_log_bytes)
    return DeployCost(
        size_bytes=database.size_bytes,
        disk_bytes=round(2 * database.size_bytes * CLONE_SHARE),
        free=rooms.database.room(),
        log_bytes=0 if lossy else log_bytes,
        takes_s=takes_s,
        by=by,
        pause=waits,
    )


def _outlook(rooms: Rooms, release: Release, database: DatabaseFacts, history: History) -> Outlook | None:
    """What the pending migrations would do; None without any."""
    pending = pending_migrations(release, database)
    if rooms.database is None or not pending:
        return None
    way_back = history.last_good(before=release.id)
    with rooms.if_slow(1.0, lambda: rooms.story("  trying the migrations on an empty copy ...")):
        return rooms.database.foresee(release, pending, last_good=way_back.release if way_back else None)


def left_to_people(rooms: Rooms) -> tuple[str, ...]:
    """What `docker compose up` would run before a release serves, and a deploy does not, one line each."""
    migrations = rooms.config.database.migrations if rooms.config.database else None
    return not_run(rooms.containers.awaited(), migrations.command if migrations else ())


def _left_alone(rooms: Rooms) -> tuple[str, ...]:
    """What `docker compose up` would start or recreate, and a deploy does not, one line each. No deploy stops because
    that could not be seen."""
    try:
        return tuple(": ".join(filter(None, told)) for told in rooms.containers.left_alone())
    except LastgoodError as error:
        return (f"whether services of no release are as their file says could not be seen: {error.message}",)


def _unrecoverable(rooms: Rooms) -> tuple[str, ...]:
    """What would keep pgBackRest from bringing this moment back. It is the last resort, and no reason to refuse."""
    try:
        backups = rooms.database.backups() if rooms.database else None
    except LastgoodError as error:
        return (error.message,)
    return backups.wrong if backups else ()


def _next_deployment(history: History) -> str:
    return f"d{len(history.deployments) + 1}"


def _begin(rooms: Rooms, release: Release, plan: Plan) -> str:
    history = rooms.memory.history()
    deployment = Deployment(
        id=_next_deployment(history),
        release=release.id,
        previous=history.serving or None,
        started_at=rooms.clock.now(),
    )
    rooms.memory.note(DeploymentStarted(deployment=deployment))
    rooms.memory.note(
        RunStarted(
            run=plan.id,
            plan=plan,
            trigger=BY_PERSON,
            sentence=f"deploy {release.id}",
            by=rooms.who,
            deployment=deployment.id,
        )
    )
    return deployment.id


def _supersede(rooms: Rooms, deployment: str) -> None:
    """End the watch of the deployment before, once users notice something of this one. Until then that may go back."""
    release = rooms.memory.history().deployments[deployment].deployment.release
    supersede(rooms, deployment, f"{release} was deployed")


def _go_on(rooms: Rooms, run: RunHistory, deployment: str, baseline: Callable[[], tuple[Bucket, ...]]) -> Deployed:
    plan = run.plan

    migrates = any(isinstance(step.action, Migrate) for step in plan.steps)

    def before(step: Step) -> None:
        """The baseline ends before anything changes. It also ends before a restore point that may be needed: what is
        written between the two would leave the live data with it. What was taken is journaled before it is needed. What
        users notice of a pause is no fault of the release before, whose watch ends."""
        keep_restore_points(rooms, plan)
        taken = step.action if isinstance(step.action, TakeRestorePoint) else None
        pauses = taken is not None and taken.pause_s > 0
        if step.changes_what_serves or pauses:
            _supersede(rooms, deployment)
        if not step.changes_what_serves and not pauses and not (migrates and taken is not None):
            return
        if not rooms.memory.history().deployments[deployment].baseline and (buckets := baseline()):
            rooms.memory.note(BaselineTaken(deployment=deployment, buckets=buckets))

    ending = carry_out(rooms, plan.id, before=before)
    keep_restore_points(rooms, plan)
    if isinstance(ending, Stop):
        return _undo(rooms, plan, deployment, ending)
    _supersede(rooms, deployment)
    if rooms.memory.history().deployments[deployment].watch is None:
        start_watch(rooms, deployment)
    rooms.story(f"{plan.to_release} serves")
    rooms.memory.note(ReleaseCompleted(release=plan.to_release, fingerprint=_fingerprint(rooms), says=rooms.named()))
    rooms.memory.note(RunEnded(run=plan.id, terminal=None, serving=plan.to_release))
    let_go_of_old(rooms)
    for line in _left_alone(rooms):
        rooms.story(f"  note: {line}")
    return Deployed(deployment=deployment)


def _fingerprint(rooms: Rooms) -> str:
    """The schema that a release left; empty where it could not be seen, and then a person decides about it later."""
    try:
        return patiently(rooms.clock, rooms.database.observe).fingerprint if rooms.database else ""
    except LastgoodError as error:
        rooms.story(f"  the schema could not be looked at: {error.message}")
        return ""


def _undo(rooms: Rooms, plan: Plan, deployment: str, stop: Stop) -> Deployed:
    """A deploy that stopped is put back by an ordinary rollback, which finds out by itself how much there is to do. One
    that stopped before its gate left nothing to put back: it is refused, and says nothing of the release.

    Raises Refused when nothing was changed, NeedsHuman when a person must look.
    """
    at = stop.step.name if stop.step else "its start"
    rooms.story(f"deploy stopped at {at}: {stop.reason.removeprefix(f'{at}: ')}")
    rooms.memory.note(RunEnded(run=plan.id, terminal=None, serving=plan.from_release, stopped=stop.reason))
    records = rooms.memory.history().runs[plan.id].records
    if not _began(plan, records):
        for line in name_again(rooms, plan.from_release):
            rooms.story(f"  {line}")
        sentence = f"{plan.to_release} was not deployed: {stop.reason}"
        rooms.memory.note(DeploymentEnded(deployment=deployment, terminal=stop.terminal, sentence=sentence))
        kind = NeedsHuman if stop.terminal is TerminalState.NEEDS_HUMAN else Refused
        raise kind(sentence, hint=stop.hint or "lastgood doctor")
    moved = began_serving_change(plan, records)
    trigger = BY_GATE if stop.step and isinstance(stop.step.action, PassGate) else "deploy"
    cause = Cause(trigger=trigger, sentence=stop.reason, by=BY_LASTGOOD, deployment=deployment)
    try:
        if others := put_by_others(plan, patiently(rooms.clock, rooms.containers.observe)):
            raise Refused(f"somebody else changed what serves: {'; '.join(others)}", hint="lastgood status")
        # at the gate nothing has changed and there is nothing to ask about; half-way mode and budget say
        why_ask = automatic_allowed(rooms, rooms.memory.history()) if moved else ""
        if why_ask:
            rooms.story(f"asking first: {why_ask}")
        return Deployed(deployment=deployment, report=roll_back(rooms, cause, confirm=bool(why_ask)))
    except (Refused, Retryable, OutcomeUnknown) as error:
        raise _stays(rooms, plan, deployment, stop, error, moved=moved) from error


def _stays(
    rooms: Rooms, plan: Plan, deployment: str, stop: Stop, error: LastgoodError, *, moved: bool
) -> Refused | NeedsHuman:
    """No rollback could be planned: say what is where, and end the deployment unless a rollback can be tried later."""
    left = clear_candidates(rooms, plan)
    sentence = "; ".join(filter(None, (stop.reason, f"no rollback could be planned: {error.message}", left)))
    now = isinstance(error, Refused)
    if not moved and now:
        rooms.memory.note(DeploymentEnded(deployment=deployment, terminal=TerminalState.REFUSED, sentence=sentence))
        return Refused(sentence, hint=stop.hint or error.hint)
    if now:
        rooms.memory.note(DeploymentEnded(deployment=deployment, terminal=TerminalState.NEEDS_HUMAN, sentence=sentence))
    hint = "lastgood status" if now else "lastgood rollback"
    who = rooms.config.notify.owner
    text = f"🚨 the deploy of {plan.to_release} stopped: {sentence}. {who} is needed. Next: {hint}"
    tell(rooms, "", text, event_id=f"{deployment}-stopped")
    return NeedsHuman(sentence, hint=hint)


def _began(plan: Plan, records: Sequence[Record]) -> bool:
    """Whether any step was started but a restore point, which changes nothing and is kept."""
    begun = {record.event.step for record in records if isinstance(record.event, StepStarted)}
    return any(step.name in begun and not isinstance(step.action, TakeRestorePoint) for step in plan.steps)


class _Baseline:
    """Readings before the first effect, gathered beside the preparation; `taken` waits until they are long enough."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._stop = Flag()
        self._buckets: list[Bucket] = []
        self._thread = Thread(target=self._gather, name="baseline", daemon=True)

    def __enter__(self) -> Self:
        if self._needed():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _needed(self) -> bool:
        return bool(self._rooms.memory.history().serving and self._rooms.sources and self._rooms.config.watch.baseline)

    def _gather(self) -> None:
        rules = self._rooms.config.watch
        with Eyes(self._rooms.sources, self._rooms.clock) as eyes:
            eyes.look()
            while len(self._buckets) * rules.interval < rules.baseline and not self._stop.is_set():
                self._buckets.append(eyes.look_after(rules.interval))

    def taken(self) -> tuple[Bucket, ...]:
        """Return the buckets, oldest first, after waiting for the rest of the baseline's length."""
        if not self._thread.is_alive() and not self._buckets:
            return ()
        left_s = self._rooms.config.watch.baseline - len(self._buckets) * self._rooms.config.watch.interval
        if left_s > 0:
            self._rooms.story(f"  reading what is normal before anything changes, {left_s:.0f} s left")
        self._thread.join(timeout=self._rooms.config.watch.baseline * 2)
        return tuple(self._buckets)

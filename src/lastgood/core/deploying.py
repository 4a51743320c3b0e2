"""The plan that puts a new release into production: restore point, gate, migrate, roll out service by service.

Until the first service is switched nothing that users see has changed, so a deploy that stops at the gate is undone by
removing what the gate started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from lastgood.core.facts import ContainerFacts, DatabaseFacts
from lastgood.core.history import History, RunHistory
from lastgood.core.migration import Outlook
from lastgood.core.plan import (
    ClearCandidates,
    DeployCost,
    Migrate,
    PassGate,
    Pause,
    Plan,
    Purpose,
    Retire,
    Seen,
    Serve,
    Settle,
    Step,
    Switch,
    TakeRestorePoint,
    runs,
)
from lastgood.core.record import StepSeen
from lastgood.core.release import Release, ServiceRecord, Standing
from lastgood.core.report import Check

BYTES_PER_S = 134e6
"""Dump and restore together: 1.5 GB took 11.2 s while four clients wrote."""
DUMP_BYTES_PER_S = 254e6
"""The dump alone: 5.9 s."""
COPY_BYTES_PER_S = 500e6
"""A copy of the files, while four clients had written: 1.6 GB took 3.1 s. An idle server took a third of that."""
BEGIN_S = 1.0
"""What the smallest takes."""
COPY_BEGIN_S = 0.5
"""As long as that are its users kept out of the smallest, of which most is for the server's checkpoints."""


def make_deploy_plan(
    release: Release,
    *,
    plan_id: str,
    now: datetime,
    serving: str,
    last_good: str = "",
    containers: ContainerFacts,
    database: DatabaseFacts | None,
    restore_point: str,
    lossy_because: tuple[str, ...] = (),
    unbounded: str = "",
    unrecoverable: tuple[str, ...] = (),
    left_to_people: tuple[str, ...] = (),
    rung: str,
    boot_s: float,
    drain_s: float = 0.0,
    restore_s: float,
    migrate_s: float,
    outlook: Outlook | None = None,
    cost: DeployCost | None = None,
) -> Plan:
    """Plan the deployment of `release`. serving: the release that serves now, empty on a first deploy. last_good: to
    which it would be rolled back, and which stays ready for that; empty where there is none.

    restore_point: id for the one that is taken first, when there is a database. lossy_because: what keeps the
    transactions written after it from being replayed one by one. unbounded: why the server itself sets no limit to what
    it keeps for that, empty where it does. unrecoverable: what keeps pgBackRest from bringing it back, where that is
    configured. left_to_people: what nobody does but a person, and when. boot_s, drain_s, restore_s, migrate_s:
    deadlines. outlook: of the migrations, None where none is pending. cost: of the restore point.
    A service that already runs the wanted artifact is left alone.
    """
    steps: list[Step] = []
    skipped: list[str] = []
    if database is None:
        skipped.append("database: none configured")
    else:
        pause = cost.pause if cost else None
        most_s = pause.most_s if pause and pause.copies else 0.0
        dump = f"dump {database.database}, restore it beside and prove it"
        copy = f"copy {database.database} while nobody else is in it, and prove it; where that cannot be: {dump}"
        steps.append(
            Step(
                name="take-restore-point",
                action=TakeRestorePoint(restore_point=restore_point, pause_s=most_s),
                deadline_s=restore_s,
                explain=f"{copy if most_s else dump} ({restore_point})",
                attempts=2,
            )
        )
    changed = changed_services(release, containers)
    if not changed and not leaving(release, containers):
        skipped.append(f"containers: every service already runs {release.id}")
    standby = last_good or serving
    steps += gate_step(
        release, changed, containers, boot_s=boot_s, attempts=1, standby="" if standby == serving else standby
    )
    if database is not None:
        if pending := pending_migrations(release, database):
            steps.append(
                Step(
                    name="migrate",
                    action=Migrate(release=release.id, migrations=pending),
                    deadline_s=migrate_s,
                    explain=f"apply {', '.join(pending)}",
                    attempts=1,
                )
            )
        else:
            skipped.append("migrations: none pending")
    steps += serve_steps(release, changed, containers, boot_s=boot_s, drain_s=drain_s, standby=standby)
    return Plan(
        id=plan_id,
        purpose=Purpose.DEPLOY,
        made_at=now,
        from_release=serving,
        to_release=release.id,
        steps=tuple(steps),
        rung=rung,
        skipped=tuple(skipped),
        warnings=(
            *left_to_people,
            *(
                f"a rollback of the database would lose writes since {now:%Y-%m-%d %H:%M} UTC, all but the last state "
                f"of each row: {why}"
                for why in lossy_because
            ),
            *(
                [f"should the watch die, the server's log grows until somebody types lastgood status: {unbounded}"]
                if unbounded
                else []
            ),
            *(f"in a catastrophe pgBackRest could not bring this moment back: {why}" for why in unrecoverable),
        ),
        found=found(release, containers),
        beside=beside(containers),
        outlook=outlook,
        cost=cost,
    )


def not_run(awaited: Sequence[tuple[str, str]], migrate: Sequence[str]) -> tuple[str, ...]:
    """Say which services that others wait for nobody runs at a deploy, one line each. awaited: each with what a person
    types to run it. migrate: the words of the command that applies migrations."""
    run = " ".join(migrate).split()
    return tuple(
        f"{service} is not run by lastgood, and others wait for its end; before a deploy that needs it: {by_hand}"
        for service, by_hand in awaited
        if service not in run
    )


def expected(history: History, size_bytes: int, *, copied: bool = False) -> tuple[float, str]:
    """Return how many seconds a restore point of so many bytes will take, and what that is reckoned from: the newest
    that was taken here in the same way, or else what was measured elsewhere."""
    for run in reversed(history.runs.values()):
        steps = {step.name: step.action for step in run.plan.steps if isinstance(step.action, TakeRestorePoint)}
        for record in reversed(run.records):
            event = record.event
            if not isinstance(event, StepSeen) or event.step not in steps or not event.applied:
                continue
            if event.seen is not Seen.DONE or event.elapsed_s <= 0:
                continue
            name = steps[event.step].restore_point
            point = history.restore_points.get(name)
            if (point is not None and point.copied) is copied:
                return _grown(run.plan.cost, event.elapsed_s, name, size_bytes)
    takes_s = BEGIN_S + size_bytes / (DUMP_BYTES_PER_S if copied else BYTES_PER_S)
    return takes_s + (_pause_elsewhere_s(size_bytes) if copied else 0.0), _ELSEWHERE


def pause(allowed_s: float, history: History, size_bytes: int, *, in_the_way: tuple[str, ...]) -> Pause:
    """Say whether a database of so many bytes is copied, and for how long its users would be kept out of it. What was
    given up once because it took too long is not tried again before more is allowed.

    in_the_way: what keeps it from being copied, one line each.
    """
    tried = ((history.restore_points.get(name), run.plan.cost) for name, run in _taken(history))
    last = next(((point, cost) for point, cost in tried if point and point.paused_s > 0), None)
    if last is None:
        takes_s, by = _pause_elsewhere_s(size_bytes), _ELSEWHERE
    else:
        point, cost = last
        takes_s, by = _grown(cost, point.paused_s, point.id, size_bytes)
        by += " and was given up" if point.not_copied else ""
    because = "; ".join(in_the_way)
    if not because and takes_s > allowed_s:
        because = f"a copy would take about {takes_s:.1f} s ({by}), and allow_pause is {allowed_s:g} s"
    return Pause(most_s=allowed_s, takes_s=takes_s, by=by, dumped_because=because)


_ELSEWHERE = "none was taken here yet: by what was measured elsewhere"


def _taken(history: History) -> Iterator[tuple[str, RunHistory]]:
    """The restore points of the runs, newest first."""
    for run in reversed(history.runs.values()):
        for step in run.plan.steps:
            if isinstance(step.action, TakeRestorePoint):
                yield step.action.restore_point, run


def _pause_elsewhere_s(size_bytes: int) -> float:
    return COPY_BEGIN_S + size_bytes / COPY_BYTES_PER_S


def _grown(was: DeployCost | None, took_s: float, name: str, size_bytes: int) -> tuple[float, str]:
    """What took so long once, for so many bytes as there are now."""
    if was and was.size_bytes:
        grown = max(size_bytes / was.size_bytes, 1.0)  # what it costs to begin does not shrink
        return took_s * grown, f"{name} took {took_s:.1f} s"
    return took_s, f"{name} took {took_s:.1f} s, of whatever size the database was then"


def pending_migrations(release: Release, database: DatabaseFacts) -> tuple[str, ...]:
    """Return the migrations of `release` that the database does not have, oldest first."""
    return tuple(m for m in release.migrations if m not in database.migrations)


def found(release: Release, containers: ContainerFacts) -> tuple[tuple[str, str], ...]:
    """Return (service, artifact) of what runs of the release's services, and of those that it does not have and that
    stop for it, to be compared before the first effect."""
    counts = {*(s.name for s in release.services), *leaving(release, containers)}
    return tuple((i.service, i.artifact) for i in containers.serving if i.running and i.service in counts)


def left_as_found(plan: Plan) -> tuple[tuple[str, int], ...]:
    """Return (service, number) of what ran of each service of which the plan starts nothing, when it was made: a person
    may have scaled it down, and what was left alone is not to be found worse for that."""
    starts = {service for step in plan.steps for service, _ in step.serves}
    return tuple(Counter(service for service, _ in plan.found if service not in starts).items())


def beside(containers: ContainerFacts) -> tuple[tuple[str, str], ...]:
    """Return (service, artifact) of what stands beside and is of no release."""
    return tuple((i.service, i.artifact) for i in containers.strays)


def leaving(release: Release, containers: ContainerFacts) -> tuple[str, ...]:
    """Return the services that serve and that `release` does not have: another release brought them. What stood beside
    it when it was recorded is of no release, and goes on."""
    known = {*(s.name for s in release.services), *(beside.name for beside in release.untouched)}
    known |= {i.service for i in containers.stateful}
    return tuple(dict.fromkeys(i.service for i in containers.serving if i.service not in known))


def left_alone(release: Release, containers: ContainerFacts) -> tuple[str, ...]:
    """Say which services of `release` stay as they are, one line each: they are among those that are never touched by
    now, and may have got data since."""
    stateful = {i.service for i in containers.stateful}
    return tuple(stays_as_it_is(s.name, release.id) for s in release.services if s.name in stateful)


def not_as_recorded(release: Release, containers: ContainerFacts) -> tuple[str, ...]:
    """Return the services of `release` in whose place something else serves now."""
    records = {record.name: record for record in release.services}
    others = (i.service for i in containers.serving if i.service in records and not runs(records[i.service], i))
    return tuple(sorted({*others}))


def only_barred(history: History, serving: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Say which of these services run what only barred releases have, one line each. serving: (service, artifact). What
    a good release has too was not at fault."""
    of = {standing: _artifacts(history, standing) for standing in (Standing.GOOD, Standing.BARRED)}
    found = {
        one[0]: of[Standing.BARRED][one] for one in serving if one in of[Standing.BARRED].keys() - of[Standing.GOOD]
    }
    return tuple(f"{service} is of {release}" for service, release in sorted(found.items()))


def _artifacts(history: History, standing: Standing) -> dict[tuple[str, str], str]:
    """(service, artifact) of the releases of this standing, with the newest one that has it."""
    known = (r.release for r in history.releases.values() if r.standing is standing)
    return {(s.name, s.artifact): release.id for release in known for s in release.services}


def stays_as_it_is(service: str, release: str) -> str:
    """Say that a service of a release is among those that are never touched by now."""
    return f"{service} of {release} is not touched: containers.services does not name it any more"


def nobody_else(release: Release, containers: ContainerFacts) -> Check:
    """The check that no service serves, or may come back by itself, which `release` does not have."""
    others = leaving(release, containers)
    detail = f"{', '.join(others)}: {release.id} does not have it" if others else "none"
    return Check(name="services of other releases", passed=not others, detail=detail)


def never_touched(plan: Plan, containers: ContainerFacts) -> Check:
    """The check that every instance is there yet which nothing of the plan may touch."""
    there = {i.instance for i in containers.stateful}
    gone = sorted({service for service, instance in plan.stateful if instance not in there})
    detail = f"gone: {', '.join(gone)}" if gone else ", ".join(sorted({service for service, _ in plan.stateful}))
    return Check(name="containers that are never touched", passed=not gone, detail=detail)


def changed_services(
    release: Release, containers: ContainerFacts, *, untouched: bool = False
) -> tuple[ServiceRecord, ...]:
    """Return the services of `release` that do not serve from it now, or with fewer instances than it asks for, in the
    release's order, without those that are never touched.

    Behind an edge the services of a release talk to each other and to no other release's, so they change together.
    untouched: it served all the while. Then what runs as wanted goes on, however slow its health check answers just
    now and whoever started it: to recreate it would be the first outage.
    """
    stateful = {i.service for i in containers.stateful}
    changed = {
        service.name
        for service in release.services
        if (
            service.name not in stateful
            and len(containers.of(service.name)) < (1 if untouched else containers.at_least(release.id, service.name))
        )
        or not all(
            runs(service, i)
            and (
                i.running
                if untouched
                else i.serves and (service.name not in containers.switchable or i.release == release.id)
            )
            for i in containers.of(service.name)
        )
    }
    if changed & containers.switchable:
        changed |= containers.switchable
    return tuple(service for service in release.services if service.name in changed)


def gate_step(
    release: Release,
    changed: tuple[ServiceRecord, ...],
    containers: ContainerFacts,
    *,
    boot_s: float,
    attempts: int,
    standby: str = "",
) -> list[Step]:
    """The gate for the services that change and may stand beside themselves; empty when there are none. standby: as in
    PassGate."""
    gated = tuple(s for s in changed if s.name not in containers.ungated)
    if not gated:
        return []
    names = ", ".join(s.name for s in gated)
    return [
        Step(
            name="pass-gate",
            action=PassGate(release=release.id, artifacts=tuple((s.name, s.artifact) for s in gated), standby=standby),
            deadline_s=boot_s * len(gated),
            explain=f"start {names} of {release.id} beside what serves, until healthy",
            attempts=attempts,
        )
    ]


def serve_steps(
    release: Release,
    changed: tuple[ServiceRecord, ...],
    containers: ContainerFacts,
    *,
    boot_s: float,
    drain_s: float = 0.0,
    standby: str = "",
    needs_approval: bool = False,
) -> list[Step]:
    """One step for all services that an edge switches, one for each other service and for each that the release does
    not have, then the end of what does not serve; empty when nothing changes. drain_s: how long what an edge takes
    requests from may answer its last ones. standby: release that may stay ready beside.

    A service that leaves is asked until nobody is left who knows it, unless one comes back that does not run: that may
    be the same one by its old name, which wants the port.
    """
    gone = leaving(release, containers)
    if not changed and not gone:
        return []
    together = tuple((s.name, s.artifact) for s in changed if s.name in containers.switchable)
    switch = [
        Step(
            name="switch-traffic",
            action=Switch(release=release.id, artifacts=together),
            deadline_s=boot_s,
            explain=f"the traffic of {', '.join(name for name, _ in together)} moves to {release.id} at once",
            needs_approval=needs_approval,
        )
    ]
    serve = [
        Step(
            name=f"serve-{service.name}",
            action=Serve(
                release=release.id,
                service=service.name,
                artifact=service.artifact,
                config_hash=service.config_hash,
            ),
            deadline_s=boot_s + drain_s,
            explain=f"{service.name} serves from {release.id}",
            needs_approval=needs_approval,
        )
        for service in changed
        if service.name not in containers.switchable
    ]
    retire = [
        Step(
            name=f"retire-{service}",
            action=Retire(release=release.id, service=service),
            deadline_s=boot_s,
            explain=f"{service} stops and is kept: {release.id} does not have it",
            needs_approval=needs_approval,
        )
        for service in gone
    ]
    comes_back = any(not containers.of(service.name) for service in changed)
    move = [*retire, *serve] if comes_back else [*serve, *retire]
    if not together and not containers.switchable & {*gone}:
        return [*move, clear_step(boot_s=boot_s)]
    stays = _stays_beside(containers, standby)
    # one after the other, and each may take its time to stop
    ending = len(containers.candidates) + sum(len(containers.of(name)) for name, _ in together)
    deadline_s = drain_s + boot_s * max(ending, len(together), 1)
    settle = settle_step(deadline_s=deadline_s, standby=standby, stays=stays)
    return [*(switch if together else []), *move, settle]


def _stays_beside(containers: ContainerFacts, standby: str) -> str:
    """What of a release that serves, or stands ready already, will run on beside, in words: nothing where that is not
    wanted, or where its instances were not started as those of a release. Empty for nothing."""
    ready = {i.service for i in containers.candidates if i.running and i.release == standby}
    own = [s for s in containers.switchable if s in ready or {i.release for i in containers.of(s)} == {standby}]
    if not standby or not own or not containers.standby_runs:
        return ""
    part = "" if len(own) == len(containers.switchable) else f"{', '.join(sorted(own))} of "
    return f"{part}{standby} stays ready beside, as the rung says"


def settle_step(*, deadline_s: float, standby: str = "", stays: str = "") -> Step:
    """End what no longer serves behind an edge, but `standby`. stays: what of it will run on, in words."""
    return Step(
        name="settle",
        action=Settle(standby=standby),
        deadline_s=deadline_s,
        explain=f"{stays}; what else does not serve finishes and stops"
        if stays
        else "what does not serve finishes and stops",
    )


def clear_step(*, boot_s: float, standby: str = "") -> Step:
    """Remove what the gate started, but `standby`."""
    return Step(
        name="clear-candidates",
        action=ClearCandidates(standby=standby),
        deadline_s=boot_s,
        explain="remove what was started and does not serve" + (f"; {standby} is beside as before" if standby else ""),
    )

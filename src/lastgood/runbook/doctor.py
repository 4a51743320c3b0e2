"""Could we roll back right now? Named checks, each ok, failed or could not look, with a value and one thing to type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from lastgood.core.deploying import not_as_recorded, only_barred
from lastgood.core.errors import LastgoodError, Refused
from lastgood.core.facts import ContainerFacts, DatabaseFacts, FrontendFacts
from lastgood.core.history import History
from lastgood.core.plan import why_no_way_back, why_restored_first
from lastgood.core.ports import Right
from lastgood.core.reading import NoData, SourceDown
from lastgood.core.release import Release, Standing
from lastgood.runbook import captures
from lastgood.runbook.deploy import left_to_people
from lastgood.runbook.holding import asked_beside, put_back, start_again, ways_back
from lastgood.runbook.looking import Eyes
from lastgood.runbook.record import free_name
from lastgood.runbook.restore_points import next_pause
from lastgood.runbook.rollback import bad_release
from lastgood.runbook.rooms import Rooms


class Answer(StrEnum):
    """COULD_NOT_LOOK is neither ok nor failed."""

    OK = "ok"
    FAILED = "failed"
    COULD_NOT_LOOK = "could not look"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. hint: one thing to type; of one that is ok, what would make it safer."""

    check: str
    answer: Answer
    evidence: str
    hint: str = ""


def examine(rooms: Rooms) -> tuple[Finding, ...]:
    """Run every check, in the order of the house: memory, target, containers, files, database, frontend, eyes, voice.
    Changes nothing."""
    history = rooms.memory.history()
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("journal", lambda: _journal(rooms)),
        ("runs", lambda: _runs(history)),
        ("last good release", lambda: _last_good(history)),
        ("containers", lambda: _containers(rooms, history)),
        ("files", lambda: _files(rooms)),
        ("database", lambda: _database(rooms, history)),
        ("point-in-time recovery", lambda: _backups(rooms)),
        ("frontend", lambda: _frontend(rooms, history)),
        ("signals", lambda: _signals(rooms)),
    )
    found: list[Finding] = []
    for name, look in checks:
        try:
            found += look()
        except LastgoodError as error:
            # a "no" that will be a "no" tonight as well is not the same as no answer
            answer = Answer.FAILED if isinstance(error, Refused) else Answer.COULD_NOT_LOOK
            found.append(Finding(check=name, answer=answer, evidence=error.message, hint=error.hint))
    return tuple(found)


def _journal(rooms: Rooms) -> Iterator[Finding]:
    wrong = rooms.memory.journal.verify()
    yield Finding(
        check="journal",
        answer=Answer.FAILED if wrong else Answer.OK,
        evidence="; ".join(wrong) or f"{rooms.memory.history().last_seq} records, the chain holds",
        hint="lastgood audit verify" if wrong else "",
    )


def _runs(history: History) -> Iterator[Finding]:
    if (run := history.open_run) is not None:
        yield Finding(
            check="runs",
            answer=Answer.FAILED,
            evidence=f"{run.plan.purpose.value} {run.started.run} of {run.plan.to_release} did not finish",
            hint="lastgood rollback",
        )


def _last_good(history: History) -> Iterator[Finding]:
    good = history.last_good(before=bad_release(history))
    serving = history.releases.get(history.serving)
    serving_good = serving is not None and serving.standing is Standing.GOOD
    nothing = f"none before {history.serving}" if history.serving else "none"
    yield Finding(
        check="last good release",
        answer=Answer.OK if good else Answer.FAILED,
        evidence=f"{good.release.id} ({good.judged_by})" if good else nothing,
        hint="" if good else "lastgood deploy" if serving_good else "lastgood record --good",
    )


def _containers(rooms: Rooms, history: History) -> Iterator[Finding]:
    facts: ContainerFacts = rooms.containers.observe()
    down = [i for i in facts.serving if not i.serves]
    yield Finding(
        check="containers",
        answer=Answer.FAILED if down or not facts.serving else Answer.OK,
        evidence=f"{len(facts.serving)} serving"
        + (f"; not serving: {', '.join(i.service for i in down)}" if down else ""),
        hint=start_again(history, down) if down or not facts.serving else "",
    )
    if facts.unwritten:
        yield Finding(
            check="file of the edge",
            answer=Answer.FAILED,
            evidence=f"an edge that is started again would send requests of {', '.join(sorted(facts.unwritten))} "
            "elsewhere than now",
            hint="lastgood init --edge",
        )
    yield from _past_us(rooms, history, facts)
    good = history.last_good(before=bad_release(history))
    yield Finding(check="rung", answer=Answer.OK, evidence=rooms.containers.rung(good.release.id if good else ""))
    yield from _ways_back(rooms, history)


def _past_us(rooms: Rooms, history: History, facts: ContainerFacts) -> Iterator[Finding]:
    """What somebody deployed without lastgood: in the place of the release that serves, or beside it."""
    serving = history.releases.get(history.serving)
    if serving is not None and history.open_run is None and (others := not_as_recorded(serving.release, facts)):
        back, barred = put_back(history), only_barred(history, ((i.service, i.artifact) for i in facts.serving))
        good = f"lastgood record --good --release {free_name(rooms, history.serving)}"
        yield Finding(
            check="what serves",
            answer=Answer.FAILED,
            evidence=f"{', '.join(others)}: not what was recorded as {history.serving}; deployed past lastgood?"
            + (f" {', '.join(barred)}, which was rolled back" if barred else ""),
            hint=back if barred and back else f"{good}   (or go back: {back})" if back else good,
        )
    beside, stop = asked_beside(facts)
    if beside:
        yield Finding(check="beside the edge", answer=Answer.FAILED, evidence=beside, hint=stop)


def _ways_back(rooms: Rooms, history: History) -> Iterator[Finding]:
    """Whether every good release that is kept could serve again, the last good one in a line of its own."""
    last = history.last_good(before=bad_release(history))
    others: list[str] = []
    for known in ways_back(history):
        release = known.release
        missing = rooms.containers.missing(release)
        if known is last or missing:
            yield Finding(
                check="way back" if known is last else f"way back to {release.id}",
                answer=Answer.FAILED if missing else Answer.OK,
                evidence=f"{release.id}: {'; '.join(m.what for m in missing) or _held(release)}",
                hint="; ".join(dict.fromkeys(m.fix for m in missing)),
            )
        else:
            others.append(release.id)
    if others:
        yield Finding(check="other ways back", answer=Answer.OK, evidence=", ".join(others))


def _held(release: Release) -> str:
    lost = f"; its commit cannot be built again: {'; '.join(release.unresolved)}" if release.unresolved else ""
    return f"everything it needs is held{lost}"


def _files(rooms: Rooms) -> Iterator[Finding]:
    wrong = rooms.containers.preflight()
    yield Finding(
        check="files",
        answer=Answer.FAILED if wrong else Answer.OK,
        evidence="; ".join(wrong) or "the next release can be made from them",
        hint="mend them before the next lastgood deploy" if wrong else "",
    )
    if left := left_to_people(rooms):
        yield Finding(check="left to you", answer=Answer.OK, evidence="; ".join(left))
    for what, by_hand in rooms.containers.left_alone():
        yield Finding(check="left as it is", answer=Answer.OK, evidence=what, hint=by_hand)


def _database(rooms: Rooms, history: History) -> Iterator[Finding]:
    if rooms.database is None:
        yield Finding(check="database", answer=Answer.OK, evidence="skipped: none configured")
        return
    facts = rooms.database.observe()
    missing = rooms.database.preflight()
    yield Finding(
        check="database",
        answer=Answer.FAILED if missing or not facts.exists else Answer.OK,
        evidence="; ".join(missing) or f"{facts.database}, {facts.size_bytes / 1e6:.1f} MB",
        hint="lastgood restore-points list" if missing else "",
    )
    if cautions := rooms.database.cautions():
        yield Finding(check="database notes", answer=Answer.OK, evidence="; ".join(cautions))
    if there := rooms.database.kept():
        told = ", ".join(
            f"{one.name} ({one.size_bytes / 1e6:.1f} MB, since {one.since:%Y-%m-%d %H:%M} UTC)" for one in there
        )
        yield Finding(
            check="kept databases", answer=Answer.OK, evidence=f"{told}; who needs none: lastgood kept release NAME"
        )
    if facts.pools:
        thrown_out = rooms.database.thrown_out_because()
        yield Finding(
            check="pooler",
            answer=Answer.FAILED if thrown_out else Answer.OK,
            evidence="; ".join(thrown_out) or "its clients can be made to wait while the database is swapped",
            hint="mend database.pgbouncer in lastgood.yaml: else a swap throws them out" if thrown_out else "",
        )
    taken = [point for point in history.restore_points.values() if point.own is None]
    own = [point for point in history.restore_points.values() if point.own and not why_no_way_back(point, facts)]
    newest = next(reversed(taken or own), None)
    why = why_no_way_back(newest, facts) if newest else "none was taken yet"
    if newest and not why and newest.id not in facts.restore_points:
        why = f"the dump of {newest.id} is gone or was cut"
    first = why_restored_first(newest, facts) if newest else ""
    yield Finding(
        check="restore point",
        answer=Answer.FAILED if why else Answer.OK,
        evidence=f"none that could be swapped in: {why}"
        if newest is None or why
        else f"{newest.id}, taken {newest.taken_at:%Y-%m-%d %H:%M} UTC, proved"
        + ("; an own dump: nothing written since could be replayed" if newest.own else "")
        + (f"; {first}: its dump would be restored beside first" if first else ""),
        hint="lastgood deploy   (each takes one)" if why else "",
    )
    pause = next_pause(rooms, history, facts)
    yield Finding(
        check="next restore point",
        answer=Answer.OK,
        evidence=f"pause: {pause.told}" if pause else "dumped and restored beside, for which nobody waits",
    )
    lossy = rooms.database.lossy_because(copied=pause is not None and pause.copies)
    now = (
        f"since {newest.id} every transaction can be replayed ({facts.capture_bytes / 1e6:.1f} MB of log are kept)"
        if newest is not None and newest.id in facts.captures
        else "what was written since the last restore point could be put back in its last state only"
    )
    then = f"; from the next deploy on the last state only: {'; '.join(lossy)}" if lossy else ""
    yield Finding(
        check="replay",
        answer=Answer.FAILED if lossy and _lossless(rooms) else Answer.OK,
        evidence=now + then,
        hint="mend that before the next lastgood deploy: require_lossless" if lossy and _lossless(rooms) else "",
    )
    if facts.captures or facts.capture_left or not lossy:
        yield _capture(rooms, facts)


def _capture(rooms: Rooms, facts: DatabaseFacts) -> Finding:
    """Whether what the server keeps for a replay has an end, also where no watch lives."""
    limit = rooms.config.database.restore_points.capture_limit if rooms.config.database else 0
    kept, end = facts.captures or facts.capture_left, captures.until(rooms)
    now = f"{facts.capture_bytes >> 20} MiB of log are kept for a replay" if kept else "no log is kept for a replay"
    own = facts.capture_own_bytes
    now += f", {own >> 20} of them the restore point's own" if kept and own else ""
    now += f" until {end:%Y-%m-%d %H:%M} UTC" if kept and end else ""
    if facts.slot_limit_bytes is not None:
        bounds = f"the server lets a slot keep {facts.slot_limit_bytes >> 20} MiB"
        return Finding(check="capture", answer=Answer.OK, evidence=f"{now}; {bounds}")
    alone = kept and rooms.memory.journal.holder(Right.WATCH) is None
    return Finding(
        check="capture",
        answer=Answer.FAILED if alone else Answer.OK,
        evidence=f"{now}; " + ("nobody watches, and " if alone else "") + "the server sets a slot no limit of its own",
        hint=captures.bound_by_hand(limit + facts.restore_log_bytes),
    )


def _backups(rooms: Rooms) -> Iterator[Finding]:
    """Point-in-time recovery, where it is configured."""
    backups = rooms.database.backups() if rooms.database else None
    if backups is None:
        return
    age_h = (rooms.clock.now() - backups.newest_at).total_seconds() / 3600 if backups.newest_at else 0.0
    last = f"last backup {backups.newest_at:%Y-%m-%d %H:%M} UTC, {age_h:.0f} h ago" if backups.newest_at else ""
    yield Finding(
        check="point-in-time recovery",
        answer=Answer.FAILED if backups.wrong else Answer.OK,
        evidence="; ".join(filter(None, (*backups.wrong, last))),
        hint="mend that before it is needed: it is the way back of last resort" if backups.wrong else "",
    )


def _lossless(rooms: Rooms) -> bool:
    return rooms.config.database is not None and rooms.config.database.restore_points.require_lossless


def _frontend(rooms: Rooms, history: History) -> Iterator[Finding]:
    if rooms.frontend is None:
        yield Finding(check="frontend", answer=Answer.OK, evidence="skipped: none configured")
        return
    facts: FrontendFacts = rooms.frontend.observe()
    good = history.last_good(before=bad_release(history))
    wanted = good.frontend if good else ""
    found = next((d for d in facts.deployments if d.id == wanted), None)
    returnable = not wanted or wanted == facts.production or (found is not None and found.can_return)
    yield Finding(
        check="frontend",
        answer=Answer.OK if returnable else Answer.FAILED,
        evidence=f"production {facts.production}" + (f", would go back to {wanted}" if wanted else ""),
        hint="" if returnable else f"{wanted} cannot be rolled back to at the host; redeploy its commit",
    )
    if silent := [domain for domain, shown in facts.domains if not shown]:
        yield Finding(
            check="frontend domains",
            answer=Answer.COULD_NOT_LOOK,
            evidence=f"which deployment answers at {', '.join(silent)}",
            hint='let the page say it: <meta name="commit" content="the deployed commit">',
        )


def _signals(rooms: Rooms) -> Iterator[Finding]:
    with Eyes(rooms.sources, rooms.clock) as eyes:
        eyes.look()
        rooms.clock.sleep(1.0)
        bucket = eyes.look()
    for look in bucket.looks:
        match look.reading:
            case SourceDown(reason=reason):
                yield Finding(
                    check=f"signal {look.source}",
                    answer=Answer.COULD_NOT_LOOK,
                    evidence=reason,
                    hint="check its address under watch in lastgood.yaml",
                )
            case NoData(reason=reason):
                yield Finding(
                    check=f"signal {look.source}", answer=Answer.COULD_NOT_LOOK, evidence=reason, hint="lastgood doctor"
                )
            case reading:
                yield Finding(check=f"signal {look.source}", answer=Answer.OK, evidence=f"answers ({reading.kind})")
    if not bucket.looks:
        yield Finding(
            check="signals",
            answer=Answer.FAILED,
            evidence="no trigger is configured",
            hint="add watch.triggers to lastgood.yaml",
        )

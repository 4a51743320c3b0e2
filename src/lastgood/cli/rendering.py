"""Turning values into the lines that a tired person reads: the verdict first, then the reason with the value beside its
limit, then what to do. Foreign text is cleaned of control characters before it reaches a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from lastgood.assembly import EdgePlan, Survey
from lastgood.core.facts import KeptDatabase
from lastgood.core.history import History, RepairHistory, RunHistory
from lastgood.core.migration import Outlook, SchemaChange
from lastgood.core.plan import DeployCost, Plan, Purpose
from lastgood.core.quarantine import EntryChange
from lastgood.core.release import RestorePoint
from lastgood.core.repair import RepairPlan, RowRepair
from lastgood.core.report import Report, TerminalState
from lastgood.core.run import outcomes
from lastgood.runbook.doctor import Answer, Finding
from lastgood.runbook.quarantine import Decided
from lastgood.runbook.restore_points import Added, Listed

LONGEST_SHOWN: Final = 200
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Return `text` without escape sequences, control and direction characters; newlines stay."""
    return _CONTROL.sub("�", text)


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield aligned lines; nothing for no rows."""
    all_rows = [tuple(clean(cell) for cell in row) for row in rows]
    if not all_rows:
        return
    widths = [max(len(row[i]) for row in all_rows) for i in range(len(all_rows[0]))]
    for row in all_rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def size(number: int) -> str:
    """A size as people read it, in decimal units as disks are sold."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def when(moment: datetime) -> str:
    """A time as people of one team read it: UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan, as `plan`, `--dry-run` and the approval show it."""
    what = f"{plan.from_release or 'nothing'} -> {plan.to_release}"
    yield f"{what}, if started now (plan {plan.id} {plan.hash[:8]}; nothing changed)"
    rows = [
        (
            str(number),
            step.role.value,
            step.explain,
            f"sets aside: {step.loses}" if step.loses else "",
            "asks a person" if step.needs_approval else "",
        )
        for number, step in enumerate(plan.steps, start=1)
    ]
    yield from table(rows)
    if not plan.steps:
        yield "nothing to do"
    yield f"rung      {plan.rung}"
    yield from (f"skipped   {line}" for line in plan.skipped)
    if plan.cost:
        yield from _cost_lines(plan.cost)
    if plan.outlook:
        yield from outlook_lines(plan.outlook)
    if plan.database:
        yield f"database  {plan.database.rung.value}"
        yield from (f"because   {reason}" for reason in plan.database.reasons)
        yield from change_lines(plan.database.changes, plan.database.more)
        if plan.database.storage:
            yield _line(f"storage   {plan.database.storage}")
        if gone := plan.database.loses:  # a plan made before rows were replayed
            yield f"leaves    {gone.total} rows written since {plan.database.restore_point}"
        if since := plan.database.leaves_since:
            yield f"leaves    everything written since {when(since)}; nobody can count it: an own dump has no snapshot"
        if plan.database.aside is not None:
            held = ", ".join(f"{place} {values}" for place, values in plan.database.aside if values)
            yield f"aside     {clean(held or 'nothing')}; every other value stays where it is"
        if plan.database.carries:
            tables = ", ".join(f"{name} {rows}" for name, rows in plan.database.carries.tables if rows)
            total, point = plan.database.carries.total, plan.database.restore_point
            yield f"replays   {total} rows written since {point} ({tables or 'none'})"
        yield from (
            f"by rows   {clean(why)}: only the last state of a row can be told" for why in plan.database.lossy_because
        )
    yield from (f"stays     {clean(line)}" for line in plan.invalid_rows)
    yield from (f"note      {clean(warning)}" for warning in plan.warnings)


def _cost_lines(cost: DeployCost) -> Iterator[str]:
    yield f"costs     about {cost.takes_s:.0f} s for the restore point ({cost.by})"
    log = f"; up to {size(cost.log_bytes)} of the server's log until the watch is over" if cost.log_bytes else ""
    yield f"disk      {size(cost.disk_bytes)} at most for a dump and a copy of {size(cost.size_bytes)}{log}"
    if cost.pause:
        yield _line(f"pause     {cost.pause.told}")
    free = ", ".join(f"{where} {size(number)}" for where, number in cost.free)
    yield clean(f"free      {free or 'cannot be seen from here'}")


def outlook_lines(outlook: Outlook) -> Iterator[str]:
    """What a deploy's migrations do, as they were tried before it: whether the release before still runs on them, which
    doors open one way, and what they change."""
    if outlook.last_good:
        fit = outlook.old_release
        yield _line(f"old code  {outlook.last_good} runs on the migrated schema: {fit.fit.value} ({fit.reason})")
    if outlook.unseen:
        yield _line(f"one way   not known: {outlook.unseen}")
        return
    yield from (_line(f"one way   {door}") for door in outlook.doors or ("nothing that a copy without rows shows",))
    yield from change_lines(outlook.changes, outlook.more)


def change_lines(changes: Iterable[SchemaChange], more: int) -> Iterator[str]:
    """What is different in a schema, one line each."""
    yield from (_line(f"schema    {change}") for change in changes)
    if more:
        yield f"schema    and {counted(more, 'more difference')}"


def report_lines(report: Report) -> Iterator[str]:
    """The report of an incident."""
    yield f"{report.terminal.value}  {report.way}  (run {report.run})"
    yield f"why        {report.trigger}: {clean(report.sentence)}"
    took = (report.ended_at - report.began_at).total_seconds()
    yield f"when       {when(report.began_at)}, took {took:.1f} s"
    rows = [(f"  {s.target}", s.name, s.state, f"{s.duration_s:.1f} s", s.note) for s in report.steps]
    if rows:
        yield "steps"
        yield from table(rows)
    if report.checks:
        yield "verified"
        yield from table((f"  {c.answer}", c.name, c.told) for c in report.checks)
    if report.replayed:
        kept = report.replayed
        ours = kept.total - kept.skipped
        yield (
            f"replayed   {kept.replayed} of {ours} {kept.units} written since"
            + (f"; {kept.quarantined} in quarantine: lastgood quarantine list" if kept.quarantined else "")
            + (f"; of {kept.without_place} nothing has a place in the old schema" if kept.without_place else "")
            + (f" ({kept.skipped} of the migration not counted)" if kept.skipped else "")
        )
        if kept.skipped_file:
            yield f"skipped    {kept.skipped} of the migration: {kept.skipped_file}"
        yield from table((f"  {name}", f"{rows} rows") for name, rows in kept.carried)
        yield from (f"  {clean(line)}" for line in kept.notes)
        if kept.left_out:
            yield "values for which the old schema has no place"
            yield from table((f"  {left.table}", f"{left.rows} rows", left.file) for left in kept.left_out)
    if report.losses:
        yield "in quarantine"
        yield from table((f"  {loss.table}", f"{loss.rows} rows", loss.file) for loss in report.losses)
    if report.aside:
        yield "set aside, since the old schema has no place for it"
        yield from table((f"  {left.table}", f"{left.rows} values", left.file) for left in report.aside)
    if report.uncounted:
        yield f"left       {clean(report.uncounted)}"
    yield from (f"remains    {line}" for line in report.remaining)
    yield from (f"note       {clean(line)}" for line in report.notes)
    yield f"evidence   {report.evidence_file} (incident of {report.owner})"
    yield from (f"next       {line}" for line in report.next_steps)


def run_lines(run: RunHistory) -> Iterator[str]:
    """A run from the journal: its report when it ended with one, else what is done and what is not."""
    if run.ended and run.ended.report:
        yield from report_lines(run.ended.report)
        return
    plan = run.plan
    state = (
        "did not finish"
        if run.ended is None
        else (f"stopped: {run.ended.stopped}" if run.ended.stopped else "carried out")
    )
    way = f"{plan.from_release or 'nothing'} -> {plan.to_release}"
    yield f"{plan.purpose.value} {run.started.run}  {way}  {clean(state)}"
    yield f"why        {run.started.trigger}: {clean(run.started.sentence)}"
    yield from table(
        (f"  {s.target}", s.name, s.state, f"{s.duration_s:.1f} s", s.note) for s in outcomes(plan, run.records)
    )
    if plan.outlook:
        yield from outlook_lines(plan.outlook)
    if run.ended is None:
        others = "" if plan.purpose is Purpose.ROLLBACK or run.is_at_its_gate else ", or lastgood watch"
        yield f"next       lastgood rollback{others}"


def findings_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """The doctor's answer: the verdict first, then each check with its hint."""
    found = tuple(findings)
    failed = [f.check for f in found if f.answer is Answer.FAILED]
    blind = [f.check for f in found if f.answer is Answer.COULD_NOT_LOOK]
    if failed:
        yield f"NOT READY: {', '.join(failed)}"
    elif blind:
        yield f"NOT PROVED READY: could not look at {', '.join(blind)}"
    else:
        yield "READY"
    order = {Answer.FAILED: 0, Answer.COULD_NOT_LOOK: 1, Answer.OK: 2}
    for finding in sorted(found, key=lambda f: order[f.answer]):
        yield f"{finding.answer.value:<15} {finding.check}  {clean(finding.evidence)}"
        if finding.hint:
            yield f"  fix: {finding.hint}"


def release_rows(history: History) -> Iterator[tuple[str, ...]]:
    """Releases, newest last: name, standing, whether it serves or is not kept, commit, when, who judged."""
    for known in history.releases.values():
        release = known.release
        mark = "not kept any more" if known.let_go else _serves(history, release.id)
        commit = (release.commit or "no commit")[:12] + ("+dirty" if release.dirty else "")
        yield release.id, known.standing.value, mark, commit, when(release.recorded_at), known.judged_by


def _serves(history: History, release: str) -> str:
    services, whole = history.answering.services, history.answering.releases
    if not services:
        return "serves" if history.serving == release else ""
    if whole:
        return ("serves" if len(whole) == 1 else "may serve") if release in whole else ""
    return "serves in part" if any(release in of for of in services.values()) else ""


def history_rows(history: History) -> Iterator[tuple[str, ...]]:
    """Deployments and how each ended, oldest first."""
    for known in history.deployments.values():
        ended = known.ended
        yield (
            known.deployment.id,
            known.deployment.release,
            when(known.deployment.started_at),
            ended.terminal.value if ended else "under way",
            ", ".join(known.runs),
            ended.sentence if ended else "",
        )


ALSO: Final = 8
"""Rows put right alike that are named; `--json` names them all."""
GOOD_ENDS: Final = frozenset({TerminalState.HEALTHY_KEPT, TerminalState.ROLLED_BACK_VERIFIED})


def edge_lines(plan: EdgePlan) -> Iterator[str]:
    """Which services the edge takes, and why not the others."""
    switched = [f"{name} :{port}" for name, port in plan.routes.items() if name not in plan.one_at_a_time]
    yield clean(f" switched at once    {', '.join(switched) or 'none'}")
    yield from (clean(f" requests wait       {name} ({why})") for name, why in plan.one_at_a_time.items())
    yield from (clean(f" not behind it       {name} ({why})") for name, why in plan.left_out.items())
    only = "what speaks anything else: take it out of containers.edge.routes, then lastgood init --edge again"
    yield f" carries HTTP only   {only}"
    how = "a proxy before them has to send the name of one as Host, not what its client sent"
    yield from (
        clean(f" on one port         {', '.join(names)} (:{port}): {how}") for port, names in plan.shared.items()
    )


def survey_lines(found: Survey, not_found: Iterable[str], left: Iterable[str]) -> Iterator[str]:
    """What `init` saw: which services may go back, which are never touched, what stays a person's to do, and what
    nobody can watch."""
    running = [service for service in found.services if service.running]
    sick = [service.name for service in running if service.healthy is False]
    state = "nothing runs" if not running else f"{len(running)} running"
    unwell = f"; unhealthy: {', '.join(sick)}" if sick else ""
    yield clean(f"{found.project}: {len(found.services)} services, {state}{unwell}")
    able = [service.name for service in found.services if not service.why_not]
    yield clean(f" may be rolled back  {', '.join(able) or 'none'}")
    for title, stateful in (("never touched", True), ("not rolled back", False)):
        for service in found.services:
            if service.why_not and service.stateful is stateful:
                yield clean(f" {title:18}  {service.name} ({service.why_not})")
    yield from (clean(f" left to you         {line}") for line in left)
    yield from (clean(f" good to know        {line}") for line in found.warnings)
    yield from (clean(f" not found           {line}") for line in not_found)


def restore_point_rows(known: Iterable[Listed], now: datetime) -> Iterator[tuple[str, ...]]:
    """Restore points, oldest first: name, when, age, size, whether the database could go back to it, what of the rows
    written since could."""
    for one in known:
        point = one.restore_point
        since = "every transaction since can be replayed" if one.captured else "rows since, in their last state"
        if point.own:
            since = f"{_own(point)}: nothing since could be replayed"
        yield (
            point.id,
            when(point.taken_at),
            f"{(now - point.taken_at).total_seconds() / 60:.0f} min old",
            size(point.size_bytes),
            (one.why_not or ("its dump is restored beside first" if one.first else "proved, kept"))
            if one.kept
            else "gone",
            since if one.kept and not one.why_not else "",
        )


def added_lines(added: Added, now: datetime) -> Iterator[str]:
    """An own dump that is a restore point: what it is, how it was proved, and what going back to it would lose."""
    point = added.restore_point
    age = f"{(now - point.taken_at).total_seconds() / 60:.0f} min old"
    yield clean(f"{point.id}  taken {when(point.taken_at)}, {age}, {size(point.size_bytes)} ({_own(point)})")
    if not added.new:
        yield "it is a restore point already; nothing changed"
    rows, tables = sum(count for _, count in point.rows), len(point.rows)
    schema = (
        f"its schema is the one that {added.fits} left" if added.fits else "no good release has recorded its schema"
    )
    yield clean(f"proved      restored beside as {point.clone}: {rows} rows in {tables} tables; {schema}")
    what = "what was recovered" if point.log else "an own dump"
    yield f"would lose  everything written since {when(point.taken_at)}: {what} has no snapshot, so nothing can be"
    yield "            replayed or counted. It would stay in the replaced database, which is kept"
    yield clean(f"kept        {point.path}, beside the other restore points, until you remove it: lastgood never does")
    yield "next: lastgood plan"


def _own(point: RestorePoint) -> str:
    if point.own and point.log:
        return f"recovered by pgBackRest{f' up to {point.log.name}' if point.log.name else ''}"
    return f"own dump, {point.own.value}" if point.own else "taken by lastgood"


def kept_rows(there: Iterable[KeptDatabase]) -> Iterator[tuple[str, ...]]:
    """Kept databases: name, since when, size."""
    for one in there:
        yield (one.name, f"since {when(one.since)}", size(one.size_bytes))


def quarantine_rows(known: Iterable[Decided]) -> Iterator[tuple[str, ...]]:
    """A line for each entry; its whole name, which is the only one that is never of two."""
    for one in known:
        yield one.entry.name, one.decision.state.value, ", ".join(one.entry.tables), one.entry.reason


def quarantine_lines(one: Decided) -> Iterator[str]:
    """An entry: what was decided, why it waits, and each row before and after."""
    entry, decision = one.entry, one.decision
    by = f" by {decision.by}" if decision.by else ""
    yield clean(f"{entry.name}  {decision.state.value}{by}{f': {decision.why}' if decision.why else ''}")
    yield clean(f"because  {entry.reason}")
    if entry.committed_at:
        yield clean(f"written  {entry.committed_at} by transaction {entry.xid}")
    for number, change in enumerate(entry.changes, 1):
        yield clean(f"change {number}  {change.table}: {change.kind}")
        yield from (clean(f"    {line}").replace("\n", " ") for line in _change_lines(change))


def repair_lines(plan: RepairPlan) -> Iterator[str]:
    """Every row that would be put right, those of one change together: the values before and after, and where these
    are from; then what would stay."""
    yield _line(f"compared with {plan.since} of {when(plan.taken_at)}")
    alike: dict[object, list[RowRepair]] = {}
    for row in plan.rows:
        broken = tuple(name for name, _ in row.breaks)
        alike.setdefault((row.schema, row.table, broken, row.columns, row.sources), []).append(row)
    for rows in alike.values():
        first = rows[0]
        more = f"  and {counted(len(rows) - 1, 'row')} more the same" if len(rows) > 1 else ""
        yield _line(f"{first.name}{more}  breaks {', '.join(name for name, _ in first.breaks)}")
        for one in first.columns:
            yield _line(f"    {one.column}  {_value(one.now)} -> {_value(one.becomes)}")
        yield _line(f"    from  {', '.join(first.sources)}")
        if len(rows) > 1:
            names = [row.name for row in rows[1:]]
            more = f"; {len(names) - ALSO} more" if len(names) > ALSO else ""
            yield _line(f"    also  {'; '.join(names[:ALSO])}{more}")
    for left in plan.left:
        keys = ", ".join(left.keys) + (", ..." if left.rows > len(left.keys) else "")
        yield _line(f"stays  {counted(left.rows, 'row')} of {left.invariant} ({keys}): {left.why}")


def repaired_lines(known: RepairHistory) -> Iterator[str]:
    """A repair from the journal: what became of it, and the values that were there before."""
    done = known.begun
    yield _line(f"repair {done.repair}  {known.state.value}, by {done.by} at {when(known.record.at)}")
    yield from repair_lines(done.plan)


def counted(number: int, what: str) -> str:
    """So many of something, in words that agree."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _value(value: str | None) -> str:
    """A value as it is read at a glance; `--json` has all of it."""
    shown = "NULL" if value is None else repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]} ..."


def _line(text: str) -> str:
    """One line, whatever stands in it: a key must not look like another row."""
    return clean(text).replace("\n", " ")


def _change_lines(change: EntryChange) -> Iterator[str]:
    """Each column: its value, or where that changed the one before as well."""
    before: dict[str, Any] = {**(change.key or {}), **(change.old or {})}
    after = before | dict(change.new or {})
    for name, value in after.items():
        changed = change.old is not None and change.new is not None and value != before.get(name)
        yield f"{name}  {before.get(name)} -> {value}" if changed else f"{name}  {value}"


def outlook_before(history: History) -> list[str]:
    """What was known of the migrations of the deployment that is under way, before they were applied."""
    under = history.open_deployment
    run = history.deploy_run(under.deployment.id) if under else None
    if run is None or run.plan.outlook is None:
        return []
    return [f"before the deploy of {run.plan.to_release}:", *(f"  {line}" for line in outlook_lines(run.plan.outlook))]

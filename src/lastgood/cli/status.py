"""What serves, what is watched and what waits for a person, as `lastgood status` says it: from the journal, so that it
can be asked at any moment, and by one look at what runs, which may fail. Where the journal cannot tell which release
serves, it says so and names none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lastgood.cli.rendering import GOOD_ENDS, outlook_before, run_lines
from lastgood.core.answering import NOTHING
from lastgood.core.errors import LastgoodError
from lastgood.core.history import History, RunHistory
from lastgood.core.ports import Right
from lastgood.core.report import TerminalState
from lastgood.core.run import AwaitApproval, advance
from lastgood.core.verdict import Watching
from lastgood.runbook import watch as watching
from lastgood.runbook.holding import asked_beside, start_again
from lastgood.runbook.rooms import Rooms

ENDED_WELL: Final = GOOD_ENDS | {TerminalState.SUPERSEDED, TerminalState.INCONCLUSIVE_KEPT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """state: the first word. serving: the release of which every service answers, empty where that is not so or not
    known. answering: then the releases from which each service may answer. said: both in words."""

    state: str
    serving: str
    answering: dict[str, tuple[str, ...]]
    said: str
    run: str | None
    deployment: str | None
    frozen: bool
    lines: tuple[str, ...]


def look(rooms: Rooms) -> Status:
    """Read the journal, and look at what runs. Changes nothing."""
    history = rooms.memory.history()
    run, under = history.open_run, history.open_deployment
    state, lines = _state(rooms, history)
    lines += _held(rooms)
    lines += _seen(rooms, history)
    if history.frozen:
        lines.append(f"deploys are frozen by {history.frozen.by}: {history.frozen.why}")
    answering = history.answering
    whole = answering.releases or (() if answering.services else (history.serving,))
    return Status(
        state=state,
        serving=whole[0] if len(whole) == 1 else "",
        answering=dict(answering.services),
        said=_said(history),
        run=run.started.run if run else None,
        deployment=under.deployment.id if under else None,
        frozen=bool(history.frozen),
        lines=tuple(lines),
    )


def _held(rooms: Rooms) -> Iterator[str]:
    """Who would be named to whoever is refused because of them."""
    if holder := rooms.memory.journal.holder(Right.PREPARE):
        yield f"a release is prepared by {holder}; a rollback does not wait for that"
    if holder := rooms.memory.journal.holder():
        yield f"the right to run is held by {holder}"


def _seen(rooms: Rooms, history: History) -> Iterator[str]:
    """What the journal cannot know: what does not serve though its release does, as after a reboot, and copies that
    somebody woke beside an edge. Nothing while a run is open, which is on its way, and says how far it is."""
    if history.open_run is not None or not history.serving:
        return
    try:
        facts = rooms.containers.observe()
    except LastgoodError as error:
        yield f"what runs now could not be seen: {error.message}"
        return
    if down := [i for i in facts.serving if not i.serves]:
        names = ", ".join(sorted({i.service for i in down}))
        yield f"not serving now: {names}   (next: {start_again(history, down)})"
    beside, stop = asked_beside(facts)
    if beside:
        yield f"{beside}   (next: {stop})"


def _said(history: History) -> str:
    """Which release serves, or which service answers from which."""
    if not history.answering.services:
        return f"{history.serving} serves" if history.serving else "no release is recorded as serving"
    match history.answering.releases:
        case (one,):
            return f"{one} serves"
        case (first, *others):
            return f"{_named(first)} serves, or {' or '.join(others)} already: the step that moves it has no answer yet"
        case _:
            alike: dict[tuple[str, ...], list[str]] = {}
            for service, releases in history.answering.services.items():
                alike.setdefault(releases, []).append(service)
            each = (f"{', '.join(names)} of {' or '.join(map(_named, of))}" for of, names in alike.items())
            return f"no release serves whole: {'; '.join(each)}"


def _named(release: str) -> str:
    return "nothing" if release == NOTHING else release


def _state(rooms: Rooms, history: History) -> tuple[str, list[str]]:
    """The first word, and the lines that belong to it."""
    watcher = rooms.memory.journal.holder(Right.WATCH)
    last = history.ended_last
    if (run := history.open_run) is not None:
        holder = rooms.memory.journal.holder()
        way = f"{run.plan.from_release or 'nothing'} -> {run.plan.to_release}"
        first = f"{run.plan.purpose.value} {run.started.run}: {way}"
        state = "RUNNING" if holder else "INTERRUPTED"
        return state, [first, *_waits_for(run, rooms.clock.now()), *list(run_lines(run))[1:]]
    if (under := history.open_deployment) is not None:
        lines: list[str] = []
        judged = watching.state_of(rooms.config.watch, under)
        verdict = judged.judge(rooms.clock.now()) if judged else None
        if isinstance(verdict, Watching):
            lines += [f"{verdict.left_s / 60:.0f} min left", *verdict.lines]
            lines += [f"blind to: {b}" for b in verdict.blind_to]
        lines += outlook_before(history)
        return ("WATCHING", lines) if watcher else ("WATCH INTERRUPTED", [*lines, "next: lastgood watch"])
    stopped = last is not None and last.ended is not None and last.ended.terminal is TerminalState.NEEDS_HUMAN
    if not stopped and (baked := watching.baking(rooms)) is not None:
        left = f"watched again after the rollback, {watching.left_s(rooms, baked) / 60:.0f} min left"
        return ("BAKING", [left]) if watcher else ("BAKE INTERRUPTED", [left, "next: lastgood watch"])
    if last is None or last.ended is None:
        return "IDLE", []
    ended = last.ended
    state = "IDLE" if ended.terminal in ENDED_WELL else ended.terminal.value
    report = next((e.report for r in reversed(last.runs) if (e := history.runs[r].ended) and e.report), None)
    next_steps = report.next_steps if report and state != "IDLE" else ()
    first = f"last deployment: {last.deployment.release}  {ended.terminal.value}  {ended.sentence}"
    return state, [first, *(f"next: {line}" for line in next_steps)]


def _waits_for(run: RunHistory, now: datetime) -> Iterator[str]:
    """What a person is to type before a run goes on, whoever carries it on."""
    if isinstance(decided := advance(run.plan, run.records, now), AwaitApproval):
        name = run.started.run
        yield f"waits at {decided.step.name} for: lastgood approve {name}   (or: lastgood deny {name})"

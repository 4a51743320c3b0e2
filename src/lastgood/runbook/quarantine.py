"""What a person decides about the quarantine: put an entry into the live database, or leave it out for good.

A requeue notes its transaction before it is committed. Where the answer is lost, or the process dies, the server is
asked what became of that transaction, so that nothing is ever put in twice.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from lastgood.core.errors import Refused
from lastgood.core.plan import ReplayWrites
from lastgood.core.ports import Database
from lastgood.core.quarantine import WAITS, EntryState, QuarantineDecision, QuarantineEntry, entry_named
from lastgood.core.record import QuarantineDecided
from lastgood.runbook.rooms import Rooms


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """An entry, and the newest decision about it."""

    entry: QuarantineEntry
    decision: QuarantineDecision


def look(rooms: Rooms) -> tuple[Decided, ...]:
    """Return every entry of every replay. Raises Refused when a file of it cannot be read."""
    decisions = rooms.memory.history().quarantine
    # a transaction waits once, also where a fence was lifted and another replay told of it again
    whole = {name.partition("/")[2]: decision for name, decision in decisions.items()}
    known = {(e.id if e.xid else e.name): e for e in reversed(_database(rooms).quarantine())}
    return tuple(
        Decided(entry=e, decision=decisions.get(e.name) or (whole.get(e.id, WAITS) if e.xid else WAITS))
        for e in reversed(known.values())
    )


def find(rooms: Rooms, name: str) -> Decided:
    """Return one entry, by its id or its whole name. Raises Refused when that is none, or more than one."""
    known = look(rooms)
    entry = entry_named((one.entry for one in known), name)
    return next(one for one in known if one.entry is entry)


def requeue(rooms: Rooms, name: str) -> tuple[str, ...]:
    """Put an entry into the live database; return what is so now, one line each.

    Raises Refused, nothing changed, when it does not fit, is there already, or a run is under way; OutcomeUnknown when
    the answer was lost: the same command looks first.
    """
    database = _database(rooms)
    with rooms.memory.journal.claim(rooms.who):
        if (run := rooms.memory.history().open_run) is not None:
            raise Refused(f"run {run.started.run} is not over", hint="lastgood status")
        if (under := rooms.memory.history().open_deployment) is not None:
            # turning triggers off looks like a migration to a rollback that goes back past it
            raise Refused(f"{under.deployment.release} is watched: not before that is over", hint="lastgood status")
        found = _settled(rooms, find(rooms, name))
        entry, decision = found.entry, found.decision
        if decision.state is EntryState.REQUEUED:
            return (f"{entry.name} is in the live database already, by {decision.by}",)
        replay = _replay_of(rooms, entry)
        begun = replace(WAITS, state=EntryState.UNKNOWN, by=rooms.who)

        def about_to_commit(xid: int) -> None:
            rooms.memory.note(QuarantineDecided(entry=entry.name, decision=replace(begun, xid=xid)))

        left_out = database.requeue(entry, replay=replay, about_to_commit=about_to_commit)
        done = replace(begun, state=EntryState.REQUEUED)
        rooms.memory.note(QuarantineDecided(entry=entry.name, decision=done))
    return (f"{entry.name} is in the live database", *(f"left out  {line}" for line in left_out))


def discard(rooms: Rooms, name: str, why: str) -> str:
    """Note that an entry stays out; return what is so now. Raises Refused, nothing changed, without a reason, and when
    the entry is in the live database."""
    if not why.strip():
        raise Refused("leaving an entry out needs a reason", hint="lastgood quarantine discard ID -m 'why'")
    with rooms.memory.journal.claim(rooms.who):
        found = find(rooms, name)
        with suppress(Refused):  # what cannot be told is left to the person, who says why
            found = _settled(rooms, found)
        entry = found.entry
        if found.decision.state is EntryState.REQUEUED:
            raise Refused(f"{entry.name} is in the live database", hint=f"lastgood quarantine show {entry.name}")
        decision = QuarantineDecision(state=EntryState.DISCARDED, by=rooms.who, why=why)
        rooms.memory.note(QuarantineDecided(entry=entry.name, decision=decision))
    return f"{entry.name} stays out of the live database; it is kept in its file"


def _settled(rooms: Rooms, found: Decided) -> Decided:
    """Look what became of a requeue whose end nobody saw."""
    decision = found.decision
    if decision.state is not EntryState.UNKNOWN or decision.xid is None:
        return found
    committed = _database(rooms).is_committed(decision.xid)
    if committed is None:
        raise Refused(
            f"whether transaction {decision.xid}, which requeued {found.entry.name}, was committed cannot be told",
            hint=f"lastgood quarantine discard {found.entry.name} -m 'looked: ...'",
        )
    settled = replace(decision, state=EntryState.REQUEUED if committed else EntryState.WAITING)
    rooms.memory.note(QuarantineDecided(entry=found.entry.name, decision=settled))
    return replace(found, decision=settled)


def _replay_of(rooms: Rooms, entry: QuarantineEntry) -> ReplayWrites:
    """Its replay, as the plan had it."""
    for run in rooms.memory.history().runs.values():
        for step in run.plan.steps:
            if isinstance(step.action, ReplayWrites) and step.action.replay == entry.replay:
                return step.action
    raise Refused(f"{entry.replay} is of no run in the journal", hint="lastgood history")


def _database(rooms: Rooms) -> Database:
    if rooms.database is None:
        raise Refused("no database is configured, so nothing is in quarantine", hint="lastgood doctor")
    return rooms.database

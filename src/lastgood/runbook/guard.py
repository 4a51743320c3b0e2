"""What is done while nobody is there: what nobody watches is watched, and the ways back are looked through hourly.

For a process that a service manager keeps alive. What cannot be had now is said and tried again: only a person ends it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Never

from lastgood.core.errors import LastgoodError
from lastgood.core.ports import Right
from lastgood.runbook import captures
from lastgood.runbook.holding import CHECKED_S, look_through, tell_what_is_missing, tell_who_is_beside, ways_back
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell, tell_again
from lastgood.runbook.watch import watch_on, watchable

EVERY_S: Final = 30.0
"""How often it is looked whether something is unwatched: a watch that died misses no more of its window."""


def guard(rooms: Rooms) -> Never:
    """Stay, until interrupted. A watch that ends as it may, with a rollback too, ends nothing here.

    What a person began and left is theirs: it is told, and not gone on with.
    """
    checked_at: datetime | None = None
    while True:
        try:
            _watch_what_nobody_watches(rooms)
            _tell_what_was_left(rooms)
            if checked_at is None or (rooms.clock.now() - checked_at).total_seconds() >= CHECKED_S:
                _look_through_the_ways_back(rooms)
                checked_at = rooms.clock.now()
            captures.mind(rooms)
            tell_again(rooms)
            if rooms.memory.history().open_run is None:  # a run stops at its end what it found beside
                tell_who_is_beside(rooms, rooms.containers.observe())
        except LastgoodError as error:
            rooms.story(f"guarding  {error.message}; looking again in {EVERY_S:.0f} s")
        rooms.clock.sleep(EVERY_S)


def _watch_what_nobody_watches(rooms: Rooms) -> None:
    under = watchable(rooms)
    if under is None or under.watch is None or rooms.memory.journal.holder(Right.WATCH):
        return
    if rooms.memory.history().unserved:
        _tell_what_was_left(rooms)
    rooms.story(f"guarding  nobody watches {rooms.memory.history().serving}: taking its watch up")
    outcome = watch_on(rooms, under.deployment.id)
    rooms.story(f"guarding  {outcome.terminal.value}: {outcome.sentence}")


def _tell_what_was_left(rooms: Rooms) -> None:
    run = rooms.memory.history().open_run
    if run is None or rooms.memory.journal.holder(Right.RUN):
        return
    next_step = "lastgood rollback" if run.is_at_its_gate else "lastgood watch"
    tell(
        rooms,
        run.started.run,
        f"👁 run {run.started.run} is half-way, and nobody carries it on: {run.started.sentence}. Next: {next_step}",
        event_id=f"{run.started.run}-left",
    )


def _look_through_the_ways_back(rooms: Rooms) -> None:
    history = rooms.memory.history()
    found = look_through(rooms, tuple(known.release for known in ways_back(history)))
    tell_what_is_missing(rooms, found, deployment=next(reversed(history.deployments), ""))

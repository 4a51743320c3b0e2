"""How long the server keeps its log for a replay: until the watch is over, and never more of it than is allowed.

A forgotten capture fills the disk of production. A watch that lives looks every few seconds; where none does, each
command that has the time looks, and no other. Whoever finds it over ends it and tells the team.
"""

from __future__ import annotations

from datetime import datetime

from lastgood.core.errors import LastgoodError
from lastgood.core.facts import DatabaseFacts
from lastgood.core.plan import Purpose
from lastgood.core.ports import Right
from lastgood.core.release import Standing
from lastgood.core.retention import capture_over, capture_until
from lastgood.runbook.rollback import stand_down
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell


def mind(rooms: Rooms) -> None:
    """Look at what the server keeps, and end it where it is over. For a command that has the time for it; whatever
    cannot be had is told, and stops no command."""
    if rooms.memory.journal.holder(Right.RUN) or (facts := _seen(rooms)) is None:
        return  # a restore point that is being taken has the log grow, and whoever takes it ends it
    # a watch that lives ends it itself, and may need it longer than its window where no way back could be planned
    under_watch = rooms.memory.history().open_deployment and rooms.memory.journal.holder(Right.WATCH)
    let_grow(rooms, facts, until=None if under_watch else until(rooms))


def let_grow(rooms: Rooms, facts: DatabaseFacts, *, until: datetime | None = None) -> None:
    """Tell the team at half of the limit; at all of it, or after `until`, end the capture and tell them. until: None
    for as long as the watch says. A rollback that did not end yet needs it, whoever takes that up."""
    if rooms.config.database is None or not (facts.captures or facts.capture_left):
        return
    limit, kept = rooms.config.database.restore_points.capture_limit, facts.captured_since_bytes
    history = rooms.memory.history()
    if history.open_run is not None and history.open_run.plan.purpose is Purpose.ROLLBACK:
        return
    serving = history.releases.get(history.serving)
    good = serving is not None and serving.standing is Standing.GOOD
    past = until is not None and rooms.clock.now() > until
    if (past and good) or (facts.captures and facts.captures <= facts.foreign):  # or the database was replaced
        stand_down(rooms, only_captures=True)  # nobody needs it any more: nothing to tell
        return
    over = capture_over(facts, limit_bytes=limit, until=until, now=rooms.clock.now())
    if not facts.captures and history.open_run is None:  # while one begins, it is no restore point's yet
        over = "what was written since the restore point can no longer be replayed one by one"
    if not over and kept <= limit // 2:
        return
    if over and not stand_down(rooms, only_captures=True):
        return  # who is in the way ends it, or the next look does
    what = over or f"the server keeps {kept >> 20} MiB of log for a replay, limit {limit >> 20} MiB"
    then = "the capture was ended" if over else "at the limit the capture ends"
    deployment = next(reversed(history.deployments), "")
    tell(
        rooms,
        "",
        f"👁 {what}; {then}, and a rollback of the database puts back only the last state of rows. "
        "Next: lastgood rollback, or lastgood record --good, or raise database.restore_points.capture_limit",
        event_id=f"{deployment}-capture-{'ended' if over else 'large'}",
    )


def until(rooms: Rooms) -> datetime | None:
    """Until when what the server keeps may be needed; None where a run is under way, or nothing was deployed."""
    return capture_until(rooms.memory.history(), window_s=rooms.config.watch.window)


def leave(rooms: Rooms) -> tuple[str, ...]:
    """Say what is kept, and until when, as nobody watches from here on. Where the server sets no limit of its own that
    would have no end, so it is ended."""
    facts, config = _seen(rooms), rooms.config.database
    if facts is None or config is None or not (facts.captures or facts.capture_left):
        return ()
    if facts.slot_limit_bytes is None:
        stand_down(rooms, only_captures=True)
        left = _seen(rooms)
        gone = left is not None and not left.captures and not left.capture_left
        ended = "is not kept for a replay: a rollback of the database would put back only the last state of rows"
        said = ended if gone else "is still kept for a replay; next: lastgood watch, or lastgood doctor"
        return (
            f"nobody watches, and nothing on the server bounds its log, which {said}",
            f"to bound it: {bound_by_hand(config.restore_points.capture_limit + facts.restore_log_bytes)}",
        )
    limit, end = config.restore_points.capture_limit, until(rooms)
    ends = f" until {end:%Y-%m-%d %H:%M} UTC" if end else ""
    at_most = f"at most {facts.slot_limit_bytes >> 20} MiB"
    look = f"nobody watches, so over {limit >> 20} MiB, or later, the next lastgood status ends that"
    return (f"the server keeps its log for a replay{ends}, {at_most}; {look}",)


def bound_by_hand(limit_bytes: int) -> str:
    """What a person types so that the server itself bounds what it keeps."""
    size = f"{limit_bytes >> 20}MB"
    return f"psql -c \"ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'\" -c 'SELECT pg_reload_conf()'"


def _seen(rooms: Rooms) -> DatabaseFacts | None:
    """Look, where anything was captured; None where not, or where nobody can look."""
    captured = any(point.captured for point in rooms.memory.history().restore_points.values())
    if rooms.database is None or not captured:
        return None
    try:
        return rooms.database.observe()
    except LastgoodError as error:
        rooms.story(f"  what the server keeps for a replay could not be looked at: {error.message}")
        return None

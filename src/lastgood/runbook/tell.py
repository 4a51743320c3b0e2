"""Telling the team. A channel that fails is noted and never stops anything."""

from __future__ import annotations

from lastgood.core.errors import LastgoodError
from lastgood.core.record import Told
from lastgood.runbook.rooms import Rooms


def tell(rooms: Rooms, run: str, text: str, *, event_id: str) -> None:
    """Send `text` to every channel once per event, and note what became of it. Who takes a run or a watch up does not
    send again."""
    history = rooms.memory.history()
    for notifier in rooms.notifiers:
        if (notifier.channel, event_id) in history.told:
            continue
        error = ""
        try:
            # deployments count from 1 in every journal, and other stacks speak in the channel, too
            notifier.send(text, event_id=f"{history.journal[:12]}-{event_id}")
        except LastgoodError as failure:
            error = failure.message
        rooms.memory.note(
            Told(run=run, channel=notifier.channel, text=text, delivered=not error, error=error, event=event_id)
        )
        rooms.story(f"{notifier.channel}  {text}" if not error else f"{notifier.channel} could not be told: {error}")
    if not rooms.notifiers:
        rooms.story(f"(no channel configured)  {text}")

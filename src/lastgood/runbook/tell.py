"""Telling the team. A channel that fails is noted and never stops anything; what did not arrive is sent again later, as
the same event."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from lastgood.core.errors import LastgoodError, Retryable
from lastgood.core.history import History, Untold
from lastgood.core.ports import Notifier
from lastgood.core.record import Told
from lastgood.runbook.rooms import Rooms

PATIENCE_S: Final = 5.0
"""How long a message waits at once for a channel that asks for a moment: an interval of the watch, and no longer."""
AGAIN_AFTER: Final = timedelta(minutes=1)
TRIES: Final = 12
"""How often one event is sent to one channel in all."""


def tell(rooms: Rooms, run: str, text: str, *, event_id: str) -> None:
    """Send `text` to every channel once per event, and note what became of it. Who takes a run or a watch up does not
    send again."""
    history = rooms.memory.history()
    for notifier in rooms.notifiers:
        key = (notifier.channel, event_id)
        if key not in history.told and _due(rooms, history.untold.get(key)):
            _send(rooms, history, notifier, run, text, event_id=event_id)
    if not rooms.notifiers:
        rooms.story(f"(no channel configured)  {text}")


def tell_again(rooms: Rooms) -> None:
    """Send what certainly did not arrive, once it is due. For who has time: the watch."""
    history = rooms.memory.history()
    for (channel, event_id), left in list(history.untold.items()):
        for notifier in rooms.notifiers:
            if notifier.channel == channel and left.told.again and _due(rooms, left):
                _send(rooms, history, notifier, left.told.run, left.told.text, event_id=event_id)


def _due(rooms: Rooms, left: Untold | None) -> bool:
    return left is None or (left.tries < TRIES and rooms.clock.now() - left.tried_at >= AGAIN_AFTER)


def _send(rooms: Rooms, history: History, notifier: Notifier, run: str, text: str, *, event_id: str) -> None:
    failure: LastgoodError | None = None
    try:
        # deployments count from 1 in every journal, and other stacks speak in the channel, too
        _with_patience(rooms, notifier, text, event_id=f"{history.journal[:12]}-{event_id}")
    except LastgoodError as error:
        failure = error
    rooms.memory.note(
        Told(
            run=run,
            channel=notifier.channel,
            text=text,
            delivered=failure is None,
            error=failure.message if failure else "",
            event=event_id,
            again=isinstance(failure, Retryable),
        )
    )
    rooms.story(
        f"{notifier.channel} could not be told: {failure.message}" if failure else f"{notifier.channel}  {text}"
    )


def _with_patience(rooms: Rooms, notifier: Notifier, text: str, *, event_id: str) -> None:
    """One more try where the channel asks for no more than a moment."""
    try:
        notifier.send(text, event_id=event_id)
    except Retryable as error:
        if error.delay_s > PATIENCE_S:
            raise
        rooms.clock.sleep(error.delay_s)
        notifier.send(text, event_id=event_id)

"""Looking: all signal sources for one interval side by side, each within its own deadline; and what is asked beside the
watch, for which nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from datetime import datetime
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from lastgood.core.errors import LastgoodError, Retryable
from lastgood.core.ports import Clock, SignalSource
from lastgood.core.reading import Bucket, Look, Reading, SourceDown, Window

DEADLINE_S: Final = 5.0
"""A source that has not answered by then is down for this interval; the next one starts on time."""
GRACE_S: Final = 0.2
"""How long a new question beside the watch is waited for; hosts that are well answer within."""
PATIENCE_S: Final = 30.0
"""An engine that was killed and is started again first stops what it finds running, ten seconds for what is deaf."""
LEAST_PAUSE_S: Final = 0.5
_T = TypeVar("_T")


def patiently(clock: Clock, look: Callable[[], _T]) -> _T:
    """Look; where nobody answers now, again after a pause, for PATIENCE_S in all. Raises the last Retryable."""
    began = clock.now()
    while True:
        try:
            return look()
        except Retryable as error:
            pause_s = max(error.delay_s, LEAST_PAUSE_S)
            if (clock.now() - began).total_seconds() + pause_s > PATIENCE_S:
                raise
            clock.sleep(pause_s)


class Aside(Generic[_T]):
    """A question that is asked beside the watch, one at a time: whoever answers late is not waited for."""

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._ask = ask
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aside")
        self._asked: Future[_T] | None = None

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(self) -> _T | LastgoodError | None:
        """Return what it says, or why it could not be asked; None while the last question is not answered."""
        if self._asked is None:
            self._asked = self._pool.submit(self._ask)
            wait_for([self._asked], timeout=GRACE_S)
        if not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        try:
            return asked.result()
        except LastgoodError as error:
            return error


class Eyes:
    """All sources, one thread each. A source that hangs is not asked again until its last call came back."""

    def __init__(self, sources: Sequence[SignalSource], clock: Clock) -> None:
        self._sources = tuple(sources)
        self._clock = clock
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(self._sources)), thread_name_prefix="eye")
        self._late: dict[str, Future[Reading]] = {}
        self._since: datetime | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def look_after(self, interval_s: float) -> Bucket:
        """Wait until `interval_s` after the last look, and look. A look that took long itself does not move the
        next."""
        now = self._clock.now()
        passed_s = (now - (self._since or now)).total_seconds()
        self._clock.sleep(max(interval_s - passed_s, 0.0))
        return self.look()

    def look(self) -> Bucket:
        """Read every source for the time since the last call. The first call only sets the counters' start."""
        until = self._clock.now()
        window = Window(since=self._since or until, until=until)
        self._since = until
        asked: dict[str, Future[Reading]] = {}
        for source in self._sources:
            late = self._late.get(source.name)
            asked[source.name] = late if late and not late.done() else self._pool.submit(source.read, window)
        wait_for(asked.values(), timeout=DEADLINE_S)
        looks: list[Look] = []
        for name, answer in asked.items():
            reading: Reading = SourceDown(reason=f"no answer within {DEADLINE_S:.0f} s")
            if answer.done() and answer is not self._late.get(name):
                reading = answer.result()
            if answer.done():
                self._late.pop(name, None)
            else:
                self._late[name] = answer
            looks.append(Look(source=name, reading=reading))
        return Bucket(at=until, looks=tuple(looks))

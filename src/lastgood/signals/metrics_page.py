"""Requests, errors and slow ones, counted from the Prometheus text page that each replica of a service shows.

Counters only grow while their process lives, so everything hangs on knowing which process a number belongs to:
`process_start_time_seconds`, or else the oldest `_created` line, tells one process from another behind one address.
    process       series        counted
    seen before   seen before   the growth; the whole number when it shrank (the page does not tell one
                                process from another, and this one replaced it)
    seen before   new           all of it: it appeared with its first request
    new           any           all of it when the process started after the counting began, else nothing this time
Whatever cannot be trusted as a whole is not used in part: one page that is down or talks nonsense is SourceDown, and
the next good reading counts what happened in between.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from lastgood.core.reading import NoData, Reading, SourceDown, Traffic, Window
from lastgood.wire.asking import NoAnswer, ask
from lastgood.wire.foreign_text import one_line, place

DEADLINE_S: Final = 4.5
MAX_BYTES: Final = 5 << 20
MAX_SAMPLES: Final = 20_000
MAX_LINE: Final = 16_384
MAX_PROCESSES: Final = 64
"""Processes remembered behind one address; the one not seen for longest is forgotten first."""
LARGEST_COUNT: Final = 2.0**53
FROZEN_READS: Final = 2
"""So many readings may be equal to the one before; then the page is a copy of the past."""

REQUESTS: Final = "http_requests_total"
CREATED: Final = "http_requests_created"
BUCKET: Final = "http_request_duration_seconds_bucket"
COUNT: Final = "http_request_duration_seconds_count"
START_TIME: Final = "process_start_time_seconds"
CPU: Final = "process_cpu_seconds_total"
WANTED: Final = frozenset({REQUESTS, CREATED, BUCKET, COUNT, START_TIME})
PATH_LABELS: Final = ("handler", "path", "route", "endpoint")
STATUS_LABELS: Final = ("status", "code", "status_code")

_NAME: Final = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)")
_SERVER_ERROR: Final = re.compile(r"5(\d\d|xx)", re.IGNORECASE)
# what prometheus_client 0.26 was seen to raise for lines that are not its format
_NOT_THE_FORMAT: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

Series = tuple[str, frozenset[tuple[str, str]]]
"""A sample's name and its labels."""
Counts = Mapping[Series, int]


@dataclass(slots=True)
class _Memory:
    """What was read of one page before. processes: the counts of each, by its start; the one read last stands last.
    repeated: so many readings in a row were equal to the one before."""

    processes: dict[float | None, Counts] = field(default_factory=dict[float | None, Counts])
    digest: bytes = b""
    repeated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """One page as it was read. started: which process it speaks for, None when it does not say. must_change: no two
    readings of it can be equal, since it counts its own reading or the processor's time."""

    url: str
    started: float | None
    counts: Counts
    digest: bytes
    must_change: bool


class _Unusable(Exception):
    """The page cannot be counted; the text says why."""


class MetricsPage:
    """core.ports.SignalSource over `pages`, one per replica.

    exclude: paths whose requests are not traffic. latency_limit_s: must be an edge of the histogram's buckets, since
    only there the count of slower requests is exact; None when nothing asks for slow requests.
    A window without length begins the counting anew: what happened before it belongs to somebody else.
    """

    def __init__(self, name: str, pages: Sequence[str], exclude: Sequence[str], latency_limit_s: float | None) -> None:
        self._name = name
        self._urls = tuple(pages)
        self._exclude = frozenset(exclude)
        self._latency_limit_s = latency_limit_s
        self._memory: dict[str, _Memory] = {}
        self._began: float | None = None

    @property
    def name(self) -> str:
        return self._name

    def read(self, window: Window) -> Reading:
        first = not self._memory or window.length_s <= 0
        if self._began is None or first:
            self._began = window.until.timestamp()
        pages: list[_Page] = []
        for url in self._urls:
            try:
                pages.append(self._page(url))
            except _Unusable as error:
                return SourceDown(reason=f"{place(url)}: {error}")
        grown = [self._grown(page) for page in pages]
        if first:
            return NoData(reason="the first reading has nothing to compare with")
        still = [page for page in pages if page.must_change and self._memory[page.url].repeated >= FROZEN_READS]
        if still:
            return NoData(reason=f"{place(still[0].url)} has not changed for {FROZEN_READS + 1} readings")
        return self._traffic(grown)

    def _page(self, url: str) -> _Page:
        answer = ask("GET", url, deadline_s=DEADLINE_S / len(self._urls), max_bytes=MAX_BYTES)
        if isinstance(answer, NoAnswer):
            raise _Unusable(answer.reason)
        if answer.status != 200:
            raise _Unusable(f"answered {answer.status}")
        text = answer.body.decode("utf-8", "replace")
        samples = dict(_samples(text))
        if not any(name == REQUESTS for name, _ in samples) and f"# TYPE {REQUESTS.removesuffix('_total')}" not in text:
            raise _Unusable(f"has no {REQUESTS}")
        counts = {series: _count(series, value) for series, value in self._counted(samples)}
        self._check_histogram(counts)
        own = urlsplit(url).path
        return _Page(
            url=url,
            started=_started(samples),
            counts=counts,
            digest=hashlib.sha256(answer.body).digest(),
            must_change=CPU in text or any(_label(labels, PATH_LABELS) == own for _, labels in samples),
        )

    def _counted(self, samples: Mapping[Series, float]) -> Iterator[tuple[Series, float]]:
        """The samples that count traffic, health checks and the like left out."""
        for (name, labels), value in samples.items():
            if name not in (REQUESTS, BUCKET, COUNT) or _label(labels, PATH_LABELS) in self._exclude:
                continue
            if name == REQUESTS and _label(labels, STATUS_LABELS) is None:
                raise _Unusable(f"{REQUESTS} has no label {' or '.join(STATUS_LABELS)}")
            yield (name, labels), value

    def _check_histogram(self, counts: Counts) -> None:
        """Raise when slow requests are asked for and cannot be counted exactly."""
        if self._latency_limit_s is None or not any(name == REQUESTS for name, _ in counts):
            return
        edges = {_edge(labels) for name, labels in counts if name == BUCKET}
        if not edges:
            raise _Unusable(f"counts requests but has no {BUCKET}")
        if not any(self._is_limit(edge) for edge in edges):
            known = ", ".join(f"{edge:g}" for edge in sorted(edges))
            raise _Unusable(f"{self._latency_limit_s:g} s is not an edge of {BUCKET}; its edges: {known}")

    def _grown(self, page: _Page) -> dict[Series, int]:
        """Return how much each series grew since its process was read before, and remember the page."""
        memory = self._memory.setdefault(page.url, _Memory())
        memory.repeated = memory.repeated + 1 if memory.digest == page.digest else 0
        memory.digest = page.digest
        known = memory.processes.pop(page.started, None)
        if known is not None:
            before: Counts = known
        elif page.started is not None and self._began is not None and page.started >= self._began:
            before = {}
        else:
            before = page.counts
        grown = {
            series: count - before.get(series, 0) if count >= before.get(series, 0) else count
            for series, count in page.counts.items()
        }
        memory.processes[page.started] = page.counts
        if len(memory.processes) > MAX_PROCESSES:
            del memory.processes[next(iter(memory.processes))]
        return grown

    def _traffic(self, grown: Iterable[Mapping[Series, int]]) -> Traffic:
        requests = errors = timed = in_time = 0
        for page in grown:
            for (name, labels), count in page.items():
                if name == REQUESTS:
                    requests += count
                    errors += count if _SERVER_ERROR.fullmatch(_label(labels, STATUS_LABELS) or "") else 0
                elif name == COUNT:
                    timed += count
                elif self._is_limit(_edge(labels)):
                    in_time += count
        slow = 0 if self._latency_limit_s is None else max(0, timed - in_time)
        # the page may be written between the two counters of one request
        return Traffic(requests=requests, errors=errors, slow=min(slow, requests))

    def _is_limit(self, edge: float) -> bool:
        return self._latency_limit_s is not None and math.isclose(edge, self._latency_limit_s, rel_tol=1e-9)


def _samples(text: str) -> Iterator[tuple[Series, float]]:
    """Return the samples of the names that matter here. Raises _Unusable when the page is too large, is not the format,
    or says one series twice."""
    lines: list[str] = []
    total = 0
    for line in text.split("\n"):
        if not (named := _NAME.match(line)):
            if line.strip() and not line.lstrip().startswith("#"):
                raise _Unusable("is not in the Prometheus text format")
            continue
        total += 1
        if total > MAX_SAMPLES:
            raise _Unusable(f"has more than {MAX_SAMPLES:,} samples")
        if named[1] in WANTED:
            if len(line) > MAX_LINE:
                raise _Unusable(f"has a line of more than {MAX_LINE:,} characters")
            lines.append(line)
    seen: set[Series] = set()
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                if series in seen:
                    raise _Unusable(f"says {sample.name} twice with the same labels")
                seen.add(series)
                yield series, float(sample.value)
    except _NOT_THE_FORMAT as error:
        raise _Unusable(f"is not in the Prometheus text format: {one_line(str(error), 80)}") from error


def _count(series: Series, value: float) -> int:
    if not (0 <= value <= LARGEST_COUNT and value == int(value)):  # NaN fails the comparison, Inf the bound
        raise _Unusable(f"{series[0]} is {value:g}, not a count")
    return int(value)


def _started(samples: Mapping[Series, float]) -> float | None:
    """Return when the process behind the page started, in seconds since 1970; None when the page does not tell."""
    for wanted in (START_TIME, CREATED):
        times = [value for (name, _), value in samples.items() if name == wanted and math.isfinite(value)]
        if times:
            return min(times)
    return None


def _label(labels: Iterable[tuple[str, str]], names: Sequence[str]) -> str | None:
    """Return the value of the first of `names` that is among the labels."""
    found = dict(labels)
    return next((found[name] for name in names if name in found), None)


def _edge(labels: Iterable[tuple[str, str]]) -> float:
    try:
        return float(dict(labels).get("le", "nan"))
    except ValueError:
        raise _Unusable(f"{BUCKET} has an edge that is not a number") from None

"""The figures as a table for the terminal, as JSON lines, and as a page.

python -m bench.switch.report FILE... > docs/switch.md      FILE: what `python -m bench.switch --json` wrote
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from bench.switch.figures import Noticed, Result, Switched, middle, percentile, worst
from bench.switch.ways import KINDS

Figures = Result | Switched
_FIGURES: Final[TypeAdapter[Figures]] = TypeAdapter(Figures)
_ORDER: Final = [kind.name for kind in KINDS]
_SAYS: Final = {kind.name: kind.says for kind in KINDS}
BAR_MS: Final = 50.0
HEAD: Final = (
    "way",
    "runs",
    "failed / requests",
    "10 s ones failed",
    "longest gap",
    "first good",
    "last bad",
    "command",
    "posts lost, doubled",
    "deploy",
    "failed in it",
    "standby",
)

PREFACE: Final = """\
# Figures of the switch

What users notice while a bad release is taken out of traffic: by HyperCode's written procedure, by
`docker compose up -d`, by a scale-up behind HAProxy, and by lastgood on each rung. Made by
`.venv/bin/python -m bench.switch --json FILE` and then
`.venv/bin/python -m bench.switch.report FILE > docs/switch.md`; not edited by hand. Machine: {machine}, {cores} cores,
shared by the load and all that it asks; machines are noisy, so compare within a table, not across. Several FILEs are of
runs side by side, each with a stack and a load of its own.

The stack: services with 20 ms of work that need 1.5 s to boot and end quietly on SIGTERM; a ledger that keeps what was
posted; a worker that does not listen to SIGTERM, of which there is one in most stacks. Both releases are well, so
whatever fails is the switch's. The load is an open loop: new connections, kept ones, posts whose ids are counted on
both sides, and every 2 s a request that takes 10 s. A service finishes what it was asked before it ends, so wherever
one is stopped in its place it takes up to 10 s."""

LEGEND: Final = """\
What the columns mean; times count from the command, so they hold the start of the program and its checks:

- *failed*: anything but a whole 200, from the command to the begin of the next one; nothing is sent twice.
- *longest gap*: the longest time in which one service gave no good answer, whichever release it was from.
- *first good*: when every service had answered from the release that came back.
- *last bad*: the last answer of the bad release, requests of 10 s left aside: they are let finish.
- *command*: until it had ended, with draining, stopping what is left, and verification.
- *posts*: acknowledged ids that were not there afterwards, and ids that were there twice.
- *deploy*: the deploy before it, forwards on the same way; *standby*: memory that is held until the rollback."""


def to_json(figures: Figures) -> str:
    return _FIGURES.dump_json(figures).decode()


def from_json(line: str) -> Figures:
    """Raises ValueError for a line that `to_json` did not write."""
    return _FIGURES.validate_json(line)


def rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """Yield a row a way, in the order of the ladder. Times are the median and, of several runs, the worst."""
    for result in sorted(results, key=lambda r: _ORDER.index(r.way)):
        back = result.rollbacks
        yield (
            f"{result.way}: {_SAYS[result.way]}",
            str(len(back)),
            f"{sum(n.failures for n in back):,} / {sum(n.requests for n in back):,}",
            str(sum(n.failed_slow for n in back)),
            _times([n.gap_s for n in back]),
            _times([n.first_good_s for n in back]),
            _times([n.last_bad_s for n in back]),
            _times([n.command_s for n in back]),
            f"{result.posts.lost}, {result.posts.doubled}",
            _times([n.command_s for n in result.deploys]),
            f"{sum(n.failures for n in result.deploys):,}",
            f"{result.standby_bytes / (1 << 20):.0f} MiB" if result.standby_bytes else "",
        )


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """Yield what each of our rungs is to the procedure by hand, on the same machine in the same run."""
    by_hand = next((r for r in results if r.way == "by-hand"), None)
    if by_hand is None:
        return
    theirs = by_hand.rollbacks
    for result in sorted(results, key=lambda r: _ORDER.index(r.way)):
        if result is by_hand:
            continue
        ours = result.rollbacks
        failed = sum(n.failures for n in ours) / len(ours)
        by_hand_failed = sum(n.failures for n in theirs) / len(theirs)
        yield (
            f"by hand / {result.way}: gap {_ratio([n.gap_s for n in theirs], [n.gap_s for n in ours])}, "
            f"first good answer {_ratio([n.first_good_s for n in theirs], [n.first_good_s for n in ours])}, "
            f"failed {by_hand_failed:,.0f} to {failed:,.0f} a rollback"
        )


def longer(results: Sequence[Result]) -> Iterator[str]:
    """Yield how much longer a deploy takes than where nothing is kept ready."""
    deploy = {r.way: middle(n.command_s for n in r.deploys) for r in results}
    for base in ("changed", "L4"):
        for way in ("L3", "L2", "L1", "L0"):
            ours, theirs = deploy.get(way), deploy.get(base)
            if ours is not None and theirs is not None:
                yield f"a deploy on {way} takes {ours - theirs:+.1f} s against {base} ({ours:.1f} s, {theirs:.1f} s)"


def growth(results: Sequence[Result]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return head and rows of a table: how each way grows with the number of services, under the lowest load."""
    rate = min(r.rate for r in results)
    results = [r for r in results if r.rate == rate]
    sizes = sorted({r.services for r in results})
    body: list[tuple[str, ...]] = []
    for way in _ORDER:
        own = {r.services: r for r in results if r.way == way}
        if own:
            body.append((way, *(_grown(own[size].rollbacks) if size in own else "" for size in sizes)))
    return (f"way, {rate:g} requests/s", *(f"{size} services" if size > 1 else "1 service" for size in sizes)), body


def _grown(back: Sequence[Noticed]) -> str:
    failed = sum(n.failures for n in back) / len(back)
    return f"{_second(middle(n.last_bad_s for n in back))}, {_second(middle(n.gap_s for n in back))}, {failed:,.0f}"


def switched(found: Switched) -> Iterator[str]:
    """Yield the percentiles of many switches, and whether the bar is held."""
    yield f"{len(found.switches)} switches, {found.services} services, {found.rate:g} requests/s"
    told_ms = [1000 * n.last_bad_s for n in found.told]
    held = "held" if percentile(told_ms, 99) <= BAR_MS else "MISSED"
    yield f"  bad release out of traffic, from the edge's command: {_percentiles(told_ms)}"
    yield f"    bar {BAR_MS:g} ms at p99: {held}"
    called_ms = [1000 * n.last_bad_s for n in found.switches]
    yield f"  the same from the call of the step, with its looks:  {_percentiles(called_ms)}"
    gap_ms = 1000 * max(n.gap_s for n in found.switches)
    failed = sum(n.failures for n in found.switches)
    yield (
        f"  longest gap {gap_ms:.0f} ms; {failed} of {sum(n.requests for n in found.switches):,} requests failed; "
        f"posts lost {found.posts.lost}, doubled {found.posts.doubled}; "
        f"the load itself {found.late_ms:.1f} ms late (p99)"
    )


def _percentiles(values: Sequence[float]) -> str:
    return "  ".join(f"p{percent:g} {percentile(values, percent):.1f} ms" for percent in (50, 90, 99, 100))


def lines(found: Sequence[Figures]) -> Iterator[str]:
    """Yield everything for a terminal."""
    for (services, rate), results in grouped(found):
        yield f"{services} services, {rate:g} requests/s   (time: median, and the worst of several runs)"
        yield from table([HEAD, *rows(results)])
        yield from ratios(results)
        yield from longer(results)
        yield from doubts(results)
        yield ""
    if len({r.services for r in found if isinstance(r, Result)}) > 1:
        yield "last bad answer, longest gap of a service, failed requests a rollback"
        head, body = growth([r for r in found if isinstance(r, Result)])
        yield from table([head, *body])
        yield ""
    for one in found:
        if isinstance(one, Switched):
            yield from switched(one)


def doubts(results: Sequence[Result]) -> Iterator[str]:
    """Yield what makes a figure less sure: failures in quiet times, a load that was late itself."""
    for result in results:
        before = sum(n.failed_before for n in (*result.deploys, *result.rollbacks))
        if before:
            yield f"{result.way}: {before} requests failed in quiet times, between the commands"
        if result.late_ms > 10:
            yield f"{result.way}: the load itself was {result.late_ms:.0f} ms late (p99)"
        if result.posts.unanswered:
            yield f"{result.way}: {result.posts.unanswered} posts were carried out and their answer was lost"


def grouped(found: Sequence[Figures]) -> list[tuple[tuple[int, float], list[Result]]]:
    """Put the results of the same stack and load together, one of each way: the newest."""
    newest = {(r.services, r.rate, r.way): r for r in found if isinstance(r, Result)}
    ordered = sorted(newest.values(), key=lambda r: (r.services, r.rate))
    return [(key, list(own)) for key, own in groupby(ordered, key=lambda r: (r.services, r.rate))]


def table(body: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*body, strict=True)]
    for row in body:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in body)


def page(found: Sequence[Figures]) -> Iterator[str]:
    """Yield the page's lines."""
    yield PREFACE.format(machine=platform.machine(), cores=os.cpu_count())
    for (services, rate), results in grouped(found):
        yield ""
        yield f"## {services} service{'s' if services > 1 else ''}, {rate:g} requests/s"
        yield ""
        yield from _markdown(HEAD, list(rows(results)))
        notes = [*ratios(results), *longer(results), *doubts(results)]
        if notes:
            yield ""
            yield from (f"- {note}" for note in notes)
    results = [r for _, own in grouped(found) for r in own]
    if len({r.services for r in results}) > 1:
        yield ""
        yield "## From one service to many"
        yield ""
        yield "Until the last answer of the bad release, the longest gap of a service, failed requests a rollback."
        yield ""
        yield from _markdown(*growth(results))
    switches = [one for one in found if isinstance(one, Switched)]
    if switches:
        yield ""
        yield "## Many switches between two releases that both run (L0)"
        yield ""
        yield "One step of a rollback, asked of the target. It looks, then tells the edge, which moves all requests;"
        yield "until then nothing has changed for users. An answer under way takes 20 ms to finish, which is in it."
        yield ""
        yield "```text"
        for one in switches:
            yield from switched(one)
        yield "```"
    yield ""
    yield LEGEND


def _second(value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _times(values: Sequence[float | None]) -> str:
    middling = _second(middle(values))
    return middling if len(values) == 1 else f"{middling}, {_second(worst(values))}"


def _ratio(theirs: Sequence[float | None], ours: Sequence[float | None]) -> str:
    over, under = middle(theirs), middle(ours)
    return f"{over / under:,.1f} x" if over and under else "no ratio"


def main() -> None:
    found = [from_json(line) for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not found:
        sys.exit("no figures; run: .venv/bin/python -m bench.switch --json FILE")
    sys.stdout.writelines(f"{line}\n" for line in page(found))


if __name__ == "__main__":
    main()

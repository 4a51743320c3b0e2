#!/usr/bin/env python3
"""Print what `make system` measured as a page: docs/figures.md is this output, redirected.

    scripts/figures.py [FOLDER]      FOLDER: where the stories left their figures (.cache/figures)

A row stands for all rounds of one story: the ending of each, medians of the times, the worst of what was lost.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Story = dict[str, Any]
HEAD = (
    "fault | ending | trigger | noticed after | back after | containers | frontend | database "
    "| requests failed: before the decision, until the switch, in it | missions acknowledged | missing | announced"
)


def stories(folder: Path) -> dict[str, dict[str, list[Story]]]:
    """Read every round: engine -> fault -> stories, oldest first."""
    found: dict[str, dict[str, list[Story]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            story = json.loads(line)
            found.setdefault(story["engine"], {}).setdefault(story["fault"], []).append(story)
    return found


def row(fault: str, rounds: Sequence[Story]) -> str:
    """Put the rounds of one story into a row."""
    endings = [r["terminal_state"] for r in rounds]
    same = f"{endings[0]} ({len(rounds)} of {len(rounds)})" if len(set(endings)) == 1 else ", ".join(endings)
    times = (seconds(rounds, key) for key in ("detect_s", "total_s", "containers_s", "frontend_s", "database_s"))
    failed = [
        (
            r["requests"]["failed_before_decision"],
            r["requests"]["failed"] - r["requests"]["failed_before_decision"] - r["requests"]["failed_during_switch"],
            r["requests"]["failed_during_switch"],
        )
        for r in rounds
    ]
    worst = ", ".join(str(max(column)) for column in zip(*failed, strict=True))
    missions = [str(max(r["missions"][key] for r in rounds)) for key in ("acknowledged", "missing", "announced_lost")]
    return " | ".join([fault, same, rounds[0]["trigger"] or "none", *times, worst, *missions])


def seconds(rounds: Sequence[Story], key: str) -> str:
    """The median in seconds; empty where there was nothing to time."""
    known = [r["timings"][key] for r in rounds if r["timings"][key] is not None]
    return f"{median(known):.1f} s" if known else ""


def page(found: dict[str, dict[str, list[Story]]]) -> Iterator[str]:
    """Yield the page's lines."""
    yield "# Figures of the stories"
    yield ""
    yield "Releases of HyperCode, deployed under 20 requests/s and watched. Made by `make system` and then"
    yield "`scripts/figures.py > docs/figures.md`; not edited by hand. Times are medians over the rounds, counts the"
    yield f"worst round. Machine: {platform.machine()}, Python {platform.python_version()}, stories side by side;"
    yield "(n of n) says how often each was played. CI plays three of them on Compose, `make system` all."
    for engine, faults in sorted(found.items(), reverse=True):
        yield ""
        yield "## On Compose, behind an edge" if engine == "edge" else f"## On the {engine} engine"
        yield ""
        yield f"| {HEAD} |"
        yield "|" + "---|" * (HEAD.count("|") + 1)
        yield from (f"| {row(fault, rounds)} |" for fault, rounds in sorted(faults.items()))
    yield ""
    yield "What the columns mean:"
    yield ""
    yield "- *noticed after*: from the moment at which the release serves to the decision. `never-boots` never serves."
    yield "- *back after*: from the decision to the end, with verification, smoke tests and the message to the team."
    yield "- *in it*: requests that the switch itself made fail. On Compose each changed service is recreated in place"
    yield "  (rung L4), so requests fail while it restarts; on the process engine the new one serves first, and behind"
    yield "  an edge requests move. `bad-migration` also ends the sessions of its database, and starts the old release"
    yield "  after the swap."
    yield "- *missing*: missions that a user was promised and the live database does not have, by the traffic's own"
    yield "  ledger; *announced*: rows that do not fit the old schema, and wait in quarantine, by the report."


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / ".cache" / "figures")
    read = stories(folder)
    if not read:
        sys.exit(f"{folder}: no figures; run: make system")
    sys.stdout.writelines(f"{line}\n" for line in page(read))

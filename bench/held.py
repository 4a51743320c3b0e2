"""How long users wait at the edge while the database goes back, and how that grows with its size (rung D3).

    python -m bench.held [--sizes 0.2 2 8] [--rate 20]

For each size (GB): HyperCode on Docker Compose behind its edge, with an archive of that size in its database, under
traffic that a process of its own counts. A migration spoils rows, the data trigger sees it, a person approves, and the
database goes back with everything that was written since. Everything is done by the command line.
Needs the Docker engine of scripts/engine.sh. Ports of loopback only; all that it starts is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lastgood.cli.demo import REPORT, Demo, play
from lastgood.cli.stage import EdgeStage
from lastgood.core.report import Report
from lastgood.targets.postgres import connect
from lastgood.testing.traffic import Request, read_ledger

FAULT: Final = "bad-migration"
ROWS_A_GB: Final = 3_200_000
AT_ONCE: Final = 400_000
FIRST, LAST = "hold-requests", "pass-requests"
ARCHIVE: Final = """
INSERT INTO archive (id, what)
SELECT g, md5(g::text) || md5((g + 1)::text) || md5((g + 2)::text) || md5((g + 3)::text) || md5((g + 4)::text)
    || md5((g + 5)::text) || md5((g + 6)::text) FROM generate_series(%s::bigint, %s::bigint) g
"""
HEAD: Final = (
    "| size | rung | database away | longest answer in it | usually | answers held over 0.1 s | failed in it "
    "| missions acknowledged | missing |"
)


class Roomy(EdgeStage):
    """HyperCode on a server that lets a slot keep what a restore of so many gigabytes writes, and 4 GB more."""

    gigabytes: float

    def dotenv(self) -> Mapping[str, str]:
        return {**super().dotenv(), "HYPER_LOG_KEPT": f"{4 + round(1.2 * self.gigabytes)}GB"}


class Grown(Demo):
    """Its users come when there is an archive in the database. gigabytes: how large."""

    gigabytes: float

    def traffic(self) -> subprocess.Popen[bytes]:
        wanted = int(self.gigabytes * ROWS_A_GB)
        with connect.connect(self.stage.database(), autocommit=True) as live:
            live.execute("CREATE TABLE archive (id bigint PRIMARY KEY, what text NOT NULL)")
            for first in range(1, wanted + 1, AT_ONCE):
                live.execute(ARCHIVE, [first, min(first + AT_ONCE - 1, wanted)])
            live.execute("VACUUM ANALYZE archive")
        return super().traffic()


def measure(gigabytes: float, *, rate: float) -> str:
    """Play it at one size. Returns the line of the table. Raises RuntimeError when the story did not end well."""
    with tempfile.TemporaryDirectory(prefix="held-") as made, contextlib.redirect_stdout(sys.stderr):
        home = Path(made) / f"demo-{secrets.token_hex(2)}"
        home.mkdir()
        stage = Roomy(home)
        stage.gigabytes = gigabytes
        demo: Grown | None = None
        try:
            stage.set_up(short_window=None)
            demo = Grown(fault=FAULT, stage=stage, rate=rate, home=home)
            demo.gigabytes = gigabytes
            figures = play(demo)
            report = demo.ask(REPORT, "explain")
            if figures.wrong or report is None:
                raise RuntimeError(f"{gigabytes:g} GB: {'; '.join(figures.wrong) or 'there is no report'}")
            answers = read_ledger(home / "traffic.jsonl")
        finally:
            if demo is not None:
                demo.stop()
            else:
                stage.tear_down()
    missions = figures.missions
    return f"| {gigabytes:g} GB | {_line(report, answers)} | {missions.acknowledged:,} | {missions.missing:,} |"


def _line(report: Report, answers: Sequence[Request]) -> str:
    began = min(step.began_at for step in report.steps if step.name == FIRST and step.began_at)
    ended = max(step.ended_at for step in report.steps if step.name == LAST and step.ended_at)
    touched = [each for each in answers if each.sent_at <= ended and each.finished_at >= began]
    usual = [each.elapsed_ms for each in answers if each.finished_at < began and not each.failed]
    took = [each.elapsed_ms for each in touched]
    return (
        f"{_rung(report)} | {(ended - began).total_seconds():.2f} s | {max(took):,.0f} ms "
        f"| {statistics.median(usual):.0f} ms, p99 {statistics.quantiles(usual, n=100)[-1]:,.0f} ms "
        f"| {sum(ms > 100 for ms in took)} of {len(took)} | {sum(each.failed for each in touched)}"
    )


def _rung(report: Report) -> str:
    return "D3" if any(step.name == "catch-up" for step in report.steps) else "not D3"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.held", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.2, 2.0, 8.0])
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second")
    options = parser.parse_args(words)
    # so that a run that is ended from outside cleans up as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lines = [measure(size, rate=options.rate) for size in options.sizes]
    print("\n".join([HEAD, "|" + "---|" * HEAD.count(" |"), *lines]))


if __name__ == "__main__":
    main()

"""See the package."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.switch.figures import Result, Switched
from bench.switch.measure import measure, measure_switches
from bench.switch.report import lines, to_json
from bench.switch.stack import Failed, images
from bench.switch.ways import KINDS


def main() -> int:
    known = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(
        prog="python -m bench.switch",
        description="What users notice while a bad release is taken out of traffic.",
        epilog="Needs the Docker engine of scripts/engine.sh. Ports of loopback only; all that it starts is removed.",
    )
    parser.add_argument("--ways", nargs="*", choices=known, default=known, metavar="WAY", help=", ".join(known))
    parser.add_argument("--runs", type=int, default=1, help="rollbacks on each of our rungs")
    parser.add_argument("--others-runs", type=int, default=1, help="rollbacks by each of the other ways")
    parser.add_argument("--rate", type=float, default=150.0, help="requests per second, over all services")
    parser.add_argument("--services", type=int, nargs="+", default=[1], help="stacks of so many services")
    parser.add_argument("--switches", type=int, default=0, help="L0 switches back and forth, and their percentiles")
    parser.add_argument("--json", type=Path, help="append every figure to this file, for bench.switch.report")
    asked = parser.parse_args()
    # so that a run that is ended from outside cleans up as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: list[Result | Switched] = []

    def keep(one: Result | Switched) -> None:
        found.append(one)
        if asked.json:
            with asked.json.open("a", encoding="utf-8") as file:
                file.write(to_json(one) + "\n")

    failed: list[str] = []
    with images() as made:
        for services in asked.services:
            for kind in (kind for kind in KINDS if kind.name in asked.ways):
                runs = asked.runs if kind.ours else asked.others_runs
                say(f"{kind.name}: {kind.says}, {services} services, {asked.rate:g}/s")
                try:
                    keep(measure(made, kind, services=services, rate=asked.rate, runs=runs, story=say))
                except Failed as error:
                    failed.append(f"{kind.name}, {services} services: {error}")
                    say(failed[-1])
            if asked.switches:
                say(f"{asked.switches} switches, {services} services, {asked.rate:g}/s")
                warm = next(kind for kind in KINDS if kind.name == "L0")
                keep(measure_switches(made, warm, services=services, rate=asked.rate, switches=asked.switches))
    for line in lines(found):
        print(line)
    for line in failed:
        print(f"FAILED  {line}")
    return 1 if failed else 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Play rollbacks of the database in which somebody is killed, and compare the data with a ledger outside.

    python -m tests.campaign --runs 1000 [--seed S] [--jobs 2] [--programs /usr/lib/postgresql/15/bin | wheel]
    python -m tests.campaign --case S/17          play one of them again

TMPDIR=/dev/shm spares the disk: who is killed loses nothing that the kernel was given, there as here.

A run counts when the kill fell inside of a step; one that did not is drawn again. stdout is the table, stderr the
story. Exit 1 when anything was wrong; what was found of such a run is kept in a folder that is named.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from tests.campaign.case import draw, parse
from tests.campaign.crew import play_all
from tests.campaign.table import table
from tests.contract.rigs.postgres_cluster import newest_programs

WHEEL = "wheel"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", default=secrets.token_hex(3))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--case", help="SEED/NUMBER or SEED/NUMBER/ATTEMPT, as a run is called in the story")
    parser.add_argument(
        "--programs", default=str(newest_programs() or WHEEL), help="of which server; `wheel` for its own"
    )
    parser.add_argument("--keep", type=Path, default=Path(".cache/campaign"), help="where what went wrong is kept")
    options = parser.parse_args()
    programs = None if options.programs == WHEEL else Path(options.programs)
    cases = [parse(options.case)] if options.case else [draw(options.seed, number) for number in range(options.runs)]
    outcomes = play_all(cases, jobs=options.jobs, programs=programs, keep=options.keep.resolve())
    sys.stdout.write(table(cases, outcomes))
    counted = {outcome.case.number for outcome in outcomes if outcome.landed}
    wrong = any(outcome.wrong for outcome in outcomes)
    return int(wrong or counted != {case.number for case in cases})


if __name__ == "__main__":
    sys.exit(main())

"""A short campaign: somebody of each kind dies in each step, and nothing is lost or applied twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.case import NAMES, STEPS, Kill, draw, parse

RUNS = len(Kill) * len(STEPS)
IN_MEMORY = Path("/dev/shm")  # noqa: S108 # who is killed loses nothing that the kernel was given, there as on a disk


def test_a_case_is_drawn_again_by_its_label() -> None:
    assert parse("s/17/2") == draw("s", 17, 2)
    assert parse(draw("s", 17).label) == draw("s", 17)
    assert draw("s", 17) != draw("t", 17)


def test_each_victim_dies_in_each_step_of_each_migration() -> None:
    cases = [draw("s", number) for number in range(RUNS * len(NAMES))]
    assert len({(case.kill, case.step, case.shape_name) for case in cases}) == len(cases)
    assert len({(case.kill, case.step) for case in cases[:RUNS]}) == RUNS


@pytest.mark.needs_server
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whoever_dies_nothing_acknowledged_is_lost_or_applied_twice(tmp_path: Path) -> None:
    seed = f"{random.randrange(1 << 24):06x}"  # noqa: S311 # no secret: it is printed, and drawn from the seed of pytest
    words = ("--runs", str(RUNS), "--jobs", "2", "--seed", seed, "--keep", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaign", *words],
        env=os.environ | ({"TMPDIR": str(IN_MEMORY)} if IN_MEMORY.is_dir() else {}),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"

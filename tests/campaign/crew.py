"""Several servers side by side, on each of which rollback follows rollback."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from types import FrameType
from typing import Final

from pydantic import TypeAdapter

from tests.campaign.case import STEPS, Case, Outcome, draw
from tests.campaign.play import Rollback, prepare
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_cluster import cluster
from tests.contract.rigs.postgres_embedded import open_folder

ATTEMPTS: Final = 12
"""How often one is drawn until its kill falls inside of the step."""
LONGEST_S: Final = 240
AT_FIRST_S: Final = 0.1
REMEMBERED: Final = 9
OUTCOME: Final = TypeAdapter(Outcome)


class TooLong(Exception):
    """A run that does not end."""


def play_all(cases: Sequence[Case], *, jobs: int, programs: Path | None, keep: Path) -> list[Outcome]:
    """Play them all; those that missed as well are in the answer."""
    signal.signal(signal.SIGTERM, _end)
    crews: dict[int, int] = {}
    outcomes: list[Outcome] = []
    rests: dict[int, bytes] = {}
    with selectors.DefaultSelector() as heard:
        for number in range(min(jobs, len(cases))):
            ear, mouth = os.pipe()
            mine = cases[number::jobs]
            crews[begin(lambda: _play(mine, programs, keep, mouth))] = ear  # noqa: B023 # forked at once
            os.close(mouth)
            heard.register(ear, selectors.EVENT_READ)
            rests[ear] = b""
        try:
            while heard.get_map():
                for key, _ in heard.select():
                    said = os.read(key.fd, 1 << 20)
                    if not said:
                        heard.unregister(key.fd)
                    *lines, rests[key.fd] = (rests[key.fd] + said).split(b"\n")
                    for line in lines:
                        outcomes.append(OUTCOME.validate_json(line))
                        _tell(outcomes, len(cases))
        except BaseException:
            for pid in crews:
                os.kill(pid, signal.SIGTERM)
            raise
        finally:
            codes = [ended(pid) for pid in crews]
    assert not any(codes), "a crew failed; its traceback stands above"
    return outcomes


def _tell(outcomes: Sequence[Outcome], runs: int) -> None:
    last = outcomes[-1]
    counted = sum(outcome.landed for outcome in outcomes)
    landed = "" if last.landed else ", missed"
    sys.stderr.write(f"{counted}/{runs}  {last.case} after {last.after_s * 1000:.0f} ms{landed}, {last.took_s:.1f} s\n")
    for line in last.wrong:
        sys.stderr.write(f"    WRONG: {line}\n")


def _play(cases: Sequence[Case], programs: Path | None, keep: Path, mouth: int) -> None:
    """One crew's: each case until its kill falls inside of the step."""
    signal.signal(signal.SIGALRM, _too_long)
    took_s = {step: [AT_FIRST_S] * 2 for step in STEPS}  # a quantile is one of two at least
    with open_folder() as folder, cluster(folder, programs) as server:
        prepare(folder / "template", server)
        for first in cases:
            for attempt in range(first.attempt, first.attempt + ATTEMPTS):
                case = draw(first.seed, first.number, attempt)
                usual_s = {step: quantiles(took_s[step][-REMEMBERED:], n=3)[0] for step in STEPS}
                with _room(folder / f"run-{case.number}-{attempt}") as room:
                    outcome = _one(Rollback(case, room, server, usual_s), keep)
                    for step, s in outcome.steps_s.items():
                        took_s[step].append(s)
                    os.write(mouth, OUTCOME.dump_json(outcome) + b"\n")
                if outcome.landed or outcome.wrong:
                    break


def _one(rollback: Rollback, keep: Path) -> Outcome:
    """Play it; whatever goes wrong is of the outcome, and its traces are kept."""
    began = time.monotonic()
    signal.alarm(LONGEST_S)
    try:
        outcome = rollback.play()
    except Exception as error:  # noqa: BLE001 # the next one shall be played as well
        traceback.print_exc()
        outcome = Outcome(
            case=rollback.case,
            landed=rollback.landed,
            after_s=rollback.after_s,
            took_s=time.monotonic() - began,
            counts={},
            wrong=(f"{type(error).__name__}: {error}",),
            steps_s={},
        )
    finally:
        signal.alarm(0)
    if outcome.wrong:
        kept = keep / rollback.case.label.replace("/", "-")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(rollback.folder, kept)
        shutil.copy(rollback.cluster.data / "log", kept / "server.log")
        sys.stderr.write(f"    kept in {kept}\n")
    return outcome


@contextmanager
def _room(folder: Path) -> Generator[Path]:
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(1)


def _too_long(_signal: int, _frame: FrameType | None) -> None:
    raise TooLong(f"it did not end within {LONGEST_S} s")

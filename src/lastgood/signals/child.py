"""A command that is run to its end or to its deadline, in a process group that is gone afterwards, children included.

It is started through this module's own `main`, which asks the kernel to end it with the process that started it: a
killed `lastgood` leaves no test running against production.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TAIL_BYTES: Final = 16_384
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
NOT_STARTED: Final = 127
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
"""What a child sees of this environment: where programs and files are, and no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How it ended. exit_code: None when its deadline was over first; negative: the signal. tail: the end of what it
    printed."""

    exit_code: int | None
    tail: str


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], deadline_s: float) -> Finished:
    """Run a list of words. env: added to PASSED_ON. Raises OSError when no process can be started."""
    known = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__)), str(os.getpid()), *command],
            cwd=cwd,
            env=known | dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            exit_code: int | None = process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            # the group, not the process: what it started must not go on either
            _end_group(process.pid)
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL_BYTES))
        return Finished(exit_code=exit_code, tail=output.read(TAIL_BYTES).decode("utf-8", "replace"))


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # nobody is left in it


def main(words: Sequence[str]) -> int:
    """Become the command. words: the pid of who must live, then the command."""
    parent, *command = words
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != int(parent):
        return NOT_STARTED
    try:
        os.execvp(command[0], command)  # noqa: S606 # a list of words, no shell
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

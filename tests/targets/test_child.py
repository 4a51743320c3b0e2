"""What becomes of a command whose caller is interrupted."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from lastgood.targets import child

ENV = {"PATH": os.environ["PATH"]}
# It goes on when it is told to: not before whoever waits for it was interrupted.
COMMAND = ("sh", "-c", "read go && echo done")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Have the next command's caller get Ctrl-C as soon as it waits; the command."""
    commands: list[subprocess.Popen[bytes]] = []
    wait = subprocess.Popen[bytes].wait

    def once(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if commands:
            return wait(process, timeout=timeout)
        commands.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", once)
    return commands


def test_a_command_that_holds_something_works_on_when_its_caller_is_interrupted(
    tmp_path: Path, interrupted: list[subprocess.Popen[bytes]]
) -> None:
    """As it does when its caller is killed: compose that ended between its stop and its start left a service down."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    told, tell = os.pipe()
    with (tmp_path / "out").open("wb") as out, os.fdopen(told, "rb") as stdin, pytest.raises(KeyboardInterrupt):
        child.run(COMMAND, deadline_s=20.0, env=ENV, holding=lock, stdin=stdin, stdout=out)
    os.close(lock)
    with (tmp_path / "lock").open("wb") as mine:
        with pytest.raises(BlockingIOError):
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(tell, b"go\n")
        os.close(tell)
        fcntl.flock(mine, fcntl.LOCK_EX)
    assert interrupted[0].wait() == 0
    assert (tmp_path / "out").read_text() == "done\n"


def test_any_other_command_ends_with_its_caller(interrupted: list[subprocess.Popen[bytes]]) -> None:
    told, tell = os.pipe()
    with os.fdopen(told, "rb") as stdin, pytest.raises(KeyboardInterrupt):
        child.run(COMMAND, deadline_s=20.0, env=ENV, stdin=stdin)
    assert interrupted[0].returncode is not None
    os.close(tell)

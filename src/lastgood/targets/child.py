"""Runs one command to its end or to its deadline, in a process group of its own, with an environment that is chosen.

Output goes to files, not pipes: a grandchild that keeps a pipe open would otherwise hold the caller past the deadline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from lastgood.core.errors import Refused
from lastgood.targets.docker_host import docker_host

OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
TERM_GRACE_S: Final = 2.0

# What the docker client itself needs: where the engine is, its own settings, and the way out to a registry.
_CLIENT: Final = (
    "PATH",
    "HOME",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that ended by itself. code: its exit code, negative for the signal that ended it."""

    code: int
    out: str
    err: str


class Overran(Exception):
    """The command was still running at its deadline; its process group was killed. What it did is not known."""


def bare_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What the client needs out of `env` and nothing else: no variable of today can change a release of yesterday."""
    return {name: env[name] for name in _CLIENT if name in env} | _engine(env) | {"LANG": "C.UTF-8"}


def interpolation_environment(env: Mapping[str, str]) -> dict[str, str]:
    """All of `env`, since compose fills `${VAR}` from it, but for compose's own switches: which files, project and
    profiles count is said in lastgood.yaml."""
    kept = {name: value for name, value in env.items() if not name.startswith("COMPOSE_")}
    return kept | _engine(env) | {"LANG": "C.UTF-8"}


def _engine(env: Mapping[str, str]) -> dict[str, str]:
    """The engine that everything else here asks, said outright. A context that is none is left to the client, which
    says so."""
    with suppress(Refused):
        if host := docker_host(env):
            return {"DOCKER_HOST": host}
    return {}


def run(
    words: Sequence[str],
    *,
    deadline_s: float,
    env: Mapping[str, str],
    cwd: Path | None = None,
    holding: int | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> Ended:
    """Run `words`. Raises Overran at the deadline, FileNotFoundError when there is no such program.

    holding: a file descriptor that the command keeps open for as long as it or a child of it lives. Such a command
    works on when this one is interrupted, as when it is killed: whoever comes next can wait for its end. Any other
    ends with it.
    stdin: nothing when it is left out. stdout: where the output goes instead of into the answer.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(  # killed by group below, which a with-statement would wait for
            list(words),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or out,
            stderr=err,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            pass_fds=() if holding is None else (holding,),
        )
        try:
            code = process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            _end_group(process)
            raise Overran(f"{words[0]} {words[1]} did not end within {deadline_s:.0f} s") from None
        except BaseException:
            if holding is None:
                _end_group(process)
            raise
        _end_group(process)
        return Ended(code=code, out=_text(out), err=_text(err))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the group: nothing when the command ended by itself and left no child."""
    for deadly in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, deadly)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=TERM_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(OUTPUT_LIMIT_BYTES).decode("utf-8", errors="replace")

"""How a command speaks with the holder: one line of JSON each way over a unix socket that only this user can open.

The holder is started by the first command that needs it and outlives all of them. Nothing is repeated here: whoever
gets no answer looks again.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from lastgood.core.errors import OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import InstanceFacts
from lastgood.targets.process.kept import PASSED_ON
from lastgood.targets.unix_address import short_path

SOCKET: Final = "holder.sock"
LOG: Final = "holder.log"
MODULE: Final = "lastgood.targets.process.holder"
LOOK_S: Final = 5.0
START_S: Final = 15.0
"""Starting an interpreter took under a second on an idle machine; a busy one may be ten times slower."""
LOOKS: Final = 3
MOST_BYTES: Final = 4 << 20
AGAIN_S: Final = 1.0


class Verb(StrEnum):
    """What the holder can be asked."""

    LOOK = "look"
    START = "start"
    SWITCH = "switch"
    RETIRE = "retire"
    CLEAR = "clear"
    HOLD = "hold"
    RESUME = "resume"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. release, service, artifact: for START and SWITCH; service: for RETIRE. stop_s: how long to wait for
    what is ended, or for the requests that are being answered (HOLD)."""

    verb: Verb
    release: str = ""
    service: str = ""
    artifact: str = ""
    stop_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the holder shows after it did what it was asked. refused: why it did not, and then nothing changed.

    candidates: those of the gate, and those that no longer serve and are not gone yet. ports: public ones it owns.
    can_hold, holding: whether requests from outside can be made to wait, and whether they do. A holder that was started
    before it could says neither.
    """

    serving: tuple[InstanceFacts, ...] = ()
    candidates: tuple[InstanceFacts, ...] = ()
    ports: tuple[int, ...] = ()
    can_hold: bool = False
    holding: bool = False
    refused: str = ""


ASK: Final = TypeAdapter(Ask)
ANSWER: Final = TypeAdapter(Answer)


def ask(state: Path, request: Ask, *, deadline_s: float = LOOK_S) -> Answer | None:
    """Ask the holder of a state directory. None when there is none.

    Raises Refused: nothing changed. Retryable when it could not be asked. OutcomeUnknown: asked, the answer was lost.
    """
    for attempt in range(LOOKS):
        time.sleep(attempt * 0.05)
        try:
            said = _said(state, request, deadline_s)
            answer = ANSWER.validate_json(said) if said is not None else None
        except (OSError, ValidationError) as error:
            if request.verb is not Verb.LOOK:
                raise OutcomeUnknown(
                    f"the holder did not answer to {request.verb.value}", hint=f"less {state / LOG}"
                ) from error
            if isinstance(error, TimeoutError):
                break
            continue  # it ended just now: look again, nothing was asked to be done
        if answer is not None and answer.refused:
            raise Refused(answer.refused, hint=f"less {state / LOG}")
        return answer
    raise Retryable("the holder does not answer", delay_s=AGAIN_S, hint=f"less {state / LOG}")


def _said(state: Path, request: Ask, deadline_s: float) -> bytes | None:
    """Return the answer as it came. None when nobody listens. Raises OSError: it may have been heard."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(deadline_s)
        try:
            with short_path(state / SOCKET) as path:
                line.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        line.sendall(ASK.dump_json(request) + b"\n")
        return b"".join(iter(lambda: line.recv(65_536), b""))


def ask_or_start(state: Path, request: Ask, *, deadline_s: float) -> Answer:
    """As `ask`, with a holder that is started first where there is none. Raises Retryable when it does not come up."""
    answer = ask(state, request, deadline_s=deadline_s)
    if answer is not None:
        return answer
    start(state)
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        answer = ask(state, request, deadline_s=deadline_s)
        if answer is not None:
            return answer
        time.sleep(0.05)
    raise Retryable("the holder does not start", delay_s=AGAIN_S, hint=f"less {state / LOG}")


def start(state: Path) -> None:
    """Start a holder, detached from this process and its terminal. Where one lives already the new one ends at once."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    package = Path(__file__).resolve().parents[3]
    log = os.open(state / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        # not subprocess: nobody waits for this child
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", MODULE, str(state)],
            {**passed_on(os.environ), "PYTHONPATH": str(package)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
        os.close(nothing)


def passed_on(env: Mapping[str, str]) -> dict[str, str]:
    """What any program needs of an environment, and no secret of it."""
    return {name: env[name] for name in PASSED_ON if name in env}

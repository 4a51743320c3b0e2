"""Run a release of HyperCode on private ports, and put its ordinary traffic on it."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import psycopg

HYPERCODE: Final = Path(__file__).resolve().parents[2] / "examples" / "hypercode"
USER: Final = {"user": "ada", "password": "lovelace"}

_START_DEADLINE_S: Final = 30.0
_STOP_DEADLINE_S: Final = 10.0
_REQUEST_DEADLINE_S: Final = 10.0
# One hundred requests: 40 create a mission, 25 list, 15 read one, 10 chat, 10 log in.
_MIX: Final = ("create",) * 40 + ("list",) * 25 + ("get",) * 15 + ("chat",) * 10 + ("login",) * 10


class DidNotStart(Exception):
    """A service ended before it answered; the message is what it wrote to stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStack:
    """The three services of one release: addresses, and processes by module name. `log`: where they write to stderr."""

    core: str
    orchestrator: str
    coder_agent: str
    processes: Mapping[str, subprocess.Popen[bytes]]
    log: Path

    @contextmanager
    def session(self) -> Generator[httpx.Client]:
        """A client of the core with the demo user's session."""
        with httpx.Client(base_url=self.core, timeout=_REQUEST_DEADLINE_S, trust_env=False) as client:
            answer = client.post("/login", json=USER).raise_for_status()
            client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
            yield client

    def failures(self) -> list[dict[str, object]]:
        """The lines that the services wrote about requests that failed, oldest first."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if '"event": "request_failed"' in line]

    def the_failure(self) -> dict[str, object]:
        """The only such line. A service writes it after its answer, so that it may come a moment later."""
        deadline = time.monotonic() + _REQUEST_DEADLINE_S
        while not (found := self.failures()) and time.monotonic() < deadline:
            time.sleep(0.01)
        [failure] = found
        return failure


@contextmanager
def running_stack(
    tree: Path, database_url: str, log: Path, *, environment: Mapping[str, str] | None = None
) -> Generator[RunningStack]:
    """The release at `tree`, answering on /health when this yields. environment: beside, and before, what is usual.
    Raises DidNotStart."""
    ports = dict(zip(("coder_agent", "orchestrator", "hypercode_core"), free_ports(3), strict=True))
    addresses = {service: f"http://127.0.0.1:{port}" for service, port in ports.items()}
    given = os.environ | {
        "DATABASE_URL": database_url,
        "TOKEN_SECRET": "a secret of these tests",
        "ORCHESTRATOR_URL": addresses["orchestrator"],
        "CODER_AGENT_URL": addresses["coder_agent"],
        **(environment or {}),
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        with log.open("wb") as stderr:
            for service, port in ports.items():
                command = [sys.executable, "-m", service]
                with_port = given | {"PORT": str(port)}
                processes[service] = subprocess.Popen(command, cwd=tree / "services", env=with_port, stderr=stderr)
        for service, process in processes.items():
            _wait_until_healthy(process, f"{addresses[service]}/health", log)
        yield RunningStack(
            core=addresses["hypercode_core"],
            orchestrator=addresses["orchestrator"],
            coder_agent=addresses["coder_agent"],
            processes=processes,
            log=log,
        )
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            _end(process)


def migrate(tree: Path, database_url: str) -> subprocess.CompletedProcess[str]:
    """Run the release's own migration step."""
    return subprocess.run(
        [sys.executable, str(tree / "prisma" / "migrate.py")],
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def smoke(tree: Path, stack: RunningStack) -> subprocess.CompletedProcess[str]:
    """Run the release's own smoke tests against the stack."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tree), str(tree / "smoke")],
        env=os.environ | {"CORE_URL": stack.core},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ordinary_traffic(stack: RunningStack) -> Sequence[int]:
    """The statuses of one hundred requests of the ordinary mix, four at a time, always sent in the same order."""
    kinds = list(_MIX)
    random.Random(7).shuffle(kinds)  # noqa: S311 - traffic, not a secret
    with stack.session() as client, ThreadPoolExecutor(4) as senders:
        mission = client.post("/missions", json={"title": "First", "credits": 30, "priority": "high"}).json()["id"]
        return [answer.status_code for answer in senders.map(partial(_send, client, mission), kinds)]


def broken_rows(database_url: str) -> dict[str, int]:
    """How many rows break each invariant, for those that have any; by the name of the invariant's file."""
    found: dict[str, int] = {}
    with psycopg.connect(database_url) as db:
        for invariant in sorted((HYPERCODE / "invariants").glob("*.sql")):
            rows = db.execute(invariant.read_bytes()).fetchall()
            if rows:
                found[invariant.stem] = len(rows)
    return found


def refused_statements(tree: Path, database_url: str) -> dict[str, str | None]:
    """SQLSTATE of each of the release's statements that today's schema refuses; nothing is kept of any of them."""
    refused: dict[str, str | None] = {}
    with psycopg.connect(database_url) as db:
        for statement in sorted((tree / "statements").glob("*.sql")):
            try:
                db.execute(statement.read_bytes())
            except psycopg.Error as error:
                refused[statement.stem] = error.sqlstate
            db.rollback()
    return refused


def _send(client: httpx.Client, mission: int, kind: str) -> httpx.Response:
    match kind:
        case "create":
            return client.post("/missions", json={"title": "Reach orbit", "credits": 25, "priority": "normal"})
        case "list":
            return client.get("/missions", params={"limit": 20})
        case "get":
            return client.get(f"/missions/{mission}")
        case "chat":
            return client.post("/chat", json={"message": "plot a course", "mission_id": mission})
        case "login":
            return client.post("/login", json=USER)
        case _:
            raise ValueError(kind)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=1.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise DidNotStart(log.read_text(encoding="utf-8")) from None
    raise DidNotStart(f"{url} did not answer in {_START_DEADLINE_S:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise

"""Two small services on the embedded engine: real processes behind a real holder, in a state directory of their own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from lastgood.core.config import ProcessConfig
from lastgood.core.plan import ClearCandidates, Fence, HoldRequests, PassGate, PassRequests, Plan, Serve, Step
from lastgood.core.release import Release
from lastgood.targets.process import ProcessTarget, end_services
from lastgood.targets.process.control import SOCKET
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.deployment import deployment_of

# Writes a line when it starts and one when it is asked to end; answers with the content of VERSION.
SERVICE = """
import os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

def note(what):
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

VERSION = Path("VERSION").read_text()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/slow"):
            note("slow")
            threading.Event().wait(0.5)
        if self.path.endswith("ask-worker"):
            return self.answer(urlopen(os.environ["WORKER"], timeout=10).read())
        if self.path == "/die":
            os._exit(3)
        body = os.environ["SECRET"].encode() if self.path == "/secret" else VERSION.encode()
        self.answer(body)

    def answer(self, body):
        if self.path.startswith("/slow"):
            note("answered")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(201)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

if VERSION == "broken":
    sys.exit(f"cannot work without {os.environ['SECRET']}")
note("start")
server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
note("end")
"""


def free_ports(*names: str) -> dict[str, int]:
    """Different ports that nobody has at this moment."""
    with ExitStack() as opened:
        probes = {name: opened.enter_context(socket.socket()) for name in names}
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}


class ProcessWorld:
    """One stack: a source tree, two services, and a file in which the services write what happens to them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "stack"
        self.state = self.root / ".lastgood"
        self.source = self.root / "source"
        self.source.mkdir(parents=True)
        (self.source / "service.py").write_text(SERVICE)
        self.effects_file = folder / "effects"
        self.effects_file.touch()
        self.ports = free_ports("web", "worker")
        self.write("0")

    def write(self, version: str) -> None:
        """Put a version on disk, as a developer does."""
        (self.source / "VERSION").write_text(version)

    def config(self, **more: object) -> ProcessConfig:
        """The `process` section. more: what differs from the usual."""
        worker = f"http://127.0.0.1:{self.ports['worker']}/"
        env = {"EFFECTS": str(self.effects_file), "SECRET": "s3cr3t-word", "WORKER": worker}
        command = ["{python}", "service.py"]
        services = {
            name: {"command": command, "port": port, "health": "/", "env": env} for name, port in self.ports.items()
        }
        section = {"source": "source", "services": services, "boot": "20s", "stop": "5s"}
        return ProcessConfig.model_validate(section | more)

    def without(self, service: str) -> ProcessTarget:
        """A target whose settings no longer name a service."""
        services = {name: one.model_dump() for name, one in self.config().services.items() if name != service}
        return self.target(services=services)

    def target(self, **more: object) -> ProcessTarget:
        """A target as a new command would build it: it remembers nothing."""
        return ProcessTarget(self.config(**more), root=self.root, state=self.state, clock=CLOCK)

    def lines(self) -> list[str]:
        """What happened to the services so far, in their own words."""
        return self.effects_file.read_text().splitlines()

    def plan(self, target: ProcessTarget, release: Release) -> Plan:
        """Plan the deployment of a release; going back to an old one is the same plan."""
        return deployment_of(release, target)

    def put(self, version: str, name: str) -> Release:
        """Prepare a version as a release and carry its whole plan out."""
        self.write(version)
        target = self.target()
        release = target.prepare(name, CLOCK.now())
        for step in self.plan(target, release).steps:
            target.apply(step)
        return release

    def holder(self) -> int:
        """The holder's pid, by the lock that it holds."""
        inode = str((self.state / f"{SOCKET}.lock").stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return int(fields[4])
        raise AssertionError("no holder lives")


@contextmanager
def world(folder: Path) -> Iterator[ProcessWorld]:
    made = ProcessWorld(folder)
    try:
        yield made
    finally:
        end_services(made.state, stop_s=1.0)


class ProcessRig:
    """A world in which one release serves and the next one, which has one service less, is prepared."""

    def __init__(self, made: ProcessWorld) -> None:
        self._world = made
        made.put("1", "v1")
        made.write("2")
        self.target = made.without("worker")
        deploying = made.plan(self.target, self.target.prepare("v2", CLOCK.now())).steps
        serve = next(s for s in deploying if isinstance(s.action, Serve))
        hold = replace(serve, name="hold-requests", action=HoldRequests())
        gate = next(s for s in deploying if isinstance(s.action, PassGate))
        clear = next(s for s in deploying if isinstance(s.action, ClearCandidates))
        rest = [replace(s, name="pass-the-gate-again") if s is gate else s for s in deploying if s is not clear]
        # what served ends by itself in a second: only right after the gate there is something to clear for sure
        held = (hold, replace(hold, name="pass-requests", action=PassRequests()))
        self.steps: Sequence[Step] = (gate, clear, *rest, *held)
        assert isinstance(serve.action, Serve)
        self.refused = replace(serve, action=replace(serve.action, artifact=f"tree:{'0' * 64}"))
        self.foreign = replace(serve, action=Fence(kept_as="x"))

    def effects(self) -> int:
        """Starts and ends that the services wrote down."""
        return len(self._world.lines())

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Stop the holder in its tracks: it takes connections and says nothing."""
        pid = self._world.holder()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def rig(folder: Path) -> Iterator[ProcessRig]:
    with world(folder) as made:
        yield ProcessRig(made)

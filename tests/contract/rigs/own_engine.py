"""A Docker engine of a test's own, which can be killed without doing it to the engine that others use.

It has its own data, its own socket and its own network: a second engine in the same network takes the first one's
bridge and its rules away. The thread that enters the network reaches the published ports, and so does all that it
starts. Everything on this engine is the test's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import docker

ADDRESS: Final = "192.0.2.1"
"""Where to publish (RFC 5737). Not loopback: the engine forwards that itself, in a process that dies with it; to every
other address of the host packets find their way by the kernel's rules, as they do for users from outside."""
PROGRAMS: Final = ("dockerd", "ip", "iptables", "nsenter", "unshare")
UP_S: Final = 60.0
_CLONE_NEWNET: Final = 0x40000000


def own_engine_gap() -> str:
    """What keeps this machine from running one; empty if nothing does."""
    if os.geteuid() != 0:
        return "only root may start a Docker engine"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"no {', '.join(missing)} on this machine" if missing else ""


def _lives(pid: int) -> bool:
    """Whether there is such a process, and not only what nobody has asked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class OwnEngine:
    """Started by `start`, killed by `kill` as often as wanted; `close` leaves nothing of it. live_restore: whether
    containers outlive the engine's restart (Docker's own setting, off by default)."""

    def __init__(self, *, live_restore: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lge-"))  # short: the address of a socket has 107 bytes
        self.live_restore = live_restore
        self._env = {**os.environ, "PATH": _path()}
        self._daemon: subprocess.Popen[bytes] | None = None
        self._network = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], env=self._env)
        while self.network.readlink() == Path("/proc/self/ns/net").readlink():
            time.sleep(0.01)
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")

    @property
    def network(self) -> Path:
        """For setns and nsenter."""
        return Path(f"/proc/{self._network.pid}/ns/net")

    @property
    def socket(self) -> Path:
        return self.folder / "d.sock"

    @property
    def url(self) -> str:
        """For DOCKER_HOST."""
        return f"unix://{self.socket}"

    def _enter(self, *words: str) -> list[str]:
        return ["nsenter", f"--net={self.network}", *words]

    def _inside(self, *words: str) -> None:
        subprocess.run(self._enter(*words), check=True, timeout=10, env=self._env)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        for stale in ("d.pid", "x/containerd/containerd.pid"):
            # it takes whoever has the number now for itself, a zombie as well
            (self.folder / stale).unlink(missing_ok=True)
        words = ["dockerd", "--host", self.url, "--pidfile", str(self.folder / "d.pid")]
        words += ["--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "x")]
        words += ["--live-restore"] if self.live_restore else []
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self._enter(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )
        until = time.monotonic() + UP_S
        while not self.answers():
            said = (self.folder / "log").read_text(errors="replace")[-500:]
            assert self._daemon.poll() is None, f"dockerd ended: {said}"
            assert time.monotonic() < until, f"dockerd does not answer: {said}"
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether it answers now. Asked without the SDK, which leaves its socket open when nobody listens."""
        with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
            line.settimeout(10)
            line.connect(str(self.socket))
            line.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in line.recv(64)
        return False

    def kill(self) -> None:
        """As kill -9 does. What runs the containers goes on; what the engine had started for itself dies with it."""
        if self._daemon is not None:
            helper = (self.folder / "x" / "containerd" / "containerd.pid").read_text()
            self._daemon.kill()
            self._daemon.wait()
            until = time.monotonic() + UP_S
            while _lives(int(helper)):
                assert time.monotonic() < until, f"containerd {helper} does not end"
                time.sleep(0.01)

    def stop(self) -> None:
        """As a restart of its service does."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(timeout=UP_S)

    def close(self) -> None:
        """Remove every container, end it, and remove its folder."""
        try:
            if not self.answers():
                self.start()
            with contextlib.closing(docker.DockerClient(base_url=self.url, timeout=60)) as client:
                for container in client.containers.list(all=True):
                    container.remove(force=True)
            self.stop()
        finally:
            self._network.send_signal(signal.SIGKILL)
            self._network.wait()
            # it mounts its data on itself
            subprocess.run(["umount", "--lazy", str(self.folder / "data")], check=False, capture_output=True)
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def inside(engine: OwnEngine) -> Generator[None]:
    """Be in the engine's network, and have its commands reach it, for the length of the block: this thread, and every
    thread and process that it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.environ.get("DOCKER_HOST")
    with Path("/proc/self/ns/net").open() as home, engine.network.open() as there:
        _set(libc, there.fileno())
        os.environ["DOCKER_HOST"] = engine.url
        try:
            yield
        finally:
            os.environ.pop("DOCKER_HOST", None)
            if before is not None:
                os.environ["DOCKER_HOST"] = before
            _set(libc, home.fileno())


def _set(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def own_engine(*, live_restore: bool = False) -> Generator[OwnEngine]:
    """One that is up, with this thread in its network."""
    engine = OwnEngine(live_restore=live_restore)
    try:
        engine.start()
        with inside(engine):
            yield engine
    finally:
        engine.close()

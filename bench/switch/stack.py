"""The stack that is switched: services behind published ports, a ledger that keeps its data, a worker that is deaf to
SIGTERM; its images in a registry of its own, all on loopback, and all gone at the end."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import docker
import docker.errors

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
BASE_IMAGES: Final = ROOT / "examples" / "hypercode" / "images" / "base-images.sh"
HAPROXY: Final = "hypercode/haproxy:2.6"
PORT: Final = 8080
"""Of a service, in its container."""
GOOD, BAD = "v1", "v2"
COMMAND_S: Final = 900.0
READY_S: Final = 300.0
COMPOSE_FILE: Final = "docker-compose.yml"
DOCKERFILE: Final = """\
FROM hypercode/python:3.11
ARG RELEASE
ENV RELEASE=$RELEASE
COPY service.py healthy.py /app/
EXPOSE 8080
CMD ["python", "-I", "/app/service.py"]
"""
REGISTRY: Final = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Failed(Exception):
    """A command did not do what the measurement needs; says what it printed last."""


def run(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, codes: Sequence[int] = (0,)) -> str:
    """Run a command and return its stdout. Raises Failed when it exits with anything but `codes`."""
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode not in codes:
        raise Failed(f"{' '.join(words)}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def free_ports(count: int) -> tuple[int, ...]:
    """Return ports of loopback that nobody has now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)
    finally:
        for probe in probes:
            probe.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What the stacks are made of. repository: in the loopback registry; each release is a tag of it."""

    repository: str
    folder: Path

    @property
    def ledger(self) -> str:
        return f"{self.repository}:ledger"

    def of(self, release: str) -> str:
        return f"{self.repository}:{release}"

    def id_of(self, release: str) -> str:
        return run("docker", "image", "inspect", "--format", "{{.Id}}", self.of(release)).strip()


@contextmanager
def images() -> Generator[Images]:
    """Make the images of both releases and of the ledger, and a registry that has them."""
    if shutil.which("docker-registry") is None:
        raise Failed("docker-registry is not installed; type: scripts/engine.sh")
    run("bash", str(BASE_IMAGES), env={"PYTHON": sys.executable})
    with tempfile.TemporaryDirectory(prefix="switch-") as home:
        folder = Path(home)
        (port,) = free_ports(1)
        made = Images(repository=f"127.0.0.1:{port}/switch-{secrets.token_hex(3)}", folder=folder)
        settings = folder / "registry.yml"
        settings.write_text(REGISTRY.format(folder=folder / "registry", port=port))
        with (folder / "registry.log").open("wb") as log:
            registry = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
        try:
            _build(made)
            yield made
        finally:
            registry.terminate()
            registry.wait(timeout=10)
            client = docker.from_env()
            for image in client.images.list(filters={"reference": f"{made.repository}"}):
                with suppress(docker.errors.APIError):
                    client.images.remove(str(image.id), force=True)


def _build(made: Images) -> None:
    context = made.folder / "image"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    for name in ("service.py", "healthy.py"):
        shutil.copy(HERE / name, context)
    for tag, release in ((made.of(GOOD), GOOD), (made.of(BAD), BAD), (made.ledger, "")):
        run("docker", "build", "--quiet", "--tag", tag, "--build-arg", f"RELEASE={release}", str(context))
        run("docker", "push", "--quiet", tag)


@dataclass(slots=True, kw_only=True)
class Stack:
    """One compose project.

    front: whether an HAProxy of the stack's own stands before the services. shared: whether the services write into a
    volume that they share, so that no second copy may run.
    """

    images: Images
    folder: Path
    project: str
    ports: tuple[int, ...]
    front: bool = False
    shared: bool = False
    files: list[str] = field(default_factory=lambda: [COMPOSE_FILE])

    @property
    def services(self) -> tuple[str, ...]:
        return tuple(f"web-{number}" for number in range(1, len(self.ports) + 1))

    @property
    def health_every_s(self) -> float:
        """Each look starts a process in the container: 50 services that are looked at every second are all that two
        cores can do."""
        return max(1.0, len(self.ports) / 10)

    def write(self, release: str) -> None:
        """Say on disk that `release` is wanted, as a person or a pipeline would."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / ".env").write_text(f"TAG={release}\nLASTGOOD_EDGE_IMAGE={HAPROXY}\n")
        services = {name: self._web(name, port) for name, port in zip(self.services, self.ports, strict=True)}
        services["worker"] = {
            "image": f"{self.images.repository}:${{TAG}}",
            "command": ["python", "-I", "/app/service.py", "worker"],
        }
        services["ledger"] = {
            "image": self.images.ledger,
            "command": ["python", "-I", "/app/service.py", "ledger"],
            "volumes": ["ledger:/data"],
        }
        if self.front:
            services["front"] = self._front()
        volumes: dict[str, Any] = {"ledger": {}, **({"shared": {}} if self.shared else {})}
        (self.folder / COMPOSE_FILE).write_text(json.dumps({"services": services, "volumes": volumes}, indent=2))

    def _web(self, name: str, port: int) -> dict[str, Any]:
        web: dict[str, Any] = {
            "image": f"{self.images.repository}:${{TAG}}",
            "depends_on": ["ledger"],
            "healthcheck": {
                "test": ["CMD", "python", "-I", "-S", "/app/healthy.py", str(PORT)],
                "interval": f"{self.health_every_s:g}s",
                "timeout": "3s",
                "start_period": "20s",
            },
        }
        if self.shared:
            web["volumes"] = [f"shared:/shared/{name}"]
        if not self.front:
            web["ports"] = [f"127.0.0.1:{port}:{PORT}"]
        return web

    def _front(self) -> dict[str, Any]:
        """An HAProxy that finds the containers of a service by DNS, checks them, and tries again elsewhere."""
        lines = [
            "global",
            "    log stderr local0 emerg",
            "defaults",
            "    mode http",
            "    timeout connect 1s",
            "    timeout client 1m",
            "    timeout server 1m",
            "    retries 3",
            "    option redispatch 1",
            "resolvers engine",
            "    nameserver dns 127.0.0.11:53",
            "    hold valid 500ms",
        ]
        for number, name in enumerate(self.services, start=1):
            lines += [
                f"listen {name}",
                f"    bind :{20_000 + number}",
                f"    server-template {name}- 4 {name}:{PORT} check inter 500ms resolvers engine init-addr libc,none",
            ]
        folder = self.folder / "front"
        folder.mkdir(exist_ok=True)
        (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
        return {
            "image": HAPROXY,
            "pull_policy": "never",
            "command": ["-db", "-f", "/etc/front/haproxy.cfg"],
            "volumes": ["./front:/etc/front:ro"],
            "ports": [f"127.0.0.1:{port}:{20_000 + number}" for number, port in enumerate(self.ports, start=1)],
        }

    def compose(self, *words: str) -> str:
        """Type `docker compose` in the stack's folder."""
        files = [word for file in self.files for word in ("--file", file)]
        return run("docker", "compose", "--project-name", self.project, *files, *words, cwd=self.folder)

    def wait_for(self, release: str) -> None:
        """Wait until every service answers as `release`. Raises Failed when that does not come."""
        ends_at = time.monotonic() + READY_S
        for port in self.ports:
            while (answered := _answers(port)) != release:
                if time.monotonic() > ends_at:
                    raise Failed(f"port {port} answers as {answered or 'nobody'} and not as {release}")
                time.sleep(0.1)

    def wait_until_healthy(self) -> None:
        """Wait until the engine says so of every container that has a check."""
        client = docker.from_env()
        ends_at = time.monotonic() + READY_S
        while waiting := [c.name for c in self._containers(client) if _health(c.attrs) == "starting"]:
            if time.monotonic() > ends_at:
                raise Failed(f"not healthy: {', '.join(str(name) for name in waiting)}")
            time.sleep(0.2)

    def _containers(self, client: docker.DockerClient) -> list[Any]:
        mine = {self.images.id_of(GOOD), self.images.id_of(BAD)}
        return [c for c in client.containers.list(ignore_removed=True) if str(c.attrs["Image"]) in mine]

    def memory_of(self, release: str) -> int:
        """Memory of all running containers of a release's services, in bytes, as `docker stats` counts it."""
        client, image = docker.from_env(), self.images.id_of(release)
        total = 0
        for container in client.containers.list(ignore_removed=True):
            if str(container.attrs["Image"]) == image:
                seen = client.api.stats(str(container.id), stream=False, one_shot=True)["memory_stats"]
                details = seen.get("stats", {})
                total += seen.get("usage", 0) - details.get("total_inactive_file", details.get("inactive_file", 0))
        return total

    def ids(self) -> list[str]:
        """Every id that the ledger wrote down, as often as it did."""
        return self.compose("exec", "-T", "ledger", "python", "-I", "/app/service.py", "ids").splitlines()

    def clear(self) -> None:
        """Remove every container of both releases, also those that compose does not know, and the project."""
        client = docker.from_env()
        mine = {self.images.id_of(GOOD), self.images.id_of(BAD)}
        for container in client.containers.list(all=True, ignore_removed=True):
            if str(container.attrs["Image"]) in mine:
                with suppress(docker.errors.APIError):
                    container.remove(force=True, v=True)
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")


def _health(attrs: Mapping[str, Any]) -> str:
    return str((attrs["State"].get("Health") or {}).get("Status", ""))


def _answers(port: int) -> str:
    """Who answers; empty for nobody."""
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        asked.request("GET", "/health", headers={"Connection": "close"})
        answer = asked.getresponse()
        return answer.headers.get("X-Release", "") if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        asked.close()

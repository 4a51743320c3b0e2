"""A compose project of its own on the real engine: two services that may go back, one that must never be touched."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.models.containers import Container

from lastgood.core.config import ContainersConfig
from lastgood.core.plan import Fence, Plan, Serve, Step
from lastgood.core.release import Release
from lastgood.targets.compose import ComposeTarget
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.deployment import deployment_of

BUSYBOX = Path(shutil.which("busybox") or "/bin/busybox")
HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
APPLETS = ("sh", "httpd", "sleep", "wget", "mv", "echo", "cat", "chmod", "mkdir", "rm")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def edge_image(client: docker.DockerClient) -> str:
    """An image of this machine's HAProxy (scripts/engine.sh installs it), with what it is linked against."""
    name = "lastgood-tests/haproxy:1"
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.get(name)
        return name
    linked = subprocess.run(["ldd", HAPROXY], check=True, capture_output=True, text=True, timeout=10).stdout
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in [HAPROXY, *(word for word in linked.split() if word.startswith("/"))]:
            tar.add(Path(path).resolve(), arcname=str(path).lstrip("/"))
    repository, tag = name.split(":")
    client.api.import_image_from_data(
        archive.getvalue(), repository=repository, tag=tag, changes=["ENV PATH=/usr/sbin:/usr/bin"]
    )
    return name


class ComposeWorld:
    """One project: its files, its images, and what it leaves on the engine until `clear`. address: of this host, where
    its ports are published."""

    def __init__(self, folder: Path, *, address: str = "127.0.0.1") -> None:
        self.address = address
        self.project = f"lgc{secrets.token_hex(4)}"
        self.root = folder / "stack"
        self.root.mkdir(parents=True)
        self.client = docker.from_env()
        self.port = free_port()
        self._images: set[str] = set()
        self.extra_volumes: dict[str, Any] = {}
        self.networks: dict[str, Any] = {}
        self.secrets: dict[str, Any] = {}
        self.configs: dict[str, Any] = {}
        # More instructions of a Dockerfile for the images of a service.
        self.changes: dict[str, list[str]] = {}
        self.services: dict[str, Any] = {
            "web": self.service("web", ports=[f"{address}:{self.port}:8080"]),
            "worker": self.service("worker"),
            "db": {**self.service("db"), "volumes": ["data:/var/lib/postgresql/data"]},
        }
        self.write()
        for name in self.services:
            self.image(name, "0")

    def service(self, name: str, **more: object) -> dict[str, Any]:
        """Describe a small web server in the words of a compose file."""
        health = {"test": ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8080/"], "interval": "1s"}
        # httpd as process 1 ignores SIGTERM, and waiting for that is not what most tests are about.
        quick = {"pull_policy": "never", "stop_signal": "SIGKILL", "healthcheck": health}
        return {"image": f"{self.project}/{name}:latest", **quick, **more}

    def write(self, *, env: str = "") -> None:
        """Write compose file and .env as they are wanted now."""
        volumes = {"data": {}, **self.extra_volumes}
        named = {"volumes": volumes, "networks": self.networks, "secrets": self.secrets, "configs": self.configs}
        model = {"services": self.services, **named}
        (self.root / "docker-compose.yml").write_text(json.dumps(model, ensure_ascii=False))
        (self.root / ".env").write_text(env)

    def image(
        self, service: str, version: str, *, script: str = "exec httpd -f -p 8080 -h /www", program: bytes = b""
    ) -> str:
        """Give the service's movable tag to a new image that runs `script`, or this program. Returns the image's ID."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            start = program or f"#!/bin/sh\n{script}\n".encode()
            for name, content in (("www/index.html", version.encode()), ("start", start)):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                tar.addfile(entry, io.BytesIO(content))
            tar.add(BUSYBOX, "bin/busybox")
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        changes = ["ENV PATH=/bin", 'CMD ["/start"]', f"LABEL lastgood.test={self.project}"]
        changes += self.changes.get(service, [])
        repository = f"{self.project}/{service}"
        self.client.api.import_image_from_data(archive.getvalue(), repository=repository, tag="latest", changes=changes)
        found = self.client.images.get(f"{repository}:latest").id
        assert found is not None
        self.remember(found)
        return found

    def remember(self, image: str) -> None:
        """Have an image removed at the end."""
        self._images.add(image)

    def target(self, **settings: object) -> ComposeTarget:
        """The target on this project. settings: what differs from the usual `containers` section."""
        section = {
            "compose": {"project": self.project},
            "services": ["web", "worker"],
            "boot": "20s",
            "stop": "1s",
        }
        config = ContainersConfig.model_validate(section | settings)
        return ComposeTarget(config, root=self.root, state=self.root / ".lastgood", clock=CLOCK)

    def compose(self, *words: str) -> None:
        """Do what a person would do by hand."""
        self.run("docker", "compose", "--project-name", self.project, *words)

    def run(self, *words: str) -> None:
        """Run a command in the project's folder. Fails when it does."""
        subprocess.run(words, cwd=self.root, check=True, capture_output=True, timeout=60)

    def container(self, service: str) -> Container:
        """The running container of a service, as the SDK shows it."""
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        (found,) = [
            c
            for c in self.client.containers.list(ignore_removed=True, filters={"label": labels})
            if "lastgood.candidate" not in c.labels
        ]
        return found

    def candidates(self) -> list[Container]:
        found = self.client.containers.list(all=True, ignore_removed=True, filters={"label": "lastgood.candidate"})
        return [c for c in found if c.labels["lastgood.candidate"].startswith(f"{self.project}:")]

    def page(self, path: str = "/", *, patience_s: float = 5.0) -> str:
        """What users see."""
        with contextlib.closing(socket.create_connection((self.address, self.port), timeout=patience_s)) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        return answer.decode().rsplit("\r\n\r\n", 1)[-1]

    def plan(self, target: ComposeTarget, release: Release) -> Plan:
        """Plan the deployment of a release; going back to an old one is the same plan."""
        return deployment_of(release, target)

    def put(self, target: ComposeTarget, release: Release) -> None:
        """Carry the whole plan of a release out."""
        for step in self.plan(target, release).steps:
            target.apply(step)

    def clear(self) -> None:
        """Remove everything of this project."""
        for container in self.client.containers.list(all=True, ignore_removed=True):
            labels = container.labels
            mine = labels.get("lastgood.candidate", "").startswith(f"{self.project}:")
            if (
                mine
                or labels.get("com.docker.compose.project") == self.project
                or (container.name or "").startswith(self.project)
            ):
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True, v=True)
        for network in self.client.networks.list(filters={"label": f"com.docker.compose.project={self.project}"}):
            network.remove()
        for volume in self.client.volumes.list(filters={"label": f"com.docker.compose.project={self.project}"}):
            volume.remove(force=True)
        for image in self._images:
            with contextlib.suppress(docker.errors.ImageNotFound):
                self.client.images.remove(image, force=True)
        self.client.close()


@contextmanager
def world(folder: Path) -> Iterator[ComposeWorld]:
    made = ComposeWorld(folder)
    try:
        yield made
    finally:
        made.clear()


class ComposeRig:
    """A world in which one release serves and the next one, which has one service less, is prepared. The engine is
    reached through a socket of the rig's own, which can be taken away."""

    def __init__(self, world: ComposeWorld, socket_path: Path) -> None:
        self._world = world
        self._socket = socket_path
        self._engine = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
        self._connect()
        os.environ["DOCKER_HOST"] = f"unix://{socket_path}"
        world.compose("up", "--detach", "db")
        self.target = world.target()
        for service in ("web", "worker"):
            world.image(service, "1")
        world.put(self.target, self.target.prepare("v1", CLOCK.now()))
        world.image("web", "2")
        del world.services["worker"]
        world.write()
        self.target = world.target(services=["web"])
        release = self.target.prepare("v2", CLOCK.now())
        self.steps: Sequence[Step] = world.plan(self.target, release).steps
        serve = next(s for s in self.steps if isinstance(s.action, Serve))
        assert isinstance(serve.action, Serve)
        self.refused = replace(serve, action=replace(serve.action, artifact=f"sha256:{'0' * 64}"))
        self.foreign = replace(serve, action=Fence(kept_as="x"))
        self._counter = EffectCounter(world)

    def _connect(self) -> None:
        self._socket.symlink_to(self._engine)

    def effects(self) -> int:
        return self._counter.count()

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        self._socket.unlink()
        try:
            yield
        finally:
            self._connect()

    def close(self) -> None:
        self._counter.close()


class EffectCounter:
    """Counts what happens to the project's containers and images, as the engine itself tells it."""

    ACTIONS = (
        "create",
        "start",
        "stop",
        "kill",
        "die",
        "destroy",
        "rename",
        "update",
        "tag",
        "untag",
        "pull",
        "delete",
    )

    def __init__(self, world: ComposeWorld) -> None:
        self._world = world
        self._client = docker.from_env(timeout=600)
        self._stream = self._client.events(decode=True, filters={"event": list(self.ACTIONS)})
        self._effects: Counter[tuple[str, str]] = Counter()
        self._marks: set[str] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(Exception):  # the stream ends by being closed under it
            for event in self._stream:
                attributes = event["Actor"]["Attributes"]
                name = attributes.get("name", "")
                with self._changed:
                    if name.startswith(f"{self._world.project}/mark"):
                        self._marks.add(name)
                        self._changed.notify_all()
                    elif self._is_mine(attributes):
                        self._effects[event["Action"], name] += 1

    def _is_mine(self, attributes: dict[str, str]) -> bool:
        mine = attributes.get("com.docker.compose.project", "").startswith(self._world.project)
        return mine or attributes.get("lastgood.candidate", "").startswith(f"{self._world.project}:")

    def count(self) -> int:
        """Count up to now."""
        return self.effects().total()

    def effects(self) -> Counter[tuple[str, str]]:
        """Count by (what happened, name of container or image), up to now: a mark of our own in the stream says that
        everything before it was heard."""
        mark = f"{self._world.project}/mark:{secrets.token_hex(4)}"
        self._world.client.images.get(f"{self._world.project}/db:latest").tag(mark)
        with self._changed:
            heard = self._changed.wait_for(lambda: mark in self._marks, timeout=30)
            assert heard, "the engine's events do not arrive"
            return Counter(self._effects)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._stream.close()
        self._client.close()
        self._thread.join(timeout=5)


@contextmanager
def rig(folder: Path) -> Iterator[ComposeRig]:
    before = os.environ.get("DOCKER_HOST")
    with world(folder) as made:
        try:
            assembled = ComposeRig(made, folder / "engine.sock")
            try:
                yield assembled
            finally:
                assembled.close()
        finally:
            os.environ.pop("DOCKER_HOST", None)
            if before is not None:
                os.environ["DOCKER_HOST"] = before

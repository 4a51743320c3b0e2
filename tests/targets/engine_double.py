"""A Docker engine that only shows: the containers, images, networks and volumes that `docker compose up` would have
made of a project, answered over a socket of its own in the words of the Engine API 1.41.

It starts nothing, so that a stack of forty services costs as much as one of two. What it shows of a container is what
compose 2.26 leaves on it; `docker compose config` and its hashes are the real ones.
"""

from __future__ import annotations

import hashlib
import json
import socketserver
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]
API = "1.41"


class EngineDouble:
    """What is there. containers and images as `inspect` shows them. says: (status, body) for a method and the words of
    a path, in place of what is so: the faults of an engine."""

    def __init__(self) -> None:
        self.says: dict[str, tuple[int, object]] = {}
        self.containers: list[Json] = []
        self.images: list[Json] = []
        self.volumes: list[str] = []
        self.networks: list[str] = []

    def up(
        self,
        model: Json,
        hashes: Mapping[str, str],
        *,
        folder: Path,
        files: Sequence[Path],
        env_file: Path | None,
        build: int,
        ended: Collection[str],
        exposes: Mapping[str, Sequence[int]],
    ) -> None:
        """Show the project as it is after `docker compose up`. build: which build of each image. ended: services that
        ran to their end. exposes: ports that images declare, by service."""
        self.containers.clear()
        labels = {
            "com.docker.compose.project": model["name"],
            "com.docker.compose.project.working_dir": str(folder),
            "com.docker.compose.project.config_files": ",".join(str(file) for file in files),
            "com.docker.compose.version": "2.26.1",
            "com.docker.compose.oneoff": "False",
        }
        if env_file is not None:
            labels["com.docker.compose.project.environment_file"] = str(env_file)
        for kind, names in (("networks", self.networks), ("volumes", self.volumes)):
            names += [str(defined["name"]) for defined in (model.get(kind) or {}).values()]
        for name, service in model["services"].items():
            reference = str(service.get("image") or f"{model['name']}-{name}")
            image = self._image(reference, build=build, exposes=exposes.get(name, ()))
            own = {"com.docker.compose.service": name, "com.docker.compose.config-hash": hashes[name]}
            for number in range(1, int((service.get("deploy") or {}).get("replicas") or 1) + 1):
                named = str(service.get("container_name") or f"{model['name']}-{name}-{number}")
                shown = _container(named, service, image, {**labels, **own}, number=number, runs=name not in ended)
                self.containers.append(shown)

    def _image(self, reference: str, *, build: int, exposes: Sequence[int]) -> str:
        made = f"sha256:{hashlib.sha256(f'{reference} {build}'.encode()).hexdigest()}"
        if not any(image["Id"] == made for image in self.images):
            ports: Json = {f"{port}/tcp": {} for port in exposes}
            self.images.append({"Id": made, "RepoTags": [], "RepoDigests": [], "Config": {"ExposedPorts": ports}})
        self._tag(made, reference)
        return made

    def _tag(self, image: str, reference: str) -> None:
        for known in self.images:
            known["RepoTags"] = [tag for tag in known["RepoTags"] if tag != reference]
            if known["Id"] == image:
                known["RepoTags"].append(reference)

    def answer(self, method: str, path: str, query: Mapping[str, str]) -> tuple[int, object]:
        """Status and body."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0].startswith("v1."):
            parts.pop(0)
        if (said := self.says.get(" ".join([method, *parts]))) is not None:
            return said
        match [method, *parts]:
            case ["GET", "version"]:
                return 200, {"ApiVersion": API, "MinAPIVersion": "1.24", "Version": "20.10"}
            case ["GET", "containers", "json"]:
                wanted = _labels_wanted(query.get("filters", "{}"))
                return 200, [{"Id": c["Id"], "Names": [c["Name"]]} for c in self.containers if wanted <= _labels_of(c)]
            case ["GET", "containers", one, "json"]:
                found = next((c for c in self.containers if one in (c["Id"], str(c["Name"]).removeprefix("/"))), None)
                return (200, found) if found else (404, {"message": f"No such container: {one}"})
            case ["GET", "images", "json"]:
                return 200, [{"Id": image["Id"]} for image in self.images]
            case ["GET", "images", *name, "json"]:
                image = self._find("/".join(name))
                return (200, image) if image else (404, {"message": f"No such image: {'/'.join(name)}"})
            case ["POST", "images", *name, "tag"]:
                self._tag("/".join(name), f"{query['repo']}:{query['tag']}")
                return 201, ""
            case ["GET", "networks"]:
                return 200, [{"Name": name} for name in self.networks]
            case ["GET", "volumes"]:
                return 200, {"Volumes": [{"Name": name} for name in self.volumes]}
            case _:
                return 501, {"message": f"this engine only shows: {method} {path}"}

    def _find(self, name: str) -> Json | None:
        tagged = {name, name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"}
        return next((i for i in self.images if i["Id"] == name or tagged & set(i["RepoTags"])), None)


def _container(name: str, service: Json, image: str, labels: Mapping[str, str], *, number: int, runs: bool) -> Json:
    given = cast("Mapping[str, str | None]", service.get("environment") or {})
    checked = bool(service.get("healthcheck")) and runs
    return {
        "Id": hashlib.sha256(f"{name} {image}".encode()).hexdigest(),
        "Name": f"/{name}",
        "Created": "2026-01-05T10:00:00.000000000Z",
        "Image": image,
        "RestartCount": 0,
        "Config": {
            "Labels": {**labels, "com.docker.compose.container-number": str(number)},
            "Env": [f"{key}={value.replace('$$', '$')}" for key, value in given.items() if value is not None],
        },
        "HostConfig": {},
        "State": {
            "Status": "running" if runs else "exited",
            "Running": runs,
            "ExitCode": 0,
            **({"Health": {"Status": "healthy"}} if checked else {}),
        },
        "NetworkSettings": {"Ports": dict(_bound(service, number)) if runs else {}, "Networks": {}},
    }


def _bound(service: Json, number: int) -> Iterator[tuple[str, list[Json]]]:
    """Published ports: the one that is said, the next one of a range, or one of the engine's own."""
    for at, port in enumerate(service.get("ports") or ()):
        said = str(port.get("published") or "")
        first = int(said.split("-", maxsplit=1)[0]) if said else 49153 + at
        host = {"HostIp": port.get("host_ip") or "0.0.0.0", "HostPort": str(first + number - 1)}  # noqa: S104 # shown only
        yield f"{port['target']}/{port.get('protocol', 'tcp')}", [host]


def _labels_of(container: Json) -> set[str]:
    labels = cast("Mapping[str, str]", container["Config"]["Labels"])
    return {*labels, *(f"{name}={value}" for name, value in labels.items())}


def _labels_wanted(filters: str) -> set[str]:
    wanted = json.loads(filters).get("label", [])
    return set(cast("Collection[str]", wanted))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _say(self) -> None:
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = cast("_Server", self.server).engine.answer(self.command, asked.path, query)
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_DELETE = do_HEAD = _say  # noqa: N815 # http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # http.server's word
        """Say nothing: the tests do."""

    def address_string(self) -> str:
        return "unix"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    engine: EngineDouble

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 # socketserver's signature
        """Let a client go that does not wait for its answer: the docker client asks who is there and goes on."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def engine_double(socket: Path) -> Iterator[EngineDouble]:
    """Answer at `socket` for as long as the block lasts."""
    with _Server(str(socket), _Handler) as server:
        server.engine = EngineDouble()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server.engine
        finally:
            server.shutdown()

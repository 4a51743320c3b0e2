"""What the engine keeps in the state directory: releases, running instances, keys. Every file is 0600.

releases/NAME/tree          the files of a release
releases/NAME/process.json  how its services are started, with the values of their environment
instances.json              what was started; written by the holder only
logs/INSTANCE.log           what each of them says
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from lastgood.core.config import ProcessConfig
from lastgood.core.errors import ConfigError, Refused
from lastgood.targets import tree

KEY_FILE: Final = "process.key"
INSTANCES_FILE: Final = "instances.json"
# What any program needs of this environment: where programs and files are, and no secret.
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptService:
    """How one service is started. command, env: with every placeholder filled in."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]
    public_port: int
    health: str
    config_hash: str
    env_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRelease:
    """A prepared release. artifact: of its tree. config_hash: over all its services."""

    release: str
    artifact: str
    config_hash: str
    services: tuple[KeptService, ...]

    def service(self, name: str) -> KeptService | None:
        """Return the service of that name, None when the release does not have it."""
        return next((s for s in self.services if s.name == name), None)


class Part(StrEnum):
    """What an instance does: waits at the gate, gets the requests, or finishes those that it has."""

    CANDIDATE = "candidate"
    SERVING = "serving"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One process. pid, started: together its identity, since a pid is given out again; 0 before it was started.

    port: its private one. exit_code: None while it runs.
    """

    id: str
    service: str
    release: str
    artifact: str
    config_hash: str
    port: int
    part: Part = Part.CANDIDATE
    pid: int = 0
    started: int = 0
    restarts: int = 0
    exit_code: int | None = None


RELEASE: Final = TypeAdapter(KeptRelease)
INSTANCES: Final = TypeAdapter(tuple[Instance, ...])


class Shelf:
    """The state directory of one stack."""

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()

    def folder(self, release: str) -> Path:
        """Where a release is kept."""
        return self.state / "releases" / release

    def tree(self, release: str) -> Path:
        """Where its files lie."""
        return self.folder(release) / "tree"

    def settings(self, release: str) -> Path:
        """Where it is written how a release is started."""
        return self.folder(release) / "process.json"

    def log(self, instance: str) -> Path:
        """Where an instance writes what it has to say."""
        return self.state / "logs" / f"{instance}.log"

    def keep(self, kept: KeptRelease) -> None:
        """Write down how a release is started."""
        write(self.settings(kept.release), RELEASE, kept)

    def find(self, release: str) -> KeptRelease:
        """Return a kept release. Raises Refused when nothing is kept of it."""
        found = _read(self.settings(release), RELEASE)
        if found is None:
            raise Refused(f"nothing is kept of release {release}", hint="lastgood releases")
        return found

    def names(self) -> frozenset[str]:
        """Names of the releases of which anything is kept."""
        return frozenset(path.name for path in (self.state / "releases").glob("*") if path.is_dir())

    def remove(self, release: str) -> None:
        """Remove what is kept of a release. Raises Refused when the disk says no."""
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.folder(release))
        except OSError as error:
            raise Refused(
                f"what is kept of {release} cannot be removed: {error.strerror or error}", hint="lastgood releases"
            ) from error

    def held(self) -> frozenset[str]:
        """Return the artifacts whose files are here unchanged."""
        kept = {path.parent: _read(path, RELEASE) for path in self.state.glob("releases/*/process.json")}
        return frozenset(
            release.artifact
            for folder, release in kept.items()
            if release and (folder / "tree").is_dir() and tree.artifact(folder / "tree") == release.artifact
        )

    def instances(self) -> tuple[Instance, ...]:
        """Return what was started, as the holder wrote it down last."""
        return _read(self.state / INSTANCES_FILE, INSTANCES) or ()

    def note_instances(self, instances: tuple[Instance, ...]) -> None:
        """Replace the list."""
        write(self.state / INSTANCES_FILE, INSTANCES, instances)

    def key(self) -> bytes:
        """The key under which environment values are hashed, made the first time."""
        path = self.state / KEY_FILE
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        except FileExistsError:
            pass
        return path.read_bytes()

    def describe(self, config: ProcessConfig, release: str, artifact: str) -> KeptRelease:
        """Fill in the placeholders of every service. Raises ConfigError naming one that nobody knows."""
        ports = {name: service.port for name, service in config.services.items()}
        key = self.key()
        services: list[KeptService] = []
        for name, service in config.services.items():
            place = f"process.services.{name}"
            env = {variable: filled(value, ports, f"{place}.env.{variable}") for variable, value in service.env.items()}
            command = tuple(filled(word, ports, f"{place}.command") for word in service.command)
            shape = {"command": command, "port": service.port, "health": service.health}
            services.append(
                KeptService(
                    name=name,
                    command=command,
                    env=env,
                    public_port=service.port,
                    health=service.health,
                    config_hash=keyed(key, {**shape, "env": env}),
                    env_hash=keyed(key, env),
                )
            )
        together = keyed(key, {service.name: service.config_hash for service in services})
        return KeptRelease(release=release, artifact=artifact, config_hash=together, services=tuple(services))


def filled(text: str, ports: Mapping[str, int], place: str) -> str:
    """Replace `{python}` and `{port:NAME}`; other braces stay."""
    text = text.replace("{python}", sys.executable)
    for name, port in ports.items():
        text = text.replace(f"{{port:{name}}}", str(port))
    if "{port:" in text:
        unknown = text.split("{port:", 1)[1].split("}", 1)[0]
        raise ConfigError(f"{place}: {{port:{unknown}}}: no such service; known: {', '.join(ports)}")
    return text


def keyed(key: bytes, value: object) -> str:
    """Hash under a key: equal values give equal hashes, and the hash alone gives away none."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hmac.new(key, canonical.encode(), hashlib.sha256).hexdigest()


def write(path: Path, adapter: TypeAdapter[Value], value: Value) -> None:
    """Put a value on disk, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
        file.write(adapter.dump_json(value, indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path, adapter: TypeAdapter[Value]) -> Value | None:
    try:
        return adapter.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise Refused(f"{path.name} of {path.parent.name} cannot be read: {str(error).splitlines()[0]}") from None

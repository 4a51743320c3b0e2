"""The Docker engine, asked through its SDK: what is there, and the few changes that need no compose.

One connection per piece of work, so that an engine which was restarted is simply asked again. Each request has a
deadline; what the engine does not answer is Retryable, and OutcomeUnknown where a change may have been made.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, cast

import docker
import docker.errors
import requests
import requests.exceptions
from docker.utils.utils import kwargs_from_env

from lastgood.core.errors import OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import Health, InstanceFacts
from lastgood.targets.compose.project import LABEL_CANDIDATE, LABEL_CONFIG, LABEL_RELEASE, LABEL_SERVICE, Json

REQUEST_S: Final = 15.0
PULL_S: Final = 60.0
"""Without a word from the engine: while it pulls it tells its progress all the time."""
RETRY_S: Final = 2.0

COMPOSE_PROJECT: Final = "com.docker.compose.project"
COMPOSE_SERVICE: Final = "com.docker.compose.service"
COMPOSE_VERSION: Final = "com.docker.compose.version"
COMPOSE_CONFIG: Final = "com.docker.compose.config-hash"
COMPOSE_ONE_OFF: Final = "com.docker.compose.oneoff"
COMPOSE_REPLACES: Final = "com.docker.compose.replace"
COMPOSE_FOLDER: Final = "com.docker.compose.project.working_dir"
COMPOSE_FILES: Final = "com.docker.compose.project.config_files"
COMPOSE_ENV_FILES: Final = "com.docker.compose.project.environment_file"

_DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
_HINT: Final = "docker version"
# The name that compose gives a container until the one that it replaces is gone.
_REPLACEMENT: Final = re.compile(r"^[0-9a-f]{12}_")
# At the end of the name of what was retired: labels cannot be changed, and the name is free for whoever comes.
_RETIRED: Final = re.compile(r"\.retired-[0-9a-f]{12}$")


@dataclass(frozen=True, slots=True)
class Container:
    """One container as `inspect` shows it."""

    shown: Json

    @property
    def id(self) -> str:
        return str(self.shown["Id"])

    @property
    def name(self) -> str:
        return str(self.shown["Name"]).removeprefix("/")

    @property
    def image(self) -> str:
        """Image ID."""
        return str(self.shown["Image"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(cast("Mapping[str, str]", self.shown["Config"].get("Labels") or {}))

    @property
    def environment(self) -> dict[str, str]:
        """What the container was given, its image's own variables included."""
        pairs = cast("Sequence[str]", self.shown["Config"].get("Env") or ())
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    @property
    def service(self) -> str:
        return self.labels.get(LABEL_SERVICE) or self.labels.get(COMPOSE_SERVICE, "")

    @property
    def project(self) -> str:
        """The compose project's name, empty when compose did not make it."""
        return self.labels.get(COMPOSE_PROJECT, "")

    @property
    def compose_files(self) -> tuple[str, ...]:
        """The files that compose was given when it made the container, absolute, in their order."""
        return _paths(self.labels.get(COMPOSE_FILES, ""))

    @property
    def env_files(self) -> tuple[str, ...]:
        """The environment files that compose was told of when it made the container; empty for its own `.env`."""
        return _paths(self.labels.get(COMPOSE_ENV_FILES, ""))

    @property
    def created_at(self) -> str:
        """When it was made, in the engine's words, which sort as they follow one another."""
        return str(self.shown.get("Created", ""))

    @property
    def is_leftover(self) -> bool:
        """Whether compose was interrupted while this one was to take another's place, so that it never served."""
        return COMPOSE_REPLACES in self.labels and _REPLACEMENT.match(self.name) is not None and not self._running

    @property
    def is_retired(self) -> bool:
        """Whether it was stopped because the release that serves does not have its service, and nobody started it
        since."""
        return _RETIRED.search(self.name) is not None and not self.is_up

    @property
    def _running(self) -> bool:
        state = cast("Json", self.shown["State"])
        return bool(state["Running"]) and not state.get("Paused") and not state.get("Restarting")

    @property
    def labels_of_its_own(self) -> dict[str, str]:
        """Its labels without those of compose."""
        return {name: value for name, value in self.labels.items() if not name.startswith("com.docker.compose.")}

    def is_mold_of(self, project: str) -> bool:
        """Whether compose made it in a project of that name."""
        return self.labels.get(COMPOSE_PROJECT) == project

    @property
    def is_made_only(self) -> bool:
        """Whether it was created and never started."""
        return str(self.shown["State"].get("Status")) == "created"

    @property
    def is_up(self) -> bool:
        """Whether it has a process, sick or paused or about to be started again as it may be."""
        state = cast("Json", self.shown["State"])
        return bool(state["Running"] or state.get("Restarting"))

    @property
    def started_at(self) -> datetime:
        """When it was started last, aware UTC."""
        # nine digits of a second are more than Python reads
        text = str(self.shown["State"]["StartedAt"])
        return datetime.fromisoformat(text[:19] + "+00:00")

    @property
    def addresses(self) -> frozenset[str]:
        """Its addresses in its networks."""
        networks = cast("Mapping[str, Json]", self.shown["NetworkSettings"].get("Networks") or {})
        return frozenset(str(n["IPAddress"]) for n in networks.values() if n.get("IPAddress"))

    @property
    def ports(self) -> frozenset[tuple[str, int, str]]:
        """Published (address, port, protocol) of a running container."""
        published = cast("Mapping[str, Sequence[Json] | None]", self.shown["NetworkSettings"].get("Ports") or {})
        return frozenset(
            (str(at["HostIp"]), int(at["HostPort"]), inside.split("/")[-1])
            for inside, bound in published.items()
            for at in bound or ()
        )

    @property
    def has_ports(self) -> bool:
        """Whether it publishes any, while it runs."""
        return bool(self.shown["HostConfig"].get("PortBindings"))

    def facts(self) -> InstanceFacts:
        """Say what the core needs to know of it."""
        state = cast("Json", self.shown["State"])
        compose_hash = self.labels.get(COMPOSE_CONFIG, "")
        return InstanceFacts(
            service=self.service,
            instance=self.id,
            artifact=self.image,
            running=self._running,
            health=_health(state),
            release=self.labels.get(LABEL_RELEASE, ""),
            config_hash=self.labels.get(LABEL_CONFIG) or foreign_config(compose_hash),
            restarts=int(self.shown.get("RestartCount", 0)),
            oom_killed=bool(state.get("OOMKilled")),
            exit_code=None if state["Running"] else int(state["ExitCode"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """What makes a twin one of a release. name: of the container. alias: by which its siblings find it. links: (alias
    of a sibling, name by which the twin knows it); a link is the twin's own and comes before every alias of a
    network."""

    name: str
    alias: str
    links: tuple[tuple[str, str], ...]


def _paths(label: str) -> tuple[str, ...]:
    return tuple(path for path in label.split(",") if path)


def foreign_config(compose_hash: str) -> str:
    """What stands for the configuration of a container that somebody else started: compose's own hash, marked."""
    return f"compose:{compose_hash}" if compose_hash else ""


def _health(state: Json) -> Health:
    shown = str(cast("Json", state.get("Health") or {}).get("Status", "none"))
    known = {"healthy": Health.HEALTHY, "starting": Health.STARTING, "unhealthy": Health.UNHEALTHY}
    return known.get(shown, Health.NONE)


@contextmanager
def _asking(*, changing: str = "") -> Generator[None]:
    """Turn what the SDK raises into the house's errors. changing: what was under way, empty when only looking."""
    try:
        yield
    except requests.exceptions.ReadTimeout as error:
        if changing:
            raise OutcomeUnknown(f"the docker engine did not answer while {changing}", hint=_HINT) from error
        raise Retryable("the docker engine does not answer", delay_s=RETRY_S, hint=_HINT) from error
    except docker.errors.APIError as error:
        said = str(error.explanation or error)
        if error.is_server_error() and not changing:
            raise Retryable(f"the docker engine failed: {said}", delay_s=RETRY_S, hint=_HINT) from error
        raise Refused(f"the docker engine refused{' ' + changing if changing else ''}: {said}", hint=_HINT) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        if changing and not _never_sent(error):
            raise OutcomeUnknown(f"the docker engine went away while {changing}", hint=_HINT) from error
        raise Retryable("the docker engine does not answer", delay_s=RETRY_S, hint=_HINT) from error


def _never_sent(error: BaseException) -> bool:
    """Whether nobody listened at all: somewhere below, since each layer wraps the one that it stands on."""
    if isinstance(error, ConnectionRefusedError | FileNotFoundError | socket.gaierror):
        return True
    below = [error.__cause__, error.__context__, *cast("tuple[object, ...]", error.args)]
    return any(_never_sent(inner) for inner in below if isinstance(inner, BaseException))


class _Api(Protocol):
    """What is used of docker.APIClient, with the types that its stubs leave open. Docker Engine API 1.41."""

    def containers(self, *, quiet: bool, all: bool, filters: Json | None) -> Sequence[Json]: ...  # noqa: A002 # the SDK's word
    def inspect_container(self, container: str) -> Json: ...
    def images(self, *, quiet: bool, all: bool) -> Sequence[str]: ...  # noqa: A002 # the SDK's word
    def inspect_image(self, image: str) -> Json: ...
    def tag(self, image: str, repository: str, tag: str, *, force: bool) -> bool: ...
    def pull(self, repository: str, tag: str) -> str: ...
    def remove_image(self, image: str, *, force: bool, noprune: bool) -> Json: ...
    def networks(self) -> Sequence[Json]: ...
    def volumes(self) -> Json: ...
    def create_container_from_config(self, config: Json, name: str | None = None) -> Json: ...
    def connect_container_to_network(
        self,
        container: str,
        net_id: str,
        *,
        aliases: Sequence[str] | None = None,
        links: Sequence[tuple[str, str]] | None = None,
    ) -> None: ...
    def start(self, container: str) -> None: ...
    def stop(self, container: str, *, timeout: int) -> None: ...
    def update_container(self, container: str, *, restart_policy: Json) -> Json: ...
    def rename(self, container: str, name: str) -> None: ...
    def remove_container(self, container: str, *, v: bool, force: bool) -> None: ...
    def stats(self, container: str, *, stream: bool, one_shot: bool) -> Json: ...
    def logs(
        self, container: str, *, stdout: bool, stderr: bool, tail: int, stream: bool, since: int | None = None
    ) -> bytes: ...
    def close(self) -> None: ...


class _Client(docker.APIClient):
    """The SDK's own, but for a pull, to which it gives no deadline at all."""

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **settings: Any) -> requests.Response:  # noqa: ANN401 # what requests takes
        settings["timeout"] = settings.get("timeout") or PULL_S
        return super().request(method, url, *args, **settings)


class Engine:
    """An open connection to the engine. Every method raises Retryable when the engine does not answer."""

    def __init__(self, api: _Api, project: str) -> None:
        self._api = api
        self._project = project

    def of_project(self) -> tuple[Container, ...]:
        """The project's containers, running or not; those of `docker compose run` and our candidates excluded."""
        # Images that compose built carry its labels, and so does every container made from them: only a container
        # that compose itself made has a configuration hash.
        found = self._containers([f"{COMPOSE_PROJECT}={self._project}", COMPOSE_CONFIG])
        return tuple(c for c in found if c.labels.get(COMPOSE_ONE_OFF) != "True" and LABEL_CANDIDATE not in c.labels)

    def of_folder(self, folder: Path) -> tuple[Container, ...]:
        """The containers of every project that compose started out of a folder, running or not."""
        found = self._containers([f"{COMPOSE_FOLDER}={folder}", COMPOSE_CONFIG])
        return tuple(c for c in found if c.labels.get(COMPOSE_ONE_OFF) != "True" and LABEL_CANDIDATE not in c.labels)

    def candidates(self) -> tuple[Container, ...]:
        """What the gate made for this project, running or not, half-made ones included."""
        found = self._containers([LABEL_CANDIDATE])
        return tuple(c for c in found if c.labels[LABEL_CANDIDATE].startswith(f"{self._project}:"))

    def others(self) -> tuple[Container, ...]:
        """Every container of the engine that is not the project's."""
        return tuple(c for c in self._containers([]) if c.labels.get(COMPOSE_PROJECT) != self._project)

    def _containers(self, labels: Sequence[str]) -> tuple[Container, ...]:
        with _asking():
            filters = {"label": list(labels)} if labels else None
            listed = self._api.containers(all=True, quiet=True, filters=filters)
            shown = [self._inspect(str(c["Id"])) for c in listed]
        # One that went away between the two questions is not there.
        return tuple(Container(c) for c in shown if c is not None)

    def _inspect(self, container: str) -> Json | None:
        try:
            return self._api.inspect_container(container)
        except docker.errors.NotFound:
            return None

    def container(self, container: str) -> Container | None:
        """One container by ID, None when it is gone."""
        with _asking():
            shown = self._inspect(container)
        return Container(shown) if shown is not None else None

    def image_ids(self) -> frozenset[str]:
        """IDs of every image on this host."""
        with _asking():
            return frozenset(self._api.images(quiet=True, all=True))

    def image(self, reference: str) -> Json | None:
        """An image by ID or reference, None when this host does not have it."""
        with _asking():
            try:
                return self._api.inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None

    def hold(self, image: str, tag: str) -> None:
        """Give an image a tag that keeps it from being pruned."""
        repository, name = tag.rsplit(":", 1)
        with _asking(changing=f"tagging {tag}"):
            self._api.tag(image, repository, name, force=True)

    def let_go(self, image: str, tag: str) -> None:
        """Take a tag from an image, and the image away when that was its last name and no container is made from it.
        One that is gone, or names another image by now, is fine. Raises Refused when a container needs it."""
        held = self.image(tag)
        if held is None or held["Id"] != image:
            return
        with _asking(changing=f"removing {tag}"):
            try:
                self._api.remove_image(tag, force=False, noprune=False)
            except docker.errors.ImageNotFound:
                return

    def pull_digest(self, digest: str) -> None:
        """Pull by digest, `name@sha256:...`. Raises Refused when the registry does not have it."""
        repository, pinned = digest.split("@", 1)
        with _asking(changing=f"pulling {digest}"):
            self._api.pull(repository, tag=pinned)

    def networks(self) -> frozenset[str]:
        """Names of the networks that exist."""
        with _asking():
            return frozenset(str(n["Name"]) for n in self._api.networks())

    def volumes(self) -> frozenset[str]:
        """Names of the volumes that exist."""
        with _asking():
            listed = self._api.volumes().get("Volumes") or ()
            return frozenset(str(v["Name"]) for v in cast("Sequence[Json]", listed))

    def twin(self, mold: Container, labels: Mapping[str, str], *, ties: Ties | None = None) -> str:
        """Create a container exactly like `mold`, with `labels` and no other ones, in its networks without an alias
        but those of `ties`. It is never started again by the engine itself. Returns its ID."""
        config = {**cast("Json", mold.shown["Config"]), "HostConfig": mold.shown["HostConfig"]}
        if config.get("Hostname") == mold.id[:12]:
            del config["Hostname"]
        # An image that compose built passes its labels on; emptied, no tool takes the twin for a part of the project.
        inherited = {label: "" for label in mold.labels if label.startswith("com.docker.compose.")}
        config["Labels"] = {**inherited, **labels}
        networks = sorted(cast("Json", mold.shown["NetworkSettings"]["Networks"]))
        mode = str(mold.shown["HostConfig"]["NetworkMode"])
        first = mode if mode in networks else next(iter(networks), "")
        name, aliases, links = (ties.name, [ties.alias], list(ties.links)) if ties else (None, None, None)
        if ties:
            config["HostConfig"] = {**config["HostConfig"], "RestartPolicy": {"Name": "no"}}
        if first:
            linked = [f"{alias}:{known_as}" for alias, known_as in links or ()]
            at = {"Aliases": aliases, "Links": linked} if ties else {}
            config["NetworkingConfig"] = {"EndpointsConfig": {first: at}}
        with _asking(changing="creating a candidate"):
            made = str(self._api.create_container_from_config(config, name)["Id"])
            for network in networks:
                if network != first:
                    self._api.connect_container_to_network(made, network, aliases=aliases, links=links)
        return made

    def start(self, container: str, *, named: str) -> None:
        """Start a container. named: what to call it when the engine refuses."""
        with _asking(changing=f"starting {named}"):
            self._api.start(container)

    def stop(self, container: str, *, stop_s: float) -> None:
        """Stop a container and keep it; the engine does not start it again, also not after its own restart. One that
        is gone is fine. Raises OutcomeUnknown."""
        self.start_again(container, "no")
        with _asking(changing="stopping a container"):
            try:
                self._api.stop(container, timeout=math.ceil(stop_s))
            except docker.errors.NotFound:
                return

    def start_again(self, container: str, policy: str) -> None:
        """Say when the engine starts a container again by itself, in compose's words: `no`, `always`,
        `unless-stopped`, `on-failure` or `on-failure:3`. One that is gone is fine."""
        name, _, most = policy.partition(":")
        with _asking(changing="changing a restart policy"):
            try:
                self._api.update_container(
                    container, restart_policy={"Name": name, "MaximumRetryCount": int(most or 0)}
                )
            except docker.errors.NotFound:
                return

    def retire(self, container: Container, *, stop_s: float) -> None:
        """Stop a container and keep it under a name that says so. One that is gone is fine. Raises OutcomeUnknown."""
        self.stop(container.id, stop_s=stop_s)
        if _RETIRED.search(container.name):
            return
        with _asking(changing="renaming a container"):
            try:
                self._api.rename(container.id, f"{container.name}.retired-{container.id[:12]}")
            except docker.errors.NotFound:
                return

    def remove(self, container: str) -> None:
        """Remove a container, running or not, with its anonymous volumes. One that is gone is fine."""
        with _asking(changing="removing a container"):
            try:
                self._api.remove_container(container, v=True, force=True)
            except docker.errors.NotFound:
                return

    def memory_of(self, container: str) -> int:
        """Return the bytes that it uses now, without files that could be dropped from memory, as `docker stats` counts
        them (docs.docker.com/reference/cli/docker/container/stats); 0 for one that is gone or does not run."""
        with _asking():
            try:
                shown = self._api.stats(container, stream=False, one_shot=True)
            except docker.errors.NotFound:
                return 0
        seen = cast("Json", shown.get("memory_stats") or {})
        details = cast("Json", seen.get("stats") or {})
        droppable = details.get("total_inactive_file", details.get("inactive_file", 0))  # cgroup v1, v2
        return int(max(0, seen.get("usage", 0) - droppable))

    def logs(self, container: str, *, lines: int, since: datetime | None = None) -> str:
        """The newest lines of a container's output, both streams, oldest first. since: none that are older."""
        begin = int(since.timestamp()) if since else None
        with _asking():
            try:
                raw = self._api.logs(container, stdout=True, stderr=True, tail=lines, stream=False, since=begin)
            except docker.errors.NotFound:
                return ""
        return raw.decode("utf-8", errors="replace")


def _knock(host: str) -> None:
    """Connect to a local socket once, before the SDK does: it leaves its socket open when nobody listens."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(REQUEST_S)
            try:
                probe.connect(host.removeprefix("unix://"))
            except OSError as error:
                raise Retryable(
                    f"no docker engine answers at {host}: {error.strerror or error}", delay_s=RETRY_S, hint=_HINT
                ) from error


@contextmanager
def connect(project: str, env: Mapping[str, str]) -> Generator[Engine]:
    """Open a connection for one piece of work. Raises Retryable when no engine answers.

    env: names the engine (DOCKER_HOST), as it does for the docker client.
    """
    api: _Api | None = None
    try:
        _knock(env.get("DOCKER_HOST") or _DEFAULT_HOST)
        with _asking():
            arguments = cast("dict[str, Any]", kwargs_from_env(environment=dict(env)))
            api = cast("_Api", _Client(**arguments, version="auto", timeout=int(REQUEST_S)))
        yield Engine(api, project)
    finally:
        if api is not None:
            api.close()

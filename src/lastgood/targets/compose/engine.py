"""The Docker engine, asked through its SDK: what is there, and the few changes that need no compose.

One connection per piece of work, so that an engine which was restarted is simply asked again. Each request has a
deadline; what the engine does not answer is Retryable, and OutcomeUnknown where a change may have been made.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

import docker
import docker.errors

from lastgood.core.errors import OutcomeUnknown, Refused
from lastgood.core.facts import Health, InstanceFacts
from lastgood.targets.compose.project import LABEL_CANDIDATE, LABEL_CONFIG, LABEL_RELEASE, LABEL_SERVICE, Json
from lastgood.targets.docker_engine import asking, opened

COMPOSE_PROJECT: Final = "com.docker.compose.project"
COMPOSE_SERVICE: Final = "com.docker.compose.service"
COMPOSE_VERSION: Final = "com.docker.compose.version"
COMPOSE_CONFIG: Final = "com.docker.compose.config-hash"
COMPOSE_ONE_OFF: Final = "com.docker.compose.oneoff"
COMPOSE_REPLACES: Final = "com.docker.compose.replace"
COMPOSE_FOLDER: Final = "com.docker.compose.project.working_dir"
COMPOSE_FILES: Final = "com.docker.compose.project.config_files"
COMPOSE_ENV_FILES: Final = "com.docker.compose.project.environment_file"

_T = TypeVar("_T")

AT_ONCE: Final = 8
"""How many the engine is asked to do side by side. Stops of fifty together do not end in the time that one call has."""

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
    def started_in(self) -> str:
        """The folder in which compose made it, as it was called there, empty when compose did not say."""
        return self.labels.get(COMPOSE_FOLDER, "")

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
        """Its addresses in its networks, of both kinds."""
        networks = cast("Mapping[str, Json]", self.shown["NetworkSettings"].get("Networks") or {})
        kinds = ("IPAddress", "GlobalIPv6Address")
        return frozenset(str(n[kind]) for n in networks.values() for kind in kinds if n.get(kind))

    @property
    def links(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Of each of its networks, in the order of their names: (container, name by which this one knows it)."""
        networks = cast("Mapping[str, Json]", self.shown["NetworkSettings"].get("Networks") or {})
        parts = {name: [str(link).partition(":") for link in networks[name].get("Links") or ()] for name in networks}
        return {name: tuple((other, as_ or other) for other, _, as_ in parts[name]) for name in sorted(parts)}

    @property
    def network_options(self) -> dict[str, Json | None]:
        """What each of its networks is asked for on its behalf (`driver_opts`), None for nothing."""
        networks = cast("Mapping[str, Json]", self.shown["NetworkSettings"].get("Networks") or {})
        return {name: at.get("DriverOpts") for name, at in networks.items()}

    @property
    def gateway_priorities(self) -> dict[str, Json]:
        """Of each of its networks that has one, how it stands among those by whose gateway it may go (`gw_priority`),
        in the engine's words. Engines before 28 (API 1.48) know of none."""
        networks = cast("Mapping[str, Json]", self.shown["NetworkSettings"].get("Networks") or {})
        return {name: {"GwPriority": at["GwPriority"]} for name, at in networks.items() if at.get("GwPriority")}

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


def _failure_in(told: str) -> str:
    """Why a pull failed that the engine answered with 200, before it began: one JSON a line, `error` in the last one
    (docs.docker.com/reference/api/engine, ImageCreate). Empty when it did not."""
    for line in reversed(told.splitlines()):
        try:
            said = json.loads(line)
        except json.JSONDecodeError:
            continue  # the connection ended within it; what was pulled is looked at in any case
        if isinstance(said, dict) and (error := cast("Json", said).get("error")):
            return str(error)
    return ""


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
        driver_opt: Json | None = None,
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


def at_once(act: Callable[[_T], None], on: Collection[_T]) -> None:
    """Do something to each, AT_ONCE side by side: the engine takes seconds for some, and many may stand there. All are
    tried; raises what the first one that failed raised, but OutcomeUnknown before all others."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="engine") as pool:
        failed = [error for one in [pool.submit(act, each) for each in on] if (error := one.exception())]
    if failed:
        raise next((error for error in failed if isinstance(error, OutcomeUnknown)), failed[0])


def rounds_of(on: Collection[object]) -> int:
    """How often `at_once` begins anew: what it takes is so many times what one takes, at most."""
    return math.ceil(len(on) / AT_ONCE)


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

    def has(self, service: str) -> bool:
        """Whether compose made a container of a service of the project, running or not. One question, where
        `of_project` asks for each container."""
        labels = [f"{COMPOSE_PROJECT}={self._project}", f"{COMPOSE_SERVICE}={service}", f"{COMPOSE_ONE_OFF}=False"]
        with asking():
            return bool(self._api.containers(all=True, quiet=True, filters={"label": labels}))

    def of_folder(self, folder: Path) -> tuple[Container, ...]:
        """The containers of every project that compose started out of a folder, running or not, under whatever name
        the folder had there: compose notes the path that the shell was in, links and all."""
        found = self._containers([COMPOSE_FOLDER, COMPOSE_CONFIG])
        own = [c for c in found if c.labels.get(COMPOSE_ONE_OFF) != "True" and LABEL_CANDIDATE not in c.labels]
        return tuple(c for c in own if c.started_in and os.path.realpath(c.started_in) == os.path.realpath(folder))

    def candidates(self) -> tuple[Container, ...]:
        """What the gate made for this project, running or not, half-made ones included."""
        found = self._containers([LABEL_CANDIDATE])
        return tuple(c for c in found if c.labels[LABEL_CANDIDATE].startswith(f"{self._project}:"))

    def others(self) -> tuple[Container, ...]:
        """Every container of the engine that is not the project's."""
        return tuple(c for c in self._containers([]) if c.labels.get(COMPOSE_PROJECT) != self._project)

    def names(self) -> frozenset[str]:
        """Names of all containers of the engine, in one question."""
        with asking():
            listed = self._api.containers(all=True, quiet=False, filters=None)
        # what another one knows it by, by a link, stands there as `/other/name`
        return frozenset(str(name)[1:] for shown in listed for name in shown["Names"] if str(name).count("/") == 1)

    def _containers(self, labels: Sequence[str]) -> tuple[Container, ...]:
        with asking():
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
        with asking():
            shown = self._inspect(container)
        return Container(shown) if shown is not None else None

    def image_ids(self) -> frozenset[str]:
        """IDs of every image on this host."""
        with asking():
            return frozenset(self._api.images(quiet=True, all=True))

    def image(self, reference: str) -> Json | None:
        """An image by ID or reference, None when this host does not have it."""
        with asking():
            try:
                return self._api.inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None

    def hold(self, image: str, tag: str) -> None:
        """Give an image a tag that keeps it from being pruned."""
        repository, name = tag.rsplit(":", 1)
        with asking(changing=f"tagging {tag}"):
            self._api.tag(image, repository, name, force=True)

    def let_go(self, image: str, tag: str) -> None:
        """Take a tag from an image, and the image away when that was its last name and no container is made from it.
        One that is gone, or names another image by now, is fine. Raises Refused when a container needs it."""
        held = self.image(tag)
        if held is None or held["Id"] != image:
            return
        with asking(changing=f"removing {tag}"):
            try:
                self._api.remove_image(tag, force=False, noprune=False)
            except docker.errors.ImageNotFound:
                return

    def pull_digest(self, digest: str) -> None:
        """Pull by digest, `name@sha256:...`. Raises Refused when that fails, with the engine's word for it: a registry
        that is away, an image that is not there, a disk that is full. Nothing that runs is touched by it."""
        repository, pinned = digest.split("@", 1)
        with asking():
            try:
                told = self._api.pull(repository, tag=pinned)
            except docker.errors.APIError as error:
                raise Refused(str(error.explanation or error), hint=f"docker pull {digest}") from error
        if failed := _failure_in(told):
            raise Refused(failed, hint=f"docker pull {digest}")

    def networks(self) -> frozenset[str]:
        """Names of the networks that exist."""
        with asking():
            return frozenset(str(n["Name"]) for n in self._api.networks())

    def volumes(self) -> frozenset[str]:
        """Names of the volumes that exist."""
        with asking():
            listed = self._api.volumes().get("Volumes") or ()
            return frozenset(str(v["Name"]) for v in cast("Sequence[Json]", listed))

    def twin(self, mold: Container, labels: Mapping[str, str], *, ties: Ties | None = None) -> str:
        """Create a container exactly like `mold`, with `labels` and no other ones, in its networks with its links and
        their options, without an alias but those of `ties`. It is never started again by the engine itself. Returns its
        ID."""
        config = {**cast("Json", mold.shown["Config"]), "HostConfig": mold.shown["HostConfig"]}
        if config.get("Hostname") == mold.id[:12]:
            del config["Hostname"]
        # An image that compose built passes its labels on; emptied, no tool takes the twin for a part of the project.
        inherited = {label: "" for label in mold.labels if label.startswith("com.docker.compose.")}
        config["Labels"] = {**inherited, **labels}
        networks = mold.links
        mode = str(mold.shown["HostConfig"]["NetworkMode"])
        with asking():
            # compose says the ID of a network that it did not make itself, and all else here is by name
            mode = next((str(n["Name"]) for n in self._api.networks() if n["Id"] == mode), mode)
        config["HostConfig"] = {**cast("Json", mold.shown["HostConfig"]), "NetworkMode": mode}
        first = mode if mode in networks else next(iter(networks), "")
        # who knows of gateways takes all networks with the container (API 1.44)
        with_it = list(networks) if mold.gateway_priorities else [first] if first else []
        name, aliases, siblings = (ties.name, [ties.alias], ties.links) if ties else (None, None, ())
        if ties:
            config["HostConfig"] = {**config["HostConfig"], "RestartPolicy": {"Name": "no"}}
        endpoints: dict[str, Json] = {}
        for network in with_it:
            linked = [f"{other}:{known_as}" for other, known_as in (*siblings, *networks[network])]
            endpoints[network] = {"Aliases": aliases, "Links": linked, "DriverOpts": mold.network_options[network]}
            endpoints[network] |= mold.gateway_priorities.get(network, {})
        if endpoints:
            config["NetworkingConfig"] = {"EndpointsConfig": endpoints}
        with asking(changing="creating a candidate"):
            made = str(self._api.create_container_from_config(config, name)["Id"])
            for network, links in networks.items():
                if network not in endpoints:
                    linked_here = [*siblings, *links]
                    self._api.connect_container_to_network(
                        made, network, aliases=aliases, links=linked_here, driver_opt=mold.network_options[network]
                    )
        return made

    def start(self, container: str, *, named: str) -> None:
        """Start a container. named: what to call it when the engine refuses."""
        with asking(changing=f"starting {named}"):
            self._api.start(container)

    def stop(self, container: str, *, stop_s: float) -> None:
        """Stop a container and keep it; the engine does not start it again, also not after its own restart. One that
        is gone is fine. Raises OutcomeUnknown."""
        self.start_again(container, "no")
        with asking(changing=f"stopping container {container[:12]}"):
            try:
                self._api.stop(container, timeout=math.ceil(stop_s))
            except docker.errors.NotFound:
                return

    def start_again(self, container: str, policy: str) -> None:
        """Say when the engine starts a container again by itself, in compose's words: `no`, `always`,
        `unless-stopped`, `on-failure` or `on-failure:3`. One that is gone is fine."""
        name, _, most = policy.partition(":")
        with asking(changing=f"changing the restart policy of container {container[:12]}"):
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
        with asking(changing=f"renaming {container.name}"):
            try:
                self._api.rename(container.id, f"{container.name}.retired-{container.id[:12]}")
            except docker.errors.NotFound:
                return

    def remove(self, container: str) -> None:
        """Remove a container, running or not, with its anonymous volumes. One that is gone is fine."""
        with asking(changing=f"removing container {container[:12]}"):
            try:
                self._api.remove_container(container, v=True, force=True)
            except docker.errors.NotFound:
                return

    def memory_of(self, container: str) -> int:
        """Return the bytes that it uses now, without files that could be dropped from memory, as `docker stats` counts
        them (docs.docker.com/reference/cli/docker/container/stats); 0 for one that is gone or does not run."""
        with asking():
            try:
                shown = self._api.stats(container, stream=False, one_shot=True)
            except docker.errors.NotFound:
                return 0
        seen = cast("Json", shown.get("memory_stats") or {})
        details = cast("Json", seen.get("stats") or {})
        droppable = details.get("total_inactive_file", details.get("inactive_file", 0))  # cgroup v1, v2
        return int(max(0, seen.get("usage", 0) - droppable))

    def logs(self, container: str, *, lines: int, since: datetime | None = None) -> str:
        """The newest lines of a container's output, both streams, oldest first; none where its logging driver gives
        none back (`none`, and what sends them elsewhere). since: none that are older."""
        begin = int(since.timestamp()) if since else None
        with asking():
            try:
                raw = self._api.logs(container, stdout=True, stderr=True, tail=lines, stream=False, since=begin)
            except docker.errors.NotFound:
                return ""
            except docker.errors.APIError as error:
                if error.status_code != HTTPStatus.NOT_IMPLEMENTED:
                    raise
                return ""
        return raw.decode("utf-8", errors="replace")


@contextmanager
def connect(project: str, env: Mapping[str, str]) -> Generator[Engine]:
    """Open a connection for one piece of work. Raises Retryable when no engine answers, Refused when it is not
    known which.

    env: names the engine, as it does for the docker client.
    """
    with opened(env) as api:
        yield Engine(cast("_Api", api), project)

"""The resolved configuration of a compose project: what `docker compose config` says after every file, profile and
variable has had its say, and the files that are made from it to start one service.

Everything is read from this resolved model, never from the YAML on disk: engine, image, port and path may all be
variables there. Texts in it carry `$$` for `$`, as compose writes them so that it can read its own output again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from lastgood.core.errors import Refused

Json = dict[str, Any]

LABEL_CANDIDATE: Final = "lastgood.candidate"
LABEL_CONFIG: Final = "lastgood.config"
LABEL_RELEASE: Final = "lastgood.release"
LABEL_RESTART: Final = "lastgood.restart"
LABEL_SERVICE: Final = "lastgood.service"

# What does not change how a container runs: where its image comes from, and what compose does around it.
_NOT_RUN: Final = ("build", "image", "pull_policy", "depends_on", "profiles", "environment", "develop")

# What would give a candidate traffic, a name or a life of its own. A hostname is a name in every network, by which the
# engine leads to all that have it (moby, daemon/container_operations.go, updateNetworkConfig; seen with 20.10).
_NOT_BESIDE: Final = (
    *("ports", "expose", "container_name", "hostname", "restart", "labels", "links", "external_links", "scale"),
    *("build", "depends_on", "profiles", "pull_policy", "deploy", "develop", "mac_address"),
)
# What only one container has of a network.
_OF_ONE: Final = ("aliases", "ipv4_address", "ipv6_address", "link_local_ips", "mac_address")
CALLED_BY: Final = ("VIRTUAL_HOST", "VIRTUAL_HOST_MULTIPORTS")
"""Variables by which nginx-proxy, or its docker-gen, finds a container and sends it requests."""

# What names another service: compose refuses a model in which that one is not (2.26: "depends on undefined service").
_NOT_ALONE: Final = ("build", "depends_on", "links", "external_links")

# Swarm's words for a restart policy, and the engine's.
_RESTARTS: Final = {"any": "always", "none": "no"}

_PROGRAM: Final = re.compile(r"[A-Za-z][A-Za-z0-9._+-]{0,30}")
_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class Project:
    """The resolved model of one project."""

    model: Json

    @staticmethod
    def parse(text: str, *, hint: str) -> Project:
        """Read the output of `docker compose config --format json`. hint: what a person types to see where it comes
        from. Raises Refused when it is not that."""
        try:
            model = json.loads(text)
        except json.JSONDecodeError as error:
            raise Refused(f"docker compose printed no configuration: {error}", hint=hint) from None
        if not isinstance(model, dict) or not isinstance(cast("Json", model).get("services"), dict):
            raise Refused("docker compose printed a configuration without services", hint=hint)
        return Project(cast("Json", model))

    @property
    def name(self) -> str:
        """The project's name."""
        return str(self.model["name"])

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services, those of inactive profiles excluded."""
        return tuple(self.model["services"])

    def service(self, name: str) -> Json:
        """Return what the model says of a service. KeyError when there is none."""
        return cast("Json", self.model["services"][name])

    def is_built(self, name: str) -> bool:
        """Whether the service's image is built here rather than pulled."""
        return "build" in self.service(name)

    def reference(self, name: str) -> str:
        """The name that compose gives the service's image."""
        return str(self.service(name).get("image") or f"{self.name}-{name}")

    def environment(self, name: str) -> dict[str, str]:
        """The service's environment as it will be in the container. Values are secret until shown otherwise."""
        values = cast("Mapping[str, str | None]", self.service(name).get("environment") or {})
        return {key: value.replace("$$", "$") for key, value in values.items() if value is not None}

    def build_arguments(self, name: str) -> dict[str, str]:
        """What the service's image is built with, which may be secret as well."""
        build = cast("Json", self.service(name).get("build") or {})
        values = cast("Mapping[str, str | None]", build.get("args") or {})
        return {key: value.replace("$$", "$") for key, value in values.items() if value is not None}

    def mounts(self, name: str) -> tuple[Json, ...]:
        """The service's volumes in their long form."""
        return tuple(self.service(name).get("volumes") or ())

    def profiles(self, name: str) -> tuple[str, ...]:
        """The profiles of which one must be in use for the service to be started, empty when it always is."""
        return tuple(str(profile) for profile in self.service(name).get("profiles") or ())

    def sentence(self, name: str) -> tuple[str, ...]:
        """Entrypoint and command as the compose file gives them, empty where it leaves them to the image."""
        service = self.service(name)
        return tuple(str(word) for part in ("entrypoint", "command") for word in service.get(part) or ())

    def with_source(self, name: str, inside: str, source: str) -> Project:
        """This model with one bind mount of a service, the one at `inside`, from another path, read-only."""
        mounts = [
            {**mount, "source": source.replace("$", "$$"), "read_only": True} if mount["target"] == inside else mount
            for mount in self.mounts(name)
        ]
        service = {**self.service(name), "volumes": mounts}
        return Project({**self.model, "services": {**self.model["services"], name: service}})

    def with_folder(self, name: str, folder: str, *, instead_of: str) -> Project:
        """This model with the bind mounts of a service that lie in one folder from another path of that folder."""
        old, new = (f"{path}/".replace("$", "$$") for path in (instead_of, folder))
        mounts = [
            {**mount, "source": new + str(mount["source"]).removeprefix(old)}
            if mount.get("type") == "bind" and str(mount["source"]).startswith(old)
            else mount
            for mount in self.mounts(name)
        ]
        service = {**self.service(name), **({"volumes": mounts} if mounts else {})}
        return Project({**self.model, "services": {**self.model["services"], name: service}})

    def published(self, name: str) -> tuple[str, ...]:
        """The service's ports on this host, `127.0.0.1:8000->8080/tcp`. `any`: the engine chooses one."""
        return tuple(
            f"{p.get('host_ip') or '*'}:{p.get('published') or 'any'}->{p['target']}/{p.get('protocol') or 'tcp'}"
            for p in self.service(name).get("ports") or ()
        )

    def probe(self, name: str, of_image: Json) -> str:
        """What says that the service is healthy, empty when nothing does. of_image: the check that its image brings.

        Only the program is named: its arguments may hold secrets.
        """
        check = cast("Json", self.service(name).get("healthcheck") or {})
        if check.get("disable"):
            return ""
        if test := check.get("test"):
            shown = _program(test)
            return f"{shown} (compose file), every {check.get('interval') or '30s'}" if shown else ""
        shown = _program(of_image.get("Test") or ())
        return f"{shown} (image)" if shown else ""

    def start_period_s(self, name: str) -> float:
        """How long the service's own health check lets it fail, 0 without one."""
        check = cast("Json", self.service(name).get("healthcheck") or {})
        return _seconds(str(check.get("start_period") or "0s"))

    def stop_grace_s(self, name: str) -> float:
        """How long the file lets the service take to end before it is killed, 0 where it does not say."""
        return _seconds(str(self.service(name).get("stop_grace_period") or "0s"))

    def has_no_health_check(self, name: str) -> bool:
        """Whether the compose file takes away the one that the image may have."""
        check = cast("Json", self.service(name).get("healthcheck") or {})
        return bool(check.get("disable")) or list(check.get("test") or ()) == ["NONE"]

    def with_service(self, name: str, other: Project) -> Project:
        """This model with one service, and what it names, as `other` has it."""
        model = {**self.model, "services": {**self.model["services"], name: other.service(name)}}
        for kind, keys in other._named(other.service(name)):
            defined = {key: other._defined(kind, key) for key in keys}
            model[kind] = {**(self.model.get(kind) or {}), **defined}
        return Project(model)

    def with_environment(self, name: str, environment: Mapping[str, str]) -> Project:
        """This model with another environment for one service."""
        escaped = {key: value.replace("$", "$$") for key, value in environment.items()}
        service = {**self.service(name), "environment": escaped}
        return Project({**self.model, "services": {**self.model["services"], name: service}})

    def instances(self, name: str) -> int | None:
        """How many containers the file asks for, None when it does not say: then somebody may have said by hand."""
        service = self.service(name)
        told = (service.get("scale"), cast("Json", service.get("deploy") or {}).get("replicas"))
        return next((int(asked) for asked in told if asked is not None), None)

    def files(self, name: str) -> Iterator[tuple[str, str, str]]:
        """Kind, name and path of the service's secrets and configs that are files of this host."""
        named = dict(self._named(self.service(name)))
        for kind in ("secrets", "configs"):
            for key in sorted(named[kind]):
                if path := self._defined(kind, key).get("file"):
                    yield kind.removesuffix("s"), key, str(path)

    def with_definitions(self, changes: Mapping[tuple[str, str], Json]) -> Project:
        """This model with more said of some of its secrets and configs. changes: by `secret` or `config`, and key."""
        model = dict(self.model)
        for (kind, key), more in changes.items():
            known = cast("Json", model[f"{kind}s"])
            model[f"{kind}s"] = {**known, key: {**known[key], **more}}
        return Project(model)

    def dependencies(self, name: str) -> tuple[str, ...]:
        """Names of the services that a service waits for."""
        return tuple(sorted(cast("Json", self.service(name).get("depends_on") or {})))

    def with_dependencies(self, name: str, needs: Collection[str]) -> Project:
        """This model with one service that waits for a part of what it waits for."""
        service = dict(self.service(name))
        waits = cast("Json", service.pop("depends_on", None) or {})
        kept = {key: value for key, value in waits.items() if key in needs}
        if kept:
            service["depends_on"] = kept
        return Project({**self.model, "services": {**self.model["services"], name: service}})

    def env_hash(self, name: str, key: bytes) -> str:
        """Keyed hash of the environment: equal values give equal hashes, and the hash alone gives away none."""
        return _keyed(key, self.environment(name))

    def config_hash(self, name: str, key: bytes) -> str:
        """Hash of everything that decides how the service runs, but for its image."""
        service = {part: value for part, value in self.service(name).items() if part not in _NOT_RUN}
        # Command lines and health checks hold secrets as well, so the whole is keyed.
        return _keyed(key, {"service": service, "environment": self.environment(name), "around": self._around(name)})

    def _around(self, name: str) -> Json:
        """The networks, volumes, secrets and configs that the service names, as the project defines them."""
        return {
            kind: {key: self._defined(kind, key) for key in sorted(keys)}
            for kind, keys in self._named(self.service(name))
        }

    def _defined(self, kind: str, key: str) -> Json:
        return cast("Json", cast("Json", self.model.get(kind) or {}).get(key) or {})

    @staticmethod
    def _named(service: Json) -> Iterator[tuple[str, set[str]]]:
        mounts = cast("Sequence[Json]", service.get("volumes") or ())
        yield "networks", {str(key) for key in cast("Json", service.get("networks") or {})}
        yield "volumes", {str(m["source"]) for m in mounts if m.get("type") == "volume" and m.get("source")}
        for kind in ("secrets", "configs"):
            yield kind, {str(item["source"]) for item in service.get(kind) or ()}

    def unkept(self, name: str) -> Iterator[tuple[str, str, str]]:
        """Kind, name and source of the service's secrets and configs that compose copies into the container when it
        creates it: the variable is not in the resolved configuration, and a candidate would not have the copy."""
        named = dict(self._named(self.service(name)))
        for kind in ("secrets", "configs"):
            for key in sorted(named[kind]):
                defined = self._defined(kind, key)
                if source := next((part for part in ("environment", "content") if part in defined), ""):
                    yield kind.removesuffix("s"), key, f"its {source}"

    def real_names(self, kind: str, name: str) -> dict[str, str]:
        """What the engine calls the networks or volumes of a service, by what the model calls them."""
        named = dict(self._named(self.service(name)))[kind]
        return {key: str(self._defined(kind, key).get("name") or key) for key in sorted(named)}

    def is_in(self, name: str, network: str) -> bool:
        """Whether a service is in one of the model's networks."""
        return network in dict(self._named(self.service(name)))["networks"]

    def is_external(self, network: str) -> bool:
        """Whether a network is not this project's own: containers of others may be in it."""
        return bool(self._defined("networks", network).get("external"))

    def to_start(
        self,
        name: str,
        *,
        image: str,
        labels: Mapping[str, str],
        networks: Collection[str],
        volumes: Collection[str],
        published: bool = True,
    ) -> Json:
        """The model that starts `name` from `image`, in its place. published: with its ports, which an edge may have.

        networks, volumes: real names of those that exist. They are marked external, so that no compose version takes
        a difference for a reason to recreate one under the feet of a database.
        """
        service = {part: value for part, value in self.service(name).items() if part not in _NOT_ALONE}
        service |= {"image": image, "pull_policy": "never", **self._linked(name)}
        service["labels"] = {**self._labels(name), **labels}
        if not published:
            service.pop("ports", None)
        return self._alone(name, service, networks=networks, volumes=volumes)

    def to_create_beside(self, name: str, *, image: str, labels: Mapping[str, str], networks: Collection[str]) -> Json:
        """The model of a candidate of `name`: same image and configuration, without ports, names, aliases, labels of
        its own, variables by which a proxy would find it or a restart policy, and without a hand on data that others
        read.

        networks: real names of those that exist. One that is not there yet holds nobody to talk to.
        """
        service = {part: value for part, value in self.service(name).items() if part not in _NOT_BESIDE}
        service |= {"image": image, "pull_policy": "never", "restart": "no", "labels": dict(labels)}
        service |= self._limited(name)
        service["volumes"] = [_harmless(mount) for mount in self.mounts(name)]
        if environment := service.get("environment"):
            service["environment"] = {key: value for key, value in environment.items() if key not in CALLED_BY}
        service |= self._linked(name)
        if "network_mode" not in service:
            real = self.real_names("networks", name)
            there = {key: at for key, at in self._attached(name).items() if real[key] in networks}
            service["networks"] = there
            if not there:
                del service["networks"]
                service.pop("external_links", None)
                service["network_mode"] = "bridge"
        return self._alone(name, service, networks=networks, volumes=())

    def to_stand_beside(self, name: str, *, image: str, labels: Mapping[str, str], networks: Collection[str]) -> Json:
        """The model of a service that serves behind an edge, beside others of its kind: as it is, without what only one
        can have (ports, names, addresses) and what is for compose alone."""
        service = {part: value for part, value in self.service(name).items() if part not in _NOT_BESIDE}
        service |= {"image": image, "pull_policy": "never", "labels": {**self._labels(name), **labels}}
        service |= self._linked(name) | self._limited(name)
        service["networks"] = self._attached(name)
        return self._alone(name, service, networks=networks, volumes=())

    def restart_policy(self, name: str) -> str:
        """When the engine starts the service again by itself, in the engine's words: what `deploy` says comes before
        `restart` (compose 2.26, pkg/compose/create.go, getRestartPolicy)."""
        service = self.service(name)
        policy = cast("Json | None", cast("Json", service.get("deploy") or {}).get("restart_policy"))
        if policy is None:
            return str(service.get("restart") or "no")
        condition = str(policy.get("condition") or "no")
        said = _RESTARTS.get(condition, condition)
        most = policy.get("max_attempts") if said == "on-failure" else None  # the engine takes a number with no other
        return f"{said}:{most}" if most else said

    def names(self, name: str) -> tuple[str, ...]:
        """Every name by which other services reach this one."""
        service = self.service(name)
        networks = cast("Mapping[str, Json | None]", service.get("networks") or {})
        aliases = [str(a) for at in networks.values() for a in (at or {}).get("aliases") or ()]
        own = [str(service[key]) for key in ("container_name", "hostname") if service.get(key)]
        return tuple(dict.fromkeys([name, *own, *aliases]))

    def links(self, name: str) -> tuple[tuple[str, str], ...]:
        """(service, name by which this one knows it) of each of its links that the network does not lead to as well:
        a network that compose makes knows each service by its own name."""
        service = self.service(name)
        parts = (str(link).partition(":") for link in service.get("links") or ())
        found = ((other, known_as or other) for other, _, known_as in parts)
        return tuple((o, as_) for o, as_ in found if o != as_ or service.get("network_mode") == "bridge")

    def _linked(self, name: str) -> Json:
        """The links of a service as a model can say them that has no other service in it: by what compose calls their
        containers."""
        own = [str(link) for link in self.service(name).get("external_links") or ()]
        links = [*own, *(f"{self._container(other)}:{known_as}" for other, known_as in self.links(name))]
        return {"external_links": links} if links else {}

    def _attached(self, name: str) -> Json:
        """The networks of a service, with what the file says of each but for names and addresses."""
        networks = cast("Mapping[str, Json | None]", self.service(name).get("networks") or {})
        kept = {key: {part: v for part, v in (at or {}).items() if part not in _OF_ONE} for key, at in networks.items()}
        return {key: at or None for key, at in kept.items()}

    def _limited(self, name: str) -> Json:
        """What `deploy` says of the memory, the processors and the devices of one container, and none of the rest."""
        resources = cast("Json", self.service(name).get("deploy") or {}).get("resources")
        return {"deploy": {"resources": resources}} if resources else {}

    def _container(self, name: str) -> str:
        return str(self.service(name).get("container_name") or f"{self.name}-{name}-1")

    def _labels(self, name: str) -> dict[str, str]:
        labels = cast("Mapping[str, str]", self.service(name).get("labels") or {})
        return dict(labels)

    def _alone(self, name: str, service: Json, *, networks: Collection[str], volumes: Collection[str]) -> Json:
        model: Json = {"name": self.name, "services": {name: service}}
        named = dict(self._named(service))
        there = {"networks": networks, "volumes": volumes}
        for kind, keys in named.items():
            model[kind] = {key: self._existing(kind, key, there.get(kind, ())) for key in sorted(keys)}
        return model

    def _existing(self, kind: str, key: str, there: Collection[str]) -> Json:
        defined = self._defined(kind, key)
        real = str(defined.get("name") or key)
        return {"name": real, "external": True} if real in there else defined


def as_file(model: Json) -> bytes:
    """A model as a file that compose reads. Compose reads YAML, in which JSON's two escapes for one emoji are none."""
    return json.dumps(model, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _harmless(mount: Json) -> Json:
    """A mount for a candidate: what is writable and shared becomes empty (a volume) or read-only (a path)."""
    if mount.get("read_only") or mount.get("type") not in ("volume", "bind"):
        return mount
    if mount["type"] == "volume":
        return {"type": "volume", "target": mount["target"]}
    return {**mount, "read_only": True}


def _program(test: str | Sequence[str]) -> str:
    """The program that a health check runs, empty when it runs none."""
    kind, *words = ("CMD-SHELL", test) if isinstance(test, str) else test or ("NONE",)
    if kind == "NONE" or not words:
        return ""
    first = next(iter(words[0].split()), "") if kind == "CMD-SHELL" else words[0]
    name = first.rsplit("/", 1)[-1]
    return name if _PROGRAM.fullmatch(name) else "a command"


def _keyed(key: bytes, value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hmac.new(key, canonical.encode(), hashlib.sha256).hexdigest()


def _seconds(text: str) -> float:
    """Read a duration as compose prints it: `1m30s`."""
    parts: list[tuple[str, str]] = re.findall(r"([0-9.]+)(h|ms|us|µs|ns|m|s)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)

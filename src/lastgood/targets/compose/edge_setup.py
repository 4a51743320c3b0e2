"""Putting an edge in front of a stack that has none: which services it can take, and the two files that do it.

The user's own compose file is never edited. A second file takes the published ports from the services and gives them to
the edge; taking that file away again gives them back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final, cast

from lastgood.core.config import ContainersConfig, EdgeConfig
from lastgood.core.errors import Refused, Retryable
from lastgood.core.ports import Clock
from lastgood.targets.compose.edge import FOLDER, Edge, edge_of
from lastgood.targets.compose.engine import Container, Engine, connect
from lastgood.targets.compose.haproxy import CONFIG_FILE, INSIDE, MOST_INSTANCES
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.shape import (
    Kind,
    exposed_by,
    found_past_names,
    not_http,
    others_asked,
    shape_of,
    why_stateful,
)
from lastgood.targets.compose.stack import Stack

COMPOSE_FILE: Final = "docker-compose.edge.yml"
ANSWERS_S: Final = 2.0
IMAGE: Final = "haproxy:2.6"
_BOUND: Final = re.compile(r'"source": ("(?:[^"\\]|\\.)*")')
_ABSENT: Final = "the compose file does not have it"
_HEADER: Final = (
    "Written by `lastgood init --edge`: the ports of these services belong to the edge, which sends each request to\n"
    "the release that serves. Use it after the stack's own file: docker compose -f ... -f {name} up -d"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePlan:
    """What an edge would take. routes: service -> port. one_at_a_time: service -> why no second copy of it may run.
    left_out: service -> why it gets no route. anew: where there was an edge already, what compose is to start anew, the
    edge itself first."""

    routes: Mapping[str, int]
    one_at_a_time: Mapping[str, str]
    left_out: Mapping[str, str]
    anew: tuple[str, ...] = ()

    @property
    def shared(self) -> Mapping[int, tuple[str, ...]]:
        """The ports on which the edge tells several services apart by the name that was asked."""
        named = [name for name in self.routes if name not in self.one_at_a_time]
        on = {self.routes[name]: tuple(n for n in named if self.routes[n] == self.routes[name]) for name in named}
        return {port: names for port, names in on.items() if len(names) > 1}


def plan_edge(project: Project, services: Sequence[str], *, engine: Engine) -> EdgePlan:
    """Say which of `services` an edge can stand in front of. Changes nothing."""
    routes: dict[str, int] = {}
    alone: dict[str, str] = {}
    left_out: dict[str, str] = {}
    running = [c for c in engine.of_project() if c.is_up]
    for name in services:
        if name not in project.services:
            left_out[name] = _ABSENT
            continue
        shape = shape_of(project, name, exposed=exposed_by(engine.image(project.reference(name))))
        if shape.kind is not Kind.SERVING:
            left_out[name] = f"{shape.kind.value}: {shape.why}"
        elif proxy := found_past_names(project, name):
            left_out[name] = f"{proxy} finds its containers by their labels or environment, and goes past any edge"
        elif shape.port is None:
            said = (
                (int(port["target"]), not_http(project, name, int(port["target"]))) for port in _ports(project, name)
            )
            told = next((f"on port {port} it speaks no plain HTTP: {why}" for port, why in said if why), "")
            left_out[name] = told or "it is not known on which port it answers HTTP"
        elif others := _beside(project, name, shape.port):
            left_out[name] = f"it publishes {others} as well, which HTTP requests do not tell apart"
        elif asked := others_asked(project, name, shape.port):
            left_out[name] = (
                f"it is asked by its name on port {asked[0]} as well, and the edge would take only {shape.port}"
            )
        elif why := _impossible(project, name, alone=bool(shape.alone)):
            left_out[name] = why
        elif why := _no_http([c for c in running if c.service == name], shape.port):
            left_out[name] = f"on port {shape.port} {why}"
        else:
            routes[name] = shape.port
            if shape.alone:
                alone[name] = shape.alone[0]
    return EdgePlan(routes=routes, one_at_a_time=alone, left_out=left_out)


def _impossible(project: Project, name: str, *, alone: bool) -> str:
    """Why no edge can send requests to a service, empty when one can."""
    if not project.real_names("networks", name):
        mode = project.service(name).get("network_mode")
        return f"it has network_mode {mode}, and the edge finds only what is in a network of the project"
    if not alone and (asked := project.instances(name) or 1) > MOST_INSTANCES:
        return f"it asks for {asked} instances, and the edge has room for {MOST_INSTANCES} of each release"
    return ""


def _no_http(containers: Sequence[Container], port: int) -> str:
    """What becomes of a request to a port of these containers where nothing in the model says that it is none of HTTP:
    empty when HTTP is answered, or nothing at all, as by one that this host does not reach."""
    for address in (address for container in containers for address in sorted(container.addresses)):
        try:
            line = socket.create_connection((address, port), timeout=ANSWERS_S)
        except OSError:
            continue
        with line:
            try:
                line.sendall(f"GET / HTTP/1.1\r\nHost: {containers[0].service}\r\nConnection: close\r\n\r\n".encode())
                said = line.recv(4096)
                # gateways of TLS say so in plain words
                if b" 400 " in said.split(b"\r\n")[0] and b"HTTPS" in said + line.recv(4096):
                    return "it asks for HTTPS"
            except TimeoutError:
                continue
            except OSError:
                said = b""
        if not said.startswith(b"HTTP/"):
            return "it answers something else than HTTP" if said else "it ends a request without an answer"
    return ""


def _beside(project: Project, name: str, port: int) -> str:
    """What a service publishes that is not plain TCP on its one port."""
    others = [f"{p['target']}/{p.get('protocol', 'tcp')}" for p in _ports(project, name)]
    return ", ".join(sorted({other for other in others if other != f"{port}/tcp"}))


def set_up_edge(config: ContainersConfig, *, root: Path, state: Path, clock: Clock) -> EdgePlan:
    """Put an edge before the services of `config`: write its compose file beside the first, and what it starts from.
    Where there is one already, both are written anew as `containers.edge` says by now.

    Raises Refused, nothing written, when none can be had so; Retryable when the engine does not answer. What runs is
    not touched.
    """
    file = own_edge_file(config, root=root, state=state)
    files = tuple(name for name in config.compose.files if os.path.normpath(name) != os.path.normpath(file))
    if config.edge is not None and files == config.compose.files:
        raise Refused(f"there is an edge, and {file} is not in containers.compose.files", hint="lastgood doctor")
    config = config.model_copy(update={"compose": config.compose.model_copy(update={"files": files})})
    stack = Stack(config=config, root=root.resolve(), state=state.resolve(), shelf=Shelf(state.resolve()), clock=clock)
    project = stack.resolve()
    with connect(stack.name, os.environ) as engine:
        plan = plan_edge(project, config.services, engine=engine)
        there = {c.service for c in engine.of_project()}
    if config.edge is None:
        write_edge(stack, project, plan, into=stack.root / file, there=there)
        return plan
    edge = Edge(config.edge, stack)
    plan = _as_said(edge, project, plan, there=there)
    rewrite_edge(edge, project, into=stack.root / file, there=there)
    return plan


def _as_said(edge: Edge, project: Project, plan: EdgePlan, *, there: Collection[str]) -> EdgePlan:
    """What lastgood.yaml says instead of what would be taken. Raises Refused where that cannot be had.

    there: services with a container. One without is started by a deploy, through its gate, and by nothing else.
    """
    routes, once, before = edge.config.routes, edge.config.one_at_a_time, edge.places()
    for name in routes:
        absent = "" if name in project.services else _ABSENT
        if why := absent or _impossible(project, name, alone=name in once):
            raise Refused(
                f"{name} cannot stand behind the edge ({why}): take it out of containers.edge.routes",
                hint="lastgood init --edge",
            )
    others = dict.fromkeys(plan.routes, "containers.edge.routes does not have it")
    moved = {name for name in before if name in routes and before[name].named is (name in once)}
    return EdgePlan(
        routes=routes,
        one_at_a_time={name: plan.one_at_a_time.get(name, "containers.edge.one_at_a_time has it") for name in once},
        left_out={name: why for name, why in {**plan.left_out, **others}.items() if name not in routes},
        anew=(edge.config.service, *sorted((moved | before.keys() ^ routes.keys()) & set(project.services) & {*there})),
    )


def edge_file(config: ContainersConfig) -> str:
    """The compose file of the edge, relative to lastgood.yaml: beside the stack's first one."""
    return str(Path(config.compose.files[0]).with_name(COMPOSE_FILE))


def own_edge_file(config: ContainersConfig, *, root: Path, state: Path) -> str:
    """The compose file of this stack's edge: the usual one, or one with the project's name where another stack of the
    folder has that. Raises Refused when lastgood.yaml names the other one's."""
    usual = edge_file(config)
    own = str(Path(usual).with_name(f"{Path(COMPOSE_FILE).stem}-{config.compose.project}.yml"))
    named = {os.path.normpath(name) for name in config.compose.files}
    if os.path.normpath(own) in named:
        return own
    if not _starts_another(root / usual, state / FOLDER):
        return usual
    if os.path.normpath(usual) in named:
        raise Refused(
            f"{usual} starts the edge of another stack: take it and containers.edge out of lastgood.yaml",
            hint="lastgood init --edge",
        )
    return own


def _starts_another(file: Path, folder: Path) -> bool:
    """Whether an edge's compose file binds another folder than `folder`. One that is gone was the same, before somebody
    moved the checkout."""
    found = _BOUND.search(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None
    bound = Path(json.loads(found[1]).replace("$$", "$")) if found else folder
    return bound.is_dir() and bound.resolve() != folder.resolve()


def write_edge(
    stack: Stack, project: Project, plan: EdgePlan, *, into: Path, there: Collection[str] = frozenset()
) -> Edge:
    """Write the compose file `into` and what the edge starts from, with today's containers behind it. there: services
    with a container.

    Raises Refused, nothing written, when no service can be taken, and when the file is there already: but for one of
    ours from which no edge was ever started, since whoever wrote it died before lastgood.yaml named it.
    """
    if not plan.routes:
        why = "; ".join(f"{name} ({reason})" for name, reason in plan.left_out.items())
        raise Refused(f"no service of this project can stand behind an edge: {why}", hint="lastgood doctor")
    config = EdgeConfig(routes=plan.routes, one_at_a_time=tuple(plan.one_at_a_time))
    if into.exists() and not _is_ours(into):
        raise Refused(f"{into} is there already, and not ours", hint=f"less {quote(str(into))}")
    if into.exists() and config.service in there:
        raise Refused(
            f"an edge was started from {into}: put containers.edge back into lastgood.yaml as it was",
            hint=f"less {quote(str(into))}",
        )
    edge = Edge(config, stack)
    edge.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    edge.lay_out(project, {name: _names_behind(project, name, edge) for name in plan.routes})
    _write(into, _compose_file(project, edge, into.name))
    return edge


def _is_ours(file: Path) -> bool:
    return file.read_text(encoding="utf-8", errors="replace").startswith(f"# {_HEADER.splitlines()[0]}")


def _write(into: Path, text: str) -> None:
    """Whole or not at all: compose may read it at any moment."""
    fresh = into.with_name(f".{into.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(into)


def rewrite_edge(edge: Edge, project: Project, *, into: Path, there: Collection[str]) -> None:
    """Write both files of an edge anew, as its configuration says by now. Who gets requests from the one that runs gets
    them from the next one: also where one service was renamed, until a deploy brings the one of the new name.

    there: services with a container."""
    serving = {name: place.serving for name, place in edge.places().items()}
    with contextlib.suppress(Retryable):
        slots = [slot for slot in edge.runtime.slots() if slot.ready and slot.container]
        serving |= {at.service: tuple(slot.container for slot in slots if slot.service == at.service) for at in slots}
    gone = [name for name in serving if name not in edge.config.routes and name not in project.services]
    new = [name for name in edge.config.routes if name not in serving and name not in there]
    if len(gone) == len(new) == 1:
        serving[new[0]] = serving[gone[0]]
    behind = {name: serving.get(name) or _names_behind(project, name, edge) for name in edge.config.routes}
    edge.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    edge.lay_out(project, behind)
    _write(into, _compose_file(project, edge, into.name))


def _names_behind(project: Project, service: str, edge: Edge) -> list[str]:
    """What compose calls the containers of a service that stands behind the edge (compose-spec, container_name)."""
    if (named := _fixed_name(project, service)) and service not in edge.switchable:
        return [named]
    return [f"{project.name}-{service}-{number}" for number in range(1, (project.instances(service) or 1) + 1)]


def _fixed_name(project: Project, service: str) -> str:
    return str(project.service(service).get("container_name") or "")


def _compose_file(project: Project, edge: Edge, name: str) -> str:
    """YAML, each value in the form that JSON shares with it."""
    inside = {service: place.inside for service, place in edge.places().items()}
    networks = sorted({network for service in inside for network in project.real_names("networks", service)})
    switched = [service for service in inside if service in edge.switchable]
    front = {
        "image": f"${{LASTGOOD_EDGE_IMAGE:-{IMAGE}}}",
        # it opens its socket for this user, and then goes on as nobody
        "user": "0:0",
        "entrypoint": ["haproxy", "-db", "-f", f"{INSIDE}/{CONFIG_FILE}"],
        # an engine that was killed stops what it finds running when it is started again, and takes that for a person's
        # wish: `unless-stopped` would leave the ports closed (seen with 20.10.24)
        "restart": "always",
        "volumes": [{"type": "bind", "source": str(edge.folder).replace("$", "$$"), "target": INSIDE}],
        # who could not ask a service by its name before cannot do so now
        "networks": {network: {"aliases": _names_in(project, switched, network)} for network in networks},
        "ports": [
            _published(port, inside[service])
            for service in inside
            for ports in _ports(project, service)
            for port in _each(ports, project.instances(service) or 1)
        ],
    }
    lines = [f"# {line}" for line in _HEADER.format(name=name).splitlines()]
    lines += ["services:", f"  {edge.config.service}:"]
    lines += [f"    {key}: {json.dumps(value)}" for key, value in front.items()]
    for service in inside:
        if given_up := list(_given_up(project, service, edge)):
            lines += [f"  {json.dumps(service)}:", *(f"    {line}" for line in given_up)]
    return "\n".join(lines) + "\n"


def _names_in(project: Project, services: Sequence[str], network: str) -> list[str]:
    """The names by which those of `services` that are in a network are known there."""
    found: dict[str, None] = {}
    for service in services:
        networks = cast("Mapping[str, Json | None]", project.service(service).get("networks") or {})
        if network in networks:
            own = [_fixed_name(project, service), str(project.service(service).get("hostname") or "")]
            aliases = cast("Sequence[str]", (networks[network] or {}).get("aliases") or ())
            found |= dict.fromkeys(name for name in (service, *own, *aliases) if name)
    return list(found)


def _nobody_asks(project: Project, service: str, network: str) -> bool:
    """Whether only servers of data are in a network with a service: they answer, and ask nobody."""
    beside = (other for other in project.services if other != service and project.is_in(other, network))
    return not project.is_external(network) and all(why_stateful(project, other) for other in beside)


def unknown_at_the_edge(stack: Stack, project: Project) -> Iterator[str]:
    """Say which names of a service its edge does not have, in one of its networks or because it is not in that, one
    line each. A release behind it has none of them: who asks by one would find nobody."""
    config, front = stack.config.edge, edge_of(project)
    if config is None or front is None:
        return
    at = cast("Mapping[str, Json | None]", front.get("networks") or {})
    for service in (s for s in config.routes if s not in config.one_at_a_time and s in project.services):
        for network, real in project.real_names("networks", service).items():
            if network not in at and _nobody_asks(project, service, network):
                continue
            known = cast("Sequence[str]", (at.get(network) or {}).get("aliases") or ())
            if missing := [name for name in _names_in(project, [service], network) if name not in known]:
                yield (
                    f"the edge does not answer to {', '.join(missing)} in {real}, as {service} does: "
                    "lastgood init --edge"
                )


def _given_up(project: Project, service: str, edge: Edge) -> Iterator[str]:
    """What a service leaves to the edge: its ports, and a fixed name. The edge answers to that, and would find itself
    by it instead of the service."""
    if _ports(project, service):
        yield "ports: !reset []"
    if (named := _fixed_name(project, service)) and service in edge.switchable:
        yield "container_name: !reset null"
        networks = cast("Mapping[str, object]", project.service(service).get("networks") or {})
        yield f"networks: {json.dumps({network: {'aliases': [named]} for network in networks})}"


def _ports(project: Project, service: str) -> Sequence[Json]:
    return cast("Sequence[Json]", project.service(service).get("ports") or ())


def _each(port: Json, instances: int) -> Iterator[Json]:
    """The ports of a range that the instances of a service had, one each; the edge is one container, and would be given
    one of them."""
    first, _, last = str(port.get("published") or "").partition("-")
    if instances == 1 or not last:
        yield port
        return
    for number in range(int(first), min(int(last), int(first) + instances - 1) + 1):
        yield {**port, "published": str(number)}


def _published(port: Json, inside: int) -> Json:
    kept = {key: port[key] for key in ("host_ip", "published", "protocol") if port.get(key)}
    return {"target": inside, **kept}

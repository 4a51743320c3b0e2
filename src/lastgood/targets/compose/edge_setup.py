"""Putting an edge in front of a stack that has none: which services it can take, and the two files that do it.

The user's own compose file is never edited. A second file takes the published ports from the services and gives them to
the edge; taking that file away again gives them back.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar

from lastgood.core.config import ContainersConfig, EdgeConfig
from lastgood.core.errors import Refused
from lastgood.targets.compose.edge import FOLDER, Edge
from lastgood.targets.compose.engine import Engine
from lastgood.targets.compose.haproxy import CONFIG_FILE, INSIDE, publish_from
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.shape import Kind, shape_of
from lastgood.targets.compose.stack import Stack

IMAGE: Final = "haproxy:2.6"
_HEADER: Final = (
    "Written by `lastgood init --edge`: the ports of these services belong to the edge, which sends each request to the\n"
    "release that serves. Use it after the stack's own file: docker compose -f ... -f {name} up -d"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePlan:
    """What an edge would take. routes: service -> port. one_at_a_time: service -> why no second copy of it may run.
    left_out: service -> why it gets no route."""

    routes: Mapping[str, int]
    one_at_a_time: Mapping[str, str]
    left_out: Mapping[str, str]


def plan_edge(project: Project, services: Sequence[str], *, engine: Engine) -> EdgePlan:
    """Say which of `services` an edge can stand in front of. Changes nothing."""
    routes: dict[str, int] = {}
    alone: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in services:
        shape = shape_of(project, name, exposed=_exposed(engine.image(project.reference(name))))
        if shape.kind is not Kind.SERVING:
            left_out[name] = f"{shape.kind.value}: {shape.why}"
        elif shape.port is None:
            left_out[name] = "it is not known on which port it serves"
        elif others := _beside(project, name, shape.port):
            left_out[name] = f"it publishes {others} as well, which HTTP requests do not tell apart"
        else:
            routes[name] = shape.port
            if shape.alone:
                alone[name] = shape.alone[0]
    return EdgePlan(routes=routes, one_at_a_time=alone, left_out=left_out)


def _exposed(image: Json | None) -> tuple[int, ...]:
    ports = cast("Mapping[str, object]", (image or {}).get("Config", {}).get("ExposedPorts") or {})
    return tuple(int(port.split("/")[0]) for port in ports if port.endswith("/tcp"))


def _beside(project: Project, name: str, port: int) -> str:
    """What a service publishes that is not plain TCP on its one port."""
    ports = cast("Sequence[Json]", project.service(name).get("ports") or ())
    others = [f"{p['target']}/{p.get('protocol', 'tcp')}" for p in ports]
    return ", ".join(sorted({other for other in others if other != f"{port}/tcp"}))


def write_edge(stack: Stack, project: Project, plan: EdgePlan, *, into: Path) -> Edge:
    """Write the compose file `into` and what the edge starts from, with today's containers behind it.

    Raises Refused, nothing written, when the file is there already or no service can be taken.
    """
    if not plan.routes:
        raise Refused("no service of this project can stand behind an edge", hint="see the reasons above")
    if into.exists():
        raise Refused(f"{into} is there already", hint=f"less {into}")
    config = EdgeConfig(routes=plan.routes, one_at_a_time=tuple(plan.one_at_a_time))
    edge = Edge(config, stack)
    edge.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    today = {
        name: [str(project.service(name).get("container_name") or f"{project.name}-{name}-{n}")]
        for name in plan.routes
        for n in (1,)
    }
    edge.write(project, today)
    into.write_text(_compose_file(stack.config, project, edge, into), encoding="utf-8")
    return edge


def _compose_file(containers: ContainersConfig, project: Project, edge: Edge, into: Path) -> str:
    inside = publish_from(edge.routes(project))
    aliases = [name for service in inside for name in project.names(service) if service in edge.switchable]
    networks = sorted({n for service in inside for n in project.real_names("networks", service)})
    ports = [
        {**{key: value for key, value in port.items() if key != "mode"}, "target": inside[service]}
        for service in inside
        for port in cast("Sequence[Json]", project.service(service).get("ports") or ())
    ]
    tree = CommentedMap()
    tree["services"] = services = CommentedMap()
    services[edge.config.service] = {
        "image": f"${{LASTGOOD_EDGE_IMAGE:-{IMAGE}}}",
        "user": "0:0",
        "entrypoint": ["haproxy", "-db", "-f", f"{INSIDE}/{CONFIG_FILE}"],
        "restart": "unless-stopped",
        "ports": ports,
        "volumes": [{"type": "bind", "source": str(edge.stack.state / FOLDER), "target": INSIDE}],
        "networks": {network: {"aliases": aliases} for network in networks},
    }
    for service in inside:
        if project.service(service).get("ports"):
            services[service] = {"ports": _reset()}
    _comments(tree).yaml_set_start_comment(_HEADER.format(name=into.name))
    return _text(tree)


def _reset() -> CommentedSeq:
    """An empty list that takes the one of the file before away (compose-spec, "Reset value")."""
    nothing = CommentedSeq()
    nothing.yaml_set_ctag(_tag("!reset"))
    return nothing

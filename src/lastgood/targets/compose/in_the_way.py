"""What holds the name or the port of a service and is not ours to remove: found before anything is stopped.

Compose finds it only once the container that served is gone.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.reach import may_touch
from lastgood.targets.compose.stack import Stack
from lastgood.targets.docker_host import docker_host

Port = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """Every container of the engine, looked at once for all services: each look asks for each of them. own: of the
    project."""

    own: tuple[Container, ...]
    others: tuple[Container, ...]

    @staticmethod
    def at(engine: Engine) -> Present:
        """Look."""
        return Present(own=engine.of_project(), others=engine.others())


def in_the_way_of(there: Present, edge: Edge | None, project: Project, service: str, *, stack: Stack) -> Iterator[str]:
    """Name what holds them where there may be an edge: nothing is in the way of a service that switches, and the edge
    has the ports of one that is recreated behind it. Nor is any other service in the way that may be touched: until it
    is this one's turn it stops, or is recreated with ports of its own."""
    if edge is None or service not in edge.switchable:
        published = edge is None or service not in edge.config.one_at_a_time
        goes = may_touch(stack, {c.service for c in there.own if not c.is_retired})
        # a port on all addresses is told once for each kind of them
        found = in_the_way(there, project, service, stack=stack.name, published=published, goes=goes)
        yield from dict.fromkeys(found)


def in_the_way(
    there: Present,
    project: Project,
    service: str,
    *,
    stack: str,
    published: bool = True,
    goes: Collection[str] = (),
) -> Iterator[str]:
    """Name what holds the service's container name or its published ports, one line each. stack: the project as it is
    called here. published: whether it gets its ports, which an edge may have. goes: services of the project that are in
    nobody's way."""
    described = project.service(service)
    name = str(described.get("container_name") or f"{stack}-{service}-1")
    ports: list[Port] = [
        (str(p.get("host_ip") or ""), int(p["published"]), str(p.get("protocol") or "tcp"))
        for p in described.get("ports") or ()
        if published and str(p.get("published") or "").isdigit()
    ]
    strangers = [(other, f"not a part of project {stack}") for other in there.others]
    siblings = [(c, f"the service {c.service} of {stack}") for c in there.own if c.service not in (service, *goes)]
    for other, what in (*strangers, *siblings):
        if other.name == name:
            yield f"container {name} exists and is {what}"
        for theirs in other.ports:
            if any(_collide(ours, theirs) for ours in ports):
                yield f"port {theirs[1]} of {service} is held by container {other.name}, {what}"
    held = [port for container in (*there.others, *there.own) for port in container.ports]
    for ours in ports:
        if not any(_collide(ours, theirs) for theirs in held) and _engine_is_here() and _is_taken(*ours):
            yield f"port {ours[1]} of {service} is held by a process of this host"


def _collide(one: Port, other: Port) -> bool:
    """Whether two ports of this host cannot both be had: the same number and protocol on the same address, or one of
    them on all addresses."""
    every = {"", "0.0.0.0", "::"}  # noqa: S104 # compared, not listened on
    return one[1:] == other[1:] and (one[0] == other[0] or bool({one[0], other[0]} & every))


def _engine_is_here() -> bool:
    """Whether the ports of this host are those of the engine's."""
    return (docker_host(os.environ) or "unix://").startswith("unix://")


def _is_taken(address: str, port: int, protocol: str) -> bool:
    """Try it. What may not be tried, as a low port without the right to it, counts as free: compose will see."""
    udp = protocol == "udp"
    with socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    ) as probe:
        if not udp:
            # as the engine does: connections that are closing hold nothing up
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False

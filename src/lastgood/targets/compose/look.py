"""Who is who among a project's containers: what serves, what stands beside, what is never touched."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lastgood.core.errors import Retryable
from lastgood.core.facts import InstanceFacts
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine
from lastgood.targets.compose.project import LABEL_CANDIDATE
from lastgood.targets.compose.reach import may_touch
from lastgood.targets.compose.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """serving: get traffic. beside: run without any, or were made and never started. stateful: never touched.
    stopped: served a release once, or never came so far, and are kept."""

    serving: tuple[Container, ...]
    beside: tuple[Container, ...]
    stateful: tuple[Container, ...]
    stopped: tuple[Container, ...] = ()

    def facts(self, containers: tuple[Container, ...], *, switchable: frozenset[str]) -> tuple[InstanceFacts, ...]:
        """What the core needs to know. A container that compose started talks to whoever bears a name just then: it is
        bound to no release."""
        return tuple(
            replace(c.facts(), release="") if c.service in switchable and not is_twin(c) else c.facts()
            for c in containers
        )


def is_twin(container: Container) -> bool:
    """Whether it was made to stand beside others of its service."""
    return LABEL_CANDIDATE in container.labels


def is_in_front(engine: Engine, edge: Edge) -> bool:
    """Whether the requests go through the edge: not yet, where it was set up and never started, so that the services
    have their ports still. One that was taken away again has left them without."""
    if engine.has(edge.config.service):
        return True
    return not any(c.has_ports for c in engine.of_project() if c.service in edge.config.routes)


def look(stack: Stack, engine: Engine, edge: Edge | None) -> Look:
    """Look at the project. Raises Retryable when the engine or the edge does not answer."""
    composed, twins = engine.of_project(), engine.candidates()
    leftovers = tuple(c for c in composed if c.is_leftover)
    retired = tuple(c for c in composed if c.is_retired)
    others = tuple(c for c in composed if c not in retired)
    services = may_touch(stack, {c.service for c in others})
    stateful = tuple(c for c in others if c.service not in services)
    own = tuple(c for c in others if c.service in services and c not in leftovers)
    if edge is None:
        return Look(serving=own, beside=(*twins, *leftovers), stateful=stateful, stopped=retired)
    if not any(c.service == edge.config.service for c in composed):
        # beside containers of a release, all of `up` would start compose's own copies of them
        start = ("up", "--detach", "--no-deps", edge.config.service) if twins else ()
        raise Retryable("there is no edge: nothing of it was started", delay_s=2.0, hint=stack.by_hand(*start))
    named = edge.serving()
    routed = [c for c in (*own, *twins) if c.service in named]
    serving = tuple(c for c in own if c.service not in named) + tuple(c for c in routed if c.name in named[c.service])
    idle = [c for c in routed if c not in serving and (is_twin(c) or c.service in edge.switchable)]
    unknown = [t for t in twins if t.service not in named]
    # what cannot stand twice has a twin only for the gate, which never serves, up or not
    kept = [c for c in idle if not c.is_up and not c.is_made_only and c.service in edge.switchable]
    return Look(
        serving=serving,
        beside=(*(c for c in idle if c not in kept), *unknown, *leftovers),
        stateful=stateful,
        stopped=(*kept, *retired),
    )

"""Stopping a service that the release which goes on does not have: nobody would look after what it still answers."""

from __future__ import annotations

from datetime import timedelta

from lastgood.core.errors import Refused
from lastgood.core.plan import Retire
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine, at_once, rounds_of
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.look import is_twin, look
from lastgood.targets.compose.stack import Stack
from lastgood.targets.docker_engine import after_a_change


def retire(
    stack: Stack, engine: Engine, edge: Edge | None, kept: KeptRelease, action: Retire, *, deadline_s: float
) -> None:
    """Let every container of the service answer its last requests, and stop it. It is kept; its restart policy goes
    first, so that no engine brings it back. Raises Refused when `kept` has the service after all, OutcomeUnknown from
    its first change on."""
    if kept.service(action.service) is not None:
        raise Refused(f"{action.service} is a part of {kept.name}, and goes on", hint="lastgood plan")
    seen = look(stack, engine, edge)
    own = [c for c in (*seen.serving, *seen.beside) if c.service == action.service]

    def end(container: Container) -> None:
        if is_twin(container):
            engine.stop(container.id, stop_s=stack.config.stop)
        else:
            engine.retire(container, stop_s=stack.config.stop)

    with after_a_change(f"stopping {action.service}"):
        at_once(lambda c: engine.start_again(c.id, "no"), own)
        if edge is not None and action.service in edge.config.routes:
            edge.move(stack.shelf.project(kept), {action.service: {}})
            drain_s = min(edge.config.drain, deadline_s - stack.config.stop * rounds_of(own))
            edge.drain((c.name for c in own), ends_at=stack.clock.now() + timedelta(seconds=max(drain_s, 0.0)))
        at_once(end, own)
        if edge is not None:
            edge.forget(c.name for c in own)

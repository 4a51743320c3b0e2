"""Moving the traffic of a whole release at the edge, and what becomes of the release that served before.

Which rung that is was decided at the gate: the instances that the traffic moves to ran already (L0), were stopped (L1),
or were started from the held image (L2). The move itself is the same, and takes no request with it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from lastgood.core.config import Standby
from lastgood.core.errors import Refused
from lastgood.core.plan import ClearCandidates, PassGate, Settle, Switch
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine, at_once, rounds_of
from lastgood.targets.compose.gate import pass_gate
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.look import Look, is_twin, look
from lastgood.targets.compose.project import LABEL_RELEASE, LABEL_RESTART, Project
from lastgood.targets.compose.rung import stands
from lastgood.targets.compose.stack import Stack


def switch(stack: Stack, engine: Engine, edge: Edge, kept: KeptRelease, action: Switch, *, deadline_s: float) -> None:
    """Send the requests of every service of `action` to the release's healthy instances. Raises Refused or Retryable
    before anything moved; OutcomeUnknown when the edge did not say that it did, or the engine what it did before."""
    ends_at = stack.clock.now() + timedelta(seconds=deadline_s)
    seen, project = look(stack, engine, edge), stack.shelf.project(kept)
    ready = _ready(engine, edge, seen, project, kept.name, action)
    if down := [service for service, found in ready.items() if not found]:
        there = {c.service for c in (*seen.beside, *seen.stopped, *seen.serving) if stands(c, c.service, kept.name)}
        if gone := [service for service in down if service not in there]:
            raise Refused(f"no healthy {gone[0]} of {kept.name} stands beside", hint="lastgood rollback")
        # The engine was started again since they passed the gate, and starts by itself only what serves already; or one
        # died since, and Docker has not noticed.
        gate = PassGate(release=action.release, artifacts=action.artifacts)
        pass_gate(stack, engine, edge, kept, gate, deadline_s=deadline_s)
        ready = _ready(engine, edge, look(stack, engine, edge), project, kept.name, action)
    if down := [service for service, found in ready.items() if not found]:
        raise Refused(f"not all of {down[0]} of {kept.name} stands beside and is healthy", hint="lastgood rollback")
    to = edge.admit(ready, ends_at=ends_at)
    next_ones = [container for found in ready.values() for container in found]
    at_once(lambda c: engine.start_again(c.id, c.labels.get(LABEL_RESTART, "no")), next_ones)
    edge.move(project, to)


def _ready(
    engine: Engine, edge: Edge, seen: Look, project: Project, release: str, action: Switch
) -> dict[str, list[Container]]:
    """The instances of the release that can take each service's requests now, as many as it asks for: one that was sick
    may be well again since its successor was made. None of a service where they are fewer, or one does not listen."""
    there, asked = (*seen.beside, *seen.serving), {s: project.instances(s) or 1 for s, _ in action.artifacts}
    found = {
        service: [c for c in there if stands(c, service, release) and c.image == artifact and c.facts().serves]
        for service, artifact in action.artifacts
    }
    whole = {service: own[: asked[service]] for service, own in found.items() if len(own) >= asked[service]}
    able = {service for service, own in whole.items() if all(edge.listens(engine, service, c) for c in own)}
    return {service: whole[service] if service in able else [] for service in found}


def settle(stack: Stack, engine: Engine, edge: Edge, action: Settle, *, deadline_s: float) -> None:
    """Let what does not serve answer its last requests and stop it; keep the standby as the configuration says."""
    began = stack.clock.now()
    edge.write_down()  # before any of those ends that an edge which is started again would send requests to
    seen = look(stack, engine, edge)
    standby = [c for c in seen.beside if is_twin(c) and c.labels.get(LABEL_RELEASE) == action.standby != ""]
    over = [c for c in seen.beside if c not in standby]
    if not may_run_beside(engine, edge, standby):
        over += standby
    drain_s = min(edge.config.drain, deadline_s - stack.config.stop * rounds_of(over))
    ends_at = began + timedelta(seconds=max(drain_s, 0.0))
    _end(stack, engine, edge, over, ends_at=ends_at)
    if edge.config.standby is Standby.NONE:
        for container in standby:
            engine.remove(container.id)


def clear_candidates(stack: Stack, engine: Engine, edge: Edge | None, action: ClearCandidates) -> None:
    """Remove what the gate made, and the containers with which compose was interrupted; keep the standby as the
    configuration says. Touches nothing that serves, and not what somebody started beside an edge."""
    if edge is not None:
        edge.write_down()  # as in `settle`
    beside = look(stack, engine, edge).beside
    standby = [c for c in beside if _stands_ready(c, edge, action.standby)]
    over = [c for c in beside if c not in standby and (is_twin(c) or c.is_leftover)]
    for container in over:
        engine.remove(container.id)
    if edge is None:
        return
    ready = may_run_beside(engine, edge, standby)
    for container in () if ready else standby:
        if edge.config.standby is Standby.NONE:
            engine.remove(container.id)
        else:
            engine.stop(container.id, stop_s=stack.config.stop)
    edge.forget(c.name for c in (over if ready else (*over, *standby)))


def _stands_ready(container: Container, edge: Edge | None, release: str) -> bool:
    switches = edge is not None and container.service in edge.switchable
    return switches and container.facts().running and stands(container, container.service, release)


def may_run_beside(engine: Engine, edge: Edge, standby: list[Container]) -> bool:
    """Whether these containers of the release before may go on running while the new one is watched."""
    if edge.config.standby is not Standby.RUNNING:
        return False
    most = edge.config.standby_memory
    return most is None or sum(engine.memory_of(container.id) for container in standby) <= most


def _end(stack: Stack, engine: Engine, edge: Edge, over: list[Container], *, ends_at: datetime) -> None:
    at_once(lambda c: engine.start_again(c.id, "no"), over)
    edge.drain((c.name for c in over), ends_at=ends_at)

    def end(container: Container) -> None:
        if container.is_leftover or container.is_made_only or container.service not in edge.switchable:
            engine.remove(container.id)
        else:
            engine.stop(container.id, stop_s=stack.config.stop)

    at_once(end, over)
    edge.forget(c.name for c in over)

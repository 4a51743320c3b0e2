"""Rungs L4 and L3: recreate one service in its place, and no other.

The outage is its stop, its start and its boot; behind an edge (L3) requests wait for so long instead of failing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Final

from lastgood.core.errors import LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import Health, InstanceFacts
from lastgood.core.plan import Serve, runs
from lastgood.targets.compose.edge import RESOLVED_S, Edge
from lastgood.targets.compose.engine import Container, Engine
from lastgood.targets.compose.gate import SETTLE_S
from lastgood.targets.compose.images import ensure_image
from lastgood.targets.compose.in_the_way import Present, in_the_way
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.obstacles import missing_files
from lastgood.targets.compose.project import LABEL_CONFIG, LABEL_RELEASE, Json, Project, as_file
from lastgood.targets.compose.reach import may_touch
from lastgood.targets.compose.stack import POLL_S, Stack, masker_of
from lastgood.targets.docker_engine import after_a_change

_LOG_LINES: Final = 50


def recreate_behind(
    stack: Stack, engine: Engine, edge: Edge, kept: KeptRelease, action: Serve, *, deadline_s: float
) -> None:
    """Rung L3: recreate a service of which no second copy may run, while the edge holds its requests.

    Raises as `recreate` does, Refused before anybody waits.
    """
    _, model = _ready(stack, engine, kept, action, published=False)
    # a full disk, too, is found now
    stack.shelf.lay_beside(action.release, f"start-{action.service}.json", as_file(model))
    own = [c.name for c in engine.of_project() if c.service == action.service]
    ends_at = stack.clock.now() + timedelta(seconds=deadline_s)
    with _held(stack, engine, edge, kept, action):
        edge.drain(own, ends_at=stack.clock.now() + timedelta(seconds=edge.config.drain))
        left_s = (ends_at - stack.clock.now()).total_seconds()
        recreate(stack, engine, kept, action, deadline_s=left_s, published=False)


@contextlib.contextmanager
def _held(stack: Stack, engine: Engine, edge: Edge, kept: KeptRelease, action: Serve) -> Generator[None]:
    """Let the requests of a service wait, and then go to the containers that it has by then, if it has any: whatever
    comes of it, and also where the edge did not say whether they wait. Raises Refused and Retryable only where they go
    on."""
    waits_on = f"the requests of {action.service} of {action.release} may still wait"

    def go_on() -> None:
        with stack.alone(deadline_s=stack.config.stop + stack.config.boot):
            pass  # where this is interrupted, compose works on, and who is up now may be about to stop
        own = [c for c in engine.of_project() if c.service == action.service and c.is_up]
        if own:
            ends_at = stack.clock.now() + timedelta(seconds=RESOLVED_S)
            edge.move(stack.shelf.project(kept), edge.admit({action.service: own}, ends_at=ends_at))

    try:
        edge.hold(action.service)
    except OutcomeUnknown:
        with contextlib.suppress(LastgoodError):
            go_on()
        raise
    try:
        yield
    except (Refused, Retryable) as error:
        try:
            go_on()
        except LastgoodError:
            raise OutcomeUnknown(f"{waits_on}: {error.message}", hint=error.hint) from error
        raise
    except BaseException:
        # why it failed is what counts, also where an engine that is away cannot say who is there
        with contextlib.suppress(LastgoodError):
            go_on()
        raise
    with after_a_change(waits_on):
        go_on()


def recreate(
    stack: Stack, engine: Engine, kept: KeptRelease, action: Serve, *, deadline_s: float, published: bool = True
) -> None:
    """Make `action.service` run from its image with the release's own configuration, and wait until it is healthy, no
    longer than it may take to stop and to boot.

    published: with its ports, which an edge may have.

    Raises Refused and Retryable before anything is stopped; OutcomeUnknown when the service does not come up, or nobody
    can say; NeedsHuman when a container of a service that is never touched is gone afterwards.
    """
    ends_at = stack.clock.now() + timedelta(seconds=min(deadline_s, stack.config.stop + stack.config.boot))
    project, model = _ready(stack, engine, kept, action, published=published)
    others = untouchable(stack, engine)
    present = [c for c in engine.of_project() if c.service == action.service]
    for leftover in (c for c in present if c.is_leftover):
        engine.remove(leftover.id)
    there = [c.facts() for c in present if not c.is_leftover and not c.is_retired]
    # What is wanted runs already and is sick: compose would see nothing to do. What was retired it would start as that
    # is, under its other name, and without its restart policy.
    anew = any(c.is_retired for c in present) or any(i.health is Health.UNHEALTHY and runs(action, i) for i in there)
    # A number that somebody gave by hand (`up --scale`) is in no file: without a word compose would go back to one.
    by_hand = len(there) if project.instances(action.service) is None and len(there) > 1 else None
    stack.start(project, action.release, action.service, model, deadline_s=deadline_s, anew=anew, instances=by_hand)
    with after_a_change(f"recreating {action.service} of {action.release}"):
        if gone := others.keys() - untouchable(stack, engine).keys():
            names = ", ".join(sorted(others[i] for i in gone))
            raise NeedsHuman(
                f"while {action.service} was recreated, the container of {names} went away", hint="docker ps"
            )
        # where compose took all the time, it runs for a moment only
        left = max(ends_at - stack.clock.now(), timedelta(seconds=SETTLE_S))
        _wait(stack, engine, project, action, left)


def _ready(stack: Stack, engine: Engine, kept: KeptRelease, action: Serve, *, published: bool) -> tuple[Project, Json]:
    """The release's configuration, and the model that starts the service from it. Raises Refused where something is
    missing or in the way."""
    project, record = stack.shelf.project(kept), kept.planned(action.service, action.artifact, action.config_hash)
    ensure_image(engine, record)
    if missing := next(missing_files(project, action.service), ""):
        raise Refused(missing, hint="lastgood doctor")
    if held := next(in_the_way(Present.at(engine), project, action.service, stack=stack.name, published=published), ""):
        raise Refused(held, hint="docker ps --all")
    model = project.to_start(
        action.service,
        image=record.held_as,
        labels={LABEL_RELEASE: action.release, LABEL_CONFIG: record.config_hash},
        networks=engine.networks(),
        volumes=engine.volumes(),
        published=published,
    )
    return project, model


def untouchable(stack: Stack, engine: Engine) -> dict[str, str]:
    """Container ID and service of everything in the project that a rollback must leave alone."""
    own = [c for c in engine.of_project() if not c.is_retired]
    ours = may_touch(stack, {c.service for c in own})
    return {c.id: c.service for c in own if c.service not in ours}


def _wait(stack: Stack, engine: Engine, project: Project, action: Serve, left: timedelta) -> None:
    began = stack.clock.now()
    while True:
        containers = [c for c in engine.of_project() if c.service == action.service and not c.is_leftover]
        instances = [c.facts() for c in containers]
        wanted = bool(instances) and all(i.serves and runs(action, i) for i in instances)
        if wanted and all(_has_settled(c, stack.clock.now()) for c in containers):
            return
        ended = next((said for i in instances if (said := _why_down(i))), "")
        if not ended and stack.clock.now() - began >= left:
            restarted = next((said for i in instances if (said := _what_is_hidden(i))), "")
            ended = f"is not healthy {left.total_seconds():.0f} s after its start{restarted}"
        if ended:
            said = masker_of(project).tail(_last_words(engine, containers))
            raise OutcomeUnknown(
                f"{action.service} of {action.release} {ended}; it said: {said or 'nothing'}", hint="lastgood status"
            )
        stack.clock.sleep(POLL_S)


def _has_settled(container: Container, now: datetime) -> bool:
    """Of one without a health check running is all that can be seen, and what cannot start runs for a moment too."""
    return container.facts().health is not Health.NONE or now - container.started_at >= timedelta(seconds=SETTLE_S)


def _why_down(instance: InstanceFacts) -> str:
    if instance.exit_code is not None:
        return f"exited with {instance.exit_code}{_what_is_hidden(instance)}"
    return f"is unhealthy{_what_is_hidden(instance)}" if instance.health is Health.UNHEALTHY else ""


def _what_is_hidden(instance: InstanceFacts) -> str:
    """How it ended where a restart policy has started it again by now, so that no exit code says it."""
    killed = ", out of memory" if instance.oom_killed else ""
    return f"{killed}, restarted {instance.restarts} times" if instance.restarts else killed


def _last_words(engine: Engine, containers: list[Container]) -> str:
    return "\n".join(engine.logs(c.id, lines=_LOG_LINES) for c in containers)

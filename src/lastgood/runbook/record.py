"""Recording what serves, when somebody else's tool deployed it, and a person's word that it is good."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Final

from lastgood.core.deploying import not_as_recorded, only_barred
from lastgood.core.errors import Refused
from lastgood.core.history import History
from lastgood.core.ports import Right
from lastgood.core.record import DeploymentEnded, DeploymentStarted, ReleaseCompleted, ReleaseJudged, ReleaseRecorded
from lastgood.core.release import NAME_GRAMMAR, Deployment, Release, Standing
from lastgood.core.report import TerminalState
from lastgood.runbook.holding import put_back, start_again, warn
from lastgood.runbook.rooms import Rooms

_STEM: Final = 56
"""Letters of a name to which a number is added: it stays a name (NAME_GRAMMAR)."""


def record(rooms: Rooms, name: str) -> Release:
    """Describe and hold what serves now, as release `name`. Needs the RUN lease; takes PREPARE.

    Raises Refused, nothing changed, when the name is taken by something else or nothing serves.
    """
    history = rooms.memory.history()
    if not NAME_GRAMMAR.fullmatch(name):
        raise Refused(f"{name!r} is not a release name", hint="lastgood record --release NAME")
    if (run := history.open_run) is not None:
        raise Refused(f"{run.plan.purpose.value} {run.started.run} did not finish", hint="lastgood rollback")
    with rooms.memory.journal.claim(rooms.who, Right.PREPARE):
        return _record(rooms, history, name)


def _record(rooms: Rooms, history: History, name: str) -> Release:
    release = rooms.containers.describe_running(name, rooms.clock.now())
    if rooms.database:
        shipped = rooms.database.ships(name)
        release = replace(release, migrations=shipped.migrations, statements=shipped.statements)
    fingerprint = rooms.database.observe().fingerprint if rooms.database else ""
    frontend = rooms.frontend.observe().production if rooms.frontend else ""
    known = history.releases.get(name)
    if known and known.release.content != release.content:
        raise Refused(
            f"{name} was recorded with other content before",
            hint=f"lastgood record --release {free_name(rooms, name)}",
        )
    warn(rooms, release)
    if known is None or known.let_go:
        rooms.memory.note(ReleaseRecorded(release=release))
    deployment = Deployment(
        id=f"d{len(history.deployments) + 1}",
        release=name,
        previous=history.serving or None,
        started_at=rooms.clock.now(),
    )
    if (under := history.open_deployment) is not None:
        rooms.memory.note(
            DeploymentEnded(
                deployment=under.deployment.id,
                terminal=TerminalState.SUPERSEDED,
                sentence=f"{name} was recorded as what serves",
            )
        )
    rooms.memory.note(DeploymentStarted(deployment=deployment, serving=True))
    rooms.memory.note(
        ReleaseCompleted(
            release=name,
            fingerprint=fingerprint,
            frontend=frontend,
            says=rooms.named(),
        )
    )
    return release


def record_good(rooms: Rooms, name: str, *, why: str, override: bool = False) -> bool:
    """Make a release good, on a person's word; return whether what serves was recorded for that. It is not where it was
    recorded by that name already, nor where the name is that of an earlier release, which does not serve now: two may
    have the same containers, and to record the earlier one would forget its frontend and its schema. override: also
    what only a barred release has. Raises Refused as `record` and `vouch` do, before anything is recorded."""
    history = rooms.memory.history()
    known, serving = history.releases.get(name), history.releases.get(history.serving)
    new = name != history.serving
    if new:
        facts = rooms.containers.observe()
        past_us = serving is None or bool(not_as_recorded(serving.release, facts))
        new = known is None or (past_us and not not_as_recorded(known.release, facts))
        if new and not override:
            _check_not_only_barred(history, name, ((i.service, i.artifact) for i in facts.serving))
    if new:
        with rooms.memory.journal.claim(rooms.who):
            record(rooms, name)
    vouch(rooms, name, why=why, override=override)
    return new


def free_name(rooms: Rooms, like: str) -> str:
    """A name for a release, like another one's, that stands for nothing yet."""
    taken = rooms.memory.history().releases.keys() | rooms.containers.kept()
    if like not in taken:
        return like
    return next(name for number in count(2) if (name := f"{like[:_STEM]}-{number}") not in taken)


def vouch(rooms: Rooms, name: str, *, why: str, override: bool = False) -> None:
    """Make a release good on a person's word, and end its watch. Raises Refused when it is unknown, was rolled back, or
    serves and is sick, or where something else than what was recorded serves in its place: that would be what went by
    a good release's name. Also where it was recorded past lastgood and only a barred one has what it runs, but for
    override: deployed by lastgood it went through the gate, and somebody knew what they deployed."""
    history = rooms.memory.history()
    if name not in history.releases:
        known = ", ".join(history.releases) or "none"
        raise Refused(f"release {name!r} not found; known: {known}", hint="lastgood record --good")
    if history.releases[name].standing is Standing.BARRED:
        raise Refused(f"{name} is barred ({history.releases[name].judged_by})", hint="lastgood releases")
    if history.releases[name].let_go:
        raise Refused(f"{name} is not kept any more: {history.releases[name].let_go}", hint="lastgood releases")
    if name == history.serving:
        _check_it_serves(rooms, history, name)
    newest = next((d for d in reversed(history.deployments.values()) if d.deployment.release == name), None)
    if newest is not None and newest.by_others and not override:
        services = history.releases[name].release.services
        _check_not_only_barred(history, name, ((s.name, s.artifact) for s in services))
    rooms.memory.note(ReleaseJudged(release=name, good=True, by=rooms.who, why=why))
    under = history.open_deployment
    if under and under.deployment.release == name and history.open_run is None:
        rooms.memory.note(
            DeploymentEnded(
                deployment=under.deployment.id,
                terminal=TerminalState.HEALTHY_KEPT,
                sentence=f"vouched for by {rooms.who}",
            )
        )


def _check_it_serves(rooms: Rooms, history: History, name: str) -> None:
    facts = rooms.containers.observe()
    if down := [i for i in facts.serving if not i.serves]:
        sick = ", ".join(i.service for i in down)
        raise Refused(f"{sick} of {name} does not serve, so nobody can vouch for it", hint=start_again(history, down))
    # while a run is open two releases may serve, and nobody deployed past lastgood
    others = () if history.open_run else not_as_recorded(history.releases[name].release, facts)
    if others:
        raise Refused(
            f"{', '.join(others)}: not what was recorded as {name}",
            hint=f"lastgood record --good --release {free_name(rooms, name)}",
        )


def _check_not_only_barred(history: History, name: str, serving: Iterable[tuple[str, str]]) -> None:
    """A habitual `docker compose up` brings back what was rolled back, and one word would make it a target."""
    if found := only_barred(history, serving):
        even_so = f"lastgood record --good --release {name} --even-if-barred"
        back = put_back(history)
        raise Refused(
            f"{name} was not made good: {', '.join(found)}, which was rolled back",
            hint=f"{back}   (or, if that was not at fault: {even_so})" if back else even_so,
        )

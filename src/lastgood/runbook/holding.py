"""Holding what a rollback would need: whether every way back is still whole, and letting go of what need not be kept.

Letting go is journaled first: from then on the release is no target, whatever is left of it. What could not be removed
is tried again after the next deploy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lastgood.core.errors import LastgoodError
from lastgood.core.facts import ContainerFacts, InstanceFacts
from lastgood.core.history import History, ReleaseHistory
from lastgood.core.record import ReleaseLetGo
from lastgood.core.release import Missing, Release
from lastgood.core.retention import needed, to_let_go
from lastgood.runbook.rooms import Rooms
from lastgood.runbook.tell import tell

CHECKED_S: Final = 3600.0
"""How often everything is looked through that the ways back need."""
Found = tuple[tuple[Release, tuple[Missing, ...]], ...]
"""What each release lacks."""


def ways_back(history: History) -> tuple[ReleaseHistory, ...]:
    """Return the good releases that are kept, newest first."""
    return tuple(known for known in reversed(history.releases.values()) if known.is_way_back)


def back_from(history: History, bad: str) -> str:
    """What a person types to go back from a release that is bad. By name: without one it would undo a deploy that lies
    at its gate, and leave what is bad. Empty where there is nothing to go back to."""
    good = history.last_good(before=bad)
    return f"lastgood rollback {good.release.id}" if good else ""


def put_back(history: History) -> str:
    """What a person types to have what serves stand as it was recorded: a rollback to itself. Where it is not proved
    good it is no target, and they leave it; empty where there is nothing to go back to."""
    serving = history.releases.get(history.serving)
    if serving is not None and serving.is_way_back:
        return f"lastgood rollback {history.serving}"
    return back_from(history, history.serving)


def start_again(history: History, down: Iterable[InstanceFacts]) -> str:
    """What a person types where these instances of what serves do not: a rollback to itself starts them anew. What is
    not proved good is no target: it is deployed again where something stopped, and left where it runs and is sick."""
    serving, name = history.releases.get(history.serving), history.serving
    if history.open_run is not None:
        return "lastgood rollback"
    if serving is None:
        return "lastgood deploy --first"
    if serving.is_way_back:
        return f"lastgood rollback {name}"
    if all(i.running for i in down) and (back := back_from(history, name)):
        return back
    alone = not any(known.release.id != name for known in ways_back(history))
    return f"lastgood deploy --release {name}{' --first' if alone else ''}"


def warn(rooms: Rooms, release: Release) -> None:
    """Say what a person should know of a release while it is recorded."""
    for line in release.unresolved:
        rooms.story(f"  note: {release.id} cannot be built again from its commit: {line}")


def look_through(rooms: Rooms, releases: tuple[Release, ...]) -> Found:
    """Hold again what lost its tags, and return what each release lacks all the same, in the order of `releases`.

    A cleaning job takes tags off images that are in use as well; what is held again before the next one outlives it.
    """
    found: list[tuple[Release, tuple[Missing, ...]]] = []
    for release in releases:
        rooms.containers.hold(release)
        found.append((release, rooms.containers.missing(release)))
    return tuple(found)


def tell_what_is_missing(rooms: Rooms, found: Found, *, deployment: str, told: str = "") -> None:
    """Tell the team of each way back that lacks something, once in a deployment, with what to do. told: the release of
    which they know."""
    for release, missing in found:
        if missing and release.id != told:
            how = "is no way back any more" if any(m.lost for m in missing) else "is a way back, and not safe"
            tell(
                rooms,
                "",
                f"👁 {release.id} {how}: {'; '.join(m.what for m in missing)}. Next: {missing[0].fix}",
                event_id=f"{deployment}-lacks-{release.id}",
            )


def asked_beside(containers: ContainerFacts) -> tuple[str, str]:
    """Say what runs beside an edge and is of no release, and what to type; both empty when nothing does. Compose wakes
    its old copies with everything else that it starts again, and siblings outside of a release are answered by them."""
    running = [i for i in containers.strays if i.running]
    if not running:
        return "", ""
    services = ", ".join(sorted({i.service for i in running}))
    said = f"{services} of no release: started past lastgood, and asked by name inside of the stack"
    return said, f"docker stop {' '.join(i.instance[:12] for i in running)}"


def tell_who_is_beside(rooms: Rooms, facts: ContainerFacts) -> None:
    """Tell the team of copies that run beside an edge and are of no release, once in a deployment."""
    said, stop = asked_beside(facts)
    if said:
        under = next(reversed(rooms.memory.history().deployments), "")
        services = "-".join(sorted({i.service for i in facts.strays if i.running}))
        tell(rooms, "", f"👁 {said}. Next: {stop}", event_id=f"{under}-beside-{services}")


def let_go_of_old(rooms: Rooms) -> None:
    """Let go of the releases that need not be kept, and of those that nothing can bring back. Needs the RUN lease, and
    the PREPARE lease: a release that is being prepared is none that is known yet.

    Never raises for the engine's sake: what serves is not touched by this, and nobody waits for it.
    """
    try:
        _judge(rooms)
        _remove(rooms)
    except LastgoodError as error:
        rooms.story(f"  old releases could not be let go of now: {error.message}")


def let_go_of_unrecorded(rooms: Rooms, release: Release) -> None:
    """Let go of what was prepared and then refused. Needs the PREPARE lease. Never raises: why it was refused is what
    counts."""
    try:
        rooms.containers.let_go(release)
    except LastgoodError as error:
        rooms.story(f"  something of {release.id} is left, which was not recorded: {error.message}")


def _judge(rooms: Rooms) -> None:
    history, retain = rooms.memory.history(), rooms.config.retain
    for name in to_let_go(history, retain=retain):
        rooms.memory.note(ReleaseLetGo(release=name, why=f"not among the newest {retain}"))
    history = rooms.memory.history()
    kept = tuple(known.release for known in ways_back(history))
    for release, missing in look_through(rooms, kept):
        lost = [m.what for m in missing if m.lost and not m.by_config]
        if lost and release.id not in needed(history):
            rooms.memory.note(ReleaseLetGo(release=release.id, why="; ".join(lost)))


def _remove(rooms: Rooms) -> None:
    here = rooms.containers.kept()
    for known in rooms.memory.history().releases.values():
        if not known.let_go or known.release.id not in here:
            continue
        try:
            rooms.containers.let_go(known.release)
        except LastgoodError as error:
            rooms.story(f"  {known.release.id} is not kept any more, but something of it is left: {error.message}")
        else:
            rooms.story(f"  {known.release.id} is not kept any more: {known.let_go}")

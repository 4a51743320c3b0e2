"""Learning which frontend deployment belongs to a release: the push that made it may still be building when it serves.

Nothing waits for it but a deploy that is not watched: the first minutes of a bad release are not spent on another host.
"""

from __future__ import annotations

from typing import Final

from lastgood.core.errors import LastgoodError
from lastgood.core.facts import FrontendFacts
from lastgood.core.history import DeploymentHistory
from lastgood.core.record import ReleaseCompleted
from lastgood.runbook.rooms import Rooms

WAIT_S: Final = 300.0
SEEN_S: Final = 10.0
"""A push shows up at the frontend host within seconds; a commit it does not know by then did not change the
frontend."""
PAUSE_S: Final = 1.0


def learn_frontend(rooms: Rooms, under: DeploymentHistory, facts: FrontendFacts | LastgoodError) -> bool:
    """Note the frontend deployment of a release when it is known: its own, or the one that serves when it is
    unchanged. facts: of just now, or why nobody could look. Returns False while it is worth looking again."""
    release = rooms.memory.history().releases[under.deployment.release]
    if release.frontend:
        return True
    waited_s = (rooms.clock.now() - under.deployment.started_at).total_seconds()
    if isinstance(facts, LastgoodError):
        if waited_s >= WAIT_S:
            rooms.story(f"  frontend: could not look ({facts.message})")
        return waited_s >= WAIT_S
    commit = release.release.commit
    own = next((d for d in facts.deployments if commit and d.commit == commit), None)
    if own and own.id == facts.production:
        said = f"{own.id} is production"
    elif own is None and waited_s >= SEEN_S:
        said = f"unchanged ({facts.production})"
    elif own is not None and (own.state in ("ERROR", "CANCELED") or waited_s >= WAIT_S):
        said = f"{own.id} is {own.state}; {facts.production} stays production"
    else:
        return False
    rooms.memory.note(
        ReleaseCompleted(release=release.release.id, fingerprint=release.fingerprint, frontend=facts.production)
    )
    rooms.story(f"  frontend  {said}")
    return True


def await_frontend(rooms: Rooms, deployment: str) -> None:
    """Look until it is known, five minutes at most."""
    if rooms.frontend is None:
        return
    while True:
        facts: FrontendFacts | LastgoodError
        try:
            facts = rooms.frontend.observe()
        except LastgoodError as error:
            facts = error
        if learn_frontend(rooms, rooms.memory.history().deployments[deployment], facts):
            return
        rooms.clock.sleep(PAUSE_S)

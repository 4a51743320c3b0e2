"""Which release each service answers from, as far as the journal tells: for the time in which that is not all of one.

A step that moves traffic has an intent, and then an answer; between the two, or where the answer was lost, a service
may answer from either release. What a run that stopped half-way left stays so until a later one is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lastgood.core.plan import Plan, Purpose, Role, Seen
from lastgood.core.record import Event, RunEnded, StepFailed, StepSeen, StepStarted
from lastgood.core.release import Release
from lastgood.core.report import TerminalState

NOTHING = ""
"""In the place of a release, where a service did not serve before."""


@dataclass(slots=True)
class Answering:
    """services: the releases from which each may answer, the older first; one where that is known. Empty: each answers
    from the release that serves."""

    services: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    _before: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def releases(self) -> tuple[str, ...]:
        """The one release from which every service answers; those that it may be; empty where it differs between
        services."""
        found = set(self.services.values())
        return found.pop() if len(found) == 1 else ()

    def take(self, plan: Plan, event: Event, serving: Release | None) -> None:
        """Take what a run says of one of its steps. serving: what served, whole, before anything moved."""
        if not isinstance(event, StepStarted | StepSeen | StepFailed):
            return
        moves = next((step.serves for step in plan.steps if step.name == event.step), ())
        names = [service for service, _ in moves]
        if not names:
            return
        match event:
            case StepStarted():
                self._begin(names, plan.to_release, serving)
            case StepSeen(seen=Seen.DONE):
                self.services |= dict.fromkeys(names, (plan.to_release,))
                self._before = {}
            case StepFailed(needs_human=False):
                self.services |= self._before
                self._before = {}
            case _:  # looked at, and not done or not to be told: something of it may have been
                self._before = {}
        if serving is not None and self.releases == (serving.id,):
            self.services = {}

    def _begin(self, names: list[str], to: str, serving: Release | None) -> None:
        if not self.services and serving is not None:
            self.services = {service.name: (serving.id,) for service in serving.services}
        was = {name: self.services.get(name, (NOTHING,)) for name in names}
        self._before = {name: releases for name, releases in was.items() if to not in releases}
        self.services |= {name: (*releases, to) for name, releases in self._before.items()}

    def end(self, plan: Plan, ended: RunEnded) -> None:
        """Take the end of a run: what was carried out, or was seen to serve, serves whole."""
        went_back = ended.terminal in (TerminalState.ROLLED_BACK_VERIFIED, TerminalState.ROLLED_BACK_DEGRADED)
        carried_out = plan.purpose is Purpose.DEPLOY and not ended.stopped
        seen = ended.terminal is not None and ended.serving == plan.to_release != plan.from_release
        if carried_out or (went_back and Role.CONTAINERS in plan.scope) or seen or self.releases == (ended.serving,):
            self.services = {}
        self._before = {}

"""The gate: a candidate from the new image beside what serves, which must become healthy before anything that serves
is touched.

The candidate has the service's image, environment, networks and health check, and nothing by which traffic could find
it: no port, no name, no alias, no compose label. Compose itself makes the mold, in a project of its own, so that every
key of the compose file means what it always means; the candidate is a copy of the mold, and the mold is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import Health
from lastgood.core.plan import PassGate
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.engine import Container, Engine
from lastgood.targets.compose.images import ensure_image
from lastgood.targets.compose.in_the_way import in_the_way
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.obstacles import missing_files
from lastgood.targets.compose.project import (
    LABEL_CANDIDATE,
    LABEL_CONFIG,
    LABEL_RELEASE,
    LABEL_SERVICE,
    Project,
)
from lastgood.targets.compose.stack import POLL_S, Stack, masker_of

SETTLE_S: Final = 5.0
"""A service without a health check must run for so long without ending. Python and Node services that cannot start
end within 2 s."""
LOG_LINES: Final = 2000


def pass_gate(stack: Stack, engine: Engine, kept: KeptRelease, action: PassGate, *, deadline_s: float) -> None:
    """Start a candidate for each service that does not serve from its artifact already, and wait for all of them.

    Raises Refused with the service and its last words when one does not become healthy; then, and on every other
    error, what this gate started is removed.
    """
    records = [kept.planned(service, artifact) for service, artifact in action.artifacts]
    gate = _Gate(stack, engine, stack.shelf.project(kept), kept.name)
    if gone := [line for record in records for line in missing_files(gate.project, record.name)]:
        raise Refused("; ".join(gone), hint="lastgood doctor")
    # Of all services now: found at the last one, it would leave half a release.
    if held := [line for r in records for line in in_the_way(engine, gate.project, r.name, stack=stack.name)]:
        raise Refused("; ".join(held), hint="docker ps --all")
    ends_at = stack.clock.now() + timedelta(seconds=deadline_s)
    for record in records:
        ensure_image(engine, record)
    try:
        started = [(r, gate.candidate(r, ends_at=ends_at)) for r in records if not _serves(engine, r)]
        for record, container in started:
            gate.wait(record, container, ends_at=ends_at)
    except OutcomeUnknown as error:
        clear_candidates(engine)
        raise Retryable(error.message, delay_s=2.0, hint=error.hint) from error
    except LastgoodError:
        clear_candidates(engine)
        raise


def clear_candidates(engine: Engine) -> None:
    """Remove what the gate made, and the containers with which compose was interrupted. Nothing that serves."""
    for container in (*engine.candidates(), *(c for c in engine.of_project() if c.is_leftover)):
        engine.remove(container.id)


def _serves(engine: Engine, record: ServiceRecord) -> bool:
    """Whether the service serves from this very image already: then that is proof enough."""
    serving = [c.facts() for c in engine.of_project() if c.service == record.name and not c.is_leftover]
    return any(i.artifact == record.artifact and i.serves for i in serving)


@dataclass(frozen=True, slots=True)
class _Gate:
    """The gate of one release."""

    stack: Stack
    engine: Engine
    project: Project
    release: str

    def candidate(self, record: ServiceRecord, *, ends_at: datetime) -> str:
        """Return the ID of the running candidate that an earlier attempt left, or of a new one."""
        mark = f"{self.stack.name}:{self.release}"
        for old in self.engine.candidates():
            if old.service == record.name:
                facts = old.facts()
                if old.labels[LABEL_CANDIDATE] == mark and facts.artifact == record.artifact and facts.running:
                    return old.id
                self.engine.remove(old.id)
        labels = {
            LABEL_CANDIDATE: mark,
            LABEL_SERVICE: record.name,
            LABEL_RELEASE: self.release,
            LABEL_CONFIG: record.config_hash,
        }
        mold = self._mold(record, labels, ends_at=ends_at)
        made = self.engine.twin(mold, labels)
        self.engine.remove(mold.id)
        self.engine.start(made, named=f"the candidate of {record.name} from {self.release}")
        return made

    def _mold(self, record: ServiceRecord, labels: Mapping[str, str], *, ends_at: datetime) -> Container:
        model = self.project.to_create_beside(
            record.name, image=record.held_as, labels=labels, networks=self.engine.networks()
        )
        beside = f"{self.stack.name}-lastgood-gate"
        left_s = max((ends_at - self.stack.clock.now()).total_seconds(), 0.0)
        self.stack.create(self.project, self.release, record.name, model, beside=beside, deadline_s=left_s)
        found = [c for c in self.engine.candidates() if c.service == record.name]
        if len(found) != 1:
            raise OutcomeUnknown(f"{len(found)} candidates of {record.name}, expected 1", hint="docker ps --all")
        return found[0]

    def wait(self, record: ServiceRecord, candidate: str, *, ends_at: datetime) -> None:
        """Wait until a candidate is healthy. Raises Refused when it ends, is unhealthy, or is neither at `ends_at`."""
        began = self.stack.clock.now()
        while True:
            container = self.engine.container(candidate)
            if container is None:
                raise Refused(f"somebody removed the candidate of {record.name}", hint="lastgood history")
            facts, now = container.facts(), self.stack.clock.now()
            settled = facts.health is Health.NONE and now - began >= timedelta(seconds=SETTLE_S)
            if facts.running and (facts.health is Health.HEALTHY or settled):
                return
            if facts.exit_code is not None:
                out_of_memory = ", out of memory" if facts.oom_killed else ""
                raise self._failed(record, candidate, f"exited with {facts.exit_code}{out_of_memory}")
            if facts.health is Health.UNHEALTHY:
                raise self._failed(record, candidate, "is unhealthy")
            if now >= ends_at:
                raise self._failed(record, candidate, f"is not healthy after {(now - began).total_seconds():.0f} s")
            self.stack.clock.sleep(POLL_S)

    def _failed(self, record: ServiceRecord, candidate: str, how: str) -> Refused:
        masker = masker_of(self.project)
        log = masker.clean(self.engine.logs(candidate, lines=LOG_LINES))
        path = self.stack.shelf.lay_beside(self.release, f"gate-{record.name}.log", log.encode())
        shared = any(
            m.get("type") in ("volume", "bind") and not m.get("read_only") for m in self.project.mounts(record.name)
        )
        scratch = " (its writable volumes were empty, its writable folders read-only)" if shared else ""
        said = masker.tail(log, lines=2) or "nothing"
        return Refused(
            f"{record.name} of {self.release} {how} at the gate{scratch}; it said: {said}", hint=f"less {path}"
        )

"""The gate: a candidate from the new image beside what serves, which must become healthy before anything that serves
is touched.

Without an edge the candidate is there for the gate only. It has the service's image, environment, networks and health
check, and nothing by which traffic could find it: no port, no name, no alias, no compose label. Behind an edge the
candidate is what will serve. It is tied to its siblings of the same release by links, which only it sees: its release
talks to itself, whatever else runs beside.

Compose itself makes the mold, in a project of its own, so that every key of the compose file means what it always
means; the candidate is a copy of the mold, and the mold is removed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from graphlib import TopologicalSorter
from itertools import chain, count
from shlex import quote
from typing import Final

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import Health
from lastgood.core.plan import PassGate
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine, Ties
from lastgood.targets.compose.images import ensure_image
from lastgood.targets.compose.in_the_way import Present, in_the_way_of
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.look import Look, is_twin, look
from lastgood.targets.compose.obstacles import missing_files
from lastgood.targets.compose.project import (
    LABEL_CANDIDATE,
    LABEL_CONFIG,
    LABEL_RELEASE,
    LABEL_RESTART,
    LABEL_SERVICE,
    Project,
)
from lastgood.targets.compose.stack import POLL_S, Stack, masker_of

SETTLE_S: Final = 5.0
"""A service without a health check must run for so long without ending. Python and Node services that cannot start
end within 2 s."""
LOG_LINES: Final = 2000
LONGEST_NAME: Final = 60
"""Of a container behind an edge, with room for the number of a further instance."""


def pass_gate(
    stack: Stack, engine: Engine, edge: Edge | None, kept: KeptRelease, action: PassGate, *, deadline_s: float
) -> None:
    """Have an instance of each service beside what serves that is healthy, unless it serves from its artifact already.

    Behind an edge it is one that can take the traffic: the release's own from before, running (L0) or stopped (L1),
    else a new one from the held image (L2). Raises Refused with the service and its last words when one does not
    become healthy; then, and on every other error, what this gate started is removed.
    """
    records = [kept.planned(service, artifact) for service, artifact in action.artifacts]
    project = stack.shelf.project(kept)
    gate = _Gate(stack, engine, edge, kept, project, depths(project, [record.name for record in kept.services]))
    if gone := [line for record in records for line in missing_files(gate.project, record.name)]:
        raise Refused("; ".join(gone), hint="lastgood doctor")
    # Of all services now: found at the last one, it would leave half a release.
    there = Present.at(engine)
    if held := [line for r in records for line in in_the_way_of(there, edge, gate.project, r.name, stack=stack)]:
        raise Refused("; ".join(held), hint="docker ps --all")
    ends_at = stack.clock.now() + timedelta(seconds=deadline_s)
    for record in records:
        ensure_image(engine, record)
    seen = look(stack, engine, edge)
    forget_stopped(engine, seen, keep={gate.release, action.standby} - {""})
    try:
        started = [(r, gate.candidates(r, seen, ends_at=ends_at)) for r in records if not gate.serves(r, seen)]
        for record, beside in sorted(started, key=lambda pair: gate.depths[pair[0].name]):
            gate.start_ended(record, beside)
            gate.settle(record, beside, seen, ends_at=ends_at)
        gate.name_at_the_edge([record for record, _ in started], ends_at=ends_at)
    except OutcomeUnknown as error:
        gate.clear()
        raise Retryable(error.message, delay_s=2.0, hint=error.hint) from error
    except LastgoodError:
        gate.clear()
        raise


def twin_name(project: str, service: str, release: str) -> str:
    """What the first instance of a service of a release is called behind an edge. The edge asks for it by name, and a
    part of a name has 63 letters at most (RFC 1035, 2.3.4)."""
    name = f"{project}-{service}-{release}"
    if len(name) <= LONGEST_NAME:
        return name
    short = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - len(short) - 1].rstrip('.-_')}-{short}"


def depths(project: Project, services: Collection[str]) -> dict[str, int]:
    """Of each of these services 0 when it depends on no other of them, else one more than the deepest of those."""
    below = {s: [other for other in project.dependencies(s) if other in services] for s in services}
    found: dict[str, int] = {}
    for service in TopologicalSorter(below).static_order():
        found[service] = 1 + max((found[other] for other in below[service]), default=-1)
    return found


def _last(container: Container, serving: Collection[str]) -> tuple[bool, bool, bool]:
    """Sorts what is to be used last to the end. A successor that a killed gate made comes before the sick one that
    serves, and after what serves and is well."""
    well, serves = container.facts().serves, container.id in serving
    return not well, not container.is_up, serves != well


def forget_stopped(engine: Engine, seen: Look, *, keep: Collection[str]) -> None:
    """Remove what earlier releases left stopped, for who looked for the cause. keep: those that may serve again."""
    for container in seen.stopped:
        if (is_twin(container) or container.is_retired) and container.labels.get(LABEL_RELEASE) not in keep:
            engine.remove(container.id)


@dataclass(frozen=True, slots=True)
class _Gate:
    """The gate of one release. depths: of its services. made: IDs of what it started. left: IDs of what serves until
    the switch and then no more."""

    stack: Stack
    engine: Engine
    edge: Edge | None
    kept: KeptRelease
    project: Project
    depths: Mapping[str, int]
    made: list[str] = field(default_factory=list[str])
    left: list[str] = field(default_factory=list[str])

    @property
    def release(self) -> str:
        return self.kept.name

    @property
    def _mark(self) -> str:
        return f"{self.stack.name}:{self.release}"

    def serves(self, record: ServiceRecord, seen: Look) -> bool:
        """Whether the service serves from this very image for this very release already, whole: then that is proof
        enough. What somebody else started from it may have another configuration, or other code beside it."""
        serving = [c for c in seen.serving if c.service == record.name and (is_twin(c) or not self._switches(record))]
        own = [c.facts() for c in serving if c.labels.get(LABEL_RELEASE) == self.release]
        return sum(i.artifact == record.artifact and i.serves for i in own) >= self._copies(record)

    def _is(self, container: Container) -> bool:
        return container.labels.get(LABEL_CANDIDATE) == self._mark

    def _switches(self, record: ServiceRecord) -> bool:
        return self.edge is not None and record.name in self.edge.switchable

    def _copies(self, record: ServiceRecord) -> int:
        """One for each instance that is to serve; one where the gate only shows whether it boots."""
        return self._asked(record.name) if self._switches(record) else 1

    def _asked(self, service: str) -> int:
        return self.project.instances(service) or 1

    def candidates(self, record: ServiceRecord, seen: Look, *, ends_at: datetime) -> list[str]:
        """Return the IDs of the running candidates that are there already, started again or made. What serves is among
        them, and is never removed."""
        copies, serving = self._copies(record), {c.id for c in seen.serving}
        there: list[Container] = []
        for old in sorted(self.engine.candidates(), key=lambda c: _last(c, serving)):
            if old.service != record.name or (self._switches(record) and not self._is(old)):
                continue
            usable = self._is(old) and old.image == record.artifact and not old.is_made_only
            if usable and len(there) < copies and (old.is_up or self._switches(record)):
                there.append(old)
            else:
                self._leave(old.id, serving)
        for stopped in [c for c in there if not c.is_up]:
            try:
                self.engine.start(stopped.id, named=stopped.name)
            except Refused:
                # it asks for what is another by now: a network that was made anew, by the ID that it had
                self._leave(stopped.id, serving)
                there.remove(stopped)
        fresh = [self._make(record, ends_at=ends_at) for _ in range(copies - len(there))]
        return [*(c.id for c in there), *fresh]

    def _leave(self, candidate: str, serving: Collection[str]) -> None:
        """Make room for a successor. What serves does so until the requests go to that: it may be as sick."""
        if candidate in serving:
            self.left.append(candidate)
        else:
            self.engine.remove(candidate)

    def _make(self, record: ServiceRecord, *, ends_at: datetime) -> str:
        labels = {
            LABEL_CANDIDATE: self._mark,
            LABEL_SERVICE: record.name,
            LABEL_RELEASE: self.release,
            LABEL_CONFIG: record.config_hash,
        }
        mold = self._mold(record, labels, ends_at=ends_at)
        ties = self._ties(record) if self._switches(record) else None
        if ties:
            labels = {**mold.labels_of_its_own, **labels, LABEL_RESTART: self.project.restart_policy(record.name)}
        try:
            made = self.engine.twin(mold, labels, ties=ties)
        except Refused:
            if ties is None:
                raise
            # What a killed command asked for has its name from the first moment, and is listed once it is made.
            made = self.engine.twin(mold, labels, ties=self._ties(record, but_for=ties.name))
        self.made.append(made)
        self.engine.remove(mold.id)
        self.engine.start(made, named=f"the candidate of {record.name} from {self.release}")
        return made

    def _ties(self, record: ServiceRecord, *, but_for: str = "") -> Ties:
        """What makes it find its siblings, and them it: by the names that all of them have always used. but_for: a name
        that it cannot have."""
        siblings = [s.name for s in self.kept.services if self._switches(s)]
        plain = twin_name(self.stack.name, record.name, self.release)
        taken = self.engine.names() | {but_for}
        return Ties(
            name=next(name for name in chain([plain], (f"{plain}-{n}" for n in count(2))) if name not in taken),
            alias=self._alias(record.name),
            links=tuple((self._alias(s), name) for s in siblings for name in self.project.names(s)),
        )

    def _alias(self, service: str) -> str:
        return f"{self.stack.name}.{service}.{self.release}"

    def _listens(self, record: ServiceRecord, container: Container) -> bool:
        if self.edge is None or not self._switches(record):
            return True
        return self.edge.listens(self.engine, record.name, container)

    def start_ended(self, record: ServiceRecord, beside: Sequence[str]) -> None:
        """Start again what ended while the siblings that it depends on, settled by now, were still booting: all are
        started at once, since most services wait for each other and few end."""
        if not self._switches(record) or not self.depths[record.name]:
            return
        for candidate in beside:
            container = self.engine.container(candidate)
            if container is not None and container.facts().exit_code is not None:
                self.engine.start(candidate, named=f"the candidate of {record.name} from {self.release}")

    def clear(self) -> None:
        """Remove what this gate made, and all that an earlier gate left, as far as that can be done now: why the gate
        failed is what counts, and the rest is for the next one. A standby stays, and what serves whole needs none."""
        with suppress(LastgoodError):
            seen = look(self.stack, self.engine, self.edge)
            serving = Counter(c.service for c in seen.serving if self._is(c))
            for container in seen.beside:
                whole = self._is(container) and serving[container.service] >= self._asked(container.service)
                if container.id in self.made or container.is_made_only or self.edge is None or whole:
                    self.engine.remove(container.id)

    def settle(self, record: ServiceRecord, beside: Sequence[str], seen: Look, *, ends_at: datetime) -> None:
        """Wait until all of them are healthy. One from before that is not is made anew, once; if it serves, it does so
        until the switch.

        Raises Refused when one ends, is unhealthy, or is neither at `ends_at`.
        """
        for candidate in beside:
            try:
                self._wait(record, candidate, ends_at=ends_at)
            except Refused:
                if candidate in self.made:
                    raise
                self._leave(candidate, {c.id for c in seen.serving})
                self._wait(record, self._make(record, ends_at=ends_at), ends_at=ends_at)

    def name_at_the_edge(self, records: Sequence[ServiceRecord], *, ends_at: datetime) -> None:
        """Have what will serve known at the edge, so that no switch has to wait for an address."""
        if self.edge is None:
            return
        there = [c for c in self.engine.candidates() if self._is(c) and c.is_up and c.id not in self.left]
        switched = [record.name for record in records if self._switches(record)]
        self.edge.admit({name: [c for c in there if c.service == name] for name in switched}, ends_at=ends_at)

    def _mold(self, record: ServiceRecord, labels: Mapping[str, str], *, ends_at: datetime) -> Container:
        shape = self.project.to_stand_beside if self._switches(record) else self.project.to_create_beside
        model = shape(record.name, image=record.held_as, labels=labels, networks=self.engine.networks())
        beside = f"{self.stack.name}-lastgood-gate"
        left_s = max((ends_at - self.stack.clock.now()).total_seconds(), 0.0)
        self.stack.create(self.project, self.release, record.name, model, beside=beside, deadline_s=left_s)
        found = [c for c in self.engine.candidates() if c.service == record.name and c.is_mold_of(beside)]
        if len(found) != 1:
            raise OutcomeUnknown(f"{len(found)} candidates of {record.name}, expected 1", hint="docker ps --all")
        return found[0]

    def _wait(self, record: ServiceRecord, candidate: str, *, ends_at: datetime) -> None:
        """Wait until it is healthy and, behind an edge, takes connections. Raises Refused when it will not be."""
        began = self.stack.clock.now()
        while True:
            container = self.engine.container(candidate)
            if container is None:
                raise Refused(f"somebody removed the candidate of {record.name}", hint="lastgood history")
            facts, now = container.facts(), self.stack.clock.now()
            settled = facts.health is Health.NONE and now - container.started_at >= timedelta(seconds=SETTLE_S)
            well = facts.running and (facts.health is Health.HEALTHY or settled)
            if well and self._listens(record, container):
                return
            if facts.exit_code is not None:
                out_of_memory = ", out of memory" if facts.oom_killed else ""
                raise self._failed(record, candidate, f"exited with {facts.exit_code}{out_of_memory}")
            if facts.health is Health.UNHEALTHY:
                raise self._failed(record, candidate, "is unhealthy")
            # one from before has had its time to boot; what is made anew in its place needs what is left
            late = container.started_at + timedelta(seconds=self.stack.config.boot)
            given_up = candidate not in self.made and now >= max(late, began + timedelta(seconds=SETTLE_S))
            if given_up or now >= ends_at:
                how = "takes no connection" if well else "is not healthy"
                raise self._failed(record, candidate, f"{how} after {(now - began).total_seconds():.0f} s")
            self.stack.clock.sleep(POLL_S)

    def _failed(self, record: ServiceRecord, candidate: str, how: str) -> Refused:
        masker = masker_of(self.project)
        log = masker.clean(self.engine.logs(candidate, lines=LOG_LINES))
        path = self.stack.shelf.lay_beside(self.release, f"gate-{record.name}.log", log.encode())
        # behind an edge it is what will serve, and has all of them
        scratch = "" if self._switches(record) else _without(self.project, record.name)
        said = masker.tail(log, lines=2) or "nothing"
        return Refused(
            f"{record.name} of {self.release} {how} at the gate{scratch}; it said: {said}",
            hint=f"less {quote(str(path))}",
        )


def _without(project: Project, service: str) -> str:
    """What a candidate that only passes the gate does not have of what its service writes to, and what becomes of one
    that does not start without it."""
    kinds = {m.get("type") for m in project.mounts(service) if not m.get("read_only")}
    lacks = [
        *(["its writable volumes were empty"] if "volume" in kinds else []),
        *(["its writable folders read-only"] if "bind" in kinds else []),
    ]
    if not lacks:
        return ""
    return f" ({', '.join(lacks)}; what cannot start so goes into containers.workers, which pass no gate)"

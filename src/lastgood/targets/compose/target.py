"""The compose target: observes the project's containers, and takes a release's steps on the rung that the stack allows.

A release starts from what was kept when it was prepared: image by ID, configuration and environment as resolved then.
Never from today's files, today's variables or a tag that can move. Services that `containers.services` does not name
are never recreated, but for those that only earlier releases have.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import assert_never

from lastgood.core.config import ContainersConfig
from lastgood.core.deploying import nobody_else
from lastgood.core.errors import Refused
from lastgood.core.facts import ContainerFacts, Health, ServiceLog
from lastgood.core.plan import (
    ANSWERED_WITHIN_S,
    ClearCandidates,
    ContainerAction,
    HoldRequests,
    PassGate,
    PassRequests,
    Retire,
    Role,
    Seen,
    Serve,
    Settle,
    Step,
    Switch,
    runs,
    seen,
)
from lastgood.core.ports import Clock
from lastgood.core.release import Missing, Release, ServiceRecord
from lastgood.core.report import Check
from lastgood.targets.compose import commands, describe
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container, Engine, connect
from lastgood.targets.compose.evidence import logs_of, save_evidence
from lastgood.targets.compose.foreign import refuse_compose_1
from lastgood.targets.compose.gate import pass_gate
from lastgood.targets.compose.images import ensure_image, name_again
from lastgood.targets.compose.kept import KeptRelease, Shelf
from lastgood.targets.compose.left_alone import left_alone
from lastgood.targets.compose.look import is_in_front, is_twin, look
from lastgood.targets.compose.missing import missing, unreachable
from lastgood.targets.compose.recreate import recreate, recreate_behind
from lastgood.targets.compose.retire import retire
from lastgood.targets.compose.rung import choose_rung, said
from lastgood.targets.compose.shape import awaited
from lastgood.targets.compose.stack import Stack
from lastgood.targets.compose.switch import clear_candidates, may_run_beside, settle, switch


class ComposeTarget:
    """root: folder of lastgood.yaml. state: folder for what releases keep; files in it are 0600. private: other folders
    of this program, which no release may have a copy of."""

    role = Role.CONTAINERS

    def __init__(
        self, config: ContainersConfig, *, root: Path, state: Path, clock: Clock, private: tuple[Path, ...] = ()
    ) -> None:
        shelf = Shelf(state.resolve())
        self._stack = Stack(
            config=config,
            root=root.resolve(),
            state=state.resolve(),
            shelf=shelf,
            clock=clock,
            private=tuple(path.resolve() for path in private),
        )
        self._edge = Edge(config.edge, self._stack) if config.edge else None
        self._asked_by: dict[tuple[str, str], frozenset[tuple[str, str, int]]] = {}

    def _engine(self) -> AbstractContextManager[Engine]:
        return connect(self._stack.name, os.environ)

    def _front(self, engine: Engine) -> Edge | None:
        """The edge, where the requests go through it by now."""
        return self._edge if self._edge and is_in_front(engine, self._edge) else None

    def observe(self) -> ContainerFacts:
        with self._engine() as engine:
            return self._facts(engine)

    def _facts(self, engine: Engine) -> ContainerFacts:
        observed_at = self._stack.clock.now()
        edge = self._front(engine)
        switchable = edge.switchable if edge else frozenset[str]()
        there = look(self._stack, engine, edge)
        holds = edge.runtime.holds_everybody() if edge else None
        return ContainerFacts(
            observed_at=observed_at,
            serving=there.facts(there.serving, switchable=switchable),
            candidates=there.facts(there.beside, switchable=switchable),
            stateful=there.facts(there.stateful, switchable=switchable),
            held=engine.image_ids(),
            switchable=switchable,
            ungated=frozenset(self._stack.config.workers) | self._portless_of_before(),
            can_hold=holds is not None,
            holding=bool(holds),
            left_waiting=edge is not None and holds is False and edge.runtime.anybody_waits(),
            unwritten=edge.unwritten() if edge else frozenset(),
            standby_runs=edge is None or may_run_beside(engine, edge, [c for c in there.beside if is_twin(c)]),
            asked=frozenset(chain.from_iterable(self._asked(kept) for kept in self._stack.shelf.known())),
        )

    def _asked(self, kept: KeptRelease) -> frozenset[tuple[str, str, int]]:
        """What the files of a release ask several instances for, read once: they are large, and users may be waiting
        for this look."""
        if (known := self._asked_by.get((kept.name, kept.config_hash))) is not None:
            return known
        try:
            project = self._stack.shelf.unchecked(kept)
        except (OSError, Refused):  # it cannot be started either, and who tries is told so
            return frozenset()
        asks = ((s, project.instances(s) or 1) for s in project.services)
        found = frozenset((kept.name, service, count) for service, count in asks if count > 1)
        self._asked_by[kept.name, kept.config_hash] = found
        return found

    def _portless_of_before(self) -> frozenset[str]:
        """Services that only earlier releases have and that nobody asks from outside: nothing of today says whether
        they are workers, so no second one is started beside."""
        kept = self._stack.shelf.known()
        return frozenset(
            s.name
            for release in kept
            for s in release.services
            if s.name not in self._stack.config.services and not s.ports
        )

    def apply(self, step: Step) -> None:
        action = step.action
        if not isinstance(action, ContainerAction):
            raise Refused(f"{step.name} is a step for {step.role.value}, not for containers", hint="lastgood plan")
        with self._stack.alone(deadline_s=step.deadline_s):
            pass  # what a killed command left running has ended: now what is seen will stay so
        with self._engine() as engine:
            if seen(step, self._facts(engine)) is Seen.DONE:
                return
            if isinstance(action, PassGate | Serve | Switch | Retire):
                refuse_compose_1(engine, self._stack)
            edge = self._front(engine)
            self._refuse_what_nobody_would_reach(step, edge)
            match action:
                case PassGate():
                    kept = self._kept(action.release)
                    pass_gate(self._stack, engine, edge, kept, action, deadline_s=step.deadline_s)
                case Serve():
                    self._serve(engine, edge, action, deadline_s=step.deadline_s)
                case Switch():
                    kept = self._kept(action.release)
                    switch(self._stack, engine, _fronted(step, edge), kept, action, deadline_s=step.deadline_s)
                case Retire():
                    kept = self._kept(action.release)
                    retire(self._stack, engine, edge, kept, action, deadline_s=step.deadline_s)
                case Settle():
                    settle(self._stack, engine, _fronted(step, edge), action, deadline_s=step.deadline_s)
                case ClearCandidates():
                    clear_candidates(self._stack, engine, edge, action)
                case HoldRequests():
                    answered_s = min(ANSWERED_WITHIN_S, step.deadline_s)
                    ends_at = self._stack.clock.now() + timedelta(seconds=answered_s)
                    _fronted(step, edge).hold_everybody(ends_at=ends_at)
                case PassRequests():
                    front = _fronted(step, edge)
                    front.runtime.pass_everybody(front.config.routes)
                case _:
                    assert_never(action)

    def _refuse_what_nobody_would_reach(self, step: Step, edge: Edge | None) -> None:
        match step.action:
            case PassGate(artifacts=artifacts) | Switch(artifacts=artifacts):
                services = [service for service, _ in artifacts]
            case Serve(service=service):
                services = [service]
            case Retire():  # what stops for a release stops for all that it is reached by
                services = [service.name for service in self._kept(step.action.release).services]
            case _:
                return
        if lost := next(self._unreachable(step.action.release, edge, services), None):
            raise Refused(lost.what, hint=lost.fix)

    def _unreachable(self, release: str, edge: Edge | None, services: Sequence[str]) -> Iterator[Missing]:
        kept = self._kept(release)
        return unreachable(self._stack, edge, self._stack.shelf.unchecked(kept), kept.name, services)

    def _serve(self, engine: Engine, edge: Edge | None, action: Serve, *, deadline_s: float) -> None:
        kept = self._kept(action.release)
        if edge and action.service in edge.config.one_at_a_time:
            recreate_behind(self._stack, engine, edge, kept, action, deadline_s=deadline_s)
        else:
            recreate(self._stack, engine, kept, action, deadline_s=deadline_s)

    def _kept(self, release: str) -> KeptRelease:
        kept = self._stack.shelf.find(release)
        if kept is None:
            raise Refused(f"nothing is kept of release {release}", hint="lastgood releases")
        return kept

    def prepare(self, name: str, recorded_at: datetime) -> Release:
        with self._engine() as engine:
            if waits := self._edge_waits(engine):
                raise Refused(waits, hint=self._stack.by_hand())
            return describe.prepare(self._stack, engine, self._serving(engine), name, recorded_at)

    def preflight(self) -> tuple[str, ...]:
        unusable = describe.unusable(self._stack, self._stack.resolve())
        with self._engine() as engine:
            waits = self._edge_waits(engine)
        return (*unusable, f"{waits}; next: {self._stack.by_hand()}") if waits else unusable

    def awaited(self) -> tuple[tuple[str, str], ...]:
        project = self._stack.resolve()
        names = awaited(project, self._stack.config.services)
        once = {name: commands.once(name, built=project.is_built(name)) for name in names}
        return tuple((name, self._stack.by_hand(*words)) for name, words in once.items())

    def left_alone(self) -> tuple[tuple[str, str], ...]:
        with self._engine() as engine:
            return tuple(left_alone(self._stack, engine, besides=self._edge.config.service if self._edge else ""))

    def _edge_waits(self, engine: Engine) -> str:
        """What keeps a release from being recorded between `init --edge` and its first start: by the files the edge has
        the ports, and there is none. Empty for nothing."""
        if self._edge is None or self._front(engine) is not None:
            return ""
        return "the edge was set up and never started: by the compose files no service has a port until it is"

    def describe_running(self, name: str, recorded_at: datetime) -> Release:
        with self._engine() as engine:
            return describe.describe_running(self._stack, engine, self._serving(engine), name, recorded_at)

    def fetch(self, release: Release) -> None:
        with self._engine() as engine:
            for record in release.services:
                ensure_image(engine, record)

    def missing(self, release: Release) -> tuple[Missing, ...]:
        with self._engine() as engine:
            return tuple(missing(self._stack, engine, self._front(engine), release))

    def hold(self, release: Release) -> None:
        with self._engine() as engine:
            for record in release.services:
                if engine.image(record.artifact) is not None:
                    ensure_image(engine, record)

    def name_again(self, release: Release) -> tuple[str, ...]:
        with self._engine() as engine:
            return tuple(name_again(self._stack.shelf, engine, release.id))

    def kept(self) -> frozenset[str]:
        return self._stack.shelf.names()

    def let_go(self, release: Release) -> None:
        with self._engine() as engine:
            for record in release.services:
                engine.let_go(record.artifact, record.held_as)
        self._stack.shelf.remove(release.id)

    def rung(self, release: str = "") -> str:
        with self._engine() as engine:
            edge = self._front(engine)
            there = look(self._stack, engine, edge)
        kept = self._stack.shelf.find(release) if release else None
        services = [s.name for s in kept.services] if kept else self._stack.config.services
        asked = {service: count for _, service, count in self._asked(kept)} if kept else {}
        chosen = [(s, choose_rung(s, there, edge, release=release, at_least=asked.get(s, 1))) for s in services]
        blind = sorted({c.service for c in there.serving if c.facts().running and c.facts().health is Health.NONE})
        seen_only = f"; no health check in {', '.join(blind)}: running is all that can be seen of it" if blind else ""
        return said(chosen) + seen_only

    def evidence(self, into: Path) -> tuple[str, ...]:
        with self._engine() as engine:
            return save_evidence(engine, self._serving(engine), into)

    def logs(self, since: datetime) -> tuple[ServiceLog, ...]:
        with self._engine() as engine:
            return logs_of(engine, self._serving(engine), since)

    def _serving(self, engine: Engine) -> tuple[Container, ...]:
        return look(self._stack, engine, self._front(engine)).serving

    def checks(self, release: Release, *, found: Collection[tuple[str, int]] = ()) -> tuple[Check, ...]:
        with self._engine() as engine:
            edge = self._front(engine)
            there = look(self._stack, engine, edge)
            never_touched = {c.service for c in there.stateful}
            own, facts = [r for r in release.services if r.name not in never_touched], self._facts(engine)
            checks = [
                _runs_as_planned(record, there.serving, at_least=facts.at_least(release.id, record.name, found=found))
                for record in own
            ]
            checks.append(nobody_else(release, facts))
            cut_off = [lost.what for lost in self._unreachable(release.id, edge, [r.name for r in own])]
            checks.append(Check(name="ways in", passed=not cut_off, detail="; ".join(cut_off) or "as it had them"))
            if edge:
                checks.append(_nobody_else(there.beside, edge))
                checks.append(_written_down(edge.unwritten()))
        return tuple(checks)


def _fronted(step: Step, edge: Edge | None) -> Edge:
    if edge is None:
        raise Refused(f"{step.name} needs an edge, and there is none any more", hint="lastgood rollback")
    return edge


def _nobody_else(beside: tuple[Container, ...], edge: Edge) -> Check:
    """What compose starts beside an edge bears the names of the services, and is asked by whoever belongs to no
    release."""
    others = [c for c in beside if c.service in edge.switchable and not is_twin(c) and c.is_up]
    names = " ".join(sorted(c.name for c in others))
    detail = f"of no release, and asked by name inside of the stack: docker stop {names}" if others else "none runs"
    return Check(name="other copies", passed=not others, detail=detail)


def _written_down(unwritten: Collection[str]) -> Check:
    """An edge that is started again goes by its file."""
    names = ", ".join(sorted(unwritten))
    detail = f"says something else of {names} than the edge does: lastgood init --edge" if names else "says who serves"
    return Check(name="file of the edge", passed=not unwritten, detail=detail)


def _runs_as_planned(record: ServiceRecord, serving: tuple[Container, ...], *, at_least: int) -> Check:
    """Every container of the service, not just one, and no fewer than it asks for: half a rollback is none."""
    own = [c.facts() for c in serving if c.service == record.name]
    wrong = [i for i in own if not i.serves or not runs(record, i)]
    shown = ", ".join(f"{i.instance[:12]} runs {i.artifact[:19]} ({i.health.value})" for i in wrong or own)
    few = f"{len(own)} of {at_least}: " if 0 < len(own) < at_least else ""
    passed = len(own) >= at_least and not wrong
    return Check(name=f"container {record.name}", passed=passed, detail=few + (shown or "does not run"))

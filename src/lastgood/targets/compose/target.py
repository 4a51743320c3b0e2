"""The compose target: observes the project's containers, and takes a release's steps on the rung that the stack allows.

A release starts from what was kept when it was prepared: image by ID, configuration and environment as resolved then.
Never from today's files, today's variables or a tag that can move. Services that `containers.services` does not name
are never recreated.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import assert_never

from lastgood.core.config import ContainersConfig
from lastgood.core.errors import Refused
from lastgood.core.facts import ContainerFacts, Health
from lastgood.core.plan import ClearCandidates, PassGate, Role, Seen, Serve, Step, runs, seen
from lastgood.core.ports import Clock
from lastgood.core.release import Release, ServiceRecord
from lastgood.core.report import Check
from lastgood.targets.compose import describe
from lastgood.targets.compose.engine import Container, Engine, connect
from lastgood.targets.compose.evidence import save_evidence
from lastgood.targets.compose.foreign import refuse_compose_1
from lastgood.targets.compose.gate import clear_candidates, pass_gate
from lastgood.targets.compose.images import ensure_image
from lastgood.targets.compose.kept import KeptRelease, Shelf
from lastgood.targets.compose.recreate import recreate, untouchable
from lastgood.targets.compose.rung import ContainerRung, choose_rung
from lastgood.targets.compose.stack import Stack


class ComposeTarget:
    """root: folder of lastgood.yaml. state: folder for what releases keep; files in it are 0600."""

    role = Role.CONTAINERS

    def __init__(self, config: ContainersConfig, *, root: Path, state: Path, clock: Clock) -> None:
        shelf = Shelf(state.resolve())
        self._stack = Stack(config=config, root=root.resolve(), state=state.resolve(), shelf=shelf, clock=clock)
        # Containers that are never touched, as they were before this process recreated anything: ID to service.
        self._untouched: dict[str, str] = {}

    def _engine(self) -> AbstractContextManager[Engine]:
        return connect(self._stack.name, os.environ)

    def observe(self) -> ContainerFacts:
        with self._engine() as engine:
            return self._facts(engine)

    def _facts(self, engine: Engine) -> ContainerFacts:
        observed_at = self._stack.clock.now()
        containers, services = engine.of_project(), self._stack.config.services
        leftovers = tuple(c for c in containers if c.is_leftover)
        return ContainerFacts(
            observed_at=observed_at,
            serving=tuple(c.facts() for c in containers if c.service in services and c not in leftovers),
            candidates=tuple(c.facts() for c in (*engine.candidates(), *leftovers)),
            stateful=tuple(c.facts() for c in containers if c.service not in services),
            held=engine.image_ids(),
        )

    def apply(self, step: Step) -> None:
        action = step.action
        if not isinstance(action, PassGate | Serve | ClearCandidates):
            raise Refused(f"{step.name} is a step for {step.role.value}, not for containers", hint="lastgood plan")
        with self._stack.alone(deadline_s=step.deadline_s):
            pass  # what a killed command left running has ended: now what is seen will stay so
        with self._engine() as engine:
            if seen(step, self._facts(engine)) is Seen.DONE:
                return
            if not isinstance(action, ClearCandidates):
                refuse_compose_1(engine, self._stack.name)
            match action:
                case PassGate():
                    pass_gate(self._stack, engine, self._kept(action.release), action, deadline_s=step.deadline_s)
                case Serve():
                    self._serve(engine, action, deadline_s=step.deadline_s)
                case ClearCandidates():
                    clear_candidates(engine)
                case _:
                    assert_never(action)

    def _serve(self, engine: Engine, action: Serve, *, deadline_s: float) -> None:
        kept = self._kept(action.release)
        if not self._untouched:
            self._untouched = untouchable(self._stack, engine)
        match choose_rung((action.service,)).rung:
            case ContainerRung.RECREATE:
                recreate(self._stack, engine, kept, action, deadline_s=deadline_s)

    def _kept(self, release: str) -> KeptRelease:
        kept = self._stack.shelf.find(release)
        if kept is None:
            raise Refused(f"nothing is kept of release {release}", hint="lastgood releases")
        return kept

    def prepare(self, name: str, recorded_at: datetime) -> Release:
        with self._engine() as engine:
            return describe.prepare(self._stack, engine, name, recorded_at)

    def describe_running(self, name: str, recorded_at: datetime) -> Release:
        with self._engine() as engine:
            return describe.describe_running(self._stack, engine, name, recorded_at)

    def fetch(self, release: Release) -> None:
        with self._engine() as engine:
            for record in release.services:
                ensure_image(engine, record)

    def rung(self) -> str:
        services = self._stack.config.services
        chosen = choose_rung(services)
        with self._engine() as engine:
            serving = [c for c in engine.of_project() if c.service in services]
        blind = sorted({c.service for c in serving if c.facts().running and c.facts().health is Health.NONE})
        seen_only = f"; no health check in {', '.join(blind)}: running is all that can be seen of it" if blind else ""
        return f"{chosen.rung.value} one service at a time: {chosen.why}{seen_only}"

    def evidence(self, into: Path) -> tuple[str, ...]:
        with self._engine() as engine:
            return save_evidence(engine, self._serving(engine), into)

    def _serving(self, engine: Engine) -> tuple[Container, ...]:
        services = self._stack.config.services
        return tuple(c for c in engine.of_project() if c.service in services and not c.is_leftover)

    def checks(self, release: Release) -> tuple[Check, ...]:
        with self._engine() as engine:
            serving = self._serving(engine)
            checks = [_runs_as_planned(record, serving) for record in release.services]
            if self._untouched:
                gone = sorted(s for i, s in self._untouched.items() if i not in untouchable(self._stack, engine))
                checks.append(
                    Check(
                        name="containers that are never touched",
                        passed=not gone,
                        detail=f"gone: {', '.join(gone)}" if gone else ", ".join(sorted(self._untouched.values())),
                    )
                )
        return tuple(checks)


def _runs_as_planned(record: ServiceRecord, serving: tuple[Container, ...]) -> Check:
    """Every container of the service, not just one: half a rollback is none."""
    own = [c.facts() for c in serving if c.service == record.name]
    wrong = [i for i in own if not i.serves or not runs(record, i)]
    shown = ", ".join(f"{i.instance[:12]} runs {i.artifact[:19]} ({i.health.value})" for i in wrong or own)
    return Check(name=f"container {record.name}", passed=bool(own) and not wrong, detail=shown or "does not run")

"""The embedded engine: a release is a copy of the tree, its services are processes, a holder owns the public ports.

For the demo and for hosts without a container engine. The gate, the switch and the drain are those of the ladder's
start-first rung; there is no warm standby. What a release starts from was kept when it was prepared: files, commands
and environment as they were then, never today's.
"""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, assert_never

from lastgood.core.config import ProcessConfig
from lastgood.core.deploying import nobody_else
from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import ContainerFacts, Health, InstanceFacts, ServiceLog
from lastgood.core.plan import (
    ANSWERED_WITHIN_S,
    ClearCandidates,
    HoldRequests,
    PassGate,
    PassRequests,
    Retire,
    Role,
    Seen,
    Serve,
    Step,
    runs,
    seen,
)
from lastgood.core.ports import Clock
from lastgood.core.release import Missing, Release, ServiceRecord
from lastgood.core.report import Check
from lastgood.targets import tree
from lastgood.targets.checkout import checkout
from lastgood.targets.masking import Masker
from lastgood.targets.process import processes
from lastgood.targets.process.control import Answer, Ask, Verb, ask, ask_or_start
from lastgood.targets.process.kept import Instance, KeptRelease, KeptService, Part, Shelf

ENGINE_NAME: Final = "process"
POLL_S: Final = 0.1
LOG_LINES: Final = 2000
DEPLOY_ANOTHER: Final = "lastgood deploy   (the next good release is a way back again)"
RUNG: Final = (
    "L2 start-first: the new process is healthy before the holder switches to it (no standby is kept warm here)"
)


class ProcessTarget:
    """root: folder of lastgood.yaml. state: folder for what releases keep; files in it are 0600."""

    role = Role.CONTAINERS

    def __init__(self, config: ProcessConfig, *, root: Path, state: Path, clock: Clock) -> None:
        self._config = config
        self._root = root.resolve()
        self._shelf = Shelf(state)
        self._clock = clock

    # --- looking -----------------------------------------------------------------------------------------------

    def observe(self) -> ContainerFacts:
        return self._facts(self._look())

    def _facts(self, shown: Answer) -> ContainerFacts:
        return ContainerFacts(
            observed_at=self._clock.now(),
            serving=shown.serving,
            candidates=shown.candidates,
            held=self._shelf.held(),
            can_hold=shown.can_hold,
            holding=shown.holding,
        )

    def _look(self) -> Answer:
        """What the holder shows; without one, what it wrote down last: then nobody passes requests on."""
        shown = ask(self._shelf.state, Ask(verb=Verb.LOOK))
        if shown is not None:
            return shown
        noted = self._shelf.instances()
        return Answer(
            serving=tuple(_unheld(i) for i in noted if i.part is Part.SERVING),
            candidates=tuple(_unheld(i) for i in noted if i.part is not Part.SERVING),
        )

    def fetch(self, release: Release) -> None:
        """What a release keeps is here or nowhere: there is nobody to fetch it from."""
        facts = self.observe()
        here = facts.held | {instance.artifact for instance in facts.serving}
        if gone := [s.name for s in release.services if s.artifact not in here]:
            raise Refused(f"the files of {', '.join(gone)} of {release.id} are gone", hint="lastgood doctor")

    def missing(self, release: Release) -> tuple[Missing, ...]:
        try:
            kept = self._shelf.find(release.id)
        except Refused as error:
            return (Missing(what=error.message, fix=DEPLOY_ANOTHER, lost=True),)
        if kept.artifact in self._shelf.held():
            return ()
        return (Missing(what=f"the files of {release.id} are not what was kept", fix=DEPLOY_ANOTHER, lost=True),)

    def hold(self, release: Release) -> None:
        """A copy of the files needs nothing that holds it."""

    def name_again(self, release: Release) -> tuple[str, ...]:  # noqa: ARG002 # nothing but lastgood starts these
        return ()

    def kept(self) -> frozenset[str]:
        return self._shelf.names()

    def let_go(self, release: Release) -> None:
        if running := [i.service for i in self._shelf.instances() if i.release == release.id and i.exit_code is None]:
            raise Refused(f"{', '.join(running)} still runs from {release.id}", hint="lastgood status")
        self._shelf.remove(release.id)

    def rung(self, release: str = "") -> str:  # noqa: ARG002 # every release starts the same way here
        return RUNG

    def evidence(self, into: Path) -> tuple[str, ...]:
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        saved: list[str] = []
        for instance in self._shelf.instances():
            if instance.part is Part.SERVING:
                path = into / f"{instance.id}.log"
                path.touch(mode=0o600)
                path.write_text(self._log(instance.release, instance.id, lines=LOG_LINES), encoding="utf-8")
                saved.append(path.name)
        return tuple(saved)

    def logs(self, since: datetime) -> tuple[ServiceLog, ...]:  # noqa: ARG002 # a line has no time here
        return tuple(
            ServiceLog(
                service=instance.service,
                release=instance.release,
                lines=tuple(self._log(instance.release, instance.id, lines=LOG_LINES).splitlines()),
            )
            for instance in self._shelf.instances()
            if instance.part is Part.SERVING
        )

    def checks(
        self,
        release: Release,
        *,
        found: Collection[tuple[str, int]] = (),  # noqa: ARG002 # a service is one process, and none is no release
    ) -> tuple[Check, ...]:
        facts = self.observe()
        serving, checks = facts.serving, [nobody_else(release, facts)]
        for record in release.services:
            own = [i for i in serving if i.service == record.name]
            wrong = [i for i in own if not i.serves or not runs(record, i)]
            shown = ", ".join(f"{i.instance} runs {i.release} ({i.health.value})" for i in wrong or own)
            checks.append(
                Check(name=f"process {record.name}", passed=bool(own) and not wrong, detail=shown or "does not run")
            )
        return tuple(checks)

    # --- describing --------------------------------------------------------------------------------------------

    def preflight(self) -> tuple[str, ...]:
        return () if self._source.is_dir() else (f"process.source: {self._source} is not a folder",)

    def awaited(self) -> tuple[tuple[str, str], ...]:
        return ()

    def left_alone(self) -> tuple[tuple[str, str], ...]:
        return ()

    @property
    def _source(self) -> Path:
        return (self._root / self._config.source).resolve()

    def prepare(self, name: str, recorded_at: datetime) -> Release:
        self._check_ports()
        source = self._source
        if wrong := self.preflight():
            raise Refused("; ".join(wrong), hint="lastgood doctor")
        self._shelf.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            artifact = tree.keep(source, self._shelf.tree(name), exclude=self._config.exclude)
        except FileExistsError:
            raise Refused(
                f"{name} was prepared with other files before", hint="lastgood deploy --release ANOTHER-NAME"
            ) from None
        except (OSError, shutil.Error) as error:
            raise Refused(f"{source} cannot be copied: {error}", hint="df -h") from error
        kept = self._shelf.describe(self._config, name, artifact)
        self._shelf.keep(kept)
        return self._release(kept, recorded_at)

    def describe_running(self, name: str, recorded_at: datetime) -> Release:
        serving = self._look().serving
        made_of = {i.release for i in serving}
        if len(made_of) != 1:
            what = (
                f"{len(made_of)} releases serve at once: {', '.join(sorted(made_of))}" if made_of else "nothing serves"
            )
            raise Refused(f"{what}, so there is nothing to record", hint="lastgood deploy --first")
        kept = self._shelf.find(made_of.pop())
        if kept.release != name:
            try:
                tree.keep(self._shelf.tree(kept.release), self._shelf.tree(name), exclude=())
            except FileExistsError:
                raise Refused(
                    f"{name} was prepared with other files before", hint="lastgood record --release ANOTHER-NAME"
                ) from None
            kept = replace(kept, release=name)
            self._shelf.keep(kept)
        return self._release(kept, recorded_at)

    def _release(self, kept: KeptRelease, recorded_at: datetime) -> Release:
        found = checkout(self._root, state=self._shelf.state)
        return Release(
            id=kept.release,
            recorded_at=recorded_at,
            engine=ENGINE_NAME,
            services=tuple(
                ServiceRecord(
                    name=service.name,
                    artifact=kept.artifact,
                    held_as=str(self._shelf.tree(kept.release).relative_to(self._shelf.state)),
                    config_hash=service.config_hash,
                    env_hash=service.env_hash,
                    probe=f"GET {service.health}",
                    ports=(f"127.0.0.1:{service.public_port}",),
                )
                for service in kept.services
            ),
            commit=found.commit,
            dirty=found.dirty,
            unresolved=found.unresolved,
            config_file=str(self._shelf.settings(kept.release).relative_to(self._shelf.state)),
            config_hash=kept.config_hash,
        )

    def _check_ports(self) -> None:
        """Refuse a port that somebody else has before anything is copied."""
        shown = ask(self._shelf.state, Ask(verb=Verb.LOOK))
        owned = shown.ports if shown else ()
        for name, service in self._config.services.items():
            if service.port in owned:
                continue
            with socket.socket() as door:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    door.bind(("127.0.0.1", service.port))
                except OSError as error:
                    raise Refused(
                        f"process.services.{name}.port: {service.port}: {error.strerror}",
                        hint=f"ss -ltnp sport = :{service.port}",
                    ) from error

    # --- acting ------------------------------------------------------------------------------------------------

    def apply(self, step: Step) -> None:
        action = step.action
        if not isinstance(action, PassGate | Serve | Retire | ClearCandidates | HoldRequests | PassRequests):
            raise Refused(f"{step.name} is a step for {step.role.value}, not for processes", hint="lastgood plan")
        ends_at = self._clock.now() + timedelta(seconds=step.deadline_s)
        if seen(step, self.observe()) is Seen.DONE:
            return
        match action:
            case PassGate():
                self._pass_gate(action, ends_at)
            case Serve():
                self._serve(action, ends_at)
            case Retire():
                self._retire(action, ends_at)
            case ClearCandidates():
                self._clear()
            case HoldRequests():
                request = Ask(verb=Verb.HOLD, stop_s=min(ANSWERED_WITHIN_S, step.deadline_s))
                ask_or_start(self._shelf.state, request, deadline_s=step.deadline_s)
            case PassRequests():
                ask(self._shelf.state, Ask(verb=Verb.RESUME), deadline_s=step.deadline_s)
            case _:
                assert_never(action)

    def _pass_gate(self, action: PassGate, ends_at: datetime) -> None:
        """Start every candidate, then wait for each. One that fails takes all of them with it."""
        kept = self._shelf.find(action.release)
        try:
            for service, artifact in action.artifacts:
                self._check_kept(kept, service, artifact)
                self._start(action.release, service, artifact, ends_at)
            for service, artifact in action.artifacts:
                self._wait(action.release, service, artifact, ends_at)
        except OutcomeUnknown as error:
            self._clear()
            raise Retryable(error.message, delay_s=1.0, hint=error.hint) from error
        except LastgoodError:
            self._clear()
            raise

    def _serve(self, action: Serve, ends_at: datetime) -> None:
        """Switch to the candidate of the gate; where it is gone by now, to a new one."""
        kept = self._shelf.find(action.release)
        service = self._check_kept(kept, action.service, action.artifact)
        if action.config_hash and action.config_hash != service.config_hash:
            raise Refused(
                f"the kept settings of {action.service} are not those of {action.release}", hint="lastgood releases"
            )
        self._start(action.release, action.service, action.artifact, ends_at)
        self._wait(action.release, action.service, action.artifact, ends_at)
        self._ask(Verb.SWITCH, action.release, action.service, action.artifact, ends_at)

    def _retire(self, action: Retire, ends_at: datetime) -> None:
        if self._shelf.find(action.release).service(action.service) is not None:
            raise Refused(f"{action.service} is a part of {action.release}, and goes on", hint="lastgood plan")
        self._ask(Verb.RETIRE, action.release, action.service, "", ends_at)

    def _check_kept(self, kept: KeptRelease, service: str, artifact: str) -> KeptService:
        found = kept.service(service)
        if found is None or kept.artifact != artifact or artifact not in self._shelf.held():
            raise Refused(f"{artifact[:17]} of {service} is not kept with {kept.release}", hint="lastgood releases")
        return found

    def _start(self, release: str, service: str, artifact: str, ends_at: datetime) -> None:
        self._ask(Verb.START, release, service, artifact, ends_at)

    def _ask(self, verb: Verb, release: str, service: str, artifact: str, ends_at: datetime) -> Answer:
        left_s = max((ends_at - self._clock.now()).total_seconds(), 1.0)
        request = Ask(verb=verb, release=release, service=service, artifact=artifact, stop_s=self._config.stop)
        return ask_or_start(self._shelf.state, request, deadline_s=left_s)

    def _wait(self, release: str, service: str, artifact: str, ends_at: datetime) -> None:
        """Wait until the candidate is healthy. Raises Refused when it ends, or is not healthy in time."""
        began = self._clock.now()
        while True:
            beside = [
                i for i in self._look().candidates if (i.service, i.release, i.artifact) == (service, release, artifact)
            ]
            if any(i.serves for i in beside):
                return
            if all(i.exit_code is not None for i in beside):
                codes = ", ".join(str(i.exit_code) for i in beside)
                raise self._failed(release, service, f"exited with {codes}" if codes else "is gone")
            if self._clock.now() >= ends_at:
                raise self._failed(
                    release, service, f"is not healthy after {(self._clock.now() - began).total_seconds():.0f} s"
                )
            self._clock.sleep(POLL_S)

    def _failed(self, release: str, service: str, how: str) -> Refused:
        instance = next((i for i in self._shelf.instances() if i.service == service and i.part is Part.CANDIDATE), None)
        said, path = "nothing", self._shelf.state / "logs"
        if instance is not None:
            path = self._shelf.log(instance.id)
            said = self._masker(release).tail(self._log(release, instance.id, lines=50), lines=2) or said
        return Refused(f"{service} of {release} {how} at the gate; it said: {said}", hint=f"less {path}")

    def _clear(self) -> None:
        ask(self._shelf.state, Ask(verb=Verb.CLEAR, stop_s=self._config.stop), deadline_s=2 * self._config.stop + 5.0)

    def _log(self, release: str, instance: str, *, lines: int) -> str:
        try:
            text = self._shelf.log(instance).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        return self._masker(release).clean("".join(text.splitlines(keepends=True)[-lines:]))

    def _masker(self, release: str) -> Masker:
        return Masker([service.env for service in self._shelf.find(release).services])


def end_services(state: Path, *, stop_s: float) -> None:
    """End every service of a state directory, and its holder: for who takes a whole stack away. stop_s: what each gets
    to finish what it is answering, and again to end. Nothing to do where there is none."""
    if not state.is_dir():
        return
    ask(state, Ask(verb=Verb.END, stop_s=stop_s), deadline_s=2 * stop_s + 5.0)
    for pid, started in processes.owned_by(state.resolve()):
        processes.end(pid, started, signal.SIGKILL)


def _unheld(noted: Instance) -> InstanceFacts:
    """An instance without a holder: it may run, and no request reaches it."""
    return InstanceFacts(
        service=noted.service,
        instance=f"{noted.pid}@{noted.started}",
        artifact=noted.artifact,
        running=processes.lives(noted.pid, noted.started),
        health=Health.UNHEALTHY,
        release=noted.release,
        config_hash=noted.config_hash,
        restarts=noted.restarts,
        exit_code=noted.exit_code,
    )

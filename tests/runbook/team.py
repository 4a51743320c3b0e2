"""One team with lastgood: a stack in memory, and the commands that a person types, each as a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from lastgood.core.config import Config, parse_config
from lastgood.core.errors import LastgoodError
from lastgood.core.history import DeploymentHistory, History, RunHistory
from lastgood.core.plan import Plan, Role
from lastgood.core.record import AbortAsked, ApprovalDenied, ApprovalGiven, Event
from lastgood.core.report import Report
from lastgood.runbook import by_hand
from lastgood.runbook import deploy as deploying
from lastgood.runbook import record as recording
from lastgood.runbook import watch as watching
from lastgood.runbook.endings import WatchOutcome
from lastgood.runbook.rooms import Memory, Rooms
from lastgood.testing.stack import (
    PROBE,
    SERVICES,
    Behaviour,
    MemoryChecker,
    MemoryContainers,
    MemoryDatabase,
    MemoryFrontend,
    MemoryNotifier,
    MemorySource,
    Stack,
    artifact_of,
    see_data,
    see_feature,
    see_traffic,
)
from lastgood.testing.world import Crashes, Fault, MemoryJournal, SteppedClock

OLD: Final = "v1"
"""The release that is known to be good."""
BAD: Final = "v2"
ERRORS: Final = Behaviour(errors=0.3)
DURATIONS: Final = {"window": "5m", "baseline": "0s", "bake": "1m"}
"""Five minutes are enough for every trigger; what is normal is only read where a test is about it."""
_E = TypeVar("_E", bound=Event)


@cache
def config(
    mode: str, durations: tuple[tuple[str, str], ...], parts: frozenset[Role], *, lossless: bool, allow_pause: str
) -> Config:
    """The team's lastgood.yaml."""
    watch = "".join(f"  {name}: {value}\n" for name, value in durations)
    text = f"""
version: 1
stack: sim
mode: {mode}
watch:
{watch}
  traffic: {{metrics: http://127.0.0.1:1/metrics}}
  triggers:
    error-rate: {{kind: error_rate, limit: 1%}}
    latency: {{kind: latency, quantile: p95, limit: 500ms}}
    {PROBE}: {{kind: feature, probe: {{get: http://127.0.0.1:1/chat}}}}
    data: {{kind: data, invariants: invariants/*.sql}}
process:
  services: {{{", ".join(f"{name}: {{command: [{name}], port: 1}}" for name in SERVICES)}}}
notify: {{owner: ada}}
"""
    if Role.DATABASE in parts:
        text += "database:\n  postgres: {name: app, user: app}\n  migrations: {prisma: prisma, command: [migrate]}\n"
        pause = f", allow_pause: {allow_pause}" if allow_pause else ""
        text += f"  restore_points: {{require_lossless: {str(lossless).lower()}{pause}}}\n"
    if Role.FRONTEND in parts:
        text += "frontend: {vercel: {project: web, token: t, domains: [app.example]}}\n"
    return parse_config(text, file="sim", env={}, read_file=lambda _name: "")


class Team:
    """v1 serves and is good. Each verb is a command of its own: nothing is remembered but the journal and the world."""

    def __init__(
        self, root: Path, *, mode: str = "automatic", parts: frozenset[Role] = frozenset(Role), **durations: str
    ) -> None:
        self.root, self.parts = root, parts
        self.mode = mode
        self.durations: Mapping[str, str] = DURATIONS | durations
        self.lossless = False
        self.allow_pause = ""
        self.clock = SteppedClock()
        self.journal = MemoryJournal(self.clock)
        self.stack = Stack(self.clock)
        self.containers = MemoryContainers(self.stack)
        self.host = MemoryFrontend(self.stack)
        self.checker = MemoryChecker(self.stack)
        self.channel = MemoryNotifier(self.clock)
        self.told: list[str] = []
        self.who = "ada@laptop"

    @classmethod
    def with_a_good_release(
        cls, root: Path, *, mode: str = "automatic", parts: frozenset[Role] = frozenset(Role), **durations: str
    ) -> Team:
        """v1 was put there by somebody else's tool, and a person vouches for it."""
        team = cls(root, mode=mode, parts=parts, **durations)
        team.stack.push(OLD)
        for service in SERVICES:
            team.stack.put(service, artifact_of(service, OLD))
        recording.record(team.rooms(), OLD)
        recording.vouch(team.rooms(), OLD, why="known good")
        return team

    def put_behind_an_edge(self) -> None:
        """What serves does so as a release of its own, and traffic is switched."""
        facts = self.stack.containers
        serving = tuple(replace(i, release=self.history.serving) for i in facts.serving)
        self.stack.containers = replace(facts, switchable=frozenset(SERVICES), serving=serving)

    def start_beside(self, instance: str, *, running: bool = True) -> None:
        """Somebody has compose start a copy of its own of a service that switches."""
        facts = self.stack.containers
        copy = replace(facts.serving[0], release="", instance=instance, running=running)
        self.stack.containers = replace(facts, candidates=(*facts.candidates, copy))

    def rooms(self) -> Rooms:
        """The rooms of one process."""
        return Rooms(
            config=config(
                self.mode,
                tuple(self.durations.items()),
                self.parts,
                lossless=self.lossless,
                allow_pause=self.allow_pause,
            ),
            memory=Memory(self.journal),
            clock=self.clock,
            containers=self.containers,
            database=MemoryDatabase(self.stack) if Role.DATABASE in self.parts else None,
            frontend=self.host if Role.FRONTEND in self.parts else None,
            sources=(
                MemorySource("traffic", self.stack, see_traffic),
                MemorySource(PROBE, self.stack, see_feature),
                MemorySource("data", self.stack, see_data),
            ),
            checkers=(self.checker,),
            notifiers=(self.channel,),
            root=self.root,
            state=self.root / ".lastgood",
            who=self.who,
            story=self.told.append,
            if_slow=self.clock.if_slow,
        )

    # --- what a person types -----------------------------------------------------------------------------------

    def deploy(
        self,
        name: str = BAD,
        behaviour: Behaviour | None = None,
        *,
        first: bool = False,
        override: bool = False,
        pushed: bool = True,
        confirm: Callable[[Plan], bool] = lambda _plan: True,
    ) -> deploying.Deployed:
        """`lastgood deploy --no-watch`, of a release that behaves so, after its push."""
        if behaviour is not None:
            self.stack.behaves[name] = behaviour
        if pushed:
            self.stack.push(name)
        rooms = self.rooms()
        return deploying.deploy(rooms, name, first=first, override=override, confirm=confirm)

    def watch(self) -> WatchOutcome:
        """`lastgood watch`, of what is under way, or of the bake after a rollback."""
        under = self.history.open_deployment or watching.baking(self.rooms())
        assert under is not None, "nothing to watch"
        return watching.watch_on(self.rooms(), under.deployment.id)

    def roll_back(
        self,
        target: str | None = None,
        *,
        only: frozenset[Role] = frozenset(Role),
        confirm: Callable[[Plan], bool] = lambda _plan: True,
        yes: bool = False,
    ) -> Report:
        """`lastgood rollback -m ...`; yes: with `--yes`."""
        return by_hand.go_back(self.rooms(), target=target, only=only, why="chat is down", confirm=confirm, yes=yes)

    def unfreeze(self, why: str = "fixed in 4e1f") -> tuple[str, ...]:
        """`lastgood unfreeze -m ...`."""
        return by_hand.unfreeze(self.rooms(), why)

    def approve(self, *, plan_hash: str | None = None) -> None:
        """`lastgood approve`."""
        self._ask(ApprovalGiven(run=self.waiting, plan_hash=plan_hash or self.run.plan.hash, by="grace@laptop"))

    def deny(self) -> None:
        """`lastgood deny -m ...`."""
        self._ask(ApprovalDenied(run=self.waiting, by="grace@laptop", why="we fix forward"))

    def abort(self) -> None:
        """`lastgood abort -m ...`."""
        self._ask(AbortAsked(run=self.waiting, by="grace@laptop", why="wrong release"))

    def _ask(self, event: Event) -> None:
        """By another process than the one that may be about to die."""
        crashes, self.journal.crashes = self.journal.crashes, Crashes()
        self.journal.append(event)
        self.journal.crashes = crashes

    def when_told(self, phrase: str, act: Callable[[], None], *, after_s: float = 0.0) -> None:
        """Have somebody act so long after a line with this phrase was told."""
        heard = len([line for line in self.told if phrase in line])

        def listen() -> None:
            again = len([line for line in self.told if phrase in line]) > heard
            self.clock.after(after_s, act) if again else self.clock.after(0.5, listen)

        self.clock.after(0.5, listen)

    def when_asked(self, act: Callable[[], None], *, after_s: float = 60.0) -> None:
        """Have somebody act so long after a run began to wait."""
        self.when_told("waiting at", act, after_s=after_s)

    # --- what can be seen --------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """What the journal knows."""
        return Memory(self.journal).history()

    @property
    def run(self) -> RunHistory:
        """The newest run."""
        return next(reversed(self.history.runs.values()))

    @property
    def waiting(self) -> str:
        """The run that is under way."""
        run = self.history.open_run
        assert run is not None, "no run is under way"
        return run.started.run

    @property
    def deployment(self) -> DeploymentHistory:
        """The newest deployment."""
        return next(reversed(self.history.deployments.values()))

    @property
    def report(self) -> Report:
        """Of the newest run that ended with one."""
        return next(r.ended.report for r in reversed(self.history.runs.values()) if r.ended and r.ended.report)

    def events(self, kind: type[_E]) -> list[_E]:
        """The journal's events of one kind, oldest first."""
        return [record.event for record in self.journal.kept if isinstance(record.event, kind)]

    # --- what goes wrong ---------------------------------------------------------------------------------------

    def fails(self, step: str, *errors: LastgoodError, after: bool = False) -> None:
        """Have the next attempts of a step fail."""
        self.stack.faults.setdefault(step, []).extend(Fault(error=error, after=after) for error in errors)

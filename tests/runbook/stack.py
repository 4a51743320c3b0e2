"""The stack in memory with its runbooks: v1 serves and is good; a release named `bad` answers half of its requests with
an error while it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lastgood.core.config import Config, parse_config
from lastgood.core.history import History, RunHistory
from lastgood.core.plan import Plan, Role
from lastgood.core.reading import Probed, Traffic
from lastgood.core.record import AbortAsked, ApprovalDenied, ApprovalGiven, Event, Unfrozen
from lastgood.core.release import Standing
from lastgood.core.report import Report, TerminalState
from lastgood.runbook import deploy as deploying
from lastgood.runbook import rollback as returning
from lastgood.runbook import watch as watching
from lastgood.runbook.deploy import Deployed
from lastgood.runbook.record import record, vouch
from lastgood.runbook.rooms import Memory, Rooms
from lastgood.runbook.watch import WatchOutcome
from lastgood.testing.memory_stack import (
    MemoryChecker,
    MemoryContainers,
    MemoryDatabase,
    MemoryFrontend,
    MemoryNotifier,
    MemorySource,
    content_that_serves,
)
from lastgood.testing.world import Crashes, MemoryJournal, SteppedClock, World

SERVICES = ("core", "agent")
ALL_WELL = Traffic(requests=100, errors=0, slow=0)
HALF_ERRORS = Traffic(requests=100, errors=50, slow=0)
ANSWERS = Probed(asked=1, failed=0)
SILENT = Probed(asked=1, failed=1, detail="no answer")
WINDOW_S = 600.0
BAKE_S = 120.0
CONFIG = """
version: 1
stack: memory
mode: {mode}
watch:
  window: {window:.0f}s
  bake: {bake:.0f}s
  traffic: {{metrics: "http://127.0.0.1:1/metrics"}}
  triggers:
    error-rate: {{kind: error_rate, limit: 1%}}
    agent: {{kind: feature, probe: {{post: "http://127.0.0.1:1/execute"}}}}
process:
  services:
    core: {{command: [core], port: 1}}
    agent: {{command: [agent], port: 2}}
notify: {{owner: ada}}
{database}
{frontend}
"""
DATABASE = "database: {postgres: {name: app, user: app}}"
FRONTEND = "frontend: {vercel: {project: web, token: t}}"


class Stack:
    """One stack; as many processes as it takes, each with rooms of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: str = "automatic",
        database: bool = False,
        frontend: bool = False,
        production: str = "",
        recorded: bool = True,
    ) -> None:
        text = CONFIG.format(
            mode=mode,
            window=WINDOW_S,
            bake=BAKE_S,
            database=DATABASE if database else "",
            frontend=FRONTEND if frontend else "",
        )
        self.config: Config = parse_config(text, file="memory", env={}, read_file=lambda _name: "")
        self.folder = folder
        self.clock = SteppedClock()
        self.journal = MemoryJournal(self.clock)
        serving = {service: f"{service}-v1" for service in SERVICES}
        self.world = World(serving=serving, held=frozenset(serving.values()))
        self.containers = MemoryContainers(self.world, SERVICES)
        self.database = MemoryDatabase(self.world, self.clock)
        self.frontend = MemoryFrontend(self.world)
        self.traffic = MemorySource("traffic", self.world, ALL_WELL, {"bad": HALF_ERRORS})
        self.agent = MemorySource("agent", self.world, ANSWERS)
        self.checker = MemoryChecker(self.world)
        self.notifier = MemoryNotifier()
        self.story: list[str] = []
        self.world.frontend = replace(self.world.frontend, production=production)
        if not recorded:
            self.world.containers = replace(self.world.containers, serving=())
            return
        record(self.rooms(), "v1")
        vouch(self.rooms(), "v1", why="seen by the team")

    def rooms(self, who: str = "ada") -> Rooms:
        """The rooms of a process that starts now."""
        return Rooms(
            config=self.config,
            memory=Memory(self.journal),
            clock=self.clock,
            containers=self.containers,
            database=self.database if self.config.database else None,
            frontend=self.frontend if self.config.frontend else None,
            sources=(self.traffic, self.agent),
            checkers=(self.checker,),
            notifiers=(self.notifier,),
            root=self.folder,
            state=self.folder / "state",
            who=who,
            story=self.story.append,
            if_slow=self.clock.if_slow,
        )

    @property
    def history(self) -> History:
        """The journal, folded anew."""
        return self.rooms().memory.history()

    @property
    def serves(self) -> str:
        """The content that serves."""
        return content_that_serves(self.world)

    def events(self, kind: type[Event]) -> list[Event]:
        """The journal's events of a kind, oldest first."""
        return [r.event for r in self.journal.kept if isinstance(r.event, kind)]

    def said(self, part: str) -> list[str]:
        """What the team was told with `part` in it."""
        return [text for text in self.notifier.said if part in text]

    def deploy(
        self,
        name: str,
        *,
        first: bool = False,
        override: bool = False,
        confirm: Callable[[Plan], bool] = lambda _plan: True,
    ) -> Deployed:
        """Deploy, without the watch."""
        rooms = self.rooms()
        with self.journal.claim(rooms.who):
            return deploying.deploy(rooms, name, first=first, override=override, confirm=confirm)

    def watch(self, deployment: str = "") -> WatchOutcome:
        """Watch a deployment, or its bake; the newest where none is named."""
        return watching.watch_on(self.rooms(), deployment or next(reversed(self.history.deployments)))

    def deploy_and_watch(self, name: str, *, override: bool = False) -> WatchOutcome:
        """Deploy and watch to the end."""
        self.deploy(name, override=override)
        return self.watch()

    def roll_back(self, *, only: frozenset[Role] = frozenset(Role)) -> Report:
        """Roll back because a person asked for it."""
        rooms = self.rooms()
        under = self.history.open_deployment
        cause = returning.Cause(
            trigger=returning.BY_PERSON,
            sentence="ada asked for it",
            by=rooms.who,
            deployment=under.deployment.id if under else "",
        )
        with self.journal.claim(rooms.who):
            return returning.roll_back(rooms, cause, only=only)

    def unfreeze(self) -> None:
        """A person looked, and lets deploys go on."""
        self.journal.append(Unfrozen(by="ada", why="fixed"))

    @property
    def run(self) -> RunHistory:
        """The newest run of a rollback that is no compensation."""
        runs = [r for r in self.history.runs.values() if r.started.trigger != returning.COMPENSATION]
        return runs[-1]

    def _answer(self, event: Event) -> None:
        """A person's word, from a process of its own: it does not die with the run."""
        crashes, self.journal.crashes = self.journal.crashes, Crashes()
        self.journal.append(event)
        self.journal.crashes = crashes

    def approve(self, plan_hash: str = "") -> None:
        """Approve the newest run; another plan's hash where one is given."""
        run = self.run
        self._answer(ApprovalGiven(run=run.started.run, plan_hash=plan_hash or run.plan.hash, by="ada"))

    def deny(self) -> None:
        self._answer(ApprovalDenied(run=self.run.started.run, by="ada", why="we fix forward"))

    def abort(self) -> None:
        self._answer(AbortAsked(run=self.run.started.run, by="ada", why="wrong release"))

    def terminal(self) -> TerminalState | None:
        """How the newest deployment ended."""
        newest = next(reversed(self.history.deployments.values()))
        return newest.ended.terminal if newest.ended else None

    def standing(self, release: str) -> Standing:
        return self.history.releases[release].standing

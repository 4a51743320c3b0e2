"""What a runbook works with: the ports, wired by `assembly`, and the folded journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lastgood.core.config import Config
from lastgood.core.errors import Refused
from lastgood.core.history import History, fold
from lastgood.core.plan import Role
from lastgood.core.ports import Checker, Clock, Containers, Database, Frontend, Journal, Notifier, SignalSource, Target
from lastgood.core.record import Event, Record
from lastgood.core.returning import Deadlines
from lastgood.runbook.patience import IfSlow, if_slow

Story = Callable[[str], None]
"""Takes one line of the story that a person follows while a command works."""


def silent(_line: str) -> None:
    """Nobody looks at what is about to change."""


class Memory:
    """The journal and its fold, kept up to date together."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._history = History()

    def history(self) -> History:
        """Return everything the journal knows, records of other processes included."""
        return fold(self.journal.records(after=self._history.last_seq), self._history)

    def note(self, event: Event) -> Record:
        """Append one event; durable when this returns. Raises NeedsHuman when it cannot be."""
        return self.journal.append(event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """One stack's ports. database, frontend: None when not configured. root: folder of lastgood.yaml. who: for the
    journal. update: takes a line that the next one takes the place of; from another thread."""

    config: Config
    memory: Memory
    clock: Clock
    containers: Containers
    database: Database | None
    frontend: Frontend | None
    sources: tuple[SignalSource, ...]
    checkers: tuple[Checker, ...]
    notifiers: tuple[Notifier, ...]
    root: Path
    state: Path
    who: str
    story: Story
    if_slow: IfSlow = if_slow
    update: Story = silent

    def target(self, role: Role) -> Target:
        """Return the hand for a role. Raises Refused when a plan has a step for a part that is not configured now."""
        found: dict[Role, Target | None] = {
            Role.CONTAINERS: self.containers,
            Role.DATABASE: self.database,
            Role.FRONTEND: self.frontend,
        }
        target = found[role]
        if target is None:
            raise Refused(f"the {role.value} is not configured any more, and a run needs it", hint="lastgood.yaml")
        return target

    def named(self) -> tuple[str, ...]:
        """Return the names by which what serves now calls itself; empty when nothing says."""
        return tuple(name for checker in self.checkers for name in checker.named())

    @property
    def deadlines(self) -> Deadlines:
        """Seconds for the steps of a rollback, from the configuration."""
        engine = self.config.containers or self.config.process
        edge = self.config.containers.edge if self.config.containers else None
        return Deadlines(
            boot_s=(engine.boot + engine.stop) if engine else 60.0,
            drain_s=edge.drain if edge else 0.0,
            frontend_s=self.config.frontend.vercel.timeout if self.config.frontend else 60.0,
            database_s=self.config.database.restore_points.timeout if self.config.database else 3600.0,
        )

"""One rollback of the campaign, on a real server, from the restore point to the accounts."""

from __future__ import annotations

import json
import math
import os
import secrets
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final, cast

from lastgood.core.config import Config, parse_config
from lastgood.core.errors import LastgoodError
from lastgood.core.facts import DatabaseFacts
from lastgood.core.plan import Plan, Purpose, Role, Seen, Step, seen
from lastgood.core.ports import Containers, Database
from lastgood.core.record import RunStarted
from lastgood.core.report import Progress, RowProgress
from lastgood.core.run import Finish
from lastgood.journal.sqlite import SqliteJournal
from lastgood.runbook.carry_out import carry_out
from lastgood.runbook.rooms import Memory, Rooms
from lastgood.targets.postgres import replay
from lastgood.targets.postgres.connect import connect
from tests.campaign import ledger
from tests.campaign.accounts import Data, Found, Order, judge
from tests.campaign.case import STEPS, Case, Kill, Outcome
from tests.campaign.ledger import Ended
from tests.campaign.market import TABLES
from tests.campaign.market_books import Good, Market, Visited
from tests.campaign.users import Habits, Users
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_cluster import Cluster
from tests.contract.rigs.postgres_world import FIRST, REPLAY, SHOP, PostgresWorld

TEMPLATE: Final = "shop_template"
WHOLE_SHOP: Final = SHOP + TABLES
LIVES: Final = 4
WHOLE_S: Final = 90.0
RUN: Final = "r1"
STOPPED: Final = 3
BEGAN: Final = "began"
DONE: Final = "done"
CONFIG: Final = """
version: 1
stack: campaign
process:
  services:
    core: {command: [core], port: 1}
"""


@cache
def config() -> Config:
    return parse_config(CONFIG, file="campaign", env={}, read_file=lambda _name: "")


def prepare(folder: Path, cluster: Cluster) -> None:
    """Make the shop of which each rollback has a copy."""
    with connect(cluster.config, database="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}".encode())
    made = world_in(folder, cluster, TEMPLATE)
    made.ship("v1", {FIRST: WHOLE_SHOP})
    made.target.apply(made.step_to_migrate("v1", FIRST))
    # A copy takes over how many numbers may still be given out without a word in the log, and its log does not know
    # them: after a crash PostgreSQL 15 would give them out again. After setval there are none.
    made.sql(
        "SELECT setval(format('%I.%I', schemaname, sequencename), last_value) FROM pg_sequences WHERE last_value > 0"
    )


def world_in(folder: Path, cluster: Cluster, name: str) -> PostgresWorld:
    @contextmanager
    def pause() -> Generator[None]:
        raise NotImplementedError
        yield

    return PostgresWorld(folder, cluster.config.model_copy(update={"name": name}), pause)


class AwayClock:
    """The machine's time, which does not wait on when a server that was away is back: that long is not interesting, and
    whoever waits cannot tell."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._skipped = cluster, timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._skipped

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        was_away = not self._answers()
        while (left_s := until - time.monotonic()) > 0:
            if was_away and self._answers():
                self._skipped += timedelta(seconds=left_s)
                return
            time.sleep(min(left_s, 0.02))

    def _answers(self) -> bool:
        try:
            connect(self._cluster.config, database="postgres").close()
        except LastgoodError:
            return False
        return True


class TellingHand:
    """The database's hand, which says on a pipe when an attempt of a step begins and when it ends."""

    role = Role.DATABASE

    def __init__(self, world: PostgresWorld, pipe: int) -> None:
        self._target, self._pipe = world.target, pipe

    def observe(self) -> DatabaseFacts:
        return self._target.observe()

    def apply(self, step: Step) -> None:
        self._say(BEGAN, step)
        try:
            self._target.apply(step)
        except LastgoodError:
            self._say("failed", step)
            raise
        self._say(DONE, step)

    def progress(self) -> Progress | RowProgress | None:
        return self._target.progress()

    def _say(self, what: str, step: Step) -> None:
        os.write(self._pipe, f"{what} {step.name} {time.monotonic()}\n".encode())


@dataclass(slots=True)
class Watcher:
    """Reads the pipe. told: what was said, with its moment."""

    pipe: int
    told: list[tuple[str, str, float]] = field(default_factory=list[tuple[str, str, float]])
    _rest: str = ""

    def look(self, wait_s: float = 0.0) -> bool:
        """Read what was said, at most so long waiting for it; whether anybody can still say something."""
        if not select.select([self.pipe], [], [], max(wait_s, 0.0))[0]:
            return True
        said = os.read(self.pipe, 65536).decode()
        *lines, self._rest = (self._rest + said).split("\n")
        for line in lines:
            what, step, at = line.split()
            self.told.append((what, step, float(at)))
        return bool(said)

    def inside(self, at: float = math.inf) -> str:
        """The step of which an attempt was under way then; empty for none."""
        before = [(what, step) for what, step, moment in self.told if moment < at]
        return before[-1][1] if before and before[-1][0] == BEGAN else ""

    def steps_s(self) -> dict[str, float]:
        """How long the steps took that were done."""
        return {
            step: ended_at - began_at
            for (_, step, began_at), (what, _, ended_at) in pairwise(self.told)
            if what == DONE
        }


class Rollback:
    """One case on one server. usual_s: how long each step takes when nobody disturbs it."""

    def __init__(self, case: Case, folder: Path, cluster: Cluster, usual_s: Mapping[str, float]) -> None:
        self.case, self.folder, self.cluster, self._usual_s = case, folder, cluster, usual_s
        self.world = world_in(folder, cluster, f"shop_{case.number}_{secrets.token_hex(3)}")
        self.world.ship("v2", {FIRST: WHOLE_SHOP, **case.shape.files})
        self.steps = tuple(step for step in self.world.way_back if step.name in STEPS)
        self.story: list[str] = []
        self.steps_s: dict[str, float] = {}
        self.landed, self.after_s = False, case.moment * usual_s[case.step]

    def play(self) -> Outcome:
        began, case = time.monotonic(), self.case
        with connect(self.cluster.config, database="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self.world.config.name} TEMPLATE {TEMPLATE}".encode())
            connection.execute(f"ALTER DATABASE {self.world.config.name} SET timezone = '{case.shape.zone}'".encode())
        try:
            base, fingerprint = rows_of(self.world, self.world.config.name), self.world.target.observe().fingerprint
            self._all_written()
            counts, wrong = self._accounts(base, fingerprint)
        finally:
            self._drop()
        return Outcome(
            case=case,
            landed=self.landed,
            after_s=self.after_s,
            took_s=time.monotonic() - began,
            counts=counts,
            wrong=wrong,
            steps_s=self.steps_s,
        )

    def _all_written(self) -> None:
        """The whole story, in which users write all the while."""
        case, world = self.case, self.world
        habits = Habits(seed=case.label, shape=case.shape, users=case.users, pause_s=case.pause_s)
        with Users(world.config, habits, self.folder / "ledger.jsonl") as users:
            users.ask("go")
            users.ask("wait 10")
            self._apart(world.take)
            users.ask("wait 10")
            users.ask("hold")
            self._apart(lambda: world.target.apply(world.step_to_migrate("v2", *case.shape.files)))
            users.ask("later")
            users.ask("go")
            if case.shape.attach:
                users.ask(f"wait {case.backlog // 2}")
                world.sql(case.shape.attach)
                users.ask("attached")
            users.ask(f"wait {case.backlog}")
            users.ask("easy")
            self._journal().append(
                RunStarted(run=RUN, plan=self._plan(), trigger="person", sentence="it is bad", by="campaign")
            )
            self._carry_out()
            users.ask("before")
            users.ask("wait 5")

    @staticmethod
    def _apart(work: Callable[[], None]) -> None:
        """Do it in a process of its own: no thread of it may be here when the next one is made."""
        assert ended(begin(work)) == 0, "it failed before anybody was killed"

    def _plan(self) -> Plan:
        return Plan(
            id=RUN,
            purpose=Purpose.ROLLBACK,
            made_at=datetime.now(UTC),
            from_release="v2",
            to_release="v1",
            steps=self.steps,
            rung="",
        )

    def _journal(self) -> SqliteJournal:
        return SqliteJournal(self.folder / "journal", clock=AwayClock(self.cluster))

    # --- the controller, and who dies ----------------------------------------------------------------------------

    def _controller(self, pipe: int) -> None:
        """Carry the plan on from where the journal says it is."""
        replay.AT_ONCE, replay.BATCH = self.case.at_once, self.case.decoded  # type: ignore[misc] # see Case
        rooms = Rooms(
            config=config(),
            memory=Memory(self._journal()),
            clock=AwayClock(self.cluster),
            containers=cast("Containers", None),
            database=cast("Database", TellingHand(self.world, pipe)),
            frontend=None,
            sources=(),
            checkers=(),
            notifiers=(),
            root=self.folder,
            state=self.folder / "state",
            who="campaign",
            story=self._note,
        )
        with rooms.memory.journal.claim("campaign"):
            ending = carry_out(rooms, RUN)
        if not isinstance(ending, Finish):
            self._note(f"stopped: {ending.reason}")
            os._exit(STOPPED)

    def _note(self, line: str) -> None:
        with (self.folder / "story.txt").open("a") as story:
            story.write(f"{line}\n")

    def _carry_out(self) -> None:
        """Begin a controller, kill whom the case says, and begin another one as long as one dies."""
        struck = False
        for _ in range(LIVES):
            heard, said = os.pipe()
            pid = begin(lambda: self._controller(said))  # noqa: B023 # forked at once
            os.close(said)
            watcher = Watcher(heard)
            try:
                if not struck:
                    struck = self._strike(watcher, pid)
                while watcher.look(WHOLE_S):
                    pass
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                raise
            finally:
                os.close(heard)
                code = ended(pid)
            self.steps_s |= watcher.steps_s()
            self.story += [*(f"{what} {step}" for what, step, _ in watcher.told), f"controller ended {code}"]
            if code != -signal.SIGKILL:
                assert code == 0, f"the rollback did not come to its end: {self._told()}"
                return
        raise AssertionError("the controller died too often")

    def _strike(self, watcher: Watcher, controller: int) -> bool:
        """Kill at the moment; False when it did not come. Sets `landed` when the step was under way."""
        case, killed = self.case, list[int]()
        while watcher.inside() != case.step:
            if not watcher.look(WHOLE_S):
                return False
        moment = time.monotonic() + self.after_s
        while (left_s := moment - time.monotonic()) > 0 and watcher.inside() == case.step:
            watcher.look(left_s)
        if watcher.inside() != case.step:
            return False
        victims = [controller]
        if case.kill is Kill.BACKEND:
            victims = self.cluster.backends(self.world.config.name)
        at = time.monotonic()
        if case.kill is Kill.POSTMASTER:
            killed = self.cluster.kill()
        else:
            try:
                os.kill(secrets.choice(victims), signal.SIGKILL)
            except (IndexError, ProcessLookupError):  # none was there, or it has just ended by itself
                return False
        if case.kill is Kill.CONTROLLER:
            os.waitid(os.P_PID, controller, os.WEXITED | os.WNOWAIT)
        watcher.look()  # it may have ended before it could be told
        self.landed = watcher.inside(at) == case.step
        self.story.append(f"{case.kill} killed inside {watcher.inside(at) or 'no step'}")
        if killed:
            time.sleep(case.away_s)
            self.cluster.start(after=killed)
        return True

    def _told(self) -> str:
        path = self.folder / "story.txt"
        return " | ".join([*self.story, *(path.read_text().splitlines() if path.exists() else ())])

    # --- afterwards ----------------------------------------------------------------------------------------------

    def _accounts(self, base: Data, fingerprint: str) -> tuple[Mapping[str, int], tuple[str, ...]]:
        lines, world = list(ledger.read(self.folder / "ledger.jsonl")), self.world
        waiting = world.quarantine()
        found = Found(
            data=rows_of(world, world.config.name),
            audit=audit_of(world, world.config.name),
            kept_audit=audit_of(world, world.kept_as),
            quarantine=waiting,
            left_out=left_out(world),
        )
        findings = judge(lines, base, found, self.case.shape)
        wrong = [*findings.wrong, *self._unfinished(fingerprint)]
        replayed, ends = world.replayed(), Counter(line.ended for line in lines)
        counts = {
            "acknowledged": ends[Ended.ACKNOWLEDGED],
            "unknown": ends[Ended.UNKNOWN],
            "replayed": replayed.replayed,
            "quarantined": len(waiting),
            "unaccounted": len(findings.unaccounted),
            "twice": len(findings.twice),
        }
        told = [f"{token} is not accounted for" for token in findings.unaccounted]
        told += [f"{token} was applied twice" for token in findings.twice]
        return counts, (*told, *wrong)

    def _unfinished(self, fingerprint: str) -> Generator[str]:
        """What is not as a rollback leaves it."""
        world = self.world
        facts, name = world.target.observe(), world.config.name
        for step in self.steps:
            if seen(step, facts) is not Seen.DONE:
                yield f"{step.name} is not done: {self._told()}"
        there = {database for database in facts.databases if database.startswith(name)}
        if there != {name, world.kept_as}:
            yield f"the databases are {', '.join(sorted(there))}"
        if facts.fingerprint != fingerprint:
            yield "the live schema is not the one of before"
        zone = f"TimeZone={self.case.shape.zone}"
        settings = world.one(
            "SELECT setconfig::text FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase "
            "WHERE datname = current_database()"
        )
        if zone not in str(settings):
            yield f"the live database has the settings {settings}, and not {zone}"
        for trigger, enabled in world.sql("SELECT tgname, tgenabled FROM pg_trigger WHERE tgenabled <> 'O'"):
            yield f"trigger {trigger} is left {enabled}"

    def _drop(self) -> None:
        with connect(self.cluster.config, database="postgres", autocommit=True) as connection:
            made = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [self.world.config.name]
            )
            for (name,) in made.fetchall():
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def rows_of(world: PostgresWorld, database: str) -> Data:
    """The shop's rows, as they are there in the words of the old schema."""
    orders = world.sql("SELECT id, customer, total, state::text FROM orders", database=database)
    customers = world.sql("SELECT id, name FROM customers", database=database)
    return Data(
        orders={_int(i): Order(customer=_int(c), total=_int(t), state=str(s)) for i, c, t, s in orders},
        customers={_int(i): str(name) for i, name in customers},
        market=market_of(world, database),
    )


def market_of(world: PostgresWorld, database: str) -> Market:
    """The campaign's half of the shop, likewise."""
    goods = world.sql("SELECT code, name, since::text FROM goods", database=database)
    picks, stocks, visits = (
        world.sql(f"SELECT {columns}", database=database)
        for columns in ("id, good FROM picks", "id, n FROM stocks", "id, day, what FROM visits")
    )
    return Market(
        goods={str(code): Good(name=str(name), since=str(since)) for code, name, since in goods},
        picks={_int(i): str(good) for i, good in picks},
        stocks={_int(i): _int(n) for i, n in stocks},
        visits={_int(i): Visited(day=_int(day), what=str(what)) for i, day, what in visits},
    )


def audit_of(world: PostgresWorld, database: str) -> list[tuple[str, str]]:
    return [(str(what), str(at)) for what, at in world.sql("SELECT what, at FROM audit", database=database)]


def left_out(world: PostgresWorld) -> Counter[int]:
    """By how much orders grew in a table that the old schema does not have."""
    path = world.folder / "state" / "replays" / REPLAY / replay.LEFT_OUT
    grown: Counter[int] = Counter()
    for line in map(json.loads, path.read_text().splitlines()):
        if line["table"] == "totals" and line["key"] and line["values"]:
            grown[int(line["values"]["id"])] += int(line["values"]["total"]) - int(line["key"]["total"])
    return grown


def _int(value: object) -> int:
    return int(str(value))

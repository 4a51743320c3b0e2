"""The users, in a process of their own, who note in the ledger what they were told.

They write from before the restore point until after the swap, connect again whenever they are thrown out, and know
nothing of fences. Each has rows of its own; some rows everybody adds to.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import IO, Any, Final, Self, assert_never

import psycopg

from lastgood.core.config import PostgresConfig
from tests.campaign import trader
from tests.campaign.ledger import (
    BOUGHT,
    LINE,
    PAID,
    REFUNDED,
    Act,
    Add,
    Buy,
    Cancel,
    Ended,
    Join,
    Leave,
    Line,
    Mark,
    Move,
    Postpone,
    Rename,
    Visit,
)
from tests.campaign.market import FIRST_DAY, REFILLED_BY, SECOND_DAY
from tests.campaign.trader import Trader
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_shapes import BEFORE, Shape, Unfit

HOT: Final = range(1, 6)
"""Orders to which everybody adds."""
CUSTOMERS: Final = range(1, 21)
AWAY_S: Final = 0.02
BUSY_S: Final = 0.002
TIRED_AFTER: Final = 50
ANSWER_S: Final = 60.0


class Missed(Exception):
    """A row of one's own is not there any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """shape: what the release after the migration says. pause_s: between two transactions of a user, on average, from
    when they are asked to take it easy; it grows, since a replay that everybody outruns has no end."""

    seed: str
    shape: Shape
    users: int
    pause_s: float


class Office:
    """What the users share: whose words are spoken, whether they may write, and the ledger."""

    def __init__(self, config: PostgresConfig, habits: Habits, ledger: IO[bytes]) -> None:
        self.config, self.habits = config, habits
        self.later, self.spoken, self.closed = False, 0, False
        self.attached = not habits.shape.attach
        """Whether there is a part for visits of the second day."""
        self._easy_since = -1
        self.may_write = threading.Event()
        self.acknowledged = 0
        self._ledger, self._lock = ledger, threading.Lock()

    def speak(self, *, later: bool) -> None:
        """From now on in other words. What anybody knew of rows of their own may be wrong."""
        self.later, self.spoken = later, self.spoken + 1

    def take_it_easy(self) -> None:
        self._easy_since = self.acknowledged

    @property
    def pause_s(self) -> float:
        if self._easy_since < 0:
            return BUSY_S
        return self.habits.pause_s * (1 + (self.acknowledged - self._easy_since) / TIRED_AFTER)

    def note(self, line: Line) -> None:
        with self._lock:
            self._ledger.write(LINE.dump_json(line) + b"\n")
            self._ledger.flush()
            self.acknowledged += line.ended is Ended.ACKNOWLEDGED


class User(threading.Thread):
    """One of them."""

    def __init__(self, office: Office, number: int) -> None:
        super().__init__(name=f"u{number}", daemon=True)
        self._office, self._chance = office, Random(f"{office.habits.seed}/{number}")  # noqa: S311 # no secret
        self.writing = threading.Lock()
        self._orders: dict[int, int] = {}
        self._customers: list[int] = []
        self._trader = Trader(self._chance)
        self._spoken, self._later, self._tried = 0, False, 0
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def run(self) -> None:
        while not self._office.closed:
            if not self._office.may_write.wait(AWAY_S):
                continue
            with self.writing:
                if self._office.may_write.is_set():
                    self._write()
            time.sleep(self._chance.expovariate(1 / self._office.pause_s))
        if self._connection:
            self._connection.close()

    def _write(self) -> None:
        """Try one transaction, and note what became of it."""
        office = self._office
        if self._spoken != office.spoken:
            self._forget()
            self._spoken, self._later = office.spoken, office.later
        connection = self._connected()
        if connection is None:
            return
        self._tried += 1
        token = f"{self.name}-{self._tried}"
        acts, end, why = self._acts(token), Ended.FAILED, ""
        nested, undone = self._savepoints(token, acts)
        try:
            acts, undone = self._said(connection, acts, nested=nested, undone=undone)
            connection.execute("INSERT INTO audit (what) VALUES (%s)", [token])
            end = Ended.UNKNOWN  # from here on only the answer tells
            connection.commit()
            end = Ended.ACKNOWLEDGED
        except Missed as error:
            why = str(error)
        except psycopg.Error as error:
            why = f"{error.sqlstate} {' '.join(str(error).split())}"
            if end is Ended.UNKNOWN and not connection.broken and error.sqlstate:
                end = Ended.FAILED  # the server lives, and said no
        office.note(
            Line(
                token=token,
                user=self.name,
                later=self._later,
                acts=acts,
                ended=end,
                why=why,
                nested=nested,
                undone=undone,
            )
        )
        if end is Ended.ACKNOWLEDGED:
            self._remember(acts)
        else:
            self._forget()
            self._start_anew(connection)

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]] | None:
        if self._connection is None:
            config = self._office.config
            try:
                self._connection = psycopg.connect(
                    host=config.host,
                    port=config.port,
                    user=config.user,
                    password=config.password.reveal() if config.password else None,
                    dbname=config.name,
                    application_name="shop",
                    connect_timeout=2,
                    options="-c synchronous_commit=on",
                )
            except psycopg.Error:
                time.sleep(AWAY_S)
        return self._connection

    def _start_anew(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        if not connection.broken:
            try:
                connection.rollback()
            except psycopg.Error:
                pass
            else:
                return
        connection.close()
        self._connection = None

    # --- what a user does ----------------------------------------------------------------------------------------

    def _acts(self, token: str) -> tuple[Act, ...]:
        chance, where = self._chance, self._chance.random()
        if self._later and chance.random() < 0.1:
            return (*self._unfit(token), *(self._at_the_market(token) if where < 0.6 else ()))
        if where < 0.3:
            return self._at_the_market(token)
        return (*self._at_the_desk(token), *(self._at_the_market(token) if where < 0.5 else ()))

    def _at_the_market(self, token: str) -> tuple[Act, ...]:
        shape = self._office.habits.shape
        days = (FIRST_DAY, SECOND_DAY) if self._office.attached else (FIRST_DAY,)
        return self._trader.drawn(token, unit=REFILLED_BY if self._later and shape.refill else 1, days=days)

    def _savepoints(self, token: str, acts: Sequence[Act]) -> tuple[bool, tuple[Act, ...]]:
        """Whether each act has a savepoint of its own, and what is rolled back to one."""
        chance = self._chance
        if self._office.habits.shape.attach and any(
            isinstance(act, Visit | Postpone) and act.day == SECOND_DAY for act in acts
        ):
            return False, ()
        nested = chance.random() < 0.2
        if chance.random() < 0.8:
            return nested, ()
        return nested, (self._bought(0) if chance.random() < 0.3 else self._trader.undone(token),)

    def _at_the_desk(self, token: str) -> tuple[Act, ...]:
        chance = self._chance
        order = chance.choice(list(self._orders)) if self._orders else 0
        customer = chance.choice(self._customers) if self._customers else 0
        possible: list[tuple[int, Callable[[], tuple[Act, ...]]]] = [
            (30, lambda: (self._bought(customer), self._added())),
            (15, lambda: (self._added(),)),
            (10, lambda: tuple(Add(id=id_, by=chance.randint(1, 9)) for id_ in sorted(chance.sample(HOT, 2)))),
            (10, lambda: (Join(name=token), Buy(customer=0, total=chance.randint(1, 300)))),
        ]
        if order:
            possible += [
                (12, lambda: (Mark(id=order, state=chance.choice((BOUGHT, PAID))),)),
                (
                    6,
                    lambda: (Add(id=order, by=chance.randint(1, 9)), Move(id=order, customer=chance.choice(CUSTOMERS))),
                ),
                (6, lambda: (Cancel(id=order), self._bought(0))),
                (4, lambda: (Cancel(id=order),)),
            ]
        if customer:
            possible += [
                (5, lambda: (Rename(id=customer, name=f"{token} renamed"),)),
                (5, lambda: (Leave(id=customer),)),
            ]
        (chosen,) = chance.choices([act for _, act in possible], [weight for weight, _ in possible])
        return chosen()

    def _bought(self, customer: int) -> Buy:
        one = customer if customer and self._chance.random() < 0.5 else self._chance.choice(CUSTOMERS)
        return Buy(customer=one, total=self._chance.randint(1, 300))

    def _added(self, order: int = 0) -> Add:
        return Add(id=order or self._chance.choice(HOT), by=self._chance.randint(1, 9))

    def _unfit(self, token: str) -> tuple[Act, ...]:
        """What the old schema has no place for, and something beside it for which it has."""
        order = self._chance.choice(list(self._orders)) if self._orders else 0
        match self._office.habits.shape.unfit:
            case Unfit.NEGATIVE:
                return (self._added(), Buy(customer=self._chance.choice(CUSTOMERS), total=-5))
            case Unfit.STATE if order:
                return (Mark(id=order, state=REFUNDED), self._added())
            case Unfit.OVERDRAWN if order:
                return (self._added(), Mark(id=order, state=PAID), Add(id=order, by=-1000))
            case Unfit.NAMESAKE:
                namesake = Join(name=f"customer {self._chance.choice(CUSTOMERS)}")
                return (namesake, Buy(customer=0, total=5), self._added())
            case Unfit.SPLIT | Unfit.STATE | Unfit.OVERDRAWN:
                return (self._bought(0), Join(name=token))
            case other:
                assert_never(other)

    def _said(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        acts: Sequence[Act],
        *,
        nested: bool,
        undone: Sequence[Act],
    ) -> tuple[tuple[Act, ...], tuple[Act, ...]]:
        """Say them to the server; return them with the numbers that it gave. Raises Missed."""
        said: list[Act] = []
        taken_back: list[Act] = []
        before = self._chance.randint(0, len(acts))
        for place in range(len(acts) + 1):
            if place == before:
                taken_back = [self._taken_back(connection, act) for act in undone]
            if place == len(acts):
                break
            if nested:
                connection.execute("SAVEPOINT one")
            made = next((act.id for act in said if isinstance(act, Join)), 0)
            said.append(self._say(connection, acts[place], made))
            if nested:
                connection.execute("RELEASE SAVEPOINT one")
        return tuple(said), tuple(taken_back)

    def _taken_back(self, connection: psycopg.Connection[tuple[Any, ...]], act: Act) -> Act:
        """Say it, and roll it back to a savepoint, which may stay; it may be that the server does not take it."""
        connection.execute("SAVEPOINT back")
        with suppress(psycopg.errors.UniqueViolation):
            act = self._say(connection, act, 0)
        connection.execute("ROLLBACK TO SAVEPOINT back")
        if self._chance.random() < 0.5:
            connection.execute("RELEASE SAVEPOINT back")
        return act

    def _say(self, connection: psycopg.Connection[tuple[Any, ...]], act: Act, made: int) -> Act:
        """made: the customer whom the transaction made."""
        words = self._office.habits.shape if self._later else BEFORE
        match act:
            case Buy(customer=customer, total=total):
                who = customer or made
                row = connection.execute(words.insert.encode(), {"customer": who, "total": total}).fetchone()
                return replace(act, customer=who, id=int(row[0]) if row else 0)
            case Join(name=name):
                insert = f"INSERT INTO customers ({words.name}) VALUES (%s) RETURNING id"
                row = connection.execute(insert.encode(), [name]).fetchone()
                return replace(act, id=int(row[0]) if row else 0)
            case Add(id=id_, by=by):
                hit = connection.execute(words.add.encode(), {"by": by, "id": id_}).rowcount
            case Cancel(id=id_):
                hit = connection.execute(words.drop.encode(), {"id": id_}).rowcount
            case Mark(id=id_, state=state):
                hit = connection.execute("UPDATE orders SET state = %s WHERE id = %s", [state, id_]).rowcount
            case Move(id=id_, customer=customer):
                hit = connection.execute("UPDATE orders SET customer = %s WHERE id = %s", [customer, id_]).rowcount
            case Rename(id=id_, name=name):
                update = f"UPDATE customers SET {words.name} = %s WHERE id = %s"
                hit = connection.execute(update.encode(), [name, id_]).rowcount
            case Leave(id=id_):
                hit = connection.execute("DELETE FROM customers WHERE id = %s", [id_]).rowcount
            case _:
                act, hit = trader.say(connection, act)
        if hit != 1:
            raise Missed(f"{act}: {hit} rows")
        return act

    def _remember(self, acts: Sequence[Act]) -> None:
        for act in acts:
            match act:
                case Buy(id=id_, customer=customer) | Move(id=id_, customer=customer):
                    self._orders[id_] = customer
                case Cancel(id=id_):
                    self._orders.pop(id_, None)
                case Join(id=id_):
                    self._customers.append(id_)
                case Leave(id=id_):
                    self._customers.remove(id_)
                    self._orders = {order: whose for order, whose in self._orders.items() if whose != id_}
                case Add() | Mark() | Rename():
                    pass
                case _:
                    self._trader.remember(act)

    def _forget(self) -> None:
        self._trader.forget()
        self._orders.clear()
        self._customers.clear()


class Users:
    """All of them, as whoever begins them sees them."""

    def __init__(self, config: PostgresConfig, habits: Habits, ledger: Path) -> None:
        self._config, self._habits, self._ledger = config, habits, ledger

    def __enter__(self) -> Self:
        heard, say = os.pipe()
        answered, answer = os.pipe()

        def office() -> None:
            os.close(say)
            os.close(answered)
            with os.fdopen(heard) as asked, os.fdopen(answer, "w") as answers, self._ledger.open("ab") as ledger:
                _open(Office(self._config, self._habits, ledger), asked, answers)

        self._pid = begin(office)
        os.close(heard)
        os.close(answer)
        self._say, self._answers = os.fdopen(say, "w"), os.fdopen(answered)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say.close()
        self._answers.close()
        assert ended(self._pid) == 0, "the users' process failed"

    def ask(self, what: str) -> None:
        """`go`, `hold` (until nobody writes), `easy` (fewer), `before` and `later` (whose words), `wait N` (until
        so many more were acknowledged), `attached` (there is another part for visits)."""
        self._say.write(f"{what}\n")
        self._say.flush()
        answer = self._answers.readline().strip()
        assert answer == "done", f"the users were asked to {what}: {answer or 'they are gone'}"


def _open(office: Office, asked: IO[str], answers: IO[str]) -> None:
    """Let them write until nobody asks any more."""
    users = [User(office, number) for number in range(office.habits.users)]
    for user in users:
        user.start()
    try:
        for line in asked:
            answers.write(f"{_done(office, users, *line.split())}\n")
            answers.flush()
    finally:
        office.closed = True
        for user in users:
            user.join(timeout=ANSWER_S)


def _done(office: Office, users: Sequence[User], what: str, count: str = "0") -> str:
    match what:
        case "go":
            office.may_write.set()
        case "hold":
            office.may_write.clear()
            for user in users:
                with user.writing:
                    pass
        case "easy":
            office.take_it_easy()
        case "attached":
            office.attached = True
        case "before" | "later":
            office.speak(later=what == "later")
        case "wait":
            enough, until = office.acknowledged + int(count), time.monotonic() + ANSWER_S
            while office.acknowledged < enough:
                if time.monotonic() > until:
                    return f"only {office.acknowledged} of {enough} transactions were acknowledged"
                time.sleep(0.002)
        case _:
            return "nobody knows what that is"
    return "done"

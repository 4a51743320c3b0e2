"""What a user does at the market, with goods, picks, stocks and visits of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final, assert_never

import psycopg

from tests.campaign.ledger import (
    AtTheMarket,
    Deliver,
    Offer,
    Pick,
    Postpone,
    PutBack,
    Recode,
    Renew,
    Repick,
    Strike,
    Take,
    Visit,
    Withdraw,
)
from tests.campaign.market import FIRST_DAY, HOT, SECOND_DAY

FIRST_MOMENT: Final = datetime(2026, 3, 1)  # noqa: DTZ001 # as UTC has it
MOMENTS: Final = 10_000_000


class Trader:
    """Draws what somebody does there, says it, and remembers what is theirs."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.forget()

    def forget(self) -> None:
        """Nothing is theirs. What was is there still: a code or a name of it would be refused, and is not used."""
        self._goods: dict[str, str] = {}
        self._picks: dict[int, str] = {}
        self._free_codes: list[str] = []
        self._free_names: list[str] = []
        self._stocks: list[int] = []
        self._visits: list[int] = []

    # --- what they do --------------------------------------------------------------------------------------------

    def drawn(self, token: str, *, unit: int, days: Sequence[int]) -> tuple[AtTheMarket, ...]:
        """unit: in how many of them they count what they counted as one. days: on which visits may be."""
        chance = self._chance
        possible: list[tuple[int, Callable[[], tuple[AtTheMarket, ...]]]] = [
            (12, lambda: self._offered(token)),
            (10, lambda: tuple(Take(id=id_, by=chance.randint(1, 9) * unit) for id_ in sorted(chance.sample(HOT, 2)))),
            (4, lambda: (Deliver(n=chance.randint(1, 90) * unit),)),
            (12, lambda: (Visit(day=chance.choice(days), what=token),)),
        ]
        if self._goods:
            code = chance.choice(list(self._goods))
            possible += [
                (12, lambda: (self._recoded(code, self._free_code(token)),)),
                (6, lambda: (Pick(good=code),)),
                *self._with_picks(code, token),
            ]
        if len(self._goods) > 1:
            possible.append((6, lambda: self._swapped(token)))
        if self._stocks:
            possible.append((4, lambda: (Take(id=chance.choice(self._stocks), by=chance.randint(1, 9) * unit),)))
        if self._visits and SECOND_DAY in days:
            visit = chance.choice(self._visits)
            possible += [
                (10, lambda: (Postpone(id=visit, day=SECOND_DAY, what=token),)),
                (3, lambda: (Strike(id=visit),)),
            ]
        (chosen,) = chance.choices([act for _, act in possible], [weight for weight, _ in possible])
        return chosen()

    def undone(self, token: str) -> AtTheMarket:
        """Something that they roll back, or that the server does not take."""
        if not self._goods:
            return Deliver(n=1)
        code = self._chance.choice(list(self._goods))
        if self._chance.random() < 0.5:
            return self._recoded(code, f"{token} undone")
        return Offer(code=f"{token} undone", name=self._goods[code], since=self._moment())

    def _with_picks(self, code: str, token: str) -> list[tuple[int, Callable[[], tuple[AtTheMarket, ...]]]]:
        picks, name = self._picks_of(code), self._goods[code]
        if not picks:
            return [
                (6, lambda: (Renew(code=code, name=name, since=self._moment()),)),
                (8, lambda: (Withdraw(code=code), self._offer(self._free_code(token), name))),
                (4, lambda: (Withdraw(code=code),)),
            ]
        pick, others = self._chance.choice(picks), [other for other in self._goods if other != code]
        return [
            (6, lambda: (PutBack(id=pick),)),
            (3, lambda: (*(PutBack(id=each) for each in picks), Withdraw(code=code))),
            *([(6, lambda: (Repick(id=pick, good=self._chance.choice(others)),))] if others else []),
        ]

    def _offered(self, token: str) -> tuple[AtTheMarket, ...]:
        name = self._chance.choice([token, *self._free_names])
        good = self._offer(self._free_code(token), name)
        return (good, Pick(good=good.code)) if self._chance.random() < 0.6 else (good,)

    def _offer(self, code: str, name: str) -> Offer:
        return Offer(code=code, name=name, since=self._moment())

    def _recoded(self, code: str, to: str) -> Recode:
        return Recode(code=code, to=to, follow=self._picks_of(code))

    def _swapped(self, token: str) -> tuple[AtTheMarket, ...]:
        one, other = self._chance.sample(list(self._goods), 2)
        away = replace(self._recoded(one, other), to=f"{token} away")
        return (away, self._recoded(other, one), replace(away, code=away.to, to=other))

    def _picks_of(self, code: str) -> tuple[int, ...]:
        return tuple(sorted(pick for pick, good in self._picks.items() if good == code))

    def _free_code(self, token: str) -> str:
        return self._chance.choice([token, *self._free_codes])

    def _moment(self) -> str:
        return str(FIRST_MOMENT + timedelta(seconds=self._chance.randrange(MOMENTS)))

    # --- afterwards ----------------------------------------------------------------------------------------------

    def remember(self, act: AtTheMarket) -> None:
        match act:
            case Offer(code=code, name=name):
                self._goods[code] = name
                self._free_codes = [free for free in self._free_codes if free != code]
                self._free_names = [free for free in self._free_names if free != name]
            case Withdraw(code=code):
                self._free_names.append(self._goods.pop(code))
                self._free_codes.append(code)
            case Recode(code=code, to=to, follow=follow):
                self._goods[to] = self._goods.pop(code)
                self._picks |= dict.fromkeys(follow, to)
                self._free_codes = [code, *(free for free in self._free_codes if free != to)]
            case Pick(id=id_, good=good) | Repick(id=id_, good=good):
                self._picks[id_] = good
            case PutBack(id=id_):
                del self._picks[id_]
            case Deliver(id=id_):
                self._stocks.append(id_)
            case Visit(id=id_, day=day):
                if day == FIRST_DAY:
                    self._visits.append(id_)
            case Postpone(id=id_) | Strike(id=id_):
                self._visits.remove(id_)
            case Renew() | Take():
                pass
            case _:
                assert_never(act)


def say(connection: psycopg.Connection[tuple[Any, ...]], act: AtTheMarket) -> tuple[AtTheMarket, int]:
    """Say it to the server. Return it with the number that it gave, and how many rows it hit."""
    match act:
        case Offer(code=code, name=name, since=since):
            return act, _offer(connection, code, name, since)
        case Withdraw(code=code):
            return act, _withdraw(connection, code)
        case Renew(code=code, name=name, since=since):
            return act, min(_withdraw(connection, code), _offer(connection, code, name, since))
        case Recode(code=code, to=to):
            done = connection.execute("UPDATE goods SET code = %s WHERE code = %s", [to, code])
        case Pick(good=good):
            return _made(act, connection.execute("INSERT INTO picks (good) VALUES (%s) RETURNING id", [good]))
        case Repick(id=id_, good=good):
            done = connection.execute("UPDATE picks SET good = %s WHERE id = %s", [good, id_])
        case PutBack(id=id_):
            done = connection.execute("DELETE FROM picks WHERE id = %s", [id_])
        case Take(id=id_, by=by):
            done = connection.execute("UPDATE stocks SET n = n + %s WHERE id = %s", [by, id_])
        case Deliver(n=n):
            return _made(act, connection.execute("INSERT INTO stocks (n) VALUES (%s) RETURNING id", [n]))
        case Visit(day=day, what=what):
            insert = "INSERT INTO visits (day, what) VALUES (%s, %s) RETURNING id"
            return _made(act, connection.execute(insert, [day, what]))
        case Postpone(id=id_, day=day, what=what):
            done = connection.execute("UPDATE visits SET day = %s, what = %s WHERE id = %s", [day, what, id_])
        case Strike(id=id_):
            done = connection.execute("DELETE FROM visits WHERE id = %s", [id_])
        case other:
            assert_never(other)
    return act, done.rowcount


def _made(act: Pick | Deliver | Visit, done: psycopg.Cursor[tuple[Any, ...]]) -> tuple[AtTheMarket, int]:
    row = done.fetchone()
    return replace(act, id=int(row[0]) if row else 0), done.rowcount


def _offer(connection: psycopg.Connection[tuple[Any, ...]], code: str, name: str, since: str) -> int:
    """The session's zone has a part in it: the column shows what clocks do, as long as it has no zone."""
    insert = "INSERT INTO goods (code, name, since) VALUES (%s, %s, %s::timestamptz)"
    return connection.execute(insert, [code, name, f"{since}+00"]).rowcount


def _withdraw(connection: psycopg.Connection[tuple[Any, ...]], code: str) -> int:
    return connection.execute("DELETE FROM goods WHERE code = %s", [code]).rowcount

"""Nothing that was acknowledged is lost when the database goes back, and nothing is applied twice: told by a ledger
outside, which the writers keep themselves."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Refused
from lastgood.core.plan import CatchUp, Fence, ReplayWrites, SwapDatabase
from lastgood.targets.postgres import catalog, replay, shelf, target
from lastgood.targets.postgres.broken import keys_that_break
from lastgood.targets.postgres.connect import Connection, connect
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.postgres_cluster import cluster
from tests.contract.rigs.postgres_shapes import BEFORE, SHAPES, Shape
from tests.contract.rigs.postgres_world import REPLAY, SECOND, PostgresWorld, step

HOT: Final = range(1, 6)
"""Orders to which everybody adds."""
WRITERS: Final = 3
EACH: Final = 60


@dataclass
class Ledger:
    """What was acknowledged: tokens of audit lines, and by how much each hot order grew."""

    tokens: list[str] = field(default_factory=list[str])
    added: Counter[int] = field(default_factory=Counter[int])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, token: str, order: int, by: int) -> None:
        with self.lock:
            self.tokens.append(token)
            self.added[order] += by


def write(world: PostgresWorld, shape: Shape, ledger: Ledger, name: str, migrated: threading.Event) -> None:
    """One user: an order, more of a hot one and a line of the audit, in one transaction; noted once it is committed."""
    chance = random.Random(name)  # noqa: S311 # which order grows is no secret
    connection = world.connect()
    for number in range(EACH):
        token, order, by = f"{name}-{number}", chance.choice(HOT), chance.randint(1, 9)
        speaks = shape if migrated.is_set() else BEFORE
        values = {"customer": chance.randint(1, 20), "total": chance.randint(1, 300), "by": by, "id": order}
        try:
            with connection.transaction():
                connection.execute(speaks.insert.encode(), values)
                connection.execute(speaks.add.encode(), values)
                connection.execute("INSERT INTO audit (what) VALUES (%s)", [token])
        except psycopg.errors.Error:
            if connection.broken:
                connection = world.connect()
            continue
        ledger.note(token, order, by)
    connection.close()


@contextmanager
def writing(world: PostgresWorld, shape: Shape, ledger: Ledger, migrated: threading.Event) -> Iterator[None]:
    """Users write all the while."""
    users = [
        threading.Thread(target=write, args=(world, shape, ledger, f"{migrated.is_set()}-{n}", migrated))
        for n in range(WRITERS)
    ]
    for user in users:
        user.start()
    yield
    for user in users:
        user.join(timeout=60)


def in_quarantine(world: PostgresWorld) -> tuple[set[str], Counter[int]]:
    """Tokens that wait there, and by how much hot orders would have grown."""
    tokens: set[str] = set()
    added: Counter[int] = Counter()
    for entry in world.quarantine():
        assert entry["reason"]
        for change in entry["changes"]:
            new, old = change.get("new") or {}, change.get("old") or {}
            if change["table"] == "audit":
                tokens.add(new["what"])
            elif change["kind"] == "updated" and "total" in new and int(float(new["id"])) in HOT:
                added[int(float(new["id"]))] += int(float(new["total"])) - int(float(old["total"]))
    return tokens, added


def left_out(world: PostgresWorld) -> Counter[int]:
    """By how much hot orders grew in a table that the old schema does not have."""
    path = world.folder / "state" / "replays" / REPLAY / "left-out.jsonl"
    added: Counter[int] = Counter()
    for line in map(json.loads, path.read_text().splitlines()):
        if line["table"] == "totals" and line["key"] and int(line["values"]["id"]) in HOT:
            added[int(line["values"]["id"])] += int(line["values"]["total"]) - int(line["key"]["total"])
    return added


def totals(world: PostgresWorld) -> Counter[int]:
    return Counter({int(str(i)): int(str(t)) for i, t in world.sql("SELECT id, total FROM orders WHERE id <= 5")})


def all_written(world: PostgresWorld, shape: Shape) -> Ledger:
    """A restore point is taken and a migration brought while users write."""
    ledger, migrated = Ledger(), threading.Event()
    world.take()
    with writing(world, shape, ledger, migrated):
        world.ship("v2", shape.files)
    world.target.apply(world.step_to_migrate("v2", *shape.files))
    migrated.set()
    with writing(world, shape, ledger, migrated):
        pass
    assert len(ledger.tokens) > WRITERS * EACH / 2
    return ledger


def check(world: PostgresWorld, ledger: Ledger, base: Counter[int]) -> None:
    live = [str(what) for (what,) in world.sql("SELECT what FROM audit")]
    waiting, waiting_added = in_quarantine(world)
    assert len(live) == len(set(live)), "something was applied twice"
    assert set(live) | waiting == set(ledger.tokens), "something is not accounted for"
    assert not set(live) & waiting
    grown = totals(world) - base
    assert grown + waiting_added + left_out(world) == ledger.added


@pytest.mark.parametrize("shape", SHAPES)
def test_every_acknowledged_transaction_is_in_the_live_data_or_explained(embedded: PostgresWorld, shape: str) -> None:
    base = totals(embedded)
    ledger = all_written(embedded, SHAPES[shape])
    embedded.go_back()
    check(embedded, ledger, base)
    assert embedded.replayed().skipped == ("UPDATE orders" in str(SHAPES[shape].files))


def test_users_write_until_the_fence_and_lose_nothing(embedded: PostgresWorld) -> None:
    shape, ledger, migrated = SHAPES["rename and backfill"], Ledger(), threading.Event()
    base = totals(embedded)
    embedded.take()
    embedded.ship("v2", {SECOND: shape.migration})
    embedded.migrate()
    migrated.set()
    with writing(embedded, shape, ledger, migrated):
        for each in embedded.way_back[:3]:  # the fence ends their sessions
            embedded.target.apply(each)
        for each in embedded.way_back[3:]:
            embedded.target.apply(each)
    live = {str(what) for (what,) in embedded.sql("SELECT what FROM audit")}
    waiting, _ = in_quarantine(embedded)
    acknowledged = set(ledger.tokens)
    assert acknowledged <= live | waiting
    # a transaction may have been committed whose answer the fence cut off: it is there, and nobody was told
    assert len((live | waiting) - acknowledged) <= WRITERS
    assert totals(embedded) - base


def test_a_replay_is_tried_and_leaves_nothing_behind(embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    base, shape = totals(embedded), SHAPES["a constraint that rejects good rows"]
    ledger = all_written(embedded, shape)
    slots = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots"
    before = embedded.one(slots)
    catch_up = CatchUp(replay=REPLAY, restore_point=embedded.restore_point)
    tried = embedded.target.try_replay(catch_up)
    assert tried.whole
    assert tried.replayed is not None
    assert tried.pause_s < 1
    assert embedded.one(slots) == before
    assert embedded.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'lastgood'", database=embedded.clone) == []
    monkeypatch.setattr(target, "MOST_TRIED", 5)
    monkeypatch.setattr(replay, "AT_ONCE", 2)
    assert not embedded.target.try_replay(catch_up).whole
    embedded.go_back()
    assert (embedded.replayed().total, embedded.replayed().quarantined) == (
        tried.replayed.total,
        tried.replayed.quarantined,
    )
    check(embedded, ledger, base)


class Died(BaseException):
    """The process is gone."""


def test_a_replay_that_dies_at_any_commit_goes_on_and_applies_nothing_twice(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = totals(embedded)
    ledger = all_written(embedded, SHAPES["rename and backfill"])
    monkeypatch.setattr(replay, "AT_ONCE", 20)
    true, deaths = replay.Replay._carry, 0  # where it would be killed

    def dying(moment: Callable[[], None]) -> Callable[..., None]:
        def carry(self: replay.Replay, batch: Any) -> None:  # noqa: ANN401 # as it comes
            moment()
            true(self, batch)
            moment()

        return carry

    catch_up = next(each for each in embedded.way_back if isinstance(each.action, CatchUp))
    while True:
        left = [deaths % 3 + 1]

        def moment(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Died

        monkeypatch.setattr(replay.Replay, "_carry", dying(moment))
        try:
            embedded.target.apply(catch_up)
        except Died:
            deaths += 1
            continue
        break
    monkeypatch.setattr(replay.Replay, "_carry", true)
    embedded.go_back()
    assert deaths > 5
    check(embedded, ledger, base)


# --- what does not fit, and what follows it --------------------------------------------------------------------------


def went_back(world: PostgresWorld, migration: str, *statements: str) -> None:
    world.take()
    world.ship("v2", {SECOND: migration})
    world.migrate()
    for statement in statements:
        world.sql(statement)
    world.go_back()


def test_who_wrote_to_a_value_after_the_migration_rewrote_it_wins(embedded: PostgresWorld) -> None:
    went_back(
        embedded,
        "ALTER TABLE customers RENAME COLUMN name TO full_name; UPDATE customers SET full_name = upper(full_name)",
        "UPDATE customers SET full_name = 'Ada' WHERE id = 3",
    )
    assert embedded.sql("SELECT name FROM customers WHERE id IN (3, 4) ORDER BY id") == [("Ada",), ("customer 4",)]
    assert embedded.quarantine() == []


def test_what_changes_a_row_that_waits_in_quarantine_waits_with_it(embedded: PostgresWorld) -> None:
    went_back(
        embedded,
        "ALTER TABLE orders DROP CONSTRAINT orders_total_check, ADD COLUMN note text",
        "INSERT INTO orders (id, customer, total) VALUES (900, 1, -5)",
        "UPDATE orders SET state = 'paid' WHERE id = 900",
        "UPDATE orders SET state = 'paid' WHERE id = 7",
    )
    assert [entry["reason"].partition(":")[0] for entry in embedded.quarantine()] == ["change 1", 'orders {"id"']
    assert "orders_total_check" in embedded.quarantine()[0]["reason"]
    assert "depends on one in quarantine" in embedded.quarantine()[1]["reason"]
    assert embedded.one("SELECT state::text FROM orders WHERE id = 7") == "paid"


def test_a_transaction_that_breaks_an_invariant_is_found_among_many(embedded: PostgresWorld) -> None:
    embedded.invariants = {"no-negative-names": "SELECT id FROM customers WHERE name = 'minus'"}
    embedded.sql("CREATE TABLE filler (id serial PRIMARY KEY)")
    went_back(
        embedded,
        "ALTER TABLE orders ADD COLUMN note text",
        *["INSERT INTO filler DEFAULT VALUES"] * 20,
        "UPDATE customers SET name = 'minus' WHERE id = 5",
        *["INSERT INTO filler DEFAULT VALUES"] * 20,
    )
    assert [entry["reason"] for entry in embedded.quarantine()] == ["it breaks the invariant no-negative-names: 5"]
    assert embedded.one("SELECT count(*) FROM filler") == 40


def test_behind_the_fence_no_invariant_is_looked_at_over_a_whole_table_that_takes_long(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "SLOW_LOOK_S", -1.0)
    asked: list[bool] = []
    true = keys_that_break

    def noted(*args: Any, among: Any = None) -> Iterator[str]:  # noqa: ANN401 # as they come
        asked.append(among is not None)
        return true(*args, among=among)

    monkeypatch.setattr(replay, "keys_that_break", noted)
    embedded.invariants = {
        "no-negative-names": "SELECT id FROM customers WHERE name = 'minus'",
        "no-paid-orders-of-ten": "SELECT c.id FROM customers c JOIN orders o ON o.customer = c.id "
        "WHERE c.id = 10 AND o.state = 'paid'",
        "nobody-is-flagged": "SELECT c.id FROM customers c, flags f WHERE f.up AND c.id = 11",
    }
    embedded.sql("CREATE TABLE flags (id int PRIMARY KEY, up boolean NOT NULL); INSERT INTO flags VALUES (1, false)")
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE orders ADD COLUMN note text"})
    embedded.migrate()
    save_dump, catch_up, *behind = embedded.way_back
    for each in (save_dump, catch_up):
        embedded.target.apply(each)
    asked.clear()
    embedded.sql("UPDATE customers SET name = 'minus' WHERE id = 5")
    embedded.sql("UPDATE customers SET name = 'plus' WHERE id = 6")
    embedded.sql("UPDATE orders SET state = 'paid' WHERE customer = 10")
    embedded.sql("UPDATE customers SET name = 'eleven' WHERE id = 11")
    embedded.sql("UPDATE flags SET up = true")
    for each in behind:
        embedded.target.apply(each)
    assert asked
    assert all(asked)
    assert [entry["reason"] for entry in embedded.quarantine()] == [
        "it breaks the invariant no-negative-names: 5",
        "it breaks the invariant no-paid-orders-of-ten: 10",
        "it breaks the invariant nobody-is-flagged: 11",
    ]
    assert replay.NARROW in embedded.replayed().notes
    assert embedded.one("SELECT name FROM customers WHERE id = 6") == "plus"


@pytest.mark.full
@pytest.mark.parametrize(
    "invariant, among, found",
    [
        ("SELECT id FROM customers WHERE id < 4", ["2", "7", "no number", "99999999999999999999"], {"2"}),
        ("SELECT id FROM customers WHERE id < 4 ORDER BY name DESC; ", ["3"], {"3"}),
        ("SELECT id::bigint FROM customers WHERE id < 4", ["3"], {"1", "2", "3"}),
        ("WITH few AS (SELECT * FROM customers WHERE id < 4) SELECT id, name, name FROM few -- all", ["1"], {"1"}),
        ("SELECT name FROM customers WHERE id < 4", ["customer 1", "1"], {"customer 1"}),
        ("SELECT 'x{}%s' FROM customers", ["x{}%s"], {"x{}%s"}),
        (
            "SELECT md5(id::text)::uuid FROM customers WHERE id = 1",
            ["c4ca4238-a0b9-2382-0dcc-509a6f75849b", "1"],
            {"c4ca4238-a0b9-2382-0dcc-509a6f75849b"},
        ),
        ("SELECT date '2026-01-01' + id FROM customers WHERE id < 3", ["5"], {"2026-01-02", "2026-01-03"}),
        ("SELECT id * 10 FROM customers WHERE id < 3", ["5"], {"10", "20"}),
        ("SELECT 'ledger' FROM customers HAVING count(*) > 3", ["5"], {"ledger"}),
        ("SELECT nothing FROM customers", ["5"], set[str]()),
    ],
)
def test_an_invariant_is_asked_of_some_keys_only(
    embedded: PostgresWorld, invariant: str, among: list[str], found: set[str]
) -> None:
    with embedded.connect() as connection:
        assert set(keys_that_break(connection, invariant, among=among)) == found


def test_a_deletion_that_takes_others_along_is_replayed_with_them(embedded: PostgresWorld) -> None:
    went_back(embedded, "ALTER TABLE orders ADD COLUMN note text", "DELETE FROM customers WHERE id = 5")
    assert embedded.quarantine() == []
    assert embedded.one("SELECT count(*) FROM orders WHERE customer = 5") == 0


TREE: Final = """
CREATE TABLE place (id int PRIMARY KEY, name text UNIQUE, within int REFERENCES place ON DELETE CASCADE);
CREATE TABLE thing (id int PRIMARY KEY, at int REFERENCES place ON DELETE SET NULL);
INSERT INTO place VALUES (1, 'one', NULL), (2, 'two', 1), (3, 'three', 2); INSERT INTO thing VALUES (1, 2), (2, 3)
"""


def test_a_value_of_a_row_that_is_deleted_with_others_is_free_for_another_one(embedded: PostgresWorld) -> None:
    embedded.sql(TREE)
    went_back(
        embedded,
        "ALTER TABLE orders ADD COLUMN note text",
        "BEGIN; DELETE FROM customers WHERE id IN (5, 6); INSERT INTO customers VALUES (50, 'customer 5'); "
        "INSERT INTO orders (id, customer, total) VALUES (500, 50, 1); COMMIT",
        "BEGIN; DELETE FROM place WHERE id = 1; INSERT INTO place VALUES (4, 'one', NULL), (5, 'three', 4); "
        "UPDATE thing SET at = 5 WHERE id = 2; COMMIT",
    )
    assert reasons(embedded) == []
    assert embedded.sql("SELECT id FROM customers WHERE id IN (5, 6) OR name = 'customer 5'") == [(50,)]
    assert embedded.sql("SELECT id FROM orders WHERE customer IN (5, 6, 50)") == [(500,)]
    assert embedded.sql("SELECT id, name, within FROM place ORDER BY id") == [(4, "one", None), (5, "three", 4)]
    assert embedded.sql("SELECT id, at FROM thing ORDER BY id") == [(1, None), (2, 5)]


def test_a_deletion_in_a_partition_takes_along_what_its_transaction_tells_of(embedded: PostgresWorld) -> None:
    embedded.sql(
        PARTS + "; CREATE TABLE of_parts (id int PRIMARY KEY, part int, region text, "
        "FOREIGN KEY (part, region) REFERENCES parts ON DELETE CASCADE); INSERT INTO of_parts VALUES (1, 1, 'a')"
    )
    went_back(embedded, "ALTER TABLE orders ADD COLUMN note text", "DELETE FROM parts WHERE id = 1")
    assert reasons(embedded) == []
    assert embedded.sql("SELECT id FROM parts") == [(2,)]
    assert embedded.sql("SELECT id FROM of_parts") == []


@pytest.mark.full
def test_a_row_whose_move_waits_is_not_taken_along_by_the_deletion_of_its_first_parent(embedded: PostgresWorld) -> None:
    went_back(
        embedded,
        "ALTER TABLE orders DROP CONSTRAINT orders_total_check, ADD COLUMN note text",
        "DELETE FROM orders WHERE customer = 5 AND id <> 4",
        "UPDATE orders SET customer = 6, total = -1 WHERE id = 4",  # does not fit, and waits
        "DELETE FROM customers WHERE id = 5",
    )
    assert embedded.one("SELECT customer FROM orders WHERE id = 4") == 5
    assert len(embedded.quarantine()) == 2


def test_a_value_that_the_old_type_cannot_hold_is_not_rounded(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE TABLE stock (id int PRIMARY KEY, amount int NOT NULL)")
    embedded.sql("INSERT INTO stock VALUES (1, 5), (2, 5)")
    went_back(
        embedded,
        "ALTER TABLE stock ALTER COLUMN amount TYPE numeric",
        "UPDATE stock SET amount = 7.25 WHERE id = 1",
        "UPDATE stock SET amount = 7.00 WHERE id = 2",
    )
    assert embedded.sql("SELECT amount FROM stock ORDER BY id") == [(5,), (7,)]
    assert [entry["changes"][0]["new"]["amount"] for entry in embedded.quarantine()] == ["7.25"]


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "transactions"])
def test_a_row_that_names_a_large_object_of_after_the_deploy_waits_for_it(
    embedded: PostgresWorld, *, by_rows: bool
) -> None:
    embedded.by_rows = by_rows
    embedded.sql("CREATE TABLE picture (id int PRIMARY KEY, of oid); INSERT INTO picture VALUES (1, NULL), (2, NULL)")
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        "INSERT INTO picture VALUES (3, lo_from_bytea(0, 'hello'))",
        "UPDATE picture SET of = lo_from_bytea(0, 'hello') WHERE id = 1",
        "UPDATE picture SET of = 1 WHERE id = 2",
    )
    assert embedded.sql("SELECT id, of FROM picture ORDER BY id") == [(1, None), (2, 1)]
    reasons = [entry["reason"] for entry in embedded.quarantine()]
    assert len(reasons) == 2
    assert all(reason.startswith("picture.of names large object") for reason in reasons)
    assert catalog.LARGE_OBJECTS_MADE in embedded.replayed().notes


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "transactions"])
@pytest.mark.parametrize("was, now", [("timestamp", "timestamptz"), ("timestamptz", "timestamp")])
def test_a_time_is_not_shifted_by_a_zone_that_nobody_named(
    embedded: PostgresWorld, was: str, now: str, *, by_rows: bool
) -> None:
    """The migration read the old values in the zone of the database; the replay's sessions have another."""
    embedded.by_rows = by_rows
    embedded.sql(f"ALTER DATABASE \"{embedded.config.name}\" SET timezone = 'Asia/Tokyo'")

    def app(text: str) -> list[tuple[object, ...]]:
        return embedded.sql(f"SET timezone = 'Asia/Tokyo'; {text}")

    app(f"CREATE TABLE seen (id int PRIMARY KEY, at {was}, note text)")
    app("INSERT INTO seen VALUES (1, '2026-01-01 12:00'), (2, '2026-01-01 12:00'), (3, '2026-01-01 12:00')")
    embedded.take()
    embedded.ship("v2", {SECOND: f"SET timezone = 'Asia/Tokyo'; ALTER TABLE seen ALTER COLUMN at TYPE {now}"})
    embedded.migrate()
    app("INSERT INTO seen VALUES (4, '2026-01-01 12:00', 'new')")
    app("INSERT INTO seen VALUES (5, NULL, 'new')")
    app("UPDATE seen SET note = 'still' WHERE id = 1")
    app("UPDATE seen SET at = '2026-02-02 12:00' WHERE id = 2")
    embedded.go_back()
    with embedded.connect() as connection:
        connection.execute("SET timezone = 'Asia/Tokyo'")
        rows = connection.execute("SELECT id, left(at::text, 16), note FROM seen ORDER BY id").fetchall()
    assert rows == [
        (1, "2026-01-01 12:00", "still"),
        (2, "2026-01-01 12:00", None),
        (3, "2026-01-01 12:00", None),
        (5, None, "new"),
    ]
    new = [entry["changes"][0]["new"] for entry in embedded.quarantine()]
    assert [values["note"] for values in new if "2026-01-01" in values["at"] and values.get("note") == "new"] == ["new"]
    assert all("2026" in values["at"] for values in new)
    assert len(embedded.quarantine()) == (3 if by_rows else 2)


def test_what_a_migration_rewrote_is_not_held_in_memory(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    true = replay.Replay._carry  # what it is given is what is held

    def carry(self: replay.Replay, batch: Any) -> None:  # noqa: ANN401 # as it comes
        held.extend(len(transaction.changes) for transaction in batch)
        true(self, batch)

    monkeypatch.setattr(replay.Replay, "_carry", carry)
    embedded.sql("INSERT INTO orders (customer, total) SELECT 1 + g % 20, 100 + g FROM generate_series(1, 5000) g")
    went_back(
        embedded,
        "ALTER TABLE orders ADD COLUMN note text; UPDATE orders SET total = total + 1",
        "UPDATE orders SET total = 7 WHERE id = 200",
    )
    assert max(held) == 1
    assert embedded.one("SELECT total FROM orders WHERE id = 200") == 7 - 1
    assert embedded.replayed().skipped == 1


def test_a_transaction_that_is_too_long_for_one_value_is_replayed_whole_or_waits_whole(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "PART", 300)  # two or three statements
    embedded.sql(
        "CREATE TABLE node (id int PRIMARY KEY, n int CHECK (n > 0), "
        "next int REFERENCES node DEFERRABLE INITIALLY DEFERRED)"
    )
    went_back(
        embedded,
        "ALTER TABLE node DROP CONSTRAINT node_n_check",
        "INSERT INTO node SELECT g, g, 1 + g % 20 FROM generate_series(1, 20) g",
        "UPDATE node SET n = CASE WHEN id = 18 THEN -1 ELSE n + 1 END; INSERT INTO node VALUES (21, 1, 1)",
        "BEGIN; INSERT INTO node SELECT g, g, 21 FROM generate_series(31, 50) g; UPDATE node SET n = 7 WHERE id = 21; "
        "COMMIT",
        "INSERT INTO audit (what) VALUES ('good')",
    )
    assert embedded.sql("SELECT count(*), sum(n), max(id) FROM node") == [(20, 210, 20)]
    assert embedded.one("SELECT what FROM audit") == "good"
    broken, following = embedded.quarantine()
    assert broken["reason"].startswith("change 18: new row for relation")
    assert [change["new"]["id"] for change in broken["changes"]] == [str(number) for number in range(1, 22)]
    assert following["reason"].startswith('node {"id": "21"}: that a row was made')
    assert len(following["changes"]) == 21
    assert dict(embedded.replayed().carried)["node"] == 20


def test_a_table_that_is_emptied_waits_for_a_person(embedded: PostgresWorld) -> None:
    went_back(embedded, "ALTER TABLE orders ADD COLUMN note text", "TRUNCATE audit, orders")
    assert [entry["changes"][0]["kind"] for entry in embedded.quarantine()] == ["emptied"]
    assert embedded.one("SELECT count(*) FROM orders") == 100


def test_what_triggers_wrote_is_not_written_twice(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO audit (what) VALUES (NEW.id::text); RETURN NEW; END'; "
        "CREATE TRIGGER noted AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION noted()"
    )
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        "INSERT INTO orders (id, customer, total) VALUES (900, 1, 5)",
    )
    assert embedded.sql("SELECT what FROM audit") == [("900",)]
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES (901, 1, 5)")
    assert embedded.one("SELECT count(*) FROM audit") == 2


ODD: Final = '''
CREATE TYPE mood AS ENUM ('glad', 'so "so"');
CREATE TABLE "Odd; ""table""" (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), "the text" text, tags text[], doc jsonb, raw json, ratio float8,
    blob bytea, bits bit(5), feels mood, span interval, at timestamptz,
    long int GENERATED ALWAYS AS (length("the text")) STORED, n int GENERATED ALWAYS AS IDENTITY
);
INSERT INTO "Odd; ""table""" ("the text", raw) VALUES ('before', '{"a":  1}')
'''
WRITES: Final = (
    '''INSERT INTO "Odd; ""table""" ("the text", tags, doc, raw, ratio, blob, bits, feels, span, at)
    VALUES (E'it''s \\\\ \\n %s', ARRAY['a,b', NULL, '"'], '{"k": [1, null]}', '{"a":  1}', 'NaN', '\\x00ff', B'10101',
    'so "so"', '1 year 2 days 03:04:05', '2026-01-01 10:00+02')''',
    '''UPDATE "Odd; ""table""" SET "the text" = repeat('long', 5000), raw = '{"b":  2}' WHERE "the text" = 'before' ''',
    '''UPDATE "Odd; ""table""" SET ratio = 0.1 WHERE raw::text = '{"b":  2}' ''',
)


def test_every_kind_of_value_comes_back_as_it_was(embedded: PostgresWorld) -> None:
    embedded.sql(ODD)
    went_back(embedded, "ALTER TABLE orders ADD COLUMN note text", *WRITES)
    assert embedded.quarantine() == []
    of = '''SELECT o::text FROM "Odd; ""table""" o ORDER BY id'''
    assert embedded.sql(of) == embedded.sql(of, database=embedded.kept_as) != []


def test_rows_without_a_key_are_found_by_what_they_were(embedded: PostgresWorld) -> None:
    embedded.sql("INSERT INTO audit (what) VALUES ('same'), ('same'), ('other')")
    went_back(
        embedded,
        "ALTER TABLE orders ADD COLUMN note text",
        "UPDATE audit SET what = 'changed' WHERE ctid = (SELECT min(ctid) FROM audit WHERE what = 'same')",
        "DELETE FROM audit WHERE what = 'other'",
    )
    assert sorted(str(what) for (what,) in embedded.sql("SELECT what FROM audit")) == ["changed", "same"]


def test_after_a_lifted_fence_the_next_replay_goes_on_where_the_first_was(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    first = [s for s in embedded.way_back if not isinstance(s.action, SwapDatabase)]
    for each in first:
        embedded.target.apply(each)
    embedded.target.apply(embedded.lift)
    embedded.sql("INSERT INTO audit (what) VALUES ('second')")
    point, kept_as = embedded.restore_point, f"{embedded.config.name}_bad_r2"
    for action in (
        CatchUp(replay="replay-r2", restore_point=point),
        Fence(kept_as=kept_as),
        ReplayWrites(replay="replay-r2", restore_point=point, kept_as=kept_as, by_rows=False),
        SwapDatabase(swap="s2", restore_point=point, clone=embedded.clone, kept_as=kept_as, replay="replay-r2"),
    ):
        embedded.target.apply(step(action.kind, action))
    assert sorted(str(what) for (what,) in embedded.sql("SELECT what FROM audit")) == ["first", "second"]
    assert embedded.target.replayed("replay-r2").total == 3


@pytest.mark.full
def test_rows_that_another_replay_carried_are_not_taken_for_these(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    for each in embedded.way_back[:-1]:
        embedded.target.apply(each)
    embedded.target.apply(embedded.lift)
    embedded.sql("INSERT INTO audit (what) VALUES ('second')")
    point, kept_as = embedded.restore_point, f"{embedded.config.name}_bad_r2"
    embedded.target.apply(step("fence", Fence(kept_as=kept_as)))
    again = ReplayWrites(replay="replay-r2", restore_point=point, kept_as=kept_as, by_rows=True)
    with pytest.raises(Refused, match="replay-r1 carried"):
        embedded.target.apply(step("replay", again))


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_list_of_changes_that_an_event_trigger_keeps_has_nothing_of_the_clones(
    embedded: PostgresWorld, by_rows: bool
) -> None:
    embedded.by_rows = by_rows
    embedded.sql(
        "CREATE TABLE changes (id serial PRIMARY KEY, what text); CREATE FUNCTION listed() RETURNS event_trigger "
        "LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.changes (what) VALUES (tg_tag); END $$; "
        "CREATE FUNCTION unused() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; "
        "CREATE TRIGGER unused AFTER INSERT ON audit EXECUTE FUNCTION unused(); "
        "CREATE EVENT TRIGGER listed ON ddl_command_end EXECUTE FUNCTION listed(); "
        "CREATE EVENT TRIGGER kept ON sql_drop EXECUTE FUNCTION listed(); ALTER EVENT TRIGGER kept ENABLE ALWAYS"
    )
    embedded.take()
    in_clone = embedded.sql("SELECT what FROM changes ORDER BY id", database=embedded.clone)
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('a')")
    embedded.sql("INSERT INTO changes (what) VALUES ('mine')")
    embedded.go_back()
    found = embedded.sql("SELECT what FROM changes ORDER BY id")
    assert (found[: len(in_clone)], found[-1]) == (in_clone, ("mine",))
    assert len(found) <= embedded.one("SELECT count(*) FROM changes", database=embedded.kept_as)  # type: ignore[operator] # it is a number
    assert embedded.sql("SELECT evtname, evtenabled::text FROM pg_event_trigger ORDER BY 1") == [
        ("kept", "A"), ("listed", "O")
    ]  # fmt: skip


# --- the capture itself ----------------------------------------------------------------------------------------------


def identities(world: PostgresWorld) -> dict[object, object]:
    return {
        row[0]: row[1]
        for row in world.sql("SELECT relname, relreplident::text FROM pg_class WHERE relkind = 'r' AND oid > 16384")
    }


@pytest.mark.full
def test_a_capture_that_ended_left_the_schema_as_it_was(embedded: PostgresWorld) -> None:
    embedded.sql("ALTER TABLE audit REPLICA IDENTITY NOTHING")
    before = identities(embedded)
    embedded.take()
    assert identities(embedded) != before
    embedded.migrate()
    embedded.target.apply(embedded.end_capture)
    assert identities(embedded) == before
    assert embedded.sql("SELECT pubname FROM pg_publication") == []
    assert embedded.target.observe().captures == frozenset()


def slots(world: PostgresWorld) -> list[object]:
    return [
        name for (name,) in world.sql("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
    ]


@pytest.mark.full
def test_a_restore_point_of_another_stack_on_the_server_leaves_our_capture_alone(
    postgres: PostgresConfig, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(postgres_embedded.database(shelf.folder(tmp_path / name), postgres)) for name in "ab"
        )
        ours.take()
        theirs.take()
        assert [world.target.observe().captures for world in (ours, theirs)] == [{ours.restore_point}] * 2
        theirs.target.apply(theirs.end_capture)
        assert (len(slots(ours)), slots(theirs)) == (1, [])
        assert ours.target.observe().captures == {ours.restore_point}


@pytest.mark.parametrize("fenced", [False, True])
def test_a_slot_named_as_an_earlier_version_did_is_ended_by_whom_it_is_of(
    postgres: PostgresConfig, tmp_path: Path, fenced: bool
) -> None:
    with ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(postgres_embedded.database(shelf.folder(tmp_path / name), postgres)) for name in "ab"
        )
        theirs.sql("SELECT pg_create_logical_replication_slot('lastgood_rp_d2', 'pgoutput')")
        for world in (ours, theirs):
            captures = shelf.folder(shelf.folder(world.folder / "restore-points") / "captures")
            shelf.write(captures / "lastgood_rp_d2.json", shelf.KEPT_IDENTITIES, {})
        if fenced:
            theirs.target.apply(theirs.fence)
        ours.target.apply(ours.end_capture)
        home = theirs.kept_as if fenced else theirs.config.name
        of = "SELECT database FROM pg_replication_slots WHERE slot_name = 'lastgood_rp_d2'"
        assert ours.sql(of) == [(home,)]
        theirs.target.apply(theirs.end_capture)
        assert ours.sql(of) == []
        assert not any(world.target.observe().capture_left for world in (ours, theirs))


def test_a_table_that_the_migration_made_may_be_updated_without_a_key(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.ship("v2", {SECOND: "CREATE TABLE loose (what text)"})
    embedded.migrate()
    embedded.sql("INSERT INTO loose VALUES ('a')")
    embedded.sql("UPDATE loose SET what = 'b'")
    embedded.go_back()
    lines = (embedded.folder / "state" / "replays" / REPLAY / "left-out.jsonl").read_text().splitlines()
    assert [json.loads(line)["values"] for line in lines] == [{"what": "a"}, {"what": "b"}]


def test_a_database_without_a_table_is_captured_from_its_first_migration_on(embedded: PostgresWorld) -> None:
    embedded.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    embedded.take()
    embedded.target.apply(embedded.step_to_migrate("v1", "20250101000000_shop"))
    assert {name for (name,) in embedded.sql("SELECT tablename FROM pg_publication_tables")} == {
        "audit", "customers", "orders"
    }  # fmt: skip


@pytest.mark.full
def test_where_a_transaction_stays_open_the_restore_point_says_that_it_has_no_capture(embedded: PostgresWorld) -> None:
    with embedded.connect() as open_since_before:
        open_since_before.execute("BEGIN; SELECT pg_current_xact_id()")
        embedded.take()
        pid = open_since_before.info.backend_pid
    point = embedded.target.restore_point(embedded.restore_point)
    assert not point.captured
    assert f"still writing: {pid} " in point.lossy_because[0]
    assert embedded.sql("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()") == []


def test_who_gave_up_while_the_capture_began_does_not_make_the_restore_point_unreadable(
    embedded: PostgresWorld,
) -> None:
    """The snapshot of a slot then begins behind its own end: 102:101:, which the server does not read again."""
    with ThreadPoolExecutor() as beside, ExitStack() as open_:
        writers = [open_.enter_context(embedded.connect()) for _ in range(3)]
        number = begun(writers[0])
        taking = beside.submit(embedded.take)
        for writer, later in pairwise(writers):
            until_waited_for(embedded, number)
            number = begun(later)
            writer.execute("ROLLBACK")
        taking.result(30)
        writers[-1].execute("ROLLBACK")
    since = embedded.target.restore_point(embedded.restore_point).snapshot
    xmin, xmax, _ = since.split(":")
    assert xmin == xmax == number
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    embedded.go_back()
    assert embedded.sql("SELECT what FROM audit") == [("first",)]


def begun(writer: Connection) -> str:
    """The number of a transaction that stays open."""
    writer.execute("BEGIN")
    ((number,),) = writer.execute("SELECT pg_current_xact_id()::text").fetchall()
    return str(number)


def until_waited_for(world: PostgresWorld, transaction: str) -> None:
    """Until the slot waits for a transaction."""
    deadline = time.monotonic() + 30
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND transactionid::text = "
    while not world.sql(f"{waiting}'{transaction}'", database="postgres"):
        assert time.monotonic() < deadline, f"nobody waits for {transaction}"
        time.sleep(0.01)


def test_a_slot_that_the_server_gave_up_is_no_capture(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name ~ 'rp_d2'")
    assert embedded.target.observe().captures == frozenset()
    embedded.migrate()
    with pytest.raises((Refused, psycopg.Error)):
        embedded.go_back()
    assert embedded.target.observe().exists


# --- what is not guessed ---------------------------------------------------------------------------------------------

KEPT_OUT: Final = "WITH bad AS (INSERT INTO orders (customer, total) VALUES (1, -5)) "
"""In front of a statement: its transaction waits in quarantine."""
LET_BAD_IN: Final = "ALTER TABLE orders DROP CONSTRAINT orders_total_check, ADD COLUMN note text"
PARTS: Final = """
CREATE TABLE parts (id int, region text, n int NOT NULL, at int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts_b (region text NOT NULL, at int, n int NOT NULL, id int NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b');
INSERT INTO parts VALUES (1, 'a', 100, 1), (2, 'a', 100, 1)
"""


def reasons(world: PostgresWorld) -> list[str]:
    return [str(entry["reason"]) for entry in world.quarantine()]


def test_a_row_that_moves_to_another_partition_takes_nothing_along_that_waits(embedded: PostgresWorld) -> None:
    embedded.sql(PARTS)
    went_back(
        embedded,
        LET_BAD_IN,
        KEPT_OUT + "UPDATE parts SET n = n - 7 WHERE id = 1",
        "UPDATE parts SET region = 'b', n = n + 1 WHERE id = 1",
        "UPDATE parts SET n = n + 1 WHERE id = 1",
    )
    assert embedded.sql("SELECT id, region, n, at FROM parts ORDER BY id") == [(1, "b", 102, 1), (2, "a", 100, 1)]
    assert len(embedded.quarantine()) == 1


def test_a_row_that_is_deleted_and_inserted_again_is_changed(embedded: PostgresWorld) -> None:
    went_back(
        embedded,
        LET_BAD_IN,
        KEPT_OUT + "UPDATE orders SET total = total - 1 WHERE id = 5",  # from 6 to 5
        "BEGIN; DELETE FROM orders WHERE id = 5; INSERT INTO audit (what) VALUES ('between'); "
        "INSERT INTO orders (id, customer, total, at) VALUES (5, 6, 16, '2026-01-01'); COMMIT",
    )
    assert embedded.sql("SELECT total::int, at::date::text FROM orders WHERE id = 5") == [(17, "2026-01-01")]
    assert len(embedded.quarantine()) == 1


def test_a_row_that_is_not_as_it_was_found_is_not_deleted(embedded: PostgresWorld) -> None:
    went_back(
        embedded,
        LET_BAD_IN,
        KEPT_OUT + "UPDATE orders SET total = total + 1000 WHERE id = 5",
        "DELETE FROM orders WHERE id = 5",
        "DELETE FROM orders WHERE id = 6",
    )
    assert embedded.sql("SELECT id, total::int FROM orders WHERE id IN (5, 6)") == [(5, 6)]
    assert ["depends on one in quarantine" in reason for reason in reasons(embedded)] == [False, True]


def test_a_number_is_not_counted_below_nothing_from_one_that_waits(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE door (id int PRIMARY KEY, state int, n int); INSERT INTO door VALUES (1, 1, 9), (2, 1, 9)"
    )
    went_back(
        embedded,
        LET_BAD_IN,
        KEPT_OUT + "UPDATE door SET state = 5, n = n + 100 WHERE id = 1",
        "UPDATE door SET state = 2 WHERE id = 1",  # from 5, where 1 stands
        "UPDATE door SET n = n - 50 WHERE id = 1",  # of 109, where 9 are
        "UPDATE door SET n = n - 5 WHERE id = 1",
        "UPDATE door SET n = n - 50 WHERE id = 2",  # whoever wrote it saw that
    )
    assert embedded.sql("SELECT id, state, n FROM door ORDER BY id") == [(1, 1, 4), (2, 1, -41)]
    assert ["depends on one in quarantine" in reason for reason in reasons(embedded)] == [False, True, True]


def test_what_the_migration_rewrote_may_be_deleted(embedded: PostgresWorld) -> None:
    embedded.invariants = {}
    went_back(
        embedded,
        f"{LET_BAD_IN}; UPDATE orders SET total = total - 50; UPDATE customers SET name = upper(name)",
        "UPDATE orders SET total = total + 5 WHERE id = 5",
        "DELETE FROM orders WHERE id IN (5, 6)",
        "DELETE FROM orders WHERE customer = 8",
        "DELETE FROM customers WHERE id = 8",
    )
    assert embedded.quarantine() == []
    assert embedded.one("SELECT count(*) FROM orders WHERE id IN (5, 6) OR customer = 8") == 0


def test_a_number_that_the_migration_moved_by_the_same_everywhere_is_counted_on(embedded: PostgresWorld) -> None:
    embedded.invariants = {}
    went_back(
        embedded,
        f"{LET_BAD_IN}; UPDATE orders SET total = total - 50",
        "UPDATE orders SET total = total + 5 WHERE id = 5",
    )
    assert (embedded.one("SELECT total FROM orders WHERE id = 5"), embedded.quarantine()) == (11, [])


@pytest.mark.parametrize("rows", ["(1, 25), (2, 25)", "(1, 25), (2, 130), (3, 349)"])
def test_a_number_of_which_the_migration_made_nothing_counts_in_the_unit_that_it_had(
    embedded: PostgresWorld, rows: str
) -> None:
    embedded.invariants = {}
    embedded.sql(ACCOUNTS.format("int") + rows)
    went_back(
        embedded,
        f"{LET_BAD_IN}; UPDATE accounts SET balance = balance / 100",
        "INSERT INTO accounts VALUES (9, 40)",
        "UPDATE accounts SET balance = balance + 5 WHERE id = 9",
    )
    assert (embedded.one("SELECT balance FROM accounts WHERE id = 9"), embedded.quarantine()) == (45, [])
    assert embedded.one("SELECT balance FROM accounts WHERE id = 1") == 25


ACCOUNTS: Final = "CREATE TABLE accounts (id int PRIMARY KEY, balance {} NOT NULL); INSERT INTO accounts VALUES "


@pytest.mark.parametrize(
    "rows, kind, change",
    [
        ("(1, 10)", "numeric", "balance * 100"),
        ("(1, 10), (2, 3), (3, 0)", "numeric", "balance * 100"),
        ("(1, 1025), (2, 349), (3, 0)", "int", "balance / 100"),
        ("(1, 10.5), (2, 3), (3, 0)", "float8", "balance * 100"),
    ],
)
def test_a_number_that_may_count_in_another_unit_now_waits(
    embedded: PostgresWorld, rows: str, kind: str, change: str
) -> None:
    embedded.sql(ACCOUNTS.format(kind) + rows)
    before = embedded.sql("SELECT * FROM accounts ORDER BY id")
    went_back(
        embedded,
        f"ALTER TABLE accounts ADD COLUMN note text; UPDATE accounts SET balance = {change}",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 1",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 3",
        "INSERT INTO accounts VALUES (4, 500)",
        "UPDATE accounts SET note = 'x' WHERE id = 1",
    )
    assert embedded.sql("SELECT * FROM accounts ORDER BY id") == before
    assert {"the migration rewrote every balance in accounts" in reason for reason in reasons(embedded)} == {True}


@pytest.mark.full
def test_a_unit_that_is_changed_by_the_definition_alone_waits_as_well(embedded: PostgresWorld) -> None:
    embedded.sql(ACCOUNTS.format("numeric") + "(1, 10), (2, 3), (3, 0)")
    went_back(
        embedded,
        "ALTER TABLE accounts ALTER COLUMN balance TYPE numeric USING balance * 100",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 1",
        "INSERT INTO accounts VALUES (4, 500)",
    )
    assert embedded.sql("SELECT id, balance::int FROM accounts ORDER BY id") == [(1, 10), (2, 3), (3, 0)]
    assert len(embedded.quarantine()) == 2


@pytest.mark.full
def test_what_a_table_was_within_the_migration_only_is_no_reason_to_count_on_its_numbers(
    embedded: PostgresWorld,
) -> None:
    embedded.sql(ACCOUNTS.format("numeric") + "(1, 10), (2, 3)")
    went_back(
        embedded,
        "ALTER TABLE accounts ADD COLUMN once text; UPDATE accounts SET balance = balance * 100; "
        "ALTER TABLE accounts DROP COLUMN once, ADD COLUMN note text",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 1",
    )
    assert embedded.sql("SELECT id, balance::int FROM accounts ORDER BY id") == [(1, 10), (2, 3)]
    assert len(embedded.quarantine()) == 1


def test_a_number_that_the_migration_put_right_is_not_counted_on_but_all_others_are(embedded: PostgresWorld) -> None:
    embedded.sql(ACCOUNTS.format("numeric") + "(1, 10), (2, 3), (3, 0), (4, 700)")
    went_back(
        embedded,
        "ALTER TABLE accounts ADD COLUMN note text; UPDATE accounts SET balance = 5 WHERE id = 2; "
        "UPDATE accounts SET balance = 700 WHERE id = 1",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 1",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 3",
        "INSERT INTO accounts VALUES (5, 500)",
        "UPDATE accounts SET balance = balance + 50 WHERE id = 5",
        "DELETE FROM accounts WHERE id = 2",
    )
    told = embedded.sql("SELECT id, balance::int FROM accounts ORDER BY id")
    assert told == [(1, 10), (3, 50), (4, 700), (5, 550)]
    assert ["what the migration made of a number" in reason for reason in reasons(embedded)] == [True]


@pytest.mark.full
def test_a_rewriting_that_is_not_remembered_whole_is_not_counted_on(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST_REMEMBERED", 2)
    monkeypatch.setattr(replay, "FETCHED", 2)
    embedded.invariants = {}
    went_back(
        embedded,
        f"{LET_BAD_IN}; UPDATE orders SET total = total - 50",
        "UPDATE orders SET total = total + 5 WHERE id = 95",
        "INSERT INTO orders (id, customer, total) VALUES (900, 1, 5)",
        "UPDATE orders SET total = total + 5 WHERE id = 900",
    )
    assert embedded.sql("SELECT id, total::int FROM orders WHERE id IN (95, 900)") == [(95, 96), (900, 10)]
    assert len(embedded.quarantine()) == 1


@pytest.mark.full
def test_writes_from_before_the_migration_count_as_they_were_meant(embedded: PostgresWorld) -> None:
    embedded.sql(ACCOUNTS.format("numeric") + "(1, 10), (2, 3)")
    embedded.take()
    embedded.sql("UPDATE accounts SET balance = balance + 1 WHERE id = 1")
    embedded.ship(
        "v2", {SECOND: "ALTER TABLE accounts ADD COLUMN note text; UPDATE accounts SET balance = balance * 100"}
    )
    embedded.migrate()
    embedded.go_back()
    assert embedded.sql("SELECT balance::int FROM accounts ORDER BY id") == [(11,), (3,)]
    assert embedded.quarantine() == []


ITEM: Final = "CREATE TABLE item (id int PRIMARY KEY, name text, stock int); INSERT INTO item VALUES (1, 'apple', 10)"
WAITS: Final = "BEGIN; {}; TRUNCATE audit; COMMIT"


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(
            (WAITS.format("DELETE FROM item WHERE id = 1"), "INSERT INTO item VALUES (1, 'another', 500)"), id="deleted"
        ),
        pytest.param(("TRUNCATE item", "INSERT INTO item VALUES (1, 'another', 500)"), id="emptied"),
        pytest.param(
            ("INSERT INTO item VALUES (2, 'pear', 500)",
             WAITS.format("UPDATE item SET id = 9 WHERE id = 1; UPDATE item SET id = 1 WHERE id = 2")),
            id="key",
        ),
    ],
)  # fmt: skip
def test_stock_is_not_taken_from_another_row_of_the_same_key(
    embedded: PostgresWorld, statements: tuple[str, ...]
) -> None:
    embedded.sql(ITEM)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        *statements,
        "UPDATE item SET stock = stock - 100 WHERE id = 1",
        "UPDATE item SET stock = stock - 100 WHERE id = 1",
    )
    assert embedded.sql("SELECT name, stock FROM item WHERE id = 1") == [("apple", 10)]
    waiting = reasons(embedded)
    assert len(waiting) == 3 + ("INSERT" in statements[1])
    assert "waits in quarantine" in waiting[-1]


def test_a_key_at_which_nothing_waits_any_more_is_counted_on(embedded: PostgresWorld) -> None:
    embedded.sql(ITEM)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        WAITS.format("DELETE FROM item WHERE id = 1"),
        "INSERT INTO item VALUES (2, 'pear', 50)",
        "UPDATE item SET stock = stock - 1 WHERE id = 2",
        "DELETE FROM item WHERE id = 2",
        "INSERT INTO item VALUES (2, 'plum', 60)",
        "UPDATE item SET stock = stock - 1 WHERE id = 2",
    )
    assert embedded.sql("SELECT name, stock FROM item ORDER BY id") == [("apple", 10), ("plum", 59)]
    assert len(embedded.quarantine()) == 1


def test_what_waits_is_known_also_to_the_transactions_of_the_next_round(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that goes on elsewhere has only what the clone remembers."""
    monkeypatch.setattr(replay, "AT_ONCE", 1)
    embedded.sql(ITEM)
    embedded.take()
    embedded.migrate()
    embedded.sql(WAITS.format("DELETE FROM item WHERE id = 1"))
    dump, catch_up, *rest = embedded.way_back
    for each in (dump, catch_up):
        embedded.target.apply(each)
    embedded.sql("INSERT INTO item VALUES (1, 'another', 500)")
    embedded.target.apply(catch_up)
    embedded.sql("UPDATE item SET stock = stock - 100 WHERE id = 1")
    for each in rest:
        embedded.target.apply(each)
    assert embedded.sql("SELECT name, stock FROM item") == [("apple", 10)]
    assert len(embedded.quarantine()) == 3


def test_a_number_of_a_row_that_the_migration_took_out_is_not_taken_from_it(embedded: PostgresWorld) -> None:
    embedded.sql(ITEM)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; DELETE FROM item",
        "INSERT INTO item VALUES (1, 'another', 500)",
        "UPDATE item SET stock = stock - 3 WHERE id = 1",
    )
    assert embedded.sql("SELECT name, stock FROM item") == [("apple", 10)]
    assert len(embedded.quarantine()) == 2


REFILL: Final = "ALTER TABLE customers ADD COLUMN note text; CREATE TEMP TABLE o AS TABLE {table}; {how}; "


@pytest.mark.parametrize("how", ["DELETE FROM orders", "TRUNCATE orders"])
@pytest.mark.parametrize("key", ["id", "id + 1000"])
def test_amounts_of_a_table_that_the_migration_refilled_in_another_unit_wait(
    embedded: PostgresWorld, how: str, key: str
) -> None:
    embedded.sql("UPDATE orders SET total = id")
    went_back(
        embedded,
        REFILL.format(table="orders", how=how)
        + f"INSERT INTO orders SELECT {key}, customer, total * 100, state, at FROM o",
        f"UPDATE orders SET total = total + 500 WHERE id = {key.replace('id', '7')}",
        "INSERT INTO orders (id, customer, total) VALUES (9000, 1, 2500)",
    )
    assert embedded.sql("SELECT id, total::int FROM orders WHERE id = 7 OR id > 100 ORDER BY id") == [(7, 7)]
    assert len(embedded.quarantine()) == 2


def test_stock_is_not_taken_from_a_row_that_got_the_key_of_another_by_a_refill(embedded: PostgresWorld) -> None:
    embedded.sql(f"{ITEM}, (2, 'pear', 10), (3, 'plum', 10)")
    went_back(
        embedded,
        REFILL.format(table="item", how="DELETE FROM item") + "INSERT INTO item SELECT 4 - id, name, stock FROM o",
        "UPDATE item SET stock = stock - 5 WHERE name = 'apple'",
        "INSERT INTO item VALUES (4, 'quince', 40)",
    )
    told = embedded.sql("SELECT name, stock FROM item ORDER BY id")
    assert told == [("apple", 10), ("pear", 10), ("plum", 10), ("quince", 40)]
    assert len(embedded.quarantine()) == 1


def test_what_a_migration_tidied_up_keeps_no_other_row_waiting(embedded: PostgresWorld) -> None:
    embedded.sql(f"{ITEM}, (2, 'pear', 20), (3, 'plum', 30)")
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; "
        "DELETE FROM item WHERE id = 1; INSERT INTO item VALUES (9, 'fig', 7)",
        "UPDATE item SET stock = stock - 5 WHERE id = 2",
        "INSERT INTO item VALUES (4, 'quince', 40)",
        "UPDATE item SET stock = stock - 5 WHERE id = 4",
        "DELETE FROM item WHERE id = 3",
    )
    assert embedded.sql("SELECT id, stock FROM item ORDER BY id") == [(1, 10), (2, 15), (4, 35)]
    assert embedded.quarantine() == []


def test_a_write_between_two_steps_of_a_migration_waits_alone(embedded: PostgresWorld) -> None:
    """Its columns are neither those of the old schema nor those of today."""
    embedded.sql(f"{ITEM}, (2, 'pear', 20)")
    embedded.take()
    embedded.sql("ALTER TABLE item ADD COLUMN a int")
    embedded.sql("UPDATE item SET stock = stock - 1 WHERE id = 1")
    embedded.ship("v2", {SECOND: "ALTER TABLE item ADD COLUMN b int"})
    embedded.migrate()
    embedded.sql("UPDATE item SET stock = stock - 3")
    embedded.go_back()
    assert embedded.sql("SELECT id, stock FROM item ORDER BY id") == [(1, 7), (2, 17)]
    assert len(embedded.quarantine()) == 1


def test_stock_is_not_taken_from_a_row_whose_key_others_may_have_now(embedded: PostgresWorld) -> None:
    embedded.sql(f"{ITEM}, (2, 'pear', 20)")
    went_back(
        embedded,
        "ALTER TABLE item DROP CONSTRAINT item_pkey, ADD COLUMN uid serial PRIMARY KEY",
        "INSERT INTO item (id, name, stock) VALUES (1, 'second', 100), (3, 'plum', 30)",
        "UPDATE item SET stock = stock - 5 WHERE name = 'second'",
        "UPDATE item SET stock = stock - 5 WHERE id = 2",
    )
    assert embedded.sql("SELECT id, stock FROM item ORDER BY id") == [(1, 10), (2, 20)]
    assert "rows of item may have the same id now" in reasons(embedded)[-1]


def test_what_the_application_wrote_where_the_server_calculated_before_is_left_out_by_name(
    embedded: PostgresWorld,
) -> None:
    embedded.sql("CREATE TABLE g (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED)")
    embedded.sql("INSERT INTO g (id, a) VALUES (1, 1), (2, 2)")
    went_back(
        embedded,
        "ALTER TABLE g ALTER COLUMN b DROP EXPRESSION; ALTER TABLE customers ADD COLUMN note text",
        "INSERT INTO g (id, a, b) VALUES (3, 3, 99)",
        "UPDATE g SET b = 77 WHERE id = 1",
        "UPDATE g SET a = 5 WHERE id = 2",
    )
    assert embedded.sql("SELECT id, a, b FROM g ORDER BY id") == [(1, 1, 2), (2, 5, 10), (3, 3, 6)]
    (file,) = {loss.file for loss in embedded.replayed().left_out}
    told = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert [(line["key"], line["values"]) for line in told] == [({"id": "3"}, {"b": "99"}), ({"id": "1"}, {"b": "77"})]


def test_a_long_value_that_has_no_place_is_left_out_once(embedded: PostgresWorld) -> None:
    went_back(
        embedded,
        "ALTER TABLE orders ADD COLUMN note text; ALTER TABLE orders ALTER note SET STORAGE EXTERNAL",
        "UPDATE orders SET note = repeat('x', 9000) WHERE id = 3",
        "UPDATE orders SET total = total + 1 WHERE id = 3",
    )
    assert [loss.rows for loss in embedded.replayed().left_out] == [1]


FOLLOWS: Final = (
    "CREATE TABLE code (id int PRIMARY KEY, name text UNIQUE); INSERT INTO code VALUES (1, 'a'), (2, 'z'); "
    "CREATE TABLE uses (id int PRIMARY KEY, code text REFERENCES code (name) ON UPDATE CASCADE, n int); "
    "INSERT INTO uses VALUES (1, 'a', 1), (2, 'a', 1), (3, 'z', 1)"
)


def test_a_key_that_others_follow_is_changed_with_them(embedded: PostgresWorld) -> None:
    embedded.sql(FOLLOWS)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        "BEGIN; UPDATE code SET name = 'b' WHERE id = 1; UPDATE uses SET n = n + 1 WHERE id = 1; COMMIT",
    )
    assert embedded.quarantine() == []
    assert embedded.sql("SELECT id, code, n FROM uses ORDER BY id") == [(1, "b", 2), (2, "b", 1), (3, "z", 1)]


def test_a_row_whose_move_waits_does_not_follow_the_key_that_it_left(embedded: PostgresWorld) -> None:
    embedded.sql(FOLLOWS)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        WAITS.format("UPDATE uses SET code = 'z'"),
        "UPDATE code SET name = 'b' WHERE id = 1",
    )
    assert embedded.sql("SELECT id, code FROM uses ORDER BY id") == [(1, "a"), (2, "a"), (3, "z")]
    assert len(embedded.quarantine()) == 2


REFERS: Final = (
    "CREATE TABLE good (code text PRIMARY KEY, name text, UNIQUE (name, code)); "
    "CREATE TABLE pick (id int PRIMARY KEY, good text REFERENCES good DEFERRABLE INITIALLY DEFERRED); "
    "INSERT INTO good VALUES ('a', 'A'), ('b', 'B'), ('c', 'C'); INSERT INTO pick VALUES (1, 'c'); "
    "CREATE TABLE hall (id int PRIMARY KEY, name text UNIQUE, UNIQUE (id, name)); "
    "CREATE TABLE seat (id int PRIMARY KEY, hall varchar(9) REFERENCES hall (name) ON UPDATE CASCADE); "
    "INSERT INTO hall VALUES (1, 'a'), (2, 'b'), (3, 'c'); INSERT INTO seat VALUES (1, 'c'); "
    "CREATE TABLE room (id int PRIMARY KEY, floor numeric(4, 1), door int, UNIQUE (floor, door)); "
    "CREATE TABLE desk (id int PRIMARY KEY, door bigint, floor numeric, "
    "FOREIGN KEY (floor, door) REFERENCES room (floor, door)); "
    "INSERT INTO room VALUES (1, 1, 1), (2, 1, 2), (3, 1, 3); INSERT INTO desk VALUES (1, 3, 1)"
)


@pytest.mark.parametrize(
    "moves, refers",
    [
        pytest.param(
            ("UPDATE good SET code = 'x' WHERE code = 'a'", "UPDATE good SET code = 'a' WHERE code = 'b'"),
            "INSERT INTO pick VALUES (2, 'a')",
            id="moved",
        ),
        pytest.param(
            ("DELETE FROM good WHERE code = 'a'", "INSERT INTO good VALUES ('a', 'another')"),
            "INSERT INTO pick VALUES (2, 'a')",
            id="made",
        ),
        pytest.param(
            ("UPDATE good SET code = 'x' WHERE code = 'a'", "UPDATE good SET code = 'a' WHERE code = 'b'"),
            "UPDATE pick SET good = 'a' WHERE id = 1",
            id="refers anew",
        ),
        pytest.param(
            ("UPDATE hall SET name = 'x' WHERE id = 1", "UPDATE hall SET name = 'a' WHERE id = 2"),
            "INSERT INTO seat VALUES (2, 'a')",
            id="not by the primary key",
        ),
        pytest.param(
            ("UPDATE hall SET name = 'x' WHERE id = 1", "INSERT INTO hall VALUES (4, 'a')"),
            "UPDATE seat SET hall = 'a' WHERE id = 1",
            id="made, not by the primary key",
        ),
        pytest.param(
            ("UPDATE room SET door = 9 WHERE id = 1", "UPDATE room SET door = 1 WHERE id = 2"),
            "INSERT INTO desk VALUES (2, 1, 1.00)",
            id="by several columns",
        ),
    ],
)
def test_a_row_does_not_refer_to_another_one_than_it_did(
    embedded: PostgresWorld, moves: tuple[str, str], refers: str
) -> None:
    embedded.sql(REFERS)
    went_back(embedded, "ALTER TABLE customers ADD COLUMN note text", WAITS.format(moves[0]), moves[1], refers)
    now = "SELECT id, good FROM pick UNION ALL SELECT id, hall FROM seat UNION ALL SELECT id, door::text FROM desk"
    assert embedded.sql(now) == [(1, "c"), (1, "c"), (1, "3")]
    waiting = reasons(embedded)
    assert len(waiting) == 3
    assert "depends on one in quarantine" in waiting[-1]


def test_a_row_does_not_refer_to_one_that_the_migration_put_at_the_key_of_another(embedded: PostgresWorld) -> None:
    embedded.sql(REFERS)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; UPDATE good SET code = 'x' WHERE code = 'a'; "
        "UPDATE good SET code = 'a' WHERE code = 'b'",
        "INSERT INTO pick VALUES (2, 'a')",
        "INSERT INTO pick VALUES (3, 'c')",
    )
    assert embedded.sql("SELECT * FROM pick ORDER BY id") == [(1, "c"), (3, "c")]
    assert ["depends on one in quarantine" in reason for reason in reasons(embedded)] == [True]


def test_nor_does_one_of_a_transaction_that_is_sent_in_parts(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "PART", 10)
    embedded.sql(REFERS)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        WAITS.format("UPDATE good SET code = 'x' WHERE code = 'a'"),
        "UPDATE good SET code = 'a' WHERE code = 'b'",
        "INSERT INTO pick VALUES (2, 'c'), (3, 'a')",
        "INSERT INTO pick VALUES (4, 'c')",
    )
    assert embedded.sql("SELECT * FROM pick ORDER BY id") == [(1, "c"), (4, "c")]
    assert ["depends on one in quarantine" in reason for reason in reasons(embedded)] == [False, True, True]


def test_a_row_refers_to_what_its_transaction_made_though_something_waits_elsewhere(embedded: PostgresWorld) -> None:
    embedded.sql(REFERS)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        WAITS.format("INSERT INTO hall VALUES (4, 'd'), (5, 'e')"),
        "DELETE FROM hall WHERE id = 4",
        "BEGIN; INSERT INTO hall VALUES (6, 'd'); INSERT INTO seat VALUES (2, 'd'); COMMIT",
        "INSERT INTO seat VALUES (3, 'e')",
        "INSERT INTO seat VALUES (4, 'a')",
    )
    assert embedded.sql("SELECT * FROM seat ORDER BY id") == [(1, "c"), (2, "d"), (4, "a")]
    assert [reason[-7:] for reason in reasons(embedded)][2:] == [replay.REFERS]


@pytest.mark.parametrize("left", ["", ", kind text"])
def test_a_row_whose_key_is_gone_is_not_taken_for_another(embedded: PostgresWorld, left: str) -> None:
    embedded.sql(f"CREATE TABLE seats (id int PRIMARY KEY{left}); INSERT INTO seats (id) VALUES (1), (2), (3)")
    went_back(
        embedded,
        "ALTER TABLE seats ADD COLUMN uid int; UPDATE seats SET uid = id; ALTER TABLE seats DROP COLUMN id",
        "DELETE FROM seats WHERE uid = 3",
    )
    assert embedded.sql("SELECT id FROM seats ORDER BY id") == [(1,), (2,), (3,)]
    assert len(embedded.quarantine()) == 1


@pytest.mark.full
def test_not_even_the_only_row_that_looks_like_it_is_taken_for_one_whose_key_is_gone(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE TABLE seats (id int PRIMARY KEY, kind text); INSERT INTO seats VALUES (1, 'a'), (2, 'b')")
    went_back(
        embedded,
        "ALTER TABLE orders DROP CONSTRAINT orders_total_check; ALTER TABLE seats ADD COLUMN uid int; "
        "UPDATE seats SET uid = id; ALTER TABLE seats DROP COLUMN id",
        KEPT_OUT + "UPDATE seats SET kind = 'a' WHERE kind = 'b'",
        "DELETE FROM seats WHERE uid = 2",
    )
    assert embedded.sql("SELECT * FROM seats ORDER BY id") == [(1, "a"), (2, "b")]
    assert "seats has no key by which the row is known, nor id" in reasons(embedded)[1]


@pytest.mark.parametrize(
    "table, rewriting",
    [
        ("CREATE TABLE notes (n int)", "UPDATE notes SET n = n * 100"),
        ("CREATE TABLE notes (n int PRIMARY KEY)", "UPDATE notes SET n = n + 200; UPDATE notes SET n = n - 199"),
    ],
)
def test_a_row_that_the_migration_gave_another_name_is_not_taken_for_another(
    embedded: PostgresWorld, table: str, rewriting: str
) -> None:
    embedded.sql(f"{table}; INSERT INTO notes VALUES (1), (2), (100)")
    went_back(embedded, f"{LET_BAD_IN}; {rewriting}", "DELETE FROM notes WHERE n IN (100, 2)")
    assert embedded.sql("SELECT n FROM notes ORDER BY n") == [(1,), (2,), (100,)]
    assert len(embedded.quarantine()) == 1


JOBS: Final = (
    "CREATE DOMAIN code AS int CHECK (VALUE IN (1, 2, 5)); CREATE TABLE jobs (id int PRIMARY KEY, status {}); "
)


@pytest.mark.full
@pytest.mark.parametrize(
    "column, merge",
    [
        ("int NOT NULL", {"jobs.status": "set"}),
        ("int NOT NULL CHECK (status IN (1, 2, 5))", {}),
        ("smallint NOT NULL CHECK (status = 1 OR status = 2 OR status = 5)", {}),
        ("code NOT NULL", {}),
        ("int NOT NULL); CREATE INDEX ON jobs (id) WHERE (status = 1", {}),
    ],
)
def test_a_number_that_is_a_code_is_not_counted(embedded: PostgresWorld, column: str, merge: dict[str, str]) -> None:
    embedded.merge = merge
    embedded.sql(JOBS.format(column) + "INSERT INTO jobs VALUES (1, 1), (2, 1)")
    assert embedded.target.preflight() == ()
    went_back(
        embedded,
        LET_BAD_IN,
        KEPT_OUT + "UPDATE jobs SET status = 5 WHERE id = 1",
        "UPDATE jobs SET status = 2 WHERE id = 1",
        "UPDATE jobs SET status = 2 WHERE id = 2",
    )
    assert embedded.sql("SELECT id, status FROM jobs ORDER BY id") == [(1, 1), (2, 2)]
    assert len(embedded.quarantine()) == 2


@pytest.mark.full
def test_a_code_counts_where_it_is_said_so(embedded: PostgresWorld) -> None:
    embedded.merge = {"jobs.status": "delta"}
    embedded.sql(JOBS.format("int NOT NULL CHECK (status IN (0, 1, 2, 3))") + "INSERT INTO jobs VALUES (1, 1)")
    went_back(
        embedded,
        LET_BAD_IN,
        KEPT_OUT + "UPDATE jobs SET status = 2 WHERE id = 1",
        "UPDATE jobs SET status = 3 WHERE id = 1",
    )
    assert embedded.one("SELECT status FROM jobs") == 2


def test_a_column_that_is_merged_and_not_there_is_named_before_anything_is_done(embedded: PostgresWorld) -> None:
    embedded.merge = {"orders.total": "delta", "orders.price": "set", "customers.name": "delta", "x.orders.at": "set"}
    assert embedded.target.preflight() == (
        "database.merge.orders.price: the database has no such column",
        "database.merge.customers.name: delta is for smallint, integer, bigint and numeric, which this is not",
        "database.merge.x.orders.at: the database has no such column",
    )


def test_what_rules_wrote_is_not_written_twice_and_they_are_as_they_were(embedded: PostgresWorld) -> None:
    embedded.sql("CREATE RULE noted AS ON INSERT TO orders DO ALSO INSERT INTO audit (what) VALUES ('rule')")
    embedded.sql(
        "CREATE RULE never AS ON DELETE TO audit DO INSTEAD NOTHING; ALTER TABLE audit ENABLE ALWAYS RULE never"
    )
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        "INSERT INTO orders (customer, total) VALUES (1, 5)",
    )
    assert embedded.one("SELECT count(*) FROM audit WHERE what = 'rule'") == 1
    enabled = "SELECT rulename, ev_enabled::text FROM pg_rewrite WHERE rulename IN ('noted', 'never') ORDER BY 1"
    assert embedded.sql(enabled) == [("never", "A"), ("noted", "O")]


def test_values_that_cannot_be_compared_are_by_their_text(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE DOMAIN told AS json; CREATE TYPE pair AS (a json); "
        "CREATE TABLE odd (id int PRIMARY KEY, a json[], b told, c pair, d box, e jsonpath, f money, g told[])"
    )
    embedded.sql(
        """INSERT INTO odd SELECT n, ARRAY['{}'::json], '{}', ROW('{}'::json)::pair, '(1,1),(0,0)', '$.a', 1,
        ARRAY['{}'::told] FROM generate_series(1, 2) n"""
    )
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        """UPDATE odd SET a = ARRAY['[1]'::json], b = '[1]', c = ROW('[1]'::json)::pair, d = '(2,2),(1,1)', e = '$.b',
        f = 2, g = ARRAY['[1]'::told] WHERE id = 1""",
        "DELETE FROM odd WHERE id = 2",
    )
    assert embedded.quarantine() == []
    of = "SELECT odd::text FROM odd"
    assert embedded.sql(of) == embedded.sql(of, database=embedded.kept_as)
    assert embedded.one("SELECT count(*) FROM odd") == 1


def test_what_follows_a_migration_that_wrote_no_row_has_the_columns_of_today(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.sql("INSERT INTO audit (what) VALUES ('before')")
    embedded.ship(
        "v2",
        {
            SECOND: "DROP VIEW paid; ALTER TABLE orders DROP COLUMN at; "
            "ALTER TABLE orders ADD COLUMN at timestamptz NOT NULL DEFAULT now(); "
            "ALTER TABLE audit DROP COLUMN at; ALTER TABLE audit ADD COLUMN at timestamptz DEFAULT now()"
        },
    )
    embedded.migrate()
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES (900, 1, 5)")
    embedded.sql("UPDATE orders SET state = 'paid' WHERE id = 3")
    embedded.go_back()
    assert embedded.sql("SELECT total, state::text FROM orders WHERE id IN (3, 900) ORDER BY id") == [
        (4, "paid"),
        (5, "new"),
    ]
    (waiting,) = embedded.quarantine()
    assert waiting["reason"].startswith("a column of audit was dropped and made again")
    assert waiting["changes"][0]["new"]["what"] == "before"


# --- partitions that came and went -----------------------------------------------------------------------------------

EVENTS: Final = """
CREATE TABLE ev (id int, n int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE ev_1 PARTITION OF ev FOR VALUES FROM (0) TO (10);
INSERT INTO ev VALUES (1, 1, 1), (2, 1, 2), (3, 1, 3)
"""
LATER: Final = "CREATE TABLE ev_2 PARTITION OF ev FOR VALUES FROM (10) TO (20)"


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "transactions"])
@pytest.mark.parametrize("made_by", ["the application", "the migration"])
def test_rows_of_a_partition_that_was_made_since_go_back(
    embedded: PostgresWorld, made_by: str, *, by_rows: bool
) -> None:
    embedded.by_rows = by_rows
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT")
    embedded.take()
    migration = "ALTER TABLE ev RENAME COLUMN n TO m; ALTER TABLE ev ADD COLUMN more text"
    embedded.ship("v2", {SECOND: f"{migration}; {LATER}" if made_by == "the migration" else migration})
    embedded.migrate()
    if made_by == "the application":
        embedded.sql(LATER)
    for statement in (
        "INSERT INTO ev VALUES (11, 1, 11, 'new'), (12, 1, 12, NULL), (13, 1, 13, NULL)",
        "UPDATE ev SET m = m + 4 WHERE id = 11",
        "DELETE FROM ev WHERE id = 12",
        "UPDATE ev SET at = 14 WHERE id = 1",
        "UPDATE ev SET at = 4 WHERE id = 13",
    ):
        embedded.sql(statement)
    of = "SELECT id, at, {} FROM ev ORDER BY id"
    before = embedded.sql(of.format("m"))
    if not by_rows:
        tried = embedded.target.try_replay(CatchUp(replay=REPLAY, restore_point=embedded.restore_point))
        assert tried.replayed is not None
        assert dict(tried.replayed.carried)["ev"] == 2
    embedded.go_back()
    assert embedded.quarantine() == []
    assert embedded.sql(of.format("n")) == before
    replayed = embedded.replayed()
    assert dict(replayed.carried)["ev"] == 2
    assert "ev_2 is a partition of ev since: its rows go back in their last state" in replayed.notes
    assert [(loss.table, loss.rows) for loss in replayed.left_out] == [("ev", 1)]


@pytest.mark.full
@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "transactions"])
def test_rows_for_which_the_old_schema_has_no_partition_wait_until_there_is_one(
    embedded: PostgresWorld, *, by_rows: bool
) -> None:
    embedded.by_rows = by_rows
    embedded.sql(EVENTS)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        LATER,
        "INSERT INTO ev VALUES (11, 1, 11), (12, 1, 12)",
        "INSERT INTO ev VALUES (13, 1, 13)",
        "INSERT INTO audit (what) VALUES ('good')",
    )
    assert embedded.one("SELECT what FROM audit") == "good"
    waiting = embedded.quarantine()
    assert {entry["reason"] for entry in waiting} == {'change 1: no partition of relation "ev" found for row (23514)'}
    assert [(loss.table, loss.rows) for loss in embedded.replayed().losses] == [("ev_2", 3)]
    embedded.sql(LATER)
    for entry in embedded.target.quarantine():
        assert embedded.target.requeue(entry, replay=embedded.replay, about_to_commit=lambda _: None) == ()
    assert embedded.sql("SELECT id FROM ev WHERE at > 10 ORDER BY id") == [(11,), (12,), (13,)]


@pytest.mark.full
def test_rows_of_later_partitions_are_not_carried_twice(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT")
    embedded.take()
    embedded.migrate()
    embedded.sql(LATER)
    embedded.sql("INSERT INTO ev VALUES (11, 1, 11)")
    for each in embedded.way_back[:3]:
        embedded.target.apply(each)

    def dying(*_: object) -> None:
        raise Died

    with monkeypatch.context() as killed:
        killed.setattr(replay.Replay, "finish", dying)
        with pytest.raises(Died):
            embedded.target.apply(embedded.way_back[3])
    embedded.target.apply(embedded.way_back[3])
    assert embedded.quarantine() == []
    assert embedded.one("SELECT count(*) FROM ev", database=embedded.clone) == 4
    embedded.target.apply(embedded.lift)
    embedded.sql("DELETE FROM ev WHERE id = 11")
    kept_as = f"{embedded.config.name}_bad_r2"
    embedded.target.apply(step("fence", Fence(kept_as=kept_as)))
    again = ReplayWrites(replay="replay-r2", restore_point=embedded.restore_point, kept_as=kept_as, by_rows=False)
    with pytest.raises(Refused, match="holds rows of ev_2 that another replay carried"):
        embedded.target.apply(step("replay", again))


@pytest.mark.full
def test_a_partition_that_was_dropped_or_taken_out_or_put_in_is_said_to_be(embedded: PostgresWorld) -> None:
    embedded.sql(
        EVENTS + "; CREATE TABLE ev_0 PARTITION OF ev FOR VALUES FROM (-10) TO (0); "
        "CREATE TABLE old (id int, n int, at int NOT NULL, PRIMARY KEY (id, at)); INSERT INTO ev VALUES (9, 1, -1)"
    )
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        "DROP TABLE ev_0",
        "ALTER TABLE ev DETACH PARTITION ev_1",
        "INSERT INTO ev_1 VALUES (4, 1, 4), (99, 1, 99)",
        "ALTER TABLE ev ATTACH PARTITION old FOR VALUES FROM (30) TO (40)",
        "INSERT INTO ev VALUES (31, 1, 31)",
    )
    assert embedded.sql("SELECT id FROM ev ORDER BY id") == [(1,), (2,), (3,), (9,)]
    assert embedded.sql("SELECT id FROM old") == [(31,)]
    assert set(embedded.replayed().notes) >= {
        "ev_0 was dropped since, and is there again",
        "ev_1 was taken out of ev since: its rows are in ev again",
        "old became a partition of ev since: its rows are in old alone",
    }
    (waiting,) = embedded.quarantine()
    assert "violates partition constraint" in waiting["reason"]


LINES: Final = """
CREATE TABLE line (id int PRIMARY KEY, ev int, at int, FOREIGN KEY (ev, at) REFERENCES ev (id, at));
CREATE TABLE reader (id int PRIMARY KEY); CREATE TABLE read (id int PRIMARY KEY, by int REFERENCES reader (id))
"""


@pytest.mark.full
@pytest.mark.parametrize(
    "and_then", ["", "UPDATE ev SET n = 5 WHERE id = 1"], ids=["as it was moved", "changed afterwards"]
)
@pytest.mark.parametrize("within", ["", "SAVEPOINT s"], ids=["transaction", "subtransaction"])
def test_a_row_whose_move_to_a_later_partition_waits_is_there_once(
    embedded: PostgresWorld, within: str, and_then: str
) -> None:
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT")
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; ALTER TABLE ev RENAME COLUMN id TO number",
        LATER,
        "INSERT INTO ev VALUES (11, 1, 11)",
        f"BEGIN; {within}; UPDATE ev SET at = 14 WHERE number = 1; TRUNCATE audit; COMMIT",
        and_then.replace("id", "number"),
    )
    assert embedded.sql("SELECT id, n, at FROM ev ORDER BY id") == [(1, 1, 1), (2, 1, 2), (3, 1, 3), (11, 1, 11)]
    emptied, moved = embedded.quarantine()
    assert "it empties audit" in emptied["reason"]
    assert moved["changes"][0]["new"]["at"] == "14"
    assert "waits" in moved["reason"]
    replayed = embedded.replayed()
    assert (replayed.total, replayed.quarantined) == (3, 2)


IN_PARTS: Final = (
    "INSERT INTO ev VALUES (10, 1, 10)",
    "BEGIN; TRUNCATE audit; SAVEPOINT s; INSERT INTO ev VALUES (11, 1, 11); RELEASE s; COMMIT",
    "BEGIN; INSERT INTO reader VALUES (1); INSERT INTO ev VALUES (12, 1, 12); COMMIT",
    "INSERT INTO ev VALUES (13, 1, 13)",
)


def test_a_row_that_may_be_of_a_subtransaction_of_what_waits_is_not_carried_alone(embedded: PostgresWorld) -> None:
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT;" + LINES)
    went_back(embedded, "ALTER TABLE customers ADD COLUMN note text", LATER, *IN_PARTS)
    assert embedded.sql("SELECT id FROM ev WHERE at > 9 ORDER BY id") == [(10,), (12,)]
    emptied, *rest = reasons(embedded)
    assert "it empties audit" in emptied
    assert rest == [replay.MAY_BE_REST] * 2


@pytest.fixture
def stamped(tmp_path: Path) -> Iterator[PostgresWorld]:
    """The shop on a server that keeps when each number was committed."""
    with postgres_embedded.open_folder() as folder, cluster(folder, None) as server:
        with connect(server.config, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        server.start(after=server.kill())
        with postgres_embedded.database(tmp_path, server.config) as made:
            yield made


@pytest.mark.full
def test_a_row_of_a_subtransaction_is_known_where_the_server_keeps_when_it_was_committed(
    stamped: PostgresWorld,
) -> None:
    stamped.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT;" + LINES)
    refers = "BEGIN; INSERT INTO line VALUES (1, 14, 14); SAVEPOINT s; INSERT INTO ev VALUES (14, 1, 14); COMMIT"
    deferred = "ALTER TABLE line ALTER CONSTRAINT line_ev_at_fkey DEFERRABLE INITIALLY DEFERRED"
    went_back(stamped, "ALTER TABLE customers ADD COLUMN note text", LATER, deferred, *IN_PARTS, refers)
    assert stamped.sql("SELECT id FROM ev WHERE at > 9 ORDER BY id") == [(10,), (12,), (13,), (14,)]
    assert stamped.sql("SELECT id FROM line") == [(1,)]
    emptied, rest = reasons(stamped)
    assert "it empties audit" in emptied
    assert rest == replay.REST_WAITS


@pytest.mark.full
def test_rows_of_one_transaction_in_several_later_partitions_wait_together(stamped: PostgresWorld) -> None:
    stamped.sql(EVENTS + "; ALTER TABLE ev ADD CHECK (n > 0); CREATE TABLE ev_rest PARTITION OF ev DEFAULT")
    went_back(
        stamped,
        "ALTER TABLE ev DROP CONSTRAINT ev_n_check",
        f"{LATER}; CREATE TABLE ev_3 PARTITION OF ev FOR VALUES FROM (20) TO (30)",
        "BEGIN; INSERT INTO ev VALUES (11, 1, 11); INSERT INTO ev VALUES (21, -1, 21); COMMIT",
        "BEGIN; INSERT INTO ev VALUES (12, 1, 12); SAVEPOINT s; INSERT INTO ev VALUES (13, -1, 13); COMMIT",
        "BEGIN; INSERT INTO ev VALUES (14, 1, 14); SAVEPOINT s; INSERT INTO ev VALUES (24, 1, 24); COMMIT",
    )
    assert stamped.sql("SELECT id FROM ev WHERE at > 9 ORDER BY id") == [(14,), (24,)]
    waiting = [{change["new"]["id"] for change in entry["changes"]} for entry in stamped.quarantine()]
    assert waiting == [{"11", "21"}, {"12", "13"}]
    assert {"(23514)" in reason for reason in reasons(stamped)} == {True}


def test_rows_of_a_captured_table_that_became_a_partition_go_back_as_those_of_any_later_one(
    embedded: PostgresWorld,
) -> None:
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT;" + LINES)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; CREATE TABLE ev_2 (LIKE ev INCLUDING ALL)",
        "ALTER TABLE ev ATTACH PARTITION ev_2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO ev VALUES (10, 1, 10)",
        "UPDATE ev SET n = 5 WHERE id = 10",
        "UPDATE ev SET at = 19 WHERE id = 1",
        "BEGIN; TRUNCATE audit; INSERT INTO ev VALUES (11, 1, 11); COMMIT",
        "BEGIN; INSERT INTO reader VALUES (1); INSERT INTO ev VALUES (12, 1, 12); COMMIT",
    )
    rows = [(1, 1, 19), (2, 1, 2), (3, 1, 3), (10, 5, 10), (12, 1, 12)]
    assert embedded.sql("SELECT id, n, at FROM ev ORDER BY id") == rows
    emptied, rest = reasons(embedded)
    assert "it empties audit" in emptied
    assert rest == replay.REST_WAITS
    replayed = embedded.replayed()
    assert (replayed.left_out, replayed.without_place) == ((), 0)


@pytest.mark.full
def test_what_refers_to_a_row_of_a_later_partition_goes_back_with_it(embedded: PostgresWorld) -> None:
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT;" + LINES)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text; ALTER TABLE line ADD COLUMN more text",
        LATER,
        "BEGIN; INSERT INTO ev VALUES (11, 1, 11); INSERT INTO line VALUES (1, 11, 11, 'new'); COMMIT",
        "INSERT INTO line VALUES (2, 11, 11)",
        "BEGIN; UPDATE ev SET n = 7 WHERE id = 11; INSERT INTO line VALUES (3, 11, 11); COMMIT",
    )
    assert embedded.quarantine() == []
    assert embedded.sql("SELECT id, n, at FROM ev WHERE id = 11") == [(11, 7, 11)]
    assert embedded.sql("SELECT id, ev FROM line ORDER BY id") == [(1, 11), (2, 11), (3, 11)]
    replayed = embedded.replayed()
    assert (dict(replayed.carried)["line"], replayed.total, replayed.quarantined) == (3, 4, 0)
    assert [(loss.table, loss.rows) for loss in replayed.left_out] == [("line", 1)]


def test_a_transaction_that_refers_to_what_waits_is_not_carried_by_half(embedded: PostgresWorld) -> None:
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT;" + LINES)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        LATER,
        "BEGIN; TRUNCATE audit; INSERT INTO reader VALUES (1); COMMIT",
        "BEGIN; UPDATE ev SET at = 14 WHERE id = 1; INSERT INTO read VALUES (1, 1); COMMIT",
    )
    assert embedded.sql("SELECT id, at FROM ev ORDER BY id") == [(1, 1), (2, 2), (3, 3)]
    assert embedded.sql("SELECT * FROM read") == []
    emptied, refers, rest = reasons(embedded)
    assert "it empties audit" in emptied
    assert "(23503)" in refers
    assert rest == "the rest of its transaction waits"


def test_what_is_tried_again_does_not_refer_to_another_row_than_it_did(embedded: PostgresWorld) -> None:
    embedded.sql(REFERS + "; " + EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT")
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        LATER,
        WAITS.format("INSERT INTO hall VALUES (4, 'd')"),
        "INSERT INTO seat VALUES (2, 'd')",
        "BEGIN; DELETE FROM seat WHERE id = 2; DELETE FROM hall WHERE id = 4; COMMIT",
        "INSERT INTO hall VALUES (5, 'd')",
    )
    assert embedded.sql("SELECT id, name FROM hall WHERE name = 'd'") == [(5, "d")]
    assert embedded.sql("SELECT id FROM seat") == [(1,)]
    assert len(embedded.quarantine()) == 3


@pytest.mark.full
def test_what_breaks_an_invariant_when_it_is_tried_again_waits_with_the_rest_of_it(embedded: PostgresWorld) -> None:
    embedded.invariants = {"no-third-line": "SELECT id FROM line WHERE id = 3"}
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT;" + LINES)
    went_back(
        embedded,
        "ALTER TABLE customers ADD COLUMN note text",
        LATER,
        "INSERT INTO ev VALUES (11, 1, 11)",
        "INSERT INTO line VALUES (1, 11, 11)",
        "BEGIN; INSERT INTO ev VALUES (12, 1, 12); INSERT INTO line VALUES (3, 11, 11); COMMIT",
    )
    assert embedded.sql("SELECT id FROM line") == [(1,)]
    assert embedded.sql("SELECT id FROM ev WHERE id > 10") == [(11,)]
    assert reasons(embedded) == ["it breaks the invariant no-third-line: 3", "the rest of its transaction waits"]


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    ["UPDATE amounts SET n = n * 100", "ALTER TABLE amounts ALTER COLUMN m TYPE numeric USING m * 100"],
    ids=["rewritten", "redefined"],
)
def test_a_number_in_another_unit_waits_in_every_partition(embedded: PostgresWorld, change: str) -> None:
    embedded.sql(
        "CREATE TABLE amounts (gone text, id int, n numeric, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE amounts_1 PARTITION OF amounts FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE empty (at int NOT NULL, n numeric, id int NOT NULL);"  # the same columns by other numbers
        "ALTER TABLE amounts DROP COLUMN gone; ALTER TABLE amounts ATTACH PARTITION empty FOR VALUES FROM (20) TO (30);"
        "CREATE TABLE rest PARTITION OF amounts DEFAULT;"
        "INSERT INTO amounts VALUES (1, 10, 1), (2, 3, 2), (3, 7, 3)"
    )
    rename = "; ALTER TABLE amounts RENAME COLUMN n TO m; " if " m " in change else "; "
    went_back(
        embedded,
        f"ALTER TABLE amounts ADD COLUMN note text{rename}{change}",
        "CREATE TABLE later PARTITION OF amounts FOR VALUES FROM (10) TO (20)",
        "INSERT INTO amounts VALUES (12, NULL, 12)",
        "INSERT INTO amounts VALUES (4, 500, 4)",
        "INSERT INTO amounts VALUES (11, 500, 11)",
        "INSERT INTO amounts VALUES (21, 500, 21)",
    )
    rows = embedded.sql("SELECT id, n::int FROM amounts ORDER BY id")
    assert rows == [(1, 10), (2, 3), (3, 7), (12, None)]
    assert [change["table"] for entry in embedded.quarantine() for change in entry["changes"]] == [
        "amounts_1",
        "empty",
        "later",
    ]
    assert {"maybe into another unit" in reason for reason in reasons(embedded)} == {True}


@pytest.mark.full
def test_what_partitions_tell_of_a_unit_is_taken_together(embedded: PostgresWorld) -> None:
    embedded.sql(
        "CREATE TABLE amounts (id int, n numeric, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE amounts_1 PARTITION OF amounts FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE amounts_2 PARTITION OF amounts FOR VALUES FROM (10) TO (20);"
        "CREATE TABLE amounts_3 PARTITION OF amounts FOR VALUES FROM (20) TO (30);"
        "INSERT INTO amounts VALUES (1, 10, 1), (2, 20, 2), (11, 10, 11), (12, 30, 12)"
    )
    went_back(
        embedded,
        "ALTER TABLE amounts ADD COLUMN note text; UPDATE amounts SET n = n * 100 WHERE id IN (2, 12)",
        "INSERT INTO amounts VALUES (21, 500, 21)",
    )
    assert embedded.one("SELECT count(*) FROM amounts") == 4
    assert "maybe into another unit" in reasons(embedded)[0]


@pytest.mark.full
def test_rows_of_a_later_partition_that_the_migration_rewrote_are_not_forgotten(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "FETCHED", 2)
    embedded.sql(EVENTS + "; CREATE TABLE ev_rest PARTITION OF ev DEFAULT")
    embedded.take()
    embedded.sql(LATER)
    embedded.sql("INSERT INTO ev VALUES (11, 1, 11), (12, 1, 12), (13, 1, 13), (14, 1, 14)")
    embedded.ship(
        "v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE ev SET n = 2 WHERE id IN (11, 12, 13)"}
    )
    embedded.migrate()
    embedded.go_back()
    assert embedded.sql("SELECT id FROM ev ORDER BY id") == [(1,), (2,), (3,), (14,)]
    waiting = [change["new"]["id"] for entry in embedded.quarantine() for change in entry["changes"]]
    assert sorted(waiting) == ["11", "12", "13"]
    assert {"the migration wrote these rows last" in reason for reason in reasons(embedded)} == {True}
    assert len(embedded.quarantine()) == 2

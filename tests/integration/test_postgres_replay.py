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
from typing import Any, Final

import psycopg
import pytest

from lastgood.core.errors import Refused
from lastgood.core.plan import CatchUp, Fence, ReplayWrites, SwapDatabase
from lastgood.targets.postgres import replay, target
from lastgood.targets.postgres.broken import keys_that_break
from lastgood.targets.postgres.connect import Connection
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
        world.ship("v2", {SECOND: shape.migration})
    world.migrate()
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
    assert embedded.replayed().skipped == ("UPDATE orders" in SHAPES[shape].migration)


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
    assert [entry["reason"].partition(":")[0] for entry in embedded.quarantine()] == ["change 1", "change 1"]
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


# --- the capture itself ----------------------------------------------------------------------------------------------


def identities(world: PostgresWorld) -> dict[object, object]:
    return {
        row[0]: row[1]
        for row in world.sql("SELECT relname, relreplident::text FROM pg_class WHERE relkind = 'r' AND oid > 16384")
    }


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

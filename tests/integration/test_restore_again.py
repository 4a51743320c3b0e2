"""A clone that is gone, or holds what cannot be gone on with, is restored from its dump once more: then the rows go
back as into the first, and nothing of what was in it counts."""

from __future__ import annotations

import signal

import pytest
from psycopg import sql

from lastgood.core.errors import Refused, Retryable
from lastgood.core.plan import (
    CatchUp,
    ExportWrites,
    Fence,
    LiftFence,
    ReplayWrites,
    Seen,
    Step,
    SwapDatabase,
    TakeRestorePoint,
    seen,
    why_restored_first,
)
from lastgood.targets.postgres import preflight, replay, swap
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.server import databases
from tests.contract.rigs.own_process import begin, ended
from tests.contract.rigs.postgres_world import SECOND, PostgresWorld, step
from tests.integration.test_postgres import deadly


def wrote(world: PostgresWorld) -> None:
    """The application writes under the new schema: one of each kind."""
    world.sql("UPDATE customers SET full_name = 'ada' WHERE id = 7")
    world.sql("DELETE FROM orders WHERE id = 8")
    world.sql("INSERT INTO orders (customer, total) VALUES (1, 900)")


def then(world: PostgresWorld) -> None:
    """It writes on, also to what was replayed already."""
    world.sql("UPDATE customers SET full_name = 'grace' WHERE id = 7")
    world.sql("DELETE FROM orders WHERE total = 900")
    world.sql("INSERT INTO orders (customer, total) VALUES (2, 800)")


def caught_up_and_over(world: PostgresWorld) -> None:
    """A rollback catches up and is given up; the capture ends; users go on."""
    world.take()
    world.migrate()
    wrote(world)
    world.target.apply(next(each for each in world.way_back if isinstance(each.action, CatchUp)))
    world.target.apply(world.end_capture)
    then(world)
    world.by_rows = True


def is_as_after_all_of_it(world: PostgresWorld) -> None:
    assert world.one("SELECT name FROM customers WHERE id = 7") == "grace"
    assert world.sql("SELECT total FROM orders WHERE total >= 800") == [(800,)]
    assert world.one("SELECT count(*) FROM orders WHERE id = 8") == 0
    assert world.one("SELECT count(*) FROM orders") == 100
    assert world.quarantine() == []


def test_what_was_caught_up_before_the_capture_ended_goes_back_by_rows(world: PostgresWorld) -> None:
    caught_up_and_over(world)
    facts = world.target.observe()
    assert (facts.filled, seen(world.restore_clone, facts)) == (frozenset({world.restore_point}), Seen.NOT_DONE)
    world.target.apply(world.restore_clone)
    facts = world.target.observe()
    assert (facts.filled, seen(world.restore_clone, facts)) == (frozenset(), Seen.DONE)
    tried = world.target.try_replay(world.replay)
    world.go_back()
    is_as_after_all_of_it(world)
    assert tried.replayed is not None
    assert (tried.replayed.replayed, tried.replayed.quarantined) == (3, 0)
    assert world.replayed().carried == (("customers", 1), ("orders", 2))


@pytest.mark.full
def test_the_dump_that_was_read_from_a_copy_is_as_good(embedded: PostgresWorld) -> None:
    embedded.pause_s = 30.0
    caught_up_and_over(embedded)
    embedded.target.apply(embedded.restore_clone)
    embedded.go_back()
    is_as_after_all_of_it(embedded)


def test_without_that_it_would_be_refused_behind_the_fence(embedded: PostgresWorld) -> None:
    caught_up_and_over(embedded)
    with pytest.raises(Refused, match="is not as it was proved"):
        embedded.target.try_replay(embedded.replay)


def test_what_an_earlier_rollback_put_back_by_rows_does_not_count(embedded: PostgresWorld) -> None:
    embedded.by_rows = True
    embedded.take()
    embedded.migrate()
    wrote(embedded)
    for each in embedded.way_back:
        embedded.target.apply(each)
        if isinstance(each.action, ReplayWrites):
            break
    embedded.target.apply(embedded.lift)
    assert embedded.target.observe().filled == {embedded.restore_point}
    then(embedded)
    embedded.target.apply(embedded.end_capture)
    embedded.target.apply(embedded.restore_clone)
    for name in ("exports/export-r1.json", "replays/replay-r1.json"):  # of the earlier run, which had other names
        (embedded.folder / "state" / name).unlink()
    embedded.go_back()
    is_as_after_all_of_it(embedded)


def test_into_a_clone_that_is_gone_every_transaction_is_replayed_once_it_is_restored(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    wrote(embedded)
    then(embedded)
    embedded.sql(f'DROP DATABASE "{embedded.clone}"', database="postgres")
    embedded.target.apply(embedded.restore_clone)
    embedded.go_back()
    is_as_after_all_of_it(embedded)
    assert embedded.replayed().replayed == 6


def test_a_restored_clone_has_nothing_of_a_capture_that_is_over_and_what_identities_there_were(
    embedded: PostgresWorld,
) -> None:
    embedded.sql("ALTER TABLE audit REPLICA IDENTITY FULL; ALTER TABLE customers REPLICA IDENTITY NOTHING")
    caught_up_and_over(embedded)
    embedded.target.apply(embedded.restore_clone)
    found = embedded.sql(
        "SELECT relname, relreplident::text FROM pg_class WHERE relname IN ('audit', 'customers', 'orders') ORDER BY 1",
        database=embedded.clone,
    )
    assert found == [("audit", "f"), ("customers", "n"), ("orders", "d")]
    assert embedded.sql("SELECT pubname FROM pg_publication", database=embedded.clone) == []
    assert embedded.one("SELECT to_regnamespace('lastgood_marks')::text", database=embedded.clone) is None


@pytest.mark.full
def test_a_restored_clone_that_somebody_writes_to_is_not_swapped_in(embedded: PostgresWorld) -> None:
    caught_up_and_over(embedded)
    embedded.target.apply(embedded.restore_clone)
    point = embedded.target.restore_point(embedded.restore_point)
    embedded.target.prove(point, deadline_s=30)
    embedded.sql("UPDATE orders SET total = 7 WHERE id = 1", database=embedded.clone)
    with pytest.raises(Refused, match="somebody wrote to orders"):
        embedded.target.prove(point, deadline_s=30)


def test_a_dump_that_is_damaged_is_refused_and_everything_stays_as_it_is(embedded: PostgresWorld) -> None:
    caught_up_and_over(embedded)
    dump = embedded.folder / "restore-points" / f"{embedded.restore_point}.dump"
    dump.write_bytes(dump.read_bytes()[:-1] + b"?")
    with pytest.raises(Refused, match="is not the one that was proved"):
        embedded.target.apply(embedded.restore_clone)
    assert embedded.clone in embedded.target.observe().databases


def test_where_there_is_no_room_it_is_refused_and_nothing_is_left(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught_up_and_over(embedded)
    with monkeypatch.context() as patched:
        patched.setattr(preflight, "_data", lambda *_: preflight.Space(fsid="1", free=1_000))
        with pytest.raises(Refused, match="cannot be restored: the server's volume has 0 MB free"):
            embedded.target.apply(embedded.restore_clone)
    assert seen(embedded.restore_clone, embedded.target.observe()) is Seen.NOT_DONE
    assert not [name for name in embedded.target.observe().databases if name.endswith("_again")]
    embedded.target.apply(embedded.restore_clone)


KILLED_AT = (
    ("server.create_beside", "after"), ("tools.Tools.restore", "after"), ("restore_point._prove", "after"),
    ("server.note_restored", "after"), ("server.rename", "after"),
)  # fmt: skip


@pytest.mark.parametrize(
    "where,when",
    [pytest.param(*place, marks=[pytest.mark.full] if n not in (1, 4) else []) for n, place in enumerate(KILLED_AT)],
)
def test_killed_while_it_is_restored_the_same_step_ends_the_same(
    embedded: PostgresWorld, where: str, when: str
) -> None:
    def dying() -> None:
        deadly(where, when)
        embedded.target.apply(embedded.restore_clone)

    caught_up_and_over(embedded)
    assert ended(begin(dying)) == -signal.SIGKILL
    assert seen(embedded.restore_clone, embedded.target.observe()) is Seen.NOT_DONE
    embedded.target.apply(embedded.restore_clone)
    embedded.go_back()
    is_as_after_all_of_it(embedded)
    name = embedded.config.name
    assert {each for each in embedded.target.observe().databases if each.startswith(name)} == {name, embedded.kept_as}


@pytest.mark.full
def test_what_was_killed_while_it_was_restored_is_gone_with_the_next_restore_point(embedded: PostgresWorld) -> None:
    def dying() -> None:
        deadly("tools.Tools.restore", "after")
        embedded.target.apply(embedded.restore_clone)

    caught_up_and_over(embedded)
    assert ended(begin(dying)) == -signal.SIGKILL
    again = f"{embedded.config.name}_lg__again"
    assert again in embedded.target.observe().databases
    embedded.target.apply(step("take", TakeRestorePoint(restore_point="rp-d3")))
    assert again not in embedded.target.observe().databases


@pytest.mark.full
def test_a_new_restore_point_of_the_name_is_empty(embedded: PostgresWorld) -> None:
    caught_up_and_over(embedded)
    (embedded.folder / "restore-points" / f"{embedded.restore_point}.json").unlink()
    embedded.take()
    assert embedded.target.observe().filled == frozenset()


def test_behind_the_fence_the_clone_stays_as_it_is(embedded: PostgresWorld) -> None:
    caught_up_and_over(embedded)
    embedded.target.apply(step("fence", Fence(kept_as=embedded.kept_as)))
    with pytest.raises(Retryable):
        embedded.target.apply(embedded.restore_clone)
    assert embedded.clone in embedded.target.observe().databases


# --- what a clone holds, and what the slot still tells ---------------------------------------------------------------


def plan_next(world: PostgresWorld) -> tuple[bool, bool]:
    """Whether the next plan restores the clone first, and whether it replays transactions: as `returning` has it."""
    facts, point = world.target.observe(), world.target.restore_point(world.restore_point)
    first = bool(why_restored_first(point, facts))
    return first, point.id in facts.captures and not (first and point.id in facts.filled)


def go_back_once_more(world: PostgresWorld, number: int, *, but_for_the_swap: bool = False) -> None:
    """Do what the next plan does, under names of its own."""
    first, captured = plan_next(world)
    point, kept_as, replay = world.restore_point, f"{world.config.name}_bad_r{number}", f"replay-r{number}"
    if first:
        world.target.apply(world.restore_clone)
    if captured:
        world.target.apply(step("catch-up", CatchUp(replay=replay, restore_point=point)))
    world.target.apply(step("fence", Fence(kept_as=kept_as)))
    if not captured:
        export = ExportWrites(export=f"export-r{number}", restore_point=point, kept_as=kept_as)
        world.target.apply(step("export", export))
    carry = ReplayWrites(replay=replay, restore_point=point, kept_as=kept_as, by_rows=not captured)
    world.target.apply(step("replay", carry))
    if not but_for_the_swap:
        world.target.apply(swap_of(world, number))


def swap_of(world: PostgresWorld, number: int) -> Step:
    kept_as, replay = f"{world.config.name}_bad_r{number}", f"replay-r{number}"
    action = SwapDatabase(
        swap=f"swap-r{number}", restore_point=world.restore_point, clone=world.clone, kept_as=kept_as, replay=replay
    )
    return step("swap", action)


def fails_at_its_end(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The swap comes to nothing when the replay was taken out of the clone already, and the fence is lifted."""

    def stays(*_: object) -> None:
        raise Retryable("somebody's session does not end", delay_s=1.0)

    with monkeypatch.context() as patched:
        patched.setattr(swap, "_carry_sequences_on", stays)
        with pytest.raises(Retryable):
            world.target.apply(swap_of(world, number))
    world.target.apply(step("lift", LiftFence(kept_as=f"{world.config.name}_bad_r{number}")))


def written(world: PostgresWorld) -> list[object]:
    return [what for (what,) in world.sql("SELECT what FROM audit ORDER BY at")]


def test_into_a_clone_restored_after_the_slot_was_read_the_rows_go_and_none_is_missing(embedded: PostgresWorld) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    embedded.go_back()
    embedded.swap_back()
    embedded.target.apply(embedded.restore_clone)  # of a rollback that came no further
    embedded.sql("INSERT INTO audit (what) VALUES ('second')")
    assert plan_next(embedded) == (False, False)
    go_back_once_more(embedded, 3)
    assert written(embedded) == ["first", "second"]


@pytest.mark.full
def test_transactions_are_refused_where_a_restored_clone_lacks_those_that_the_slot_told_already(
    embedded: PostgresWorld,
) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    catch_up = step("catch-up", CatchUp(replay="replay-r0", restore_point=embedded.restore_point))
    embedded.target.apply(catch_up)
    embedded.target.apply(embedded.restore_clone)
    again = CatchUp(replay="replay-r1", restore_point=embedded.restore_point)
    with pytest.raises(Refused, match="a part of them was told already, and is not in it"):
        embedded.target.try_replay(again)
    with pytest.raises(Refused, match="a part of them was told already, and is not in it"):
        embedded.target.apply(step("catch-up", again))
    assert embedded.target.observe().filled == frozenset()


def test_no_transaction_is_replayed_on_top_of_rows_that_a_swap_that_failed_left_in_the_clone(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.take()
    embedded.migrate()
    embedded.sql("UPDATE orders SET total = total + 100 WHERE id = 7")
    embedded.go_back()
    embedded.swap_back()
    embedded.sql("UPDATE orders SET total = total + 1000 WHERE id = 7")
    embedded.sql("INSERT INTO audit (what) VALUES ('since')")
    assert plan_next(embedded) == (True, False)
    go_back_once_more(embedded, 2, but_for_the_swap=True)
    fails_at_its_end(embedded, monkeypatch, 2)
    assert plan_next(embedded) == (True, False)
    catch_up = CatchUp(replay="replay-r3", restore_point=embedded.restore_point)
    with pytest.raises(Refused, match="it holds rows in their last state"):
        embedded.target.try_replay(catch_up)
    go_back_once_more(embedded, 3)
    assert written(embedded) == ["since"]


def test_what_the_migration_rewrote_is_known_after_a_swap_that_failed(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.sql("UPDATE orders SET total = id")
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total * 100"})
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    go_back_once_more(embedded, 1, but_for_the_swap=True)
    fails_at_its_end(embedded, monkeypatch, 1)
    embedded.sql("UPDATE orders SET total = total + 500 WHERE id = 7")
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES (900, 1, 2500)")
    assert plan_next(embedded) == (False, True)
    go_back_once_more(embedded, 2)
    assert embedded.sql("SELECT id, total FROM orders WHERE id IN (7, 900)") == [(7, 7)]
    assert embedded.target.replayed("replay-r2").quarantined == 2
    assert written(embedded) == ["first"]


def test_at_which_keys_another_row_waits_is_known_after_a_swap_that_failed(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.sql("CREATE TABLE item (id int PRIMARY KEY, stock int); INSERT INTO item VALUES (1, 10), (2, 20)")
    embedded.take()
    migration = (
        "ALTER TABLE customers ADD COLUMN note text; DELETE FROM item WHERE id = 2; "
        "CREATE TEMP TABLE o AS TABLE orders; DELETE FROM orders; "
        "INSERT INTO orders SELECT id + 1000, customer, total, state FROM o"
    )
    embedded.ship("v2", {SECOND: migration})
    embedded.migrate()
    embedded.sql("DELETE FROM item WHERE id = 1; TRUNCATE audit")
    embedded.sql("INSERT INTO item VALUES (1, 500), (2, 500)")
    go_back_once_more(embedded, 1, but_for_the_swap=True)
    fails_at_its_end(embedded, monkeypatch, 1)
    embedded.sql("UPDATE item SET stock = stock - 3 WHERE id = 1")
    embedded.sql("UPDATE item SET stock = stock - 3 WHERE id = 2")
    embedded.sql("INSERT INTO orders (id, customer, total) VALUES (9000, 1, 2500)")
    assert plan_next(embedded) == (False, True)
    go_back_once_more(embedded, 2)
    assert embedded.sql("SELECT id, stock FROM item ORDER BY id") == [(1, 10), (2, 20)]
    assert embedded.sql("SELECT id FROM orders WHERE id > 100") == []


def test_what_the_migration_did_is_copied_while_the_live_database_serves_and_again_where_more_of_it_came(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind_the_fence = list[str]()
    copy = replay._copy

    def watched(source: Connection, query: sql.Composed, to: Connection, table: sql.SQL) -> None:
        if embedded.config.name not in databases(to):
            behind_the_fence.append(query.as_string(source))
        copy(source, query, to, table)

    monkeypatch.setattr(replay, "_copy", watched)
    embedded.sql("UPDATE orders SET total = id")
    embedded.take()
    embedded.ship("v2", {SECOND: "ALTER TABLE customers ADD COLUMN note text; UPDATE orders SET total = total * 100"})
    embedded.migrate()
    go_back_once_more(embedded, 1, but_for_the_swap=True)
    fails_at_its_end(embedded, monkeypatch, 1)
    assert behind_the_fence
    assert not [query for query in behind_the_fence if "rewritten" in query]
    embedded.sql("UPDATE orders SET total = total + 500 WHERE id = 7")
    go_back_once_more(embedded, 2)
    assert embedded.sql("SELECT id, total FROM orders WHERE id = 7") == [(7, 7)]


def test_where_nothing_is_known_of_what_the_migration_rewrote_the_clone_is_restored_first(
    embedded: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version left it that kept nothing of that."""
    embedded.take()
    embedded.migrate()
    embedded.sql("INSERT INTO audit (what) VALUES ('first')")
    go_back_once_more(embedded, 1, but_for_the_swap=True)
    fails_at_its_end(embedded, monkeypatch, 1)
    for table in ("holds", "remembered"):
        embedded.sql(f"DELETE FROM {table} WHERE clone = '{embedded.clone}'", database="lastgood")
    embedded.sql("INSERT INTO audit (what) VALUES ('second')")
    assert plan_next(embedded) == (True, False)
    catch_up = CatchUp(replay="replay-r2", restore_point=embedded.restore_point)
    with pytest.raises(Refused, match="what the migration rewrote is no longer known"):
        embedded.target.try_replay(catch_up)
    assert plan_next(embedded) == (True, False)
    go_back_once_more(embedded, 2)
    assert written(embedded) == ["first", "second"]

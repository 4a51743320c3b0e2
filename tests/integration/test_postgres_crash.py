"""A server that crashes puts a slot back to an earlier place: what was replayed is not replayed again, and the rollback
goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from lastgood.core.errors import Retryable
from lastgood.core.plan import Action, CatchUp, Fence, LiftFence, ReplayWrites, Seen, SwapDatabase, seen
from lastgood.targets.postgres import replay, shelf, swap
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.noted import Known
from lastgood.targets.postgres.server import Server, open_ledger, rename
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.postgres_cluster import Cluster, cluster
from tests.contract.rigs.postgres_world import PostgresWorld, step


@pytest.fixture(scope="module")
def server() -> Generator[Cluster]:
    with postgres_embedded.open_folder() as folder, cluster(folder, None) as made:
        yield made


@pytest.fixture
def world(server: Cluster, tmp_path: Path) -> Generator[PostgresWorld]:
    with postgres_embedded.database(tmp_path, server.config) as made:
        yield made


def wrote(world: PostgresWorld, what: str) -> None:
    world.sql(f"INSERT INTO audit (what) VALUES ('{what}')")
    world.sql("UPDATE orders SET total = total + 1 WHERE id = 7")


def crash(server: Cluster) -> None:
    server.start(after=server.kill())


def apply(world: PostgresWorld, *kinds: type[Action]) -> None:
    for each in world.way_back:
        if isinstance(each.action, kinds):
            world.target.apply(each)


def test_a_server_that_crashes_between_replay_and_swap_does_not_keep_the_swap_from_happening(
    server: Cluster, world: PostgresWorld
) -> None:
    world.take()
    world.migrate()
    wrote(world, "first")
    apply(world, CatchUp, Fence, ReplayWrites)
    crash(server)
    apply(world, SwapDatabase)
    assert world.sql("SELECT what FROM audit") == [("first",)]
    assert world.one("SELECT total FROM orders WHERE id = 7") == 9


def test_what_a_given_up_rollback_replayed_is_not_replayed_again_after_a_crash(
    server: Cluster, world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BATCH", 1)
    world.take()
    world.migrate()
    wrote(world, "first")
    apply(world, CatchUp)
    world.sql("CHECKPOINT")  # the slot's next step is on disk, and those after it are not
    wrote(world, "second")
    wrote(world, "third")
    apply(world, Fence, ReplayWrites)

    def stays(*_words: object) -> None:
        raise Retryable("somebody's session does not end", delay_s=1.0)

    with monkeypatch.context() as patched:
        patched.setattr(swap, "_carry_sequences_on", stays)
        with pytest.raises(Retryable):
            apply(world, SwapDatabase)
    crash(server)
    world.target.apply(world.lift)
    wrote(world, "fourth")
    point, kept_as = world.restore_point, f"{world.config.name}_bad_r2"
    for action in (
        CatchUp(replay="replay-r2", restore_point=point),
        Fence(kept_as=kept_as),
        ReplayWrites(replay="replay-r2", restore_point=point, kept_as=kept_as, by_rows=False),
        SwapDatabase(swap="s2", restore_point=point, clone=world.clone, kept_as=kept_as, replay="replay-r2"),
    ):
        world.target.apply(step(action.kind, action))
    assert world.sql("SELECT what FROM audit ORDER BY at") == [("first",), ("second",), ("third",), ("fourth",)]
    assert world.one("SELECT total FROM orders WHERE id = 7") == 12
    assert world.quarantine() == []


def test_a_replay_waits_for_the_last_commit_of_one_that_was_killed(world: PostgresWorld) -> None:
    world.take()
    world.migrate()
    wrote(world, "first")
    kept = shelf.read(
        world.folder / "restore-points" / f"{world.restore_point}.json", shelf.KEPT_POINT, what="it", hint=""
    )
    with (
        world.connect() as source,
        world.connect(database=world.clone) as its_clone,
        world.connect(database=world.clone) as my_clone,
        open_ledger(Server(world.config)) as ledger,
    ):
        nobody = Known(xids=())

        def another(clone: Connection) -> replay.Replay:
            return replay.Replay(
                source, clone, kept, migration=nobody, ledger=ledger, invariants={}, merging={}, rewritten={}
            )

        another(its_clone)
        my_clone.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            another(my_clone)
        its_clone.close()
        my_clone.execute("SET lock_timeout = '5s'")
        another(my_clone)


@pytest.mark.parametrize("kind", [Fence, SwapDatabase, LiftFence])
def test_a_step_whose_last_statement_outlives_its_process_is_waited_for_and_then_done(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch, kind: type[Action]
) -> None:
    """A session of the killed one is before its rename; the next process begins, and finds it renamed."""
    world.take()
    world.migrate()
    wrote(world, "first")
    wanted = next(each for each in (*world.way_back, world.lift) if isinstance(each.action, kind))
    for each in world.way_back[1:]:
        if each == wanted or (each.name == "replay-writes" and kind is LiftFence):
            break
        world.target.apply(each)
    at_it, on = threading.Event(), threading.Event()

    def slowly(connection: Connection, database: str, to: str) -> None:
        at_it.set()
        assert on.wait(30)
        rename(connection, database, to)

    monkeypatch.setattr(swap, "rename", slowly)
    with ThreadPoolExecutor() as both:
        killed = both.submit(world.target.apply, wanted)
        assert at_it.wait(30)
        monkeypatch.setattr(swap, "rename", rename)
        next_one = both.submit(world.target.apply, wanted)
        until_waited_for(world)
        on.set()
        killed.result(30)
        next_one.result(30)
    assert seen(wanted, world.target.observe()) is Seen.DONE


def until_waited_for(world: PostgresWorld) -> None:
    """Until a session waits for another one's lock of ours."""
    deadline = time.monotonic() + 10
    with world.connect(database="postgres") as connection:
        while not connection.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchall():
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)

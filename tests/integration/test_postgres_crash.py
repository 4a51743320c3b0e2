"""A server that crashes puts a slot back to an earlier place: what was replayed is not replayed again, and the rollback
goes on."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from lastgood.core.errors import Retryable
from lastgood.core.plan import Action, CatchUp, Fence, ReplayWrites, SwapDatabase
from lastgood.targets.postgres import replay, shelf, swap
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


def test_two_replays_side_by_side_do_not_both_apply_a_transaction(world: PostgresWorld) -> None:
    """A process that is killed may leave a session whose last commit is still under way."""
    world.take()
    world.migrate()
    wrote(world, "first")
    kept = shelf.read(
        world.folder / "restore-points" / f"{world.restore_point}.json", shelf.KEPT_POINT, what="it", hint=""
    )
    upto = str(world.one("SELECT pg_current_wal_lsn()"))
    with (
        world.connect() as source,
        world.connect(database=world.clone) as one_clone,
        world.connect(database=world.clone) as other_clone,
    ):
        killed = replay.Replay(source, one_clone, kept, held=0, invariants={})
        other = replay.Replay(source, other_clone, kept, held=0, invariants={})
        killed._round(upto, lambda _number: None)
        with pytest.raises(Retryable, match="another replay"):
            other._round(upto, lambda _number: None)
    world.go_back()
    assert world.sql("SELECT what FROM audit") == [("first",)]
    assert world.one("SELECT total FROM orders WHERE id = 7") == 9

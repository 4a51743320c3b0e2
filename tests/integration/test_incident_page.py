"""What docs/operate/incident.md tells a person to type into psql does what it says, on a database that was swapped."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lastgood.core.plan import Fence
from tests.contract.rigs.postgres_embedded import rig
from tests.contract.rigs.postgres_world import PostgresWorld, step

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "incident.md"
# The page speaks of HyperCode's missions, whose title was renamed; the test's shop renamed the names of its customers.
IN_THE_SHOP = {
    "missions": "customers",
    '"title"': '"name"',
    "hypercode": "shop",
    "_9c1e77": "_r1",
}


@pytest.fixture
def swapped(tmp_path: Path) -> Iterator[PostgresWorld]:
    with rig(tmp_path) as world:
        take, *_ = world.steps
        world.target.apply(take)
        world.target.apply(world.step_to_migrate())
        world.sql("INSERT INTO customers (full_name) VALUES ('Ada \"the\" first, \\ 1st'), ('Grace')")
        for each in world.way_back:
            world.target.apply(each)
        yield world


def block(begins: str) -> str:
    """The SQL of the page that begins so, in the words of the shop."""
    blocks: list[str] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = next(block for block in blocks if begins in block)
    for theirs, ours in IN_THE_SHOP.items():
        found = found.replace(theirs, ours)
    return found


def psql(world: PostgresWorld, text: str, *, database: str) -> None:
    config = world.config
    assert config.bin
    assert config.password
    done = subprocess.run(
        [f"{config.bin}/psql", "-v", "ON_ERROR_STOP=1", "-h", config.host, "-U", config.user, "-d", database],
        input=text,
        env=os.environ | {"PGPASSWORD": config.password.reveal()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_row_that_waits_in_quarantine_is_put_back(swapped: PostgresWorld) -> None:
    psql(swapped, block("INSERT INTO missions") + "COMMIT;", database="shop")
    assert swapped.sql("SELECT name FROM customers WHERE id = 602") == [("mended",)]


def test_a_swap_is_taken_back(swapped: PostgresWorld) -> None:
    psql(swapped, block("pg_terminate_backend"), database="postgres")
    assert swapped.sql("SELECT count(*) FROM customers WHERE full_name = 'Grace'") == [(1,)]
    assert swapped.sql("SELECT count(*) FROM customers", database="shop_aside_r1") == [(22,)]


def test_a_fence_is_lifted_by_hand(swapped: PostgresWorld) -> None:
    fence = Fence(kept_as="shop_bad_r1")
    swapped.sql("ALTER DATABASE shop_bad_r1 RENAME TO shop_bad_r0", database="postgres")
    swapped.target.apply(step("fence", fence))
    psql(swapped, block("hypercode RENAME TO hypercode_lg__fence;"), database="postgres")
    assert swapped.sql("SELECT count(*) FROM customers WHERE name = 'Grace'") == [(1,)]


def test_what_bears_old_numbers_is_put_out_of_the_way(swapped: PostgresWorld) -> None:
    psql(swapped, block("lastgood_old"), database="postgres")
    known = {str(name) for (name,) in swapped.sql("SELECT datname FROM pg_database")}
    assert known.isdisjoint({"lastgood", "shop_bad_r1"})
    assert swapped.target.observe().swaps == frozenset()

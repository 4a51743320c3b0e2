"""What amcheck says of the indexes, where a server has it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lastgood.core.migration import Blame, judge_migration
from lastgood.targets.postgres import amcheck
from lastgood.targets.postgres.connect import connect
from tests.contract.rigs import postgres_embedded
from tests.contract.rigs.postgres_cluster import cluster, needed_programs
from tests.contract.rigs.postgres_world import PostgresWorld
from tests.integration.test_postgres_evidence import migrated, seen

# The index is in the order of before; from now on another one is expected of it.
OTHER_ORDER = "UPDATE pg_index SET indoption = '1' WHERE indexrelid = 'orders_pkey'::regclass"


@pytest.fixture
def debian() -> Generator[PostgresWorld]:
    """The shop on a server of the machine's own, which brings amcheck."""
    programs = needed_programs()
    with (
        postgres_embedded.open_folder() as folder,
        cluster(folder, programs) as server,
        postgres_embedded.database(folder, server.config) as world,
    ):
        yield world


def test_a_corrupted_index_is_a_fault_of_the_storage_and_the_extension_is_only_lent(debian: PostgresWorld) -> None:
    migrated(debian, "ALTER TABLE customers RENAME COLUMN name TO full_name")
    evidence = seen(debian)
    assert evidence.storage_faults == ()
    assert evidence.storage.endswith("indexes checked by amcheck, each is sound")
    debian.sql(OTHER_ORDER)
    evidence = seen(debian)
    (fault,) = evidence.storage_faults
    assert fault.startswith("index orders_pkey is corrupted (SQLSTATE XX002): ")
    assert judge_migration(evidence).blame is Blame.STORAGE
    assert evidence.storage.endswith("1 are not sound")
    assert debian.one("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'") == 0


def test_a_role_that_may_not_install_it_says_so_and_one_that_finds_it_may_be_kept_from_it(
    debian: PostgresWorld,
) -> None:
    role = f"{debian.config.name}_plain"
    debian.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'pass word'")
    plain = debian.config.model_copy(update={"user": role})
    with connect(plain, autocommit=True) as live:
        assert amcheck.look(live) == (
            (),
            f"indexes not checked: amcheck is not installed, and {role} may not install it",
        )
        debian.sql("CREATE EXTENSION amcheck")
        assert amcheck.look(live) == ((), "indexes not checked: permission denied for function bt_index_check")


def test_a_server_without_it_says_so(embedded: PostgresWorld) -> None:
    with embedded.connect() as live:
        assert amcheck.look(live) == ((), "indexes not checked: the server has no amcheck")
    embedded.take()
    assert seen(embedded).storage == ""  # nothing points at the database

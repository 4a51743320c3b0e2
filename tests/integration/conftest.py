from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from lastgood.core.config import PostgresConfig
from lastgood.testing.slack import SlackStandIn
from tests.contract.rigs import postgres_container, postgres_embedded
from tests.contract.rigs.compose import ComposeWorld
from tests.contract.rigs.compose import world as compose_world
from tests.contract.rigs.postgres_world import PostgresWorld
from tests.integration.shop import Shop


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ComposeWorld]:
    """A compose project of its own, with its database up and nothing else."""
    with compose_world(tmp_path) as made:
        made.compose("up", "--detach", "db")
        yield made


@pytest.fixture
def shop(stack: ComposeWorld, tmp_path: Path) -> Iterator[Shop]:
    """The project under lastgood, which has not been told of any release yet."""
    with SlackStandIn(messages=tmp_path / "slack.jsonl") as slack:
        yield Shop(stack, slack)


@pytest.fixture(scope="session")
def postgres() -> Generator[PostgresConfig]:
    """One embedded server for all tests here that do not harm it."""
    with postgres_embedded.open_folder() as folder, postgres_embedded.server(folder) as config:
        yield config


@pytest.fixture
def embedded(postgres: PostgresConfig, tmp_path: Path) -> Generator[PostgresWorld]:
    """The shop in a database of its own."""
    with postgres_embedded.database(tmp_path, postgres) as made:
        yield made


@pytest.fixture(scope="session")
def contained() -> Generator[PostgresConfig]:
    """One server in a container for all tests here that do not harm it."""
    with postgres_container.server() as config:
        yield config


@pytest.fixture(
    params=["embedded", pytest.param("container", marks=pytest.mark.needs_docker)], ids=["embedded", "container"]
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[PostgresWorld]:
    """The shop on the newest Postgres, and on the one in a container."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
    else:
        with postgres_embedded.database(tmp_path, request.getfixturevalue("contained")) as made:
            yield made


@pytest.fixture
def keeper(tmp_path: Path) -> Generator[PostgresWorld]:
    """The shop on a server where lastgood is a role that owns all of it, and is no superuser; `web` is a role that
    works with it."""
    with postgres_embedded.rig(tmp_path) as alone:
        alone.sql("CREATE ROLE app LOGIN CREATEDB REPLICATION PASSWORD 'pass word'; ALTER DATABASE shop OWNER TO app")
        alone.sql("REASSIGN OWNED BY shop TO app; CREATE ROLE web LOGIN PASSWORD 'pass word'")
        alone.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO web")
        alone.config = alone.config.model_copy(update={"user": "app"})
        yield alone

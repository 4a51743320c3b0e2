"""The pool of connections to Postgres."""

from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from hypercode_http import RELEASE

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

_MOST_CONNECTIONS: Final = 8
# For a free connection, and for a new one. Longer than a busy machine may need, shorter than users wait: a core that
# gives up sooner turns a slow minute into an outage.
_WAIT_S: Final = 10.0
_CONNECT_S: Final = 5


def make_pool(database_url: str) -> Pool:
    """Not opened yet. Every connection is in autocommit mode: a write of several rows opens its transaction itself."""
    return AsyncConnectionPool(
        database_url,
        min_size=1,
        max_size=_MOST_CONNECTIONS,
        timeout=_WAIT_S,
        # A connection that the server has ended (restart, restored database) is replaced before a request gets it.
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "autocommit": True,
            "connect_timeout": _CONNECT_S,
            "application_name": f"hypercode-core {RELEASE}",
            "options": "-c statement_timeout=5s",
        },
        open=False,
    )

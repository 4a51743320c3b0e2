"""Fence, lift, swap: renames of databases, each of which is found done or not done by looking at their names.

The rename is the fence: an application that connects as superuser passes CONNECTION LIMIT, but no name that is not
there. The swap is one transaction in the ledger's database, with the row that makes it happen once.
"""

from __future__ import annotations

from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.core.plan import Fence, LiftFence, SwapDatabase
from lastgood.targets.postgres import restore_point, shelf
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.server import Server, admit, databases, open_ledger, rename, shut


def fence(server: Server, action: Fence) -> None:
    """Rename the live database. Raises Refused when it is not there, Retryable when a session stays."""
    with server.maintenance() as maintenance:
        known = databases(maintenance)
        if action.kept_as not in known:
            if server.live not in known:
                raise Refused(f"neither {server.live} nor {action.kept_as} is there")
            shut(maintenance, server.live)
            rename(maintenance, server.live, action.kept_as)
        admit(maintenance, action.kept_as)


def lift(server: Server, action: LiftFence) -> None:
    """Give the live database its name back. Raises Refused when there is nothing to give back."""
    with server.maintenance() as maintenance:
        known = databases(maintenance)
        if server.live not in known:
            if action.kept_as not in known:
                raise Refused(f"neither {server.live} nor {action.kept_as} is there")
            shut(maintenance, action.kept_as)
            rename(maintenance, action.kept_as, server.live)
        elif action.kept_as in known:
            raise Refused(f"both {server.live} and {action.kept_as} are there: the swap happened")
        admit(maintenance, server.live)


def swap(server: Server, action: SwapDatabase, kept: shelf.KeptPoint, *, deadline_s: float) -> None:
    """Verify the clone, let its sequences go on where those of the replaced database stopped, and rename it.

    Raises Refused, with nothing changed but sequences of the clone, when the fence is not up or the clone is not what
    was proved.
    """
    with server.maintenance() as maintenance:
        known = databases(maintenance)
        if action.clone in known:
            admit(maintenance, action.clone)  # an attempt that died may have shut it
    if server.live in known:
        raise Refused(f"{server.live} is in its place: the fence is not up")
    if action.kept_as not in known:
        raise Refused(f"{action.kept_as}, the database to be replaced, is not there")
    if action.clone != kept.point.clone:
        raise Refused(f"{action.clone} is not the clone of {action.restore_point}")
    restore_point.clone_as_proved(server, kept, deadline_s=deadline_s)
    with server.connect(action.kept_as) as replaced, server.connect(action.clone) as clone:
        _carry_sequences_on(replaced, clone)
    with open_ledger(server) as ledger:
        shut(ledger, action.clone)
        with ledger.transaction():
            ledger.execute(
                "INSERT INTO swaps (database, swap, restore_point, kept_as) VALUES (%s, %s, %s, %s)",
                [server.live, action.swap, action.restore_point, action.kept_as],
            )
            rename(ledger, action.clone, server.live)
            admit(ledger, server.live)


def _carry_sequences_on(replaced: Connection, clone: Connection) -> None:
    """Set each sequence to the further of the two, so that no number is given out twice."""
    further = "SELECT schemaname, sequencename, last_value, increment_by FROM pg_sequences WHERE last_value IS NOT NULL"
    reached = {(schema, name): (int(last), int(step)) for schema, name, last, step in replaced.execute(further)}
    theirs = {(schema, name): int(last) for schema, name, last, _ in clone.execute(further)}
    there = {(s, n) for s, n in clone.execute("SELECT schemaname, sequencename FROM pg_sequences")}
    for key in reached.keys() & there:
        last, step = reached[key]
        mine = theirs.get(key)
        if mine is None or (last > mine if step > 0 else last < mine):
            clone.execute("SELECT setval(%s::regclass, %s, true)", [sql.Identifier(*key).as_string(clone), last])

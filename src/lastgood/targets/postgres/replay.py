"""Puts the transactions that a capture kept into the clone, one by one, in the order of their commits.

Each is one subtransaction there: whole, or in quarantine with its reason. How far it got is written in the same
transaction as what it did, in a schema of its own in the clone, so that a replay which dies anywhere goes on where it
was. That schema is gone before the clone is swapped in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from lastgood.core.errors import Refused
from lastgood.core.report import Loss, Replayed
from lastgood.targets.postgres import catalog, shelf, writes
from lastgood.targets.postgres.broken import keys_that_break
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.merge import Merge, Misfit, Said, written
from lastgood.targets.postgres.pgoutput import Change, Decoder, RowChange, Transaction, Truncation, Unsent, Value
from lastgood.targets.postgres.server import hold, note_replayed

SCHEMA: Final = "lastgood"
QUARANTINE: Final = "quarantine.jsonl"
LEFT_OUT: Final = "left-out.jsonl"
BATCH: Final = 20_000
"""Changes that the server decodes at once; a transaction is never cut."""
FETCHED: Final = 2_000
AT_ONCE: Final = 500
"""Transactions between two commits of the clone, and between two looks at the invariants, to begin with."""
MOST_AT_ONCE: Final = 8_000
NARROW: Final = "of the last transactions, invariants were asked of those keys only that stand in their rows"
LONGEST_KEY: Final = 200
"""Characters. What is longer is no key that anybody looks a row up by."""
MOST_REMEMBERED: Final = 1_000_000
"""Values that a migration rewrote. Who wrote to one of more than that is not told apart, and waits in quarantine."""
_ENABLE: Final = {"A": sql.SQL("ENABLE ALWAYS"), "R": sql.SQL("ENABLE REPLICA")}

_TABLES: Final[LiteralString] = """
CREATE TABLE lastgood.progress (slot text NOT NULL, commit bigint NOT NULL, migrated boolean NOT NULL,
    total bigint NOT NULL, skipped bigint NOT NULL);
CREATE TABLE lastgood.carried (name text PRIMARY KEY, rows bigint NOT NULL);
CREATE TABLE lastgood.quarantine (commit bigint PRIMARY KEY, xid bigint NOT NULL, at timestamptz NOT NULL,
    reason text NOT NULL, changes jsonb NOT NULL);
CREATE TABLE lastgood.left_out (commit bigint NOT NULL, at timestamptz NOT NULL, name text NOT NULL,
    key jsonb NOT NULL, row jsonb NOT NULL);
CREATE TABLE lastgood.rewritten (relation oid, key text, number int, was text, made text,
    PRIMARY KEY (relation, key, number))
"""
# The last row of a transaction counts like the first: it is put back whole when one statement does not hit one row.
# What the server lacks (room, memory, a lock) says nothing of the transaction, and is no reason for a quarantine.
APPLY: Final[LiteralString] = """
CREATE FUNCTION lastgood.apply(statements text[]) RETURNS text LANGUAGE plpgsql AS $apply$
DECLARE statement text; hit bigint; number int := 0;
BEGIN
    SET CONSTRAINTS ALL DEFERRED;
    FOREACH statement IN ARRAY statements LOOP
        number := number + 1;
        EXECUTE statement;
        GET DIAGNOSTICS hit = ROW_COUNT;
        IF hit <> 1 THEN
            RETURN lastgood.refuse(number);
        END IF;
    END LOOP;
    SET CONSTRAINTS ALL IMMEDIATE;
    RETURN NULL;
EXCEPTION
    WHEN SQLSTATE 'LG001' THEN
        RETURN 'change ' || number || ': the row is not as this transaction found it: it depends on one in quarantine, '
            'or its value has no place in the old type';
    WHEN OTHERS THEN
        IF left(SQLSTATE, 2) IN ('40', '53', '55', '57', '58', 'XX') THEN
            RAISE;
        END IF;
        RETURN 'change ' || number || ': ' || SQLERRM || ' (' || SQLSTATE || ')';
END $apply$
"""
REFUSE: Final[LiteralString] = """
CREATE FUNCTION lastgood.refuse(number int) RETURNS text LANGUAGE plpgsql AS $refuse$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'LG001', MESSAGE = 'not as found';
END $refuse$
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a replay got. total: transactions seen that changed a row, the migration's included."""

    commit: int
    migrated: bool
    total: int
    skipped: int


class _Enough(Exception):
    """As much was tried as was wanted."""


class Replay:
    """Of one capture into one clone.

    source: connection to the database that the slot belongs to, under whichever name. held: up to which commit the
    clone holds everything from a replay before, of which nothing else is left. invariants: SQL by name. narrow: of each
    invariant only the keys are looked at that stand in the rows of a batch, so that a look does not grow with the
    database; what a transaction breaks elsewhere is not seen then. look_s: how long a look at all of them takes.
    """

    def __init__(
        self,
        source: Connection,
        clone: Connection,
        kept: shelf.KeptPoint,
        *,
        held: int,
        invariants: Mapping[str, str],
        narrow: bool = False,
    ) -> None:
        self._source, self._clone, self._kept, self._invariants = source, clone, kept, invariants
        hold(clone, clone.info.dbname)
        if not is_begun(clone):
            _begin(clone, kept.slot, held)
        self._progress, self._at_once = _progress(clone), AT_ONCE
        self._remembered, self._to_remember = 0, list[tuple[int, str, int, Value, Value]]()
        source.execute("SET idle_in_transaction_session_timeout = 0")
        self._merge = Merge(source, clone, then=kept.tables, now=catalog.tables(source))
        self._merge.migrated = self._progress.migrated
        self._merge.rewritten = set(clone.execute("SELECT DISTINCT relation::int8, number FROM lastgood.rewritten"))
        self._migration = {int(xid) for xid in writes.migration_xids(source, kept.point.snapshot)}
        self.narrow, self.look_s = narrow, 0.0
        began = monotonic()
        self._broken = {} if narrow else self._breaking(None)
        self.look_s = monotonic() - began

    def go_on(self, *, go_on: Callable[[Progress], None]) -> Progress:
        """Replay what is committed by now. go_on: called between batches with how far it got, raises when there is no
        time left.

        Raises psycopg's errors; everything up to the last batch is kept then, and the next call goes on from there.
        """
        upto = _position(self._source)
        while True:
            go_on(self._progress)
            end = self._round(upto, go_on)
            if end is None:
                return self._progress
            # only what the clone holds for good is let go of
            self._source.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", [self._kept.slot, lsn(end)])

    def tried(self, into: Path, *, most: int, seconds: float) -> tuple[Replayed, bool]:
        """Replay what is committed by now, at most so many and for so long; say what became of it, and whether that is
        all. The slot stays where it is: for a transaction of the clone that is taken back."""
        until, whole = monotonic() + seconds, True

        def enough(so_far: Progress) -> None:
            if so_far.total >= most or monotonic() >= until:
                raise _Enough

        try:
            self._round(_position(self._source), enough, changes_at_once=None)
        except _Enough:
            whole = False
        return self.finish(into), whole

    def refresh_views(self) -> tuple[str, ...]:
        """Bring the clone's materialized views to where its tables are; return those for which that failed, as they are
        written in SQL. While the live database serves: how long it takes grows with the tables."""
        stale: list[str] = []
        for view in catalog.materialized_views(self._clone):
            try:
                with self._clone.transaction():
                    self._clone.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(view))
            except psycopg.Error:
                if self._clone.broken:
                    raise
                stale.append(view.as_string(self._clone))
        return tuple(stale)

    def finish(self, into: Path) -> Replayed:
        """Write quarantine and what was left out to files in `into`, and say what became of everything. Safe to
        repeat."""
        replayed = finish(self._source, self._clone, self._kept, into)
        return replace(replayed, notes=(*replayed.notes, NARROW)) if self.narrow and self._invariants else replayed

    def _round(
        self, upto: str, go_on: Callable[[Progress], None], *, changes_at_once: int | None = BATCH
    ) -> int | None:
        """Replay what the server decodes at once, None for all. Return the position behind it, None when there was
        nothing."""
        end: int | None = None
        batch: list[Transaction] = []
        with self._source.transaction(), self._source.cursor("lastgood_changes") as changes:
            changes.itersize = FETCHED
            changes.execute(
                "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, %s::pg_lsn, %s, "
                "'proto_version', '1', 'publication_names', %s)",
                [self._kept.slot, upto, changes_at_once, f'"{self._kept.slot}"'],
            )
            for transaction in Decoder(self._take).transactions(bytes(data) for (data,) in changes):
                end = transaction.end
                if transaction.commit <= self._progress.commit:
                    continue
                batch.append(transaction)
                if len(batch) >= self._at_once:
                    self._remember()
                    self._carry(batch)
                    batch = []
                    go_on(self._progress)
            if batch:
                self._remember()
                self._carry(batch)
        return end

    def _take(self, xid: int, change: Change) -> bool:
        """The migration's own writing is the damage, and is not replayed; but what it made of a value is remembered."""
        if xid not in self._migration:
            return False
        if isinstance(change, RowChange) and self._remembered < MOST_REMEMBERED:
            self._to_remember += self._merge.rewritings(change)
            if len(self._to_remember) >= FETCHED:
                self._remember()
        return True

    def _remember(self) -> None:
        """Write down what the migration made of values, before anything is replayed that came after it."""
        rows, self._to_remember = self._to_remember, []
        self._remembered += len(rows)
        self._merge.rewritten |= {(table, number) for table, _, number, *_ in rows}
        with self._clone.transaction(), self._clone.cursor() as writing:
            writing.executemany(
                "INSERT INTO lastgood.rewritten VALUES (%s, %s, %s, %s, %s) "
                "ON CONFLICT (relation, key, number) DO UPDATE SET made = excluded.made",
                [(table, key, number, _text(was), _text(made)) for table, key, number, was, made in rows],
            )

    def _carry(self, batch: Sequence[Transaction], *, among: frozenset[str] | None = None) -> None:
        """Replay a batch in one transaction of the clone. One that breaks an invariant is halved until it is known
        which transaction does, and that one is put into quarantine."""
        migrated = self._merge.migrated
        if self.narrow and among is None:
            among = _values(batch)
        with self._clone.transaction() as whole:
            before = self._broken if among is None else self._breaking(among)
            began = monotonic()
            carried = self._replayed(batch)
            replayed = monotonic()
            broke = _newly(before, self._breaking(among))
            if broke:
                raise psycopg.Rollback(whole)
            self._write_down(carried)
            if monotonic() - replayed > replayed - began:  # looking takes longer than replaying: look less often
                self._at_once = min(self._at_once * 2, MOST_AT_ONCE)
            return
        self._merge.migrated = migrated
        if len(batch) > 1:
            self._carry(batch[: len(batch) // 2], among=among)
            self._carry(batch[len(batch) // 2 :], among=among)
            return
        with self._clone.transaction():
            self._write_down([_Carried(transaction=batch[0], said=None, reason=broke)])

    def _replayed(self, batch: Sequence[Transaction]) -> list[_Carried]:
        """Each of them, and what became of it. Nothing is written down yet."""
        carried: list[_Carried] = []
        with self._clone.pipeline():
            for transaction in batch:
                if transaction.xid in self._migration:
                    self._merge.migrated = True
                    carried.append(_Carried(transaction=transaction, said=None, skipped=True))
                    continue
                try:
                    said = self._merge.said(transaction)
                except Misfit as misfit:
                    carried.append(_Carried(transaction=transaction, said=None, reason=str(misfit)))
                    continue
                answer = None
                if said.statements:
                    answer = self._clone.execute("SELECT lastgood.apply(%s)", [list(said.statements)])
                carried.append(_Carried(transaction=transaction, said=said, answer=answer))
        return carried

    def _breaking(self, among: Collection[str] | None) -> dict[str, frozenset[str]]:
        """The keys that break each invariant now. among: only these are asked for."""
        return {
            name: frozenset(keys_that_break(self._clone, statement, among=among))
            for name, statement in self._invariants.items()
        }

    def _write_down(self, carried: Sequence[_Carried]) -> None:
        rows: Counter[str] = Counter()
        last = carried[-1].transaction.commit
        changed = [one for one in carried if one.transaction.changes or one.transaction.aside]
        for one in changed:
            transaction, said, reason = one.transaction, one.said, one.why_not()
            if reason:
                self._clone.execute(
                    "INSERT INTO lastgood.quarantine VALUES (%s, %s, %s, %s, %s)",
                    [
                        transaction.commit,
                        transaction.xid,
                        transaction.committed_at,
                        reason,
                        Jsonb(_readable(transaction)),
                    ],
                )
            elif said is not None:
                rows.update(dict(said.rows))
                for table, key, values in said.left_out:
                    self._clone.execute(
                        "INSERT INTO lastgood.left_out VALUES (%s, %s, %s, %s, %s)",
                        [
                            transaction.commit,
                            transaction.committed_at,
                            table,
                            Jsonb(_shown(key)),
                            Jsonb(_shown(values)),
                        ],
                    )
        with self._clone.cursor() as writing:
            writing.executemany(
                "INSERT INTO lastgood.carried VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET rows = lastgood.carried.rows + excluded.rows",
                list(rows.items()),
            )
        skipped = sum(one.skipped for one in changed)
        self._progress = Progress(
            commit=last,
            migrated=self._merge.migrated,
            total=self._progress.total + len(changed),
            skipped=self._progress.skipped + skipped,
        )
        self._clone.execute(
            "UPDATE lastgood.progress SET (commit, migrated, total, skipped) = (%s, %s, %s, %s)",
            [last, self._progress.migrated, self._progress.total, self._progress.skipped],
        )


def _newly(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> str:
    """Say which invariant breaks that did not, empty for none."""
    for name, keys in after.items():
        if new := keys - before[name]:
            return f"it breaks the invariant {name}: {', '.join(sorted(new)[:5])}"
    return ""


def _values(batch: Sequence[Transaction]) -> frozenset[str]:
    """Every value in the rows that these transactions changed, before and after: keys of theirs, and of rows that they
    refer to."""
    rows = (
        row
        for transaction in batch
        for change in transaction.changes
        if isinstance(change, RowChange)
        for row in (change.old, change.new)
        if row is not None
    )
    return frozenset(value for row in rows for value in row if isinstance(value, str) and len(value) <= LONGEST_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Carried:
    transaction: Transaction
    said: Said | None
    skipped: bool = False
    reason: str = ""
    answer: psycopg.Cursor[tuple[Any, ...]] | None = None

    def why_not(self) -> str:
        """Why it was not replayed; empty when it was."""
        if self.reason or self.answer is None:
            return self.reason
        row = self.answer.fetchone()
        return str(row[0]) if row and row[0] else ""


def is_begun(clone: Connection) -> bool:
    """Whether a replay into this database began and is not finished."""
    return clone.execute("SELECT to_regnamespace(%s)", [SCHEMA]).fetchone() != (None,)


def _by_transactions(clone: Connection) -> bool:
    return clone.execute("SELECT to_regclass('lastgood.progress')").fetchone() != (None,)


def _position(source: Connection) -> str:
    """Return the end of the log: every transaction that is committed now is before it."""
    row = source.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    return str(row[0]) if row else ""


def place(source: Connection, slot: str, so_far: Progress) -> tuple[int, int]:
    """Return up to which place of the log was replayed, and where the log ends, in bytes."""
    row = source.execute(
        "SELECT greatest(%s::int8, max(confirmed_flush_lsn - '0/0')::int8), (pg_current_wal_lsn() - '0/0')::int8 "
        "FROM pg_replication_slots WHERE slot_name = %s",
        [so_far.commit, slot],
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def lsn(number: int) -> str:
    """Write a position as Postgres does."""
    return f"{number >> 32:X}/{number & 0xFFFFFFFF:X}"


def _begin(clone: Connection, slot: str, held: int) -> None:
    with clone.transaction():
        clone.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
        clone.execute(_TABLES)
        clone.execute(REFUSE)
        clone.execute(APPLY)
        clone.execute("INSERT INTO lastgood.progress VALUES (%s, %s, false, 0, 0)", [slot, held])
        disable_triggers(clone)


def disable_triggers(clone: Connection) -> None:
    """Rows come with what triggers made of them: the clone's own would do it twice. `clear` enables them again."""
    clone.execute(
        "CREATE TABLE lastgood.triggers (relation regclass NOT NULL, name text NOT NULL, enabled text NOT NULL)"
    )
    clone.execute(
        "INSERT INTO lastgood.triggers SELECT tgrelid, tgname, tgenabled FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgenabled <> 'D'"
    )
    for (table,) in clone.execute("SELECT DISTINCT relation::text FROM lastgood.triggers").fetchall():
        clone.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER USER").format(written(table)))


def _progress(clone: Connection) -> Progress:
    row = clone.execute("SELECT commit, migrated, total, skipped FROM lastgood.progress").fetchone()
    if row is None:
        raise Refused(f"the replay in {clone.info.dbname} has lost its place", hint="lastgood restore-points list")
    commit, migrated, total, skipped = row
    return Progress(commit=commit, migrated=migrated, total=total, skipped=skipped)


def is_untouched(source: Connection, kept: shelf.KeptPoint) -> bool:
    """Whether nothing was replayed yet: the slot reads from where it began."""
    row = source.execute(
        "SELECT confirmed_flush_lsn <= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
        [kept.position, kept.slot],
    ).fetchone()
    return bool(row and row[0])


def finish(source: Connection, clone: Connection, kept: shelf.KeptPoint, into: Path) -> Replayed:
    """Write quarantine and what was left out to files in `into`, and say what became of everything. Safe to repeat."""
    shelf.folder(into)
    progress, lost, left = _progress(clone), Counter[str](), Counter[str]()
    quarantined = 0

    def waiting() -> Iterator[object]:
        nonlocal quarantined
        for commit, xid, at, reason, changes in clone.execute("SELECT * FROM lastgood.quarantine ORDER BY commit"):
            quarantined += 1
            lost.update(change["table"] for change in changes)
            yield {
                "id": f"{xid}-{lsn(commit)}",
                "xid": xid,
                "commit_lsn": lsn(commit),
                "committed_at": at.isoformat(),
                "reason": reason,
                "changes": changes,
            }

    def without_place() -> Iterator[object]:
        for commit, at, table, key, row in clone.execute("SELECT * FROM lastgood.left_out ORDER BY commit"):
            left[table] += 1
            told = {"commit_lsn": lsn(commit), "committed_at": at.isoformat(), "table": table}
            yield {**told, "key": key, "values": row}

    shelf.write_lines(into / QUARANTINE, waiting())
    shelf.write_lines(into / LEFT_OUT, without_place())
    return Replayed(
        units="transactions",
        total=progress.total,
        quarantined=quarantined,
        skipped=progress.skipped,
        carried=tuple(clone.execute("SELECT name, rows FROM lastgood.carried ORDER BY name")),
        losses=tuple(Loss(table=t, rows=n, file=str(into / QUARANTINE)) for t, n in lost.most_common()),
        left_out=tuple(Loss(table=t, rows=n, file=str(into / LEFT_OUT)) for t, n in left.most_common()),
        notes=tuple(tables_of_the_migration(source, kept)),
    )


def tables_of_the_migration(source: Connection, kept: shelf.KeptPoint) -> Iterator[str]:
    """Tables for whose rows the old schema has no place."""
    then = {table.oid for table in kept.tables}
    for table in catalog.tables(source):
        if table.oid not in then:
            yield f"{table.label} is a table of the migration's: its rows are in the database that is kept"


def _readable(transaction: Transaction) -> list[dict[str, object]]:
    """Its changes as a person reads them: names as they were when it wrote."""
    told: list[dict[str, object]] = []
    for change in transaction.changes:
        if isinstance(change, Truncation):
            for emptied in change.relations:
                told.append({"table": _label(emptied.schema, emptied.name), "kind": "emptied"})  # noqa: PERF401 # as the rest
            continue
        relation = change.relation
        kind = "deleted" if change.new is None else "inserted" if change.old is None else "updated"
        rows = {
            when: _shown(dict(zip(relation.columns, row, strict=True)))
            for when, row in (("old", change.old), ("new", change.new))
            if row is not None
        }
        told.append({"table": _label(relation.schema, relation.name), "kind": kind, **rows})
    return told


def _label(schema: str, name: str) -> str:
    return name if schema == "public" else f"{schema}.{name}"


def _shown(row: Mapping[str, Value]) -> dict[str, str | None]:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Value) -> str | None:
    return "(unchanged)" if isinstance(value, Unsent) else value


def clear(clone: Connection, ledger: Connection) -> None:
    """Take everything of the replay out of the clone, which is then swapped in; how far it got is noted in the ledger
    first, for a swap that does not happen. Safe to repeat."""
    if not is_begun(clone):
        return
    if _by_transactions(clone):
        note_replayed(ledger, clone.info.dbname, _progress(clone).commit)
    with clone.transaction():
        for table, name, enabled in clone.execute(
            "SELECT relation::text, name, enabled FROM lastgood.triggers"
        ).fetchall():
            how = _ENABLE.get(enabled, sql.SQL("ENABLE"))
            clone.execute(sql.SQL("ALTER TABLE {} {} TRIGGER {}").format(written(table), how, sql.Identifier(name)))
        clone.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(SCHEMA)))

"""Puts the transactions that a capture kept into the clone, one by one, in the order of their commits.

Each is one subtransaction there: whole, or in quarantine with its reason. How far it got is written in the same
transaction as what it did, in a schema of its own in the clone, so that a replay which dies anywhere goes on where it
was. That schema is gone before the clone is swapped in.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from heapq import merge
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from time import monotonic
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from lastgood.core.config import Merging
from lastgood.core.errors import Refused
from lastgood.core.report import Loss, Replayed
from lastgood.targets.postgres import capture, catalog, shelf
from lastgood.targets.postgres.broken import keys_that_break
from lastgood.targets.postgres.connect import Connection
from lastgood.targets.postgres.merge import PUT_IN, Keys, Merge, Misfit, Said, defined_by, written
from lastgood.targets.postgres.noted import Known
from lastgood.targets.postgres.pgoutput import (
    Change,
    Decoder,
    Relation,
    RowChange,
    Transaction,
    Truncation,
    Unsent,
    Value,
)
from lastgood.targets.postgres.server import Held, held, hold, note_migrated, note_replayed
from lastgood.targets.postgres.writes import large_objects_made

SCHEMA: Final = "lastgood"
QUARANTINE: Final = "quarantine.jsonl"
LEFT_OUT: Final = "left-out.jsonl"
SKIPPED: Final = "skipped.jsonl"
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
OF_THE_MIGRATION: Final = "it is the migration's"
REST_WAITS: Final = "the rest of its transaction waits"
PART: Final = 1 << 24
"""Characters that are sent in one value. A transaction with more is sent in parts: the server takes no value of a
gigabyte, nor a list of changes of a quarter of one."""
MAY_BE_REST: Final = (
    "it may be of a transaction of which another part waits: a subtransaction has a number of its own, and the server "
    "tells whose it is only where track_commit_timestamp is on"
)
WRITTEN_OVER: Final = (
    "the migration wrote these rows last: whose they were, what they were and whether they were elsewhere is not known"
)
MAY_HAVE_MOVED: Final = "it may be a row whose move to this partition waits: there it is to be deleted, here it is new"
WHAT_IT_DID: Final = ("rewritten", "taken_out", "remade_by")
"""Tables of a replay that the next one needs as well, when this one was taken out of the clone: they grow with what the
migration did, and are as they stay when all of it was read."""
WHAT_WAITS: Final = ("remade", "migrated")
"""Such tables that grow until the end, and are small."""
REFERS: Final = "(23503)"
"""How a reason ends that a foreign key gave: foreign_key_violation."""
MOST_SHOWN: Final = 1_000
"""Changes of one skipped transaction that are written down; how many more there were is."""
_ENABLE: Final = {"A": sql.SQL("ENABLE ALWAYS"), "R": sql.SQL("ENABLE REPLICA")}

_DISABLED: Final[LiteralString] = "SELECT relation::text, kind, name, enabled FROM lastgood.triggers"

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
# Made also for a replay that an earlier version began.
_TABLES_LATER: Final[LiteralString] = """
CREATE TABLE IF NOT EXISTS lastgood.remade (place text NOT NULL, commit bigint NOT NULL, PRIMARY KEY (place, commit));
CREATE TABLE IF NOT EXISTS lastgood.remade_by (xid bigint NOT NULL, place text NOT NULL, PRIMARY KEY (place, xid));
CREATE TABLE IF NOT EXISTS lastgood.migrated (xid bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS lastgood.copied (at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS lastgood.taken_out (relation oid, key text, number int, was text,
    PRIMARY KEY (relation, key, number));
CREATE TABLE IF NOT EXISTS lastgood.skipped (commit bigint PRIMARY KEY, xid bigint NOT NULL, at timestamptz NOT NULL,
    changes bigint NOT NULL);
CREATE TABLE IF NOT EXISTS lastgood.skipped_changes (xid bigint, number bigint, change jsonb NOT NULL,
    PRIMARY KEY (xid, number));
CREATE TABLE IF NOT EXISTS lastgood.without_place (commit bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS lastgood.refers (commit bigint PRIMARY KEY, said jsonb NOT NULL);
CREATE TABLE IF NOT EXISTS lastgood.moved_out (commit bigint NOT NULL, row text NOT NULL);
CREATE TABLE IF NOT EXISTS lastgood.carried_xids (xid bigint PRIMARY KEY);
CREATE TABLE IF NOT EXISTS lastgood.quarantined (commit bigint, number int, changes jsonb NOT NULL,
    PRIMARY KEY (commit, number));
CREATE OR REPLACE FUNCTION lastgood.follows(touched text[]) RETURNS text LANGUAGE plpgsql AS $follows$
DECLARE found text;
BEGIN
    SELECT place INTO found FROM lastgood.remade WHERE place = ANY(touched) LIMIT 1;
    IF found IS NULL THEN
        SELECT place INTO found FROM lastgood.remade_by JOIN lastgood.migrated USING (xid) WHERE place = ANY(touched)
            LIMIT 1;
    END IF;
    RETURN found || ': that a row was made or deleted there or got this key is the migration''s or waits in '
        'quarantine, so what stands there may be another row: this depends on one in quarantine';
END $follows$;
CREATE OR REPLACE FUNCTION lastgood.refers(referred text[]) RETURNS text LANGUAGE plpgsql AS $refers$
DECLARE found text; there boolean;
BEGIN
    FOR i IN 1..cardinality(referred) BY 3 LOOP
        found := lastgood.follows(referred[i:i + 1]);
        IF found IS NOT NULL THEN
            BEGIN
                EXECUTE 'SELECT EXISTS (' || referred[i + 2] || ')' INTO there;
            EXCEPTION WHEN data_exception THEN  -- of a type that the old schema does not take
                there := false;
            END;
            IF there THEN
                RETURN found;
            END IF;
        END IF;
    END LOOP;
    RETURN NULL;
END $refers$;
CREATE OR REPLACE FUNCTION lastgood.carry(
    number bigint, statements text[], touched text[], makes text[], referred text[]
)
RETURNS text LANGUAGE plpgsql AS $carry$
DECLARE reason text := lastgood.follows(touched || referred);
BEGIN
    IF reason IS NOT NULL THEN
        reason := coalesce(lastgood.follows(touched), lastgood.refers(referred));
    END IF;
    IF reason IS NULL THEN
        reason := lastgood.apply(statements);
    END IF;
    IF reason IS NOT NULL THEN
        INSERT INTO lastgood.remade SELECT DISTINCT unnest(makes), number ON CONFLICT DO NOTHING;
    END IF;
    RETURN reason;
END $carry$
"""
# Why `carry` is a function: a batch is sent without waiting for answers, so only the clone knows in time what waits.
# `refers`: in threes, as of Keys. Where nothing stands there the foreign key says so, and it may still come.
_MIGRATED: Final[LiteralString] = "INSERT INTO lastgood.migrated VALUES (%s) ON CONFLICT DO NOTHING"
# A row that the migration took out: what it was first counts. One that it puts in under the same key is that one
# rewritten; else the table has a row more.
_TAKE_OUT: Final[LiteralString] = "INSERT INTO lastgood.taken_out VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
_PUT_IN: Final[LiteralString] = """
WITH put (relation, key, number, made) AS (SELECT %s::oid, %s::text, %s::int, %s::text),
again AS (DELETE FROM lastgood.taken_out t USING put WHERE (t.relation, t.key, t.number) =
    (put.relation, put.key, put.number) RETURNING t.relation, t.key, t.number, t.was, put.made),
more AS (INSERT INTO lastgood.taken_out SELECT relation, 'put in', number, NULL FROM put
    WHERE NOT EXISTS (SELECT FROM again) ON CONFLICT DO NOTHING)
INSERT INTO lastgood.rewritten SELECT relation, key, number, was, made FROM again WHERE was IS DISTINCT FROM made
ON CONFLICT (relation, key, number) DO UPDATE SET made = excluded.made RETURNING relation::int8, number
"""
_REWRITE: Final[LiteralString] = (
    "INSERT INTO lastgood.rewritten VALUES (%s, %s, %s, %s, %s) "
    "ON CONFLICT (relation, key, number) DO UPDATE SET made = excluded.made"
)
# The last row of a transaction counts like the first: it is put back whole when one statement does not hit one row.
# What the server lacks (room, memory, a lock) says nothing of the transaction, and is no reason for a quarantine.
# before: how many came in parts before this one; whole: none comes after it.
APPLY: Final[LiteralString] = """
CREATE OR REPLACE FUNCTION lastgood.apply(statements text[], before int DEFAULT 0, whole boolean DEFAULT true)
RETURNS text LANGUAGE plpgsql AS $apply$
DECLARE statement text; hit bigint; number int := before;
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
    IF whole THEN
        SET CONSTRAINTS ALL IMMEDIATE;
    END IF;
    RETURN NULL;
EXCEPTION
    WHEN SQLSTATE 'LG001' THEN
        RETURN 'change ' || number || ': the row is not as this transaction found it: it depends on one in quarantine, '
            'counts from what the migration made of a number, or its value has no place in the old type';
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


_Remembering: TypeAlias = tuple[LiteralString, tuple[int, int], tuple[int | str | None, ...]]
"""What writes something down of the migration; of which (table, column); and the values of the statement."""


class _Enough(Exception):
    """As much was tried as was wanted."""


class Replay:
    """Of one capture into one clone.

    source: connection to the database that the slot belongs to, under whichever name. migration: whose transactions
    are skipped. ledger: tells what the clone holds from a replay before, of which nothing else is left in it. merging:
    as Merge has it. rewritten: columns by table of which the migration is known to have changed values.
    invariants: SQL by name. narrow: of each
    invariant only the keys are looked at that stand in the rows of a batch, so that a look does not grow with the
    database; what a transaction breaks elsewhere is not seen then. look_s: how long a look at all of them takes.
    migrated: the position behind which every migration is over; a migration that changed no row is in no slot.
    """

    def __init__(
        self,
        source: Connection,
        clone: Connection,
        kept: shelf.KeptPoint,
        *,
        migration: Known,
        ledger: Connection,
        invariants: Mapping[str, str],
        merging: Mapping[str, Merging],
        rewritten: Mapping[int, Collection[int]],
        narrow: bool = False,
        migrated: int | None = None,
    ) -> None:
        self._source, self._clone, self._kept, self._ledger = source, clone, kept, ledger
        self._invariants = invariants
        hold(clone, clone.info.dbname)
        if not is_begun(clone):
            _begin(clone, kept.slot, ledger)
        clone.execute(_TABLES_LATER)
        clone.execute("DROP FUNCTION IF EXISTS lastgood.apply(text[])")  # of an earlier version
        clone.execute(APPLY)
        self._progress, self._at_once = _progress(clone), AT_ONCE
        self._remembered, self._to_remember = 0, list[_Remembering]()
        self._to_remake = set[tuple[int, str]]()
        self._shown, self._to_show, self._taken = 0, list[tuple[int, int, Jsonb]](), (0, 0)
        source.execute("SET idle_in_transaction_session_timeout = 0")
        self._later = catalog.later_partitions(source, clone, kept.tables)
        self._by_last_state = frozenset(later.leaf.oid for later in self._later)
        self._held = held(ledger, clone.info.dbname).commit
        then = (*kept.tables, *(later.home for later in self._later))
        self._parted = bool(catalog.tables(clone, kind="p"))
        self._merge = Merge(source, clone, then=then, now=catalog.tables(source), merging=merging)
        self._merge.migrated, self._migrated = self._progress.migrated, migrated
        self._merge.rewritten = set(clone.execute("SELECT DISTINCT relation::int8, number FROM lastgood.rewritten"))
        self._merge.refilled = set(
            clone.execute("SELECT relation::int8, number FROM lastgood.taken_out WHERE key = %s", [PUT_IN])
        )
        self._migration, self._doubts = {int(xid) for xid in migration.xids}, migration.doubts
        defined = defined_by(source, self._migration)
        self._merge.redefined = frozenset((t, n) for t, columns in rewritten.items() for n in columns) & defined
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
            self.carry_partitions("", go_on=enough)
        except _Enough:
            whole = False
        return self.finish(into), whole

    @property
    def carries_rows(self) -> bool:
        """Whether there are partitions whose rows go over in their last state."""
        return bool(self._later)

    def carry_partitions(self, replay: str, *, go_on: Callable[[Progress], None]) -> None:
        """Carry the rows of partitions made since, in their last state: together those that one
        transaction wrote last. Asked when all else is replayed. What waits because it refers to a row is tried
        again then. Rows that the migration wrote last wait: who wrote them first cannot be told. So do rows where the
        rest of their transaction waits, or may do so, or a deletion that may be of the same row: half of a move would
        be that row twice. Safe to repeat. go_on: as of `go_on`.

        Raises Refused when another replay did: what was written since that one cannot be told from the clone any more.
        """
        if not self._later:
            return
        with self._clone.transaction():
            row = self._clone.execute("SELECT to_regclass('lastgood.partitions')").fetchone()
            if row != (None,) and self._clone.execute("SELECT replay FROM lastgood.partitions").fetchone() == (replay,):
                return
            if row != (None,) or self._held:
                names = ", ".join(later.leaf.label for later in self._later)
                raise Refused(
                    f"{self._clone.info.dbname} holds rows of {names} that another replay carried, and is no restore "
                    "point any more",
                    hint="lastgood restore-points list",
                )
            self._clone.execute("CREATE TABLE lastgood.partitions AS SELECT %s::text AS replay", [replay])
            commit, batch, later = self._progress.commit, list[Transaction](), _HeldBack()
            for transaction in self._to_carry(later):
                batch.append(transaction)
                if len(batch) >= self._at_once:
                    self._carry(batch)
                    batch = []
                    go_on(self._progress)
            if batch:
                self._carry(batch)
            self._try_again(later.rest, go_on)
            waiting, moved_out = self._waiting(), self._moved_out()
            for transaction, stamp in later.may_be_rest:
                if waiting.maybe(transaction.xid, stamp):
                    self._let_wait(transaction, MAY_BE_REST)
                else:
                    later.moved.append(transaction)
            for transaction in later.moved:
                if moved_out.isdisjoint(self._merge.moves(transaction).into):
                    self._carry([transaction])
                else:
                    self._let_wait(transaction, MAY_HAVE_MOVED)
            self._try_again(later.rest, go_on)
            for transaction in chain.from_iterable(later.rest.values()):
                self._let_wait(transaction, REST_WAITS)
            self._progress = replace(self._progress, commit=commit)  # these have no place in the log
            self._clone.execute("UPDATE lastgood.progress SET commit = %s", [commit])

    def _to_carry(self, later: _HeldBack) -> Iterator[Transaction]:
        """Yield those that wait for nothing; put into `later` those that something else must come before."""
        waiting, moved_out = self._waiting(), self._moved_out()
        for transaction, stamp in self._last_states():
            if transaction.xid in self._migration:
                self._let_wait(transaction, WRITTEN_OVER)
            elif (top := waiting.whose(transaction.xid, stamp)) is not None:
                if waiting.refers[top]:
                    later.rest[top].append(transaction)
                else:
                    self._let_wait(transaction, REST_WAITS)
            elif waiting.maybe(transaction.xid, stamp) and not self._is_carried(transaction.xid):
                if waiting.maybe(transaction.xid, stamp, referring=False):
                    self._let_wait(transaction, MAY_BE_REST)
                else:
                    later.may_be_rest.append((transaction, stamp))
            elif moved_out.isdisjoint(self._merge.moves(transaction).into):
                yield transaction
            else:
                later.moved.append(transaction)

    def _waiting(self) -> _Waiting:
        rows = self._clone.execute(
            "SELECT xid, r.commit IS NOT NULL FROM lastgood.quarantine LEFT JOIN lastgood.refers r USING (commit) "
            "WHERE commit > 0"
        )
        waiting = _Waiting(refers=dict(rows.fetchall()))
        asked = sql.SQL("SELECT xid, {} FROM unnest(%s::int8[]) xid").format(self._stamp("xid::text::xid"))
        for xid, stamp in self._source.execute(asked, [list(waiting.refers)]).fetchall():
            waiting.note(xid, stamp)
        return waiting

    def _stamp(self, xid: LiteralString) -> sql.SQL:
        """When a number was committed, a subtransaction's with its transaction; NULL where the server does not keep
        that."""
        row = self._source.execute("SELECT current_setting('track_commit_timestamp')").fetchone()
        return sql.SQL(f"pg_xact_commit_timestamp({xid})" if row == ("on",) else "NULL::timestamptz")

    def _is_carried(self, xid: int) -> bool:
        """Whether it is the number of a transaction of which the slot told another part, and that was replayed."""
        return self._clone.execute("SELECT FROM lastgood.carried_xids WHERE xid = %s", [xid]).fetchone() is not None

    def _note_carried(self, xids: Sequence[int]) -> None:
        """For `carry_partitions`, which there is nothing for without a partitioned table."""
        if self._parted:
            self._clone.execute(
                "INSERT INTO lastgood.carried_xids SELECT unnest(%s::int8[]) ON CONFLICT DO NOTHING", [list(xids)]
            )

    def _moved_out(self) -> frozenset[str]:
        return frozenset(row for (row,) in self._clone.execute("SELECT DISTINCT row FROM lastgood.moved_out"))

    def _let_wait(self, transaction: Transaction, reason: str) -> None:
        try:
            self._merge.said(transaction)
        except Misfit as misfit:  # whoever requeues it must know that as well
            reason = f"{reason}; {misfit}"
        with self._clone.transaction():
            self._note_remade(transaction.commit, self._merge.keys(transaction.changes).remade)
            self._write_down([_Carried(transaction=transaction, said=None, reason=reason)])

    def _try_again(self, rest: dict[int, list[Transaction]], go_on: Callable[[Progress], None]) -> None:
        """Replay what waits for a row that it refers to, each together with the rest of its transaction, as long as
        that helps any of it. rest: by xid; who is replayed is taken out."""
        while self._fit(self._referring(), rest):
            go_on(self._progress)

    def _referring(self) -> list[_Referring]:
        return [
            _Referring(
                transaction=Transaction(xid=xid, commit=commit, end=0, committed_at=at, changes=()),
                said=_said_before(said),
                referred=said.get("referred", []),
                values=_short(
                    value for change in changes for when in ("old", "new") for value in change.get(when, {}).values()
                ),
            )
            for commit, xid, at, said, changes in self._clone.execute(
                "SELECT commit, xid, at, said, changes FROM lastgood.refers JOIN lastgood.quarantine USING (commit) "
                "ORDER BY commit < 0, abs(commit)"
            ).fetchall()
        ]

    def _fit(self, referring: Sequence[_Referring], rest: dict[int, list[Transaction]]) -> bool:
        """Whether any of these is replayed now. Halved like a batch where an invariant breaks."""
        if not referring:
            return False
        among = None
        if self.narrow:
            among = frozenset[str]().union(
                *(one.values | _values(rest.get(one.transaction.xid, ())) for one in referring)
            )
        with self._clone.transaction() as whole:
            before = self._broken if among is None else self._breaking(among)
            fitting = [(one, with_it) for one in referring if (with_it := self._fits(one, rest)) is not None]
            broke = _newly(before, self._breaking(among)) if fitting else ""
            if broke:
                raise psycopg.Rollback(whole)
            for one, with_it in fitting:
                self._settle(one, with_it)
                rest.pop(one.transaction.xid, None)
            return bool(fitting)
        if len(referring) > 1:
            half = len(referring) // 2
            fitted = [self._fit(some, rest) for some in (referring[:half], referring[half:])]
            return any(fitted)
        commit = referring[0].transaction.commit
        self._clone.execute("UPDATE lastgood.quarantine SET reason = %s WHERE commit = %s", [broke, commit])
        self._clone.execute("DELETE FROM lastgood.refers WHERE commit = %s", [commit])
        return False

    def _fits(self, one: _Referring, rest: Mapping[int, list[Transaction]]) -> list[_Carried] | None:
        """Replay it; return the rest of its transaction, which was replayed with it. None: neither was."""
        try:
            with_it = [
                _Carried(transaction=transaction, said=self._merge.said(transaction))
                for transaction in rest.get(one.transaction.xid, ())
            ]
        except Misfit:
            return None
        said = [*(carried.said for carried in with_it if carried.said is not None), one.said]
        keys = [self._merge.keys(carried.transaction.changes) for carried in with_it]
        referred = [*one.referred, *chain.from_iterable(chain.from_iterable(each.referred for each in keys))]
        with self._clone.transaction() as attempt:
            # where it made a row itself, what stands there is its own
            self._clone.execute("DELETE FROM lastgood.remade WHERE commit = %s", [one.transaction.commit])
            statements = [line for each in said for line in each.statements]
            if not (
                self._why_not("SELECT lastgood.refers(%s)", referred)
                or self._why_not("SELECT lastgood.apply(%s)", statements)
            ):
                return with_it
            raise psycopg.Rollback(attempt)
        return None

    def _settle(self, one: _Referring, with_it: Sequence[_Carried]) -> None:
        for table in ("quarantine", "refers", "moved_out", "remade"):
            self._clone.execute(
                sql.SQL("DELETE FROM {} WHERE commit = %s").format(sql.Identifier(SCHEMA, table)),
                [one.transaction.commit],
            )
        self._note_carried([one.transaction.xid])
        self._leave_out(one.transaction, one.said)
        self._count(dict(one.said.rows))
        if with_it:
            self._write_down(with_it)

    def _last_states(self) -> Iterator[tuple[Transaction, datetime | None]]:
        """Yield what each transaction wrote last, in whichever of the partitions, with when it was committed. Where the
        server does not keep that, what a subtransaction wrote is told apart."""
        stamp = self._stamp("xmin")
        with self._source.transaction(), ExitStack() as opened:
            told = [self._written_last(later.leaf, stamp, opened) for later in self._later]
            number, rows = 0, merge(*told, key=_Last.order)
            for _, group in groupby(rows, key=_Last.order):
                first = iter(group)
                last = next(first)
                of_one = chain([last], first)
                # a migration may have written to all of them, and what waits is one value of the clone
                at_once = FETCHED if last.xid in self._migration else None
                while some := list(islice(of_one, at_once)):
                    number += 1
                    transaction = Transaction(
                        xid=next((row.xid for row in some if row.xid in self._migration), last.xid),
                        commit=-number,
                        end=0,
                        committed_at=last.at,
                        changes=tuple(row.change for row in some),
                    )
                    yield transaction, last.stamp

    def _written_last(self, leaf: catalog.Table, stamp: sql.SQL, opened: ExitStack) -> Iterator[_Last]:
        """Yield the rows of a partition by who wrote them last."""
        columns = sorted(leaf.columns)
        types = self._source.execute(
            "SELECT atttypid::int8, atttypmod FROM pg_attribute WHERE attrelid = %s AND attnum = ANY(%s) "
            "ORDER BY attnum",
            [leaf.oid, columns],
        ).fetchall()
        relation = Relation(
            oid=leaf.oid,
            schema=leaf.schema,
            name=leaf.name,
            whole=True,
            columns=leaf.named(tuple(columns)),
            types=tuple((int(oid), modifier) for oid, modifier in types),
        )
        values = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in relation.columns)
        rows = opened.enter_context(self._source.cursor(f"lastgood_rows_{leaf.oid}"))
        rows.itersize = FETCHED
        rows.execute(
            sql.SQL("SELECT xmin::text::int8, {}, now(), {} FROM ONLY {} ORDER BY 2 NULLS LAST, 1").format(
                stamp, values, leaf.identifier
            )
        )
        for xid, committed, at, *told in rows:
            change = RowChange(relation=relation, old=None, new=tuple(told))
            yield _Last(xid=xid, stamp=committed, at=at, change=change)

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

    def copy_for_the_next(self) -> None:
        """Copy what is known of the migration, which `clear` has to do otherwise, behind the fence. Safe to repeat."""
        with self._ledger.transaction():
            _remember(self._clone, self._ledger, WHAT_IT_DID)
        with self._clone.transaction():
            self._clone.execute("DELETE FROM lastgood.copied")
            self._clone.execute("INSERT INTO lastgood.copied VALUES (now())")

    def finish(self, into: Path) -> Replayed:
        """Write quarantine, what was left out and what was skipped to files in `into`, and say what became of
        everything. Safe to repeat."""
        replayed = finish(self._source, self._clone, self._kept, into)
        narrow = (NARROW,) if self.narrow and self._invariants else ()
        made = (catalog.LARGE_OBJECTS_MADE,) if large_objects_made(self._source, self._kept.point.snapshot) else ()
        return replace(replayed, notes=(*replayed.notes, *self._doubts, *narrow, *made))

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
                batch.append(self._without_last_states(transaction))
                if len(batch) >= self._at_once:
                    self._remember()
                    self._carry(batch)
                    batch = []
                    go_on(self._progress)
            if batch:
                self._remember()
                self._carry(batch)
        return end

    def _without_last_states(self, transaction: Transaction) -> Transaction:
        """Leave out what `carry_partitions` carries: a table that the migration made is captured, and may have become a
        partition later."""
        if not self._by_last_state:
            return transaction
        changes = (change for change in transaction.changes if not _of_these(change, self._by_last_state))
        return replace(transaction, changes=tuple(changes))

    def _take(self, xid: int, change: Change) -> bool:
        """The migration's own writing is the damage, and is not replayed; but what it made of a value is remembered,
        and what is not replayed is shown."""
        if xid not in self._migration:
            return False
        number = self._taken[1] + 1 if self._taken[0] == xid else 1
        self._taken = xid, number
        if number <= MOST_SHOWN and self._shown < MOST_REMEMBERED:
            self._shown += 1
            self._to_show.append((xid, number, Jsonb(list(_told(change)))))
        if _of_these(change, self._by_last_state):
            return True
        whole = self._remembered < MOST_REMEMBERED
        self._to_remake |= {(xid, place) for place in self._merge.keys((change,), whole=whole).remade}
        if isinstance(change, RowChange) and change.old is not None and change.new is not None:
            for table, key, column, was, made in self._merge.rewritings(change, whole=whole):
                self._to_remember.append((_REWRITE, (table, column), (table, key, column, _text(was), _text(made))))
        elif isinstance(change, RowChange) and whole:
            how = _TAKE_OUT if change.new is None else _PUT_IN
            for table, key, column, value in self._merge.refillings(change):
                self._to_remember.append((how, (table, column), (table, key, column, _text(value))))
        if len(self._to_remember) + len(self._to_remake) + len(self._to_show) >= FETCHED:
            self._remember()
        return True

    def _remember(self) -> None:
        """Write down what the migration made of values, before anything is replayed that came after it, and what it
        did. Safe to repeat."""
        rows, self._to_remember = self._to_remember, []
        remade, self._to_remake = self._to_remake, set[tuple[int, str]]()
        shown, self._to_show = self._to_show, []
        self._remembered += len(rows) + len(remade)
        with self._clone.transaction(), self._clone.cursor() as writing:
            if rows or remade:
                self._clone.execute("DELETE FROM lastgood.copied")
            for how, of_one_kind in groupby(rows, key=itemgetter(0)):  # in their order
                some = list(of_one_kind)
                writing.executemany(how, [values for *_, values in some], returning=how == _PUT_IN)
                places = {place for _, place, _ in some}
                if how == _REWRITE:
                    self._merge.rewritten |= places
                elif how == _PUT_IN:
                    self._merge.refilled |= places
                    self._merge.rewritten.update(writing.fetchall())
                    while writing.nextset():
                        self._merge.rewritten.update(writing.fetchall())
            writing.executemany("INSERT INTO lastgood.remade_by VALUES (%s, %s) ON CONFLICT DO NOTHING", list(remade))
            writing.executemany(
                "INSERT INTO lastgood.skipped_changes VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", shown
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
        self._let_wait(batch[0], broke)

    def _replayed(self, batch: Sequence[Transaction]) -> list[_Carried]:
        """Each of them, and what became of it. Nothing is written down yet."""
        carried: list[_Carried] = []
        with self._clone.pipeline():
            for transaction in batch:
                if transaction.xid in self._migration:
                    self._merge.migrated = True
                    self._clone.execute(_MIGRATED, [transaction.xid])
                    carried.append(_Carried(transaction=transaction, said=None, skipped=True))
                    continue
                if self._migrated is not None and transaction.commit > self._migrated:
                    self._merge.migrated = True
                try:
                    said = self._merge.said(transaction)
                except Misfit as misfit:
                    self._note_remade(transaction.commit, self._merge.keys(transaction.changes).remade)
                    carried.append(_Carried(transaction=transaction, said=None, reason=str(misfit)))
                    continue
                answer = None
                if said.statements:
                    keys = self._merge.keys(transaction.changes)
                    referred = [*chain.from_iterable(keys.referred)]
                    if any(map(_is_long, (said.statements, keys.touched, keys.remade, referred))):
                        reason = self._carried_in_parts(said.statements, keys)
                        if reason:
                            self._note_remade(transaction.commit, keys.remade)
                        carried.append(_Carried(transaction=transaction, said=said, reason=reason))
                        continue
                    answer = self._clone.execute(
                        "SELECT lastgood.carry(%s, %s, %s, %s, %s)",
                        [transaction.commit, list(said.statements), list(keys.touched), list(keys.remade), referred],
                    )
                carried.append(_Carried(transaction=transaction, said=said, answer=answer))
        return carried

    def _carried_in_parts(self, statements: Sequence[str], keys: Keys) -> str:
        """Replay one that is too long for a value; return why not, and then nothing of it is replayed."""
        reason, done = "", 0
        with self._clone.transaction() as whole:
            for part in _parts(keys.touched):
                reason = reason or self._why_not("SELECT lastgood.follows(%s)", part)
            references = iter(keys.referred)
            while some := [*chain.from_iterable(islice(references, FETCHED))]:
                reason = reason or self._why_not("SELECT lastgood.refers(%s)", some)
            for part in _parts(statements):
                last = done + len(part) == len(statements)
                reason = reason or self._why_not("SELECT lastgood.apply(%s, %s, %s)", part, done, last)
                done += len(part)
            if reason:
                raise psycopg.Rollback(whole)
        return reason

    def _why_not(self, query: LiteralString, *values: object) -> str:
        row = self._clone.execute(query, values).fetchone()
        return str(row[0]) if row and row[0] else ""

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
        whole = [one.transaction.xid for one in carried if not (one.transaction.changes or one.transaction.aside)]
        for one in changed:
            transaction, said, reason = one.transaction, one.said, one.why_not()
            if reason:
                texts = (json.dumps(told) for change in transaction.changes for told in _told(change))
                first, *more = [*_parts(texts)] or [[]]
                self._clone.execute(
                    "INSERT INTO lastgood.quarantine VALUES (%s, %s, %s, %s, %s::jsonb)",
                    [transaction.commit, transaction.xid, transaction.committed_at, reason, f"[{','.join(first)}]"],
                )
                for number, part in enumerate(more):
                    self._clone.execute(
                        "INSERT INTO lastgood.quarantined VALUES (%s, %s, %s::jsonb)",
                        [transaction.commit, number, f"[{','.join(part)}]"],
                    )
                self._note_waiting(transaction, said if reason.endswith(REFERS) and not more else None)
            elif one.skipped:
                self._clone.execute(
                    "INSERT INTO lastgood.skipped VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    [transaction.commit, transaction.xid, transaction.committed_at, transaction.aside],
                )
            elif said is not None:
                rows.update(dict(said.rows))
                whole.append(transaction.xid)
                self._leave_out(transaction, said)
        self._count(rows)
        self._note_carried(whole)
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

    def _note_remade(self, commit: int, places: Collection[str]) -> None:
        """A row that stands at one of these is not the one that whatever comes later means."""
        for part in _parts(places):
            self._clone.execute(
                "INSERT INTO lastgood.remade SELECT unnest(%s::text[]), %s ON CONFLICT DO NOTHING", [part, commit]
            )

    def _note_waiting(self, transaction: Transaction, said: Said | None) -> None:
        """What `carry_partitions` must know of one that waits. said: of one that refers to a row."""
        if said is not None:
            referred = [*chain.from_iterable(self._merge.keys(transaction.changes).referred)]
            self._clone.execute(
                "INSERT INTO lastgood.refers VALUES (%s, %s)",
                [transaction.commit, Jsonb({**_said_again(said), "referred": referred})],
            )
        with self._clone.cursor() as writing:
            writing.executemany(
                "INSERT INTO lastgood.moved_out VALUES (%s, %s)",
                [(transaction.commit, row) for row in self._merge.moves(transaction).out],
            )

    def _leave_out(self, transaction: Transaction, said: Said) -> None:
        if said.left_out and not said.rows:
            self._clone.execute("INSERT INTO lastgood.without_place VALUES (%s)", [transaction.commit])
        for table, key, values in said.left_out:
            self._clone.execute(
                "INSERT INTO lastgood.left_out VALUES (%s, %s, %s, %s, %s)",
                [transaction.commit, transaction.committed_at, table, Jsonb(_shown(key)), Jsonb(_shown(values))],
            )

    def _count(self, rows: Mapping[str, int]) -> None:
        with self._clone.cursor() as writing:
            writing.executemany(
                "INSERT INTO lastgood.carried VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET rows = lastgood.carried.rows + excluded.rows",
                list(rows.items()),
            )


def _is_long(texts: Iterable[str]) -> bool:
    return sum(map(len, texts)) > PART


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield them in their order, as many at once as are sent in one value."""
    part, length = list[str](), 0
    for text in texts:
        if part and length + len(text) > PART:
            yield part
            part, length = [], 0
        part.append(text)
        length += len(text)
    if part:
        yield part


def _said_again(said: Said) -> dict[str, object]:
    left_out = [(table, _shown(key), _shown(values)) for table, key, values in said.left_out]
    return {"statements": said.statements, "rows": said.rows, "left_out": left_out}


def _said_before(told: Mapping[str, Any]) -> Said:
    return Said(
        statements=tuple(told["statements"]),
        rows=tuple((table, rows) for table, rows in told["rows"]),
        left_out=tuple((table, key, values) for table, key, values in told["left_out"]),
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
    return _short(value for row in rows for value in row)


def _short(values: Iterable[Value]) -> frozenset[str]:
    return frozenset(value for value in values if isinstance(value, str) and len(value) <= LONGEST_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Referring:
    """One that waits because it refers to a row. referred: to which ones, in threes; values: of the rows that it
    changed, as _values has them."""

    transaction: Transaction
    said: Said
    referred: Sequence[str]
    values: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    """A row of a later partition as it was last. stamp: when it was committed, None where the server does not keep
    that. at: when it was read."""

    xid: int
    stamp: datetime | None
    at: datetime
    change: RowChange

    def order(self) -> tuple[bool, datetime | int]:
        """The same for all of a transaction, as far as it is known."""
        return (True, self.xid) if self.stamp is None else (False, self.stamp)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldBack:
    """Rows of later partitions for which something must come first. rest: by the xid of what waits because it refers to
    a row; may_be_rest: of which that may be so, each with when it was committed; moved: which may be moved ones."""

    rest: defaultdict[int, list[Transaction]] = field(default_factory=lambda: defaultdict(list))
    may_be_rest: list[tuple[Transaction, datetime | None]] = field(
        default_factory=list[tuple[Transaction, datetime | None]]
    )
    moved: list[Transaction] = field(default_factory=list[Transaction])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """What of the slot waits, by xid. refers: whether it does because it refers to a row. by_stamp: by when it was
    committed, where the server keeps that. oldest: of all that it keeps that of (True) or not, and of all that refer
    or do not."""

    refers: Mapping[int, bool]
    by_stamp: dict[datetime, int] = field(default_factory=dict[datetime, int])
    oldest: dict[tuple[bool, bool], int] = field(default_factory=dict[tuple[bool, bool], int])

    def note(self, xid: int, stamp: datetime | None) -> None:
        """Take note of when one was committed."""
        if stamp is not None:
            self.by_stamp[stamp] = xid
        kind = stamp is not None, self.refers[xid]
        if kind not in self.oldest or _is_younger(self.oldest[kind], xid):
            self.oldest[kind] = xid

    def whose(self, xid: int, stamp: datetime | None) -> int | None:
        """Return the one that is known to have written a row with that number."""
        if xid in self.refers or stamp is None:
            return xid if xid in self.refers else None
        return self.by_stamp.get(stamp)

    def maybe(self, xid: int, stamp: datetime | None, *, referring: bool = True) -> bool:
        """Whether it may be a subtransaction of one: those get their numbers after their transaction. referring: else
        of one that waits for another reason."""
        return any(
            _is_younger(xid, top)
            for (stamped, refers), top in self.oldest.items()
            if not (stamped and stamp) and (referring or not refers)
        )


def _is_younger(xid: int, than: int) -> bool:
    """As the server compares them: they begin again after 32 bits."""
    return 0 < (xid - than) % (1 << 32) < 1 << 31


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


def _of_these(change: Change, tables: Collection[int]) -> bool:
    relations = change.relations if isinstance(change, Truncation) else (change.relation,)
    return all(relation.oid in tables for relation in relations)


def is_begun(clone: Connection) -> bool:
    """Whether a replay into this database began and is not finished."""
    return clone.execute("SELECT to_regnamespace(%s)", [SCHEMA]).fetchone() != (None,)


def _by_transactions(clone: Connection) -> bool:
    return clone.execute("SELECT to_regclass('lastgood.progress')").fetchone() != (None,)


def _position(source: Connection) -> str:
    """Return the end of the log: every transaction that is committed now is before it."""
    row = source.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    return str(row[0]) if row else ""


def read_lsn(text: str) -> int:
    """Read a position that Postgres wrote."""
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


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


def why_not(source: Connection, clone: Connection, kept: shelf.KeptPoint, holds: Held) -> str:
    """Say why what the slot still tells does not fit behind what the clone holds; empty where it does. A slot tells
    nothing twice, so a clone that was restored since it was read would lack all of that."""
    if is_begun(clone):
        return "" if _by_transactions(clone) else "it holds rows in their last state"
    if holds.by_rows:
        return "it holds rows in their last state"
    if holds.commit:
        return "" if holds.migrated is not None else "what the migration rewrote is no longer known"
    return "" if is_untouched(source, kept) else "a part of them was told already, and is not in it"


def _begin(clone: Connection, slot: str, ledger: Connection) -> None:
    holds = held(ledger, clone.info.dbname)
    with clone.transaction():
        make_room(clone)
        clone.execute(_TABLES)
        clone.execute(_TABLES_LATER)
        clone.execute(REFUSE)
        clone.execute(
            "INSERT INTO lastgood.progress VALUES (%s, %s, %s, 0, 0)", [slot, holds.commit, bool(holds.migrated)]
        )
        disable_triggers(clone)
        _recall(clone, ledger)


def _remember(clone: Connection, ledger: Connection, tables: Sequence[str]) -> None:
    """Copy to the ledger what the next replay needs. In a transaction of the ledger."""
    name = clone.info.dbname
    ledger.execute("DELETE FROM remembered WHERE clone = %s AND name = ANY(%s)", [name, list(tables)])
    for table in tables:
        _copy(
            clone,
            sql.SQL("SELECT {}, {}, row_to_json(r)::text FROM {} r").format(name, table, sql.Identifier(SCHEMA, table)),
            ledger,
            sql.SQL("remembered"),
        )


def _recall(clone: Connection, ledger: Connection) -> None:
    """Put back into the clone what was copied. In a transaction of the clone."""
    for table in (*WHAT_IT_DID, *WHAT_WAITS):
        clone.execute("CREATE TEMPORARY TABLE lastgood_recalled (row json) ON COMMIT DROP")
        asked = sql.SQL("SELECT row FROM remembered WHERE (clone, name) = ({}, {})").format(clone.info.dbname, table)
        _copy(ledger, asked, clone, sql.SQL("lastgood_recalled"))
        to = sql.Identifier(SCHEMA, table)
        clone.execute(
            sql.SQL("INSERT INTO {} SELECT r.* FROM lastgood_recalled, json_populate_record(NULL::{}, row) r").format(
                to, to
            )
        )
        clone.execute("DROP TABLE lastgood_recalled")


def _copy(source: Connection, query: sql.Composed, to: Connection, table: sql.SQL) -> None:
    with (
        source.cursor() as reading,
        to.cursor() as writing,
        reading.copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as rows,
        writing.copy(sql.SQL("COPY {} FROM STDIN").format(table)) as into,
    ):
        for chunk in rows:
            into.write(chunk)


def make_room(clone: Connection) -> None:
    """Make the schema of a replay. Triggers of events are off from here until `clear`: what is changed about the clone
    is none of what they are there for, and one that keeps a list of it would add to that."""
    triggers = catalog.event_triggers(clone)
    catalog.set_event_triggers(clone, dict.fromkeys(triggers, "D"))
    clone.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
    clone.execute("CREATE TABLE lastgood.event_triggers (name text NOT NULL, enabled text NOT NULL)")
    with clone.cursor() as writing:
        writing.executemany("INSERT INTO lastgood.event_triggers VALUES (%s, %s)", list(triggers.items()))


def _event_triggers(clone: Connection) -> dict[str, str]:
    """How they were, nothing of a replay that an earlier version began."""
    if clone.execute("SELECT to_regclass('lastgood.event_triggers')").fetchone() == (None,):
        return {}
    return dict(clone.execute("SELECT name, enabled FROM lastgood.event_triggers").fetchall())


def disable_triggers(clone: Connection) -> None:
    """Rows come with what triggers and rules made of them: the clone's own would do it twice. `clear` enables them
    again."""
    clone.execute(
        "CREATE TABLE lastgood.triggers (relation regclass NOT NULL, kind text NOT NULL, name text NOT NULL, "
        "enabled text NOT NULL)"
    )
    clone.execute(
        "INSERT INTO lastgood.triggers SELECT tgrelid, 'TRIGGER', tgname, tgenabled FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgenabled <> 'D' "
        "UNION ALL SELECT ev_class, 'RULE', rulename, ev_enabled FROM pg_rewrite JOIN pg_class r ON r.oid = ev_class "
        "WHERE r.relkind IN ('r', 'p') AND r.oid >= 16384 AND ev_enabled <> 'D'"  # 16384: made by people
    )
    for table, kind, name, _ in clone.execute(_DISABLED).fetchall():
        how = sql.SQL("ALTER TABLE {} DISABLE {} {}")
        clone.execute(how.format(written(table), written(kind), sql.Identifier(name)))


def _progress(clone: Connection) -> Progress:
    row = clone.execute("SELECT commit, migrated, total, skipped FROM lastgood.progress").fetchone()
    if row is None:
        raise Refused(f"the replay in {clone.info.dbname} has lost its place", hint="lastgood restore-points list")
    commit, migrated, total, skipped = row
    return Progress(commit=commit, migrated=migrated, total=total, skipped=skipped)


def is_untouched(source: Connection, kept: shelf.KeptPoint) -> bool:
    """Whether nothing was replayed yet: the slot reads from where it began."""
    return bool(capture.unread(source, {kept.point.id: (kept.slot, kept.position)}))


def finish(source: Connection, clone: Connection, kept: shelf.KeptPoint, into: Path) -> Replayed:
    """Write quarantine, what was left out and what was skipped to files in `into`, and say what became of everything.
    Safe to repeat."""
    shelf.folder(into)
    progress, lost, left = _progress(clone), Counter[str](), Counter[str]()
    quarantined = 0

    def waiting() -> Iterator[object]:
        nonlocal quarantined
        long = {commit for (commit,) in clone.execute("SELECT DISTINCT commit FROM lastgood.quarantined")}
        for commit, xid, at, reason, changes in clone.execute(
            "SELECT * FROM lastgood.quarantine ORDER BY commit < 0, abs(commit)"
        ):
            quarantined += 1
            if commit in long:
                asked = "SELECT changes FROM lastgood.quarantined WHERE commit = %s ORDER BY number"
                changes += [change for (part,) in clone.execute(asked, [commit]) for change in part]
            lost.update(change["table"] for change in changes)
            yield {**_named(commit, xid, at), "reason": reason, "changes": changes}

    def skipped() -> Iterator[object]:
        for commit, xid, at, count in clone.execute("SELECT * FROM lastgood.skipped ORDER BY commit").fetchall():
            shown = clone.execute("SELECT change FROM lastgood.skipped_changes WHERE xid = %s ORDER BY number", [xid])
            changes = [change for (told,) in shown for change in told]
            more = {"more": count - shown.rowcount} if count > shown.rowcount else {}
            yield {**_named(commit, xid, at), "reason": OF_THE_MIGRATION, "changes": changes, **more}

    def without_place() -> Iterator[object]:
        for commit, at, table, key, row in clone.execute("SELECT * FROM lastgood.left_out ORDER BY commit"):
            left[table] += 1
            yield {**_when(commit, at), "table": table, "key": key, "values": row}

    shelf.write_lines(into / QUARANTINE, waiting())
    shelf.write_lines(into / LEFT_OUT, without_place())
    shelf.write_lines(into / SKIPPED, skipped())
    (nowhere,) = clone.execute("SELECT count(*) FROM lastgood.without_place").fetchone() or (0,)
    return Replayed(
        units="transactions",
        total=progress.total,
        quarantined=quarantined,
        skipped=progress.skipped,
        without_place=int(nowhere),
        skipped_file=str(into / SKIPPED) if progress.skipped else "",
        carried=tuple(clone.execute("SELECT name, rows FROM lastgood.carried ORDER BY name")),
        losses=tuple(Loss(table=t, rows=n, file=str(into / QUARANTINE)) for t, n in lost.most_common()),
        left_out=tuple(Loss(table=t, rows=n, file=str(into / LEFT_OUT)) for t, n in left.most_common()),
        notes=tuple(catalog.came_and_went(source, clone, kept.tables)),
    )


def _named(commit: int, xid: int, at: datetime) -> dict[str, object]:
    """What a transaction is called in the files, or what was read as it was last: of that nobody knows when."""
    if commit <= 0:
        return {"id": f"{xid}-{-commit}", "xid": xid, **_when(commit, at)}
    return {"id": f"{xid}-{lsn(commit)}", "xid": xid, **_when(commit, at)}


def _when(commit: int, at: datetime) -> dict[str, str | None]:
    known = commit > 0
    return {"commit_lsn": lsn(commit) if known else None, "committed_at": at.isoformat() if known else None}


def _told(change: Change) -> Iterator[dict[str, object]]:
    """A change as a person reads it: names as they were when it was made."""
    if isinstance(change, Truncation):
        for emptied in change.relations:
            yield {"table": _label(emptied.schema, emptied.name), "kind": "emptied"}
        return
    relation = change.relation
    kind = "deleted" if change.new is None else "inserted" if change.old is None else "updated"
    rows = {
        when: _shown(dict(zip(relation.columns, row, strict=True)))
        for when, row in (("old", change.old), ("new", change.new))
        if row is not None
    }
    yield {"table": _label(relation.schema, relation.name), "kind": kind, **rows}


def _label(schema: str, name: str) -> str:
    return name if schema == "public" else f"{schema}.{name}"


def _shown(row: Mapping[str, Value]) -> dict[str, str | None]:
    return {name: _text(value) for name, value in row.items()}


def _text(value: Value) -> str | None:
    return "(unchanged)" if isinstance(value, Unsent) else value


def clear(clone: Connection, ledger: Connection) -> None:
    """Take everything of the replay out of the clone, which is then swapped in; how far it got, and what it knew of the
    migration, is noted in the ledger first, for a swap that does not happen: the slot tells neither again. Safe to
    repeat."""
    if not is_begun(clone):
        return
    if _by_transactions(clone):
        progress = _progress(clone)
        clone.execute(_TABLES_LATER)  # which one that an earlier version began may not have
        with ledger.transaction():
            note_replayed(ledger, clone.info.dbname, progress.commit)
            note_migrated(ledger, clone.info.dbname, progress.migrated)
            copied = clone.execute("SELECT FROM lastgood.copied").fetchone() is not None
            _remember(clone, ledger, WHAT_WAITS if copied else (*WHAT_IT_DID, *WHAT_WAITS))
    with clone.transaction():
        for table, kind, name, enabled in clone.execute(_DISABLED).fetchall():
            how = sql.SQL("ALTER TABLE {} {} {} {}")
            was = _ENABLE.get(enabled, sql.SQL("ENABLE"))
            clone.execute(how.format(written(table), was, written(kind), sql.Identifier(name)))
        event_triggers = _event_triggers(clone)
        clone.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(SCHEMA)))
        catalog.set_event_triggers(clone, event_triggers)

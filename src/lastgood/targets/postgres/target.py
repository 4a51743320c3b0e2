"""The database target: observes one database of one server, and carries out the steps of a deploy and of a swap.

Migrations are the release's own command, and down migrations its own SQL; everything else is Postgres' own tools and
SQL. The live database is never dropped and never restored over: it is renamed, and stays.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from math import inf
from pathlib import Path
from time import monotonic
from typing import Final, assert_never
from urllib.parse import quote

import psycopg

from lastgood.core.config import DatabaseConfig
from lastgood.core.errors import ConfigError, LastgoodError, NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.core.facts import BackupFacts, DatabaseFacts, KeptDatabase, ServiceLog
from lastgood.core.migration import DatabaseEvidence, Outlook
from lastgood.core.plan import (
    CatchUp,
    EndCapture,
    ExportWrites,
    Fence,
    LiftFence,
    Migrate,
    MigrateDown,
    RehearseDown,
    ReplayWrites,
    RestoreClone,
    Role,
    SaveDump,
    Seen,
    Step,
    SwapDatabase,
    TakeRestorePoint,
    seen,
)
from lastgood.core.ports import Clock
from lastgood.core.quarantine import QuarantineEntry
from lastgood.core.release import Down, LogPoint, Release, RestorePoint, Shipped
from lastgood.core.repair import RepairPlan, RowRepair
from lastgood.core.report import Check, DryRun, Loss, Progress, Rehearsed, Replayed, RowProgress
from lastgood.targets import child
from lastgood.targets.masking import Masker
from lastgood.targets.postgres import (
    capture,
    catalog,
    clients,
    evidence,
    histories,
    outlook,
    own_dump,
    recovery,
    repair,
    replay,
    requeue,
    row_replay,
    shelf,
    swap,
    template,
    way_down,
    writes,
)
from lastgood.targets.postgres import restore_point as points
from lastgood.targets.postgres.capture import Captures
from lastgood.targets.postgres.connect import APPLICATION, Connection, container_address, limit_statements
from lastgood.targets.postgres.fitting import Start
from lastgood.targets.postgres.noted import COMMAND, Known, Migrations
from lastgood.targets.postgres.pooler import Pooler
from lastgood.targets.postgres.preflight import cautions, free, obstacles
from lastgood.targets.postgres.requeue import Names
from lastgood.targets.postgres.server import (
    LEDGER,
    Server,
    admit,
    databases,
    end_tool,
    held,
    hold,
    holders,
    identity,
    kept,
    ledger_or_maintenance,
    ledger_says,
    note_by_rows,
    note_replayed,
    open_ledger,
    provide_empty,
)

_AGAIN_S: Final = 2.0
QUICK_S: Final = 0.3
"""A round of the catch-up that is shorter is the last: about so long does the rest take behind the fence."""
FENCE_AND_SWAP_S: Final = 0.3
"""What both take together when nobody writes for long; `python -m bench.replay` prints the whole pause."""
TRY_S: Final = 60.0
START_S: Final = 20.0
"""For what a release runs by itself when it starts, on a copy without rows."""
MOST_TRIED: Final = 20_000
"""Transactions of a dry run. They stay open until they are taken back, and every session's looks get dearer by that."""
SLOW_LOOK_S: Final = 0.1
"""A look at all invariants that takes longer is not taken behind the fence; there, the keys are looked at that the last
transactions touched."""
_LAST_CHARACTERS: Final = 800
_HINT: Final = "lastgood doctor"
# lock_not_available: a lock was not had in time
_LOCKED: Final = "55P03"
SAVING: Final = f"{APPLICATION} safety dump"


class PostgresTarget:
    """root: folder of lastgood.yaml. state: where dumps and exports are kept.

    workdir: where the files of a release lie, for its migration command. invariants: SQL by name. repairs: the
    statement that puts a row right, by the invariant that it breaks.
    """

    role = Role.DATABASE

    def __init__(
        self,
        config: DatabaseConfig,
        *,
        root: Path,
        state: Path,
        clock: Clock,
        workdir: Callable[[str], Path],
        invariants: Mapping[str, str],
        repairs: Mapping[str, str],
    ) -> None:
        self._config, self._server = config, Server(config.postgres)
        pgbouncer, live = config.pgbouncer, config.postgres.name
        self._pooler = Pooler(pgbouncer, live=live, mark=state / "clients" / "wait") if pgbouncer else None
        self._clock, self._workdir, self._invariants, self._repairs = clock, workdir, invariants, repairs
        self._points = root / config.restore_points.path
        self._dumps, self._exports, self._scratch = state / "dumps", state / "exports", state / "scratch"
        self._captures = Captures(self._server, self._points / points.CAPTURES)
        self._migrations = Migrations(self._points)
        self._migrated, self._ends = state / "migrated", state / "migrations"
        self._replays, self._caught_up = state / "replays", state / "replays" / "caught-up"
        self._tried, self._clients = state / "tried", state / "clients"
        self._rehearsals, self._aside = state / "rehearsals", state / "aside"
        self._progress: Progress | RowProgress | None = None

    def observe(self) -> DatabaseFacts:
        observed_at = self._clock.now()
        proved = points.proved(self._points, self._server.live)
        with _answers(self._server, sent=False), ledger_or_maintenance(self._server) as maintenance:
            known = databases(maintenance)
            slots, left = self._captures.alive(maintenance), self._captures.left(maintenance)
            captured = points.captured(self._points, self._server.live, slots)
            told = ledger_says(self._server, maintenance)
            facts = DatabaseFacts(
                observed_at=observed_at,
                database=self._server.live,
                exists=known.get(self._server.live, False),
                fingerprint="",
                size_bytes=0,
                restore_points=frozenset(proved),
                manifests=tuple(proved.items()),
                databases=frozenset(known),
                exports=shelf.names(self._exports),
                dumps=shelf.names(self._dumps),
                swaps=told.swaps,
                captures=frozenset(captured),
                # also of one whose restore point was never kept, because its process was killed
                capture_bytes=sum(slots.get(slot, 0) for slot in left),
                capture_own_bytes=capture.kept_since_before(maintenance, points.ready(self._points, self._server.live)),
                capture_left=bool(left),
                slot_limit_bytes=capture.slot_limit(maintenance),
                caught_up=shelf.names(self._caught_up),
                replays=shelf.names(self._replays),
                filled=told.filled,
                pools=self._pooler is not None,
                paused=self._pooler.paused() if self._pooler else False,
                rehearsals=shelf.names(self._rehearsals),
            )
            return self._with_contents(facts, maintenance, spent=told.spent) if facts.exists else facts

    def _with_contents(self, facts: DatabaseFacts, maintenance: Connection, *, spent: frozenset[str]) -> DatabaseFacts:
        row = maintenance.execute("SELECT pg_database_size(%s)", [facts.database]).fetchone()
        with self._server.connect() as live:
            finished, failed = histories.known(live)
            foreign = points.foreign(self._points, facts.restore_points, live)
            goes_on = {point for point in facts.filled - spent if self._server.clone_name(point) in facts.databases}
            whole = capture.unread(maintenance, points.positions(self._points, facts.captures))
            return replace(
                facts,
                foreign=foreign,
                # of one of another database that is asked by nobody any more
                captures=facts.captures & (foreign | goes_on | (whole - spent)),
                fingerprint=catalog.fingerprint(catalog.objects(live)),
                size_bytes=int(row[0]) if row else 0,
                restore_log_bytes=capture.restore_log(live),
                migrations=finished,
                failed_migrations=failed,
            )

    def apply(self, step: Step) -> None:
        action = step.action
        if step.role is not Role.DATABASE:
            raise Refused(f"{step.name} is a step for {step.role.value}, not for the database", hint="lastgood plan")
        if seen(step, self.observe()) is Seen.DONE:
            return
        with _answers(self._server, sent=True):
            match action:
                case TakeRestorePoint() | SaveDump() | RehearseDown() | RestoreClone():
                    self._put_beside(action, deadline_s=step.deadline_s)
                case Migrate():
                    self._migrate(action, deadline_s=step.deadline_s)
                case MigrateDown():
                    self._migrate_down(action, deadline_s=step.deadline_s)
                case Fence():
                    self._fence(action)
                case LiftFence():
                    swap.lift(self._server, action)
                    self._let_in()
                case ExportWrites():
                    self._export(action, deadline_s=step.deadline_s)
                case CatchUp():
                    self._catch_up(action, deadline_s=step.deadline_s)
                case ReplayWrites():
                    self._replay(action, deadline_s=step.deadline_s)
                case EndCapture():
                    self._close_note()
                    self._captures.end()
                case SwapDatabase():
                    kept = self._kept(action)
                    swap.swap(self._server, action, kept, migrations=self._migrations, deadline_s=step.deadline_s)
                    self._let_in()
                case _:
                    raise Refused(f"{step.name} is not a step for the database", hint="lastgood plan")

    def _put_beside(
        self, action: TakeRestorePoint | SaveDump | RehearseDown | RestoreClone, *, deadline_s: float
    ) -> None:
        """What changes nothing that is live."""
        match action:
            case TakeRestorePoint():
                self._take(action, deadline_s=deadline_s)
            case SaveDump():
                self._save_dump(action, deadline_s=deadline_s)
            case RehearseDown():
                self._rehearse(action, deadline_s=deadline_s)
            case RestoreClone():
                kept = self._kept(action)
                points.restore_again(self._server, self._points, kept, deadline_s=deadline_s, clock=self._clock)
            case _:
                assert_never(action)

    def _take(self, action: TakeRestorePoint, *, deadline_s: float) -> None:
        self._close_note()
        points.take(
            self._server,
            self._points,
            action.restore_point,
            keep=self._config.restore_points.keep,
            lossless=self._config.restore_points.require_lossless,
            pause_s=action.pause_s,
            mark=lambda: self._mark(action.restore_point),
            deadline_s=deadline_s,
            clock=self._clock,
        )
        self._note_none(points.read(self._points, action.restore_point))
        with self._server.maintenance() as maintenance:
            provide_empty(maintenance, self._server)

    def _mark(self, restore_point: str) -> LogPoint | None:
        if self._config.pgbackrest is None:
            return None
        return recovery.mark(self._server, restore_point, secrets.token_hex(3))

    def _kept(
        self, action: CatchUp | ExportWrites | MigrateDown | RehearseDown | ReplayWrites | RestoreClone | SwapDatabase
    ) -> shelf.KeptPoint:
        """What is kept of a step's restore point, and is what the plan was made with."""
        return points.read(self._points, action.restore_point, manifest=action.manifest)

    def _migrate(self, action: Migrate, *, deadline_s: float) -> None:
        """Run the release's own command. Whatever it says, the history in the database tells what it did."""
        config = self._config.migrations
        if config is None:
            raise ConfigError("database.migrations: expected the command that applies them")
        at = self._workdir(action.release)
        if missing := set(action.migrations) - set(histories.shipped(config, at)):
            raise Refused(f"{action.release} does not ship {', '.join(sorted(missing))}", hint="lastgood releases")
        began = self._note_end()
        kept = points.newest(self._points, self._server.live)
        if kept is not None:
            with self._server.connect() as live:
                self._migrations.begin(live, kept)
        _, failed = self._of_the_release("command", config.command, at, deadline_s=deadline_s)
        if failed:
            raise OutcomeUnknown(f"the migration command {failed}")
        if kept is not None:
            with self._server.connect() as live:
                self._migrations.end(live, kept, at_once=True)
        self._captures.extend()
        if kept is not None:
            self._note_rewritten(kept)
        self._note_end(since=began)

    def _of_the_release(
        self, setting: str, words: Sequence[str], at: Path, *, deadline_s: float, url: str = ""
    ) -> tuple[str, str]:
        """Run a command of database.migrations where the release's files lie; return what it printed, and how it
        failed. url: of the database that it is to go to, by default the live one."""
        try:
            return self._ended(setting, words, at, deadline_s=deadline_s, url=url or self._url(self._server.live))
        except child.Overran as error:
            return "", str(error)

    def _ended(self, setting: str, words: Sequence[str], at: Path, *, deadline_s: float, url: str) -> tuple[str, str]:
        """The same, of one that ends. Raises Overran of one that does not."""
        given = {"DATABASE_URL": url, "PGAPPNAME": COMMAND}
        try:
            ended = child.run(words, deadline_s=deadline_s, env=dict(os.environ) | given, cwd=at)
        except OSError as error:
            raise ConfigError(f"database.migrations.{setting}: {words[0]}: {error.strerror}") from None
        if not ended.code:
            return ended.out, ""
        said = Masker([given]).clean(ended.err or ended.out)  # before it is cut, or a part of a secret might be left
        return "", f"ended {ended.code}: {' '.join(said.split())[-_LAST_CHARACTERS:]}"

    def _start_of(self, release: Release) -> Start | None:
        """Runs what a release runs by itself when it starts; None where that migrates nothing."""
        words = self._config.migrations.at_start if self._config.migrations else None
        if words is None:
            return None
        at = self._workdir(release.id)

        def start(database: str) -> str:
            try:
                return self._ended("at_start", words, at, deadline_s=START_S, url=self._url(database))[1]
            except child.Overran as error:
                raise Refused(str(error)) from error

        return start

    def _rehearse(self, action: RehearseDown, *, deadline_s: float) -> None:
        kept, server = self._kept(action), self._server
        with way_down.failure_kept(self._rehearsals, action), _answers(server, sent=False), ExitStack() as stack:
            dump = shelf.read(
                self._dumps / f"{shelf.checked(action.dump)}.json",
                shelf.KEPT_DUMP,
                what=f"dump {action.dump}",
                hint=_HINT,
            )
            with server.maintenance() as maintenance:
                there = kept.point.clone in databases(maintenance)
            done = way_down.rehearse(
                server,
                action,
                kept,
                dump=self._dumps / dump.path,
                scratch=self._scratch,
                clone=stack.enter_context(server.connect(kept.point.clone)) if there else None,
                invariants=self._invariants,
                deadline_s=deadline_s,
            )
        shelf.write(
            shelf.folder(self._rehearsals) / f"{shelf.checked(action.rehearsal)}.json", shelf.KEPT_REHEARSAL, done
        )

    def _migrate_down(self, action: MigrateDown, *, deadline_s: float) -> None:
        kept, server = self._kept(action), self._server
        with way_down.failure_kept(self._rehearsals, action), _answers(server, sent=True):
            with server.connect() as live:
                points.of_this_database(live, kept)
            way_down.carry_out(server, action, kept, shelf.folder(self._aside), deadline_s=deadline_s)

    def _close_note(self) -> None:
        """Look at a migration that was cut off while the log has its marks: a capture is about to end. One that cannot
        be looked at holds nothing up: its note stays open, which is told later."""
        if (kept := points.newest(self._points, self._server.live)) is None:
            return
        name = self._server.live
        with self._server.maintenance() as maintenance:
            there = databases(maintenance)
            if kept.identity and kept.identity.oid:  # it may have another name since
                row = maintenance.execute("SELECT datname FROM pg_database WHERE oid = %s", [kept.identity.oid])
                (name,) = row.fetchone() or ("",)
        if there.get(name, False):
            with suppress(Refused), self._server.connect(name) as database:
                points.of_this_database(database, kept)
                self._migrations.end(database, kept, at_once=False)

    def _note_rewritten(self, kept: shelf.KeptPoint) -> None:
        """Keep which columns the migration rewrote, while that shows: a replay by rows must know."""
        with self._server.connect() as live, self._server.connect(kept.point.clone) as clone:
            migration = self._migrations.since(live, kept).xids
            rewritten = row_replay.rewritten_columns(live, clone, kept, migration=migration)
        shelf.write(shelf.folder(self._migrated) / f"{kept.point.id}.json", shelf.KEPT_REWRITTEN, rewritten)

    def _note_none(self, kept: shelf.KeptPoint) -> None:
        """Keep that no migration came with a restore point that was taken just now."""
        self._migrations.none(kept)
        position = kept.position or "0/0"
        self._note_seen(kept, shelf.KeptMigration(began=position, ended=position, touched={}))

    def _note_end(self, *, since: str = "") -> str:
        """Keep where the log was, and what a replay must know of keys: which were written to when it begins, and which
        are others when it is over; return the position. since: of when it began, by default it begins now."""
        if (kept := points.newest(self._points, self._server.live)) is None:
            return ""
        with self._server.connect() as live:
            # the end of what is inserted: also who does not wait until his commit is on disk is before it
            ((found,),) = live.execute("SELECT pg_current_wal_insert_lsn()::text")
            position = str(found)
            if since:
                with self._server.connect(kept.point.clone) as clone:
                    keys = row_replay.other_keys(live, clone, kept, migration=self._migrations.since(live, kept).xids)
                noted = shelf.KeptMigration(began=since, ended=position, keys=keys, touched=self._touched(kept))
                self._note_seen(kept, noted)
            else:
                self._note_seen(kept, shelf.KeptMigration(began=position, touched=self._touched(kept)))
                self._note_touched(live, kept)
        return position

    def _note_touched(self, live: Connection, kept: shelf.KeptPoint) -> None:
        """Keep which rows were written to before a migration begins: since each restore point of this database, one of
        which may be gone back to over several deploys. What was kept when another one began stays."""
        for point in points.every(self._points):
            if point.identity == kept.identity and (before := self._touched(point)) is not None:
                migration = self._migrations.since(live, point).xids
                found = writes.touched(live, point.tables, since=point.point.snapshot, migration=migration)
                self._note_seen(point, replace(self._seen(point), touched=writes.either(before, found)))

    def _touched(self, kept: shelf.KeptPoint) -> dict[int, shelf.TouchedKeys] | None:
        return self._seen(kept).touched if (self._ends / f"{kept.point.id}.json").exists() else None

    def _seen(self, kept: shelf.KeptPoint) -> shelf.KeptMigration:
        path = self._ends / f"{kept.point.id}.json"
        return shelf.read(path, shelf.KEPT_MIGRATION, what=path.stem, hint=_HINT)

    def _note_seen(self, kept: shelf.KeptPoint, noted: shelf.KeptMigration) -> None:
        shelf.write(shelf.folder(self._ends) / f"{kept.point.id}.json", shelf.KEPT_MIGRATION, noted)

    def _noted_ends(self, kept: shelf.KeptPoint, known: Known) -> tuple[shelf.KeptMigration, ...]:
        """Return what was noted of each migration since a restore point, its own first; nothing where the schema was
        changed without a step."""
        deploys = self._migrations.deploys(kept)
        if not known.by_steps or not all((self._ends / f"{of.point.id}.json").exists() for of in deploys):
            return ()
        return tuple(map(self._seen, deploys))

    def _rewritten_since(self, kept: shelf.KeptPoint) -> dict[int, tuple[int, ...]]:
        """Return the columns by table that the migrations since a restore point are known to have rewritten: each
        deploy took one of its own, on the same tables."""
        found: dict[int, tuple[int, ...]] = {}
        for deploy in self._migrations.deploys(kept):
            path = self._migrated / f"{deploy.point.id}.json"
            if path.exists():
                rewritten = shelf.read(path, shelf.KEPT_REWRITTEN, what=path.stem, hint=_HINT)
                for table, columns in rewritten.items():
                    found[table] = (*found.get(table, ()), *columns)
        return found

    def _url(self, database: str) -> str:
        """The address of a database in libpq's form, which Prisma and others read."""
        postgres = self._config.postgres
        user = quote(postgres.user, safe="")
        password = f":{quote(postgres.password.reveal(), safe='')}" if postgres.password else ""
        host = container_address(postgres.container) if postgres.container else postgres.host
        name = quote(database, safe="")
        if host.startswith("/"):
            return f"postgresql://{user}{password}@/{name}?host={quote(host, safe='')}&port={postgres.port}"
        return f"postgresql://{user}{password}@{host}:{postgres.port}/{name}"

    def _save_dump(self, action: SaveDump, *, deadline_s: float) -> None:
        dump = shelf.folder(self._dumps) / f"{shelf.checked(action.name)}.dump"
        with self._server.maintenance() as maintenance:
            end_tool(maintenance, SAVING, (self._server.live,))
        dump.unlink(missing_ok=True)
        self._server.tools.dump(self._server.live, dump, session=SAVING, deadline_s=deadline_s)
        manifest = shelf.KeptDump(
            name=action.name,
            path=dump.name,
            sha256=shelf.hashed(dump, what=f"dump {action.name}", hint=_HINT),
            size_bytes=dump.stat().st_size,
        )
        shelf.write(self._dumps / f"{action.name}.json", shelf.KEPT_DUMP, manifest)

    def _fence(self, action: Fence) -> None:
        """Clients of a pooler wait from here until the swap or the lift. Where they cannot be made to, they are thrown
        out: that holds up no rollback."""
        noted = shelf.folder(self._clients) / f"{shelf.checked(action.kept_as)}.json"
        if not noted.exists():
            with self._server.maintenance() as maintenance:
                shelf.write(noted, clients.CLIENTS, clients.of(maintenance, self._server.live))
        swap.prepare(self._server)
        if self._pooler:
            with suppress(LastgoodError):
                self._pooler.pause()
        try:
            swap.fence(self._server, action)
        except (LastgoodError, psycopg.Error):
            with suppress(LastgoodError, psycopg.Error), self._server.maintenance() as maintenance:
                if action.kept_as not in databases(maintenance):
                    self._let_in()
            raise

    def _let_in(self) -> None:
        if self._pooler:
            self._pooler.resume()

    def _export(self, action: ExportWrites, *, deadline_s: float) -> None:
        """Compare the fenced database with the clone, and write down what differs."""
        server, kept = self._server, self._kept(action)
        with server.maintenance() as maintenance:
            known = databases(maintenance)
            for needed in (action.kept_as, kept.point.clone):
                if needed not in known:
                    raise Refused(f"database {needed} is not there, so what was written cannot be told", hint=_HINT)
            if server.live in known:
                raise Refused(f"{server.live} is in its place: behind no fence nothing can be counted exactly")
            admit(maintenance, action.kept_as)
        folder = self._exports / shelf.checked(action.export)
        shutil.rmtree(folder, ignore_errors=True)
        shelf.folder(folder)
        with self._compared(kept, action.kept_as, deadline_s=deadline_s) as (comparison, replaced, _, go_on):
            exported = writes.export(comparison, kept, catalog.tables(replaced), folder, go_on=go_on)
        shelf.write(self._exports / f"{action.export}.json", shelf.KEPT_EXPORT, exported)

    @contextmanager
    def _compared(
        self, kept: shelf.KeptPoint, replaced_as: str, *, deadline_s: float
    ) -> Generator[tuple[writes.Comparison, Connection, Connection, Callable[[RowProgress], None]]]:
        """Lend a comparison of the replaced database with the clone, both connections, and what ends it in time."""
        until = self._clock.now() + timedelta(seconds=deadline_s)
        with (
            self._server.connect(replaced_as, statement_s=deadline_s) as replaced,
            self._server.connect(kept.point.clone, statement_s=deadline_s) as clone,
        ):
            points.of_this_database(replaced, kept)

            def go_on(so_far: RowProgress) -> None:
                self._progress = so_far
                left_s = (until - self._clock.now()).total_seconds()
                if left_s <= 0:
                    said = f"the rows were not compared within {deadline_s:.0f} s"
                    raise Retryable(said, delay_s=_AGAIN_S, hint=_HINT)
                limit_statements(replaced, left_s)
                limit_statements(clone, left_s)

            known = self._migrations.since(replaced, kept)
            comparison = writes.Comparison(
                replaced,
                clone,
                since=kept.point.snapshot,
                migration=known.xids,
                before=writes.WrittenBefore(self._noted_ends(kept, known)),
            )
            try:
                yield comparison, replaced, clone, go_on
            finally:
                self._progress = None

    def _catch_up(self, action: CatchUp, *, deadline_s: float) -> None:
        """Replay until a round is short, or no shorter than the one before: what is left then is what a round takes."""
        took_s = inf
        with self._replaying(self._kept(action), self._server.live, deadline_s=deadline_s) as (replaying, go_on):
            replaying.go_on(go_on=go_on)
            # a look that is slow now would be the pause behind the fence
            replaying.narrow = replaying.look_s > SLOW_LOOK_S
            stale = replaying.refresh_views()
            replaying.copy_for_the_next()
            before_s = inf
            while took_s >= QUICK_S and (took_s < before_s or took_s == inf):
                before_s, began = took_s, monotonic()
                replaying.go_on(go_on=go_on)
                took_s = monotonic() - began
        shelf.folder(shelf.folder(self._replays) / self._caught_up.name)
        caught_up = shelf.CaughtUp(took_s=took_s, narrow=replaying.narrow, stale=stale)
        shelf.write(self._caught_up / f"{shelf.checked(action.replay)}.json", shelf.CAUGHT_UP, caught_up)

    def _replay(self, action: ReplayWrites, *, deadline_s: float) -> None:
        """Behind the fence: put the rest into the clone, and keep what became of everything."""
        folder, kept = shelf.folder(self._replays) / shelf.checked(action.replay), self._kept(action)
        with self._server.maintenance() as maintenance:
            if self._server.live in databases(maintenance):
                raise Refused(f"{self._server.live} is in its place: behind no fence nothing is the last write")
            admit(maintenance, action.kept_as)
        if action.by_rows:
            replayed = self._carry_rows(action, kept, folder, deadline_s=deadline_s)
        else:
            path = self._caught_up / f"{shelf.checked(action.replay)}.json"
            nothing = shelf.CaughtUp(took_s=inf)
            before = shelf.read(path, shelf.CAUGHT_UP, what=path.stem, hint=_HINT) if path.exists() else nothing
            with self._replaying(kept, action.kept_as, deadline_s=deadline_s, narrow=before.narrow) as (
                replaying,
                go_on,
            ):
                replaying.go_on(go_on=go_on)
                if replaying.carries_rows:
                    with open_ledger(self._server) as ledger:
                        note_by_rows(ledger, kept.point.clone)
                replaying.carry_partitions(action.replay, go_on=go_on)
                replayed = replaying.finish(folder)
            replayed = replace(replayed, notes=(*replayed.notes, *catalog.to_refresh(before.stale)))
        shelf.write(self._replays / f"{action.replay}.json", shelf.KEPT_REPLAY, replayed)

    def _carry_rows(self, action: ReplayWrites, kept: shelf.KeptPoint, folder: Path, *, deadline_s: float) -> Replayed:
        with open_ledger(self._server) as ledger:
            note_by_rows(ledger, kept.point.clone)
        with self._compared(kept, action.kept_as, deadline_s=deadline_s) as (comparison, replaced, clone, go_on):
            return self._carried(
                comparison, replaced, clone, kept, folder, replay=action.replay, go_on=go_on, deadline_s=deadline_s
            )

    def _carried(
        self,
        comparison: writes.Comparison,
        replaced: Connection,
        clone: Connection,
        kept: shelf.KeptPoint,
        folder: Path,
        *,
        replay: str,
        go_on: Callable[[RowProgress], None],
        deadline_s: float,
    ) -> Replayed:
        hold(clone, kept.point.clone)
        if (before := row_replay.carried(clone, replay)) is not None:
            return before
        points.clone_as_proved(self._server, kept, deadline_s=deadline_s)
        known = self._migrations.since(replaced, kept)
        replayed = row_replay.carry(
            comparison,
            replaced,
            clone,
            kept,
            folder,
            replay=replay,
            invariants=self._invariants,
            rewritten=self._rewritten_since(kept),
            migrations=self._noted_ends(kept, known),
            go_on=go_on,
        )
        return replace(replayed, notes=(*replayed.notes, *known.doubts))

    @contextmanager
    def _replaying(
        self, kept: shelf.KeptPoint, database: str, *, deadline_s: float, narrow: bool = False
    ) -> Generator[tuple[replay.Replay, Callable[[replay.Progress], None]]]:
        """Lend a replay of what was written to `database` since, and what ends it in time."""
        server = self._server
        until = self._clock.now() + timedelta(seconds=deadline_s)
        with (
            server.connect(database, statement_s=deadline_s) as source,
            server.connect(kept.point.clone, statement_s=deadline_s) as clone,
            open_ledger(server) as ledger,
        ):
            points.of_this_database(source, kept)

            def go_on(so_far: replay.Progress) -> None:
                at, end = replay.place(source, kept.slot, so_far)
                self._progress = Progress(done=so_far.total, at_bytes=at, end_bytes=end)
                if (until - self._clock.now()).total_seconds() <= 0:
                    raise Retryable(f"the replay did not end within {deadline_s:.0f} s", delay_s=_AGAIN_S, hint=_HINT)

            hold(clone, kept.point.clone)  # one that was killed may be about to note what it put there
            self._check_that_it_fits(kept, source, clone, ledger)
            if not replay.is_begun(clone) and not held(ledger, kept.point.clone).commit:
                points.clone_as_proved(server, kept, deadline_s=deadline_s)
            note_replayed(ledger, kept.point.clone, 0)
            # of one that was cut off: once the slot is read nobody can tell
            self._migrations.end(source, kept, at_once=False)
            try:
                yield self._replay_of(kept, source, clone, ledger, narrow=narrow), go_on
            finally:
                self._progress = None

    def _check_that_it_fits(
        self, kept: shelf.KeptPoint, source: Connection, clone: Connection, ledger: Connection
    ) -> None:
        """Raise Refused where a replay by transactions would lack some, or apply some twice."""
        if why := replay.why_not(source, clone, kept, held(ledger, kept.point.clone)):
            told = f"the transactions since {kept.point.id} cannot be replayed into {kept.point.clone}: {why}"
            raise Refused(told, hint="lastgood rollback")

    def _replay_of(
        self,
        kept: shelf.KeptPoint,
        source: Connection,
        clone: Connection,
        ledger: Connection,
        *,
        narrow: bool = False,
    ) -> replay.Replay:
        known = self._migrations.since(source, kept)
        ended = [migration.ended for migration in self._noted_ends(kept, known)]
        return replay.Replay(
            source,
            clone,
            kept,
            migration=known,
            migrated=max(map(replay.read_lsn, ended)) if ended and all(ended) else None,
            ledger=ledger,
            invariants=self._invariants,
            merging=self._config.merge,
            rewritten=self._rewritten_since(kept),
            narrow=narrow,
        )

    def preflight(self) -> tuple[str, ...]:
        with _answers(self._server, sent=False):
            return obstacles(self._server, shelf.folder(self._points), self._config.migrations, self._config.merge)

    def cautions(self) -> tuple[str, ...]:
        with _answers(self._server, sent=False):
            return cautions(self._server, shelf.folder(self._points), recovers=self._config.pgbackrest is not None)

    def room(self) -> tuple[tuple[str, int], ...]:
        with _answers(self._server, sent=False), self._server.connect() as live:
            return free(live, self._server, shelf.folder(self._points))

    def thrown_out_because(self) -> tuple[str, ...]:
        return self._pooler.obstacles() if self._pooler else ()

    def ships(self, release: str) -> Shipped:
        at = self._workdir(release)
        names: tuple[str, ...] = ()
        if self._config.migrations:
            names = histories.shipped(self._config.migrations, at)
        statements: tuple[str, ...] = ()
        if self._config.statements:
            files = sorted(at.glob(self._config.statements))
            if not files:
                raise ConfigError(f"database.statements: {at / self._config.statements}: no file matches")
            statements = tuple(path.read_text(encoding="utf-8").strip() for path in files)
        return Shipped(migrations=names, statements=statements, downs=self._downs(at, names))

    def _downs(self, at: Path, shipped: tuple[str, ...]) -> tuple[Down, ...]:
        """What takes the migrations down again that the database does not have yet."""
        config = self._config.migrations
        beside = histories.downs(config, at) if config and not config.down else ()
        if config is None or not (config.down or beside):
            return ()
        with _answers(self._server, sent=False), self._server.connect() as live:
            there = histories.known(live)[0]
        new = tuple(name for name in shipped if name not in there)
        if not config.down or not new:
            return tuple(down for down in beside if set(down.migrations) <= set(new))
        words = histories.filled(config, new=new, there=there)
        printed, failed = self._of_the_release("down", words, at, deadline_s=config.timeout)
        if failed or not printed.strip():
            told = failed or "printed no SQL"
            raise Refused(f"database.migrations.down: {words[0]} {told}", hint="run it by hand")
        return (Down(migrations=new, sql=printed),)

    def foresee(self, release: Release, migrations: Sequence[str], *, last_good: Release | None) -> Outlook:
        config, server = self._config.migrations, self._server
        if config is None:
            raise ConfigError("database.migrations: expected the command that applies them")
        at, start = self._workdir(release.id), self._start_of(last_good) if last_good else None
        scripts = None if config.on_copy else histories.scripts(config, at, migrations)
        if scripts is not None:
            return outlook.tried(
                server,
                lambda copy, _: outlook.run_scripts(copy, scripts),
                taken_back=True,
                last_good=last_good,
                start=start,
                scratch=self._scratch,
            )
        if not config.on_copy:
            why = "database.migrations.on_copy is not set, so the command is not tried on a copy"
            return outlook.unseen(why, last_good)

        def run(copy: Connection, left_s: Callable[[], float]) -> None:
            url = self._url(copy.info.dbname)
            _, failed = self._of_the_release("command", config.command, at, deadline_s=left_s(), url=url)
            if failed:
                raise Refused(f"the migration command {failed}, on a copy without rows", hint=_HINT)
            if missing := set(migrations) - set(histories.known(copy)[0]):
                raise Refused(f"the migration command did not apply {', '.join(sorted(missing))} to a copy", hint=_HINT)

        before = self._schema_and_history()
        found = outlook.tried(server, run, taken_back=False, last_good=last_good, start=start, scratch=self._scratch)
        if self._schema_and_history() != before:
            raise NeedsHuman(
                f"the migration command was to be tried on a copy, and meanwhile {server.live} itself was migrated",
                hint="take database.migrations.on_copy out: the command does not go by DATABASE_URL alone",
            )
        return found

    def _schema_and_history(self) -> tuple[str, object]:
        with _answers(self._server, sent=False), self._server.connect() as live:
            return catalog.fingerprint(catalog.objects(live)), histories.known(live)

    def restore_point(self, restore_point: str) -> RestorePoint:
        return points.first_read(self._points, restore_point)

    def prove(self, restore_point: RestorePoint, *, deadline_s: float) -> None:
        kept = points.as_journaled(self._points, restore_point)
        with _answers(self._server, sent=False):
            with self._server.connect() as live:
                points.of_this_database(live, kept)
            points.dump_as_proved(self._points, restore_point)
            points.clone_as_proved(self._server, kept, deadline_s=deadline_s)

    def register(
        self,
        dump: Path,
        *,
        name: str | None,
        taken_at: datetime | None,
        expected: Mapping[str, str],
        known: Collection[RestorePoint],
        deadline_s: float,
    ) -> RestorePoint:
        with _answers(self._server, sent=False):
            return own_dump.register(
                self._server,
                self._points,
                dump,
                name=name,
                taken_at=taken_at,
                expected=expected,
                known=known,
                deadline_s=deadline_s,
                clock=self._clock,
            )

    def backups(self) -> BackupFacts | None:
        if (config := self._config.pgbackrest) is None:
            return None
        with _answers(self._server, sent=False):
            return recovery.look(self._server, config, owner=str(self._points))

    def recover(
        self,
        to: LogPoint,
        *,
        expected: Mapping[str, str],
        known: Collection[RestorePoint],
        deadline_s: float,
        progress: Callable[[str], None],
    ) -> RestorePoint:
        if (config := self._config.pgbackrest) is None:
            raise Refused("pgBackRest is not configured", hint="database.pgbackrest in lastgood.yaml")
        with _answers(self._server, sent=False):
            return recovery.recover(
                self._server,
                config,
                self._points,
                to,
                owner=str(self._points),
                expected=expected,
                known=known,
                deadline_s=deadline_s,
                clock=self._clock,
                progress=progress,
            )

    def inspect(
        self,
        *,
        since: RestorePoint,
        target: Release,
        downs: Sequence[Down] = (),
        logs: Sequence[ServiceLog] = (),
    ) -> DatabaseEvidence:
        kept = points.as_journaled(self._points, since)
        with _answers(self._server, sent=False):
            return evidence.collect(
                self._server,
                kept,
                target,
                downs,
                migrations=self._migrations,
                logs=logs,
                start=self._start_of(target),
                rewritten=self._rewritten_since(kept),
                noted=lambda known: self._noted_ends(kept, known),
                rehearsals=self._rehearsals,
                invariants=self._invariants,
                dumps=self._points,
                scratch=self._scratch,
                clock=self._clock,
            )

    def lossy_because(self, *, copied: bool = False) -> tuple[str, ...]:
        with _answers(self._server, sent=False):
            return capture.obstacles(self._server, copied=copied)

    def not_copied_because(self) -> tuple[str, ...]:
        with _answers(self._server, sent=False):
            return template.obstacles(self._server)

    def try_replay(self, of: CatchUp | ReplayWrites | SwapDatabase) -> DryRun:
        kept = self._kept(of)
        with _answers(self._server, sent=False):
            match of:
                case CatchUp():
                    return self._try_transactions(kept)
                case ReplayWrites():
                    return self._try_rows(of, kept)
                case SwapDatabase():
                    return self._try_swap(kept)

    def _try_transactions(self, kept: shelf.KeptPoint) -> DryRun:
        server = self._server
        with (
            open_ledger(server) as ledger,
            server.connect(server.live, statement_s=TRY_S) as source,
            server.connect(kept.point.clone, statement_s=TRY_S) as clone,
            clone.transaction(force_rollback=True),
        ):
            hold(clone, kept.point.clone)
            self._check_that_it_fits(kept, source, clone, ledger)
            replaying = self._replay_of(kept, source, clone, ledger)
            replayed, whole = replaying.tried(self._tried, most=MOST_TRIED, seconds=TRY_S / 2)
            looks_s = 2 * min(replaying.look_s, SLOW_LOOK_S)
        return DryRun(replayed=replayed, whole=whole, pause_s=FENCE_AND_SWAP_S + QUICK_S + looks_s)

    def _try_rows(self, of: ReplayWrites, kept: shelf.KeptPoint) -> DryRun:
        """Behind the fence the rows are compared twice: once for the export, and once to be carried."""
        began = monotonic()
        with (
            self._compared(kept, self._server.live, deadline_s=TRY_S) as (comparison, live, clone, go_on),
            live.transaction(),
            clone.transaction(force_rollback=True),
        ):
            # users go on writing: everything is compared with how it was at one moment
            live.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            live.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            replayed = self._carried(
                comparison, live, clone, kept, self._tried, replay=of.replay, go_on=go_on, deadline_s=TRY_S
            )
        return DryRun(replayed=replayed, whole=True, pause_s=FENCE_AND_SWAP_S + 2 * (monotonic() - began))

    def _try_swap(self, kept: shelf.KeptPoint) -> DryRun:
        """Behind the fence the clone is looked through whole."""
        began = monotonic()
        points.clone_as_proved(self._server, kept, deadline_s=TRY_S)
        pause_s, then = FENCE_AND_SWAP_S + monotonic() - began, dict(kept.point.rows)
        with self._server.connect(statement_s=TRY_S) as live:
            more = Counter(
                {table: rows - then.get(table, 0) for table, rows in catalog.count_rows(live, catalog.tables(live))}
            )
        return DryRun(replayed=None, whole=True, pause_s=pause_s, more=tuple((+more).most_common()))

    def progress(self) -> Progress | RowProgress | None:
        return self._progress

    def replayed(self, replay: str) -> Replayed:
        path = self._replays / f"{shelf.checked(replay)}.json"
        return shelf.read(path, shelf.KEPT_REPLAY, what=f"replay {replay}", hint="lastgood explain")

    def rehearsed(self, rehearsal: str) -> Rehearsed:
        path = self._rehearsals / f"{shelf.checked(rehearsal)}.json"
        return shelf.read(path, shelf.KEPT_REHEARSAL, what=f"rehearsal {rehearsal}", hint="lastgood explain")

    def set_aside(self, aside: str) -> tuple[Loss, ...]:
        path = self._aside / f"{shelf.checked(aside)}.json"
        return shelf.read(path, shelf.KEPT_ASIDE, what=f"what {aside} set aside", hint="lastgood explain")

    def quarantine(self) -> tuple[QuarantineEntry, ...]:
        return tuple(requeue.entries(self._replays))

    def requeue(
        self, entry: QuarantineEntry, *, replay: ReplayWrites, about_to_commit: Callable[[int], None]
    ) -> tuple[str, ...]:
        with _answers(self._server, sent=True):
            names = self._names(replay)
            with self._server.connect() as live:
                self._check_not_there(replay, live)
                return requeue.requeue(
                    live,
                    entry,
                    names,
                    invariants=self._invariants,
                    merging=self._config.merge,
                    about_to_commit=about_to_commit,
                )

    def _check_not_there(self, of: ReplayWrites, live: Connection) -> None:
        """Raise Refused where a swap was taken back: the live database is then the one that was written to, with all
        that waits."""
        if of.restore_point in shelf.names(self._points) and self._kept(of).identity == identity(live):
            raise Refused(
                f"{self._server.live} is the database again to which this was written: it is in it already",
                hint="lastgood quarantine discard ID -m 'the swap was taken back'",
            )

    def _names(self, of: ReplayWrites) -> Names:
        """What the migration renamed, as far as restore point and replaced database are still there."""
        with self._server.maintenance() as maintenance:
            there = databases(maintenance).get(of.kept_as, False)
        if not there or of.restore_point not in shelf.names(self._points):
            return Names()
        kept = self._kept(of)
        with self._server.connect(of.kept_as) as replaced:
            points.of_this_database(replaced, kept)
            return Names(then=kept.tables, now=catalog.tables(replaced))

    def repairs(self, *, since: RestorePoint) -> RepairPlan:
        kept, server = points.as_journaled(self._points, since), self._server
        with _answers(server, sent=False):
            with server.maintenance() as maintenance:
                if since.clone not in databases(maintenance):
                    gone = f"{since.clone}, the clone of {since.id}, is gone: there is nothing to compare with"
                    raise Refused(gone, hint="lastgood restore-points list")
            with server.connect() as live, server.connect(since.clone) as clone:
                points.of_this_database(live, kept)
                points.schema_as_proved(clone, kept)
                return repair.plan(live, clone, kept, invariants=self._invariants, statements=self._repairs)

    def repair(self, rows: Sequence[RowRepair], *, about_to_commit: Callable[[int], None]) -> None:
        with _answers(self._server, sent=True), self._server.connect() as live:
            repair.carry_out(live, rows, invariants=self._invariants, about_to_commit=about_to_commit)

    def kept(self) -> tuple[KeptDatabase, ...]:
        with _answers(self._server, sent=False), self._server.maintenance() as maintenance:
            if LEDGER not in databases(maintenance):
                return ()
            with open_ledger(self._server) as ledger:
                return kept(ledger, self._server.live)

    def release(self, name: str, *, deadline_s: float) -> None:
        with _answers(self._server, sent=True):
            swap.release(self._server, name, deadline_s=deadline_s)

    def is_committed(self, xid: int) -> bool | None:
        with _answers(self._server, sent=False), self._server.connect() as live:
            return requeue.is_committed(live, xid)

    def checks(self, fingerprint: str) -> tuple[Check, ...]:
        try:
            facts = self.observe()
        except LastgoodError as error:
            return (Check(name="database answers", passed=False, detail=error.message),)
        answers = [Check(name="database answers", passed=facts.exists)]
        if self._pooler:
            kept_out = self._pooler.keeps_out()
            answers.append(Check(name="PgBouncer hands on", passed=not kept_out, detail=kept_out))
        if not fingerprint:
            return tuple(answers)
        same = facts.fingerprint == fingerprint
        detail = f"{facts.fingerprint[:12]}" if same else f"{facts.fingerprint[:12]}, expected {fingerprint[:12]}"
        return (*answers, Check(name="database schema", passed=same, detail=detail))

    def clients(self, replaced: str) -> Check:
        noted = self._clients / f"{shelf.checked(replaced)}.json"
        before: clients.Clients = ()
        if noted.exists():
            before = shelf.read(noted, clients.CLIENTS, what=noted.stem, hint=_HINT)
        with _answers(self._server, sent=False), self._server.maintenance() as maintenance:
            now, beside = (clients.of(maintenance, database) for database in (self._server.live, replaced))
        return clients.check(before, now, beside, replaced=replaced)


@contextmanager
def _answers(server: Server, *, sent: bool) -> Generator[None]:
    """Turn psycopg's errors into the house's. sent: whether something may have been changed already."""
    live = server.live
    try:
        yield
    except psycopg.OperationalError as error:
        # An answer with a SQLSTATE is a no: busy, full, too late. Without one, or from a server that ends, it is lost.
        lost = error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
        if sent and lost:
            raise OutcomeUnknown(f"database {live}: the connection was lost: {_words(error)}") from error
        by = holders(server) if error.sqlstate == _LOCKED else ""
        raise Retryable(f"database {live}: {_words(error)}{by}", delay_s=_AGAIN_S, hint=_HINT) from error
    except psycopg.Error as error:
        raise Refused(f"database {live}: {_words(error)}", hint=_HINT) from error


def _words(error: psycopg.Error) -> str:
    return " ".join(str(error).split())

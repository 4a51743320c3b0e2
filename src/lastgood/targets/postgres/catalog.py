"""What the catalogs say of a schema: its objects by name, their fingerprint, and its tables by identity.

Definitions are the server's own texts, printed under an empty search_path, so that a database and its restored copy
give the same ones. Column numbers are left out: a restore closes the gaps of dropped columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, LiteralString, TypeAlias

from psycopg import sql

from lastgood.core.migration import SchemaChange
from lastgood.targets.postgres.connect import Connection

# ruff: noqa: S608 # nothing comes from outside: the texts are put together from the constants of this file
_OURS: Final[LiteralString] = (
    "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' "
    "AND n.nspname NOT LIKE 'pg\\_temp\\_%' AND n.nspname <> 'lastgood_marks'"  # of a capture, see `marks`
)
# What belongs to an extension is described by the extension.
_FREE: Final[LiteralString] = (
    "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = {catalog} AND d.objid = {oid} AND d.deptype = 'e')"
)


def _free(catalog: LiteralString, oid: LiteralString) -> LiteralString:
    return _FREE.format(catalog=f"'{catalog}'::regclass", oid=oid)


_KIND: Final[LiteralString] = "(CASE WHEN relkind = 'S' THEN 's' ELSE 'r' END)::pg_catalog.\"char\""


def _rights(kind: LiteralString, acl: LiteralString, owner: LiteralString) -> LiteralString:
    """Owner and rights as text: an order of its own, and the same for rights that were never written down."""
    return f"""'rights of ' || pg_get_userbyid({owner}) || coalesce((
        SELECT string_agg(held, ', ' ORDER BY held) FROM (
            SELECT CASE WHEN a.grantee = 0 THEN 'everybody' ELSE pg_get_userbyid(a.grantee) END || ' ' ||
                a.privilege_type || CASE WHEN a.is_grantable THEN ' and granting it' ELSE '' END AS held
            FROM aclexplode(coalesce({acl}, acldefault({kind}, {owner}))) a) told), '')"""


def _identified(catalog: LiteralString, more: LiteralString = "''", but: LiteralString = "false") -> LiteralString:
    """Objects of a rare kind, by what the server calls them: that they are there is all that is compared."""
    return f"""
SELECT i.type || ' ' || i.identity, i.type || {more}
FROM {catalog} o, pg_identify_object('{catalog}'::regclass, o.oid, 0) i
WHERE o.oid >= 16384 AND {_free(catalog, "o.oid")} AND NOT ({but})"""  # 16384: FirstNormalObjectId, made by people


_RARE: Final[LiteralString] = " UNION ALL ".join(
    (
        _identified("pg_operator"),
        _identified("pg_opclass"),
        _identified("pg_opfamily"),
        _identified("pg_cast"),
        _identified("pg_conversion"),
        _identified("pg_collation"),
        _identified("pg_language"),
        _identified("pg_ts_config"),
        _identified("pg_ts_dict"),
        _identified("pg_foreign_data_wrapper"),
        _identified("pg_foreign_server"),
        _identified("pg_event_trigger", "o.evtenabled::text"),
        _identified(
            "pg_publication",
            "' of ' || (SELECT count(*) FROM pg_publication_rel r WHERE r.prpubid = o.oid)",
            "starts_with(o.pubname, 'lastgood_')",  # of a capture, see `capture`
        ),
    )
)

# `public` goes by bare names: what error messages and people say. `(rights)` behind a dot leaves the name readable.
_OBJECTS: Final[LiteralString] = f"""
WITH named AS (
    SELECT c.*, CASE WHEN n.nspname = 'public' THEN '' ELSE n.nspname || '.' END || c.relname AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {_OURS} AND {_free("pg_class", "c.oid")}
)
SELECT 'schema ' || n.nspname, 'schema' FROM pg_namespace n WHERE {_OURS} AND {_free("pg_namespace", "n.oid")}
UNION ALL
SELECT 'schema ' || n.nspname || '.(rights)', {_rights("'n'", "n.nspacl", "n.nspowner")}
FROM pg_namespace n WHERE {_OURS} AND {_free("pg_namespace", "n.oid")}
UNION ALL
SELECT name, 'table ' || relkind::text || relpersistence::text || relrowsecurity || relforcerowsecurity
    || coalesce(pg_get_partkeydef(oid), '') || coalesce(pg_get_expr(relpartbound, oid), '') || coalesce((
        SELECT ' inherits ' || string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno)
        FROM pg_inherits WHERE inhrelid = named.oid), '')
FROM named WHERE relkind IN ('r', 'p', 'f')
UNION ALL
SELECT name || '.(rights)', {_rights(_KIND, "relacl", "relowner")}
FROM named WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
UNION ALL
SELECT name, 'view ' || relkind::text || ' ' || pg_get_viewdef(oid) FROM named WHERE relkind IN ('v', 'm')
UNION ALL
SELECT t.name || '.' || a.attname || '.(rights)', {_rights("'c'", "a.attacl", "t.relowner")}
FROM named t JOIN pg_attribute a ON a.attrelid = t.oid WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
UNION ALL
SELECT t.name || '.' || a.attname, 'column ' || format_type(a.atttypid, a.atttypmod)
    || coalesce((SELECT ' collate ' || c.collname FROM pg_collation c JOIN pg_type y ON y.oid = a.atttypid
                 WHERE c.oid = a.attcollation AND a.attcollation <> y.typcollation), '')
    || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END || ' '
    || a.attidentity::text || a.attgenerated::text
    || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
FROM named t JOIN pg_attribute a ON a.attrelid = t.oid
LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (t.oid, a.attnum)
WHERE t.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT t.name || '.' || c.conname, 'constraint ' || pg_get_constraintdef(c.oid)
    || CASE WHEN c.convalidated THEN '' ELSE ' (not valid)' END
FROM named t JOIN pg_constraint c ON c.conrelid = t.oid WHERE c.contype <> 'n'
UNION ALL
SELECT t.name || '.' || i.relname, 'index ' || pg_get_indexdef(i.oid)
FROM named t JOIN pg_index x ON x.indrelid = t.oid JOIN pg_class i ON i.oid = x.indexrelid
UNION ALL
SELECT t.name || '.' || g.tgname, 'trigger ' || g.tgenabled::text || ' ' || pg_get_triggerdef(g.oid)
FROM named t JOIN pg_trigger g ON g.tgrelid = t.oid
WHERE NOT g.tgisinternal AND g.tgname <> 'lastgood_marks'
UNION ALL
SELECT t.name || '.' || r.rulename, 'rule ' || r.ev_enabled::text || ' ' || pg_get_ruledef(r.oid)
FROM named t JOIN pg_rewrite r ON r.ev_class = t.oid WHERE r.rulename <> '_RETURN'
UNION ALL
SELECT t.name || '.' || s.stxname, pg_get_statisticsobjdef(s.oid)
FROM named t JOIN pg_statistic_ext s ON s.stxrelid = t.oid
UNION ALL
SELECT t.name || '.' || p.polname, 'policy ' || p.polcmd::text || coalesce(pg_get_expr(p.polqual, p.polrelid), '')
    || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
FROM named t JOIN pg_policy p ON p.polrelid = t.oid
UNION ALL
SELECT named.name, 'sequence ' || format_type(s.seqtypid, NULL) ||
    concat_ws(' ', '', s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle)
FROM named JOIN pg_sequence s ON s.seqrelid = named.oid
UNION ALL
SELECT CASE WHEN n.nspname = 'public' THEN '' ELSE n.nspname || '.' END || t.typname, 'type ' || t.typtype::text
    || coalesce((SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e
                 WHERE e.enumtypid = t.oid), '')
    || coalesce(format_type(nullif(t.typbasetype, 0), t.typtypmod), '')
    || coalesce((SELECT string_agg(pg_get_constraintdef(c.oid), ' ' ORDER BY c.conname) FROM pg_constraint c
                 WHERE c.contypid = t.oid), '')
    || coalesce((SELECT '(' || string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', '
                                          ORDER BY a.attnum) || ')'
                 FROM pg_attribute a WHERE a.attrelid = r.oid AND NOT a.attisdropped), '')
    || ' ' || {_rights("'T'", "t.typacl", "t.typowner")}
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class r ON r.oid = t.typrelid
WHERE {_OURS} AND {_free("pg_type", "t.oid")} AND (t.typtype IN ('e', 'd', 'r') OR r.relkind = 'c')
UNION ALL
SELECT CASE WHEN n.nspname = 'public' THEN '' ELSE n.nspname || '.' END || p.proname
    || '(' || pg_get_function_identity_arguments(p.oid) || ')',
    'function ' || CASE WHEN p.prokind = 'a' THEN 'aggregate' ELSE md5(pg_get_functiondef(p.oid)) END
    || ' ' || {_rights("'f'", "p.proacl", "p.proowner")}
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_OURS} AND {_free("pg_proc", "p.oid")}
UNION ALL
SELECT 'extension ' || e.extname, 'extension ' || e.extversion FROM pg_extension e WHERE e.extname <> 'plpgsql'
UNION ALL
SELECT 'default rights of ' || pg_get_userbyid(a.defaclrole) || coalesce(' in ' || n.nspname, '') || ' ' ||
    a.defaclobjtype::text, {_rights("'r'", "a.defaclacl", "a.defaclrole")}
FROM pg_default_acl a LEFT JOIN pg_namespace n ON n.oid = a.defaclnamespace
UNION ALL {_RARE}
"""

_TABLES: Final[LiteralString] = f"""
SELECT c.oid, n.nspname, c.relname,
    ARRAY(SELECT ARRAY[a.attnum::text, a.attname, format_type(a.atttypid, a.atttypmod)] FROM pg_attribute a
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
    ARRAY(SELECT k.attnum::int FROM pg_index x, unnest(x.indkey::int2[]) WITH ORDINALITY k(attnum, i)
          WHERE x.indrelid = c.oid AND x.indisprimary ORDER BY k.i)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = {{kind}} AND {_OURS} AND {_free("pg_class", "c.oid")}
ORDER BY 2, 3
"""  # leaves of a partitioned table are tables of their own here

_SEQUENCES: Final[LiteralString] = """
SELECT c.oid, n.nspname, c.relname, s.last_value, s.increment_by
FROM pg_sequences s JOIN pg_namespace n ON n.nspname = s.schemaname
JOIN pg_class c ON (c.relnamespace, c.relname) = (n.oid, s.sequencename)
"""

PRISMA: Final = "_prisma_migrations"
ALEMBIC: Final = "alembic_version"
HISTORIES: Final = (PRISMA, ALEMBIC)
"""Where the tools write down which migrations they applied: part of the schema, and no rows of anybody."""


Name: TypeAlias = tuple[str, str]
"""Of a table: its schema's and its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it was at one moment. oid and the numbers of `columns` are its identity: both outlive a renaming.

    columns, types: number to name, and to the type as it is written. key: numbers of the primary key's columns, empty
    when it has none.
    """

    oid: int
    schema: str
    name: str
    columns: Mapping[int, str]
    types: Mapping[int, str]
    key: tuple[int, ...]

    @property
    def called(self) -> Name:
        """Its schema's name and its own."""
        return self.schema, self.name

    @property
    def identifier(self) -> sql.Identifier:
        """As it is written in a statement."""
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        """As people say it."""
        return _label(self.called)

    def named(self, numbers: tuple[int, ...]) -> tuple[str, ...]:
        """Return the names of these columns."""
        return tuple(self.columns[number] for number in numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """A sequence as it was at one moment; its oid outlives a renaming. last: the number given out last, None before
    the first."""

    oid: int
    schema: str
    name: str
    last: int | None
    step: int


def objects(connection: Connection) -> dict[str, str]:
    """Return every object of the schema and its definition."""
    with connection.transaction(force_rollback=True):  # and the search_path is what it was
        connection.execute("SET LOCAL search_path = ''")
        found: dict[str, str] = {}
        for name, definition in sorted(connection.execute(sql.SQL(_OBJECTS))):
            found[name] = f"{found[name]}; {definition}" if name in found else definition
        return found


def fingerprint(schema: Mapping[str, str]) -> str:
    """SHA-256 over the objects by name."""
    lines = "\n".join(f"{name}\t{definition}" for name, definition in sorted(schema.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[SchemaChange, ...]:
    """What changed from `before` to `now`, by object."""
    changes: list[SchemaChange] = []
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if was == is_now:
            continue
        change = f"is gone ({was})" if is_now is None else f"is new ({is_now})" if was is None else f"{was} -> {is_now}"
        changes.append(SchemaChange(object=name, change=change))
    return tuple(changes)


def tables(connection: Connection, *, history: bool = False, kind: str = "r") -> tuple[Table, ...]:
    """Return the tables that hold rows. history: that of the migrations as well. kind: `p` for the partitioned ones
    instead, which hold none themselves."""
    found: list[Table] = []
    for oid, schema, name, columns, key in connection.execute(sql.SQL(_TABLES).format(kind=sql.Literal(kind))):
        if name not in HISTORIES or history:
            named = {int(number): column for number, column, _ in columns}
            types = {int(number): text for number, _, text in columns}
            found.append(Table(oid=int(oid), schema=schema, name=name, columns=named, types=types, key=tuple(key)))
    return tuple(found)


def roots(connection: Connection) -> dict[Name, Name]:
    """Return the partitioned table of every partition that holds rows, the topmost one."""
    rows = connection.execute(
        """
        SELECT n.nspname, c.relname, m.nspname, r.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_class r ON r.oid = pg_partition_root(c.oid) JOIN pg_namespace m ON m.oid = r.relnamespace
        WHERE c.relispartition AND c.relkind = 'r'
        """
    )
    return {(schema, leaf): (of, root) for schema, leaf, of, root in rows}


LARGE_OBJECTS_MADE: Final = (
    "large objects were made since the restore point, which no replay carries: they are in the database that is kept"
)


def lacks_large_object(source: Connection, clone: Connection, kind: str, value: object) -> bool:
    """Whether a value is the number of a large object that the clone does not have. kind: the column's type; in one of
    another type than these nothing tells such a number from any other."""
    if kind not in ("oid", "lo") or value is None:
        return False
    asked: LiteralString = "SELECT FROM pg_largeobject_metadata WHERE oid::text = %s"
    there, here = (of.execute(asked, [str(value)]).fetchone() is not None for of in (source, clone))
    return there and not here


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A partition that was made since a restore point. home: the partitioned table that its rows go into in the clone,
    by the oid and the column numbers of the partition."""

    leaf: Table
    home: Table


def later_partitions(source: Connection, clone: Connection, then: Collection[Table]) -> tuple[Later, ...]:
    """Return the partitions made since of tables that the clone has. then: the tables of the restore point.

    Which table that is in the clone, and how its columns were called, a partition tells that is in both; where none is,
    the names must be the same.
    """
    was = {table.oid: table for table in then}
    now, homes = tables(source), {table.called: table for table in tables(clone, kind="p")}
    roots_now, roots_then = roots(source), roots(clone)
    both = [table for table in now if table.oid in was and was[table.oid].called in roots_then]
    found: list[Later] = []
    for leaf in now:
        root = roots_now.get(leaf.called)
        if leaf.oid in was or root is None:
            continue
        beside = next((table for table in both if roots_now.get(table.called) == root), None)
        home = homes.get(roots_then[was[beside.oid].called] if beside else root)
        if home is None:
            continue
        called = {name: name for name in home.columns.values()}
        if beside:
            called = {name: was[beside.oid].columns.get(number, "") for number, name in beside.columns.items()}
        types = {name: home.types[number] for number, name in home.columns.items()}
        columns = {number: called[name] for number, name in leaf.columns.items() if called.get(name) in types}
        numbers = {name: number for number, name in columns.items()}
        key = tuple(numbers[name] for name in home.named(home.key) if name in numbers)
        home = Table(
            oid=leaf.oid,
            schema=home.schema,
            name=home.name,
            columns=columns,
            types={number: types[name] for number, name in columns.items()},
            key=key if len(key) == len(home.key) else (),
        )
        found.append(Later(leaf=leaf, home=home))
    return tuple(found)


def came_and_went(source: Connection, clone: Connection, then: Collection[Table]) -> Iterator[str]:
    """Say what became of tables since a restore point that a replay into its clone does not follow."""
    now, roots_now, roots_then = {table.oid: table for table in tables(source)}, roots(source), roots(clone)
    later = {partition.leaf.oid: partition.home for partition in later_partitions(source, clone, then)}
    known = {table.oid for table in then}
    for oid, table in now.items():
        if home := later.get(oid):
            yield f"{table.label} is a partition of {home.label} since: its rows go back in their last state"
        elif oid not in known:
            yield f"{table.label} came since the restore point: its rows are in the database that is kept"
    for table in then:
        was, is_now = roots_then.get(table.called), now.get(table.oid)
        if is_now is None:
            yield f"{table.label} was dropped since, and is there again"
        elif was and is_now.called not in roots_now:
            yield f"{table.label} was taken out of {_label(was)} since: its rows are in {_label(was)} again"
        elif not was and (root := roots_now.get(is_now.called)):
            yield f"{table.label} became a partition of {_label(root)} since: its rows are in {table.label} alone"


def _label(called: Name) -> str:
    schema, name = called
    return name if schema == "public" else f"{schema}.{name}"


def generated(connection: Connection) -> set[tuple[str, str, str]]:
    """Return (schema, table, column) of every column whose value the server makes itself."""
    rows = connection.execute(
        "SELECT n.nspname, r.relname, a.attname FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace "
        "JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND a.attgenerated <> '' AND NOT a.attisdropped"
    )
    return {(schema, table, column) for schema, table, column in rows}


def sequences(connection: Connection) -> tuple[Sequence, ...]:
    """Return the sequences and how far they got."""
    return tuple(
        Sequence(oid=int(oid), schema=schema, name=name, last=last, step=int(step))
        for oid, schema, name, last, step in connection.execute(sql.SQL(_SEQUENCES))
    )


def materialized_views(connection: Connection) -> tuple[sql.Identifier, ...]:
    """Return those that hold rows, each after those that it may read from."""
    rows = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'm' AND c.relispopulated ORDER BY c.oid"
    )
    return tuple(sql.Identifier(schema, name) for schema, name in rows)


def to_refresh(views: Iterable[str]) -> tuple[str, ...]:
    """Say what a person does about materialized views that show an earlier state; nothing where there are none."""
    return tuple(f"REFRESH MATERIALIZED VIEW {view}: it shows an earlier state of its tables" for view in views)


def count_rows(connection: Connection, of: tuple[Table, ...]) -> tuple[tuple[str, int], ...]:
    """Return (table, rows) as this transaction sees them."""
    counted: list[tuple[str, int]] = []
    for table in of:
        row = connection.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(table.identifier)).fetchone()
        counted.append((table.label, int(row[0]) if row else 0))
    return tuple(counted)


_FIRES: Final = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "D": "DISABLE"}


def event_triggers(connection: Connection) -> dict[str, str]:
    """Return those that fire, and when, as pg_event_trigger has it. One that an extension brought is no person's, and
    may not be ours to change."""
    rows = connection.execute(
        "SELECT evtname, evtenabled::text FROM pg_event_trigger t WHERE evtenabled <> 'D' AND NOT EXISTS (SELECT "
        "FROM pg_depend e WHERE (e.classid, e.objid, e.deptype) = ('pg_event_trigger'::regclass, t.oid, 'e'))"
    )
    return dict(rows.fetchall())


def set_event_triggers(connection: Connection, fire: Mapping[str, str]) -> None:
    """Have triggers of events fire, or not: by their names, as `event_triggers` has it. None fires for that."""
    for name, when in fire.items():
        how = sql.SQL(_FIRES[when])  # pyright: ignore[reportArgumentType] # one of four
        connection.execute(sql.SQL("ALTER EVENT TRIGGER {} {}").format(sql.Identifier(name), how))


@contextmanager
def no_event_fires(clone: Connection) -> Generator[None]:
    """While something about a clone is changed: a trigger that keeps a list of such changes has them of the database
    itself, and the clone must hold no row more. A block that fails is of a transaction, or leaves a clone that is
    dropped."""
    triggers = event_triggers(clone)
    set_event_triggers(clone, dict.fromkeys(triggers, "D"))
    yield
    set_event_triggers(clone, triggers)

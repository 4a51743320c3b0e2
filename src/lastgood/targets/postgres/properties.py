"""What belongs to a database and not to its contents: owner, rights, limit and settings. pg_dump leaves them out.

A clone gets them when it is made, and again when it is swapped in: what an administrator granted or set meanwhile
stays. Only what the migration's own transaction set goes back with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from psycopg import sql

from lastgood.core.errors import Refused
from lastgood.targets.postgres.connect import Connection

_RIGHTS: Final = """
SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable
FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a WHERE d.datname = %s ORDER BY 1, 2
"""
# The server puts the statements together: it knows how a name and a value are quoted. The values of the named settings
# are lists that it has quoted already (pg_dump, variable_is_guc_list_quote).
_SETTINGS: Final = """
SELECT role, name, value, xmin, whose || ' RESET ALL', format('%%s SET %%s TO %%s', whose,
    (SELECT string_agg(quote_ident(part), '.') FROM unnest(string_to_array(name, '.')) part),
    CASE WHEN value <> '' AND name IN ('local_preload_libraries', 'search_path', 'session_preload_libraries',
        'temp_tablespaces') THEN value ELSE quote_literal(value) END)
FROM (
    SELECT role, xmin, place, split_part(setting, '=', 1) AS name, substr(setting, strpos(setting, '=') + 1) AS value,
        CASE WHEN role IS NULL THEN format('ALTER DATABASE %%I', %(to)s::text)
        ELSE format('ALTER ROLE %%I IN DATABASE %%I', role, %(to)s::text) END AS whose
    FROM (
        SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole) END AS role, s.xmin::text, s.setconfig
        FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = %(of)s
    ) rows, unnest(setconfig) WITH ORDINALITY one (setting, place)
) settings ORDER BY role, place
"""


def properties(connection: Connection, database: str) -> dict[str, str]:
    """Return them by name, as people read them. Two databases with the same ones let the same people in, and greet
    them the same."""
    row = connection.execute(
        "SELECT pg_get_userbyid(datdba), datconnlimit, pg_encoding_to_char(encoding), datcollate, datctype, spcname "
        "FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE datname = %s",
        [database],
    ).fetchone()
    if row is None:
        raise Refused(f"database {database} is not there", hint="database.postgres.name in lastgood.yaml")
    named = ("owner", "connection limit", "encoding", "collation", "character type", "tablespace")
    found = {name: str(value) for name, value in zip(named, row, strict=True)}
    for grantee, right, grantable in connection.execute(_RIGHTS, [database]):
        found[f"right {right} of {grantee or 'everybody'}"] = "may grant it" if grantable else "granted"
    for role, name, value, *_ in connection.execute(_SETTINGS, {"of": database, "to": database}):
        found[f"setting {name}" + (f" of {role}" if role else "")] = str(value)
    return found


def create_like(connection: Connection, live: str, database: str) -> None:
    """Create an empty database that is like the live one in everything."""
    row = connection.execute(
        "SELECT pg_encoding_to_char(encoding), spcname, to_jsonb(d) FROM pg_database d "
        "JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE datname = %s",
        [live],
    ).fetchone()
    if row is None:
        raise Refused(f"database {live} is not there", hint="database.postgres.name in lastgood.yaml")
    encoding, tablespace, described = row
    options = [
        sql.SQL("ENCODING {}").format(sql.Literal(encoding)),
        # To name the default one takes a right that only superusers have; not to name it takes none.
        *([] if tablespace == "pg_default" else [sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace))]),
        sql.SQL("LC_COLLATE {} LC_CTYPE {}").format(
            sql.Literal(described["datcollate"]), sql.Literal(described["datctype"])
        ),
        *_locale(described),
    ]
    connection.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 {}").format(sql.Identifier(database), sql.SQL(" ").join(options))
    )
    make_alike(connection, live, database)


def _locale(described: Mapping[str, object]) -> list[sql.Composable]:
    """The locale provider, whose column was renamed in PostgreSQL 17; its rules came in 16."""
    name, rules = described.get("datlocale") or described.get("daticulocale"), described.get("daticurules")
    match described.get("datlocprovider"):
        case "i":
            tailored = [sql.SQL("ICU_RULES {}").format(sql.Literal(rules))] if rules else []
            return [sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(name)), *tailored]
        case "b":
            return [sql.SQL("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(sql.Literal(name))]
        case _:
            return []


def make_alike(connection: Connection, model: str, database: str, *, but_not_by: tuple[str, ...] = ()) -> None:
    """Give `database` the owner, the rights, the limit and the settings of `model`. Safe to repeat.

    but_not_by: transactions, as the 32-bit numbers that xmin shows, whose settings are not taken over.
    """
    limit, owner = _limit_and_owner(connection, model)
    named = sql.Identifier(database)
    with connection.transaction():
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(named, sql.Identifier(owner)))
        connection.execute(sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(named, sql.Literal(limit)))
        _copy_rights(connection, model, database)
        _copy_settings(connection, model, database, but_not_by=but_not_by)


def _limit_and_owner(connection: Connection, database: str) -> tuple[int, str]:
    row = connection.execute(
        "SELECT datconnlimit, pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", [database]
    ).fetchone()
    if row is None:
        raise Refused(f"database {database} is not there", hint="database.postgres.name in lastgood.yaml")
    return int(row[0]), str(row[1])


def _copy_rights(connection: Connection, model: str, database: str) -> None:
    named = sql.Identifier(database)
    mine = connection.execute(_RIGHTS, [database]).fetchall()
    theirs = connection.execute(_RIGHTS, [model]).fetchall()
    if mine == theirs:
        return
    for grantee in {grantee for grantee, *_ in mine}:
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(named, _role(grantee)))
    for grantee, right, grantable in theirs:
        grant = sql.SQL("GRANT {} ON DATABASE {} TO {}").format(_PRIVILEGES[right], named, _role(grantee))
        connection.execute(grant + sql.SQL(" WITH GRANT OPTION") if grantable and grantee else grant)


_PRIVILEGES: Final[Mapping[str, sql.SQL]] = {
    "CONNECT": sql.SQL("CONNECT"),
    "CREATE": sql.SQL("CREATE"),
    "TEMPORARY": sql.SQL("TEMPORARY"),
}


def _role(name: str | None) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def _copy_settings(connection: Connection, model: str, database: str, *, but_not_by: tuple[str, ...]) -> None:
    """ALTER DATABASE ... SET, for everybody and for single roles: a row of the catalog for each of them."""
    mine = connection.execute(_SETTINGS, {"of": database, "to": database}).fetchall()
    theirs = connection.execute(_SETTINGS, {"of": model, "to": database}).fetchall()
    kept = {role for role, _, _, xid, *_ in theirs if xid in but_not_by}
    for reset in {reset for role, *_, reset, _ in mine if role not in kept}:
        connection.execute(reset.encode())
    for role, *_, setting in theirs:
        if role not in kept:
            connection.execute(setting.encode())

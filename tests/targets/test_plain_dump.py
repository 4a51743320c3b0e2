r"""A plain dump is taken apart as the server would, and nothing in it is ever a command of this host."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from io import BytesIO
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastgood.core.errors import Refused
from lastgood.targets.postgres.own_dump import read_contents
from lastgood.targets.postgres.plain_dump import PlainDump, _Script, examine

KEY: Final = "oC6wshN3aZQQ9zReVbPlKgXvgkRC0NpJkPwxRd4Zd7c9AAOVPgadztFP9cr7cu3"
TRAILER: Final = "-- PostgreSQL database dump complete"
ROWS: Final = (
    "--\n-- Data for Name: notes; Type: TABLE DATA; Schema: public; Owner: shop\n--\n\n"
    "COPY public.notes (id, text) FROM stdin;\n"
    "1\t\\\\! rm -rf /\n2\t\\\\.\n3\tCOPY x FROM PROGRAM 'x';\n4\t\\N\n\\.\n\n\n"
)
# What stands in a dump of PostgreSQL 18.4, shortened. Older ones have no `\restrict`.
BODY: Final = f"""
SET standard_conforming_strings = on;
SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Name: at(); Type: FUNCTION; Schema: public; Owner: shop
--

CREATE FUNCTION public.at() RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT 1;
 SELECT
         CASE
             WHEN true THEN 2
             ELSE NULL::integer
         END AS "case";
END;


CREATE FUNCTION public.begins() RETURNS trigger
    LANGUAGE plpgsql
    AS $_$BEGIN
  -- it's one; \\! not a command
  PERFORM '$$'; RETURN NEW;
END$_$;

CREATE TABLE public.notes (
    id integer DEFAULT '1'::integer NOT NULL, -- the key; a
    text text DEFAULT E'a\\';b'::text,
    "odd ""; \\name" text
);

COMMENT ON TABLE public.notes IS 'lives on database shop; it''s here';
{ROWS}
CREATE RULE r AS ON INSERT TO public.notes DO ALSO ( SELECT 1;
 SELECT 2;
);

BEGIN;

SELECT pg_catalog.lo_open('16452', 131072);
SELECT pg_catalog.lowrite(0, '\\x616263');

COMMIT;

SELECT pg_catalog.setval('public.notes_id_seq', 4, true);
CREATE USER MAPPING FOR shop SERVER s;
GRANT SELECT,INSERT ON TABLE public.notes TO web;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
"""


def dumped(body: str = BODY, *, key: str = KEY, version: str = "18.4") -> str:
    begins, ends = (f"\\restrict {key}\n\n", f"\\unrestrict {key}\n\n") if key else ("", "")
    return (
        f"--\n-- PostgreSQL database dump\n--\n\n{begins}-- Dumped from database version {version}\n"
        f"-- Dumped by pg_dump version {version}\n{body}\n--\n-- PostgreSQL database dump complete\n--\n\n{ends}"
    )


def taken_apart(text: str | bytes) -> list[str]:
    """The statements, and after a COPY its rows."""
    found: list[str] = []
    for statement in _Script(BytesIO(text.encode() if isinstance(text, str) else text), "dump.sql"):
        found.append(statement.text.decode())
        if statement.rows is not None:
            found.append(b"".join(statement.rows).decode())
    return found


def refusal(text: str | bytes) -> str:
    """What is said of it; the empty text where it is taken for a dump."""
    try:
        examine(BytesIO(text.encode() if isinstance(text, str) else text), what="dump.sql")
    except Refused as error:
        return error.message
    return ""


@pytest.mark.parametrize("key", [KEY, ""], ids=["restricted", "as-before-august-2025"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_each_statement_is_one_and_the_rows_are_none(key: str, ends: str) -> None:
    found = taken_apart(dumped(key=key).replace("\n", ends))
    assert [text.split()[:2] for text in found if not text.startswith("1\t")] == [
        ["SET", "standard_conforming_strings"],
        ["SET", "client_encoding"],
        ["SELECT", "pg_catalog.set_config('search_path',"],
        ["CREATE", "FUNCTION"],
        ["CREATE", "FUNCTION"],
        ["CREATE", "TABLE"],
        ["COMMENT", "ON"],
        ["COPY", "public.notes"],
        ["CREATE", "RULE"],
        ["SELECT", "pg_catalog.lo_open('16452',"],
        ["SELECT", "pg_catalog.lowrite(0,"],
        ["SELECT", "pg_catalog.setval('public.notes_id_seq',"],
        ["CREATE", "USER"],
        ["GRANT", "SELECT,INSERT"],
        ["REVOKE", "ALL"],
    ]
    (rows,) = (text for text in found if text.startswith("1\t"))
    assert rows.split(ends) == ["1\t\\\\! rm -rf /", "2\t\\\\.", "3\tCOPY x FROM PROGRAM 'x';", "4\t\\N", ""]


def test_what_it_says_of_itself_is_read() -> None:
    assert examine(BytesIO(dumped().encode()), what="dump.sql") == PlainDump(major=18, tables=1)
    assert examine(BytesIO(dumped(key="", version="9.6.24").encode()), what="x") == PlainDump(major=9, tables=1)


# --- whole, or refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, ""], ids=["restricted", "as-before-august-2025"])
def test_cut_anywhere_it_is_refused(key: str) -> None:
    whole = dumped(key=key)
    needed = len(whole.rstrip()) if key else whole.index("dump complete") + len("dump complete")
    assert [length for length in range(needed) if not refusal(whole[:length])] == []
    assert refusal(whole[:needed]) == refusal(whole) == ""


@pytest.mark.parametrize(
    "text,said",
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("<!DOCTYPE html><h1>502</h1>", "begins with `<!DOCTYPE html>", id="an-error-page"),
        pytest.param("PGDMP\x01\x10", "expected `-- PostgreSQL database dump`", id="another-format"),
        pytest.param("--\n-- PostgreSQL database cluster dump\n--\n", "is of a whole cluster", id="a-cluster"),
        pytest.param(dumped() + dumped(), "goes on after the end", id="two-in-one"),
        pytest.param(dumped(key="") + "SELECT 1;\n", "goes on after the end", id="more-behind-it"),
        pytest.param(dumped(key="") + "-- and a note\n", "goes on after the end", id="a-note-behind-it"),
        pytest.param(dumped().rstrip()[:-3], "is not where pg_dump writes it", id="half-a-key"),
        pytest.param(dumped(key="").replace("dump complete", "dump"), f"expected `{TRAILER}`", id="without-its-end"),
        pytest.param(dumped("SELECT 'open"), f"expected `{TRAILER}`", id="an-open-quotation"),
        pytest.param(dumped("COPY public.t (a) FROM stdin;\n1\n"), "in the middle of the rows", id="open-rows"),
    ],
)  # fmt: skip
def test_what_is_not_a_whole_dump_is_refused(text: str, said: str) -> None:
    assert said in refusal(text)
    assert refusal(text).startswith("dump.sql")


# --- nothing for a client --------------------------------------------------------------------------------------------

COMMANDS: Final = (
    "\\! rm -rf /", "\\copy notes to '/tmp/x'", "\\i other.sql", "\\ir other.sql", "\\include x", "\\connect postgres",
    "\\c postgres", "\\o |sh", "\\w x", "\\g |sh", "\\gexec", "\\gset", "\\setenv PATH x", "\\cd /", "\\lo_import x",
    "\\lo_export 1 x", "\\password", "\\set x `id`", "\\if true", "\\e", "\\q", "\\x", "\\", "\\\\", "\\.",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "around",
    [
        "{}\n",
        "  {}\n",
        "CREATE TABLE t (a int)\n{}\n;",
        "SET a = 1 {};",
        "SET a = 1; {}\n",
        "SET a = '1'{}\n",
        ROWS + "{}\n",
    ],
)
def test_a_command_for_psql_is_refused_wherever_it_stands(command: str, around: str) -> None:
    said = refusal(dumped(around.format(command)))
    assert "is a command for psql, which would run on this host" in said
    assert "line " in said


@pytest.mark.parametrize(
    "text",
    [
        "SET a = 'x\\! y';",
        "COMMENT ON COLUMN t.\"\\i\" IS '\\i';",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$\n\\! x\n$$;",
        "SET a = 1; -- \\! x\n",
        "SET a = /* \\! /* \\i */ \\g */ 1;",
        "SET a = E'\\'; \\! x';",
        ROWS,
    ],
)
def test_a_backslash_within_a_quotation_a_comment_or_a_row_is_none(text: str) -> None:
    assert refusal(dumped(text)) == ""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(dumped(f"\\restrict {KEY}\n"), id="a-second-time"),
        pytest.param(dumped(f"\\unrestrict {KEY}\n"), id="its-end-before-the-end"),
        pytest.param(dumped(f"SET a = 1;\n\\restrict {KEY}\n", key=""), id="behind-a-statement"),
        pytest.param(dumped().replace(f"unrestrict {KEY}", "unrestrict another"), id="with-another-key"),
        pytest.param(dumped() + f"\\unrestrict {KEY}\n", id="ended-twice"),
        pytest.param(dumped(key="a b"), id="with-two-words"),
        pytest.param(dumped(key="`id`"), id="with-a-command"),
        pytest.param(dumped().replace("\\restrict", " \\restrict", 1), id="indented"),
    ],
)
def test_a_restriction_counts_only_as_pg_dump_writes_it(text: str) -> None:
    assert "pg_dump writes" in refusal(text) or "is a command for psql" in refusal(text)


# --- nothing but what pg_dump writes ---------------------------------------------------------------------------------

STRANGE: Final = (
    "COPY t FROM PROGRAM 'id';", "COPY t FROM '/etc/passwd';", "COPY t TO PROGRAM 'sh';", "COPY t TO STDOUT;",
    "COPY t FROM stdin WITH (FORMAT csv);", "DO $$BEGIN END$$;", "CALL p();", "SELECT pg_read_file('/etc/passwd');",
    "SELECT pg_catalog.pg_ls_dir('.');", "SELECT pg_catalog.lo_import('/etc/passwd');", "ROLLBACK;", "END;", "ABORT;",
    "START TRANSACTION;", "SAVEPOINT a;", "PREPARE TRANSACTION 'a';", "COMMIT AND CHAIN;", "DELETE FROM t;",
    "UPDATE t SET a = 1;", "TRUNCATE t;", "VACUUM;", "LOAD 'x';", "LISTEN a;", "WITH a AS (SELECT 1) SELECT 2;", ";",
)  # fmt: skip
BEYOND: Final = (
    "CREATE DATABASE a;", "DROP DATABASE shop;", "ALTER DATABASE shop RENAME TO b;", "ALTER SYSTEM SET a = b;",
    "CREATE ROLE a SUPERUSER;", "alter user shop password 'x';", "DROP  ROLE a;", "CREATE USER a;", "CREATE GROUP a;",
    "CREATE TABLESPACE a LOCATION '/';", "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p;", "GRANT a TO b;",
    "REVOKE a FROM b;", "GRANT CREATE ON DATABASE shop TO web;", "GRANT ALL,\nTEMP ON DATABASE shop TO b;",
    "COMMENT ON DATABASE shop IS 'x';", "COMMENT ON ROLE a IS 'x';", "SECURITY LABEL FOR x ON ROLE a IS 'x';",
)  # fmt: skip


@pytest.mark.parametrize("text", STRANGE)
def test_what_pg_dump_does_not_write_is_refused(text: str) -> None:
    assert "is nothing that pg_dump writes" in refusal(dumped(text))


@pytest.mark.parametrize("text", BEYOND)
def test_what_reaches_beyond_the_database_is_refused(text: str) -> None:
    assert "reaches beyond the database" in refusal(dumped(text))


@pytest.mark.parametrize("encoding", ["SJIS", "BIG5", "GBK"])
def test_an_encoding_in_which_quotes_cannot_be_told_is_refused(encoding: str) -> None:
    assert "expected pg_dump --encoding=UTF8" in refusal(dumped(f"SET client_encoding = '{encoding}';"))


def test_strings_of_the_old_kind_are_refused() -> None:
    assert "standard_conforming_strings is off" in refusal(dumped("SET standard_conforming_strings = off;"))


def test_a_byte_that_would_end_a_statement_early_is_refused() -> None:
    assert "has a byte that no text has" in refusal(dumped("SET a = 1\x00; DROP TABLE t;"))


# --- any text --------------------------------------------------------------------------------------------------------

QUOTED = st.one_of(
    st.text("ab;'\"\\\n-/*$", max_size=12).map(lambda t: "'" + t.replace("'", "''") + "'"),
    st.text("ab;'\"\\\n-/*$", max_size=12).map(lambda t: '"' + t.replace('"', '""') + '"'),
    st.text("ab;'\"\\\n-/*", max_size=12).map(lambda t: f"$q${t}$q$"),
    st.text('ab;"\n-/*$', max_size=12).map(lambda t: "E'" + t + "\\'\\\\'"),
    st.text("ab;'\"\\-$", max_size=12).map(lambda t: f"-- {t}\n"),
    st.text("ab;'\"\\\n-$", max_size=12).map(lambda t: f"/* {t} */"),
    st.sampled_from(["a", "1", "=", "(a; b)", "a$b$c", ","]),
)
STATEMENTS = st.lists(st.lists(QUOTED, max_size=6).map(lambda parts: f"SET {' '.join(parts)} x;"), max_size=5)


@given(STATEMENTS)
def test_whatever_is_quoted_the_statements_are_those_that_were_written(statements: Iterable[str]) -> None:
    written = list(statements)
    found = taken_apart(dumped("\n".join(written) + "\n"))
    assert len(found) == len(written)


@given(st.binary(max_size=200))
def test_no_text_whatever_is_anything_but_told_apart_or_refused(noise: bytes) -> None:
    begins, _, ends = dumped("HERE").partition("HERE")
    examined = refusal(begins.encode() + noise + ends.encode())
    assert examined == "" or examined.startswith("dump.sql")


# --- what pg_restore says --------------------------------------------------------------------------------------------

LISTED: Final = """;
; Archive created at 2026-11-26 11:25:17 EST
;     dbname: shop
;     TOC Entries: 31
;     Compression: gzip
;     Dump Version: 1.16-0
;     Format: CUSTOM
;     Dumped from database version: 18.4
;     Dumped by pg_dump version: 18.4
;
;
; Selected TOC Entries:
;
221; 1259 16406 TABLE public customers shop
2604; 0 16386 TABLE DATA public _prisma_migrations shop
2606; 0 16406 TABLE DATA public customers shop
2620; 0 0 SEQUENCE SET public customers_id_seq shop
"""


def test_the_contents_of_an_archive_are_read() -> None:
    """As pg_restore 18.4 printed them; 15.18 prints the same lines."""
    said = read_contents(LISTED)
    assert (said.major, said.tables, said.database) == (18, 2, "shop")
    assert said.made_at == datetime(2026, 11, 26, 11, 25, 17)  # noqa: DTZ001 # a dump keeps no zone


def test_contents_that_say_nothing_are_of_nothing() -> None:
    said = read_contents("")
    assert (said.major, said.tables, said.database, said.made_at) == (0, 0, "", None)

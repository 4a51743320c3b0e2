"""Who caused it, as far as the evidence goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from lastgood.core.migration import (
    Blame,
    BrokenInvariant,
    DatabaseEvidence,
    Fit,
    FitsSchema,
    SchemaChange,
    SqlError,
    WritesSince,
    foremost,
    judge_migration,
)
from tests.core import planned_worlds

RENAMED = (SchemaChange(object="missions.title", change="is gone (text)"), SchemaChange(object="s.audit", change="new"))
NOTHING = DatabaseEvidence(
    database="app",
    changes=(),
    errors=(),
    broken=(),
    old_release=FitsSchema(fit=Fit.YES, tried=0, reason=""),
    writes=None,
)
CHANGED = replace(NOTHING, changes=RENAMED)


def errors(sqlstate: str, *names: str) -> tuple[SqlError, ...]:
    return (SqlError(sqlstate=sqlstate, names=names, message=f"about {', '.join(names)}", count=31),)


def broken(*, by_migration: int = 0, by_others: int = 0, by_somebody: int = 0) -> tuple[BrokenInvariant, ...]:
    rows = {"by_migration": by_migration, "by_others": by_others, "by_somebody": by_somebody}
    return (BrokenInvariant(invariant="credits", keys=("7",), **rows),)


@pytest.mark.parametrize(
    "evidence,blame",
    [
        pytest.param(NOTHING, Blame.NOBODY, id="nothing"),
        pytest.param(replace(NOTHING, errors=errors("42703", "title")), Blame.NOBODY, id="errors-on-the-same-schema"),
        pytest.param(replace(NOTHING, broken=broken(by_migration=3)), Blame.NOBODY, id="rows-on-the-same-schema"),
        pytest.param(
            replace(NOTHING, broken=broken(by_others=3)), Blame.APPLICATION, id="later-rows-on-the-same-schema"
        ),
        pytest.param(CHANGED, Blame.NOT_PROVED, id="a-difference-alone"),
        pytest.param(replace(CHANGED, errors=errors("42703", "title")), Blame.MIGRATION, id="column-by-name"),
        pytest.param(replace(CHANGED, errors=errors("42P01", "missions")), Blame.MIGRATION, id="its-table-by-name"),
        pytest.param(replace(CHANGED, errors=errors("42501", "x", "audit")), Blame.MIGRATION, id="in-another-schema"),
        pytest.param(
            replace(CHANGED, errors=errors("42703", "mood")), Blame.NOT_PROVED, id="a-name-that-did-not-change"
        ),
        pytest.param(replace(CHANGED, errors=errors("42601")), Blame.NOT_PROVED, id="no-name"),
        pytest.param(replace(CHANGED, errors=errors("23514", "title")), Blame.NOT_PROVED, id="another-class"),
        pytest.param(replace(CHANGED, errors=errors("57014", "title")), Blame.NOT_PROVED, id="a-cancelled-statement"),
        pytest.param(replace(CHANGED, broken=broken(by_migration=1)), Blame.MIGRATION, id="rows-of-the-migration"),
        pytest.param(replace(CHANGED, broken=broken(by_others=9)), Blame.APPLICATION, id="rows-of-later-transactions"),
        pytest.param(replace(CHANGED, broken=broken(by_migration=1, by_others=9)), Blame.MIGRATION, id="rows-of-both"),
        pytest.param(replace(CHANGED, broken=broken(by_somebody=9)), Blame.NOT_PROVED, id="rows-of-nobody-knows-whom"),
        pytest.param(replace(NOTHING, broken=broken(by_somebody=9)), Blame.NOBODY, id="such-rows-on-the-same-schema"),
        pytest.param(
            replace(CHANGED, errors=errors("42703", "title"), broken=broken(by_others=9)),
            Blame.MIGRATION,
            id="error-and-later-rows",
        ),
        pytest.param(
            replace(CHANGED, broken=broken(by_migration=1), storage_faults=("3 pages",)), Blame.STORAGE, id="storage"
        ),
    ],
)
def test_the_evidence_points_there(evidence: DatabaseEvidence, blame: Blame) -> None:
    assert judge_migration(evidence).blame is blame


def test_an_error_is_quoted_with_the_changed_names_alone() -> None:
    (reason,) = judge_migration(replace(CHANGED, errors=errors("42703", "title", "mood"))).reasons
    assert reason == "SQLSTATE 42703, 31 times, names title: about title, mood"


def test_rows_of_later_transactions_are_told_apart_from_those_of_the_migration() -> None:
    reasons = judge_migration(replace(CHANGED, broken=broken(by_migration=1, by_others=9))).reasons
    assert reasons == (
        "invariant credits held before the deploy and is broken in 1 rows that the migration wrote",
        "invariant credits: 9 rows broken by later transactions",
    )


@pytest.mark.parametrize("rows", [broken(by_migration=1), broken(by_others=9)], ids=["migration", "others"])
def test_who_wrote_the_rows_is_said_together_with_the_doubt_about_it(rows: tuple[BrokenInvariant, ...]) -> None:
    assert judge_migration(replace(CHANGED, broken=rows, doubts=("nobody knows",))).reasons[-1] == "nobody knows"
    assert "nobody knows" not in judge_migration(replace(CHANGED, doubts=("nobody knows",))).reasons


def test_rows_of_which_nobody_can_tell_are_named_as_such() -> None:
    (reason,) = judge_migration(replace(CHANGED, broken=broken(by_somebody=9))).reasons
    assert reason == "invariant credits: 9 rows broken, and without a snapshot nobody can tell by whom"


@given(evidence=planned_worlds.evidence)
@settings(max_examples=30)
def test_every_verdict_has_its_reason(evidence: DatabaseEvidence) -> None:
    assert all(judge_migration(evidence).reasons)


@given(evidence=planned_worlds.evidence)
@settings(max_examples=30)
def test_no_migration_is_blamed_without_a_schema_difference(evidence: DatabaseEvidence) -> None:
    assert judge_migration(replace(evidence, changes=())).blame is not Blame.MIGRATION


@given(evidence=planned_worlds.evidence)
@settings(max_examples=30)
def test_storage_that_reports_faults_is_never_a_matter_of_the_schema(evidence: DatabaseEvidence) -> None:
    faulty = replace(evidence, storage_faults=("3 pages failed their checksum",))
    assert judge_migration(faulty).blame is Blame.STORAGE


def test_writes_are_added_up_over_all_tables() -> None:
    assert WritesSince(tables=(("missions", 12), ("users", 3))).total == 15


def test_the_verdict_cites_the_release_in_whose_log_an_error_stands() -> None:
    (error,) = errors("42703", "title")
    verdict = judge_migration(replace(CHANGED, errors=(replace(error, said_by="core of v2"),)))
    assert verdict.blame is Blame.MIGRATION
    assert verdict.reasons == ("SQLSTATE 42703, 31 times in the log of core of v2, names title: about title",)


def test_the_verdict_cites_the_release_in_whose_sessions_an_error_was() -> None:
    (error,) = errors("42703", "title")
    verdict = judge_migration(replace(CHANGED, errors=(replace(error, sent_by="core of v2"),)))
    assert verdict.reasons == ("SQLSTATE 42703, 31 times in sessions of core of v2, names title: about title",)


def test_the_foremost_changes_are_told_as_a_person_reads_them() -> None:
    changes = (
        SchemaChange(object="Mood", change="is new (type e'good', 'bad' rights of webweb USAGE)"),
        SchemaChange(object="notes", change="is new (table rpfalsefalse)"),
        SchemaChange(object="notes.(rights)", change="is new (rights of webweb SELECT)"),
        SchemaChange(object="notes.body", change="is new (column text not null )"),
        SchemaChange(object="notes_id_seq", change="is new (sequence bigint 1 1 1 9 f)"),
        SchemaChange(object="notes_id_seq.(rights)", change="is new (rights of webweb USAGE)"),
        SchemaChange(object="orders.(rights)", change="rights of web SELECT -> rights of web"),
        SchemaChange(object="orders.note", change="is gone (column text )"),
    )
    told, more = foremost(changes)
    assert [str(change) for change in told] == [
        "Mood: is new (type 'good', 'bad')",
        "notes: is new",
        "notes_id_seq: is new",
        "orders.(rights): rights of web SELECT -> rights of web",
        "orders.note: is gone (column text)",
    ]
    assert more == 0

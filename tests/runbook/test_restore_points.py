"""The restore points as a person asks for them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from lastgood.core.errors import Refused
from lastgood.core.facts import BackupFacts
from lastgood.core.migration import Fit, FitsSchema, Rung
from lastgood.core.plan import Plan, Role
from lastgood.core.record import ReleaseCompleted, RestorePointKept
from lastgood.core.report import TerminalState
from lastgood.runbook.doctor import Answer, examine
from lastgood.runbook.restore_points import Added, add, check, look, recover
from lastgood.runbook.rollback import BY_LASTGOOD, plan_rollback
from lastgood.testing.stack import Behaviour
from lastgood.testing.world import START, Crash, clone_of
from tests.runbook.team import BAD, OLD, Team

MIGRATING: Final = Behaviour(errors=0.3, migrations=("m2",))
CANNOT_RUN: Final = FitsSchema(fit=Fit.NO, tried=3, reason="42703 column title")
BACKUP: Final = "backup_pre_deploy.sql"


def test_what_was_taken_is_listed_as_a_way_back(team: Team) -> None:
    team.deploy(BAD)
    (listed,) = look(team.rooms())
    assert (listed.kept, listed.why_not, listed.captured) == (True, "", False)
    assert listed.restore_point == next(iter(team.stack.points.values()))


def test_what_was_exchanged_is_listed_with_what_was_expected(team: Team) -> None:
    team.deploy(BAD)
    (name, manifest), *_ = team.stack.database.manifests
    team.stack.database = replace(team.stack.database, manifests=((name, "another one"),))
    (listed,) = look(team.rooms())
    assert listed.kept
    assert f"its manifest is {'another one'[:12]}, expected {manifest[:12]}" in listed.why_not


def test_what_is_of_a_database_that_was_replaced_is_no_way_back(team: Team) -> None:
    team.deploy(BAD)
    team.stack.database = replace(team.stack.database, foreign=team.stack.database.restore_points)
    (listed,) = look(team.rooms())
    assert "is of a database that was replaced since" in listed.why_not


def test_what_is_gone_is_said_to_be_gone(team: Team) -> None:
    team.deploy(BAD)
    team.stack.database = replace(team.stack.database, manifests=(), databases=frozenset({"app"}))
    (listed,) = look(team.rooms())
    assert not listed.kept
    assert list(check(team.rooms(), None)) == []


def test_a_check_says_of_each_what_is_wrong(team: Team) -> None:
    team.deploy(BAD)
    (name, _), *_ = team.stack.database.manifests
    assert [(one.restore_point.id, one.wrong) for one in check(team.rooms(), None)] == [(name, "")]
    team.stack.database = replace(team.stack.database, manifests=((name, "another"),))
    assert ["is not the one that was proved" in one.wrong for one in check(team.rooms(), name)] == [True]


def test_a_check_of_an_unknown_one_is_refused_with_the_known_ones(team: Team) -> None:
    team.deploy(BAD)
    (name, _), *_ = team.stack.database.manifests
    with pytest.raises(Refused, match=f"'rp-none' not found; known: {name}"):
        list(check(team.rooms(), "rp-none"))


def test_without_a_database_there_are_none(team: Team) -> None:
    team.parts = frozenset({Role.CONTAINERS})
    assert look(team.rooms()) == ()


# --- an own dump -----------------------------------------------------------------------------------------------------


def added(team: Team, file: str = BACKUP, name: str | None = None) -> Added:
    with team.journal.claim(team.who):
        return add(team.rooms(), Path(file), name=name, taken_at=None)


def with_backup(team: Team, *, migrations: tuple[str, ...] = ("m1",)) -> Team:
    """Somebody made a dump by hand."""
    team.stack.own_dumps[BACKUP] = (START - timedelta(minutes=5), migrations)
    return team


def lose_restore_point(team: Team) -> None:
    """What the deploy took is gone; an own dump is not."""
    stack = team.stack
    ours = {name for name, point in stack.points.items() if point.own is None}
    stack.database = replace(
        stack.database,
        databases=stack.database.databases - {clone_of(name) for name in ours},
        manifests=tuple(kept for kept in stack.database.manifests if kept[0] not in ours),
    )


def test_an_own_dump_stands_in_the_journal_with_the_release_whose_schema_it_has(team: Team) -> None:
    kept = added(with_backup(team))
    assert (kept.new, kept.fits, kept.restore_point.id) == (True, OLD, "own-20251231-235500")
    assert [event.restore_point for event in team.events(RestorePointKept)] == [kept.restore_point]


def test_the_same_dump_again_is_noted_once(team: Team) -> None:
    first = added(with_backup(team))
    again = added(team)
    assert (again.new, again.restore_point) == (False, first.restore_point)
    assert len(team.events(RestorePointKept)) == 1


def test_a_dump_of_another_schema_is_refused_and_not_noted(team: Team) -> None:
    with_backup(team, migrations=("m1", "m9"))
    with pytest.raises(Refused, match=f"its schema is not the one that {OLD} left"):
        added(team)
    assert team.events(RestorePointKept) == []


def test_a_dump_is_compared_with_what_a_rollback_would_go_to_also_while_a_bad_release_serves(team: Team) -> None:
    team.deploy(BAD, MIGRATING)
    assert added(with_backup(team)).fits == OLD


def test_what_keeps_a_restore_point_from_being_made_is_said(team: Team) -> None:
    team.stack.obstacles = ("1 GB free, 3 GB needed",)
    with pytest.raises(Refused, match="1 GB free, 3 GB needed"):
        added(with_backup(team))


def test_nothing_is_added_while_a_run_is_not_over(team: Team) -> None:
    def die() -> None:
        raise Crash

    team.stack.takes_s["serve-core"] = 2.0
    team.clock.after(1.0, die)
    with pytest.raises(Crash):
        team.deploy("v3")
    with pytest.raises(Refused, match="did not finish"):
        added(with_backup(team))


def test_the_doctor_counts_on_an_own_dump_where_there_is_nothing_else(team: Team) -> None:
    added(with_backup(team))
    finding = next(f for f in examine(team.rooms()) if f.check == "restore point")
    assert finding.answer is Answer.OK
    assert "own dump: nothing written since could be replayed" in finding.evidence


def test_the_doctor_names_what_the_last_deploy_took_rather_than_an_own_dump(team: Team) -> None:
    team.deploy(BAD)
    added(with_backup(team))
    finding = next(f for f in examine(team.rooms()) if f.check == "restore point")
    assert "own-" not in finding.evidence


def test_a_rollback_goes_to_what_the_deploy_took_while_that_is_there(team: Team) -> None:
    added(with_backup(team))
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    team.when_asked(team.approve)
    team.roll_back()
    assert team.run.plan.database is not None
    assert team.run.plan.database.rung is Rung.D3B


@pytest.mark.parametrize("damaged", [False, True], ids=["gone", "not-what-was-proved"])
def test_else_a_rollback_goes_to_the_own_dump_and_says_what_leaves_before_and_after(
    team: Team, *, damaged: bool
) -> None:
    added(with_backup(team))
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    lose_restore_point(team)
    if damaged:
        others = (("rp-" + name[3:], "another") for name in team.stack.points if not name.startswith("own-"))
        team.stack.database = replace(team.stack.database, manifests=(*team.stack.database.manifests, *others))
    team.when_asked(team.approve)
    report = team.roll_back()
    since = "everything written since 2025-12-31 23:55:00 UTC"
    waiting = next(n for n, line in enumerate(team.told) if line.startswith("waiting at"))
    assert any(line.startswith(f"leaves         {since}") for line in team.told[:waiting])
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert report.uncounted == f"{since}; it is in app_bad_{report.run}"
    assert report.uncounted in team.channel.texts[-1]
    assert f"app_bad_{report.run}" in team.stack.database.databases


def test_a_rollback_to_an_own_dump_that_was_denied_says_of_nothing_that_it_left(team: Team) -> None:
    added(with_backup(team))
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    lose_restore_point(team)
    team.when_asked(team.deny)
    report = team.roll_back()
    assert (report.terminal, report.uncounted) == (TerminalState.DENIED, "")


def test_what_somebody_elses_tool_deployed_goes_back_to_the_dump_that_a_person_made(team: Team) -> None:
    """The procedure's own way: a backup before the deploy, and no restore point of lastgood's."""
    added(with_backup(team))
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    kept = [r for r in team.journal.kept if not isinstance(r.event, RestorePointKept) or r.event.restore_point.own]
    team.journal.kept[:] = [replace(record, seq=seq) for seq, record in enumerate(kept, 1)]
    team.when_asked(team.approve)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.run.plan.database is not None
    assert team.run.plan.database.rung is Rung.D4


def test_the_way_to_an_own_dump_is_never_gone_without_a_person(team: Team) -> None:
    added(with_backup(team))
    team.deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    lose_restore_point(team)
    team.when_asked(team.deny)
    team.watch()
    assert team.run.started.by == BY_LASTGOOD
    assert team.report.terminal is TerminalState.DENIED
    assert team.stack.database.exists


# --- what pgBackRest brings back -------------------------------------------------------------------------------------


def with_backups(team: Team) -> Team:
    """There is a backup of pgBackRest's since before everything that happens here."""
    team.stack.backups = BackupFacts(oldest_at=START - timedelta(days=1), newest_at=START - timedelta(hours=3))
    return team


def lose_clone(team: Team) -> str:
    """Of the newest deploy's restore point nothing can be swapped in any more. Return its name."""
    name, facts = next(reversed(team.stack.points)), team.stack.database
    team.stack.database = replace(
        facts,
        databases=facts.databases - {team.stack.points[name].clone},
        restore_points=facts.restore_points - {name},
    )
    return name


def recovered(team: Team, to: str | None = None) -> Added:
    with team.journal.claim(team.who):
        return recover(team.rooms(), to=to, at=None)


def test_what_only_pgbackrest_could_bring_back_is_refused_with_what_to_type(team: Team) -> None:
    with_backups(team).deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    name = lose_clone(team)
    with pytest.raises(Refused, match="is gone") as refused:
        team.roll_back()
    assert refused.value.hint == f"lastgood restore-points recover --to {name}"


def test_what_is_gone_with_its_disk_is_said_with_what_to_type(team: Team) -> None:
    with_backups(team).deploy(BAD, MIGRATING)
    (name, _), *_ = team.stack.database.manifests
    lose_restore_point(team)
    plan = plan_rollback(team.rooms(), team.history.releases[OLD], plan_id="r1")
    assert any(line.endswith(f"; next: lastgood restore-points recover --to {name})") for line in plan.skipped)


@pytest.mark.parametrize(
    "backups",
    [None, BackupFacts(), BackupFacts(oldest_at=START + timedelta(days=1), newest_at=START + timedelta(days=1))],
    ids=["not-configured", "none", "too-young"],
)
def test_what_pgbackrest_cannot_bring_back_is_not_proposed(team: Team, backups: BackupFacts | None) -> None:
    with_backups(team).deploy(BAD, MIGRATING)
    team.stack.fits, team.stack.backups = CANNOT_RUN, backups
    lose_clone(team)
    with pytest.raises(Refused, match="is gone") as refused:
        team.roll_back()
    assert refused.value.hint == "lastgood restore-points add FILE"


def test_a_rollback_goes_to_what_was_recovered_and_says_that_nothing_since_is_in_it(team: Team) -> None:
    with_backups(team).deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    name = lose_clone(team)
    added_now = recovered(team, to=name)
    assert (added_now.new, added_now.fits) == (True, OLD)
    assert added_now.restore_point.log == team.history.restore_points[name].log
    assert recovered(team).new is False
    team.when_asked(team.approve)
    report = team.roll_back()
    assert report.terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert team.run.plan.database is not None
    assert team.run.plan.database.rung is Rung.D5
    since = f"everything written since {added_now.restore_point.taken_at:%Y-%m-%d %H:%M:%S} UTC"
    assert report.uncounted == f"{since}; it is in app_bad_{report.run}"


def test_what_was_recovered_counts_also_where_nobody_knows_the_schema_that_the_release_left(team: Team) -> None:
    with_backups(team).deploy(BAD, MIGRATING)
    team.stack.fits = CANNOT_RUN
    for known in team.history.releases.values():
        team.journal.append(ReleaseCompleted(release=known.release.id))
    recovered(team, to=lose_clone(team))
    team.when_asked(team.approve)
    team.roll_back()
    assert team.run.plan.database is not None
    assert team.run.plan.database.rung is Rung.D5


def test_a_place_that_no_deploy_noted_is_refused_with_the_known_ones(team: Team) -> None:
    with pytest.raises(Refused, match="no restore point has a place in the server's log"):
        recovered(team)
    with_backups(team).deploy(BAD)
    with pytest.raises(Refused, match=f"'rp-none' has no place .* known: {next(iter(team.stack.points))}"):
        recovered(team, to="rp-none")


def test_the_doctor_says_what_would_keep_a_recovery_from_working(team: Team) -> None:
    assert all(f.check != "point-in-time recovery" for f in examine(team.rooms()))
    with_backups(team)
    fine = next(f for f in examine(team.rooms()) if f.check == "point-in-time recovery")
    assert (fine.answer, fine.hint) == (Answer.OK, "")
    assert fine.evidence.endswith(", 3 h ago")
    team.stack.backups = BackupFacts(wrong=("stanza main has no backup: pgbackrest --stanza=main backup",))
    finding = next(f for f in examine(team.rooms()) if f.check == "point-in-time recovery")
    assert finding.answer is Answer.FAILED
    assert "stanza main has no backup" in finding.evidence


def test_a_deploy_goes_on_without_and_its_plan_says_so(team: Team) -> None:
    team.stack.backups = BackupFacts(wrong=("stanza main has no backup: pgbackrest --stanza=main backup",))
    plans: list[Plan] = []

    def confirm(plan: Plan) -> bool:
        plans.append(plan)
        return True

    team.deploy(BAD, confirm=confirm)
    assert any("pgBackRest could not bring this moment back: stanza main has no" in w for w in plans[0].warnings)

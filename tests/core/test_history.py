"""The journal, folded: what is good, what serves, what is under way; and old journals, which are read for ever.

tests/cases/journal holds one journal of each version that was released, as JSON lines. They are never changed: a new
version that writes other records adds a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lastgood.core.history import History, fold
from lastgood.core.plan import Action, Purpose, Role
from lastgood.core.reading import Bucket, Reading
from lastgood.core.record import (
    EVENT,
    BaselineTaken,
    BucketSeen,
    DeploymentEnded,
    DeploymentStarted,
    Event,
    Frozen,
    Record,
    ReleaseCompleted,
    ReleaseJudged,
    ReleaseLetGo,
    ReleaseRecorded,
    RestorePointKept,
    RunEnded,
    RunStarted,
    Told,
    Unfrozen,
    WatchStarted,
)
from lastgood.core.release import Composed, Deployment, Standing
from lastgood.core.report import TerminalState
from lastgood.core.returning import make_lift_plan
from lastgood.testing.world import START
from tests.core.examples import DEADLINES, EVIDENCE, RESTORE_POINT, deploy_plan, release, rollback_plan
from tests.core.run_records import records, started

JOURNALS = sorted((Path(__file__).parent.parent / "cases" / "journal").glob("*.jsonl"))
RECORD = TypeAdapter(Record)


# --- a story, told in a few words ------------------------------------------------------------------------------------


def put_into_production(name: str, number: int, *, good: bool = True) -> list[Event]:
    """Release `name` is recorded, deployed as d<number>, and judged."""
    deployment = Deployment(id=f"d{number}", release=name, previous=None, started_at=START)
    told: list[Event] = [
        ReleaseRecorded(release=release(name)),
        DeploymentStarted(deployment=deployment, serving=True),
    ]
    return [*told, ReleaseJudged(release=name, good=True, by="lastgood")] if good else told


def going_back(left: str, back: str, number: int, *, terminal: TerminalState, serving: str) -> list[Event]:
    """Run r<number> goes from one release to another, and ends so."""
    plan = replace(rollback_plan(None), id=f"r{number}", from_release=left, to_release=back)
    return [
        RunStarted(run=plan.id, plan=plan, trigger="person", sentence="", by="ada"),
        RunEnded(run=plan.id, terminal=terminal, serving=serving),
    ]


def rolled_back(left: str, back: str, number: int = 1) -> list[Event]:
    return going_back(left, back, number, terminal=TerminalState.ROLLED_BACK_VERIFIED, serving=back)


def told(*events: Iterable[Event]) -> History:
    return fold(records(*(event for part in events for event in part)))


def last_good(history: History) -> str | None:
    found = history.last_good(before=history.serving)
    return found.release.id if found else None


# --- where a rollback goes -------------------------------------------------------------------------------------------

A, B, C = put_into_production("a", 1), put_into_production("b", 2), put_into_production("c", 3)
NOT_GOOD = put_into_production("c", 3, good=False)


@pytest.mark.parametrize(
    "story,target",
    [
        pytest.param([], None, id="nothing-is-known"),
        pytest.param([A], None, id="only-what-serves"),
        pytest.param([A, B], "a", id="the-one-before"),
        pytest.param(
            [A, put_into_production("b", 2, good=False), NOT_GOOD], "a", id="one-that-was-not-good-is-left-out"
        ),
        pytest.param([A, B, rolled_back("b", "a")], None, id="nothing-older-than-what-is-back"),
        pytest.param([A, B, NOT_GOOD, rolled_back("c", "b")], "a", id="a-second-rollback-goes-on-to-the-next-older"),
        pytest.param(
            [A, B, NOT_GOOD, rolled_back("c", "b"), rolled_back("b", "a", 2)], None, id="a-third-has-nowhere-to-go"
        ),
        pytest.param([A, B, C, rolled_back("c", "a")], None, id="never-one-that-was-deployed-later"),
        pytest.param([A, B, put_into_production("a", 3)], "b", id="what-serves-again-is-not-its-own-target"),
        pytest.param(
            [A, B, put_into_production("a", 3), put_into_production("b", 4, good=False)],
            "a",
            id="the-newest-deployment-counts",
        ),
        pytest.param(
            [[ReleaseRecorded(release=release("z")), ReleaseJudged(release="z", good=True, by="ada")], NOT_GOOD],
            "z",
            id="one-that-a-person-vouched-for-without-a-deployment",
        ),
    ],
)
def test_the_last_good_release_is_the_newest_good_one_before_what_serves(
    story: Sequence[list[Event]], target: str | None
) -> None:
    assert last_good(told(*story)) == target


def test_a_release_of_another_compose_project_is_no_way_back() -> None:
    """As where two stacks noted their releases in one journal."""
    composed = {name: Composed(project=p, files=("c.yml",), version="2") for name, p in (("a", "shop"), ("b", "stg"))}
    events = [event for part in (A, B, C) for event in part]
    composed["c"] = composed["a"]
    noted = [
        replace(e, release=replace(e.release, composed=composed[e.release.id])) if isinstance(e, ReleaseRecorded) else e
        for e in events
    ]
    assert last_good(told(noted)) == "a"


ROLLED_BACK = [TerminalState.ROLLED_BACK_VERIFIED, TerminalState.ROLLED_BACK_DEGRADED]
STOPPED = [TerminalState.DENIED, TerminalState.ABORTED_BY_HUMAN, TerminalState.NEEDS_HUMAN, TerminalState.REFUSED]
NAMES = ("a", "b", "c", "d")
stories = st.lists(
    st.one_of(
        st.tuples(st.just("deploy"), st.sampled_from(NAMES), st.booleans()),
        st.tuples(st.just("roll back"), st.sampled_from([*ROLLED_BACK, *STOPPED]), st.booleans()),
        st.tuples(st.just("vouch"), st.sampled_from(NAMES), st.booleans()),
    ),
    max_size=10,
)


def happened(story: Sequence[tuple[str, str, bool]]) -> list[Event]:
    """Make events of a story; what could not have happened in it is left out."""
    events: list[Event] = []
    deployments = runs = 0
    for what, name, yes in story:
        history = fold(records(*events))
        match what:
            case "deploy":
                deployments += 1
                events += put_into_production(name, deployments, good=yes)[0 if name not in history.releases else 1 :]
            case "vouch" if name in history.releases:
                events.append(ReleaseJudged(release=name, good=yes, by="ada"))
            case "roll back" if (back := last_good(history)) is not None:
                runs += 1
                serving = back if yes or name in ROLLED_BACK else history.serving
                events += going_back(history.serving, back, runs, terminal=TerminalState(name), serving=serving)
            case _:
                pass
    return events


@given(story=stories)
@settings(max_examples=60)
def test_a_target_is_good_does_not_serve_and_was_not_deployed_later(story: Sequence[tuple[str, str, bool]]) -> None:
    history = fold(records(*happened(story)))
    target = history.last_good(before=history.serving)
    if target is None:
        return
    order = [d.deployment.release for d in history.deployments.values()]
    name = target.release.id
    assert (name != history.serving, target.standing) == (True, Standing.GOOD)
    assert name not in order[len(order) - order[::-1].index(history.serving) :]


@given(story=stories)
@settings(max_examples=60)
def test_rollbacks_in_a_row_never_come_back_to_where_they_were(story: Sequence[tuple[str, str, bool]]) -> None:
    events = happened(story)
    been = [fold(records(*events)).serving]
    while (target := last_good(fold(records(*events)))) is not None:
        events += rolled_back(been[-1], target, 100 + len(been))
        been.append(target)
    assert len(set(been)) == len(been)


# --- what is barred --------------------------------------------------------------------------------------------------


def standing(history: History, name: str) -> Standing:
    return history.releases[name].standing


@pytest.mark.parametrize("terminal", ROLLED_BACK, ids=str)
def test_a_release_that_was_rolled_back_is_barred(terminal: TerminalState) -> None:
    history = told(A, B, going_back("b", "a", 1, terminal=terminal, serving="a"))
    assert standing(history, "b") is Standing.BARRED


@pytest.mark.parametrize("terminal", STOPPED, ids=str)
def test_a_release_that_serves_still_is_not_barred(terminal: TerminalState) -> None:
    history = told(A, B, going_back("b", "a", 1, terminal=terminal, serving="b"))
    assert standing(history, "b") is Standing.GOOD


@pytest.mark.parametrize("terminal", [t for t in STOPPED if t is not TerminalState.REFUSED], ids=str)
def test_a_release_that_a_stopped_rollback_put_out_of_production_is_barred(terminal: TerminalState) -> None:
    history = told(A, B, going_back("b", "a", 1, terminal=terminal, serving="a"))
    assert standing(history, "b") is Standing.BARRED


def test_a_release_whose_frontend_alone_went_back_is_not_barred() -> None:
    began, ended = rolled_back("b", "a")
    assert isinstance(began, RunStarted)
    part = replace(began, plan=replace(began.plan, scope=(Role.FRONTEND,)))
    assert standing(told(A, B, [part, ended]), "b") is Standing.GOOD


def test_a_refused_rollback_bars_nothing() -> None:
    history = told(A, B, going_back("b", "a", 1, terminal=TerminalState.REFUSED, serving="a"))
    assert standing(history, "b") is Standing.GOOD


def test_what_a_lifted_fence_leaves_in_place_is_not_barred() -> None:
    lift = make_lift_plan(rollback_plan(EVIDENCE), plan_id="r2", now=START, deadlines=DEADLINES)
    assert lift is not None
    run = (
        RunStarted(run="r2", plan=lift, trigger="compensation", sentence="", by="lastgood"),
        RunEnded(run="r2", terminal=TerminalState.ROLLED_BACK_VERIFIED, serving="bad"),
    )
    assert standing(told(put_into_production("bad", 1), run), "bad") is Standing.GOOD


def test_a_barred_release_does_not_become_good_by_being_recorded_again() -> None:
    history = told(A, B, rolled_back("b", "a"), [ReleaseRecorded(release=release("b"))])
    assert standing(history, "b") is Standing.BARRED


def test_a_person_may_vouch_for_a_release() -> None:
    history = told(NOT_GOOD, [ReleaseJudged(release="c", good=True, by="ada", why="we looked")])
    assert (standing(history, "c"), history.releases["c"].judged_by) == (Standing.GOOD, "ada: we looked")


# --- what serves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [None, *TerminalState], ids=str)
def test_what_serves_after_a_run_is_what_was_seen_at_its_end(terminal: TerminalState | None) -> None:
    run = (
        RunStarted(run="r1", plan=rollback_plan(None), trigger="person", sentence="", by="ada"),
        RunEnded(run="r1", terminal=terminal, serving="seen"),
    )
    assert told(A, run).serving == "seen"


def test_what_somebody_else_deployed_serves() -> None:
    assert told(A).serving == "a"


def test_a_deployment_that_only_began_does_not_serve_yet() -> None:
    begun = DeploymentStarted(deployment=Deployment(id="d9", release="b", previous="a", started_at=START))
    assert told(A, [begun]).serving == "a"


# --- what is under way -----------------------------------------------------------------------------------------------

RUN = RunStarted(run="r1", plan=rollback_plan(None), trigger="person", sentence="slow", by="ada", deployment="d1")


def test_a_run_without_an_end_is_open() -> None:
    open_run = told(A, [RUN]).open_run
    assert open_run is not None
    assert open_run.started is RUN


def test_a_run_that_ended_is_not_open() -> None:
    assert told(A, [RUN, RunEnded(run="r1", terminal=TerminalState.REFUSED, serving="a")]).open_run is None


def test_a_run_keeps_its_own_records_in_their_order() -> None:
    other = replace(RUN, run="r2")
    history = told(A, [RUN, other, started("pass-gate"), replace(started("fence"), run="r2"), started("serve-core")])
    assert [r.event for r in history.runs["r1"].records] == [started("pass-gate"), started("serve-core")]


def test_the_newest_deployment_is_open_until_it_ends() -> None:
    open_deployment = told(A, B).open_deployment
    assert open_deployment is not None
    assert open_deployment.deployment.id == "d2"


def test_a_deployment_that_was_refused_leaves_the_watch_of_the_one_before_it_alone() -> None:
    refused = DeploymentEnded(deployment="d2", terminal=TerminalState.REFUSED, sentence="")
    open_deployment = told(A, B, [refused]).open_deployment
    assert open_deployment is not None
    assert open_deployment.deployment.id == "d1"


def test_behind_any_other_end_an_older_deployment_is_not_open_again() -> None:
    ended = DeploymentEnded(deployment="d2", terminal=TerminalState.HEALTHY_KEPT, sentence="")
    assert told(A, B, [ended]).open_deployment is None


def test_a_part_that_went_back_does_not_end_the_deployment() -> None:
    part = replace(RUN, plan=replace(RUN.plan, scope=(Role.FRONTEND,)))
    ended = RunEnded(run="r1", terminal=TerminalState.ROLLED_BACK_VERIFIED, serving="a")
    assert told(A, [part, ended]).deployments["d1"].ended is None


@pytest.mark.parametrize("terminal", TerminalState, ids=str)
def test_a_run_with_an_ending_ends_its_deployment_too(terminal: TerminalState) -> None:
    ended = told(A, [RUN, RunEnded(run="r1", terminal=terminal, serving="a")]).deployments["d1"].ended
    assert ended == DeploymentEnded(deployment="d1", terminal=terminal, sentence="slow")


def test_a_run_without_an_ending_leaves_its_deployment_to_the_watch() -> None:
    assert told(A, [RUN, RunEnded(run="r1", terminal=None, serving="a")]).deployments["d1"].ended is None


def test_the_ending_of_a_deployment_stays_what_it_was() -> None:
    first = DeploymentEnded(deployment="d1", terminal=TerminalState.SUPERSEDED, sentence="")
    late = RunEnded(run="r1", terminal=TerminalState.REFUSED, serving="a")
    assert told(A, [RUN, first, late]).deployments["d1"].ended is first


def test_the_run_that_deployed_is_told_from_the_one_that_rolled_back() -> None:
    deploying = replace(RUN, run="r0", plan=deploy_plan())
    found = told(A, [deploying, RUN]).deploy_run("d1")
    assert found is not None
    assert found.plan.purpose is Purpose.DEPLOY


def test_what_somebody_else_deployed_has_no_run() -> None:
    assert told(A, [RUN]).deploy_run("d1") is None


def test_a_message_belongs_to_its_run_and_one_without_a_run_to_none() -> None:
    said = Told(run="r1", channel="#dev-ops", text="", delivered=True)
    assert told(A, [RUN, said, replace(said, run="")]).runs["r1"].told == [said]


def test_a_message_counts_as_told_once_it_arrived() -> None:
    said = Told(run="", channel="#dev-ops", text="", delivered=False, event="r1-ask")
    assert told([said]).told == set()
    assert told([said, replace(said, delivered=True)]).told == {("#dev-ops", "r1-ask")}


def test_deploys_are_frozen_until_somebody_lifts_it() -> None:
    frozen = Frozen(by="lastgood", why="rollback r1")
    assert (told([frozen]).frozen, told([frozen, Unfrozen(by="ada", why="mended")]).frozen) == (frozen, None)


@pytest.mark.parametrize(
    "story,releases",
    [
        pytest.param([], [], id="nothing-is-known"),
        pytest.param([A], ["a"], id="what-serves-and-is-good"),
        pytest.param([A, NOT_GOOD], ["a"], id="the-last-good-one-before-what-is-bad"),
        pytest.param([A, B], ["a", "b"], id="the-one-before-and-for-the-next-deploy-what-serves"),
        pytest.param([A, B, rolled_back("b", "a")], ["a"], id="what-came-back"),
        pytest.param([NOT_GOOD], [], id="none-is-good"),
    ],
)
def test_a_rollback_would_go_to_these(story: Sequence[list[Event]], releases: list[str]) -> None:
    assert [known.release.id for known in told(*story).goes_back_to()] == releases


def test_a_restore_point_is_that_of_the_deployment_it_was_taken_for() -> None:
    taken = replace(RESTORE_POINT, id=told(A, B).restore_point_id("d2"))
    history = told(A, B, [RestorePointKept(restore_point=taken)])
    assert (history.restore_point_of("d1"), history.restore_point_of("d2")) == (None, taken)


# --- what was learnt -------------------------------------------------------------------------------------------------


def test_a_frontend_that_was_learnt_is_not_forgotten_by_what_is_learnt_next() -> None:
    learnt = ReleaseCompleted(release="a", fingerprint="f1", frontend="dpl_a")
    history = told(A, [learnt, replace(learnt, fingerprint="f2", frontend="")])
    assert (history.releases["a"].fingerprint, history.releases["a"].frontend) == ("f2", "dpl_a")


def test_a_release_may_call_itself_what_it_said_when_it_served() -> None:
    said = ReleaseCompleted(release="a", says=("2.0.3", "v2.0.3"))
    history = told(A, [said, ReleaseCompleted(release="a")])
    assert history.releases["a"].names == {"2.0.3", "v2.0.3"}


def test_a_release_that_never_said_its_name_goes_by_its_own() -> None:
    assert told(A).releases["a"].names == {"a"}


def test_restore_points_of_two_journals_have_different_names() -> None:
    """They outlive a journal that is lost, and the next one counts its deployments from 1 again."""
    one, other = (History(journal=name * 8) for name in ("4f6c2d1e", "9b0c3d5e"))
    assert one.restore_point_id("d2") != other.restore_point_id("d2")


def test_a_second_watch_of_a_deployment_begins_with_empty_hands() -> None:
    """The bake after a rollback is not judged by what the bad release did."""
    seen_ = BucketSeen(deployment="d1", bucket=Bucket(at=START, looks=()))
    watch = WatchStarted(deployment="d1", at=START, window_s=60.0)
    bake = replace(watch, bake=True)
    under = told(A, [BaselineTaken(deployment="d1", buckets=(seen_.bucket,)), watch, seen_, bake]).deployments["d1"]
    assert (under.watch, under.buckets, under.baseline) == (bake, [], (seen_.bucket,))


# --- old journals ----------------------------------------------------------------------------------------------------


@cache
def journal(path: Path) -> tuple[Record, ...]:
    return tuple(RECORD.validate_json(line) for line in path.read_text().splitlines())


def kinds(union: object) -> set[str]:
    """The `kind` of every class of a union, however deep."""
    return {
        cast("Any", member).__dataclass_fields__["kind"].default if not get_args(member) else kind
        for member in get_args(union)
        for kind in (kinds(member) if get_args(member) else {""})
    }


def mentioned(value: object) -> set[object]:
    """Every `kind` in a value read from JSON, however deep."""
    match value:
        case dict():
            own = {value["kind"]} if "kind" in value else set[object]()
            return own.union(*map(mentioned, value.values()))
        case list():
            return set[object]().union(*map(mentioned, value))
        case _:
            return set()


def kept(old: object, now: object) -> bool:
    """Whether everything that `old` says is still in `now`, which may say more."""
    match old, now:
        case dict(), dict():
            return all(key in now and kept(value, now[key]) for key, value in old.items())
        case list(), list():
            return len(old) == len(now) and all(map(kept, old, now))
        case _:
            return old == now


def test_a_release_that_is_let_go_of_is_no_target_until_it_is_recorded_again() -> None:
    gone = ReleaseLetGo(release="a", why="not among the newest 5")
    assert last_good(told(A, B, [gone])) is None
    assert told(A, B, [gone]).releases["a"].let_go == "not among the newest 5"
    again = replace(release("a"), commit="0" * 40)
    history = told(A, B, [gone, ReleaseRecorded(release=again)])
    assert (last_good(history), history.releases["a"].release) == ("a", again)


@pytest.mark.parametrize("union", [Event, Action, Reading], ids=["events", "steps", "readings"])
def test_every_kind_is_in_the_journal_of_the_newest_version(union: object) -> None:
    lines = [json.loads(line) for line in JOURNALS[-1].read_text().splitlines()]
    assert kinds(union) - mentioned(lines) == set()


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
def test_an_old_journal_is_read_without_losing_a_word(path: Path) -> None:
    lines = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert [
        old for old in lines if not kept(old, json.loads(EVENT.dump_json(EVENT.validate_json(json.dumps(old)))))
    ] == []


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
def test_an_old_journal_leads_to_a_history(path: Path) -> None:
    history = fold(journal(path))
    assert (history.serving, history.last_seq, history.open_run) == ("old", len(journal(path)), None)


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
def test_an_approval_of_an_old_journal_is_still_that_of_its_plan(path: Path) -> None:
    """An upgrade in the middle of a run must not ask again behind the fence: a field that is added to plans stays out
    of the hash where it has its default."""
    history = fold(journal(path))
    approvals = [r.event for r in journal(path) if r.event.kind == "approval_given"]
    assert [a.plan_hash for a in approvals] == [history.runs[a.run].plan.hash for a in approvals]


# --- folding in parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
def test_folding_in_two_parts_is_folding_at_once(path: Path) -> None:
    whole = fold(journal(path))
    for at in range(len(journal(path)) + 1):
        assert fold(journal(path)[at:], fold(journal(path)[:at])) == whole, f"split at {at}"


@given(story=stories)
@settings(max_examples=40)
def test_folding_one_by_one_is_folding_at_once(story: Sequence[tuple[str, str, bool]]) -> None:
    events = records(*happened(story))
    history = History()
    for record in events:
        fold([record], history)
    assert history == fold(events)


def test_the_name_of_a_journal_is_the_hash_of_its_first_record() -> None:
    first, *rest = journal(JOURNALS[0])
    assert fold(rest, fold([first])).journal == first.hash

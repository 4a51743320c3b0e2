"""The hour after a deploy: what ends it, who is told, and what is never done."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from lastgood.core.errors import Refused, Retryable
from lastgood.core.ports import Right
from lastgood.core.reading import NoData, Reading, SourceDown
from lastgood.core.record import BaselineTaken
from lastgood.core.release import Standing
from lastgood.core.report import TerminalState
from lastgood.testing.memory_stack import DOES_NOT_FIT
from lastgood.testing.world import Crash
from tests.runbook.stack import ALL_WELL, BAKE_S, HALF_ERRORS, SILENT, WINDOW_S, Stack

DOWN = SourceDown(reason="connection refused")
BLIND = [pytest.param(NoData(reason="nothing"), id="no-data"), pytest.param(DOWN, id="down")]


def dies() -> None:
    raise Crash


def cut_off(stack: Stack, after_s: float) -> None:
    """Watch, and have the process die that many seconds from now."""
    stack.clock.after(after_s, dies)
    with pytest.raises(Crash):
        stack.watch()


def test_a_release_that_stays_well_for_the_window_is_kept_as_good(stack: Stack) -> None:
    assert stack.deploy_and_watch("v2").terminal is TerminalState.HEALTHY_KEPT
    assert stack.standing("v2") is Standing.GOOD


def test_a_release_that_turns_bad_is_rolled_back(stack: Stack) -> None:
    assert stack.deploy_and_watch("bad").terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert stack.serves == "v1"


@pytest.mark.parametrize("blind", BLIND)
def test_blindness_never_rolls_back(stack: Stack, blind: Reading) -> None:
    stack.deploy("bad")
    stack.traffic.instead = stack.agent.instead = blind
    assert stack.watch().terminal is TerminalState.INCONCLUSIVE_KEPT
    assert stack.serves == "bad"


@pytest.mark.parametrize("blind", BLIND)
def test_blindness_pages_once(stack: Stack, blind: Reading) -> None:
    stack.deploy("v2")
    stack.traffic.instead = blind
    cut_off(stack, 100)
    stack.watch()
    assert len(stack.said("blind to traffic")) == 1 + len(stack.said("was kept, but is not proved good"))


def test_a_single_missed_look_pages_nobody(stack: Stack) -> None:
    stack.deploy("v2")
    stack.clock.after(50, lambda: setattr(stack.traffic, "instead", DOWN))
    stack.clock.after(56, lambda: setattr(stack.traffic, "instead", None))
    assert stack.watch().terminal is TerminalState.HEALTHY_KEPT
    assert not stack.said("blind")


def test_blind_to_traffic_and_a_probe_that_fails_as_well_rolls_back(stack: Stack) -> None:
    stack.agent.sick["v2"] = SILENT
    stack.deploy("v2")
    stack.traffic.instead = DOWN
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED


def test_a_window_of_which_less_than_nine_tenths_were_seen_is_not_good(stack: Stack) -> None:
    stack.deploy("v2")
    stack.clock.after(100, lambda: setattr(stack.traffic, "instead", DOWN))
    stack.clock.after(100 + 0.12 * WINDOW_S, lambda: setattr(stack.traffic, "instead", None))
    assert stack.watch().terminal is TerminalState.INCONCLUSIVE_KEPT
    assert stack.standing("v2") is Standing.RECORDED


def test_a_window_of_which_nine_tenths_were_seen_is_good(stack: Stack) -> None:
    stack.deploy("v2")
    stack.clock.after(100, lambda: setattr(stack.traffic, "instead", DOWN))
    stack.clock.after(100 + 0.08 * WINDOW_S, lambda: setattr(stack.traffic, "instead", None))
    assert stack.watch().terminal is TerminalState.HEALTHY_KEPT


def test_a_watch_that_is_taken_up_ends_with_the_hour_that_it_began(stack: Stack) -> None:
    stack.deploy("v2")
    began = stack.clock.now()
    cut_off(stack, 200)
    stack.watch()
    assert (stack.clock.now() - began).total_seconds() == pytest.approx(WINDOW_S, abs=6)


def test_a_watch_that_is_taken_up_keeps_its_evidence(stack: Stack) -> None:
    stack.deploy("bad")
    cut_off(stack, 14)
    taken_up_at = stack.clock.now()
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (decided_at(stack) - taken_up_at).total_seconds() < detection_s(Stack(stack.folder / "uninterrupted"))


def decided_at(stack: Stack) -> datetime:
    decided = stack.run.started.decided_at
    assert decided is not None
    return decided


def detection_s(stack: Stack) -> float:
    """How long a bad release needs to be noticed by a watch that nobody interrupts."""
    stack.deploy("bad")
    began = stack.clock.now()
    stack.watch()
    return (decided_at(stack) - began).total_seconds()


def test_a_watch_whose_process_was_away_for_long_is_not_good(stack: Stack) -> None:
    stack.deploy("v2")
    cut_off(stack, 100)
    stack.clock.sleep(WINDOW_S / 2)
    assert stack.watch().terminal is TerminalState.INCONCLUSIVE_KEPT


def test_a_second_watcher_is_refused(stack: Stack) -> None:
    stack.deploy("v2")
    refused: list[str] = []

    def second() -> None:
        with pytest.raises(Refused) as said:
            stack.watch()
        refused.append(said.value.message)

    stack.clock.after(50, second)
    stack.watch()
    assert len(refused) == 1


def test_a_watcher_waits_for_one_that_was_superseded_and_lets_go_at_its_next_look(stack: Stack) -> None:
    stack.deploy("v2")
    with ExitStack() as other:
        other.enter_context(stack.journal.claim("bob", Right.WATCH))
        stack.clock.after(6, other.pop_all().close)
        assert stack.watch().terminal is TerminalState.HEALTHY_KEPT


def test_mode_observe_only_says_so_and_says_it_once(tmp_path: Path) -> None:
    stack = Stack(tmp_path, mode="observe")
    assert stack.deploy_and_watch("bad").terminal is TerminalState.INCONCLUSIVE_KEPT
    assert stack.serves == "bad"
    assert len(stack.said("Mode observe: nothing is done")) == 1


def test_mode_propose_waits_for_a_person(tmp_path: Path) -> None:
    stack = Stack(tmp_path, mode="propose")
    stack.deploy("bad")
    seen: list[str] = []
    stack.clock.after(300, lambda: seen.append(stack.serves))
    stack.clock.after(301, stack.approve)
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert seen == ["bad"]


def test_a_person_is_asked_once(tmp_path: Path) -> None:
    stack = Stack(tmp_path, mode="propose")
    stack.deploy("bad")
    stack.clock.after(300, stack.approve)
    stack.watch()
    assert len(stack.said("A person must approve")) == 1


def test_a_trigger_that_was_red_before_is_not_armed_and_says_so(stack: Stack) -> None:
    stack.traffic.well = HALF_ERRORS
    outcome = stack.deploy_and_watch("v2")
    assert outcome.report is None
    assert any("already over its limit before the deploy" in line for line in [*stack.story, outcome.sentence])


def test_a_baseline_is_read_before_the_first_effect(stack: Stack) -> None:
    stack.deploy("bad")
    (taken,) = [e for e in stack.events(BaselineTaken) if isinstance(e, BaselineTaken)]
    assert [b.reading("traffic") for b in taken.buckets] == [ALL_WELL] * 6


def test_planning_that_fails_for_now_is_told_once_and_tried_again(stack: Stack) -> None:
    stack.deploy("bad")
    stack.containers.trouble.away = Retryable("the engine does not answer", delay_s=1)
    stack.clock.after(120, lambda: setattr(stack.containers.trouble, "away", None))
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert len(stack.said("no way back can be planned now")) == 1


def test_without_a_good_release_it_is_told_that_nothing_was_touched(stack: Stack) -> None:
    stack.deploy("bad")
    stack.containers.trouble.away = Refused("the socket refuses", hint="chmod")
    outcome = stack.watch()
    assert outcome.terminal is TerminalState.REFUSED
    assert len(stack.said("Rollback refused, nothing was touched: the socket refuses")) == 1


def test_a_newer_deploy_supersedes_the_watch(stack: Stack) -> None:
    stack.deploy("v2")
    stack.clock.after(100, lambda: stack.deploy("v3"))
    assert stack.watch().terminal is TerminalState.SUPERSEDED


def test_a_failing_bake_rolls_nothing_back(stack: Stack) -> None:
    stack.deploy_and_watch("bad")
    stack.traffic.instead = HALF_ERRORS
    runs = len(stack.history.runs)
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_DEGRADED
    assert len(stack.history.runs) == runs
    assert len(stack.said("the system is bad still or again")) == 1


def test_a_bake_without_a_trigger_ends_after_its_own_window(stack: Stack) -> None:
    stack.deploy_and_watch("bad")
    began = stack.clock.now()
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert (stack.clock.now() - began).total_seconds() == pytest.approx(BAKE_S, abs=6)


def test_a_blind_bake_pages_and_names_what_serves(stack: Stack) -> None:
    """The watch was blind before it rolled back; that the bake is blind too is another event."""
    stack.agent.sick["bad"] = SILENT
    stack.deploy("bad")
    stack.traffic.instead = DOWN
    stack.watch()
    stack.watch()
    assert len(stack.said("watching bad, blind to traffic")) == 1
    assert len(stack.said("baking v1, blind to traffic")) == 1


def test_a_blind_bake_says_so_at_its_end(stack: Stack) -> None:
    stack.deploy_and_watch("bad")
    stack.traffic.instead = DOWN
    assert "traffic" in stack.watch().sentence


@pytest.mark.parametrize("mode", ["observe", "automatic"])
def test_a_watch_beside_a_persons_rollback_ends_with_it_and_blames_the_bake_for_nothing(
    tmp_path: Path, mode: str
) -> None:
    stack = Stack(tmp_path, mode=mode)
    stack.deploy("bad")
    stack.clock.after(100 if mode == "observe" else 8, stack.roll_back)
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert not stack.said("bad still or again")


def test_a_rollback_that_ended_while_signals_were_read_is_not_rolled_back_in_turn(stack: Stack) -> None:
    """v1 and v2 are good, and bad comes after them: with v2 back, v1 must not be next."""
    stack.deploy_and_watch("v2")
    stack.deploy("bad")
    stack.journal.meanwhile.append(stack.roll_back)
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert stack.serves == "v2"


def test_a_verdict_while_another_process_holds_the_right_to_run_is_tried_again(stack: Stack) -> None:
    stack.deploy("bad")
    with ExitStack() as other:
        other.enter_context(stack.journal.claim("bob"))
        stack.clock.after(120, other.pop_all().close)
    assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert stack.serves == "v1"
    assert len(stack.said("no way back can be planned now")) == 1


def test_a_window_that_ends_while_a_rollback_waits_does_not_make_the_release_good(tmp_path: Path) -> None:
    """A person's rollback waits for an approval, and the watch beside it sees nothing bad."""
    stack = Stack(tmp_path, database=True)
    stack.database.brings["v2"], stack.database.fit = ("m1",), DOES_NOT_FIT
    stack.deploy("v2")
    with ExitStack() as other:
        other.enter_context(waiting_rollback(stack))
        stack.clock.after(WINDOW_S + 60, other.pop_all().close)
        stack.clock.after(WINDOW_S + 70, stack.approve)
        assert stack.watch().terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert stack.standing("v2") is Standing.BARRED


def waiting_rollback(stack: Stack) -> AbstractContextManager[object]:
    """A rollback that got as far as its question, and whose process lives as long as the block."""
    stack.clock.after(5, dies)
    with pytest.raises(Crash):
        stack.roll_back()
    return stack.journal.claim("bob")

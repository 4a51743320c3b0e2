"""What takes long says so while it does, and a replay says how far it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from lastgood.core.plan import Step
from lastgood.core.report import Progress, RowProgress, RowWork, TerminalState
from lastgood.runbook import by_hand, carry_out
from lastgood.runbook.patience import if_slow
from tests.runbook.team import Team
from tests.runbook.test_rollback import CANNOT_RUN, MIGRATING, deployed

TRANSACTIONS = Progress(done=7, at_bytes=1, end_bytes=2_000_001)
ROWS = RowProgress(work=RowWork.PUT_BACK, done=7, of=9)


@pytest.mark.parametrize(
    "slow,now,line",
    [
        ("catch-up", TRANSACTIONS, "  7 transactions replayed, 2.0 MB of log left"),
        ("replay-writes", TRANSACTIONS, "  7 transactions replayed, 2.0 MB of log left"),
        ("export-writes", ROWS, "  7 of 9 rows put back"),
        ("replay-writes", ROWS, "  7 of 9 rows put back"),
    ],
)
def test_a_replay_that_takes_long_says_how_far_it_is_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: str, now: Progress | RowProgress, line: str
) -> None:
    team = Team.with_a_good_release(tmp_path)
    team.stack.captures = now is TRANSACTIONS
    deployed(team, MIGRATING, CANNOT_RUN)
    monkeypatch.setattr(carry_out, "SLOW_S", 0.0)
    monkeypatch.setattr(carry_out, "LOOK_S", 0.001)
    told, heard, take = list[str](), Event(), team.stack.take

    def takes_long(step: Step) -> None:
        if step.name == slow:
            team.stack.progress = now
            assert heard.wait(timeout=10)
            team.stack.progress = None
        take(step)

    def update(line: str) -> None:
        told.append(line)
        heard.set()

    monkeypatch.setattr(team.stack, "take", takes_long)
    team.when_asked(team.approve)
    rooms = replace(team.rooms(), update=update, if_slow=if_slow)
    assert by_hand.go_back(rooms).terminal is TerminalState.ROLLED_BACK_VERIFIED
    assert set(told) == {line}

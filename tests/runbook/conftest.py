from __future__ import annotations

from pathlib import Path

import pytest

from tests.runbook.team import Team


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """One team in mode automatic, whose v1 serves and is good."""
    return Team.with_a_good_release(tmp_path)

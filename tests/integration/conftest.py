from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.rigs.compose import ComposeWorld, world


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ComposeWorld]:
    """A compose project of its own, with its database up and nothing else."""
    with world(tmp_path) as made:
        made.compose("up", "--detach", "db")
        yield made

"""Stacks in memory, each with a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runbook.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """Mode automatic, containers alone."""
    return Stack(tmp_path)

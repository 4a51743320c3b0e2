"""What is said where nothing of the edge runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.errors import Retryable
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import connect
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.look import look
from lastgood.targets.compose.stack import Stack
from tests.targets.engine_double import engine_double

CONFIG = ContainersConfig.model_validate(
    {
        "compose": {"project": "shop", "files": ["a b.yml", "docker-compose.edge.yml"], "profiles": ["jobs"]},
        "services": ["web"],
        "edge": {"routes": {"web": 80}},
    }
)
UP = "docker compose --project-name shop --file 'a b.yml' --file docker-compose.edge.yml --profile jobs up --detach"
TWIN: dict[str, Any] = {
    "Id": "1",
    "Name": "/shop-web-v1",
    "Config": {"Labels": {"lastgood.candidate": "shop:v1", "lastgood.service": "web"}},
}


class NoTime:
    """Nothing waits here."""

    def now(self) -> datetime:
        return datetime(2026, 1, 5, tzinfo=UTC)

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


@pytest.mark.parametrize("containers,typed", [([], UP), ([TWIN], f"{UP} --no-deps lastgood-edge")])
def test_an_edge_that_is_gone_is_started_without_copies_of_what_serves(
    containers: list[dict[str, Any]], typed: str, tmp_path: Path
) -> None:
    stack = Stack(config=CONFIG, root=tmp_path, state=tmp_path, shelf=Shelf(tmp_path), clock=NoTime())
    assert CONFIG.edge is not None
    with engine_double(tmp_path / "engine.sock") as double:
        double.containers += containers
        with (
            connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as engine,
            pytest.raises(Retryable) as missing,
        ):
            look(stack, engine, Edge(CONFIG.edge, stack))
    assert missing.value.hint == typed

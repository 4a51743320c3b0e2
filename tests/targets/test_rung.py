"""The rung that is told before anything moves, by what stands beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from lastgood.targets.compose.engine import Container
from lastgood.targets.compose.look import Look
from lastgood.targets.compose.project import LABEL_CANDIDATE, LABEL_RELEASE, LABEL_RESTART, LABEL_SERVICE
from lastgood.targets.compose.rung import choose_rung
from tests.targets.running_haproxy import edge_in


def web(*, runs: bool) -> Container:
    """An instance of v1, as the gate makes it."""
    labels = {LABEL_CANDIDATE: "shop:v1", LABEL_SERVICE: "web", LABEL_RELEASE: "v1", LABEL_RESTART: "no"}
    state = {"Status": "running" if runs else "exited", "Running": runs, "ExitCode": 0}
    return Container({"Id": "1", "Name": "/web", "Image": "sha256:1", "Config": {"Labels": labels}, "State": state})


@pytest.mark.parametrize(
    "running,stopped,at_least,said",
    [
        (1, 0, 1, "L0: v1 runs beside"),
        (3, 0, 3, "L0: v1 runs beside"),
        (1, 2, 3, "L2: 1 of 3 of v1 run beside"),
        (0, 3, 3, "L1: v1 stands beside and does not run"),
        (0, 2, 3, "L2: 0 of 3 of v1 run beside"),
        (0, 0, 3, "L2: nothing of v1 stands beside"),
    ],
)
def test_a_release_is_warm_when_all_of_it_runs(
    tmp_path: Path, running: int, stopped: int, at_least: int, said: str
) -> None:
    seen = Look(
        serving=(),
        beside=tuple(web(runs=True) for _ in range(running)),
        stateful=(),
        stopped=tuple(web(runs=False) for _ in range(stopped)),
    )
    chosen = choose_rung("web", seen, edge_in(tmp_path), release="v1", at_least=at_least)
    assert f"{chosen.rung.value}: {chosen.why}" == said

"""What is said where something failed once the first container had changed: not that nothing was touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.plan import Retire, Serve
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Engine, connect
from lastgood.targets.compose.kept import KeptRelease
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.recreate import recreate, recreate_behind
from lastgood.targets.compose.retire import retire
from lastgood.targets.compose.stack import Stack
from lastgood.testing.world import SteppedClock
from tests.targets.engine_double import EngineDouble, engine_double
from tests.targets.running_haproxy import PROJECT, edge_in

IMAGE = f"sha256:{1:064x}"
ACTION = Serve(release="v1", service="web", artifact=IMAGE, config_hash="")
AWAY = Retryable("the docker engine does not answer", delay_s=2.0)
GONE = Refused("the docker engine refused: dead or marked for removal")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EngineDouble]:
    """web, in one container that is sick; its image is held."""
    labels = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
    with engine_double(tmp_path / "engine.sock") as made:
        made.images.append({"Id": IMAGE, "RepoTags": ["lastgood/web:v1"], "RepoDigests": [], "Config": {}})
        made.containers.append(
            {
                "Id": f"{1:064x}",
                "Name": "/shop-web-1",
                "Image": IMAGE,
                "Config": {"Tty": False, "Labels": {**labels, "com.docker.compose.config-hash": "1"}},
                "State": {"Status": "running", "Running": True, "Health": {"Status": "unhealthy"}},
                "NetworkSettings": {},
            }
        )
        yield made


@pytest.fixture
def engine(double: EngineDouble, tmp_path: Path) -> Iterator[Engine]:
    assert double.containers
    with connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as made:
        yield made


@pytest.fixture
def kept(stack: Stack) -> KeptRelease:
    return stack.shelf.keep("v1", PROJECT, (ServiceRecord(name="web", artifact=IMAGE, held_as="lastgood/web:v1"),))


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return edge_in(tmp_path).stack


@pytest.mark.parametrize("status", [500, 409])
@pytest.mark.parametrize("asked", ["containers json", f"containers {1:064x} logs"])
def test_a_service_that_was_recreated_is_not_called_untouched(
    stack: Stack,
    double: EngineDouble,
    engine: Engine,
    kept: KeptRelease,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    asked: str,
) -> None:
    def start(*_: object, **__: object) -> None:
        double.says[f"GET {asked}"] = (status, {"message": "it went away"})

    monkeypatch.setattr(Stack, "start", start)
    with pytest.raises(OutcomeUnknown, match=r"recreating web of v1: .* it went away"):
        recreate(stack, engine, kept, ACTION, deadline_s=5.0)


@pytest.mark.parametrize("in_time", [True, False])
def test_a_service_is_waited_for_also_where_compose_took_longer_than_it_may_take_to_stop_and_to_boot(
    stack: Stack,
    double: EngineDouble,
    engine: Engine,
    kept: KeptRelease,
    monkeypatch: pytest.MonkeyPatch,
    in_time: bool,
) -> None:
    clock, state = SteppedClock(), double.containers[0]["State"]

    def start(*_: object, **__: object) -> None:
        clock.sleep(stack.config.stop + stack.config.boot + 5.0)
        state["Health"] = {"Status": "starting"}
        if in_time:
            clock.after(4.0, lambda: state.update(Health={"Status": "healthy"}))

    monkeypatch.setattr(Stack, "start", start)
    with nullcontext() if in_time else pytest.raises(OutcomeUnknown, match="is not healthy 5 s after its start"):
        recreate(replace(stack, clock=clock), engine, kept, ACTION, deadline_s=600.0)


@pytest.mark.parametrize("error", [AWAY, GONE])
def test_a_service_that_was_to_stop_is_not_called_untouched(
    stack: Stack, engine: Engine, kept: KeptRelease, monkeypatch: pytest.MonkeyPatch, error: LastgoodError
) -> None:
    def away(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Engine, "start_again", lambda *_: None)
    monkeypatch.setattr(Engine, "retire", away)
    other = stack.shelf.keep("v0", Project({"name": "shop", "services": {}}), ())
    assert kept.name != other.name
    with pytest.raises(OutcomeUnknown, match=f"stopping web: {error.message}"):
        retire(stack, engine, None, other, Retire(release="v0", service="web"), deadline_s=5.0)


@pytest.mark.parametrize("error", [AWAY, GONE, None])
def test_requests_that_may_wait_on_are_not_called_untouched(
    tmp_path: Path, engine: Engine, kept: KeptRelease, monkeypatch: pytest.MonkeyPatch, error: LastgoodError | None
) -> None:
    """Whether or not the service was recreated, and whatever for: the edge does not say that they go on."""
    edge = edge_in(tmp_path, one_at_a_time=["web"])

    def away(*_: object, **__: object) -> None:
        raise Retryable("the edge does not answer", delay_s=1.0)

    def recreated(*_: object, **__: object) -> None:
        if error:
            raise error

    for method in ("hold", "drain"):
        monkeypatch.setattr(Edge, method, lambda *_, **__: None)
    monkeypatch.setattr(Edge, "admit", away)
    monkeypatch.setattr("lastgood.targets.compose.recreate.recreate", recreated)
    expected = f"web of v1 may still wait: {error.message if error else 'the edge does not answer'}"
    with pytest.raises(OutcomeUnknown, match=expected):
        recreate_behind(edge.stack, engine, edge, kept, ACTION, deadline_s=5.0)

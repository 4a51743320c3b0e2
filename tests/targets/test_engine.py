"""What the engine's answers mean, on one that says what no real one can be made to say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.engine import AT_ONCE, Container, Engine, Ties, at_once, connect
from lastgood.targets.compose.images import ensure_image
from tests.targets.engine_double import EngineDouble, engine_double

DIGEST = f"registry.example/shop/web@sha256:{'a' * 64}"
WEB = ServiceRecord(name="web", artifact="sha256:1", held_as="lastgood/shop/web:v1", digest=DIGEST)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[EngineDouble]:
    with engine_double(tmp_path / "engine.sock") as made:
        yield made


@pytest.fixture
def engine(double: EngineDouble, tmp_path: Path) -> Iterator[Engine]:
    with connect("shop", {"DOCKER_HOST": f"unix://{tmp_path / 'engine.sock'}"}) as made:
        yield made


def test_a_pull_that_fails_after_it_began_is_told_as_the_engine_tells_it(double: EngineDouble, engine: Engine) -> None:
    """The status is 200 by then; taken for a success, the image that is not there was told to be another one now."""
    full = "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"
    double.says["POST images create"] = (200, {"errorDetail": {"message": full}, "error": full})
    with pytest.raises(Refused, match=rf"the image of web .* cannot be pulled: {full}"):
        ensure_image(engine, WEB)


@pytest.mark.parametrize(
    "status,asked,changed", [(500, Retryable, OutcomeUnknown), (409, Refused, Refused), (404, Refused, Refused)]
)
def test_what_an_engine_began_and_failed_at_is_not_known(
    double: EngineDouble, engine: Engine, status: int, asked: type[LastgoodError], changed: type[LastgoodError]
) -> None:
    double.says["GET networks"] = double.says["POST containers web start"] = (status, {"message": "no space left"})
    with pytest.raises(asked, match="no space left"):
        engine.networks()
    with pytest.raises(changed, match="starting web: no space left"):
        engine.start("web", named="web")


@pytest.mark.parametrize("priority", [None, 0, 10])
def test_a_twin_goes_by_the_gateway_by_which_its_service_does(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, priority: int | None
) -> None:
    """An engine that can be told (28) takes all networks with the container, and the SDK has no word for it later."""
    networks: dict[str, Any] = {name: {"Links": None, "DriverOpts": {"of": name}} for name in ("back", "front")}
    if priority is not None:
        networks["back"]["GwPriority"], networks["front"]["GwPriority"] = 0, priority
    mold = {
        "Id": "mold",
        "Config": {},
        "HostConfig": {"NetworkMode": "back"},
        "NetworkSettings": {"Networks": networks},
    }
    made: dict[str, Any] = {}
    later: list[str] = []

    def create(_api: object, config: dict[str, Any], _name: str | None) -> dict[str, Any]:
        made.update(config["NetworkingConfig"]["EndpointsConfig"])
        return {"Id": "twin"}

    monkeypatch.setattr(APIClient, "create_container_from_config", create)
    monkeypatch.setattr(APIClient, "connect_container_to_network", lambda _, _at, network, **__: later.append(network))
    engine.twin(Container(mold), {}, ties=Ties(name="web-v1", alias="shop.web.v1", links=(("shop.api.v1", "api"),)))
    assert (set(made), later) == (({"back", "front"}, []) if priority else ({"back"}, ["front"]))
    assert made.get("front", {}).get("GwPriority", 0) == (priority or 0)
    for name, endpoint in made.items():
        kept = (endpoint["Aliases"], endpoint["Links"], endpoint["DriverOpts"])
        assert kept == (["shop.web.v1"], ["shop.api.v1:api"], {"of": name})


def test_a_log_that_no_driver_gives_back_is_empty(double: EngineDouble, engine: Engine) -> None:
    """`logging: driver: none`, or one that sends it elsewhere and keeps none: 501 from a real engine, each time."""
    double.containers.append({"Id": "web", "Name": "/web", "Config": {"Tty": False}})
    said = {"message": "configured logging driver does not support reading"}
    double.says["GET containers web logs"] = (501, said)
    assert engine.logs("web", lines=50) == ""
    double.says["GET containers web logs"] = (500, said)
    with pytest.raises(Retryable, match="does not support reading"):
        engine.logs("web", lines=50)


def test_what_is_done_to_many_is_done_side_by_side_and_to_all_of_them_whatever_fails() -> None:
    meet, done = threading.Barrier(3, timeout=20), list[str]()

    def act(name: str) -> None:
        meet.wait()
        done.append(name)
        if name != "web":
            raise Retryable(f"{name} does not end", delay_s=1.0)

    with pytest.raises(Retryable, match="api does not end"):
        at_once(act, ["web", "api", "worker"])
    assert sorted(done) == ["api", "web", "worker"]
    at_once(act, [])


def test_of_many_only_some_are_done_at_once_and_the_engine_has_its_time_for_each() -> None:
    busy, most, lock = [0], [0], threading.Lock()

    def act(_: int) -> None:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.02)
        with lock:
            busy[0] -= 1

    at_once(act, range(3 * AT_ONCE))
    assert most == [AT_ONCE]


def test_of_several_faults_the_one_that_leaves_most_open_is_told() -> None:
    said = {"web": Retryable("web does not answer", delay_s=1.0), "api": OutcomeUnknown("api was told to stop")}

    def act(name: str) -> None:
        raise said[name]

    with pytest.raises(OutcomeUnknown, match="api was told to stop"):
        at_once(act, ["web", "api"])

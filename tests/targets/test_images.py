"""The names from which compose starts the services: whose image they are after a release was built that does not
serve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.engine import connect
from lastgood.targets.compose.images import name_again
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Project
from tests.targets.engine_double import EngineDouble, engine_double

BUILT = {"api": {"build": {"context": "."}}}
OWN_NAME = {"api": {"build": {"context": "."}, "image": "registry:5000/shop/api"}}
PULLED = {"api": {"image": "shop/api:stable"}}
SHARED = {"api": {"image": "shop/api:stable"}, "seed": {"image": "shop/api:stable", "build": {"context": "."}}}


def image(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass
class Names:
    """v1 serves, and v2, which does not, was made last. Image 1 is of v1, 2 of v2, 3 of nobody."""

    engine: EngineDouble
    shelf: Shelf
    host: str

    def keep(self, release: str, number: int, services: dict[str, Any]) -> str:
        project = Project({"name": "shop", "services": services})
        reference = project.reference("api")
        held = f"lastgood/shop/api:{release}"
        record = ServiceRecord(name="api", artifact=image(number), held_as=held, reference=reference)
        self.shelf.keep(release, project, (record,))
        self.engine.images.append({"Id": image(number), "RepoTags": [held], "RepoDigests": [], "Config": {}})
        self.tag(number, reference)
        return reference

    def tag(self, number: int, reference: str) -> None:
        tagged = reference if ":" in reference.rsplit("/", 1)[-1] else f"{reference}:latest"
        for known in self.engine.images:
            known["RepoTags"] = [tag for tag in known["RepoTags"] if tag != tagged]
            if known["Id"] == image(number):
                known["RepoTags"].append(tagged)

    def both(self, services: dict[str, Any]) -> str:
        self.keep("v1", 1, services)
        return self.keep("v2", 2, services)

    def again(self) -> tuple[str, ...]:
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            return tuple(name_again(self.shelf, engine, "v1"))

    def named(self, reference: str) -> str:
        with connect("shop", {"DOCKER_HOST": self.host}) as engine:
            found = engine.image(reference)
            return str(found["Id"]) if found else ""


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    with engine_double(tmp_path / "engine.sock") as engine:
        yield Names(engine, Shelf(tmp_path / "state"), f"unix://{tmp_path / 'engine.sock'}")


@pytest.mark.parametrize("services", [BUILT, OWN_NAME, SHARED])
def test_a_name_that_a_build_moved_is_of_what_serves_again_and_stays_so(names: Names, services: dict[str, Any]) -> None:
    reference = names.both(services)
    assert names.named(reference) == image(2)
    assert names.again() == (f"{reference}, from which compose starts api, is the image of v1 again",)
    assert names.named(reference) == image(1)
    assert names.again() == ()


def test_a_name_that_a_registry_moves_stays_and_is_told(names: Names) -> None:
    reference = names.both(PULLED)
    (said,) = names.again()
    assert said.startswith(f"docker compose up would start api from {reference}, which is the image of v2")
    assert said.endswith(f"docker tag lastgood/shop/api:v1 {reference}")
    assert names.named(reference) == image(2)


def test_what_somebody_built_since_keeps_its_name(names: Names) -> None:
    reference = names.both(BUILT)
    names.engine.images.append({"Id": image(3), "RepoTags": [], "RepoDigests": [], "Config": {}})
    names.tag(3, reference)
    assert (names.again(), names.named(reference)) == ((), image(3))


def test_a_name_that_only_the_other_release_has_stays(names: Names) -> None:
    names.keep("v1", 1, {"api": {"build": {"context": "."}, "image": "shop/api:1"}})
    theirs = names.keep("v2", 2, {"api": {"build": {"context": "."}, "image": "shop/api:2"}})
    assert (names.again(), names.named(theirs)) == ((), image(2))


def test_a_name_that_cannot_be_moved_is_told_with_what_to_type(names: Names) -> None:
    reference = names.both(BUILT)
    names.engine.says[f"POST images {image(1)} tag"] = (500, {"message": "no space left on device"})
    (said,) = names.again()
    assert "no space left on device" in said
    assert said.endswith(f"next: docker tag lastgood/shop/api:v1 {reference}")

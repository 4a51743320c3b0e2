"""What `lastgood init --edge` makes of a lastgood.yaml that a person wrote, and of the ports of a service."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from lastgood.assembly import EdgePlan
from lastgood.cli.first_config import with_edge
from lastgood.core.config import ContainersConfig, parse_config
from lastgood.targets.compose.edge_setup import write_edge
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK

MINE = """\
# ours
version: 1
stack: shop
containers:
  compose: {project: shop}      # one host
  services: [web, uploads, worker]
"""
PLAN = EdgePlan(
    routes={"web": 8000, "uploads": 9000},
    one_at_a_time={"uploads": "it writes to the volume files"},
    left_out={"worker": "worker: it runs celery"},
)


def test_the_section_is_added_and_all_else_is_as_it_was() -> None:
    written = with_edge(MINE, PLAN, "docker-compose.edge.yml")
    assert written.startswith("# ours\n")
    assert "# one host" in written
    config = parse_config(written, file="lastgood.yaml", env={}, read_file=lambda _name: "").containers
    assert config is not None
    assert config.edge is not None
    assert config.compose.files == ("docker-compose.yml", "docker-compose.edge.yml")
    assert dict(config.edge.routes) == {"web": 8000, "uploads": 9000}
    assert config.edge.one_at_a_time == ("uploads",)


@pytest.mark.parametrize(
    "replicas,published", [(1, ["21270-21272"]), (2, ["21270", "21271"]), (3, ["21270", "21271", "21272"])]
)
def test_the_edge_has_as_many_ports_of_a_range_as_its_service_had(
    replicas: int, published: list[str], tmp_path: Path
) -> None:
    web = {"image": "web", "deploy": {"replicas": replicas}, "ports": [{"target": 80, "published": "21270-21272"}]}
    project = Project({"name": "shop", "services": {"web": web}})
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web"]})
    stack = Stack(config=config, root=tmp_path, state=tmp_path, shelf=Shelf(tmp_path), clock=CLOCK)
    plan = EdgePlan(routes={"web": 80}, one_at_a_time={}, left_out={})
    write_edge(stack, project, plan, into=tmp_path / "edge.yml")
    written = (tmp_path / "edge.yml").read_text().replace("!reset ", "")
    ports = YAML(typ="safe").load(written)["services"]["lastgood-edge"]["ports"]
    assert [port["published"] for port in ports] == published

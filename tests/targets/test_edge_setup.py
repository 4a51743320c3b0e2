"""What `lastgood init --edge` makes of a lastgood.yaml that a person wrote."""

from __future__ import annotations

from lastgood.assembly import EdgePlan
from lastgood.cli.first_config import with_edge
from lastgood.core.config import parse_config

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

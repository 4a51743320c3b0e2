"""What is said of a lastgood.yaml that cannot be used: file, line, column, and what was expected there."""

from __future__ import annotations

import pytest

from lastgood.core.config import Config, parse_config
from lastgood.core.errors import ConfigError

GOOD = """\
version: 1
stack: shop
process:
  services:
    web: {command: [web, "${PORT_FLAG}"], port: 8000}
"""


def parse(text: str, **files: str) -> Config:
    def read_file(name: str) -> str:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return parse_config(text, file="lastgood.yaml", env={"PORT_FLAG": "--port"}, read_file=read_file)


def test_references_are_filled_in_wherever_they_stand() -> None:
    config = parse(GOOD + "database: {postgres: {name: shop, user: shop, password: file:secret}}\n", secret="horse\n")
    assert config.process is not None
    assert config.process.services["web"].command == ("web", "--port")
    assert config.database is not None
    assert config.database.postgres.password is not None
    assert config.database.postgres.password.reveal() == "horse"


@pytest.mark.parametrize(
    "added,said",
    [
        pytest.param("watch: {windou: 1h}\n", "6:9: watch.windou: unknown key; known here: bake,", id="unknown-key"),
        pytest.param("watch:\n  window: 60\n", "7:11: watch.window: expected a duration with its unit", id="no-unit"),
        pytest.param(
            "watch:\n  triggers:\n    slow: {kind: latency, limit: 5s, quantile: 95}\n",
            "8:48: watch.triggers.slow.quantile: expected a quantile like p95",
            id="below-a-union",
        ),
        pytest.param("verify:\n  health: ['http://127.0.0.1:1/', ftp://x]\n", "7:35: verify.health.1:", id="in-a-list"),
        pytest.param(
            "database: {postgres: {name: shop}}\n",
            "6:22: database.postgres.user: expected, but not there",
            id="missing",
        ),
        pytest.param("state: ${NOWHERE}\n", "6:8: state: the environment has no NOWHERE", id="no-variable"),
        pytest.param("state: file:none\n", "6:8: state: cannot read file:none: No such file", id="no-file"),
        pytest.param("state: &a x\nmode: *a\n", "7:7: aliases are not read here", id="alias"),
        pytest.param("state: x\nstate: y\n", "7:1: found duplicate key", id="key-twice"),
        pytest.param("state: [\n", "7:1: ", id="not-yaml"),
        pytest.param(
            "containers: {compose: {project: shop}, services: [web]}\n",
            "1:1: file: expected exactly one of containers and process",
            id="whole-file",
        ),
    ],
)
def test_a_fault_is_shown_with_its_place_and_what_was_expected(added: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(GOOD + added)
    assert refused.value.message.startswith(f"lastgood.yaml:{said}")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_whose_top_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected settings like"):
        parse(text)


def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        parse(GOOD + "#" * (1 << 20))

"""Whose a state folder is: of two stacks in one folder, neither goes back to the other's releases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lastgood.assembly import SystemClock, build, own_state
from lastgood.core.config import ContainersConfig
from lastgood.core.errors import ConfigError, Refused
from lastgood.core.record import ReleaseJudged, ReleaseRecorded
from lastgood.core.release import Composed
from lastgood.journal.sqlite import SqliteJournal
from lastgood.runbook.owner import MARK
from lastgood.runbook.rollback import choose_target, plan_rollback
from lastgood.runbook.rooms import Rooms, silent
from tests.core.examples import release
from tests.runbook.team import Team

PROCESS = "process: {services: {api: {command: [api], port: 8000}}}"


def config(root: Path, file: str, project: str, *, state: str = ".lastgood") -> Path:
    path = root / file
    path.write_text(
        f"version: 1\nstack: shop\nstate: {state}\ncontainers:\n  compose:\n    project: {project}\n  services: [api]\n"
    )
    return path


def use(path: Path) -> Rooms:
    """As each command does."""
    return build(path, silent)


def record(root: Path, project: str | None, name: str = "v1", *, state: str = ".lastgood") -> None:
    """A release as it stands in a journal; project: None where the engine is not compose."""
    composed = Composed(project=project, files=("docker-compose.yml",), version="2.26.1") if project else None
    (root / state).mkdir(exist_ok=True)
    journal = SqliteJournal(root / state, clock=SystemClock())
    journal.append(ReleaseRecorded(release=replace(release(name), composed=composed)))


def test_the_state_of_one_stack_is_refused_to_another(tmp_path: Path) -> None:
    prod, staging = config(tmp_path, "prod.yaml", "shop"), config(tmp_path, "stg.yaml", "shop-stg")
    use(staging)
    record(tmp_path, "shop-stg")
    with pytest.raises(ConfigError) as refused:
        use(prod)
    assert refused.value.message == (
        f"{prod}:6:14: containers.compose.project: {tmp_path}/.lastgood is kept for compose project shop-stg, and this "
        "is compose project shop: each stack needs a state folder of its own"
    )
    assert refused.value.hint == "state: .lastgood-shop in prod.yaml"
    use(staging)
    use(config(tmp_path, "prod.yaml", "shop", state=".lastgood-shop"))


@pytest.mark.parametrize("folder", ["edge/haproxy.cfg", "releases/v1"])
def test_what_lies_there_belongs_to_a_stack_before_the_journal_has_a_record(tmp_path: Path, folder: str) -> None:
    use(config(tmp_path, "stg.yaml", "shop-stg"))
    (tmp_path / ".lastgood" / folder).mkdir(parents=True)
    with pytest.raises(ConfigError):
        use(config(tmp_path, "prod.yaml", "shop"))


def test_a_name_that_was_mistyped_at_first_takes_no_folder(tmp_path: Path) -> None:
    use(config(tmp_path, "lastgood.yaml", "shpo"))
    use(config(tmp_path, "lastgood.yaml", "shop"))
    record(tmp_path, "shop")
    with pytest.raises(ConfigError):
        use(config(tmp_path, "lastgood.yaml", "shpo"))


def test_a_state_of_an_older_version_is_taken_over_by_the_project_of_its_newest_release(tmp_path: Path) -> None:
    record(tmp_path, "shop-stg")
    record(tmp_path, "shop", "v2")
    with pytest.raises(ConfigError, match="is kept for compose project shop, "):
        use(config(tmp_path, "stg.yaml", "shop-stg"))
    assert not (tmp_path / ".lastgood" / MARK).exists()
    use(config(tmp_path, "prod.yaml", "shop"))
    assert (tmp_path / ".lastgood" / MARK).read_text() == "compose project shop\n"


def test_a_state_whose_releases_name_no_project_is_taken_over(tmp_path: Path) -> None:
    record(tmp_path, None)
    path = tmp_path / "lastgood.yaml"
    path.write_text(f"version: 1\nstack: shop\n{PROCESS}\n")
    use(path)
    path.write_text(f"version: 1\nstack: till\n{PROCESS}\n")
    with pytest.raises(
        ConfigError, match=r"lastgood.yaml:2:8: stack: .* is kept for stack shop, and this is stack till"
    ):
        use(path)


def test_a_journal_that_cannot_be_read_keeps_nobody_from_looking_at_it(tmp_path: Path) -> None:
    record(tmp_path, "shop")
    (tmp_path / ".lastgood" / "journal.head").write_text("?")
    assert use(config(tmp_path, "lastgood.yaml", "shop")).memory.journal.verify()
    assert not (tmp_path / ".lastgood" / MARK).exists()


def test_a_release_of_another_project_in_the_same_journal_is_no_target(team: Team) -> None:
    for name, project in (("ours", "shop"), ("theirs", "shop-stg")):
        composed = Composed(project=project, files=("docker-compose.yml",), version="2.26.1")
        team.journal.append(ReleaseRecorded(release=replace(release(name), composed=composed)))
        team.journal.append(ReleaseJudged(release=name, good=True, by="ada"))
    rooms = team.rooms()
    containers = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["api"]})
    rooms = replace(rooms, config=rooms.config.model_copy(update={"containers": containers, "process": None}))
    with pytest.raises(Refused, match="theirs is of compose project shop-stg, and this is shop") as refused:
        plan_rollback(rooms, choose_target(team.history, "theirs"), plan_id="r1")
    assert refused.value.hint == "lastgood rollback ours"


def test_a_second_stack_of_a_folder_gets_a_state_of_its_own_from_init(tmp_path: Path) -> None:
    assert own_state(tmp_path, "shop") == ".lastgood"
    record(tmp_path, "shop-stg")
    assert own_state(tmp_path, "shop-stg") == ".lastgood"
    assert own_state(tmp_path, "shop") == ".lastgood-shop"

"""Code that services have from the checkout: when a release can keep a copy of it, and what the copy is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lastgood.core.config import ContainersConfig
from lastgood.core.errors import Refused
from lastgood.core.release import KeptCode, ServiceRecord
from lastgood.targets import tree
from lastgood.targets.compose.code import keep_code
from lastgood.targets.compose.kept import Shelf
from lastgood.targets.compose.obstacles import bound_code, obstacles
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.stack import Stack
from tests.contract.rigs.clock import CLOCK


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with the code of one service in `app`."""
    (tmp_path / "root" / ".git").mkdir(parents=True)
    app = tmp_path / "root" / "app"
    (app / "node_modules" / "left-pad").mkdir(parents=True)
    (app / "main.py").write_text("print(1)")
    (app / "run.sh").write_text("python main.py")
    (app / "run.sh").chmod(0o755)
    (app / "node_modules" / "left-pad" / "index.js").write_text("x")
    return tmp_path / "root"


def bind(source: Path, target: str = "/app", *, read_only: bool = True) -> Json:
    return {"type": "bind", "source": str(source), "target": target, "read_only": read_only}


def project(**mounts: list[Json]) -> Project:
    services: Mapping[str, Any] = {name: {"image": name, "volumes": found} for name, found in mounts.items()}
    return Project({"name": "shop", "services": dict(services)})


def said(project: Project, root: Path) -> list[str]:
    return list(obstacles(project, "web", root=root, boot_s=60))


def test_code_that_is_mounted_read_only_is_no_obstacle(root: Path) -> None:
    model = project(web=[bind(root / "app")])
    assert said(model, root) == []
    (found,) = bound_code(model, "web", root=root)
    assert (found.relative, found.inside, found.why_not) == ("app", "/app", "")


def test_code_that_the_service_may_write_to_is_one_and_says_what_to_do(root: Path) -> None:
    (line,) = said(project(web=[bind(root / "app", read_only=False)]), root)
    assert "web runs code from a bind mount" in line
    assert "the service may write there" in line
    assert "mount it read-only (:ro)" in line


@pytest.mark.parametrize("theirs", ["app", "app/node_modules", "."])
def test_code_that_another_service_may_write_to_is_one_and_names_it(root: Path, theirs: str) -> None:
    model = project(web=[bind(root / "app")], editor=[bind(root / theirs, "/x", read_only=False)])
    (line,) = said(model, root)
    assert f"editor may write there ({root / theirs})" in line


def test_a_mount_that_holds_more_than_the_checkout_is_one(root: Path) -> None:
    (line,) = said(project(web=[bind(root.parent)]), root)
    assert "it holds more than the checkout" in line


def test_a_folder_without_code_and_one_outside_of_the_checkout_are_left_as_they_are(root: Path, tmp_path: Path) -> None:
    for folder, file in ((root / "settings", "app.yaml"), (tmp_path / "elsewhere", "main.py")):
        folder.mkdir()
        (folder / file).write_text("x")
    model = project(web=[bind(root / "settings"), bind(tmp_path / "elsewhere", "/srv")])
    assert list(bound_code(model, "web", root=root)) == []
    assert said(model, root) == []


# --- the copy -------------------------------------------------------------------------------------------------------


def kept(source: Path, shelf: Path, *, hollow: tuple[Path, ...] = ()) -> tree.Kept:
    return tree.keep_by_content(source, shelf, leave_out=(source / ".git",), hollow=hollow)


def test_a_copy_holds_what_the_service_sees_and_git_s_own_files_not(root: Path, tmp_path: Path) -> None:
    (root / "app" / ".git").mkdir()
    (root / "app" / ".git" / "HEAD").write_text("x")
    (root / "app" / "latest").symlink_to("main.py")
    copy = kept(root / "app", tmp_path / "code").path
    assert sorted(str(p.relative_to(copy)) for p in copy.rglob("*")) == [
        "latest",
        "main.py",
        "node_modules",
        "node_modules/left-pad",
        "node_modules/left-pad/index.js",
        "run.sh",
    ]
    assert (copy / "latest").readlink() == Path("main.py")
    assert os.access(copy / "run.sh", os.X_OK)


def test_what_another_mount_hides_is_not_copied_and_can_still_be_mounted_on(root: Path, tmp_path: Path) -> None:
    hidden = root / "app" / "node_modules"
    copy = kept(root / "app", tmp_path / "code", hollow=(hidden,))
    (hidden / "left-pad" / "index.js").write_text("another")
    assert list((copy.path / "node_modules").iterdir()) == []
    assert kept(root / "app", tmp_path / "code", hollow=(hidden,)) == copy


def test_the_same_code_is_kept_once_and_other_code_beside_it(root: Path, tmp_path: Path) -> None:
    first = kept(root / "app", tmp_path / "code")
    assert kept(root / "app", tmp_path / "code") == first
    (root / "app" / "main.py").write_text("print(2)")
    second = kept(root / "app", tmp_path / "code")
    assert second.path != first.path
    assert (first.path / "main.py").read_text() == "print(1)"
    assert len(list((tmp_path / "code").iterdir())) == 2


def test_a_single_file_is_kept_as_one(root: Path, tmp_path: Path) -> None:
    copy = kept(root / "app" / "main.py", tmp_path / "code")
    assert copy.path.read_text() == "print(1)"


def test_a_copy_that_was_changed_is_not_taken_for_the_code(root: Path, tmp_path: Path) -> None:
    copy = kept(root / "app", tmp_path / "code")
    (copy.path / "main.py").write_text("print(3)")
    assert not tree.holds(tmp_path / "code", copy.artifact)
    with pytest.raises(FileExistsError, match="was changed since it was kept"):
        kept(root / "app", tmp_path / "code")


def test_how_large_a_copy_would_be_is_known_before_it_is_made(root: Path) -> None:
    (root / "app" / ".git").mkdir()
    (root / "app" / ".git" / "pack").write_bytes(b"x" * 1000)
    code = len("print(1)") + len("python main.py") + len("x")
    assert tree.size_bytes(root / "app", leave_out={root / "app" / ".git"}) == code
    assert tree.size_bytes(root / "app" / "main.py", leave_out=()) == len("print(1)")


# --- with a release -------------------------------------------------------------------------------------------------


def shelve(shelf: Shelf, release: str, copy: tree.Kept) -> None:
    record = ServiceRecord(
        name="web",
        artifact="sha256:1",
        held_as=f"lastgood/web:{release}",
        code=(KeptCode(source="app", inside="/app", tree=copy.artifact),),
    )
    shelf.keep(release, project(web=[bind(copy.path)]), (record,))


def test_a_release_whose_code_was_changed_or_is_gone_does_not_start(root: Path, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "state")
    copy = kept(root / "app", shelf.code)
    shelve(shelf, "v1", copy)
    found = shelf.find("v1")
    assert found is not None
    assert shelf.project(found).mounts("web")[0]["source"] == str(copy.path)
    (copy.path / "main.py").unlink()
    with pytest.raises(Refused, match=r"the code of web \(app\) is not what v1 was recorded with"):
        shelf.project(found)


def test_code_is_removed_with_the_last_release_that_has_it(root: Path, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "state")
    shared = kept(root / "app", shelf.code)
    shelve(shelf, "v1", shared)
    shelve(shelf, "v2", shared)
    (root / "app" / "main.py").write_text("print(2)")
    own = kept(root / "app", shelf.code)
    shelve(shelf, "v3", own)
    shelf.remove("v1")
    assert (shared.path.exists(), own.path.exists(), sorted(shelf.names())) == (True, True, ["v2", "v3"])
    shelf.remove("v2")
    shelf.remove("v2")
    assert (shared.path.exists(), own.path.exists(), sorted(shelf.names())) == (False, True, ["v3"])


def test_a_path_with_a_dollar_is_the_same_path_in_the_model(tmp_path: Path) -> None:
    odd = tmp_path / "root" / "a$b"
    odd.mkdir(parents=True)
    (odd / "main.py").write_text("x")
    escaped = {**bind(odd), "source": str(odd).replace("$", "$$")}
    model = project(web=[escaped])
    (found,) = bound_code(model, "web", root=tmp_path / "root")
    assert found.source == odd
    assert model.with_source("web", "/app", str(odd)).mounts("web") == (escaped,)


def test_what_another_stack_of_the_folder_keeps_is_in_no_copy(root: Path) -> None:
    """It holds that one's secrets, and changes with each of its commands: no copy would be that of the last release."""
    for folder in (".lastgood", ".lastgood-stg"):
        (root / folder).mkdir()
        (root / folder / "journal.sqlite").touch()
    config = ContainersConfig.model_validate({"compose": {"project": "shop"}, "services": ["web"]})
    state = root / ".lastgood"
    stack = Stack(config=config, root=root, state=state, shelf=Shelf(state), clock=CLOCK)
    kept, _ = keep_code(stack, project(web=[bind(root)]), "web")
    copy = Path(str(kept.mounts("web")[0]["source"]))
    assert [path.name for path in copy.iterdir()] == ["app"]

"""What git says of a checkout: the commit, what differs from it, and which submodules nobody can get any more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lastgood.targets.checkout import Checkout, checkout

AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always")


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *AUTHOR, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def repository(folder: Path) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "file").write_text("1")
    commit(folder)
    return folder


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "next")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one submodule, `libs/agents`."""
    agents = repository(tmp_path / "agents")
    made = repository(tmp_path / "root")
    git(made, "submodule", "--quiet", "add", str(agents), "libs/agents")
    commit(made)
    return made


def seen(root: Path) -> Checkout:
    return checkout(root, state=root / ".lastgood")


def test_a_checkout_that_is_whole_has_nothing_unresolved(root: Path) -> None:
    assert seen(root) == Checkout(commit=git(root, "rev-parse", "HEAD"))


def test_what_is_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert seen(tmp_path) == Checkout()


def test_a_submodule_whose_commit_is_gone_is_named(root: Path) -> None:
    wanted = commit_in_the_submodule(root)
    git(root / "libs" / "agents", "reset", "--quiet", "--hard", "HEAD~1")
    git(root / "libs" / "agents", "reflog", "expire", "--expire=now", "--all")
    git(root / "libs" / "agents", "gc", "--quiet", "--prune=now")
    found = seen(root)
    assert found.unresolved == (f"libs/agents has no commit {wanted[:12]}",)
    assert found.dirty


def commit_in_the_submodule(root: Path) -> str:
    """The submodule gets a commit that was never pushed, and the checkout names it."""
    (root / "libs" / "agents" / "file").write_text("2")
    made = commit(root / "libs" / "agents")
    commit(root)
    return made


def test_a_submodule_whose_commit_is_there_though_another_one_is_checked_out_is_dirty_only(root: Path) -> None:
    commit_in_the_submodule(root)
    git(root / "libs" / "agents", "checkout", "--quiet", "HEAD~1")
    assert (seen(root).unresolved, seen(root).dirty) == ((), True)


def test_a_submodule_that_is_not_checked_out_is_named(root: Path) -> None:
    git(root, "submodule", "--quiet", "deinit", "--force", "libs/agents")
    shutil.rmtree(root / ".git" / "modules")
    assert seen(root).unresolved == ("libs/agents is not checked out",)


def test_a_pointer_that_gitmodules_does_not_know_is_named(root: Path) -> None:
    git(root, "rm", "--quiet", "--cached", ".gitmodules")
    (root / ".gitmodules").unlink()
    git(root, "commit", "--quiet", "--message", "without")
    found = seen(root)
    assert found.unresolved == ("libs/agents has no entry in .gitmodules",)
    assert found.dirty


def test_a_submodule_of_a_submodule_is_followed(root: Path, tmp_path: Path) -> None:
    agents = root / "libs" / "agents"
    git(agents, "submodule", "--quiet", "add", str(repository(tmp_path / "prompts")), "prompts")
    commit(agents)
    commit(root)
    assert seen(root).unresolved == ()
    git(agents, "submodule", "--quiet", "deinit", "--force", "prompts")
    shutil.rmtree(agents / "prompts")
    assert seen(root).unresolved == ("libs/agents/prompts is not checked out",)


def test_submodules_count_also_where_the_compose_file_lies_below_the_checkout(root: Path) -> None:
    (root / "deploy").mkdir()
    (root / "deploy" / "docker-compose.yml").write_text("services: {}")
    commit(root)
    shutil.rmtree(root / "libs" / "agents")
    assert seen(root / "deploy").unresolved == ("libs/agents is not checked out",)

"""What a release of the compose target keeps of the files that its services read."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from lastgood.core.errors import Refused
from lastgood.core.release import ServiceRecord
from lastgood.targets.compose.kept import FILE_LIMIT_BYTES, Shelf, replace_private
from lastgood.targets.compose.project import Project

KEY = bytes(32)
WEB = ServiceRecord(name="web", artifact="sha256:1", held_as="lastgood/web:v1")


def project(token: Path) -> Project:
    web = {"image": "web", "secrets": [{"source": "token"}], "configs": [{"source": "limits"}]}
    defined = {"secrets": {"token": {"file": str(token)}}, "configs": {"limits": {"name": "limits", "external": True}}}
    return Project({"name": "shop", "services": {"web": web, "db": {"image": "db"}}, **defined})


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("of v1")
    path.chmod(0o644)
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "state")


def copy_of(shelf: Shelf, release: str) -> Path:
    kept = shelf.find(release)
    assert kept is not None
    ((_, _, path),) = shelf.project(kept).files("web")
    return Path(path)


def test_a_release_has_its_own_copy_of_a_secret_with_the_rights_that_its_service_needs(
    shelf: Shelf, token: Path
) -> None:
    shelf.keep("v1", project(token), (WEB,))
    token.write_text("of v2")
    shelf.keep("v2", project(token), (WEB,))
    assert [copy_of(shelf, release).read_text() for release in ("v1", "v2")] == ["of v1", "of v2"]
    assert copy_of(shelf, "v1").stat().st_mode & 0o777 == 0o644
    assert copy_of(shelf, "v1").parent.stat().st_mode & 0o777 == 0o700


def test_a_copy_whose_making_was_interrupted_has_the_rights_in_the_end(
    shelf: Shelf, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the file and its rights, the next deploy would find a copy there and leave it as it is."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("os.chown", killed)
        with pytest.raises(KeyboardInterrupt):
            shelf.keep("v1", project(token), (WEB,))
    shelf.keep("v1", project(token), (WEB,))
    assert copy_of(shelf, "v1").stat().st_mode & 0o777 == 0o644


def test_a_copy_goes_with_the_last_release_that_has_it(shelf: Shelf, token: Path) -> None:
    shelf.keep("v1", project(token), (WEB,))
    shelf.keep("v2", project(token), (WEB,))
    shelf.remove("v1")
    assert copy_of(shelf, "v2").read_text() == "of v1"
    shelf.remove("v2")
    assert list(shelf.files.iterdir()) == []


def test_another_content_is_another_configuration_and_the_same_one_is_none(shelf: Shelf, token: Path) -> None:
    first = shelf.with_contents(project(token), ["web"]).config_hash("web", KEY)
    assert shelf.with_contents(project(token), ["web"]).config_hash("web", KEY) == first
    token.write_text("of v2")
    assert shelf.with_contents(project(token), ["web"]).config_hash("web", KEY) != first


def test_the_configuration_says_nothing_of_what_is_in_a_secret(shelf: Shelf, token: Path) -> None:
    shown = shelf.with_contents(project(token), ["web"])
    shelf.keep("v1", shown, (WEB,))
    kept = (shelf.folder("v1") / "compose.json").read_text()
    assert "of v1" not in kept
    assert json.loads(kept)["secrets"]["token"]["x-lastgood-content"] == shelf.hash(b"of v1")


def test_keeping_a_release_again_leaves_its_copies_alone(shelf: Shelf, token: Path) -> None:
    shelf.keep("v1", project(token), (WEB,))
    token.write_text("of v2")
    shelf.keep("v1", project(token), (WEB,))
    assert copy_of(shelf, "v1").read_text() == "of v1"


def test_what_was_put_in_the_place_of_a_file_is_there_after_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, fsync = list[tuple[bool, bool]](), os.fsync

    def note(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        flushed.append((is_folder, (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    replace_private(tmp_path / "file", b"content")
    assert flushed == [(False, False), (True, True)]


def test_a_file_that_is_too_large_to_be_kept_is_refused_before_anything_is(shelf: Shelf, token: Path) -> None:
    with token.open("wb") as file:
        file.truncate(FILE_LIMIT_BYTES + 1)
    with pytest.raises(Refused, match="is too large for a secret or config"):
        shelf.with_contents(project(token), ["web"])


def test_a_place_that_cannot_be_written_is_refused_with_something_to_type(shelf: Shelf) -> None:
    shelf.folder("v1").parent.mkdir(parents=True)
    shelf.folder("v1").write_text("a file where a folder should be")
    with pytest.raises(Refused, match="cannot be written") as refused:
        shelf.lay_beside("v1", "gate.log", b"")
    assert refused.value.hint.startswith("df ")

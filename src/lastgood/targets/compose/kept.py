"""What a release keeps in the state directory, so that it starts as it was: never today's files, never today's
environment.

    releases/NAME/compose.json   the resolved configuration, values included
    releases/NAME/release.json   its services, and a keyed hash of compose.json
    code/HASH/NAME               code that services have from the checkout, by its content: releases share it
    files/HASH                   copies of the files that are secrets and configs, likewise
    env.key                      the key of every hash over values

All 0600, folders 0700; the copies have the rights of what they are copies of, since a service must be able to read
them. release.json is written last and at once: without it the release is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from shlex import quote
from typing import Final

from pydantic import TypeAdapter, ValidationError

from lastgood.core.errors import Refused
from lastgood.core.release import NAME_GRAMMAR, ServiceRecord
from lastgood.targets import tree
from lastgood.targets.compose.project import Json, Project, as_file

CONFIG_FILE: Final = "compose.json"
RELEASE_FILE: Final = "release.json"
CONTENT: Final = "x-lastgood-content"
FILE_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""What an engine would still take for a secret is 500 KB; a config may be a model or a dictionary."""
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRelease:
    """A release as this target kept it. config_hash: keyed, over the bytes of compose.json."""

    name: str
    services: tuple[ServiceRecord, ...]
    config_hash: str

    def service(self, name: str) -> ServiceRecord | None:
        """Return the record of a service, None when the release does not have it."""
        return next((s for s in self.services if s.name == name), None)

    def planned(self, service: str, artifact: str, config_hash: str = "") -> ServiceRecord:
        """Return the record of what a step wants to start. Raises Refused when this release kept something else."""
        record = self.service(service)
        if record is None or record.artifact != artifact or config_hash not in ("", record.config_hash):
            raise Refused(f"{self.name} has no {service} with image {artifact[:19]}", hint="lastgood releases")
        return record


_KEPT: Final[TypeAdapter[KeptRelease]] = TypeAdapter(KeptRelease)


def held_as(service: str, release: str, *, project: str) -> str:
    """The tag that keeps the image of a service of a release. The project is in it: another stack of this host may have
    a release of that name, at this very moment, and a tag names one image."""
    return f"lastgood/{_in_a_tag(project)}/{_in_a_tag(service)}:{release}"


def _in_a_tag(name: str) -> str:
    # Repositories are lower case and know fewer marks than names of services and projects.
    plain = name.lower()
    if plain == name and _REPOSITORY.fullmatch(plain):
        return plain
    short = hashlib.sha256(name.encode()).hexdigest()[:8]
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") + f"-{short}"


class Shelf:
    """The folder of the kept releases."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def key(self) -> bytes:
        """Return the key for hashes over values; made at the first call."""
        path = self._state / "env.key"
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            write_private(path, secrets.token_bytes(32))
        return path.read_bytes()

    def folder(self, release: str) -> Path:
        """Where a release is kept. Raises Refused for what is no release name, so that no path is ever made of it."""
        if not NAME_GRAMMAR.fullmatch(release):
            raise Refused(f"{release!r} is not a release name", hint="lastgood releases")
        return self._state / "releases" / release

    def config_file(self, release: str) -> str:
        """The kept configuration's path, relative to the state directory."""
        return str(Path("releases") / release / CONFIG_FILE)

    def find(self, release: str) -> KeptRelease | None:
        """Return a kept release, None when there is none. Raises Refused when it cannot be read."""
        path = self.folder(release) / RELEASE_FILE
        try:
            return _KEPT.validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise Refused(f"{path} cannot be read: {type(error).__name__}", hint="lastgood releases") from error

    def names(self) -> frozenset[str]:
        """Names of the releases of which anything is kept."""
        return frozenset(path.name for path in (self._state / "releases").glob("*") if path.is_dir())

    def known(self) -> Iterator[KeptRelease]:
        """Every kept release that can be read, in the order of their names."""
        for name in sorted(self.names()):
            try:
                kept = self.find(name)
            except Refused:
                continue
            if kept is not None:
                yield kept

    def newest_first(self) -> Iterator[tuple[KeptRelease, Project]]:
        """Every kept release that can be read, the one that was prepared last first, and its configuration as
        `unchecked` gives it."""
        found: list[tuple[int, KeptRelease, Project]] = []
        for kept in self.known():
            with contextlib.suppress(OSError, Refused):  # one that cannot be read cannot go back
                at = (self.folder(kept.name) / RELEASE_FILE).stat().st_mtime_ns
                found.append((at, kept, self.unchecked(kept)))
        for _, kept, project in sorted(found, key=itemgetter(0), reverse=True):
            yield kept, project

    def unchecked(self, kept: KeptRelease) -> Project:
        """The configuration of a kept release as it lies there: to look at, not to start from."""
        return Project.parse(self._content(kept).decode(), hint="lastgood releases")

    def started_with(self, service: str, artifact: str, config_hash: str) -> KeptRelease | None:
        """Return a kept release whose service starts just so, None when there is none."""
        wanted = (artifact, config_hash)
        for kept in self.known():
            if (record := kept.service(service)) and (record.artifact, record.config_hash) == wanted:
                return kept
        return None

    def remove(self, release: str) -> None:
        """Remove what is kept of a release, and the code and files that no other has. Raises Refused when the disk says
        no."""
        try:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.folder(release))
            needed = {code.tree for kept in self.known() for record in kept.services for code in record.code}
            for folder in self.code.glob("*"):
                if tree.named(folder) not in needed:
                    shutil.rmtree(folder)
            named = self._files_needed()
            for file in self.files.glob("*"):
                if file.name not in named:
                    file.unlink()
        except OSError as error:
            raise Refused(
                f"what is kept of {release} cannot be removed: {error.strerror or error}", hint="lastgood releases"
            ) from error

    @property
    def files(self) -> Path:
        """Where copies lie of the files that are secrets and configs, by content: what runs may have them from a
        release that was let go, where a kept one is the same."""
        return self._state / "files"

    def _files_needed(self) -> set[str]:
        """Names of the copies that a kept release starts with."""
        needed: set[str] = set()
        for kept in self.known():
            with contextlib.suppress(Refused):  # one that cannot be read cannot be started
                project = self.unchecked(kept)
                needed |= {Path(path).name for record in kept.services for _, _, path in project.files(record.name)}
        return needed

    @property
    def code(self) -> Path:
        """Where the code lies that services have from the checkout."""
        return self._state / "code"

    def project(self, kept: KeptRelease) -> Project:
        """Return the configuration of a kept release. Raises Refused when it is gone or not what was kept, its code
        included."""
        path, content = self.folder(kept.name) / CONFIG_FILE, self._content(kept)
        if not hmac.compare_digest(self.hash(content), kept.config_hash):
            raise Refused(f"{path} is not what {kept.name} was recorded with", hint="lastgood releases")
        for record in kept.services:
            for code in record.code:
                if not tree.holds(self.code, code.tree):
                    raise Refused(
                        f"the code of {record.name} ({code.source}) is not what {kept.name} was recorded with",
                        hint="lastgood doctor",
                    )
        return Project.parse(content.decode(), hint="lastgood releases")

    def _content(self, kept: KeptRelease) -> bytes:
        path = self.folder(kept.name) / CONFIG_FILE
        try:
            return path.read_bytes()
        except OSError as error:
            raise Refused(f"the configuration of {kept.name} is gone: {path}", hint="lastgood releases") from error

    def hash(self, content: bytes) -> str:
        """Keyed hash of a configuration."""
        return hmac.new(self.key(), content, hashlib.sha256).hexdigest()

    def keep(
        self, name: str, project: Project, services: tuple[ServiceRecord, ...], *, command: str = "lastgood deploy"
    ) -> KeptRelease:
        """Keep a release, or return the one that is kept under that name if it is the same. command: what a person
        typed to get here.

        Raises Refused, nothing changed, when the name stands for something else.
        """
        if (kept := self.find(name)) is not None:
            if changed := _difference(kept, services):
                raise Refused(f"release {name} exists with other {changed}", hint=f"{command} --release ANOTHER-NAME")
            return kept
        with _room_in(self._state):
            own = self._with_copies(project, [s.name for s in services])
            content = as_file(own.model)
            wanted = KeptRelease(name=name, services=services, config_hash=self.hash(content))
            replace_private(self.folder(name) / CONFIG_FILE, content)
            replace_private(self.folder(name) / RELEASE_FILE, _KEPT.dump_json(wanted, indent=1))
        return wanted

    def with_contents(self, project: Project, services: Collection[str]) -> Project:
        """The model that knows what is in the files that are secrets and configs of `services`, by keyed hash: another
        content is another configuration."""
        named = {found: self.hash(content) for found, _, content in _files(project, services)}
        return project.with_definitions({found: {CONTENT: digest} for found, digest in named.items()})

    def _with_copies(self, project: Project, services: Collection[str]) -> Project:
        """The model that names copies of them: a file that changes, or goes, takes nothing along."""
        copies: dict[tuple[str, str], Json] = {}
        for (kind, key), path, content in _files(project, services):
            at = path.stat()
            rights = f"{at.st_mode & 0o777:o} {at.st_uid} {at.st_gid} ".encode()
            copy = self.files / self.hash(rights + content)
            if not copy.exists():
                replace_private(copy, content, rights_of=at)
            copies[kind, key] = {"file": str(copy)}
        return project.with_definitions(copies)

    def lay_beside(self, release: str, name: str, content: bytes) -> Path:
        """Write a file of ours into a release's folder, over an older one, and return its path."""
        path = self.folder(release) / name
        with _room_in(self._state):
            replace_private(path, content)
        return path


@contextlib.contextmanager
def _room_in(state: Path) -> Generator[None]:
    """Turn what a full or read-only disk says into Refused: whatever is not written was to be read by the next act."""
    try:
        yield
    except OSError as error:
        raise Refused(
            f"{error.filename or state} cannot be written: {error.strerror}", hint=f"df {quote(str(state))}"
        ) from error


def _files(project: Project, services: Collection[str]) -> Iterator[tuple[tuple[str, str], Path, bytes]]:
    """Kind and key, path and content of each secret and config of `services` that is a file and can be read."""
    found = {(kind, key): Path(path) for name in services for kind, key, path in project.files(name)}
    for named, path in found.items():
        if path.is_file():
            if path.stat().st_size > FILE_LIMIT_BYTES:
                raise Refused(f"{path} is too large for a secret or config", hint=f"ls -l {quote(str(path))}")
            yield named, path, path.read_bytes()


def _difference(kept: KeptRelease, services: tuple[ServiceRecord, ...]) -> str:
    """Say what differs between two descriptions of one release, empty when they start the same."""
    pairs = [(kept.service(s.name), s) for s in services]
    images = [new.name for old, new in pairs if old is None or old.artifact != new.artifact]
    if images or len(kept.services) != len(services):
        return f"images of {', '.join(images)}" if images else "services"
    changed = [new.name for old, new in pairs if old is not None and old.config_hash != new.config_hash]
    return f"configuration of {', '.join(changed)}" if changed else ""


def replace_private(path: Path, content: bytes, *, rights_of: os.stat_result | None = None) -> None:
    """Put a file that only this user can read in the place of an older one, whole or not at all, on the disk when this
    returns.

    rights_of: whose owner and mode it gets instead, before it is there: it has them, or it is not there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_private(fresh, content)
    if rights_of is not None:
        with contextlib.suppress(PermissionError):  # only root gives files away
            os.chown(fresh, rights_of.st_uid, rights_of.st_gid)
        fresh.chmod(rights_of.st_mode & 0o777)
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the name, too: else a power cut may bring the older one back
    finally:
        os.close(folder)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only this user can read, on the disk when this returns. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

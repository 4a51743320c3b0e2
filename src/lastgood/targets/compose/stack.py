"""One compose project as this target works on it: its settings, its kept releases, and `docker compose` run with a
deadline, with the right environment, and without a secret in what it complains of."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from lastgood.core.config import ContainersConfig
from lastgood.core.errors import OutcomeUnknown, Refused, Retryable
from lastgood.core.ports import Clock
from lastgood.targets import child
from lastgood.targets.compose import commands
from lastgood.targets.compose.kept import Shelf, write_private
from lastgood.targets.compose.project import Json, Project, as_file
from lastgood.targets.compose.resolving import RESOLVE_S, resolve
from lastgood.targets.masking import Masker, dotenv_values

POLL_S: Final = 0.2
IMAGES_S: Final = 1800.0
LOCK_FILE: Final = "compose.lock"
_ERROR_LINES: Final = 12

# `${NAME`, whatever follows it, and `$NAME`; not `$$NAME`, which is the service's own affair.
_VARIABLE: Final = re.compile(r"(?<!\$)\$\{?([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """root: folder of lastgood.yaml, absolute. state: folder of what is kept. private: other folders of ours, which are
    in no copy of code: dumps of the database."""

    config: ContainersConfig
    root: Path
    state: Path
    shelf: Shelf
    clock: Clock
    private: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The compose project's name."""
        return self.config.compose.project

    def by_hand(self, *words: str) -> str:
        """What a person types, beside lastgood.yaml, to have compose do `words`; without any, to start what the files
        describe."""
        return shlex.join(commands.compose_by_hand(self.config.compose, *(words or ("up", "--detach"))))

    def resolve(self) -> Project:
        """Resolve the files on disk with today's environment. Raises Refused with compose's own words."""
        project, env = self.config.compose, child.interpolation_environment(os.environ)
        for file in project.files:
            if not (self.root / file).is_file():
                what = f"{self.root / file}, which containers.compose.files names, is not there"
                raise Refused(what, hint="containers.compose.files in lastgood.yaml")
        env_file = self.root / project.env_file if project.env_file else commands.home(project, self.root) / ".env"
        return resolve(commands.resolve(project, self.root), env=env, env_file=env_file)

    def beaten(self) -> tuple[tuple[str, str], ...]:
        """(variable, file) of each variable that the compose files use and that both the env file and the environment
        have, with another value: compose takes that of the environment."""
        used = {
            name
            for file in self.config.compose.files
            for name in _VARIABLE.findall((self.root / file).read_text(encoding="utf-8", errors="replace"))
        }
        named = self.config.compose.env_file
        file = self.root / named if named else commands.home(self.config.compose, self.root) / ".env"
        given = dotenv_values(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else {}
        both = sorted(used & given.keys() & os.environ.keys())
        return tuple((name, file.name) for name in both if os.environ[name] != given[name])

    def build(self, project: Project, services: Sequence[str]) -> None:
        """Build the images of `services`. Raises Refused with the end of the build's output."""
        self._images(project, commands.build(self.config.compose, self.root, services), "build", services)

    def pull(self, project: Project, services: Sequence[str]) -> None:
        """Pull the images of `services`. Raises Refused with what the registry said."""
        self._images(project, commands.pull(self.config.compose, self.root, services), "pull", services)

    def _images(self, project: Project, words: Sequence[str], verb: str, services: Sequence[str]) -> None:
        ended = self._run(words, deadline_s=IMAGES_S, env=child.interpolation_environment(os.environ))
        if ended.code != 0:
            said = masker_of(project).tail(ended.err or ended.out, lines=_ERROR_LINES)
            raise Refused(
                f"docker compose {verb} of {', '.join(services)} failed: {said}", hint=self.by_hand(verb, services[0])
            )

    def start(
        self,
        project: Project,
        release: str,
        service: str,
        model: Json,
        *,
        deadline_s: float,
        anew: bool,
        instances: int | None,
    ) -> None:
        """Make one service run as `model` says. Raises OutcomeUnknown when compose failed or hung half-way."""
        file = self._lay(release, f"start-{service}.json", model)
        words = commands.start(
            self.config.compose,
            self.root,
            file,
            service,
            stop_s=self.config.stop,
            anew=anew,
            instances=instances,
        )
        self._change(project, words, f"recreating {service}", deadline_s=deadline_s)

    def create(
        self, project: Project, release: str, service: str, model: Json, *, beside: str, deadline_s: float
    ) -> None:
        """Create, not start, one container as `model` says, in a project of its own named `beside`."""
        file = self._lay(release, f"gate-{service}.json", model)
        folder = commands.home(self.config.compose, self.root)
        words = commands.create(beside, folder, file, service)
        self._change(project, words, f"creating a candidate of {service}", deadline_s=deadline_s)

    def _lay(self, release: str, name: str, model: Json) -> Path:
        return self.shelf.lay_beside(release, name, as_file(model))

    @contextmanager
    def alone(self, *, deadline_s: float) -> Generator[int]:
        """Hold the lock under which compose changes anything, and give its descriptor.

        Compose runs in a process group of its own and outlives a killed lastgood. It holds this lock as well, so that
        nobody looks or acts while it still works. Raises Retryable when it is not free within `deadline_s`.
        """
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            ends_at = self.clock.now() + timedelta(seconds=deadline_s)
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if self.clock.now() >= ends_at:
                        raise Retryable(
                            f"a docker compose of an earlier command still works on {self.name}",
                            delay_s=2.0,
                            hint="docker events",
                        ) from error
                    self.clock.sleep(POLL_S)
            yield descriptor
        finally:
            # Closed, not unlocked: unlocking would take the lock from a child that still lives.
            os.close(descriptor)

    def _change(self, project: Project, words: Sequence[str], doing: str, *, deadline_s: float) -> None:
        try:
            with self.alone(deadline_s=deadline_s) as lock:
                ended = child.run(words, deadline_s=deadline_s, env=child.bare_environment(os.environ), holding=lock)
        except child.Overran as error:
            raise OutcomeUnknown(f"{doing}: {error}", hint="docker ps") from error
        except FileNotFoundError as error:
            raise _no_client() from error
        except OSError as error:
            raise Refused(f"docker compose cannot be started: {error}", hint="df") from error
        if ended.code != 0:
            said = masker_of(project).tail(ended.err or ended.out, lines=_ERROR_LINES)
            raise OutcomeUnknown(f"{doing}: docker compose ended with {ended.code}: {said}", hint="docker ps")

    def _run(self, words: Sequence[str], *, deadline_s: float, env: Mapping[str, str]) -> child.Ended:
        try:
            return child.run(words, deadline_s=deadline_s, env=env)
        except child.Overran as error:
            raise Retryable(str(error), delay_s=2.0, hint="docker version") from error
        except FileNotFoundError as error:
            raise _no_client() from error
        except OSError as error:
            raise Refused(f"docker compose cannot be started: {error}", hint="df") from error

    def hashes(self, project: Project) -> dict[str, str]:
        """Compose's own hash of each service, as it would put it on a container started from this model."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.state) as folder:
            file = Path(folder) / "model.json"
            write_private(file, as_file(project.model))
            words = commands.hashes(self.name, commands.home(self.config.compose, self.root), file)
            ended = self._run(words, deadline_s=RESOLVE_S, env=child.bare_environment(os.environ))
        if ended.code != 0:
            raise Refused(f"the resolved configuration cannot be read again: {masker_of(project).tail(ended.err)}")
        return {name: value for name, _, value in (line.partition(" ") for line in ended.out.splitlines())}

    def compose_version(self) -> str:
        """The version of compose without a distribution's suffix: Debian's says 2.26.1-4 and labels 2.26.1."""
        ended = self._run(commands.version(), deadline_s=RESOLVE_S, env=child.bare_environment(os.environ))
        return ended.out.strip().removeprefix("v").partition("-")[0]


def masker_of(project: Project) -> Masker:
    """Knows every secret of every service's environment and build."""
    known = (project.environment, project.build_arguments)
    return Masker([values(name) for name in project.services for values in known])


def _no_client() -> Refused:
    return Refused("there is no docker client with compose on this machine", hint="docker compose version")

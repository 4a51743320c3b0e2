"""The words of every command that the compose target runs, or asks a person to. Built here, run in `child`, tested word
for word.

Nothing here is ever a shell string. Service names come after `--`, so that none can be read as an option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lastgood.core.config import ComposeConfig

Words = list[str]

# No colours and no cursor movements: what these commands print ends in error messages.
_COMPOSE = ("docker", "compose", "--ansi", "never", "--progress", "plain")


def home(project: ComposeConfig, root: Path) -> Path:
    """The folder that compose itself would take for the project's: that of the first file."""
    return (root / project.files[0]).parent


def _on_disk(project: ComposeConfig, root: Path) -> Words:
    """The files as they are on disk today, with today's environment file."""
    words = [*_COMPOSE, "--project-name", project.project, "--project-directory", str(home(project, root))]
    for file in project.files:
        words += ["--file", str(root / file)]
    for profile in project.profiles:
        words += ["--profile", profile]
    if project.env_file:
        words += ["--env-file", str(root / project.env_file)]
    return words


def _recorded(project: str, folder: Path, file: Path) -> Words:
    """A file in which every variable is filled in already: no environment file may change it."""
    return [
        *_COMPOSE,
        "--project-name",
        project,
        "--project-directory",
        str(folder),
        "--file",
        str(file),
        "--env-file",
        "/dev/null",
    ]


def compose_by_hand(project: ComposeConfig, *words: str) -> Words:
    """What a person types, beside lastgood.yaml, to have compose do `words` with the files on disk: without any of it
    compose takes another project, with volumes of its own, or leaves services and values out."""
    said = ["docker", "compose", "--project-name", project.project]
    for file in project.files:
        said += ["--file", file]
    for profile in project.profiles:
        said += ["--profile", profile]
    if project.env_file:
        said += ["--env-file", project.env_file]
    return [*said, *words]


def version() -> Words:
    """Print the version of compose."""
    return ["docker", "compose", "version", "--short"]


def resolve(project: ComposeConfig, root: Path) -> Words:
    """Print the resolved configuration as JSON."""
    return [*_on_disk(project, root), "config", "--format", "json"]


def survey(root: Path, files: Sequence[str], *, project: str | None = None, env_file: str | None = None) -> Words:
    """Print the resolved configuration as JSON, every profile in it. project: None for the name that compose itself
    gives it."""
    words = [*_COMPOSE, "--project-directory", str(root), "--profile", "*"]
    if project is not None:
        words += ["--project-name", project]
    for file in files:
        words += ["--file", str(root / file)]
    if env_file is not None:
        words += ["--env-file", str(root / env_file)]
    return [*words, "config", "--format", "json"]


def without_values(words: Words) -> Words:
    """Print the configuration as `words` would, every variable in it left as it is written."""
    return [*words, "--no-interpolate"]


def hashes(project: str, folder: Path, file: Path) -> Words:
    """Print `SERVICE HASH` lines: compose's own hash of each service as `file` has it, whatever its profile."""
    return [*_recorded(project, folder, file), "--profile", "*", "config", "--hash", "*"]


def once(service: str, *, built: bool) -> Words:
    """What a person has compose do to run a service that ends, as it is on disk: of one that is built here, compose
    would take the image that was built last. What it needs runs already."""
    return ["run", "--rm", "--no-deps", *(["--build"] if built else []), service]


def up_alone(service: str, *, built: bool) -> Words:
    """What a person has compose do to have one service as it is on disk, and no other touched: of one that is built
    here, compose would take the image that was built last."""
    return ["up", "--detach", "--no-deps", *(["--build"] if built else []), service]


def build(project: ComposeConfig, root: Path, services: Sequence[str]) -> Words:
    """Build the images of `services` and of no other."""
    return [*_on_disk(project, root), "build", "--", *services]


def pull(project: ComposeConfig, root: Path, services: Sequence[str]) -> Words:
    """Pull the images of `services` and of no other."""
    return [*_on_disk(project, root), "pull", "--quiet", "--", *services]


def start(
    project: ComposeConfig, root: Path, file: Path, service: str, *, stop_s: float, anew: bool, instances: int | None
) -> Words:
    """Make one service run as `file` says; its dependencies are left alone. anew: even if it already runs so.

    instances: how many, None for what the file says.
    """
    words = [*_recorded(project.project, home(project, root), file), "up", "--detach", "--no-deps", "--no-build"]
    words += ["--pull", "never", "--timeout", str(math.ceil(stop_s))]
    if anew:
        words.append("--force-recreate")
    if instances is not None:
        words += ["--scale", f"{service}={instances}"]
    return [*words, "--", service]


def create(project: str, folder: Path, file: Path, service: str) -> Words:
    """Create one service's container as `file` says, and do not start it."""
    words = [*_recorded(project, folder, file), "up", "--no-start", "--no-deps", "--no-build", "--pull", "never"]
    return [*words, "--", service]

"""The releases of HyperCode: the tree beside this file is v2.0.3, each patch in `releases/` makes another one of it.

    python release.py list [--json]
    python release.py history DEST       a git repository at DEST with every release as a tag

A patch is what a developer would have committed: a message, then a diff that `git apply` takes, which also changes
VERSION. Its file name says what is wrong with the release; nothing inside the release does. The repository is the same,
hash for hash, wherever and whenever it is made.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

HYPERCODE: Final = Path(__file__).resolve().parent

_GIT_DEADLINE_S: Final = 30.0
_FIRST_COMMIT_AT: Final = datetime(2025, 10, 1, 9, 0, tzinfo=UTC)
_NOT_IN_THE_TREE: Final = frozenset({"releases", "release.py"})  # at its root; further down the names mean other things
_MADE_BY_RUNNING: Final = frozenset(
    {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".env", "restore-points", ".lastgood"}
)
_NEW_VERSION: Final = re.compile(r"^\+\+\+ b/VERSION\n@@[^\n]*\n-[^\n]*\n\+(v[0-9.]+)$", re.MULTILINE)


class ReleaseError(Exception):
    """A history could not be made; what was made of it so far is left for a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperCodeRelease:
    """One release made by a patch. `fault`: name of its patch file; `version`: its tag; `summary`: its message."""

    fault: str
    version: str
    summary: str


def base_version() -> str:
    """The release that the tree itself is."""
    return (HYPERCODE / "VERSION").read_text(encoding="utf-8").strip()


def releases() -> Sequence[HyperCodeRelease]:
    """Every patched release, by version. Raises ReleaseError when a patch does not say which version it makes."""
    found = [_read_patch(path) for path in (HYPERCODE / "releases").glob("*.patch")]
    return sorted(found, key=lambda release: [int(part) for part in release.version[1:].split(".")])


def find_release(fault: str) -> HyperCodeRelease:
    """Raises ReleaseError, naming the known ones, when there is no such fault."""
    known = releases()
    for release in known:
        if release.fault == fault:
            return release
    raise ReleaseError(f"unknown release {fault!r}; known: {', '.join(release.fault for release in known)}")


def write_history(dest: Path) -> Sequence[HyperCodeRelease]:
    """Make a git repository at `dest`: main at the base release, a branch and an annotated tag for each other one.

    `dest` must be missing or empty; afterwards main is checked out. Raises ReleaseError.
    """
    if dest.exists() and any(dest.iterdir()):
        raise ReleaseError(f"{dest} is not empty")
    shutil.copytree(HYPERCODE, dest, ignore=_left_out, dirs_exist_ok=True)
    base = base_version()
    made = releases()
    _git(dest, _FIRST_COMMIT_AT, "init", "--quiet", "--initial-branch=main")
    _commit(dest, _FIRST_COMMIT_AT, version=base, message=f"HyperCode {base}")
    for number, release in enumerate(made, start=1):
        at = _FIRST_COMMIT_AT + timedelta(days=number)
        _git(dest, at, "switch", "--quiet", "--create", f"release/{release.version}", base)
        _git(dest, at, "apply", "--index", str(_patch_path(release.fault)))
        _commit(dest, at, version=release.version, message=release.summary)
    _git(dest, _FIRST_COMMIT_AT, "switch", "--quiet", "main")
    return made


def _left_out(folder: str, names: list[str]) -> set[str]:
    unwanted = _MADE_BY_RUNNING | _NOT_IN_THE_TREE if Path(folder) == HYPERCODE else _MADE_BY_RUNNING
    return set(names) & unwanted


def _patch_path(fault: str) -> Path:
    return HYPERCODE / "releases" / f"{fault}.patch"


def _read_patch(path: Path) -> HyperCodeRelease:
    text = path.read_text(encoding="utf-8")
    version = _NEW_VERSION.search(text)
    if version is None:
        raise ReleaseError(f"{path.name} does not change VERSION")
    return HyperCodeRelease(fault=path.stem, version=version[1], summary=text.partition("\n\ndiff --git ")[0].strip())


def _commit(dest: Path, at: datetime, *, version: str, message: str) -> None:
    _git(dest, at, "add", "--all")
    _git(dest, at, "commit", "--quiet", f"--message={message}")
    _git(dest, at, "tag", "--annotate", f"--message={version}", version)


def _git(dest: Path, at: datetime, *words: str) -> None:
    """Run git with an identity and a time of ours and none of the user's configuration, hooks or signing keys."""
    who = {"NAME": "HyperCode", "EMAIL": "hypercode@example.invalid", "DATE": at.isoformat()}
    identity = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(dest), *words]
    try:
        done = subprocess.run(
            command,
            env=inherited | identity | plain,
            capture_output=True,
            text=True,
            timeout=_GIT_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ReleaseError("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"git {words[0]} took longer than {_GIT_DEADLINE_S:.0f} s") from error
    if done.returncode != 0:
        raise ReleaseError(f"git {' '.join(words)}: {done.stderr.strip()}")


def main() -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description="The releases of HyperCode.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="print each fault and the version that has it")
    listing.add_argument("--json", action="store_true", help="as JSON")
    history = commands.add_parser("history", help="make a git repository with every release as a tag")
    history.add_argument("dest", type=Path, metavar="DEST", help="a folder that is missing or empty")
    arguments = parser.parse_args()
    try:
        if arguments.command == "history":
            made = write_history(arguments.dest)
            print(f"{arguments.dest}: {base_version()} and {', '.join(release.version for release in made)}")
        elif arguments.json:
            print(
                json.dumps({"base": base_version(), "releases": [asdict(release) for release in releases()]}, indent=2)
            )
        else:
            for release in releases():
                print(f"{release.fault:20} {release.version}")
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

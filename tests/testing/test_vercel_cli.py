"""Vercel's own command line tool lists, inspects and rolls back against the stand-in.

It shows that the shapes are the vendor's and not our guess. It shows nothing about the timing of the real service.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lastgood.testing.standin import Fault, FaultKind
from lastgood.testing.vercel import DEFAULT_DOMAIN, DEFAULT_PROJECT, DEFAULT_TEAM, DEFAULT_TOKEN, VercelStandIn

VERSION = "60.1.3"
INSTALL_DEADLINE_S = 300  # 18 s were measured
COMMAND_DEADLINE_S = 60
GOOD, BAD = "a" * 40, "b" * 40

pytestmark = [pytest.mark.needs_npm, pytest.mark.timeout(INSTALL_DEADLINE_S + COMMAND_DEADLINE_S)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def program() -> Path:
    """The tool, installed once into the user's cache, whole or not at all."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lastgood"
    installed = cache / f"vercel-cli-{VERSION}"
    program = installed / "node_modules" / ".bin" / "vercel"
    if program.exists():
        return program
    npm = shutil.which("npm")
    if npm is None:
        reason = "npm is not installed: Vercel's own tool was not run (apt-get install npm)"
        if os.environ.get("LASTGOOD_REQUIRE_ENGINE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as beside:
        whole = Path(beside) / "whole"
        words = ["install", "--prefix", str(whole), "--no-audit", "--no-fund", "--ignore-scripts", f"vercel@{VERSION}"]
        subprocess.run([npm, *words], check=True, timeout=INSTALL_DEADLINE_S)
        whole.rename(installed)
    return program


@pytest.fixture
def vercel(tmp_path: Path) -> Iterator[VercelStandIn]:
    with VercelStandIn(state=tmp_path / "vercel.json") as standin:
        yield standin


@pytest.fixture
def run(program: Path, vercel: VercelStandIn, tmp_path: Path) -> Run:
    # What the machine says about some other Vercel account must not reach the tool.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERCEL")}
    environment |= {"CI": "1", "VERCEL_TELEMETRY_DISABLED": "1", "NO_UPDATE_NOTIFIER": "1"}
    target = ["--api", vercel.url, "--token", DEFAULT_TOKEN, "--scope", DEFAULT_TEAM]

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(program), *words, *target, "--global-config", str(tmp_path / "config")],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    return command


def served(vercel: VercelStandIn) -> str:
    return str(httpx.get(vercel.domain_url(DEFAULT_DOMAIN), trust_env=False).headers["x-commit"])


def test_it_lists_the_deployments_newest_first(vercel: VercelStandIn, run: Run) -> None:
    vercel.deploy(GOOD)
    vercel.deploy(BAD)
    listed = run("list", DEFAULT_PROJECT)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.split() == [f"https://{one.url}" for one in reversed(vercel.world.deployments)]


def test_it_inspects_a_deployment(vercel: VercelStandIn, run: Run) -> None:
    good = vercel.deploy(GOOD)
    inspected = run("inspect", good, "--json")
    assert inspected.returncode == 0, inspected.stderr
    described = json.loads(inspected.stdout)
    assert (described["id"], described["readyState"], described["target"]) == (good, "READY", "production")


def test_it_rolls_back_and_sees_the_end_of_it(vercel: VercelStandIn, run: Run) -> None:
    good = vercel.deploy(GOOD)
    vercel.deploy(BAD)
    rolled_back = run("rollback", good, "--yes")
    assert rolled_back.returncode == 0, rolled_back.stderr
    assert len(vercel.calls("rollback")) == 1
    assert served(vercel) == GOOD
    assert run("rollback", "status", DEFAULT_PROJECT).returncode == 0


def test_its_rollback_is_refused_after_its_first_answer_was_lost(vercel: VercelStandIn, run: Run) -> None:
    good = vercel.deploy(GOOD)
    vercel.deploy(BAD)
    vercel.fail(Fault(kind=FaultKind.DROP, on="rollback", after_accept=True))
    rolled_back = run("rollback", good, "--yes")
    # It asks again, meets 409 and gives up, although the domain moved the first time.
    assert rolled_back.returncode == 1
    assert len(vercel.calls("rollback")) == 2
    assert served(vercel) == GOOD

"""What holds for every test: an engine that is missing is said aloud, and no test depends on the machine's pace."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import hypothesis
import pytest

ENGINE_SCRIPT = Path(__file__).parent.parent / "scripts" / "engine.sh"
# A story deploys, watches and rolls back: the longest watch a full minute. A test may still set its own.
SYSTEM_TIMEOUT_S = 900

# No deadline: a slow machine is not a wrong program. The failing example is printed, so that it can become a test.
hypothesis.settings.register_profile("lastgood", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lastgood")

# The virtual environment has a node and an npm, for what needs one on a machine without. Last in PATH: the machine's
# own goes first. Node trusts its own list of authorities; the machine's is meant.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
if (authorities := Path("/etc/ssl/certs/ca-certificates.crt")).exists():
    os.environ.setdefault("NODE_EXTRA_CA_CERTS", str(authorities))


@functools.cache
def engine_gap() -> str:
    """What keeps the Docker engine from being used here, in the words of scripts/engine.sh; empty if nothing does."""
    looked = subprocess.run(
        [str(ENGINE_SCRIPT), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if looked.returncode == 0:
        return ""
    return "; ".join(line.removeprefix("engine: ").strip() for line in looked.stderr.splitlines())


@pytest.hookimpl(trylast=True)  # of what is really played
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("system") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SYSTEM_TIMEOUT_S))
    # What takes longest first: one that begins last leaves the other processes without work.
    items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in ("slow", "needs_docker")])
    # A story on Compose keeps the machine busy by itself, and what is slow there is the story: every second one is not.
    stories = [item for item in items if item.get_closest_marker("system")]
    by_engine = [
        [s for s in stories if bool(s.get_closest_marker("needs_docker")) is docker] for docker in (True, False)
    ]
    alternating = [story for both in zip_longest(*by_engine) for story in both if story]
    items[:] = [*alternating, *(item for item in items if item not in set(stories))]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_docker") is None or not (gap := engine_gap()):
        return
    if os.environ.get("LASTGOOD_REQUIRE_ENGINE"):
        pytest.fail(f"needs a Docker engine: {gap}", pytrace=False)
    pytest.skip(f"needs a Docker engine: {gap}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was not run, and why: a yellow `s` among a thousand green dots is easily taken for a pass."""
    skipped = terminalreporter.getreports("skipped")
    if not skipped:
        return
    terminalreporter.section(f"NOT RUN: {len(skipped)}", sep="=", yellow=True, bold=True)
    reasons: dict[str, list[str]] = {}
    for report in skipped:
        where_and_why = getattr(report, "longrepr", None)
        why = str(where_and_why[2]) if isinstance(where_and_why, tuple) else str(where_and_why)
        reasons.setdefault(why.removeprefix("Skipped: "), []).append(report.nodeid)
    for why, names in sorted(reasons.items()):
        terminalreporter.line(why)
        for name in sorted(names):
            terminalreporter.line(f"  {name}")

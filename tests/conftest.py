"""What holds for every test: an engine that is missing is said aloud, and no test depends on the machine's pace."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import hypothesis
import pytest

ENGINE_SCRIPT = Path(__file__).parent.parent / "scripts" / "engine.sh"
# A story deploys, watches and rolls back: the longest watch two full minutes. A test may still set its own.
SYSTEM_TIMEOUT_S = 900
NOT_RUN = "needs a Docker engine: "

# No deadline: a slow machine is not a wrong program. The failing example is printed, so that it can become a test.
hypothesis.settings.register_profile("lastgood", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lastgood")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("system") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SYSTEM_TIMEOUT_S))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_docker") is None or not (gap := engine_gap()):
        return
    if os.environ.get("LASTGOOD_REQUIRE_ENGINE"):
        pytest.fail(NOT_RUN + gap, pytrace=False)
    pytest.skip(NOT_RUN + gap)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was not run: a yellow `s` among a thousand green dots is easily taken for a pass."""
    reports = terminalreporter.getreports("skipped")
    unrun = [report for report in reports if NOT_RUN in str(getattr(report, "longrepr", ""))]
    if not unrun:
        return
    terminalreporter.section(f"NOT RUN: {len(unrun)}", sep="=", yellow=True, bold=True)
    terminalreporter.line(f"{NOT_RUN}{engine_gap()}")
    for report in unrun:
        terminalreporter.line(f"  {report.nodeid}")

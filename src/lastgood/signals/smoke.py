"""The team's own smoke tests, each named in the report. pytest says by JUnit XML which one failed; of any other command
only the exit code is known.

A test that was skipped or that never came to run showed nothing, so it did not pass.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from lastgood.core.config import SmokeConfig
from lastgood.core.report import Check
from lastgood.signals import child
from lastgood.wire.foreign_text import one_line

MAX_XML_BYTES: Final = 5 << 20
WHOLE: Final = "smoke tests"
"""The check that speaks for the command as a whole."""
# Nothing is written beside the tests: they lie in the team's checkout.
QUIET_ENV: Final = {"PYTHONDONTWRITEBYTECODE": "1"}
QUIET_WORDS: Final = ("-p", "no:cacheprovider")


class SmokeTests:
    """core.ports.Checker over one command, run in `cwd`. It sees its own environment, and LASTGOOD_RELEASE."""

    def __init__(self, config: SmokeConfig, cwd: Path) -> None:
        self._config = config
        self._cwd = cwd

    def named(self) -> tuple[str, ...]:
        return ()

    def run(self, names: Collection[str]) -> tuple[Check, ...]:
        env = {**QUIET_ENV, "LASTGOOD_RELEASE": " ".join(sorted(names)), **self._config.env}
        with tempfile.TemporaryDirectory(prefix="lastgood-smoke-") as folder:
            report = Path(folder) / "junit.xml"
            command, is_pytest = _command(self._config.command, report)
            try:
                ended = child.run(command, cwd=self._cwd, env=env, deadline_s=self._config.timeout)
            except OSError as error:
                return (_failed(f"could not run: {error}"),)
            if ended.exit_code is None:
                return (_failed(f"not finished in {self._config.timeout:g} s"),)
            if not is_pytest:
                return (_whole(ended),)
            try:
                checks = tuple(_checks(report))
            except (OSError, ValueError, ET.ParseError) as error:
                return (_failed(f"exit code {ended.exit_code}, no readable report: {_last_line(ended) or error}"),)
        if not checks:
            return (_failed(f"no test ran: {_complaint(ended)}"),)
        if ended.exit_code != 0 and all(check.passed for check in checks):
            return (*checks, _whole(ended))
        return checks


def _command(words: Sequence[str], report: Path) -> tuple[list[str], bool]:
    """Return the words to run, and whether they are pytest, which then writes `report`."""
    is_pytest = words[0] == "pytest" or (
        words[0] in ("python", "python3", sys.executable) and tuple(words[1:3]) == ("-m", "pytest")
    )
    if not is_pytest:
        return list(words), False
    # beside this interpreter first: an installation in a venv brings its own pytest, and PATH may know another
    beside = shutil.which(words[0], path=str(Path(sys.executable).parent))
    return [beside or words[0], *words[1:], *QUIET_WORDS, f"--junitxml={report}"], True


def _checks(report: Path) -> Iterator[Check]:
    """Read the report, which is the tests' own word and not ours: bounded, and without a document type, so that no
    entity can grow. Raises ValueError, ET.ParseError or OSError."""
    with report.open("rb") as file:
        text = file.read(MAX_XML_BYTES + 1)
    if len(text) > MAX_XML_BYTES:
        raise ValueError("the report is larger than 5 MiB")
    decoded = text.decode("utf-8")
    if "<!DOCTYPE" in decoded:
        raise ValueError("the report declares a document type")
    for case in ET.fromstring(decoded).iter("testcase"):  # noqa: S314 # bounded, no document type, so no entities
        yield _check(case)


def _check(case: ET.Element) -> Check:
    name = one_line(case.get("name", "").removeprefix("test_").replace("_", " ")) or "a test without a name"
    for outcome in ("failure", "error", "skipped"):
        found = case.find(outcome)
        if found is not None:
            said = one_line(found.get("message") or found.text or "")
            return Check(name=name, passed=False, detail=said if outcome == "failure" else f"{outcome}: {said}")
    return Check(name=name, passed=True)


def _whole(ended: child.Finished) -> Check:
    if ended.exit_code == 0:
        return Check(name=WHOLE, passed=True)
    return _failed(f"exit code {ended.exit_code}: {_last_line(ended)}")


def _failed(detail: str) -> Check:
    return Check(name=WHOLE, passed=False, detail=one_line(detail))


def _complaint(ended: child.Finished) -> str:
    """What pytest says of itself when it cannot begin; below it stands only that nothing ran."""
    said = [line for line in ended.tail.splitlines() if line.startswith("ERROR")]
    return said[0] if said else _last_line(ended)


def _last_line(ended: child.Finished) -> str:
    return next((line for line in reversed(ended.tail.splitlines()) if line.strip()), "")

"""What every checker promises (core.ports.Checker), shown on a world that is well and on each way of being unwell.

To take a new checker in, write a rig for it (a context manager that yields a CheckerRig) and add it to RIGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lastgood.core.config import SmokeConfig
from lastgood.core.ports import Checker
from lastgood.signals.health import HealthAddresses
from lastgood.signals.smoke import SmokeTests
from lastgood.testing.stack import Behaviour, MemoryChecker, Stack
from lastgood.testing.world import SteppedClock
from tests.signals.loopback import answer, drip_body, hang, loopback

RELEASE = "v2.0.3"
Act = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckerRig:
    """A world of its own for one checker, in which RELEASE serves and is well. troubles: as in SourceRig."""

    checker: Checker
    troubles: Mapping[str, Act]


@contextmanager
def health_rig(_folder: Path) -> Iterator[CheckerRig]:
    with loopback(answer(f'{{"release": "{RELEASE}"}}')) as server:

        def reply(what: object) -> Act:
            return lambda: setattr(server, "reply", what)

        yield CheckerRig(
            checker=HealthAddresses([f"{server.url}/health"], timeout_s=0.5),
            troubles={
                "away": reply(b""),
                "hangs": reply(hang),
                "drips": reply(drip_body),
                "error": reply(answer("", status=500)),
                "another-release": reply(answer('{"release": "v9"}')),
            },
        )


@contextmanager
def pytest_rig(folder: Path) -> Iterator[CheckerRig]:
    (folder / "pytest.ini").touch()
    tests = folder / "test_smoke.py"
    tests.write_text("def test_login(): pass")

    def content(text: str) -> Act:
        return lambda: tests.write_text(text)

    # without the plugins that this repository's own tests need: they take most of pytest's start
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    config = SmokeConfig.model_validate({"command": ["pytest", "-q"], "timeout": "4s", "env": env})
    yield CheckerRig(
        checker=SmokeTests(config, folder),
        troubles={
            "fails": content("def test_login(): assert False"),
            "hangs": content("import threading\ndef test_login(): threading.Event().wait()"),
            "dies": content("import os\ndef test_login(): os._exit(0)"),
            "skipped": content("import pytest\ndef test_login(): pytest.skip('not today')"),
            "broken": content("def test_login("),
            "none": content(""),
        },
    )


@contextmanager
def command_rig(folder: Path) -> Iterator[CheckerRig]:
    script = folder / "smoke.sh"
    script.write_text("exit 0")

    def content(text: str) -> Act:
        return lambda: script.write_text(text)

    config = SmokeConfig.model_validate({"command": ["sh", "smoke.sh"], "timeout": "1s"})
    yield CheckerRig(
        checker=SmokeTests(config, folder),
        troubles={"fails": content("exit 1"), "hangs": content("exec sleep 600"), "gone": script.unlink},
    )


@contextmanager
def memory_rig(_folder: Path) -> Iterator[CheckerRig]:
    stack = Stack(SteppedClock())
    stack.put("core", f"core-{RELEASE}")
    checker = MemoryChecker(stack)
    yield CheckerRig(
        checker=checker,
        troubles={
            "fails": lambda: stack.behaves.update({RELEASE: Behaviour(passes_smoke=False)}),
            "another-release": lambda: stack.put("core", "core-v9"),
            "broken": lambda: setattr(checker, "broken", "no answer within 60 s"),
        },
    )


RIGS: Mapping[str, Callable[[Path], AbstractContextManager[CheckerRig]]] = {
    "health": health_rig,
    "pytest": pytest_rig,
    "command": command_rig,
    "memory": memory_rig,
}
needs_server = pytest.mark.needs_server


@pytest.fixture(params=[pytest.param(name, marks=() if name == "memory" else needs_server) for name in RIGS])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckerRig]:
    with RIGS[request.param](tmp_path) as made:
        yield made


def test_a_world_that_is_well_passes_every_check(rig: CheckerRig) -> None:
    checks = rig.checker.run({RELEASE})
    assert checks
    assert all(check.passed and check.name for check in checks)


def test_trouble_is_a_check_that_did_not_pass_and_says_why_on_one_line(rig: CheckerRig) -> None:
    """That this test comes to its end is the deadline's proof: what hangs here lets go for nobody."""
    for trouble, begin in rig.troubles.items():
        begin()
        failed = [check for check in rig.checker.run({RELEASE}) if not check.passed]
        assert failed, trouble
        assert all(check.detail and check.detail.isprintable() for check in failed), trouble


def test_the_same_world_gives_the_same_checks_again(rig: CheckerRig) -> None:
    assert rig.checker.run({RELEASE}) == rig.checker.run({RELEASE})

"""Health addresses and smoke tests: what each check is called, and that nothing passes that was not seen to pass."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lastgood.core.config import SmokeConfig
from lastgood.core.report import Check
from lastgood.signals import child, smoke
from lastgood.signals.health import HealthAddresses
from lastgood.signals.smoke import SmokeTests
from tests.signals.loopback import Loopback, Reply, answer, drip_body, hang, loopback, nobody


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as served:
        yield served


@pytest.mark.parametrize(
    "reply",
    [
        answer('{"status": "ok", "release": "v2.0.3"}'),
        answer("OK", headers="X-Release: v2.0.3\r\n"),
        answer("OK"),
        answer('["release"]'),
        answer('{"release": "v2.0.3"}', headers="X-Release: v2.0.3\r\n"),
    ],
)
def test_an_address_that_answers_as_the_expected_release_or_names_none_is_healthy(
    server: Loopback, reply: bytes
) -> None:
    server.reply = reply
    assert HealthAddresses([f"{server.url}/health"]).run({"v2.0.3"}) == (Check(name="health", passed=True),)


@pytest.mark.parametrize(
    "reply,why",
    [
        (answer('{"release": "v2.0.6"}'), "release v2.0.6 answers, expected v2.0.3"),
        (answer("OK", headers="X-Release: v2.0.6\r\n"), "release v2.0.6 answers"),
        (answer('{"release": "v2.0.3"}', headers="X-Release: v2.0.6\r\n"), "release v2.0.6 answers"),
        (answer('{"release": null}'), "release None answers"),
        (answer("", status=503), "answered 503"),
        (answer("", status=302, headers="location: /ok\r\n"), "answered 302"),
        (b"", "no answer"),
        (hang, "no complete answer within 0.3 s"),
        (drip_body, "no complete answer within 0.3 s"),
    ],
)  # fmt: skip
def test_any_other_answer_is_a_check_that_failed_and_says_why(server: Loopback, reply: Reply, why: str) -> None:
    server.reply = reply
    (check,) = HealthAddresses([f"{server.url}/health"], timeout_s=0.3).run({"v2.0.3"})
    assert not check.passed
    assert why in check.detail


def test_each_of_several_addresses_is_a_check_of_its_own(server: Loopback) -> None:
    server.reply = answer("OK")
    with nobody() as url:
        checks = HealthAddresses([f"{server.url}/a?token=hunter2", f"{url}/b"]).run({"v2.0.3"})
    assert [(check.name, check.passed) for check in checks] == [
        (f"health {server.url}/a", True),
        (f"health {url}/b", False),
    ]


TESTS = """
import os, pytest

def test_login(): pass
def test_create_mission(): assert 1 == 2, "mission\\nwas \\x1b[31mlost"
@pytest.mark.parametrize("who", ["ada"])
def test_chat_with_agent(who): pass
@pytest.mark.skip(reason="not today")
def test_pay(): pass
@pytest.fixture
def broken(): raise RuntimeError("no browser")
def test_browse(broken): pass
def test_environment():
    assert os.environ["CORE_URL"] == "http://core"
    assert os.environ["LASTGOOD_RELEASE"] == "v2.0.3"
    assert "HYPER_DB_PASSWORD" not in os.environ
"""


def test_a_pytest_that_cannot_begin_is_quoted_with_its_reason(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-config\nno_such_option = 1\n")
    (folder / "test_all.py").write_text("def test_login(): pass\n")
    (check,) = smoke_tests(folder, "pytest", "-q").run({"v2.0.3"})
    assert not check.passed
    assert "no_such_option" in check.detail


def smoke_tests(folder: Path, *command: str, timeout: str = "30s", **env: str) -> SmokeTests:
    # without the plugins that this repository's own tests need: they take most of pytest's start
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return SmokeTests(SmokeConfig.model_validate({"command": command, "timeout": timeout, "env": env}), folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for tests that does not find the configuration of this repository's own ones."""
    (tmp_path / "pytest.ini").touch()
    return tmp_path


@pytest.mark.parametrize("words", [["pytest", "-q"], ["python", "-m", "pytest"], [sys.executable, "-m", "pytest"]])
def test_each_test_of_pytest_is_a_check_named_after_it(
    folder: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPER_DB_PASSWORD", "hunter2")
    (folder / "test_all.py").write_text(TESTS)
    before = sorted(folder.rglob("*"))
    checks = smoke_tests(folder, *words, CORE_URL="http://core").run({"v2.0.3"})
    assert {check.name: check.passed for check in checks} == {
        "login": True,
        "create mission": False,
        "chat with agent[ada]": True,
        "pay": False,
        "browse": False,
        "environment": True,
    }
    details = {check.name: check.detail for check in checks}
    assert "mission was" in details["create mission"]
    assert all(detail.isprintable() for detail in details.values())
    assert "not today" in details["pay"]
    assert "no browser" in details["browse"]
    assert sorted(folder.rglob("*")) == before, "nothing is left in the checkout"


@pytest.mark.parametrize(
    "content,why",
    [
        ("def nothing(): pass", "no test ran"),
        ("def test_(: pass", "error"),
        ("import os; os._exit(0)", "no readable report"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
    ],
)
def test_a_run_without_tests_did_not_pass(folder: Path, content: str, why: str) -> None:
    (folder / "test_all.py").write_text(content)
    checks = smoke_tests(folder, "pytest", "-q").run({"v2.0.3"})
    assert checks
    assert not any(check.passed for check in checks)
    assert any(why in check.detail for check in checks)


def test_a_failing_run_of_passing_tests_is_a_check_of_its_own(folder: Path) -> None:
    (folder / "test_all.py").write_text("def test_login(): pass")
    (folder / "conftest.py").write_text("def pytest_sessionfinish(session): session.exitstatus = 6")
    checks = smoke_tests(folder, "pytest", "-q").run({"v2.0.3"})
    assert [(check.name, check.passed) for check in checks] == [("login", True), ("smoke tests", False)]


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(b'<!DOCTYPE x [<!ENTITY a "aaaa">]><testsuite><testcase name="test_x"/></testsuite>', id="entity"),
        pytest.param(b"<testsuite>", id="cut"),
        pytest.param('<?xml version="1.0" encoding="utf-16"?><t/>'.encode("utf-16"), id="utf-16"),
        pytest.param(b"<t>" + b" " * smoke.MAX_XML_BYTES + b"</t>", id="large"),
    ],
)
def test_a_report_that_cannot_be_trusted_passes_nothing(folder: Path, report: bytes) -> None:
    (folder / "report").write_bytes(report)
    (folder / "conftest.py").write_text(
        "import os, shutil\n"
        "def pytest_configure(config):\n"
        "    shutil.copy('report', config.option.xmlpath)\n"
        "    os._exit(0)\n"
    )
    (check,) = smoke_tests(folder, "pytest").run({"v2.0.3"})
    assert not check.passed
    assert "no readable report" in check.detail


@pytest.mark.parametrize(
    "script,passed,why",
    [("exit 0", True, ""), ("echo one; echo two >&2; exit 3", False, "exit code 3: two"), ("kill -9 $$", False, "-9")],
)
def test_of_another_command_only_the_exit_code_is_known(folder: Path, script: str, passed: bool, why: str) -> None:
    (check,) = smoke_tests(folder, "sh", "-c", script).run({"v2.0.3"})
    assert (check.name, check.passed) == ("smoke tests", passed)
    assert why in check.detail


def test_a_command_that_is_not_there_did_not_pass(folder: Path) -> None:
    (check,) = smoke_tests(folder, "no-such-command").run({"v2.0.3"})
    assert not check.passed
    assert "no-such-command" in check.detail
    (check,) = smoke_tests(folder / "nowhere", "true").run({"v2.0.3"})
    assert not check.passed


@pytest.mark.parametrize("ending", ["sleep 600", "exit 0"], ids=["deadline", "finished"])
def test_nothing_that_the_command_started_goes_on_after_it(folder: Path, ending: str) -> None:
    fifo = folder / "held"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    (check,) = smoke_tests(folder, "sh", "-c", f"exec 9>held; sleep 600 & {ending}", timeout="1s").run({"v2.0.3"})
    assert check.passed is (ending == "exit 0")
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as held:
        assert held.read() == b"", "the end of the file comes when the last writer is gone"


def test_a_command_ends_with_the_process_that_started_it(folder: Path) -> None:
    fifo = folder / "held"
    os.mkfifo(fifo)
    script = (
        "import sys; from pathlib import Path; from lastgood.signals import child;"
        "child.run(['sh', '-c', 'exec 9>held; echo ready >&9; exec sleep 600'], cwd=Path('.'), env={}, deadline_s=600)"
    )
    parent = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", f"import os; os.chdir({str(folder)!r}); {script}"],
        {**os.environ, "PYTHONPATH": str(Path(child.__file__).parents[2])},
    )
    with fifo.open("rb") as held:
        assert held.readline() == b"ready\n"
        os.kill(parent, 9)
        os.waitpid(parent, 0)
        assert held.read() == b"", "the end of the file comes when the last writer is gone"

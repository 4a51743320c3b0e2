"""Every command dies at every named point of every step, on the real embedded engine, and the next one goes on.

The same ending each time and each effect once: counted on the database server, at the frontend host, in the channel
and among the processes, by nobody who was killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from lastgood.cli.demo import Demo
from lastgood.cli.stage import ProcessStage
from lastgood.targets.postgres import connect
from lastgood.testing.slack import read_messages

MOMENTS = ("before-intent", "after-intent", "after-act", "after-seen")
SERVES = ("serve-coder-agent", "serve-orchestrator", "serve-hypercode-core", "clear-candidates")
DEPLOY_STEPS = ("take-restore-point", "pass-gate", "migrate", *SERVES)
DATABASE_STEPS = ("save-dump", "catch-up", "fence", "replay-writes", "swap-database")
ROLLBACK_STEPS = (*DATABASE_STEPS, "pass-gate", *SERVES, "return-frontend")
# What CI runs: one kill in each step, at the moment at which nobody can know whether it happened.
SHORT = frozenset({"after-intent:migrate", "after-act:fence", "after-act:swap-database", "after-act:return-frontend"})
BAD = "bad-migration"
KILLED = -9
COMMAND_S = 120

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


class Incidents:
    """One HyperCode on the process engine, on which incident follows incident."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.stage = ProcessStage(home)
        self.stage.set_up(short_window=None)
        config = self.stage.checkout / "lastgood.yaml"
        # what is normal was read often enough elsewhere: here it would be half a minute for each kill
        config.write_text(config.read_text().replace("  window: 1h\n", "  window: 1h\n  baseline: 0s\n"))
        self.demo = Demo(fault=BAD, stage=self.stage, rate=1.0, home=home)
        self.demo.stand_ins()
        self.demo.push(self.stage.base)
        self.run("deploy", "--release", self.stage.base, "--first", "--no-watch", "--yes")
        self.run("record", "--good", "-m", "known good")
        self.bad = self.stage.version_of(BAD)

    def run(self, *words: str, die_at: str = "", code: int = 0) -> str:
        """Run one command; when it waits for a person, one approves. Returns its story."""
        process = subprocess.Popen(
            [sys.executable, "-m", "lastgood", *words],
            cwd=self.stage.checkout,
            env=self.demo.env | ({"LASTGOOD_DIE_AT": die_at} if die_at else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        watchdog = threading.Timer(COMMAND_S, process.kill)
        watchdog.start()
        told: list[str] = []
        assert process.stdout is not None
        with process.stdout as stream:
            self._follow(stream, told)
        ended = process.wait()
        watchdog.cancel()
        assert ended == code, f"{' '.join(words)} ended {ended}, expected {code}:\n{''.join(told)}"
        return "".join(told)

    def _follow(self, stream: IO[str], told: list[str]) -> None:
        for line in stream:
            told.append(line)
            if line.startswith("waiting at "):
                self.run("approve", "--database", "hypercode")

    def deploy_bad(self, *, die_at: str = "") -> None:
        """The team pushes and deploys the release that is known to be bad."""
        self.demo.push(self.bad)
        words = ("deploy", "--release", self.bad, "--yes", "--no-watch", "--even-if-barred")
        self.run(*words, die_at=die_at, code=KILLED if die_at else 0)

    def reading(self, *words: str) -> Any:  # noqa: ANN401 # whatever the command says in JSON
        return json.loads(self.run(*words, "--json"))

    def databases(self) -> set[str]:
        with connect.connect(self.stage.database()) as connection:
            return {str(row[0]) for row in connection.execute("SELECT datname FROM pg_database").fetchall()}

    def frontend_rollbacks(self) -> int:
        found = httpx.get(f"http://127.0.0.1:{self.stage.ports['vercel']}/_control/calls/rollback", timeout=10)
        return len(found.json())

    def world(self) -> dict[str, Any]:
        """What anybody can count from outside."""
        instances = json.loads((self.stage.checkout / ".lastgood" / "instances.json").read_text())
        return {
            "instances": Counter((i["service"], i["release"], i["part"]) for i in instances),
            "databases": self.databases(),
            "frontend": self.frontend_rollbacks(),
            "sentences": len([m for m in read_messages(self.demo.home / "slack.jsonl") if m.text.startswith("🚨")]),
        }

    def check_one_rollback(self, before: dict[str, Any], *, swapped: bool) -> None:
        after = self.world()
        base = self.stage.base
        services = ("coder-agent", "orchestrator", "hypercode-core")
        assert after["instances"] == Counter({(service, base, "serving"): 1 for service in services})
        replaced = {name for name in after["databases"] - before["databases"] if "_bad_" in name}
        assert len(replaced) == (1 if swapped else 0), after["databases"]
        assert "hypercode" in after["databases"]
        assert after["frontend"] - before["frontend"] <= 1
        assert after["sentences"] - before["sentences"] == 1
        history = self.reading("history")
        assert history[-1]["ended"] == "ROLLED_BACK_VERIFIED"
        status = self.reading("status")
        assert (status["state"], status["serving"]) == ("BAKE INTERRUPTED", base)
        assert self.run("audit", "verify").startswith("the chain holds")

    def close(self) -> None:
        self.demo.stop()


@pytest.fixture(scope="module")
def incidents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incidents]:
    environment = dict(os.environ)
    made = Incidents(tmp_path_factory.mktemp("kill") / "demo-kill")
    try:
        yield made
    finally:
        made.close()
        os.environ.clear()
        os.environ.update(environment)


def points(steps: tuple[str, ...], *others: str) -> list[Any]:
    named = [f"{moment}:{step}" for step in steps for moment in MOMENTS] + list(others)
    return [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in named]


@pytest.mark.parametrize("point", points(DEPLOY_STEPS))
def test_a_deploy_that_dies_is_undone_by_rollback(incidents: Incidents, point: str) -> None:
    incidents.run("unfreeze", "-m", "the next one")
    before = incidents.world()
    incidents.deploy_bad(die_at=point)
    assert "INTERRUPTED" in incidents.run("status")
    incidents.run("rollback", "--yes")
    migrated = DEPLOY_STEPS.index(point.split(":")[1]) > DEPLOY_STEPS.index("migrate")
    migrated |= point in ("after-act:migrate", "after-seen:migrate")
    incidents.check_one_rollback(before, swapped=migrated)


@pytest.mark.parametrize("point", points(ROLLBACK_STEPS, "after-plan:rollback", "before-end:rollback"))
def test_a_rollback_that_dies_goes_on(incidents: Incidents, point: str) -> None:
    incidents.run("unfreeze", "-m", "the next one")
    before = incidents.world()
    incidents.deploy_bad()
    incidents.run("rollback", "--yes", "-m", "it is bad", die_at=point, code=KILLED)
    assert "INTERRUPTED" in incidents.run("status")
    incidents.run("rollback", "--yes")
    incidents.check_one_rollback(before, swapped=True)

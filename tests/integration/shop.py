"""A team with lastgood on a small compose project: the commands that it types, each a process of its own, what its
users see, and what its channel was told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lastgood.core.history import History, fold
from lastgood.core.release import Release
from lastgood.core.report import Report, TerminalState
from lastgood.journal.sqlite import SqliteJournal
from lastgood.testing.slack import DEFAULT_TOKEN, SlackStandIn
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import ComposeWorld

SERVES: Final = "exec httpd -f -p 8080 -h /www"
SERVICES: Final = ("web", "worker")
COMMAND_S: Final = 100.0
KILLED: Final = -9
REFUSED: Final = 3
COULD_NOT: Final = 4
NEEDS_HUMAN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What anybody can count from outside. containers: (ID, image ID) by service, of what runs. release: what answers
    at the published port calls itself."""

    containers: Mapping[str, tuple[str, str]]
    release: str


class Shop:
    """The project of a ComposeWorld with a lastgood.yaml beside its compose file. host: which engine its commands
    reach, empty for the machine's. sections: of lastgood.yaml, as they are written at the next command. command: the
    newest one."""

    command: subprocess.Popen[str]

    def __init__(self, stack: ComposeWorld, slack: SlackStandIn) -> None:
        self.stack, self.slack = stack, slack
        self.host = ""
        self.sections: dict[str, Any] = {
            "version": 1,
            "stack": "shop",
            "mode": "automatic",
            "watch": {"window": "1m", "baseline": "0s", "warm_up": "0s"},
            "containers": {
                "compose": {"project": stack.project},
                "services": list(SERVICES),
                "boot": "20s",
                "stop": "1s",
            },
            "verify": {"health": [f"http://{stack.address}:{stack.port}/"]},
            "notify": {"slack": {"channel": "#dev-ops", "token": DEFAULT_TOKEN, "url": slack.api_url}, "owner": "ada"},
        }

    # --- what the team does --------------------------------------------------------------------------------------

    def build(self, release: str, *, services: Sequence[str] = SERVICES, script: str = SERVES) -> None:
        """Move the tags that the compose file names to new images, which say which release they are."""
        for service in services:
            self.stack.image(service, json.dumps({"release": release}), script=script)

    def lastgood(self, *words: str, code: int = 0, die_at: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run one command beside the compose file. Returns all that it said."""
        (self.stack.root / "lastgood.yaml").write_text(json.dumps(self.sections))
        given = {**os.environ, **({"DOCKER_HOST": self.host} if self.host else {}), **(env or {})}
        self.command = subprocess.Popen(
            [sys.executable, "-m", "lastgood", *words],
            cwd=self.stack.root,
            env=given | ({"LASTGOOD_DIE_AT": die_at} if die_at else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = self.command.communicate(timeout=COMMAND_S)
        finally:
            self.command.kill()
        assert self.command.returncode == code, (
            f"{' '.join(words)} ended {self.command.returncode}, expected {code}:\n{said}"
        )
        return said

    def kill_the_command(self) -> None:
        """As kill -9 does, the newest one. What it had started goes on."""
        self.command.kill()

    def deploy(self, release: str, *words: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Deploy what the files and tags say now."""
        return self.lastgood("deploy", "--release", release, "--no-watch", "--yes", *words, code=code, env=env)

    def roll_back(self, *words: str, code: int = 0, die_at: str = "", env: Mapping[str, str] | None = None) -> str:
        """Go back, as a person who is sure."""
        return self.lastgood("rollback", "--yes", "-m", "it is bad", *words, code=code, die_at=die_at, env=env)

    def good(self, release: str = "v1") -> None:
        """Build and deploy a release, and vouch for it."""
        self.build(release)
        self.deploy(release, *([] if self.serving else ["--first"]))
        self.lastgood("record", "--good", "-m", "known good")

    def bad(self, release: str = "v2") -> None:
        """Build and deploy a release that nobody vouches for."""
        self.build(release)
        self.deploy(release)

    # --- what can be seen ----------------------------------------------------------------------------------------

    def json(self, *words: str) -> Any:  # noqa: ANN401 # whatever the command says in JSON
        return json.loads(self.lastgood(*words, "--json"))

    @property
    def history(self) -> History:
        """What the journal knows; read beside the commands, since a process for each question takes its time."""
        journal = SqliteJournal(self.stack.root / ".lastgood", clock=CLOCK)
        return fold(journal.records())

    @property
    def serving(self) -> str:
        """What lastgood believes to serve."""
        return self.history.serving

    def release(self, name: str) -> Release:
        """A release as it was recorded."""
        return self.history.releases[name].release

    @property
    def report(self) -> Report:
        """Of the newest run that has one."""
        runs = reversed(self.history.runs.values())
        return next(run.ended.report for run in runs if run.ended and run.ended.report)

    @property
    def told(self) -> list[str]:
        """What the channel was told, oldest first."""
        return [message.text for message in self.slack.messages]

    def seen(self) -> Seen:
        """Look from outside: at the engine, and at the published port."""
        running = self.stack.client.containers.list(
            ignore_removed=True, filters={"label": f"com.docker.compose.project={self.stack.project}"}
        )
        found = {
            c.labels["com.docker.compose.service"]: (str(c.id), str(c.attrs["Image"]))
            for c in running
            if "lastgood.candidate" not in c.labels
        }
        return Seen(containers=found, release=json.loads(self.stack.page())["release"])

    def check_it_went_back(self, release: str, before: Seen, *, times: int = 1) -> None:
        """What the report may be believed for: every service is the planned one, the database's container is the one
        that it was, nothing is left beside, and the team was told once. before: what served the bad release."""
        after = self.seen()
        assert after.release == release
        assert {s.name: s.artifact for s in self.release(release).services} == {
            s: after.containers[s][1] for s in SERVICES
        }
        assert after.containers["db"] == before.containers["db"]
        assert self.report.terminal is TerminalState.ROLLED_BACK_VERIFIED
        assert [check for check in self.report.checks if not check.passed] == []
        assert self.serving == release
        assert self.stack.candidates() == []
        assert len([text for text in self.told if self.completed(release) in text]) == times

    def check_nothing_was_touched(self, before: Seen) -> None:
        """The containers that ran run on, the same release answers, and nobody was told of a success."""
        assert self.seen() == before
        assert self.stack.candidates() == []
        assert [text for text in self.told if "completed" in text] == []

    @staticmethod
    def completed(release: str) -> str:
        """The sentence of the procedure, as far as it is a claim."""
        return f"Rollback to {release} completed"

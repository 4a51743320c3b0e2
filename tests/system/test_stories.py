"""The whole story, once for each way of failing and each engine: deployed, judged, put back, proved, counted from
outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lastgood.cli.demo import RIGHT_END
from lastgood.core.report import TerminalState

# What CI runs on Compose; the others there, and all behind the edge, only in `make system`.
SHORT_ON_COMPOSE = frozenset({"errors", "never-boots", "bad-migration"})
LONG = frozenset({"good", "blip", "late"})
"""What is watched for its whole window, or turns bad late."""
SOON_OVER = "never-boots"
TRIGGER = {
    "errors": "error-rate",
    "latency": "latency",
    "coder-agent-down": "coder-agent",
    "orchestrator-hangs": "orchestrator",
    "invalid-writes": "data",
    "bad-migration": "data",
    "never-boots": "gate",
    "late": "error-rate",
}
SENTENCE = "🚨 Deployment failed. Rollback to v2.0.3 completed. System operating normally. Investigation started."
SMOKE = ("login", "create mission", "chat with agent")
EDGE_STEPS = ("pass-gate", "switch-traffic", "settle")
STORY_S, LEAVING_S = 600, 60
FIGURES = Path(os.environ["LASTGOOD_FIGURES"]) if os.environ.get("LASTGOOD_FIGURES") else None
"""Where each story leaves its figures, for the table in docs/figures.md."""


@dataclass(frozen=True)
class Story:
    """One demo that was played. figures: what `--json` wrote; told: what a person saw."""

    code: int
    figures: dict[str, Any]
    told: str


def play(fault: str, engine: str, folder: Path) -> Story:
    """Run the demo as a person would, in an empty folder."""
    file, told = folder / "figures.json", folder / "told"
    with told.open("w") as sink:
        story = subprocess.Popen(
            [sys.executable, "-m", "lastgood", "demo", "--fault", fault, "--engine", engine, "--json", str(file)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        code = story.wait(timeout=STORY_S)
    except subprocess.TimeoutExpired:
        story.terminate()  # as after Ctrl-C: it leaves nothing behind
        story.wait(timeout=LEAVING_S)
        pytest.fail(f"not at its end after {STORY_S} s:\n{told.read_text()}", pytrace=False)
    assert file.exists(), told.read_text()
    return Story(code=code, figures=json.loads(file.read_text()), told=told.read_text())


def stories() -> list[Any]:
    """The longest first, so that where they are played in this order none plays alone at the end."""
    found = []
    pairs = [(fault, engine) for engine in ("compose", "process", "edge") for fault in RIGHT_END]
    for fault, engine in sorted(
        pairs, key=lambda pair: (pair[0] == SOON_OVER, pair[1] == "process", pair[0] not in LONG)
    ):
        marks = [pytest.mark.system, *([pytest.mark.slow] if fault in LONG else [])]
        if engine != "process":
            marks.append(pytest.mark.needs_docker)
            if engine == "edge":
                marks.append(pytest.mark.edge)
            if engine == "edge" or fault not in SHORT_ON_COMPOSE:
                marks.append(pytest.mark.full)
        found.append(pytest.param(fault, engine, id=f"{fault}-{engine}", marks=marks))
    return found


@pytest.mark.parametrize("fault,engine", stories())
def test_story(fault: str, engine: str, tmp_path: Path) -> None:
    story = play(fault, engine, tmp_path)
    figures, right = story.figures, RIGHT_END[fault]
    print(story.told)  # noqa: T201 # shown where the test fails
    if FIGURES:
        FIGURES.mkdir(parents=True, exist_ok=True)
        with (FIGURES / f"{engine}-{fault}.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
    assert figures["terminal_state"] == right.value, story.told
    assert story.code == 0, story.told
    assert list(tmp_path.glob("demo-*")) == [], "something was left behind"
    check_missions(fault, figures)
    assert figures["database_kept"], "the database's container or server was replaced"
    if engine == "edge":
        check_edge(fault, figures)
    if right is TerminalState.HEALTHY_KEPT:
        assert [text for text in figures["notified"] if "Deployment failed" in text] == []
        assert figures["requests"]["failed_during_switch"] == 0
    else:
        check_rollback(fault, figures)


def check_missions(fault: str, figures: dict[str, Any]) -> None:
    """By the traffic's own ledger: nothing that a user was promised is missing, also where the database went back."""
    missions = figures["missions"]
    assert missions["acknowledged"] > 0
    assert missions["missing"] == missions["announced_lost"] == 0
    names = [step["name"] for step in figures["steps"]]
    assert ("catch-up" in names) == ("replay-writes" in names) == (fault == "bad-migration")


def check_edge(fault: str, figures: dict[str, Any]) -> None:
    """By the traffic's own ledger: a release talks to itself, and moving the requests fails none of them."""
    assert figures["requests"]["crossed"] == 0
    names = [step["name"] for step in figures["steps"]]
    if figures["terminal_state"] == TerminalState.HEALTHY_KEPT or fault == "never-boots":
        assert "switch-traffic" not in names
    else:
        assert tuple(n for n in names if n in EDGE_STEPS) == EDGE_STEPS
    assert figures["requests"]["failed_during_switch"] == 0


def check_rollback(fault: str, figures: dict[str, Any]) -> None:
    assert figures["trigger"] == TRIGGER[fault]
    assert {step["state"] for step in figures["steps"]} == {"done"}
    names = [step["name"] for step in figures["steps"]]
    assert ("swap-database" in names) == (fault == "bad-migration")
    passed = {check["name"]: check["passed"] for check in figures["verify"]}
    assert all(passed.values())
    assert {"health", *SMOKE} <= passed.keys()
    sentences = [text for text in figures["notified"] if text.startswith("🚨")]
    assert [text.splitlines()[0] for text in sentences] == [SENTENCE]
    assert ("Invalid rows remain" in sentences[0]) == (fault == "invalid-writes")
    assert (figures["invalid_rows"]["found"] > 0) == (fault == "invalid-writes")
    assert figures["invalid_rows"]["left"] == 0
    if fault == "bad-migration" and figures["engine"] != "compose":
        assert figures["requests"]["failed_during_switch"] == 0, "requests wait while the database is exchanged"
    if fault == "never-boots":
        assert [name for name in names if name.startswith("serve-")] == [], "traffic moved"
        assert figures["requests"]["failed"] == 0
    else:
        assert "return-frontend" in names

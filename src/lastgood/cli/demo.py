"""The demo: HyperCode under traffic, a good release, then a bad one, and the ordinary commands doing the ordinary work.

Everything that lastgood does here it does through its command line, started as a person would start it; this file only
plays the team (its git checkout, its database, its users) and the services that cannot run here (Vercel, Slack).
What is counted at the end is counted from outside: by the traffic's own ledger and by asking the database.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final, TypeVar

import httpx
from pydantic import TypeAdapter

from lastgood.cli.figures import (
    FIGURES,
    Figures,
    InvalidRows,
    StepFigures,
    VerifyFigures,
    missions_of,
    requests_of,
    timings_of,
)
from lastgood.cli.stage import STAGES, Stage
from lastgood.core.errors import ConfigError, Refused
from lastgood.core.report import Report, TerminalState
from lastgood.testing.slack import read_messages
from lastgood.testing.traffic import acknowledged_missions, read_ledger

RIGHT_END: Final[Mapping[str, TerminalState]] = {
    "errors": TerminalState.ROLLED_BACK_VERIFIED,
    "latency": TerminalState.ROLLED_BACK_VERIFIED,
    "coder-agent-down": TerminalState.ROLLED_BACK_VERIFIED,
    "orchestrator-hangs": TerminalState.ROLLED_BACK_VERIFIED,
    "invalid-writes": TerminalState.ROLLED_BACK_VERIFIED,
    "bad-migration": TerminalState.ROLLED_BACK_VERIFIED,
    "never-boots": TerminalState.ROLLED_BACK_VERIFIED,
    "late": TerminalState.ROLLED_BACK_VERIFIED,
    "blip": TerminalState.HEALTHY_KEPT,
    "good": TerminalState.HEALTHY_KEPT,
}
SHORT_WINDOW: Final = "60s"
"""Watch window of releases that are to be kept; the bad ones are watched for the configured hour, and do not last."""
WATCH_LINE_EVERY_S: Final = 15.0
TRAFFIC_BEFORE_S: Final = 3.0
TRAFFIC_AFTER_S: Final = 5.0

Asked = TypeVar("Asked")
HISTORY: Final = TypeAdapter(list[dict[str, str]])
REPORT: Final[TypeAdapter[Report | None]] = TypeAdapter(Report | None)


@dataclass(slots=True)
class Finished:
    """A command that ended. lines: its story. out: its stdout."""

    code: int
    out: str
    lines: list[str] = field(default_factory=list[str])


class Demo:
    """One demo in a directory of its own."""

    def __init__(self, *, fault: str, stage: Stage, rate: float, home: Path) -> None:
        self.fault, self.stage, self.rate, self.home = fault, stage, rate, home
        self.version = stage.version_of(fault)
        self.began = time.monotonic()
        self._children: list[subprocess.Popen[bytes]] = []
        self._command: subprocess.Popen[str] | None = None
        self.env = os.environ | stage.shell()
        self._last_watch_line = 0.0

    # --- telling -----------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """One line of the timeline: minutes and seconds since the story began."""
        passed = int(time.monotonic() - self.began)
        print(f"{passed // 60}:{passed % 60:02d}  {line}", flush=True)

    def _retell(self, line: str) -> None:
        """One line of a command's story; the watch speaks every few seconds, here four times a minute."""
        if line.startswith("watching "):
            if time.monotonic() - self._last_watch_line < WATCH_LINE_EVERY_S:
                return
            self._last_watch_line = time.monotonic()
        self.say(line)

    # --- doing -------------------------------------------------------------------------------------------------

    def lastgood(self, *words: str, on_line: Callable[[str], None] = lambda _line: None) -> Finished:
        """Run one command of lastgood in the checkout, as a person would, and retell its story line by line."""
        self.say("$ " + " ".join(["lastgood", *(f"'{w}'" if " " in w else w for w in words)]))
        process = subprocess.Popen(
            [sys.executable, "-m", "lastgood", *words],
            cwd=self.stage.checkout,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._command = process
        done = Finished(code=0, out="")

        def follow(stream: IO[str]) -> None:
            for line in stream:
                done.lines.append(line.rstrip("\n"))
                self._retell(done.lines[-1])
                on_line(done.lines[-1])

        assert process.stderr is not None  # noqa: S101  asked for above
        assert process.stdout is not None  # noqa: S101  asked for above
        teller = threading.Thread(target=follow, args=(process.stderr,), daemon=True)
        teller.start()
        done.out = process.stdout.read()
        done.code = process.wait()
        teller.join(timeout=5)
        return done

    def ask(self, kind: TypeAdapter[Asked], *words: str) -> Asked | None:
        """Run a reading command with --json and return what it says, without telling; None when it says nothing."""
        asked = subprocess.run(
            [sys.executable, "-m", "lastgood", *words, "--json"],
            cwd=self.stage.checkout,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return kind.validate_json(asked.stdout) if asked.stdout.strip() else None

    def start(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        """Start a process that outlives this one until `stop`."""
        with (self.home / log).open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, *words], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        self._children.append(process)
        with (self.home / "pids").open("a") as pids:
            pids.write(f"{process.pid}\n")
        return process

    def stand_ins(self) -> None:
        """Start Vercel's and Slack's stand-ins and wait until they answer."""
        ports = self.stage.ports
        self.start(
            "-m", "lastgood.testing.vercel", "--port", str(ports["vercel"]),
            "--state", str(self.home / "vercel.json"), log="vercel.log",
        )  # fmt: skip
        self.start(
            "-m", "lastgood.testing.slack", "--port", str(ports["slack"]),
            "--messages", str(self.home / "slack.jsonl"), log="slack.log",
        )  # fmt: skip
        for port in (ports["vercel"], ports["slack"]):
            wait_for_port(port)

    def push(self, version: str) -> None:
        """The team pushes a release: its checkout moves, and Vercel builds that commit."""
        commit = self.stage.switch_to(version)
        httpx.post(
            f"http://127.0.0.1:{self.stage.ports['vercel']}/_control/deployments",
            json={"commit": commit, "ref": version},
            timeout=10,
        ).raise_for_status()

    def traffic(self) -> subprocess.Popen[bytes]:
        """Start the users."""
        return self.start(
            "-m", "lastgood.testing.traffic", "--url", self.stage.core_url, "--rate", f"{self.rate:g}",
            "--ledger", str(self.home / "traffic.jsonl"), log="traffic.log",
        )  # fmt: skip

    def stop(self) -> None:
        """End what this demo started, by its own handles, and remove what it made."""
        if self._command is not None and self._command.poll() is None:
            end(self._command.pid, self._command)
        for process in self._children:
            end(process.pid, process)
        self.stage.tear_down()


def run_demo(*, fault: str, engine: str, json_file: Path | None, keep: bool, rate: float) -> int:
    """Play the story. Returns 0 only if it ended as it should. Raises Refused or ConfigError before anything
    is started."""
    if fault not in RIGHT_END:
        raise ConfigError(
            f"unknown fault {fault!r}; known: {', '.join(RIGHT_END)}", hint="lastgood demo --fault errors"
        )
    if engine not in STAGES:
        raise ConfigError(
            f"unknown engine {engine!r}; known: {', '.join(STAGES)}", hint="lastgood demo --engine process"
        )
    if rate <= 0:
        raise ConfigError(f"--rate {rate:g}: expected more than 0 requests/s", hint="lastgood demo --rate 20")
    if importlib.util.find_spec("starlette") is None:
        raise Refused("HyperCode's services are not installed", hint="pip install 'lastgood[demo]'")
    signal.signal(signal.SIGTERM, _leave)
    home = Path.cwd() / f"demo-{secrets.token_hex(2)}"
    home.mkdir(mode=0o755)
    began = time.monotonic()
    stage = STAGES[engine](home)
    demo: Demo | None = None
    kept = False
    try:
        stage.set_up(short_window=SHORT_WINDOW if RIGHT_END[fault] is TerminalState.HEALTHY_KEPT else None)
        demo = Demo(fault=fault, stage=stage, rate=rate, home=home)
        print(f"set-up  {time.monotonic() - began:.0f} s")
        print(f"Real: {stage.real}, the traffic. Stand-ins: Vercel, Slack.")
        print(f"Everything is on 127.0.0.1; files in ./{home.name}.")
        figures = play(demo)
        if json_file:
            json_file.write_bytes(FIGURES.dump_json(figures, indent=2) + b"\n")
        _tell(figures, keep=keep)
        kept = keep
        return 1 if figures.wrong else 0
    finally:
        if kept and demo:
            _say_kept(demo)
        else:
            if demo:
                demo.stop()
            else:
                stage.tear_down()
            shutil.rmtree(home, ignore_errors=True)


def _leave(signum: int, _frame: object) -> None:
    """Asked to end: end as after Ctrl-C, so that nothing is left behind."""
    raise SystemExit(128 + signum)


def play(demo: Demo) -> Figures:
    """A good release, users, a new release, and what lastgood makes of it. Returns the figures."""
    stage = demo.stage
    demo.began = time.monotonic()
    demo.stand_ins()
    demo.push(stage.base)
    first = demo.lastgood("deploy", "--release", stage.base, "--first", "--no-watch", "--yes")
    if first.code:
        told = first.out or first.lines[-1:]
        raise Refused(f"{stage.base} could not be deployed: {told}", hint="read the lines above")
    demo.say(f"{stage.base} serves {stage.core_url}")
    users = demo.traffic()
    demo.say(f"traffic {demo.rate:g}/s, counted by a separate process")
    demo.lastgood("record", "--good", "-m", "demo: known good")
    database_before = stage.database_identity()
    time.sleep(TRAFFIC_BEFORE_S)
    demo.push(demo.version)
    asked = threading.Event()

    def answer(line: str) -> None:
        """The person at the keyboard: reads that an approval is asked for, and types it."""
        if line.startswith("waiting at ") and not asked.is_set():
            asked.set()
            threading.Thread(target=lambda: demo.lastgood("approve", "--database", "hypercode"), daemon=True).start()

    ending = demo.lastgood("deploy", "--release", demo.version, "--yes", on_line=answer)
    print()
    print(ending.out.strip())
    invalid = stage.invalid_missions()
    if invalid:
        print(demo.lastgood("repair", "--yes").out.strip())
    time.sleep(TRAFFIC_AFTER_S)
    end(users.pid, users)
    return _figures(
        demo,
        database_kept=stage.database_identity() == database_before,
        invalid_rows=InvalidRows(found=invalid, left=stage.invalid_missions()),
    )


def _figures(demo: Demo, *, database_kept: bool, invalid_rows: InvalidRows) -> Figures:
    """Put together what the report says and what was counted from outside."""
    last = (demo.ask(HISTORY, "history") or [{}])[-1]
    told = demo.ask(REPORT, "explain")
    report = told if told and told.to_release != demo.version else None
    ledger = read_ledger(demo.home / "traffic.jsonl")
    missing = demo.stage.missing_missions(acknowledged_missions(ledger))
    figures = Figures(
        fault=demo.fault,
        engine=demo.stage.name,
        trigger=report.trigger if report else "",
        sentence=report.sentence if report else last.get("sentence", ""),
        terminal_state=last.get("ended", ""),
        steps=tuple(
            StepFigures(name=s.name, target=s.target, state=s.state, duration_s=s.duration_s)
            for s in (report.steps if report else ())
        ),
        requests=requests_of(ledger, report, leaving=demo.version),
        missions=missions_of(ledger, report, missing=len(missing)),
        verify=tuple(VerifyFigures(name=c.name, passed=c.passed) for c in (report.checks if report else ())),
        notified=tuple(m.text for m in read_messages(demo.home / "slack.jsonl")),
        timings=timings_of(report),
        database_kept=database_kept,
        invalid_rows=invalid_rows,
    )
    return replace(figures, wrong=tuple(_wrong(figures)))


def _wrong(figures: Figures) -> Iterator[str]:
    """Say in which way the story did not end as it should; nothing when it did."""
    right, missions = RIGHT_END[figures.fault], figures.missions
    if figures.terminal_state != right.value:
        yield f"ended {figures.terminal_state or 'nowhere'}, expected {right.value}"
    if missions.missing != missions.announced_lost:
        yield f"{missions.missing} missions missing, {missions.announced_lost} announced"
    if figures.invalid_rows.left:
        yield f"{figures.invalid_rows.left} of {figures.invalid_rows.found} invalid rows are left"
    if not figures.database_kept:
        yield "the database's container or server was replaced"


def _tell(figures: Figures, *, keep: bool) -> None:
    """Tell the figures to the person in front of the terminal. keep: whether the demo stays."""
    counts, missions = figures.requests, figures.missions
    total = f"  {figures.timings.total_s} s after the decision" if figures.timings.total_s is not None else ""
    print()
    print(f"{figures.terminal_state}{total}")
    print(
        f"requests  {counts.sent:,} sent, {counts.failed:,} failed: "
        f"{counts.failed_before_decision:,} before the decision, "
        f"{figures.failed_until_switch:,} until the switch, {counts.failed_during_switch:,} in it"
    )
    if counts.failed_with:
        print("          with " + ", ".join(f"{number:,} x {status}" for status, number in counts.failed_with.items()))
    print(
        f"missions  {missions.acknowledged:,} acknowledged, {missions.missing:,} missing"
        + (f", {missions.announced_lost:,} announced and in quarantine" if missions.announced_lost else "")
    )
    if rows := figures.invalid_rows.found:
        print(f"rows      {rows:,} were invalid, {rows - figures.invalid_rows.left:,} of them are put right")
    for line in figures.wrong:
        print(f"WRONG     {line}")
    if not figures.wrong:
        other = "errors" if figures.fault == "bad-migration" else "bad-migration"
        print(f"next: another failure               {_program()} demo --fault {other}")
        if not keep:
            print(f"      keep it and read the report   {_program()} demo --fault {figures.fault} --keep")
        print("      kill it half-way              LASTGOOD_DIE_AT=... (see README)")


def _say_kept(demo: Demo) -> None:
    print()
    print(f"kept: {demo.stage.core_url}   log in as ada / lovelace")
    print(f"      cd {demo.stage.checkout.relative_to(Path.cwd())} && {demo.stage.hint()}")
    print(f"      end it: {_program()} demo --clean {demo.home.name}")


def clean(home: Path) -> int:
    """End a kept demo: its processes by their recorded ids, its stack, its files."""
    if not (home / "stage.json").is_file():
        raise Refused(f"{home} is not a kept demo", hint="lastgood demo --fault good --keep")
    stage = Stage.load(home)
    for line in (home / "pids").read_text().split() if (home / "pids").exists() else []:
        end(int(line), None, words=b"lastgood.testing")
    stage.tear_down()
    shutil.rmtree(home)
    print(f"{home.name} is gone")
    return 0


def end(pid: int, process: subprocess.Popen[bytes] | subprocess.Popen[str] | None, *, words: bytes = b"") -> None:
    """Ask one process to end and wait; after ten seconds kill it. With `words`: only if its command line holds them."""
    if words:
        try:
            if words not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return
        except OSError:
            return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if process:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def wait_for_port(port: int, deadline_s: float = 15.0) -> None:
    """Wait until something listens on 127.0.0.1. Raises Refused after the deadline."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Refused(f"nothing listens on 127.0.0.1:{port} after {deadline_s:.0f} s")


def _program() -> str:
    """What to type for this program, as it was typed."""
    if shutil.which("lastgood"):
        return "lastgood"
    return sys.argv[0] if Path(sys.argv[0]).name == "lastgood" else f"{sys.executable} -m lastgood"

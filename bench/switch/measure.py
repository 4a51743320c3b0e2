"""Carries the ways out under load, and marks when each command began and ended."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.switch.figures import Command, Result, Switched, commands, late_ms, noticed, posts
from bench.switch.request import Request, read
from bench.switch.stack import BAD, GOOD, ROOT, Images, Stack, free_ports
from bench.switch.ways import CONFIG, Kind, Way
from lastgood.assembly import load_config
from lastgood.core.plan import Step, Switch
from lastgood.targets.compose import ComposeTarget

CALM_S: Final = 3.0
"""Before and after each command: what is left over from it ends in this time, but for requests of 10 s."""
BETWEEN_SWITCHES_S: Final = 0.5
DRAIN_S: Final = 60.0
SWITCH_DEADLINE_S: Final = 30.0


class SystemClock:
    """Real time, as the target asks for it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(slots=True, kw_only=True)
class Loaded:
    """A load that runs, and the commands that were given under it."""

    file: Path
    run: str
    process: subprocess.Popen[bytes]
    marks: list[Command]

    def mark(self, command: Callable[[], None], *, leaves: str, to: str, settled: Callable[[], None]) -> None:
        """Give a command and write down when. settled: returns when it has done its work and its traces are over."""
        steady_from = self.marks[-1].until if self.marks else 0.0
        began_at = time.monotonic()
        command()
        ended_at = time.monotonic()
        settled()
        until = time.monotonic()
        self.marks.append(
            Command(leaves=leaves, to=to, steady_from=steady_from, began_at=began_at, ended_at=ended_at, until=until)
        )

    def ended(self) -> tuple[Request, ...]:
        """End the load, wait for its last answer, and return what it wrote down."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=DRAIN_S)
        return read(self.file)


@contextmanager
def load(stack: Stack, *, rate: float) -> Generator[Loaded]:
    """Send requests to the stack from a process of its own."""
    name = secrets.token_hex(4)
    file = stack.images.folder / f"load-{name}"
    words = [sys.executable, "-m", "bench.switch.load", "--rate", f"{rate:g}", "--file", str(file), "--run", name]
    process = subprocess.Popen(
        [*words, "--ports", *(str(port) for port in stack.ports)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )
    try:
        time.sleep(CALM_S)
        yield Loaded(file=file, run=name, process=process, marks=[])
    finally:
        process.kill()
        process.wait()
        file.unlink(missing_ok=True)


@contextmanager
def stack_of(images: Images, kind: Kind, *, services: int) -> Generator[tuple[Stack, Way]]:
    """Bring a stack of its own up, warmed up by one round that is not measured, and remove it at the end."""
    project = f"switch-{kind.name.lower()}-{secrets.token_hex(3)}"
    stack = Stack(
        images=images,
        folder=images.folder / project,
        project=project,
        ports=free_ports(services),
        front=kind.front,
        shared=kind.shared,
    )
    way = kind.make(stack)
    try:
        way.begin()
        stack.wait_for(GOOD)
        way.forward()
        stack.wait_for(BAD)
        way.back()
        stack.wait_for(GOOD)
        way.again()
        stack.wait_until_healthy()
        yield stack, way
    finally:
        stack.clear()


def measure(
    images: Images, kind: Kind, *, services: int, rate: float, runs: int, story: Callable[[str], None]
) -> Result:
    """Take one way forward and back, as often as `runs`, under one load."""
    standby = 0
    with stack_of(images, kind, services=services) as (stack, way), load(stack, rate=rate) as loaded:

        def settled_at(release: str) -> Callable[[], None]:
            def settled() -> None:
                stack.wait_for(release)
                stack.wait_until_healthy()
                time.sleep(CALM_S)

            return settled

        for number in range(1, runs + 1):
            loaded.mark(way.forward, leaves=GOOD, to=BAD, settled=settled_at(BAD))
            standby = max(standby, stack.memory_of(GOOD))
            loaded.mark(way.back, leaves=BAD, to=GOOD, settled=settled_at(GOOD))
            way.again()
            story(f"{kind.name}: run {number} of {runs}")
        requests = loaded.ended()
        told = [noticed(requests, command) for command in _spans(loaded.marks, requests)]
        return Result(
            way=kind.name,
            services=services,
            rate=rate,
            deploys=tuple(told[0::2]),
            rollbacks=tuple(told[1::2]),
            posts=posts(requests, stack.ids(), run=loaded.run),
            standby_bytes=standby,
            late_ms=late_ms(requests),
        )


def measure_switches(images: Images, kind: Kind, *, services: int, rate: float, switches: int) -> Switched:
    """Move the traffic back and forth between two releases that both run: one step of a rollback, and nothing else."""
    with stack_of(images, kind, services=services) as (stack, way):
        way.forward()
        stack.wait_for(BAD)
        containers = load_config(stack.folder / CONFIG).containers
        if containers is None:
            raise TypeError(f"{stack.folder / CONFIG} has no containers")
        target = ComposeTarget(containers, root=stack.folder, state=stack.folder / ".lastgood", clock=SystemClock())
        steps = {release: _switch_to(stack, release) for release in (GOOD, BAD)}
        with load(stack, rate=rate) as loaded:
            for number in range(switches):
                leaves, to = (BAD, GOOD) if number % 2 == 0 else (GOOD, BAD)
                loaded.mark(
                    lambda step=steps[to]: target.apply(step),  # type: ignore[misc] # mypy cannot infer a default
                    leaves=leaves,
                    to=to,
                    settled=lambda: time.sleep(BETWEEN_SWITCHES_S),
                )
            time.sleep(CALM_S)
            requests = loaded.ended()
            return Switched(
                services=services,
                rate=rate,
                switches=tuple(noticed(requests, command) for command in _spans(loaded.marks, requests)),
                posts=posts(requests, stack.ids(), run=loaded.run),
                late_ms=late_ms(requests),
            )


def _switch_to(stack: Stack, release: str) -> Step:
    artifact = stack.images.id_of(release)
    return Step(
        name="switch-traffic",
        action=Switch(release=release, artifacts=tuple((service, artifact) for service in stack.services)),
        deadline_s=SWITCH_DEADLINE_S,
        explain="one of many",
    )


def _spans(marks: Sequence[Command], requests: Sequence[Request]) -> tuple[Command, ...]:
    last = max((r.ended_at for r in requests), default=0.0)
    return commands(marks, last=max(last, marks[-1].until) + 1.0)

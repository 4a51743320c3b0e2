"""The ways by which a release is put in the place of another: by hand, with a scale-up, and by lastgood on each rung.

Each goes forward and back with what its users type; a second round begins where the first one ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bench.switch.stack import BAD, COMPOSE_FILE, GOOD, ROOT, Failed, Stack, run

CONFIG: Final = "lastgood.yaml"
EDGE_FILE: Final = "docker-compose.edge.yml"
ROLLED_OUT_S: Final = 60.0


class Way(Protocol):
    """begin: bring the stack up at the good release. forward, back: what is timed. again: what a next round needs."""

    def begin(self) -> None: ...
    def forward(self) -> None: ...
    def back(self) -> None: ...
    def again(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ByHand:
    """HyperCode's written procedure: the old release in the files, pull, and everything recreated."""

    stack: Stack

    def begin(self) -> None:
        self.stack.write(GOOD)
        self.stack.compose("up", "--detach", "--wait")

    def forward(self) -> None:
        self.stack.write(BAD)
        self.stack.compose("pull", "--quiet")
        self.stack.compose("up", "--detach")

    def back(self) -> None:
        self.stack.write(GOOD)
        self.stack.compose("pull", "--quiet")
        self.stack.compose("up", "--detach", "--force-recreate")

    def again(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class OnlyChanged:
    """`up -d`: compose recreates what differs."""

    stack: Stack

    def begin(self) -> None:
        self.stack.write(GOOD)
        self.stack.compose("up", "--detach", "--wait")

    def forward(self) -> None:
        self.stack.write(BAD)
        self.stack.compose("up", "--detach")

    def back(self) -> None:
        self.stack.write(GOOD)
        self.stack.compose("up", "--detach")

    def again(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ScaledUp:
    """As docker-rollout v0.13 does, behind an HAProxy that finds containers by DNS: a second container of a service is
    started, asked every second whether it is healthy, and then the first one is stopped."""

    stack: Stack

    def begin(self) -> None:
        self.stack.write(GOOD)
        self.stack.compose("up", "--detach", "--wait")

    def forward(self) -> None:
        self._roll_out(BAD)

    def back(self) -> None:
        self._roll_out(GOOD)

    def again(self) -> None:
        pass

    def _roll_out(self, release: str) -> None:
        self.stack.write(release)
        for service in self.stack.services:
            old = self._containers(service)
            scale = f"{service}={2 * len(old)}"
            self.stack.compose("up", "--detach", "--no-deps", "--no-recreate", "--scale", scale, service)
            self._wait(sorted(set(self._containers(service)) - set(old)))
            run("docker", "stop", *old)
            run("docker", "rm", *old)
        self.stack.compose("up", "--detach", "--no-deps", "worker")

    def _containers(self, service: str) -> list[str]:
        return self.stack.compose("ps", "--quiet", service).split()

    def _wait(self, new: list[str]) -> None:
        ends_at = time.monotonic() + ROLLED_OUT_S
        health = ("docker", "inspect", "--format", "{{.State.Health.Status}}")
        while any(run(*health, container).strip() != "healthy" for container in new):
            if time.monotonic() > ends_at:
                raise Failed(f"not healthy: {', '.join(new)}")
            time.sleep(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lastgood:
    """This program, through its command line. standby: what becomes of the release before behind the edge; None for a
    stack without an edge."""

    stack: Stack
    standby: str | None

    def begin(self) -> None:
        stack = self.stack
        stack.write(GOOD)
        stack.compose("up", "--detach", "--wait")
        self._configure({})
        if self.standby is not None:
            self.lastgood("init", "--edge")
            stack.files.append(EDGE_FILE)
            stack.compose("up", "--detach", "--wait")
            edge: dict[str, Any] = {"routes": dict.fromkeys(stack.services, 8080), "standby": self.standby}
            if stack.shared:
                edge["one_at_a_time"] = list(stack.services)
            self._configure({"edge": edge})
        self.lastgood("record", "--release", GOOD, "--good", "-m", "it serves")

    def _configure(self, more: dict[str, Any]) -> None:
        stack = self.stack
        config = {
            "version": 1,
            "stack": stack.project,
            "watch": {"baseline": "0s", "bake": "0s"},
            "containers": {
                "compose": {"project": stack.project, "files": [COMPOSE_FILE, *([EDGE_FILE] if more else [])]},
                "services": [*stack.services, "worker"],
                "workers": ["worker"],
                "boot": f"{max(60, 6 * len(stack.services))}s",
                **more,
            },
            "verify": {"health": [f"http://127.0.0.1:{port}/health" for port in stack.ports]},
        }
        (stack.folder / CONFIG).write_text(json.dumps(config, indent=2))

    def forward(self) -> None:
        self.stack.write(BAD)
        self.lastgood("deploy", "--release", BAD, "--no-watch", "--even-if-barred", "--yes")

    def back(self) -> None:
        self.lastgood("rollback", "--yes", "-m", "it is bad")

    def again(self) -> None:
        self.lastgood("unfreeze", "-m", "the next round")

    def lastgood(self, *words: str) -> str:
        """Type `lastgood`. Raises Failed when it does not end well."""
        return run(
            sys.executable, "-m", "lastgood", *words, cwd=self.stack.folder, env={"PYTHONPATH": str(ROOT / "src")}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way before it has a stack. ours: as often as `--runs` says; the others take longer and vary less."""

    name: str
    says: str
    make: Callable[[Stack], Way]
    ours: bool = True
    front: bool = False
    shared: bool = False


def _on(standby: str | None) -> Callable[[Stack], Way]:
    return lambda stack: Lastgood(stack=stack, standby=standby)


KINDS: Final = (
    Kind(name="by-hand", says="pull, up -d --force-recreate", make=ByHand, ours=False),
    Kind(name="changed", says="up -d", make=OnlyChanged, ours=False),
    Kind(name="scale", says="scale up, then down, behind HAProxy", make=ScaledUp, ours=False, front=True),
    Kind(name="L4", says="lastgood, no edge: recreated", make=_on(None)),
    Kind(name="L3", says="lastgood, edge holds the requests", make=_on("running"), shared=True),
    Kind(name="L2", says="lastgood, edge, started from the held image", make=_on("none")),
    Kind(name="L1", says="lastgood, edge, stopped standby", make=_on("stopped")),
    Kind(name="L0", says="lastgood, edge, warm standby", make=_on("running")),
)

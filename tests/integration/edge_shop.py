"""A team with lastgood on a stack behind an edge, on each rung of the ladder: one bad release after the other, and what
must be true after each of them was put back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from lastgood.core.plan import Seen
from lastgood.core.record import StepSeen
from lastgood.core.report import TerminalState
from lastgood.targets.compose import edge_file, set_up_edge
from lastgood.testing.slack import SlackStandIn
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import EffectCounter, edge_image
from tests.integration.edge_world import FRONT, EdgeWorld
from tests.integration.shop import KILLED, Shop

GOOD: Final = "v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """How the stack goes back. edge: what is said of the edge in lastgood.yaml, None where there is none. alone: web
    may not stand twice. steps: of a rollback there."""

    name: str
    steps: tuple[str, ...]
    edge: dict[str, Any] | None
    alone: bool = False

    @property
    def composed(self) -> tuple[str, ...]:
        """The services that compose's own container serves, all other ones a container of the release's own."""
        if self.edge is None:
            return ("api", "web", "worker")
        return ("web", "worker") if self.alone else ("worker",)


SWITCHED: Final = ("pass-gate", "switch-traffic", "serve-worker", "settle")
WARM: Final = Rung(name="L0", steps=SWITCHED, edge={})
STANDBY: Final = Rung(name="L1", steps=SWITCHED, edge={"standby": "stopped"})
START_FIRST: Final = Rung(name="L2", steps=SWITCHED, edge={"standby": "none"})
HELD: Final = Rung(
    name="L3", steps=("pass-gate", "switch-traffic", "serve-web", "serve-worker", "settle"), edge={}, alone=True
)
RECREATED: Final = Rung(
    name="L4", steps=("pass-gate", "serve-api", "serve-web", "serve-worker", "clear-candidates"), edge=None
)


class EdgeShop(Shop):
    """v1 serves and is good. Each `bad_release` is another one; `check_it_went_back_whole` after each rollback."""

    def __init__(self, world: EdgeWorld, slack: SlackStandIn, rung: Rung) -> None:
        super().__init__(world, slack)
        self.world, self.rung = world, rung
        self.database = ""
        self._number = 1
        self.sections["containers"] = world.section()

    @property
    def bad_name(self) -> str:
        """The newest bad release."""
        return f"v{self._number}"

    def set_up(self, *, restart: str = "") -> None:
        """Bring the stack up, put the edge before it where the rung has one, and deploy v1. restart: policy of every
        service."""
        world = self.world
        if self.rung.alone:
            world.services["web"]["volumes"] = ["uploads:/uploads"]
            world.extra_volumes["uploads"] = {}
        if restart:
            for service in world.services.values():
                service["restart"] = restart
        world.write()
        world.up("docker-compose.yml")
        if self.rung.edge is not None:
            plain = world.settings()
            plan = set_up_edge(plain, root=world.root, state=world.root / ".lastgood", clock=CLOCK)
            world.up("docker-compose.yml", edge_file(plain))
            alone = {"one_at_a_time": list(plan.one_at_a_time)} if plan.one_at_a_time else {}
            self.sections["containers"] = world.section(routes=dict(plan.routes), drain="5s", **alone, **self.rung.edge)
        self.database = str(world.container("db").id)
        self.good(GOOD)

    def build(self, release: str, *, services: Sequence[str] = (), script: str = "") -> None:
        """Images that say which release they are; what web says of itself is what its users see."""
        del services, script
        page = json.dumps({"release": release})
        self.world.image("web", page, script=FRONT.replace("VERSION", release))
        self.world.image("api", release)
        self.world.image("worker", release)

    def bad_release(self) -> str:
        """Deploy the next bad one, with the freeze of the rollback before lifted. Returns its name."""
        self._next()
        self.bad(self.bad_name)
        assert self.world.answer() == f"{self.bad_name}-{self.bad_name}"
        return self.bad_name

    def bad_release_that_dies(self, point: str) -> str:
        """Deploy the next bad one by a command that dies at a kill point. Returns its name."""
        self._next()
        self.build(self.bad_name)
        self.lastgood("deploy", "--release", self.bad_name, "--no-watch", "--yes", code=KILLED, die_at=point)
        return self.bad_name

    def _next(self) -> None:
        if self.history.frozen:
            self.lastgood("unfreeze", "-m", "the next one")
        self._number += 1

    # --- what must be true afterwards ----------------------------------------------------------------------------

    def check_it_went_back_whole(self) -> None:
        """v1 serves from one container of each service, every step was seen done once, and nothing stands where
        nothing should."""
        assert self.report.terminal is TerminalState.ROLLED_BACK_VERIFIED
        assert [check for check in self.report.checks if not check.passed] == []
        assert [step.name for step in self.report.steps] == list(self.rung.steps)
        assert self.serving == GOOD
        assert self.world.answer() == f"{GOOD}-{GOOD}"
        there, expected = self.containers(), self.expected()
        assert there == expected, f"{there}, expected {expected}"
        assert self.networks() == [f"{self.world.project}_default"]
        assert self.world.container("db").id == self.database
        run = next(run for run in reversed(self.history.runs.values()) if run.ended and run.ended.report)
        done = [r.event.step for r in run.records if isinstance(r.event, StepSeen) and r.event.seen is Seen.DONE]
        assert done == list(self.rung.steps)
        assert f"{self.rung.name} " in run.plan.rung, run.plan.rung

    def check_nothing_runs_of_a_deploy(self) -> None:
        """v1 serves from one container of each service and from none twice; of the bad one nothing runs."""
        assert self.report.terminal is TerminalState.ROLLED_BACK_VERIFIED
        assert [check for check in self.report.checks if not check.passed] == []
        assert self.serving == GOOD
        assert self.world.answer() == f"{GOOD}-{GOOD}"
        running = {name: image for name, (up, image) in self.containers().items() if up}
        assert running == {name: image for name, (up, image) in self.expected().items() if up}
        assert self.networks() == [f"{self.world.project}_default"]
        assert self.world.container("db").id == self.database

    @property
    def told_of_success(self) -> int:
        """How often it was told that v1 is back, or that the bad one never served."""
        well = (self.completed(GOOD), f"nothing had to be put back: {GOOD} serves, and the checks passed.")
        return len([text for text in self.told if any(words in text for words in well)])

    def containers(self) -> dict[str, tuple[bool, str]]:
        """Every container of the project, by what of it stands beyond the project's name: does it run, from which
        image. Of compose's own copies that stand still behind an edge nobody asks that: somebody may have made them
        anew by hand."""
        found = self.world.client.containers.list(all=True, ignore_removed=True)
        candidates = {c.id for c in self.world.candidates()}
        mine = [c for c in found if self.world.project in str(c.name) or c.id in candidates]
        images = {str(c.name).removeprefix(f"{self.world.project}-"): str(c.attrs["Image"]) for c in mine}
        up = {str(c.name).removeprefix(f"{self.world.project}-"): c.status == "running" for c in mine}
        still = {f"{service}-1" for service in ("api", "web", "worker") if service not in self.rung.composed}
        unasked = {name for name in still if not up.get(name)}
        return {name: (up[name], "" if name in unasked else self._image(image)) for name, image in images.items()}

    def _image(self, image: str) -> str:
        """The release that an image is of, by what was recorded; empty for what is of none."""
        for name, known in self.history.releases.items():
            if any(service.artifact == image for service in known.release.services):
                return name
        return ""

    def expected(self) -> dict[str, tuple[bool, str]]:
        """What there is after a rollback: the release that serves, the bad one stopped for who looks for the cause,
        and, behind an edge, what compose had started before there was one."""
        found = {"db-1": (True, ""), **({"lastgood-edge-1": (True, "")} if self.rung.edge is not None else {})}
        for service in ("api", "web", "worker"):
            if service in self.rung.composed:
                found[f"{service}-1"] = (True, GOOD)
            else:
                found[f"{service}-1"] = (False, "")
                found[f"{service}-{GOOD}"] = (True, GOOD)
                found[f"{service}-{self.bad_name}"] = (False, self.bad_name)
        return found

    def networks(self) -> list[str]:
        found = self.world.client.networks.list()
        return [str(n.name) for n in found if self.world.project in str(n.name)]


@contextmanager
def edge_shop(folder: Path, rung: Rung, *, address: str = "127.0.0.1", restart: str = "") -> Generator[EdgeShop]:
    """A shop on this rung with v1 serving, on the engine that DOCKER_HOST names."""
    world = EdgeWorld(folder, address=address)
    with pytest.MonkeyPatch.context() as patch, SlackStandIn(messages=folder / "slack.jsonl") as slack:
        try:
            patch.setenv("LASTGOOD_EDGE_IMAGE", edge_image(world.client))
            shop = EdgeShop(world, slack, rung)
            shop.set_up(restart=restart)
            yield shop
        finally:
            world.clear()


def possible(rung: Rung, bad: str) -> set[str]:
    """What users may see of a rollback: one release or the other, and where web cannot stand twice also one that asks
    the other's."""
    both = {f"{bad}-{bad}", f"{GOOD}-{GOOD}"}
    return both | {f"{bad}-{GOOD}"} if rung.alone else both


@contextmanager
def counted(world: EdgeWorld) -> Iterator[Counter[tuple[str, str]]]:
    """What the engine tells of the project's containers in this block: (what happened, name), known at its end."""
    counter = EffectCounter(world)
    found: Counter[tuple[str, str]] = Counter()
    try:
        before = counter.effects()
        yield found
        found.update(counter.effects() - before)
    finally:
        counter.close()

"""A project at the stand-in of Vercel: three production deployments, of which the newest serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lastgood.core.config import VercelConfig
from lastgood.core.plan import ReturnFrontend, Serve, Step
from lastgood.core.secret import Secret
from lastgood.targets.vercel import VercelTarget
from lastgood.testing.standin import Fault, FaultKind
from lastgood.testing.vercel import DEFAULT_DOMAIN, DEFAULT_PROJECT, DEFAULT_TEAM, DEFAULT_TOKEN, VercelStandIn
from tests.contract.rigs.clock import CLOCK

CHANGING = ("rollback", "promote", "update")


def step(deployment: str, *, deadline_s: float = 2.0) -> Step:
    """The frontend's step of a rollback."""
    return Step(
        name="return-frontend",
        action=ReturnFrontend(deployment=deployment),
        deadline_s=deadline_s,
        explain=f"{deployment} is production again",
    )


def config(vercel: VercelStandIn, **others: object) -> VercelConfig:
    """How a target reaches the stand-in; others: settings as in lastgood.yaml."""
    settings = {
        "project": DEFAULT_PROJECT,
        "team": DEFAULT_TEAM,
        "token": Secret(DEFAULT_TOKEN),
        "domains": [DEFAULT_DOMAIN],
        "url": vercel.url,
        "site": vercel.domain_url("{domain}"),
        "timeout": "2s",
    }
    return VercelConfig.model_validate(settings | others)


class VercelWorld:
    """The project, and the target on it."""

    def __init__(self, vercel: VercelStandIn) -> None:
        self._vercel = vercel
        self._older, self._good, _bad = (vercel.deploy(commit * 40) for commit in "abc")

    @property
    def target(self) -> VercelTarget:
        return VercelTarget(config(self._vercel), clock=CLOCK)

    @property
    def steps(self) -> Sequence[Step]:
        return step(self._good), step(self._older)

    @property
    def refused(self) -> Step:
        return step("dpl_unheard_of")

    @property
    def foreign(self) -> Step:
        return Step(
            name="serve", action=Serve(release="v1", service="web", artifact="sha256:0"), deadline_s=1, explain="serve"
        )

    def effects(self) -> int:
        """Every request that asks for a change, granted or not."""
        return sum(len(self._vercel.calls(operation)) for operation in CHANGING)

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """It takes every call and answers none."""
        self._vercel.fail(Fault(kind=FaultKind.HANG, count=1_000_000))
        try:
            yield
        finally:
            self._vercel.heal()


@contextmanager
def rig(folder: Path) -> Iterator[VercelWorld]:
    with VercelStandIn(state=folder / "vercel.json") as vercel:
        yield VercelWorld(vercel)

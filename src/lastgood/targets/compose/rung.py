"""Which rung of the ladder each service stands on, and why not on a higher one: chosen here and nowhere else.

Behind an edge a service that may stand twice is switched: to instances that run already (L0 warm), were stopped (L1) or
are started from the held image (L2). One that may not is recreated while the edge holds its requests (L3). Without an
edge in front it is recreated, and its requests fail meanwhile (L4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lastgood.core.config import Standby
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container
from lastgood.targets.compose.look import Look, is_twin
from lastgood.targets.compose.project import LABEL_RELEASE


class ContainerRung(StrEnum):
    """How a service is put back."""

    WARM = "L0"
    STANDBY = "L1"
    START_FIRST = "L2"
    HELD = "L3"
    RECREATE = "L4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A rung, and why not a higher one."""

    rung: ContainerRung
    why: str


def choose_rung(service: str, seen: Look, edge: Edge | None, *, release: str, at_least: int = 1) -> Chosen:
    """Choose the highest rung on which `service` goes back to `release` now; with no release named, the one on which it
    will go back after the next deploy. at_least: how many instances make it whole there."""
    if edge is None:
        return Chosen(rung=ContainerRung.RECREATE, why="no edge in front of it")
    if service not in edge.config.routes:
        return Chosen(rung=ContainerRung.RECREATE, why="it has no route at the edge")
    if service not in edge.switchable:
        return Chosen(rung=ContainerRung.HELD, why="no second copy of it may run")
    if not release:
        if not all(is_twin(c) for c in seen.serving if c.service == service):
            why = "what serves now was started by compose, and does not stay beside"
            return Chosen(rung=ContainerRung.START_FIRST, why=why)
        return {
            Standby.RUNNING: Chosen(rung=ContainerRung.WARM, why=f"what serves now stays running beside{_up_to(edge)}"),
            Standby.STOPPED: Chosen(rung=ContainerRung.STANDBY, why="what serves now stays beside, stopped"),
            Standby.NONE: Chosen(rung=ContainerRung.START_FIRST, why="containers.edge.standby is none"),
        }[edge.config.standby]
    run = sum(stands(c, service, release) and c.facts().serves for c in (*seen.beside, *seen.serving))
    if run >= at_least:
        return Chosen(rung=ContainerRung.WARM, why=f"{release} runs beside")
    stand = sum(stands(c, service, release) for c in (*seen.stopped, *seen.beside))
    if run or 0 < stand < at_least:
        return Chosen(rung=ContainerRung.START_FIRST, why=f"{run} of {at_least} of {release} run beside")
    if stand:
        return Chosen(rung=ContainerRung.STANDBY, why=f"{release} stands beside and does not run")
    return Chosen(rung=ContainerRung.START_FIRST, why=f"nothing of {release} stands beside")


def _up_to(edge: Edge) -> str:
    most = edge.config.standby_memory
    return f", up to {most / (1 << 20):,.0f} MiB, else stopped" if most is not None else ""


def stands(container: Container, service: str, release: str) -> bool:
    """Whether it was made to serve `service` of `release`, running or not."""
    return is_twin(container) and container.service == service and container.labels.get(LABEL_RELEASE) == release


_DOES = {
    ContainerRung.WARM: "warm",
    ContainerRung.STANDBY: "start the standby",
    ContainerRung.START_FIRST: "start first",
    ContainerRung.HELD: "requests wait",
    ContainerRung.RECREATE: "one service at a time",
}


def said(chosen: Sequence[tuple[str, Chosen]]) -> str:
    """All rungs in one line, the highest first; services on one rung for one reason together."""
    return "; ".join(_lines(chosen))


def _lines(chosen: Sequence[tuple[str, Chosen]]) -> Iterator[str]:
    kinds = sorted({(c.rung, c.why) for _, c in chosen})
    for rung, why in kinds:
        names = ", ".join(name for name, c in chosen if (c.rung, c.why) == (rung, why))
        yield f"{rung.value} {_DOES[rung]} ({names}): {why}"

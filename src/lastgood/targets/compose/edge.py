"""The edge in front of a stack: to which containers it sends requests, and how they are moved, held and waited for.

Only the edge says who serves: a container that runs beside has no port and no name that anybody else knows.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Final, cast

from lastgood.core.config import EdgeConfig
from lastgood.core.errors import NeedsHuman, OutcomeUnknown, Refused, Retryable
from lastgood.targets.compose.engine import Container, Engine, at_once
from lastgood.targets.compose.haproxy import (
    CONFIG_FILE,
    FIRST_PORT,
    INSIDE,
    SLOTS,
    Place,
    Route,
    Runtime,
    Slot,
    configuration,
    places,
    publish_from,
    with_serving,
)
from lastgood.targets.compose.kept import replace_private
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.stack import Stack

FOLDER: Final = "edge"
"""In the state directory: the configuration of the edge and its socket."""
PATIENCE_S: Final = 0.75
"""How long a request waits for a service that does not take its connection: as three retries would."""
POLL_S: Final = 0.02
RESOLVED_S: Final = 10.0
"""The edge asks for an address every second."""
CONNECT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Edge:
    """The edge of one stack."""

    config: EdgeConfig
    stack: Stack

    @property
    def folder(self) -> Path:
        """Where the edge reads its configuration and opens its socket."""
        return self.stack.state / FOLDER

    @property
    def runtime(self) -> Runtime:
        """The edge's socket."""
        return Runtime(self.folder, anew=self._anew)

    @property
    def _anew(self) -> str:
        return f"docker restart {self.stack.name}-{self.config.service}-1"

    @property
    def switchable(self) -> frozenset[str]:
        """The services that may stand twice: a release has its own instances of them."""
        return frozenset(self.config.routes) - set(self.config.one_at_a_time)

    def serving(self) -> dict[str, frozenset[str]]:
        """Names of the containers that get the requests of each service. Raises Retryable when nobody can tell, Refused
        when the edge was set up for other services than the configuration names: nothing would be where it is sought.
        """
        slots = self.runtime.slots()
        self._refuse_another_set_up(slots)
        found: dict[str, frozenset[str]] = dict.fromkeys(self.config.routes, frozenset())
        for slot in slots:
            if slot.ready and slot.container:
                found[slot.service] = found.get(slot.service, frozenset()) | {slot.container}
        return found

    def places(self) -> dict[str, Place]:
        """Where each service stands by the file that the edge starts from; empty when that cannot be read."""
        try:
            return places((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except OSError:
            return {}

    def _refuse_another_set_up(self, slots: Sequence[Slot]) -> None:
        there: dict[str, set[int]] = {}
        for slot in slots:
            if slot.name.startswith("s"):
                there.setdefault(slot.service, set()).add(slot.port)
        asked, file = self.config.routes, self.places()
        wrong = [f"{name} has no port {port} there" for name, port in asked.items() if port not in there.get(name, ())]
        wrong += [f"{name} is not in routes" for name in sorted(there.keys() - asked.keys())]
        if file.keys() == asked.keys() and all(place.named is not None for place in file.values()):
            twice = {name for name, place in file.items() if place.named}
            wrong += [f"{name} may stand twice there" for name in sorted(twice - self.switchable)]
            wrong += [f"{name} may not stand twice there" for name in sorted(self.switchable - twice)]
        if wrong:
            raise Refused(
                f"the edge was set up for something else than containers.edge says: {'; '.join(wrong)}",
                hint="lastgood init --edge",
            )

    def admit(
        self, containers: Mapping[str, Sequence[Container]], *, ends_at: datetime
    ) -> dict[str, dict[str, Container]]:
        """Give each container of each service a slot that gets no traffic yet, unless it has one, and wait until the
        edge knows where all of them are. Returns slot -> container of each service. Raises Retryable: no traffic has
        moved."""
        there, busy = self.runtime.slots(), self.runtime.sessions()
        taken: dict[str, dict[str, Container]] = {}
        named: list[tuple[str, str, str]] = []
        for service, own in containers.items():
            slots = [slot for slot in there if slot.service == service and slot.name.startswith("s")]
            mine = taken.setdefault(service, {})
            for container in own:
                slot = next((s for s in slots if s.container == container.name and s.name not in mine), None)
                if slot is None:
                    slot = self._free(service, slots, mine, busy)
                    named.append((service, slot.name, container.name))
                mine[slot.name] = container
        if named:
            self.runtime.name(named)
        self._wait_for_addresses(taken, ends_at=ends_at)
        return taken

    def listens(self, engine: Engine, service: str, container: Container) -> bool:
        """Whether a container takes connections on the port of its route: Docker's word on its health may be old, or
        there is none. A no counts only where this host reaches the edge's own container: a firewall says no as well."""
        port = self.config.routes.get(service)
        # of two kinds of addresses the edge takes the old one
        addresses = [a for a in container.addresses if ":" not in a] or container.addresses
        its_port = next((place.inside for place in self.places().values()), FIRST_PORT)
        if port is None or not addresses or not _is_reached(engine, self.config.service, its_port):
            return True
        return not all(_refuses(address, port) for address in addresses)

    def _free(
        self, service: str, slots: Sequence[Slot], taken: Mapping[str, Container], busy: Mapping[tuple[str, str], int]
    ) -> Slot:
        idle = [s for s in slots if not s.ready and s.name not in taken and not busy.get((service, s.name))]
        if not idle:
            last = sum(not s.ready and busy.get((service, s.name), 0) > 0 for s in slots)
            raise Retryable(
                f"all {SLOTS} slots of {service} at the edge are in use: {SLOTS - last} for who serves or is to, "
                f"{last} for last requests, which end where it is started again",
                delay_s=2.0,
                hint=self._anew,
            )
        return min(idle, key=lambda slot: bool(slot.container))

    def _wait_for_addresses(self, taken: Mapping[str, Mapping[str, Container]], *, ends_at: datetime) -> None:
        until = min(ends_at, self.stack.clock.now() + timedelta(seconds=RESOLVED_S))
        while True:
            known = {(slot.service, slot.name): slot.address for slot in self.runtime.slots()}
            missing = [
                container
                for service, slots in taken.items()
                for slot, container in slots.items()
                if known.get((service, slot)) not in container.addresses
            ]
            if not missing:
                return
            if self.stack.clock.now() >= until:
                names = ", ".join(container.name for container in missing)
                raise Retryable(
                    f"the edge does not find {names}: has it a network in common with {missing[0].service}?",
                    delay_s=1.0,
                    hint=f"docker inspect {missing[0].name}",
                )
            self.stack.clock.sleep(POLL_S)

    def move(self, project: Project, to: Mapping[str, Mapping[str, Container]]) -> None:
        """Send the requests of these services to these slots (slot -> container) and to no other, one service right
        after the other.

        Raises OutcomeUnknown when the edge did not say that it did, Retryable when it was not told.
        """
        before = self.serving()
        after = {**before, **{service: frozenset(c.name for c in slots.values()) for service, slots in to.items()}}
        away = [
            (slot.service, slot.name)
            for slot in self.runtime.slots()
            if slot.ready and slot.service in to and slot.name not in to[slot.service]
        ]
        # First the file: whoever dies between the two goes by the edge next, and `write_down` puts the file right.
        self.write(project, after)
        try:
            self.runtime.move(to=[(service, slot) for service, slots in to.items() for slot in slots], away=away)
        except Retryable:
            # and an edge that is started again because of it must send nobody elsewhere
            self.write(project, before)
            raise
        except OutcomeUnknown:
            with contextlib.suppress(Retryable):
                self.write(project, self.serving())
            raise

    def hold(self, service: str) -> None:
        """Let the requests of a service wait from now on."""
        ready = [slot.name for slot in self.runtime.slots() if slot.ready and slot.service == service]
        self.runtime.hold(service, instead_of=[name for name in ready if name.startswith("s")])

    def hold_everybody(self, *, ends_at: datetime) -> None:
        """Let all requests from outside wait, and those that are being answered end until `ends_at`."""
        self.runtime.hold_everybody(self.config.routes)
        serving = {(slot.service, slot.name) for slot in self.runtime.slots() if slot.ready and slot.container}
        while any(count for at, count in self.runtime.sessions().items() if at in serving):
            if self.stack.clock.now() >= ends_at:
                return
            self.stack.clock.sleep(POLL_S)

    def drain(self, containers: Iterable[str], *, ends_at: datetime) -> None:
        """Wait until those of these containers (names) that get no more requests have answered their last one; cut off
        what is left at the deadline."""
        wanted = set(containers)
        while True:
            quiet = {(s.service, s.name) for s in self.runtime.slots() if not s.ready and s.container in wanted}
            open_ = [at for at, count in self.runtime.sessions().items() if count and at in quiet]
            if not open_:
                return
            if self.stack.clock.now() >= ends_at:
                for service, slot in open_:
                    self.runtime.cut(service, slot)
                return
            self.stack.clock.sleep(POLL_S)

    def forget(self, containers: Iterable[str]) -> None:
        """Ask for these containers (names) no more where they get no requests: the edge asks for each name that it has
        every second, and the engine passes on what it does not know. Raises Retryable and OutcomeUnknown."""
        gone = set(containers)
        self.runtime.forget(
            (slot.service, slot.name) for slot in self.runtime.slots() if slot.container in gone and not slot.ready
        )

    def write(self, project: Project, serving: Mapping[str, Iterable[str]]) -> None:
        """Write what the edge starts from. serving: service -> names of the containers that get its requests.

        Raises NeedsHuman when it cannot be written: an edge that is started again would send requests elsewhere.
        """
        file = self.places()
        self._put(
            project,
            serving,
            published={name: place.inside for name, place in file.items() if name in self.config.routes},
            before=any(place.named is None for place in file.values()),
        )

    def unwritten(self) -> frozenset[str]:
        """The services that somebody serves and of which the file says something else, or nothing. Raises as
        `serving`."""
        file = self.places()
        # where nobody serves, requests wait for who is recreated
        return frozenset(
            name
            for name, serving in self.serving().items()
            if serving and (name not in file or serving != frozenset(file[name].serving))
        )

    def write_down(self) -> None:
        """Let the file say what the edge does, where it says something else: who moved requests died between the two,
        or was not told what came of it. Raises as `serving`, and NeedsHuman when the file cannot be read or written."""
        if not (unwritten := self.unwritten()):
            return
        path, serving = self.folder / CONFIG_FILE, self.serving()
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise NeedsHuman(f"{path} cannot be read: {error.strerror}", hint="lastgood init --edge") from error
        self._replace(with_serving(text, {name: serving[name] for name in unwritten}))

    def lay_out(self, project: Project, serving: Mapping[str, Iterable[str]]) -> None:
        """Write what the edge starts from, for the services that the configuration names, whatever it was set up for
        before. Raises NeedsHuman when it cannot be written."""
        there = {name: place.inside for name, place in self.places().items()}
        self._put(project, serving, published=publish_from(self.routes(project), there), before=False)

    def _put(
        self, project: Project, serving: Mapping[str, Iterable[str]], *, published: Mapping[str, int], before: bool
    ) -> None:
        routes, ready = self.routes(project), {service: sorted(names) for service, names in serving.items()}
        # a file that somebody removed is as it was made first
        published = published or publish_from(routes)
        networks = cast("Mapping[str, Json | None]", project.model.get("networks") or {})
        v6 = any((defined or {}).get("enable_ipv6") for defined in networks.values())
        self._replace(configuration(routes, ready, uid=os.getuid(), published=published, v6=v6, before=before))

    def _replace(self, text: str) -> None:
        try:
            replace_private(self.folder / CONFIG_FILE, text.encode())
        except OSError as error:
            path = self.folder / CONFIG_FILE
            raise NeedsHuman(
                f"{path} cannot be written: {error.strerror}", hint=f"df {quote(str(path.parent))}"
            ) from error

    def routes(self, project: Project) -> list[Route]:
        """How each service is reached, in the configuration's order."""
        away_s = self.config.drain + self.stack.config.stop + self.stack.config.boot + RESOLVED_S
        return [
            Route(
                service=service,
                port=port,
                patience_s=away_s if service in self.config.one_at_a_time else PATIENCE_S,
                names=_known_as(project, service) if service in project.services else (service,),
                named=service in self.switchable,
            )
            for service, port in self.config.routes.items()
        ]


def _known_as(project: Project, service: str) -> tuple[str, ...]:
    """Every name by which the engine finds a service: alone, and with the network after it."""
    names, networks = project.names(service), project.real_names("networks", service).values()
    return (*names, *(f"{name}.{network}" for name in names for network in networks))


def edge_of(project: Project) -> Json | None:
    """The edge among the services of a project, as `lastgood init --edge` writes it; None without one."""
    starts_from = f"{INSIDE}/{CONFIG_FILE}"
    services = (project.service(name) for name in project.services)
    return next((s for s in services if starts_from in (s.get("entrypoint") or ())), None)


@lru_cache(maxsize=1)
def _is_reached(engine: Engine, service: str, port: int) -> bool:
    """Whether this host reaches a container of this service. Asked once of a connection to the engine, which is there
    for one piece of work: where nobody answers, each question takes a second, and users wait."""
    reached: list[bool] = []
    addresses = [address for c in engine.of_project() if c.service == service for address in c.addresses]
    at_once(lambda address: reached.append(_reached(address, port)), addresses)
    return any(reached)


def _reached(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _refuses(address: str, port: int) -> bool:
    """Whether the answer is no. No answer is none: only containers may be in that network."""
    try:
        socket.create_connection((address, port), timeout=CONNECT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False

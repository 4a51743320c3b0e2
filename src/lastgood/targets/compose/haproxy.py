"""HAProxy as this program uses it: the configuration that it starts from, and its runtime socket.

Every service has a backend of slots; a slot names one container, and the engine's own DNS says where that is. Moving
traffic is one line of commands on the socket and takes no reload: a request that is being answered is answered, the
next one goes where the line says. The configuration on disk says the same, for a HAProxy that is started again.

While a database is exchanged, all requests from outside wait in backends of their own. That is an entry of a table
which expires by itself, so that no new request waits for a program that died. What waited enters again through a door
inside, with its client's address, and goes to whoever serves then.

Tried with 2.6 (Debian 12). Words and columns: docs.haproxy.org/2.6/management.html, sections 9.1 and 9.3; of the
configuration: docs.haproxy.org/2.6/configuration.html (`hold`: 5.3.2; its default is 30 s, and then nobody serves;
`stick-table`: 4.2; `table_gpt0`: 7.3.1, which does not make an entry live longer).
"""

from __future__ import annotations

import csv
import io
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Final

from lastgood.core.errors import OutcomeUnknown, Retryable
from lastgood.core.plan import HELD_AT_MOST_S
from lastgood.targets.unix_address import short_path

CONFIG_FILE: Final = "haproxy.cfg"
SOCKET_FILE: Final = "haproxy.sock"
INSIDE: Final = "/run/lastgood"
"""Where the container of the edge sees the folder of both files."""
FIRST_PORT: Final = 20_000
"""Inside the edge each service is published from a port of its own, from here on: two services may listen on one."""
SLOTS: Final = 8
"""Instances of a service that can be named at once, over all releases."""
MOST_INSTANCES: Final = SLOTS // 2
"""Of one release, so that the next one can stand beside it."""
ASK_S: Final = 5.0
MOST_BYTES: Final = 4 << 20
_TAKEN: Final = ("changed its FQDN", "no need to change")
_NOBODY: Final = "nobody.invalid"
_HOLD: Final = "hold"
_EVERYBODY: Final = "everybody:"
"""The table of who waits, and its one key. No service has a colon in its name."""
_WAITING: Final = "waiting:"
"""Prefix of the backend in which the requests of a service wait with everybody's; it has two servers."""
_WAIT: Final = "wait"
_ENTER: Final = "enter"
# srv_admin_state: a bit each. What was said in the file or where a name came from does not keep traffic away.
_FORCED_MAINT, _FORCED_DRAIN = 0x01, 0x08

# In the file: what `init --edge` decided once.
_PUBLISHED: Final = re.compile(r"^frontend published-(\S+)\n    bind :(\d+)$", re.MULTILINE)
_NAMED: Final = re.compile(r"^# answers to the names of: *(.*)$", re.MULTILINE)
_BEHIND: Final = re.compile(r"^backend (\S+)\n((?:    .*\n)*)", re.MULTILINE)
_SERVER: Final = re.compile(r"^    server s\d+ (\S+):(\d+) .*?( disabled)?$", re.MULTILINE)
_SERVERS: Final = re.compile(r"(?:^    server s\d+ .*\n)+", re.MULTILINE)

_HEAD: Final = """\
# Written by lastgood, again at every switch. What is changed here by hand is lost.
{named}global
    uid 99
    gid 99
    stats socket {inside}/{socket} mode 600 uid {uid} level admin
    hard-stop-after 30s

defaults
    mode http
    # a connection that is refused is tried again after this time, and a request waits so long for a service
    timeout connect 250ms
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    timeout http-request 30s
    timeout http-keep-alive 60s
    # each request looks anew who serves, also on a connection that the client keeps
    option http-server-close
    option redispatch 1

resolvers engine
    nameserver dns 127.0.0.11:53
    hold valid 1s
    # an engine that is away answers no question, and then nothing moves: who served serves on
    hold refused 24h
    hold timeout 24h
    hold other 24h

backend {everybody}
    stick-table type string len 16 size 1 expire {at_most:.0f}s store gpt0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one service is reached. port: of its containers. patience_s: how long a request waits for it to answer a
    connection. names: by which other services know it. named: whether they find the edge by them, and not itself."""

    service: str
    port: int
    patience_s: float
    names: tuple[str, ...]
    named: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a service stands at an edge. The edge's compose file says the same, so that only `init --edge` changes it.

    port: of its containers. inside: from which port in the edge it is published. named: whether the edge answers to its
    names; None of an edge that was set up before this was written down. serving: names of the containers that get its
    requests."""

    port: int
    inside: int
    named: bool | None
    serving: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One place of a backend. port: of the containers in it. container: the name in it, empty for none. address: what
    the name led to, empty while it leads nowhere. ready: new requests go there."""

    service: str
    name: str
    port: int
    container: str
    address: str
    ready: bool


def publish_from(routes: Sequence[Route], before: Mapping[str, int] | None = None) -> dict[str, int]:
    """The port inside the edge from which each service is published; none on which it listens for a service's name.

    before: what holds for an edge that is there. A service keeps its port, and none gets that of another one: an edge
    that runs on with its published ports would send requests to the wrong one when it is started again.
    """
    before, asked = before or {}, {route.port for route in routes}
    free = (port for port in count(max([FIRST_PORT - 1, *before.values()]) + 1) if port not in asked)
    kept = {service: port for service, port in before.items() if port not in asked}
    return {r.service: kept[r.service] if r.service in kept else next(free) for r in routes}


def configuration(
    routes: Sequence[Route],
    ready: Mapping[str, Sequence[str]],
    *,
    uid: int,
    published: Mapping[str, int],
    v6: bool = False,
    before: bool = False,
) -> str:
    """The file that HAProxy starts from. ready: service -> names of the containers that serve. uid: who may use the
    socket. published: of `publish_from`. v6: whether it has an address of that kind, too. before: as for an edge that
    was set up when nobody who shares a port was told that he asked by a name that is none."""
    named = " ".join(route.service for route in routes if route.named)
    head = _HEAD.format(
        named="" if before else f"# answers to the names of: {named}\n",
        inside=INSIDE,
        socket=SOCKET_FILE,
        uid=uid,
        everybody=_EVERYBODY,
        at_most=HELD_AT_MOST_S,
    )
    parts = [head, *(_published(service, _bound(port, v6=v6)) for service, port in published.items())]
    for port in sorted({route.port for route in routes}):
        here = [route for route in routes if route.port == port]
        parts += [f"frontend inside-{port}", _bound(port, v6=v6), *_inside(here, before=before), ""]
    parts += [_backend(route, ready.get(route.service, ())) for route in routes]
    return "\n".join(parts)


def places(text: str) -> dict[str, Place]:
    """Read where each service stands from a file that `configuration` wrote, of this version or one before."""
    said = _NAMED.search(text)
    servers = {service: _SERVER.findall(block) for service, block in _BEHIND.findall(text)}
    return {
        service: Place(
            port=int(servers[service][0][1]),
            inside=int(inside),
            named=service in said[1].split() if said else None,
            serving=tuple(name for name, _, off in servers[service] if not off),
        )
        for service, inside in _PUBLISHED.findall(text)
        if servers.get(service)
    }


def with_serving(text: str, serving: Mapping[str, Collection[str]]) -> str:
    """What `configuration` wrote, with these containers serving these services, and else as it is."""

    def said(backend: re.Match[str]) -> str:
        service, block = backend.groups()
        if service not in serving:
            return backend[0]
        servers = _servers(int(_SERVER.findall(block)[0][1]), sorted(serving[service]))
        return f"backend {service}\n" + _SERVERS.sub("".join(f"{line}\n" for line in servers), block)

    return _BEHIND.sub(said, text)


def _bound(port: int, *, v6: bool) -> str:
    # two of them: an address of the old kind stays one in what services are told of their clients
    return f"    bind :{port}" + (f"\n    bind :::{port} v6only" if v6 else "")


def _published(service: str, bound: str) -> str:
    """Where a service is asked from outside, and where those wait who wait with everybody."""
    door = f"abns@lastgood-{service}"
    return f"""\
frontend published-{service}
{bound}
    use_backend {_WAITING}{service} if {{ str({_EVERYBODY}),table_gpt0({_EVERYBODY}) gt 0 }}
    default_backend {service}

backend {_WAITING}{service}
    retries {round(HELD_AT_MOST_S * 4)}
    server {_WAIT} 127.0.0.1:1 disabled
    server {_ENTER} {door} send-proxy-v2

frontend entered-{service}
    bind {door} accept-proxy
    default_backend {service}
"""


def _inside(routes: Sequence[Route], *, before: bool) -> Iterator[str]:
    """Where other services ask for these by their names. Who shares a port is told apart by the name that was asked,
    and who asks by another one, as a proxy does that passes on the Host of its client, gets no other service's
    answer."""
    here = routes if before else [route for route in routes if route.named] or routes
    alone = here[0].service if len(here) == 1 or before else ""
    if not alone:
        said = f"{' and '.join(route.service for route in here)} share this port: send the name of one of them as Host"
        yield from (line for route in routes for line in _asked_for("known", route))
        yield f'    http-request return status 421 content-type text/plain string "{said}" unless known'
    if len(routes) > 1:
        for route in routes:
            yield from _asked_for(f"for-{route.service}", route)
            yield f"    use_backend {route.service} if for-{route.service}"
    if alone:
        yield f"    default_backend {alone}"


def _asked_for(condition: str, route: Route) -> Iterator[str]:
    """What makes a condition true, beside what did before. A line for each name: none may have more than 64 words."""
    return (f"    acl {condition} req.hdr(host),field(1,:) -m str -i {name}" for name in route.names)


def _backend(route: Route, ready: Sequence[str]) -> str:
    lines = [f"backend {route.service}", "    option forwardfor", f"    retries {max(3, round(route.patience_s * 4))}"]
    lines += _servers(route.port, ready)
    # nobody listens there, so that a request which is sent to it is tried again until there is somebody
    return "\n".join([*lines, f"    server {_HOLD} 127.0.0.1:1 disabled", ""])


def _servers(port: int, ready: Sequence[str]) -> Iterator[str]:
    for number in range(SLOTS):
        name, off = (ready[number], "") if number < len(ready) else (_NOBODY, " disabled")
        # not asked for at the start: one name that leads nowhere would keep all others from being served
        yield f"    server s{number} {name}:{port} resolvers engine resolve-prefer ipv4 init-addr none{off}"


def _turned(services: Iterable[str], to: str) -> list[str]:
    """The commands by which what waits goes to one of the two servers of its backend."""
    away = {_WAIT: _ENTER, _ENTER: _WAIT}[to]
    return [
        f"set server {_WAITING}{service}/{server} state {state}"
        for service in services
        for server, state in ((to, "ready"), (away, "drain"))
    ]


class Runtime:
    """The socket of a running HAProxy. folder: where it lies on this host. anew: the command that makes it anew."""

    def __init__(self, folder: Path, *, anew: str) -> None:
        self._folder, self._anew = folder, anew

    def slots(self) -> tuple[Slot, ...]:
        """Return every slot as HAProxy has it now. Raises Retryable when it does not answer."""
        said = self._ask("show servers state").splitlines()
        header = next((line for line in said if line.startswith("# ")), "")
        rows = csv.DictReader(io.StringIO("\n".join([header[2:], *said[said.index(header) + 1 :]])), delimiter=" ")
        return tuple(
            Slot(
                service=row["be_name"],
                name=row["srv_name"],
                port=int(row["srv_port"]),
                container="" if row["srv_fqdn"] in ("-", _NOBODY) else row["srv_fqdn"],
                address="" if row["srv_addr"] == "-" else row["srv_addr"],
                ready=not int(row["srv_admin_state"]) & (_FORCED_MAINT | _FORCED_DRAIN),
            )
            for row in rows
            if row["be_name"]
        )

    def sessions(self) -> dict[tuple[str, str], int]:
        """Return the requests that each (service, slot) is answering now. Raises Retryable."""
        rows = csv.DictReader(io.StringIO(self._ask("show stat").removeprefix("# ")))
        return {(row["pxname"], row["svname"]): int(row["scur"] or 0) for row in rows}

    def name(self, named: Iterable[tuple[str, str, str]]) -> None:
        """Put containers into slots that get no traffic: (service, slot, container). Their addresses follow within a
        second."""
        self._tell(
            [
                command
                for service, slot, container in named
                for command in (
                    f"set server {service}/{slot} state maint",
                    f"set server {service}/{slot} fqdn {container}",
                )
            ]
        )

    def forget(self, slots: Iterable[tuple[str, str]]) -> None:
        """Take what is named out of (service, slot)s that get no traffic."""
        self.name((service, slot, _NOBODY) for service, slot in slots)

    def move(self, *, to: Iterable[tuple[str, str]], away: Iterable[tuple[str, str]]) -> None:
        """Send new requests to the (service, slot)s of `to` and no more to those of `away`, in one line. What is being
        answered is answered. Raises OutcomeUnknown: look."""
        told = [
            *((service, slot, "ready") for service, slot in to),
            *((service, slot, "drain") for service, slot in away),
        ]
        # service by service: for as long as both of its slots are ready, both get requests
        told.sort(key=itemgetter(0))
        self._tell([f"set server {service}/{slot} state {state}" for service, slot, state in told])

    def hold(self, service: str, *, instead_of: Iterable[str]) -> None:
        """Let new requests of a service wait instead of going to the slots `instead_of`."""
        self.move(to=[(service, _HOLD)], away=[(service, slot) for slot in instead_of])

    def hold_everybody(self, services: Iterable[str]) -> None:
        """Let requests from outside of all these services wait, HELD_AT_MOST_S at most."""
        self._tell([*_turned(services, _WAIT), f"set table {_EVERYBODY} key {_EVERYBODY} data.gpt0 1"])

    def pass_everybody(self, services: Iterable[str]) -> None:
        """Pass on what waits since `hold_everybody`, and what comes."""
        self._tell([*_turned(services, _ENTER), f"clear table {_EVERYBODY} key {_EVERYBODY}"])

    def holds_everybody(self) -> bool | None:
        """Whether every new request from outside waits; None of an edge that was started before it could make them.
        Raises Retryable when it does not answer."""
        said = self._ask(f"show table {_EVERYBODY}")
        if f"table: {_EVERYBODY}," not in said:
            return None
        return f"key={_EVERYBODY} " in said and all(self._waits())

    def anybody_waits(self) -> bool:
        """Whether requests from outside wait, or some that came before the time was over may still. Raises Retryable
        when it does not answer."""
        return f"key={_EVERYBODY} " in self._ask(f"show table {_EVERYBODY}") or any(self._waits())

    def _waits(self) -> Iterator[bool]:
        """Of each service, whether what is in its backend of who waits is not passed on."""
        return (s.ready for s in self.slots() if s.service.startswith(_WAITING) and s.name == _WAIT)

    def cut(self, service: str, slot: str) -> None:
        """End what a slot is still answering: a websocket, a request without an end."""
        self._tell([f"shutdown sessions server {service}/{slot}"])

    def _ask(self, command: str) -> str:
        try:
            said = self._said(command)
            if not said.endswith("\n\n"):
                raise OSError("it closed before its answer was whole")
        except OSError as error:
            raise self._away(error) from error
        return said

    def _tell(self, commands: Sequence[str]) -> None:
        """HAProxy answers each command of a line by an empty line, with one before it for what it does not take.
        Between two of them it answers requests as well (src/cli.c: "yield between pipelined commands")."""
        if not commands:
            return  # an empty line is answered by the list of what can be said
        try:
            said = self._said("; ".join(commands))
            if said.count("\n") < len(commands):
                raise OSError("it closed before its answer was whole")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise self._away(error) from error
        except OSError as error:
            raise OutcomeUnknown("the edge was told and did not answer", hint="lastgood doctor") from error
        refused = [line for line in said.splitlines() if line and not any(known in line for known in _TAKEN)]
        if refused:
            raise OutcomeUnknown(f"the edge did not take it: {refused[0]}", hint="lastgood doctor")

    def _said(self, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(ASK_S)
            with short_path(self._folder / SOCKET_FILE) as path:
                wire.connect(path)
            wire.sendall(line.encode() + b"\n")
            answer = bytearray()
            while chunk := wire.recv(65_536):
                answer += chunk
                if len(answer) > MOST_BYTES:
                    raise OSError("the answer has no end")
            return answer.decode("utf-8", errors="replace")

    def _away(self, error: OSError) -> Retryable:
        nobody_listens = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        return Retryable(
            f"the edge does not answer on its socket {self._folder / SOCKET_FILE}: {error.strerror or error}",
            delay_s=1.0,
            hint=self._anew if nobody_listens else "lastgood doctor",
        )

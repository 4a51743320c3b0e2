"""The holder: a process of its own that owns the public ports, starts the services and passes requests on to them.

It outlives the commands that speak to it; the services outlive it as well, and a new holder takes them up again by pid
and start time. It decides nothing about releases: it starts what it is told, moves a service's route when the one it
is moved to is healthy, lets the old one finish what it is answering, and starts again what ends by itself.

    python -m lastgood.targets.process.holder STATE
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, assert_never

from lastgood.core.errors import LastgoodError
from lastgood.core.facts import Health, InstanceFacts
from lastgood.core.plan import HELD_AT_MOST_S
from lastgood.targets.process import processes
from lastgood.targets.process.control import ANSWER, ASK, MOST_BYTES, SOCKET, Answer, Ask, Verb, passed_on
from lastgood.targets.process.kept import Instance, KeptService, Part, Shelf
from lastgood.targets.process.proxy import Hold, Route, serve_client
from lastgood.targets.unix_address import short_path

TICK_S: Final = 0.1
HEALTHY_TICKS: Final = 20
"""A healthy instance is asked again every two seconds, another one at every tick."""
HEALTH_S: Final = 2.0
SICK_AFTER: Final = 3
"""Failed answers in a row, as Docker's own default: one may be an accident."""
BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 10.0
PORT_TRIES: Final = 200
LOG_BYTES: Final = 8 << 20
TICKS_A_CUT: Final = 50
LOGS: Final = 50
"""Logs that are kept, the newest: those of instances that are gone are evidence for a while."""


@dataclass(slots=True)
class Living:
    """An instance and what this holder knows of it. process: None when an earlier holder started it.

    failed: health checks in a row. again_at: monotonic time at which it is started again, None while it runs.
    stop_s, ends_at: how long a retiring one has left, monotonic; 0 for one that may go on.
    """

    instance: Instance
    process: subprocess.Popen[bytes] | None = None
    health: Health = Health.STARTING
    failed: int = 0
    ticks: int = 0
    again_at: float | None = None
    stop_s: float = 0.0
    ends_at: float = 0.0
    asked_to_end: bool = False
    checking: bool = False

    def facts(self) -> InstanceFacts:
        """What the target is shown. One that retires is not healthy, whatever it says: it gets no more requests."""
        shown = self.instance
        running = processes.lives(shown.pid, shown.started)
        return InstanceFacts(
            service=shown.service,
            instance=f"{shown.pid}@{shown.started}",
            artifact=shown.artifact,
            running=running,
            health=Health.UNHEALTHY if shown.part is Part.RETIRING else self.health,
            release=shown.release,
            config_hash=shown.config_hash,
            restarts=shown.restarts,
            exit_code=shown.exit_code if not running else None,
        )


class CannotDoIt(Exception):
    """What was asked cannot be done; nothing changed."""


class Holder:
    """The holder of one state directory."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._living: dict[str, Living] = {}
        self._routes: dict[str, Route] = {}
        self._hold = Hold(self._is_ours)
        self._doors: dict[int, tuple[str, asyncio.Server]] = {}
        self._checks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self.over = asyncio.Event()

    # --- what was there before ---------------------------------------------------------------------------------

    async def take_up(self) -> None:
        """Go on with what an earlier holder started; end what nobody wrote down."""
        for instance in self._shelf.instances():
            self._living[instance.id] = Living(instance=instance)
        known = {(one.instance.pid, one.instance.started) for one in self._living.values()}
        for pid, started in processes.owned_by(self._shelf.state):
            if (pid, started) not in known:
                processes.end(pid, started, signal.SIGKILL)
        for one in list(self._living.values()):
            shown = one.instance
            if shown.part is Part.SERVING:
                try:
                    service = self._service(shown)
                    await self._open(service)
                    self._point(service.name, shown)
                except (CannotDoIt, LastgoodError) as error:
                    # one service that cannot be taken up must not keep the others from being served
                    print(f"{shown.id}: {error}", file=sys.stderr, flush=True)  # noqa: T201 # the holder's log
            elif not processes.lives(shown.pid, shown.started):
                del self._living[shown.id]

    # --- what is asked -----------------------------------------------------------------------------------------

    async def answer(self, asked: Ask) -> Answer:
        """Do one thing and show what is there afterwards. Looking never waits for what is being done."""
        if asked.verb is Verb.LOOK:
            return self._shown()
        async with self._one_at_a_time:
            try:
                match asked.verb:
                    case Verb.START:
                        await self._start(asked)
                    case Verb.SWITCH:
                        await self._switch(asked)
                    case Verb.RETIRE:
                        await self._retire_service(asked)
                    case Verb.CLEAR:
                        await self._clear(asked.stop_s)
                    case Verb.HOLD:
                        await self._hold_requests(asked.stop_s)
                    case Verb.RESUME:
                        self._hold.end()
                    case Verb.END:
                        await self._end(asked.stop_s)
                    case _:
                        assert_never(asked.verb)
            except (CannotDoIt, LastgoodError) as no:
                return replace(self._shown(), refused=str(no))
            return self._shown()

    def _shown(self) -> Answer:
        living = list(self._living.values())
        return Answer(
            serving=tuple(one.facts() for one in living if one.instance.part is Part.SERVING),
            candidates=tuple(one.facts() for one in living if one.instance.part is not Part.SERVING),
            ports=tuple(self._doors),
            can_hold=True,
            holding=self._hold.on,
        )

    def _is_ours(self, port: int, door: int) -> bool:
        """Whether one of the services is at the other end of a connection from this port to one of the doors."""
        leaders = {one.instance.pid for one in self._living.values() if one.instance.pid}
        return processes.has_connection(leaders, port=port, to=door)

    def _busy(self) -> bool:
        return any(route.in_flight.total() for route in self._routes.values())

    async def _hold_requests(self, drain_s: float) -> None:
        """Let requests from outside wait, and those that are being answered end, for as long as was allowed."""
        self._hold.begin(HELD_AT_MOST_S)
        until = time.monotonic() + drain_s
        while self._busy() and time.monotonic() < until:  # noqa: ASYNC110 # what is waited for is that nothing happens
            await asyncio.sleep(TICK_S / 10)

    async def _start(self, asked: Ask) -> None:
        """Start a candidate, unless the very one runs already; another one of its service makes room."""
        service = self._wanted(asked)
        for one in [c for c in self._of(service.name) if c.instance.part is Part.CANDIDATE]:
            if _is(one.instance, asked, service) and processes.lives(one.instance.pid, one.instance.started):
                return
            await self._end_all([one], 0.0)
        owner = self._doors[service.public_port][0] if service.public_port in self._doors else service.name
        if self._shelf.find(asked.release).service(owner) is not None:
            await self._open(service)  # else who has the port is retired before this one is switched to
        instance = Instance(
            id=f"{service.name}-{secrets.token_hex(4)}",
            service=service.name,
            release=asked.release,
            artifact=asked.artifact,
            config_hash=service.config_hash,
            port=_free_port(),
        )
        self._living[instance.id] = Living(instance=instance)
        self._spawn(self._living[instance.id])

    async def _switch(self, asked: Ask) -> None:
        """Point the service's route at its healthy candidate; what served finishes its requests and ends."""
        service = self._wanted(asked)
        fits = [one for one in self._of(service.name) if _is(one.instance, asked, service)]
        chosen = next((one for one in fits if one.instance.part is Part.CANDIDATE), None)
        if chosen is None or chosen.health is not Health.HEALTHY:
            raise CannotDoIt(f"{service.name} of {asked.release} has no healthy candidate")
        await self._open(service)
        for port in [p for p, (name, _) in self._doors.items() if name == service.name and p != service.public_port]:
            self._doors.pop(port)[1].close()
        old = [one for one in self._of(service.name) if one.instance.part is Part.SERVING]
        # One write that says who serves: a holder that dies after it is followed by one that does as it says.
        chosen.instance = replace(chosen.instance, part=Part.SERVING)
        for one in old:
            one.instance = replace(one.instance, part=Part.RETIRING)
            one.stop_s, one.ends_at = asked.stop_s, time.monotonic() + asked.stop_s
        try:
            self._note()
        except OSError as error:
            chosen.instance = replace(chosen.instance, part=Part.CANDIDATE)
            for one in old:
                one.instance, one.ends_at = replace(one.instance, part=Part.SERVING), 0.0
            raise CannotDoIt(f"{error.strerror}: nothing was switched") from error
        self._point(service.name, chosen.instance)

    async def _retire_service(self, asked: Ask) -> None:
        """Close the service's port and wait until its instances have answered their last requests and are gone."""
        for port in [port for port, (name, _) in self._doors.items() if name == asked.service]:
            self._doors.pop(port)[1].close()
        own = self._of(asked.service)
        for one in own:
            one.instance = replace(one.instance, part=Part.RETIRING)
        self._note()
        await self._end_all(own, asked.stop_s)

    async def _clear(self, stop_s: float) -> None:
        """End the candidates and wait until they and all that no longer serves are gone."""
        for one in self._living.values():
            if one.instance.part is Part.CANDIDATE:
                one.instance = replace(one.instance, part=Part.RETIRING)
        self._note()
        await self._end_all([one for one in self._living.values() if one.instance.part is Part.RETIRING], stop_s)

    async def _end(self, stop_s: float) -> None:
        """End every instance, close every port, and end."""
        for _, door in self._doors.values():
            door.close()
        self._doors.clear()
        for one in self._living.values():
            one.instance = replace(one.instance, part=Part.RETIRING)
        await self._end_all(list(self._living.values()), stop_s)
        self.over.set()

    def _wanted(self, asked: Ask) -> KeptService:
        kept = self._shelf.find(asked.release)
        service = kept.service(asked.service)
        if service is None or kept.artifact != asked.artifact:
            raise CannotDoIt(f"{asked.service} with {asked.artifact[:17]} is not a part of {asked.release}")
        return service

    def _service(self, instance: Instance) -> KeptService:
        service = self._shelf.find(instance.release).service(instance.service)
        if service is None:
            raise CannotDoIt(f"{instance.service} is not a part of {instance.release}")
        return service

    def _of(self, service: str) -> list[Living]:
        return [one for one in self._living.values() if one.instance.service == service]

    # --- ports -------------------------------------------------------------------------------------------------

    async def _open(self, service: KeptService) -> None:
        """Own the service's public port. Raises CannotDoIt when somebody else has it."""
        if service.public_port in self._doors:
            owner = self._doors[service.public_port][0]
            if owner != service.name:
                raise CannotDoIt(f"port {service.public_port} of {service.name} is the port of {owner} as well")
            return
        route = self._routes.setdefault(service.name, Route(self._hold))
        try:
            door = await asyncio.start_server(
                lambda reader, writer: serve_client(route, reader, writer), "127.0.0.1", service.public_port
            )
        except OSError as error:
            raise CannotDoIt(f"port {service.public_port} of {service.name}: {error.strerror}") from error
        self._doors[service.public_port] = (service.name, door)

    def _point(self, service: str, instance: Instance) -> None:
        route = self._routes[service]
        route.port, route.instance = instance.port, instance.id

    # --- processes ---------------------------------------------------------------------------------------------

    def _spawn(self, one: Living) -> None:
        """Start the process of an instance. Its line is written before and after, so that no process is forgotten."""
        instance, service = one.instance, self._service(one.instance)
        one.instance = replace(instance, pid=0, started=0, exit_code=None)
        self._note()
        tree = self._shelf.tree(instance.release)
        env = {
            **passed_on(os.environ),
            **service.env,
            "PORT": str(instance.port),
            processes.OWNER: str(self._shelf.state),
        }
        log = self._shelf.log(instance.id)
        log.parent.mkdir(mode=0o700, exist_ok=True)
        _forget_old(log.parent)
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as sink:  # noqa: PTH123 # a mode at creation
            try:
                one.process = subprocess.Popen(
                    service.command,
                    cwd=tree,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                )
            except OSError as error:
                sink.write(f"cannot be started: {error}\n".encode())
                one.process = None
                one.instance = replace(one.instance, exit_code=127)
        if one.process is not None:
            one.instance = replace(one.instance, pid=one.process.pid, started=processes.started(one.process.pid))
        one.health, one.failed, one.again_at = Health.STARTING, 0, None
        self._note()

    async def _end_all(self, these: list[Living], stop_s: float) -> None:
        now = time.monotonic()
        for one in these:
            one.stop_s = stop_s
            one.ends_at = min(one.ends_at, now + stop_s) if one.ends_at else now + stop_s
            self._retire(one)
        while any(one.instance.id in self._living for one in these):
            await asyncio.sleep(TICK_S / 2)
            for one in these:
                self._retire(one)

    def _retire(self, one: Living) -> None:
        """Drain, ask to end, then kill: each for as long as was allowed."""
        instance, now = one.instance, time.monotonic()
        if instance.id not in self._living:
            return
        if not processes.lives(instance.pid, instance.started):
            if one.process is not None:
                one.process.poll()
            del self._living[instance.id]
            self._note()
            return
        route = self._routes.get(instance.service)
        busy = route.in_flight[instance.id] if route else 0
        if not one.asked_to_end and (not busy or now >= one.ends_at):
            one.asked_to_end, one.ends_at = True, now + one.stop_s
            processes.end(instance.pid, instance.started, signal.SIGTERM)
        elif one.asked_to_end and now >= one.ends_at:
            processes.end(instance.pid, instance.started, signal.SIGKILL)

    async def keep_watch(self) -> None:
        """Every tick: notice what ended, start again what serves, ask for health, end what retires."""
        ticks = 0
        while not self.over.is_set():
            for one in list(self._living.values()):
                try:
                    self._look_after(one)
                except (OSError, LastgoodError, CannotDoIt) as error:
                    print(f"{one.instance.id}: {error}", file=sys.stderr, flush=True)  # noqa: T201 # the holder's log
            ticks += 1
            if ticks % TICKS_A_CUT == 0:
                for one in self._living.values():
                    _cut(self._shelf.log(one.instance.id))
            await asyncio.sleep(TICK_S)

    def _look_after(self, one: Living) -> None:
        self._notice(one)
        if one.instance.part is Part.RETIRING:
            self._retire(one)
        elif processes.lives(one.instance.pid, one.instance.started):
            self._ask_for_health(one)

    def _notice(self, one: Living) -> None:
        instance, now = one.instance, time.monotonic()
        if one.process is not None and (code := one.process.poll()) is not None and instance.exit_code is None:
            one.instance = replace(instance, exit_code=code)
        if instance.part is not Part.SERVING or processes.lives(instance.pid, instance.started):
            return
        if one.again_at is None:
            one.health = Health.UNHEALTHY
            one.again_at = now + min(BACKOFF_S * 2 ** min(instance.restarts, 10), LONGEST_BACKOFF_S)
        elif now >= one.again_at:
            one.instance = replace(one.instance, restarts=instance.restarts + 1)
            self._spawn(one)

    def _ask_for_health(self, one: Living) -> None:
        one.ticks += 1
        if one.checking or (one.health is Health.HEALTHY and one.ticks % HEALTHY_TICKS):
            return
        one.checking = True
        task = asyncio.create_task(self._check(one))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check(self, one: Living) -> None:
        instance = one.instance
        try:
            well = await asyncio.wait_for(_answers(instance.port, self._service(instance).health), HEALTH_S)
        except (OSError, TimeoutError, LastgoodError, CannotDoIt):
            well = False
        finally:
            one.checking = False
        if one.instance.pid != instance.pid:
            return
        one.failed = 0 if well else one.failed + 1
        if well:
            one.health = Health.HEALTHY
        elif one.health is Health.HEALTHY and one.failed >= SICK_AFTER:
            one.health = Health.UNHEALTHY

    def _note(self) -> None:
        self._shelf.note_instances(tuple(one.instance for one in self._living.values()))


def _is(instance: Instance, asked: Ask, service: KeptService) -> bool:
    return (instance.release, instance.artifact, instance.config_hash) == (
        asked.release,
        asked.artifact,
        service.config_hash,
    )


async def _answers(port: int, path: str) -> bool:
    """Whether the instance answers its health address with 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
        return status.split(b" ")[1:2] == [b"200"]
    finally:
        writer.close()


def _free_port() -> int:
    """A port below the range of outgoing connections, which may take one while its service restarts."""
    for _ in range(PORT_TRIES):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := secrets.randbelow(12_000) + 20_000))
            return port
    raise CannotDoIt(f"no free port among {PORT_TRIES} tried")


def _cut(log: Path) -> None:
    """Keep a log under its limit: the newer half stays, in a second file. The service goes on appending."""
    with suppress(OSError):
        size = log.stat().st_size
        if size > LOG_BYTES:
            with log.open("r+b") as file:
                file.seek(size - LOG_BYTES // 2)
                newer = file.read(LOG_BYTES // 2)
                older = log.with_suffix(".1.log")
                older.touch(mode=0o600)
                older.write_bytes(newer)
                file.truncate(0)


def _forget_old(logs: Path) -> None:
    for old in sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-LOGS]:
        old.unlink(missing_ok=True)


@contextmanager
def _line(state: Path) -> Generator[socket.socket]:
    """The socket on which commands ask, in place of the one that an earlier holder may have left."""
    with short_path(state / SOCKET) as path, socket.socket(socket.AF_UNIX) as line:
        Path(path).unlink(missing_ok=True)
        line.bind(path)
        yield line
        Path(path).unlink(missing_ok=True)


async def run(shelf: Shelf) -> None:
    """Hold until told to end. SIGTERM ends the holder alone; the next one takes the services up."""
    holder = Holder(shelf)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, holder.over.set)
    await holder.take_up()
    with _line(shelf.state) as line:

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                asked = ASK.validate_json(await reader.readline())
                writer.write(ANSWER.dump_json(await holder.answer(asked)))
                await writer.drain()
            except (OSError, ValueError) as error:
                # who asked gets no answer, and looks
                print(f"a request was not answered: {error}", file=sys.stderr, flush=True)  # noqa: T201 # the holder's log
            writer.close()

        server = await asyncio.start_unix_server(converse, sock=line, limit=MOST_BYTES)
        watching = asyncio.create_task(holder.keep_watch())
        async with server:
            await holder.over.wait()
            await asyncio.sleep(TICK_S)  # the answer to END is on its way
        await watching


def main(words: Sequence[str]) -> int:
    """Exit 0: told to end, or another holder lives."""
    os.umask(0o077)
    shelf = Shelf(Path(words[0]))
    with (shelf.state / f"{SOCKET}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        asyncio.run(run(shelf))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

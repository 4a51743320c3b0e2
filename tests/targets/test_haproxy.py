"""What is said to HAProxy, and what a real one makes of it: this machine's own, started for the test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from lastgood.core.errors import OutcomeUnknown, Refused, Retryable
from lastgood.targets.compose.edge import Edge
from lastgood.targets.compose.engine import Container
from lastgood.targets.compose.haproxy import (
    CONFIG_FILE,
    INSIDE,
    SOCKET_FILE,
    Place,
    Route,
    Runtime,
    configuration,
    places,
    publish_from,
)
from lastgood.targets.compose.project import Project
from lastgood.targets.unix_address import short_path
from tests.contract.rigs.clock import CLOCK
from tests.targets.running_haproxy import PROJECT, WEB, Running, answering, edge_in, naming, started, talking

API = Route(service="api", port=8080, patience_s=0.75, names=("api",))
UPLOADS = Route(service="uploads", port=9000, patience_s=70.0, names=("uploads",))
# RFC 6455, 1.3, with its example of a key; HAProxy looks at it
UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def asked_inside(folder: Path, host: str) -> bytes:
    """What who asks a service by its name is answered first."""
    while not (folder / "8080.sock").exists():
        time.sleep(0.02)
    with socket.socket(socket.AF_UNIX) as wire, short_path(folder / "8080.sock") as path:
        wire.settimeout(20)
        wire.connect(path)
        wire.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        return wire.recv(4096)


def route(service: str, port: int) -> Route:
    return Route(service=service, port=port, patience_s=0.75, names=(service,))


pytestmark = [pytest.mark.needs_server, pytest.mark.timeout(60)]


def lines(routes: Sequence[Route], ready: Mapping[str, Sequence[str]]) -> list[str]:
    said = configuration(routes, ready, uid=1000, published=publish_from(routes))
    return [line.strip() for line in said.splitlines()]


def test_each_service_is_published_from_a_port_of_its_own() -> None:
    assert publish_from([WEB, API]) == {"web": 20000, "api": 20001}


def test_no_service_is_published_from_a_port_on_which_another_is_asked_by_name() -> None:
    assert publish_from([WEB, route("grabby", 20000), route("more", 20002)]) == {
        "web": 20001,
        "grabby": 20003,
        "more": 20004,
    }


def test_a_service_keeps_the_port_that_it_is_published_from_and_none_gets_that_of_another() -> None:
    before = {"web": 20000, "gone": 20001, "api": 20002}
    assert publish_from([API, route("new", 8080), WEB], before) == {"api": 20002, "new": 20003, "web": 20000}


def test_the_file_says_where_each_service_stands_and_who_serves() -> None:
    routes = [WEB, API, replace(UPLOADS, named=False)]
    text = configuration(routes, {"web": ["shop-web-v1", "shop-web-v1-2"]}, uid=1000, published=publish_from(routes))
    assert places(text) == {
        "web": Place(port=8080, inside=20000, named=True, serving=("shop-web-v1", "shop-web-v1-2")),
        "api": Place(port=8080, inside=20001, named=True, serving=()),
        "uploads": Place(port=9000, inside=20002, named=False, serving=()),
    }


def test_of_a_file_that_was_written_before_nobody_knows_whose_names_the_edge_answers_to() -> None:
    """It is written again as it was made, until somebody sets the edge up anew."""
    routes = [WEB, API]
    text = configuration(routes, {}, uid=1000, published=publish_from(routes), before=True)
    assert {service: place.named for service, place in places(text).items()} == {"web": None, "api": None}
    assert "421" not in text
    assert "    default_backend web\n\nbackend web\n" in text


def test_who_is_asked_by_itself_is_not_taken_for_one_of_several_on_a_port() -> None:
    said = lines([replace(WEB, named=False), API], {})
    assert "default_backend api" in said
    assert not any("421" in line for line in said)


def test_the_containers_that_serve_are_named_and_the_other_slots_are_off() -> None:
    said = lines([WEB], {"web": ["shop-web-1", "shop-web-2"]})
    servers = [line.split()[2] + (" off" if line.endswith("disabled") else "") for line in said if "server s" in line]
    assert servers == ["shop-web-1:8080", "shop-web-2:8080", *["nobody.invalid:8080 off"] * 6]


def test_services_on_one_port_are_told_apart_by_the_name_that_was_asked() -> None:
    said = lines([WEB, API], {})
    assert {f"acl for-web req.hdr(host),field(1,:) -m str -i {name}" for name in ("web", "shop-web")} <= {*said}
    assert "use_backend web if for-web" in said
    assert "acl for-api req.hdr(host),field(1,:) -m str -i api" in said
    assert "use_backend api if for-api" in said


def test_a_request_waits_as_long_as_its_service_may_be_away() -> None:
    said = lines([WEB, UPLOADS], {})
    assert [line for line in said if line.startswith("retries") and line != "retries 240"] == [
        "retries 3",
        "retries 280",
    ]
    assert said.count("retries 240") == 2  # where everybody waits: a minute, four times a second


def test_nobody_but_the_owner_may_use_the_socket() -> None:
    assert f"stats socket {INSIDE}/{SOCKET_FILE} mode 600 uid 1000 level admin" in lines([WEB], {})


def test_addresses_are_kept_however_long_nobody_answers_for_names() -> None:
    assert {"hold refused 24h", "hold timeout 24h", "hold other 24h"} <= set(lines([WEB], {}))


# --- a real one ------------------------------------------------------------------------------------------------------


def test_as_many_services_as_a_stack_has_stand_behind_one_edge_and_move_at_once(tmp_path: Path) -> None:
    many = [f"{name}-{number}" for name in ("notifications-scheduler", "payments-gateway") for number in range(60)]
    routes = [Route(service=name, port=8080, patience_s=0.75, names=(name, f"shop-{name}")) for name in many]
    ready = {name: [f"shop-{name}-1"] for name in many}
    text = configuration(routes, ready, uid=os.getuid(), published=publish_from(routes))
    text = re.sub(r"bind :(\d+)", rf"bind unix@{tmp_path}/\1.sock", text)
    process = started(tmp_path, text, {})
    edge = Runtime(tmp_path, anew="docker restart edge")
    try:
        assert asked_inside(tmp_path, "payments-gateway-59").startswith(b"HTTP/1.1 503")
        assert asked_inside(tmp_path, "nobody").startswith(b"HTTP/1.1 421")
        edge.move(to=[(name, "s1") for name in many], away=[(name, "s0") for name in many])
        assert [slot.ready for slot in edge.slots() if slot.name == "s1"] == [True] * len(many)
        edge.hold_everybody(many)
        assert edge.holds_everybody()
        edge.pass_everybody(many)
        assert edge.holds_everybody() is False
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Running]:
    asked: list[bytes] = []
    with answering("one", asked) as one, answering("two", asked) as two:
        running = Running(tmp_path, one, two, asked)
        try:
            yield running
        finally:
            running.process.terminate()
            running.process.wait()


@pytest.mark.parametrize(
    "host, answer",
    [
        ("web", "web"),
        ("web:8080", "web"),
        ("API", "api"),
        ("api:8080", "api"),
        ("shop.example", "421"),
        ("", "421"),
        ("10.0.0.7:8080", "421"),
    ],
)
def test_who_asks_on_a_shared_port_gets_the_service_that_he_named_or_none(
    tmp_path: Path, host: str, answer: str
) -> None:
    """A proxy in front that passes on the Host of its client does not say which of them it asks."""
    with answering("web", []) as web, answering("api", []) as api:
        text = configuration(
            [WEB, API], {"web": ["one"], "api": ["two"]}, uid=os.getuid(), published=publish_from([WEB, API])
        )
        inside = tmp_path / "inside.sock"
        process = started(
            tmp_path,
            text,
            {
                "bind :20000": f"bind unix@{tmp_path}/web.sock",
                "bind :20001": f"bind unix@{tmp_path}/api.sock",
                "bind :8080": f"bind unix@{inside}",
                "abns@lastgood-": f"abns@{web}-",
                "one:8080": f"127.0.0.1:{web}",
                "two:8080": f"127.0.0.1:{api}",
            },
        )
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(10)
                for _ in range(100):  # it opens one socket after the other
                    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                        line.connect(str(inside))
                        break
                    time.sleep(0.1)
                said = f"Host: {host}\r\n" if host else ""
                line.sendall(f"GET / HTTP/1.{int(bool(host))}\r\n{said}Connection: close\r\n\r\n".encode())
                told = b"".join(iter(lambda: line.recv(4096), b"")).decode()
            body = told.rsplit("\r\n\r\n", 1)[-1]
            assert (body if " 200 " in told else told.split()[1]) == answer
            if answer == "421":
                assert body == "web and api share this port: send the name of one of them as Host"
        finally:
            process.terminate()
            process.wait()


def test_requests_go_where_the_last_move_said(edge: Running) -> None:
    edge.runtime.move(to=[("web", "s0")], away=[("web", "s1")])
    assert (edge.ready(), {edge.answer() for _ in range(5)}) == (["s0"], {"one"})
    edge.runtime.move(to=[("web", "s1")], away=[("web", "s0")])
    assert (edge.ready(), {edge.answer() for _ in range(5)}) == (["s1"], {"two"})


def test_held_requests_wait_and_are_answered_by_who_comes(edge: Running) -> None:
    edge.runtime.hold("web", instead_of=["s0", "s1"])
    answers: list[str] = []
    asking = [threading.Thread(target=lambda: answers.append(edge.answer())) for _ in range(5)]
    for thread in asking:
        thread.start()
    time.sleep(0.6)
    assert answers == []
    edge.runtime.move(to=[("web", "s1")], away=[("web", "hold")])
    for thread in asking:
        thread.join()
    assert answers == ["two"] * 5
    assert edge.ready() == ["s1"]


def test_everybody_outside_waits_and_is_answered_by_who_serves_then(edge: Running) -> None:
    edge.runtime.hold_everybody(["web"])
    assert edge.runtime.holds_everybody() is True
    answers: list[str] = []
    asking = [threading.Thread(target=lambda: answers.append(edge.answer())) for _ in range(5)]
    for thread in asking:
        thread.start()
    # what is being answered can go on, and end
    assert edge.answer_inside() in {"one", "two"}
    time.sleep(0.6)
    assert answers == []
    edge.runtime.move(to=[("web", "s1")], away=[("web", "s0")])
    edge.runtime.pass_everybody(["web"])
    for thread in asking:
        thread.join()
    assert answers == ["two"] * 5
    assert edge.runtime.holds_everybody() is False
    assert edge.answer() == "two"


def test_who_waited_is_known_to_the_service_by_its_own_address(edge: Running) -> None:
    edge.answer()
    edge.runtime.hold_everybody(["web"])
    waiting = threading.Thread(target=edge.answer)
    waiting.start()
    time.sleep(0.3)
    edge.runtime.pass_everybody(["web"])
    waiting.join()
    told = [[line for line in said.split(b"\r\n") if line.startswith(b"x-forwarded-for")] for said in edge.asked]
    assert told == [[b"x-forwarded-for: 127.0.0.1"]] * 2


def test_nobody_waits_for_a_program_that_died(tmp_path: Path) -> None:
    with answering("one", []) as one, answering("two", []) as two:
        edge = Running(tmp_path, one, two, [], at_most_s=1)
        try:
            edge.runtime.hold_everybody(["web"])
            until = time.monotonic() + 10
            waited: list[str] = []
            waiting = threading.Thread(target=lambda: waited.append(edge.answer()))
            waiting.start()
            while "key=" in edge.runtime._ask("show table everybody:") and time.monotonic() < until:
                time.sleep(0.1)
            assert edge.answer() in {"one", "two"}
            # who came before that waits on, until somebody says so
            assert waited == []
            assert (edge.runtime.holds_everybody(), edge.runtime.anybody_waits()) == (False, True)
            edge.runtime.pass_everybody(["web"])
            waiting.join()
            assert waited[0] in {"one", "two"}
            assert (edge.runtime.holds_everybody(), edge.runtime.anybody_waits()) == (False, False)
        finally:
            edge.process.terminate()
            edge.process.wait()


def test_everybody_waits_again_when_the_time_was_over(tmp_path: Path) -> None:
    with answering("one", []) as one, answering("two", []) as two:
        edge = Running(tmp_path, one, two, [], at_most_s=1)
        try:
            edge.runtime.hold_everybody(["web"])
            until = time.monotonic() + 10
            while edge.runtime.holds_everybody() and time.monotonic() < until:
                time.sleep(0.1)
            edge.runtime.hold_everybody(["web"])
            assert edge.runtime.holds_everybody() is True
        finally:
            edge.process.terminate()
            edge.process.wait()


def test_an_edge_that_was_started_before_this_was_known_does_not_hold(edge: Running, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    old = (tmp_path / CONFIG_FILE).read_text().replace(str(tmp_path), str(before)).replace("everybody:", "somebody:")
    old = old.replace("abns@", "abns@old").replace(f"127.0.0.1:{edge.port}", f"unix@{before}/published.sock")
    (before / CONFIG_FILE).write_text(old)
    process = subprocess.Popen([shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", str(before / CONFIG_FILE)])
    try:
        while not (before / SOCKET_FILE).exists():
            assert process.poll() is None
            time.sleep(0.02)
        assert Runtime(before, anew="docker restart edge").holds_everybody() is None
    finally:
        process.terminate()
        process.wait()


def test_what_waited_for_a_client_that_left_is_not_carried_out(edge: Running) -> None:
    edge.runtime.hold("web", instead_of=["s0", "s1"])
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as line:
            line.sendall(b"POST / HTTP/1.0\r\ncontent-length: 0\r\n\r\n")
            time.sleep(0.1)
    seen_to_leave = time.monotonic() + 10
    while edge.runtime.sessions()["web", "BACKEND"] and time.monotonic() < seen_to_leave:
        time.sleep(0.1)
    before = len(edge.asked)
    edge.runtime.move(to=[("web", "s1")], away=[("web", "hold")])
    assert edge.answer() == "two"
    assert len(edge.asked) - before == 1


def test_a_slot_gets_a_name_and_no_traffic(edge: Running) -> None:
    edge.runtime.name([("web", "s5", "shop-web-v2")])
    slot = next(slot for slot in edge.runtime.slots() if slot.name == "s5")
    assert (slot.service, slot.container, slot.ready) == ("web", "shop-web-v2", False)
    assert {edge.answer() for _ in range(6)} == {"one", "two"}


def test_a_container_with_two_addresses_is_sought_at_the_one_at_which_most_services_listen(tmp_path: Path) -> None:
    with answering("one", []) as one, answering("two", []) as two, naming(v6="fd00::2") as names:
        edge = Running(tmp_path, one, two, [], names=names.getsockname()[1])
        try:
            while not all(slot.address for slot in edge.runtime.slots() if slot.ready and slot.service == "web"):
                time.sleep(0.1)
            assert {slot.address for slot in edge.runtime.slots() if slot.ready and slot.container} == {"127.0.0.1"}
        finally:
            edge.process.terminate()
            edge.process.wait()


def test_in_networks_with_both_kinds_of_addresses_the_edge_is_asked_at_both(tmp_path: Path) -> None:
    edge = edge_in(tmp_path)
    edge.lay_out(PROJECT, {})
    assert "v6only" not in (edge.folder / CONFIG_FILE).read_text()
    both = Project({**PROJECT.model, "networks": {"default": {"name": "shop_default", "enable_ipv6": True}}})
    edge.lay_out(both, {})
    said = (edge.folder / CONFIG_FILE).read_text()
    assert [line.strip() for line in said.splitlines() if "v6only" in line] == [
        "bind :::20000 v6only",
        "bind :::8080 v6only",
    ]
    assert {name: place.inside for name, place in edge.places().items()} == {"web": 20000}
    program = shutil.which("haproxy") or "/usr/sbin/haproxy"
    checked = (edge.folder / CONFIG_FILE).with_suffix(".here")
    checked.write_text(said.replace(INSIDE, str(edge.folder)))
    subprocess.run([program, "-c", "-f", str(checked)], check=True, capture_output=True, timeout=20)


@pytest.mark.full
def test_who_served_serves_on_while_the_engine_is_away_and_nobody_knows_names(tmp_path: Path) -> None:
    with answering("one", []) as one, answering("two", []) as two, naming() as names:
        edge = Running(tmp_path, one, two, [], names=names.getsockname()[1])
        try:
            while not all(slot.address for slot in edge.runtime.slots() if slot.ready and slot.service == "web"):
                time.sleep(0.1)
            names.close()
            # longer than HAProxy goes on by itself
            away_until = time.monotonic() + 35
            while time.monotonic() < away_until:
                assert edge.answer() in {"one", "two"}
                time.sleep(0.5)
        finally:
            edge.process.terminate()
            edge.process.wait()


def starts_with(edge: Edge) -> list[str]:
    """The containers to which the edge would send requests if it were started now."""
    said = (edge.folder / CONFIG_FILE).read_text().splitlines()
    servers = [line.split()[2] for line in said if line.startswith("    server s") and not line.endswith(" disabled")]
    return [name.removesuffix(":8080") for name in servers]


def test_a_move_that_was_not_told_leaves_the_file_of_an_edge_that_is_started_again_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that is named then starts the edge again."""
    edge = edge_in(tmp_path)
    with answering("one", []) as one, answering("two", []) as two, naming() as names:
        running = Running(edge.folder, one, two, [], names=names.getsockname()[1])
        try:

            def gone(*_: object, **__: object) -> None:
                raise Retryable("nobody listens", delay_s=1.0)

            to = {"web": {"s1": Container({"Name": "/two"})}}
            with monkeypatch.context() as patch:
                patch.setattr(Runtime, "move", gone)
                with pytest.raises(Retryable):
                    edge.move(PROJECT, to)
            assert starts_with(edge) == ["one", "two"]
            edge.move(PROJECT, to)
            assert starts_with(edge) == ["two"]
        finally:
            running.process.terminate()
            running.process.wait()


def test_after_a_move_that_the_edge_did_not_take_its_file_says_what_it_does(tmp_path: Path) -> None:
    edge = edge_in(tmp_path)
    with answering("one", []) as one, answering("two", []) as two, naming() as names:
        running = Running(edge.folder, one, two, [], names=names.getsockname()[1])
        try:
            with pytest.raises(OutcomeUnknown, match="No such server"):
                edge.move(PROJECT, {"web": {"s1": Container({"Name": "/two"}), "s9": Container({"Name": "/three"})}})
            assert (running.ready(), starts_with(edge)) == (["s1"], ["two"])
        finally:
            running.process.terminate()
            running.process.wait()


@pytest.mark.parametrize(
    "said, wrong",
    [
        ({"routes": {"web": 9090}}, "web has no port 9090 there"),
        ({"routes": {"chat": 9000}}, "chat has no port 9000 there; web is not in routes"),
        ({"one_at_a_time": ["web"]}, "web may stand twice there"),
    ],
)
def test_an_edge_that_was_set_up_for_something_else_is_refused(
    tmp_path: Path, said: dict[str, object], wrong: str
) -> None:
    """Else what is not in routes any more would not be seen to serve, and be stopped."""
    with answering("one", []) as one, answering("two", []) as two:
        edge = edge_in(tmp_path)
        running = Running(edge.folder, one, two, [])
        try:
            edge.lay_out(PROJECT, {})
            edge.serving()
            with pytest.raises(Refused, match="was set up for something else than") as refused:
                edge_in(tmp_path, **said).serving()
            assert refused.value.message.endswith(f": {wrong}")
            assert refused.value.hint == "lastgood init --edge"
        finally:
            running.process.terminate()
            running.process.wait()


def test_a_websocket_outlives_the_move_and_is_ended_at_the_deadline(tmp_path: Path) -> None:
    edge = edge_in(tmp_path)
    with talking() as one, answering("two", []) as two, naming() as names:
        running = Running(edge.folder, one, two, [], names=names.getsockname()[1])
        try:
            while not all(slot.address for slot in running.runtime.slots() if slot.ready and slot.service == "web"):
                time.sleep(0.1)
            running.runtime.move(to=[("web", "s0")], away=[("web", "s1")])
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as line:
                line.sendall(UPGRADE)
                assert line.recv(4096).startswith(b"HTTP/1.1 101 ")
                running.runtime.move(to=[("web", "s1")], away=[("web", "s0")])
                assert running.answer() == "two"
                line.sendall(b"still here")
                assert line.recv(4096) == b"still here"
                edge.drain(["one"], ends_at=CLOCK.now() + timedelta(seconds=0.5))
                assert line.recv(4096) == b""
            edge.drain(["one"], ends_at=CLOCK.now() + timedelta(seconds=30))  # nothing is left to wait for
            assert running.runtime.sessions()["web", "s0"] == 0
        finally:
            running.process.terminate()
            running.process.wait()


def test_what_it_answers_is_counted(edge: Running) -> None:
    assert edge.runtime.sessions()["web", "s0"] == 0


def test_what_it_does_not_take_is_unknown_and_says_its_words(edge: Running) -> None:
    with pytest.raises(OutcomeUnknown, match=r"the edge did not take it: .*No such"):
        edge.runtime.move(to=[("nobody", "s0")], away=[])


def test_to_move_nobody_is_nothing_to_say(edge: Running) -> None:
    """An empty line is answered by the list of what can be said."""
    edge.runtime.move(to=[], away=[])
    edge.runtime.name([])
    assert edge.ready() == ["s0", "s1"]


def test_one_that_is_gone_is_tried_again_later(edge: Running) -> None:
    edge.process.kill()
    edge.process.wait()
    with pytest.raises(Retryable, match="the edge does not answer on its socket"):
        edge.runtime.slots()
    with pytest.raises(Retryable):
        edge.runtime.move(to=[("web", "s0")], away=[])


def test_the_releases_of_one_service_change_places_before_the_next_service_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two commands of a line HAProxy answers requests: of many services both releases would get some."""
    said: list[str] = []

    def hear(_: Runtime, line: str) -> str:
        said.extend(line.split("; "))
        return "\n" * len(said)

    monkeypatch.setattr(Runtime, "_said", hear)
    to, away = [("web", "s1"), ("api", "s0")], [("api", "s1"), ("chat", "s0"), ("web", "s0")]
    Runtime(tmp_path, anew="docker restart edge").move(to=to, away=away)
    assert said == [
        "set server api/s0 state ready",
        "set server api/s1 state drain",
        "set server chat/s0 state drain",
        "set server web/s1 state ready",
        "set server web/s0 state drain",
    ]


def test_one_that_hangs_after_it_was_told_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lastgood.targets.compose.haproxy.ASK_S", 0.2)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / SOCKET_FILE))
        deaf.listen()
        with pytest.raises(OutcomeUnknown, match="was told and did not answer"):
            Runtime(tmp_path, anew="docker restart edge").move(to=[("web", "s0")], away=[])
        with pytest.raises(Retryable):
            Runtime(tmp_path, anew="docker restart edge").slots()


@pytest.mark.parametrize("answer", [b"", b"1\n# be_id be_name\n"])
def test_one_that_closes_before_its_answer_is_whole_has_said_nothing(tmp_path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(tmp_path / SOCKET_FILE))
        dying.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = dying.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        runtime = Runtime(tmp_path, anew="docker restart edge")
        for ask in (runtime.slots, runtime.sessions, runtime.holds_everybody):
            with pytest.raises(Retryable, match="closed before its answer was whole"):
                ask()
        with pytest.raises(OutcomeUnknown, match="was told and did not answer"):
            runtime.move(to=[("web", f"s{number}") for number in range(3)], away=[])
        dying.shutdown(socket.SHUT_RDWR)

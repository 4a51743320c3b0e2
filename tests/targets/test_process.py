"""What is the embedded engine's own: the switch under load, what survives a kill, what is refused before it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Self

import pytest

from lastgood.core.errors import ConfigError, Refused
from lastgood.core.plan import HoldRequests, PassGate, PassRequests, Retire, Seen, Step, seen
from lastgood.core.ports import Containers
from lastgood.core.release import Release
from lastgood.targets import tree
from lastgood.targets.process import holder
from lastgood.targets.process.proxy import Hold
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.deployment import deployment_of
from tests.contract.rigs.process import ProcessWorld, world

PATIENCE_S = 30.0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[ProcessWorld]:
    with world(tmp_path) as made:
        yield made


def ask(port: int, path: str = "/") -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def wait_for(what: Callable[[], object]) -> None:
    """Look again until it is so; a test that waits longer than this has found something."""
    until = CLOCK.now().timestamp() + PATIENCE_S
    while not what():
        assert CLOCK.now().timestamp() < until, "it never came about"
        CLOCK.sleep(0.05)


@dataclass
class Users:
    """Clients that keep their connections and never stop: every answer that was not a success is remembered."""

    port: int
    failed: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._use, args=(kind,)) for kind in ("GET", "POST", "GET", "POST")]
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.answers) > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _use(self, kind: str) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self._over.is_set():
            try:
                connection.request(kind, "/", body=b"order" if kind == "POST" else None)
                response = connection.getresponse()
                body = response.read().decode()
                if response.status >= 300 or (kind == "POST" and body != "order"):
                    self.failed.append(f"{kind} {response.status} {body}")
                if kind == "GET":
                    self.answers.append(body)
            except OSError as error:
                self.failed.append(repr(error))
                connection.close()
        connection.close()


def test_no_request_fails_while_a_release_is_put_in_and_back(stack: ProcessWorld) -> None:
    first = stack.put("1", "v1")
    with Users(stack.ports["web"]) as users:
        stack.put("2", "v2")
        wait_for(lambda: users.answers[-1] == "2")
        target = stack.target()
        for step in stack.plan(target, first).steps:
            target.apply(step)
        wait_for(lambda: users.answers[-1] == "1")
    assert users.failed == []
    assert set(users.answers) == {"1", "2"}


def test_a_request_that_is_being_answered_ends_where_it_began(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    answers: list[str] = []
    slow = threading.Thread(target=lambda: answers.append(ask(stack.ports["web"], "/slow")))
    slow.start()
    wait_for(lambda: any(line.startswith("slow") for line in stack.lines()))
    stack.put("2", "v2")
    slow.join()
    assert answers == ["1"]
    assert ask(stack.ports["web"]) == "2"


def step(action: HoldRequests | PassRequests) -> Step:
    return Step(name=action.kind, action=action, deadline_s=10.0, explain=action.kind)


def test_requests_from_outside_wait_and_what_the_services_ask_each_other_is_passed_on(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    target = stack.target()
    target.apply(step(HoldRequests()))
    assert target.observe().holding
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(ask(stack.ports["web"], "/ask-worker")))
    waiting.start()
    CLOCK.sleep(0.5)
    assert answers == []
    assert target.observe().holding
    target.apply(step(PassRequests()))
    waiting.join()
    assert answers == ["1"]
    assert not target.observe().holding


def test_what_is_being_answered_ends_before_a_hold_is_complete(stack: ProcessWorld) -> None:
    """It needs the other service for that."""
    stack.put("1", "v1")
    target, answers = stack.target(), list[str]()
    asking = threading.Thread(target=lambda: answers.append(ask(stack.ports["web"], "/slow-ask-worker")))
    asking.start()
    wait_for(lambda: any(line.startswith("slow") for line in stack.lines()))
    target.apply(step(HoldRequests()))
    assert [line for line in stack.lines() if line.startswith("answered")] != []
    asking.join()
    assert answers == ["1"]


def test_who_gives_up_while_it_waits_is_not_carried_out(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    target = stack.target()
    target.apply(step(HoldRequests()))
    connection = HTTPConnection("127.0.0.1", stack.ports["web"], timeout=0.3)
    connection.request("GET", "/slow")
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    target.apply(step(PassRequests()))
    assert ask(stack.ports["web"]) == "1"
    assert not [line for line in stack.lines() if line.startswith("slow")]


def test_a_hold_is_over_by_itself() -> None:
    async def waited() -> float:
        hold = Hold(lambda _port, _to: False)
        hold.begin(0.2)
        began = CLOCK.now()
        await hold.passed(1, 2)
        return (CLOCK.now() - began).total_seconds()

    assert asyncio.run(waited()) >= 0.2


def renamed(stack: ProcessWorld) -> Containers:
    """A target whose settings call the service `web` by another name, at the same port."""
    services = {name: one.model_dump() for name, one in stack.config().services.items()}
    return stack.target(services={"front" if name == "web" else name: one for name, one in services.items()})


def test_a_service_that_was_renamed_takes_the_port_over_and_gives_it_back(stack: ProcessWorld) -> None:
    first = stack.put("1", "v1")
    stack.write("2")
    target = renamed(stack)
    for step in deployment_of(target.prepare("v2", CLOCK.now()), target).steps:
        target.apply(step)
    assert ask(stack.ports["web"]) == "2"
    assert {i.service for i in target.observe().serving} == {"front", "worker"}
    assert [c.name for c in target.checks(first) if not c.passed] == [
        "services of other releases",
        "process web",
        "process worker",
    ]
    for step in deployment_of(first, target).steps:
        target.apply(step)
    assert ask(stack.ports["web"]) == "1"
    assert {i.service for i in target.observe().serving} == {"web", "worker"}
    assert all(check.passed for check in target.checks(first))


def test_a_service_of_the_release_is_not_retired(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    step = Step(name="retire", action=Retire(release="v1", service="web"), deadline_s=5.0, explain="")
    with pytest.raises(Refused, match="web is a part of v1"):
        stack.target().apply(step)
    assert ask(stack.ports["web"]) == "1"


def test_services_outlive_the_holder_and_the_next_one_takes_them_up(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    before = [i.instance for i in stack.target().observe().serving]
    os.kill(stack.holder(), signal.SIGKILL)
    unheld = stack.target().observe()
    assert [i.instance for i in unheld.serving] == before
    assert all(i.running and not i.serves for i in unheld.serving)
    stack.put("2", "v2")
    assert ask(stack.ports["web"]) == "2"
    assert len([line for line in stack.lines() if line.startswith("start")]) == 4
    wait_for(lambda: len([line for line in stack.lines() if line.startswith("end")]) == 2)


def test_a_process_that_nobody_wrote_down_does_not_outlive_the_next_holder(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    os.kill(stack.holder(), signal.SIGKILL)
    (stack.state / "instances.json").write_text("[]")
    stack.put("2", "v2")
    starts = [line for line in stack.lines() if line.startswith("start")]
    living = [pid for pid in (int(line.split()[1]) for line in starts) if Path(f"/proc/{pid}/cmdline").exists()]
    assert len([pid for pid in living if Path(f"/proc/{pid}/cmdline").read_bytes()]) == 2


def test_a_service_that_dies_is_started_again_and_counted(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    assert "broke the connection off" in ask(stack.ports["web"], "/die")
    wait_for(lambda: any(i.restarts == 1 and i.serves for i in stack.target().observe().of("web")))
    assert ask(stack.ports["web"]) == "1"


def gate_of(target: Containers, release: Release) -> Step:
    artifacts = tuple((s.name, s.artifact) for s in release.services)
    return Step(
        name="pass-gate", action=PassGate(release=release.id, artifacts=artifacts), deadline_s=20.0, explain="the gate"
    )


def test_a_release_that_ends_at_the_gate_is_refused_in_its_own_words_without_its_secrets(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    stack.write("broken")
    target = stack.target()
    release = target.prepare("v2", CLOCK.now())
    with pytest.raises(Refused, match=r"exited with 1 at the gate; it said: cannot work without \*+"):
        target.apply(gate_of(target, release))
    facts = target.observe()
    assert facts.candidates == ()
    assert ask(stack.ports["web"]) == "1"


def test_a_gate_that_passed_once_more_after_its_answer_was_lost_starts_nothing_twice(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    stack.write("2")
    target = stack.target()
    release = target.prepare("v2", CLOCK.now())
    step = gate_of(target, release)
    target.apply(step)
    stack.target().apply(step)
    assert seen(step, target.observe()) is Seen.DONE
    assert len([line for line in stack.lines() if line.startswith("start")]) == 4


def test_a_port_that_somebody_else_has_is_refused_before_anything_is_kept(stack: ProcessWorld) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", stack.ports["worker"]))
        other.listen()
        with pytest.raises(Refused, match=rf"process\.services\.worker\.port: {stack.ports['worker']}"):
            stack.target().prepare("v1", CLOCK.now())
    assert not stack.state.exists()


def test_a_release_whose_files_were_changed_is_not_held_and_not_started(stack: ProcessWorld) -> None:
    first = stack.put("1", "v1")
    stack.put("2", "v2")
    (stack.state / "releases" / "v1" / "tree" / "VERSION").write_text("3")
    target = stack.target()
    assert first.services[0].artifact not in target.observe().held
    with pytest.raises(Refused, match="is not kept with v1"):
        target.apply(gate_of(target, first))
    assert ask(stack.ports["web"]) == "2"


def test_a_name_stands_for_one_content(stack: ProcessWorld) -> None:
    stack.put("1", "v1")
    stack.write("2")
    with pytest.raises(Refused, match="v1 was prepared with other files"):
        stack.target().prepare("v1", CLOCK.now())


def test_what_serves_can_be_recorded_under_another_name(stack: ProcessWorld) -> None:
    first = stack.put("1", "v1")
    target = stack.target()
    other = target.describe_running("known-good", CLOCK.now())
    assert [s.artifact for s in other.services] == [s.artifact for s in first.services]
    assert all(check.passed for check in target.checks(other))


def test_nothing_to_record_where_nothing_serves(stack: ProcessWorld) -> None:
    with pytest.raises(Refused, match="nothing serves"):
        stack.target().describe_running("v1", CLOCK.now())


def test_secrets_are_in_one_private_file_and_in_no_record(stack: ProcessWorld) -> None:
    release = stack.put("1", "v1")
    assert "s3cr3t-word" not in repr(release)
    holding = [p for p in stack.state.rglob("*") if p.is_file() and b"s3cr3t-word" in p.read_bytes()]
    assert [p.name for p in holding] == ["process.json"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(stack.state.stat().st_mode) == 0o700


def test_a_changed_environment_is_another_configuration_of_the_same_files(stack: ProcessWorld) -> None:
    first = stack.put("1", "v1")
    web = {"command": ["{python}", "service.py"], "port": stack.ports["web"], "health": "/"}
    changed = stack.target(services={"web": web | {"env": {"EFFECTS": str(stack.effects_file), "SECRET": "other"}}})
    second = changed.prepare("v2", CLOCK.now())
    assert second.services[0].artifact == first.services[0].artifact
    assert second.services[0].config_hash != first.services[0].config_hash


def test_a_placeholder_that_nobody_knows_names_its_place(stack: ProcessWorld) -> None:
    service = {"command": ["{python}", "service.py", "{port:shop}"], "port": stack.ports["web"]}
    with pytest.raises(
        ConfigError, match=r"process\.services\.web\.command: \{port:shop\}: no such service; known: web"
    ):
        stack.target(services={"web": service}).prepare("v1", CLOCK.now())


def test_evidence_is_what_the_serving_processes_said(stack: ProcessWorld, tmp_path: Path) -> None:
    stack.put("1", "v1")
    saved = stack.target().evidence(tmp_path / "incident")
    assert sorted(name.split("-")[0] for name in saved) == ["web", "worker"]
    assert all(stat.S_IMODE((tmp_path / "incident" / name).stat().st_mode) == 0o600 for name in saved)


def test_what_serving_processes_said_is_told_with_its_release(stack: ProcessWorld) -> None:
    for number in ("1", "2"):
        stack.put(number, f"v{number}")
    told = stack.target().logs(CLOCK.now())
    assert sorted((log.service, log.release) for log in told) == [("web", "v2"), ("worker", "v2")]


def test_a_log_is_kept_under_its_limit_and_its_newer_half_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "LOG_BYTES", 100)
    log = tmp_path / "web.log"
    log.write_bytes(b"old" * 50 + b"new" * 16)
    holder._cut(log)
    assert log.read_bytes() == b""
    assert (tmp_path / "web.1.log").read_bytes().endswith(b"new" * 16)


def test_an_artifact_is_the_paths_the_right_to_execute_and_the_content(tmp_path: Path) -> None:
    def made(name: str, *, content: str = "x", mode: int = 0o644, at: str = "file") -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / at).write_text(content)
        (folder / at).chmod(mode)
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / name).touch()
        return tree.artifact(folder)

    same = {made("a"), made("b")}
    others = {made("c", content="y"), made("d", mode=0o755), made("e", at="elsewhere")}
    assert len(same) == 1
    assert len(others | same) == 4


def test_a_release_is_let_go_of_with_its_files_and_only_when_nothing_runs_from_it(stack: ProcessWorld) -> None:
    first = stack.put("1", "v1")
    target = stack.target()
    assert (target.missing(first), sorted(target.kept())) == ((), ["v1"])
    with pytest.raises(Refused, match="still runs from v1"):
        target.let_go(first)
    second = stack.put("2", "v2")
    wait_for(lambda: let_go(target, first))
    assert (target.missing(second), sorted(target.kept())) == ((), ["v2"])
    assert ask(stack.ports["web"]) == "2"
    (lost,) = target.missing(first)
    assert lost.lost
    assert "nothing is kept of release v1" in lost.what


def let_go(target: Containers, release: Release) -> bool:
    """Whether it could be, now: what was switched away from finishes its requests first."""
    try:
        target.let_go(release)
    except Refused:
        return False
    return True


def test_files_of_a_release_that_were_changed_are_missed(stack: ProcessWorld) -> None:
    release = stack.put("1", "v1")
    next((stack.state / "releases" / "v1" / "tree").iterdir()).write_text("meddled with")
    (lost,) = stack.target().missing(release)
    assert "the files of v1 are not what was kept" in lost.what

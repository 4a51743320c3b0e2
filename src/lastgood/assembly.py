"""The plan of the house: reads lastgood.yaml and builds the rooms. The only file that knows concrete classes."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from lastgood.core import yaml_tree
from lastgood.core.config import (
    Config,
    ContainersTrigger,
    DatabaseConfig,
    DataTrigger,
    FeatureTrigger,
    LatencyTrigger,
    TrafficConfig,
    parse_config,
)
from lastgood.core.errors import ConfigError, NeedsHuman, Refused
from lastgood.core.ports import Checker, Clock, Containers, Frontend, Notifier, SignalSource
from lastgood.core.verdict import INSTANCES_SOURCE, TRAFFIC_SOURCE
from lastgood.journal.sqlite import SqliteJournal
from lastgood.notify.slack import SlackNotifier
from lastgood.runbook import owner
from lastgood.runbook.rooms import Memory, Rooms, Story, silent
from lastgood.signals.access_log import AccessLog
from lastgood.signals.discovery import health_address, metrics_address
from lastgood.signals.health import HealthAddresses
from lastgood.signals.instances import InstanceStates
from lastgood.signals.invariants import Invariants
from lastgood.signals.metrics_page import MetricsPage
from lastgood.signals.probe import Probe
from lastgood.signals.smoke import SmokeTests
from lastgood.targets.compose import (
    ComposeTarget,
    EdgePlan,
    Survey,
    SurveyedPostgres,
    compose_by_hand,
    own_edge_file,
    set_up_edge,
    survey,
)
from lastgood.targets.postgres import PostgresTarget, connect
from lastgood.targets.process import ProcessTarget
from lastgood.targets.vercel import VercelTarget

CONFIG_FILE = "lastgood.yaml"
STATE = ".lastgood"
__all__ = [
    "CONFIG_FILE",
    "STATE",
    "EdgePlan",
    "Survey",
    "SurveyedPostgres",
    "build",
    "compose_by_hand",
    "health_address",
    "load_config",
    "metrics_address",
    "own_state",
    "private_folder",
    "put_edge",
    "survey",
]


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Aware UTC."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        if seconds > 0:
            time.sleep(seconds)


def load_config(path: Path, env: Mapping[str, str] | None = None) -> Config:
    """Read lastgood.yaml. Raises ConfigError naming file, line, column and what was expected."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint="lastgood init") from error

    def read_file(name: str) -> str:
        return (path.parent / name).read_text(encoding="utf-8")

    return parse_config(text, file=str(path), env=os.environ if env is None else env, read_file=read_file)


def private_folder(state: Path) -> Path:
    """Make the state folder where it is not there: for its owner only, and kept out of git, since it holds passwords
    and every release's environment. Raises ConfigError when it cannot be made."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (state / ".gitignore").exists():
            (state / ".gitignore").write_text("*\n")
    except OSError as error:
        raise ConfigError(f"{state}: {error.strerror}", hint="state: FOLDER in lastgood.yaml") from error
    return state


def put_edge(path: Path) -> tuple[EdgePlan, str]:
    """Put an edge before the services of the stack whose lastgood.yaml is at `path`; return what it takes, and its
    compose file. Raises as `set_up_edge` does, and Refused when the services are no containers."""
    config = load_config(path)
    if config.containers is None:
        raise Refused("an edge stands before containers, and this stack has none", hint="lastgood init")
    root = path.resolve().parent
    state = private_folder(root / config.state)
    plan = set_up_edge(config.containers, root=root, state=state, clock=SystemClock())
    return plan, own_edge_file(config.containers, root=root, state=state)


def build(path: Path, story: Story, update: Story = silent) -> Rooms:
    """Build the rooms of the stack whose lastgood.yaml is at `path`. Reads files, makes the state folder, and connects
    to nothing yet. Raises ConfigError when the state folder is another stack's."""
    config = load_config(path)
    root = path.resolve().parent
    state = private_folder(root / config.state)
    clock = SystemClock()
    memory = Memory(SqliteJournal(state, clock=clock))
    _take_state(path, config, state, memory)
    containers, workdir = _containers(config, root=root, state=state, clock=clock)
    invariants = {
        name: _sql_files(root, trigger.invariants)
        for name, trigger in config.watch.triggers.items()
        if isinstance(trigger, DataTrigger)
    }
    repairs = {
        stem: statement
        for name, trigger in config.watch.triggers.items()
        if isinstance(trigger, DataTrigger) and trigger.repairs
        for stem, statement in _repairs(root, trigger.repairs, name, invariants[name]).items()
    }
    database = None
    if config.database:
        database = PostgresTarget(
            config.database,
            root=root,
            state=state,
            clock=clock,
            workdir=workdir,
            invariants={stem: sql for files in invariants.values() for stem, sql in files.items()},
            repairs=repairs,
        )
    return Rooms(
        config=config,
        memory=memory,
        clock=clock,
        containers=containers,
        database=database,
        frontend=_frontend(config, clock),
        sources=_sources(config, containers, invariants, root),
        checkers=_checkers(config, root),
        notifiers=_notifiers(config),
        root=root,
        state=state,
        who=f"{getpass.getuser()}@{socket.gethostname()}",
        story=story,
        update=update,
    )


def own_state(root: Path, project: str) -> str:
    """Name the state folder for a compose project that has no lastgood.yaml yet: the usual one, or one of its own where
    that is another stack's."""
    memory = Memory(SqliteJournal(root / STATE, clock=SystemClock()))
    try:
        free = owner.owner(root / STATE, memory) in ("", owner.of_project(project))
    except NeedsHuman:
        free = False
    return STATE if free else f"{STATE}-{project}"


def _take_state(path: Path, config: Config, state: Path, memory: Memory) -> None:
    """Keep two lastgood.yaml in one folder from going back to each other's releases."""
    own = owner.named(config)
    if (whose := owner.take(state, memory, own)) == own:
        return
    place, name = "stack", config.stack
    if config.containers:
        place, name = "containers.compose.project", config.containers.compose.project
    line, column = yaml_tree.place_of(
        yaml_tree.read(path.read_text(encoding="utf-8"), file=str(path)), place.split(".")
    )
    raise ConfigError(
        f"{path}:{line}:{column}: {place}: {state} is kept for {whose}, and this is {own}: "
        "each stack needs a state folder of its own",
        hint=f"state: {STATE}-{name} in {path.name}",
    )


def _containers(config: Config, *, root: Path, state: Path, clock: Clock) -> tuple[Containers, Callable[[str], Path]]:
    """The engine, and where the files of a release lie."""
    if config.process:
        process = ProcessTarget(config.process, root=root, state=state, clock=clock)
        return process, lambda release: state / "releases" / release / "tree"
    if config.containers:
        private = (root / config.database.restore_points.path,) if config.database else ()
        compose = ComposeTarget(config.containers, root=root, state=state, clock=clock, private=private)
        return compose, lambda _release: root
    raise ConfigError("expected containers or process")


def _frontend(config: Config, clock: Clock) -> Frontend | None:
    return VercelTarget(config.frontend.vercel, clock=clock) if config.frontend else None


def _sources(
    config: Config, containers: Containers, invariants: Mapping[str, Mapping[str, str]], root: Path
) -> tuple[SignalSource, ...]:
    """One source for the traffic, one for the instances, and one for each feature and data trigger."""
    watch = config.watch
    sources: list[SignalSource] = []
    if watch.traffic:
        latency = next((t for t in watch.triggers.values() if isinstance(t, LatencyTrigger)), None)
        sources.append(_traffic(watch.traffic, root, latency.limit if latency else None))
    for name, trigger in watch.triggers.items():
        match trigger:
            case FeatureTrigger(probe=probe):
                sources.append(Probe(name, probe))
            case DataTrigger(timeout=timeout_s):
                sources.append(
                    Invariants(
                        name, invariants[name], connect=_database_connection(name, config.database), timeout_s=timeout_s
                    )
                )
            case ContainersTrigger():
                sources.append(InstanceStates(INSTANCES_SOURCE, containers.observe))
            case _:
                pass
    return tuple(sources)


def _traffic(traffic: TrafficConfig, root: Path, latency_limit_s: float | None) -> SignalSource:
    if log := traffic.access_log:
        return AccessLog(TRAFFIC_SOURCE, root / log.path, log.format, traffic.exclude, latency_limit_s)
    return MetricsPage(TRAFFIC_SOURCE, traffic.pages, traffic.exclude, latency_limit_s)


def _database_connection(trigger: str, database: DatabaseConfig | None) -> Callable[[], connect.Connection]:
    if database is None:
        raise ConfigError(f"watch.triggers.{trigger}: reads invariants: expected a database section")
    return lambda: connect.connect(database.postgres)


def _checkers(config: Config, root: Path) -> tuple[Checker, ...]:
    checkers: list[Checker] = []
    if config.verify.health:
        checkers.append(HealthAddresses(config.verify.health))
    if config.verify.smoke:
        checkers.append(SmokeTests(config.verify.smoke, cwd=root))
    return tuple(checkers)


def _notifiers(config: Config) -> tuple[Notifier, ...]:
    return (SlackNotifier(config.notify.slack),) if config.notify.slack else ()


def _repairs(root: Path, pattern: str, trigger: str, invariants: Collection[str]) -> dict[str, str]:
    """Read the statements that put rows right. Raises ConfigError when one is for no invariant."""
    files = _sql_files(root, pattern)
    if of_none := sorted(files.keys() - set(invariants)):
        known = ", ".join(invariants)
        raise ConfigError(f"watch.triggers.{trigger}.repairs: {of_none[0]}.sql: expected an invariant's name: {known}")
    if without_key := [stem for stem, text in files.items() if "$1" not in text]:
        raise ConfigError(
            f"watch.triggers.{trigger}.repairs: {without_key[0]}.sql: expected an UPDATE of the row whose key is $1"
        )
    return files


def _sql_files(root: Path, pattern: str) -> dict[str, str]:
    """Read SQL files by glob, keyed by stem. Raises ConfigError when none matches: a check of
    nothing must not look green."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted(root.glob(pattern))}
    if not files:
        raise ConfigError(f"{root / pattern}: no file matches")
    return files

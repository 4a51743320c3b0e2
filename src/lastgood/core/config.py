"""lastgood.yaml: one versioned file, parsed into frozen values; every error names file, line, column and what was
expected.

Pure: the text and the environment come in, nothing is opened. `${VAR}` is filled from the environment that is passed
in; a field of type Secret may also be `file:PATH`, which the caller resolves through `read_file`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from lastgood.core import yaml_tree
from lastgood.core.release import NAME_GRAMMAR
from lastgood.core.secret import Secret
from lastgood.core.setting_fault import Fault, fault, misfit, refusal, shown
from lastgood.core.yaml_tree import Node, Place

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

# How values are written, and what is said of any other: the parser and the editor's schema go by the same.
_DURATION: Final = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)"
_A_DURATION: Final = "expected a duration with its unit, like 500ms, 5s, 15m or 1h"
_PERCENTAGE: Final = r"(\d+(?:\.\d+)?)%"
_A_PERCENTAGE: Final = "expected a percentage between 0% and 100%, like 1%"
_QUANTILE: Final = r"p(\d{1,2}(?:\.\d+)?)"
_A_QUANTILE: Final = "expected a quantile like p95"
_SIZE: Final = r"(\d+)(B|KiB|MiB|GiB)"
_A_SIZE: Final = "expected a size with its unit, like 200MiB or 2GiB"
_A_TEXT: Final = "expected a text, ${VAR} or file:PATH"
_A_NAME: Final = "expected a name of letters, digits, dot, dash or underscore, not starting with a dash"
_COLUMN: Final = r"((?!public\.)[^.]+\.)?[^.]+\.[^.]+"
_A_COLUMN: Final = "expected a column like orders.total, or billing.orders.total where the schema is not public"
_ADDRESS: Final = r"https?://[^\s]+"
_AN_ADDRESS: Final = "expected an address like http://127.0.0.1:8000/health"
# Postgres' settings and pgBackRest's take no more than that without quotes of their own.
_ABSOLUTE: Final = "(/[A-Za-z0-9_][A-Za-z0-9._-]*)+"
_AN_ABSOLUTE: Final = "expected an absolute path of letters, digits, dot, dash and underscore, like /var/lib/x"
_LONGEST_S: Final = 366 * _UNITS_S["d"]


def _duration(value: object) -> float:
    match = re.fullmatch(_DURATION, str(value), re.ASCII)
    if not match:
        raise ValueError(_A_DURATION)
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if seconds > _LONGEST_S:
        raise ValueError("expected a duration of at most 366d")
    return seconds


def _some_time(value: object) -> float:
    seconds = _duration(value)
    if not seconds:
        raise ValueError("expected a duration of more than 0s")
    return seconds


def _ratio(value: object) -> float:
    match = re.fullmatch(_PERCENTAGE, str(value), re.ASCII)
    if not match or not 0 < float(match[1]) < 100:
        raise ValueError(_A_PERCENTAGE)
    return float(match[1]) / 100


def _quantile(value: object) -> float:
    match = re.fullmatch(_QUANTILE, str(value), re.ASCII)
    if not match or not 0 < float(match[1]) < 100:
        raise ValueError(_A_QUANTILE)
    return float(match[1]) / 100


def _size(value: object) -> int:
    match = re.fullmatch(_SIZE, str(value), re.ASCII)
    if not match:
        raise ValueError(_A_SIZE)
    return int(match[1]) * _UNITS_BYTES[match[2]]


def _secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(_A_TEXT)
    return Secret(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not NAME_GRAMMAR.fullmatch(value):
        raise ValueError(_A_NAME)
    return value


def _column(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_COLUMN, value):
        raise ValueError(_A_COLUMN)
    return value


def _address(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_ADDRESS, value):
        raise ValueError(_AN_ADDRESS)
    return value


def _absolute(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(_ABSOLUTE, value):
        raise ValueError(_AN_ABSOLUTE)
    return value


def _whole(value: object) -> int:
    """A whole number, as YAML reads it or as a reference leaves it: text."""
    if isinstance(value, bool) or not re.fullmatch("-?[0-9]{1,18}", str(value)):
        raise ValueError("expected a whole number")
    return int(str(value))


# References are filled in before a value is read, so an editor lets them stand anywhere.
_REFERRED: Final = r".*\$\{[A-Za-z_][A-Za-z0-9_]*\}.*|file:.+"


def _text(pattern: str, expected: str = "") -> WithJsonSchema:
    """How an editor checks a text. pattern: of the whole value. expected: its complaint, in the words of the parser."""
    schema = {"type": "string", "pattern": f"^(?:{pattern}|{_REFERRED})$"}
    return WithJsonSchema(schema | ({"patternErrorMessage": expected} if expected else {}))


Duration = Annotated[float, BeforeValidator(_duration), _text(_DURATION, _A_DURATION)]
"""Seconds, written with a unit."""
SomeTime = Annotated[float, BeforeValidator(_some_time), _text(_DURATION, _A_DURATION)]
"""The same, where none at all would make no sense."""
Ratio = Annotated[float, BeforeValidator(_ratio), _text(_PERCENTAGE, _A_PERCENTAGE)]
"""0..1, written in percent."""
Quantile = Annotated[float, BeforeValidator(_quantile), _text(_QUANTILE, _A_QUANTILE)]
Size = Annotated[int, BeforeValidator(_size), _text(_SIZE, _A_SIZE)]
SecretText = Annotated[Secret, BeforeValidator(_secret), _text(".+", _A_TEXT)]
Name = Annotated[str, BeforeValidator(_name), _text(NAME_GRAMMAR.pattern, _A_NAME)]
ColumnName = Annotated[str, BeforeValidator(_column), _text(_COLUMN, _A_COLUMN)]
"""table.column, or schema.table.column; without the schema where it is public."""
AbsolutePath = Annotated[str, BeforeValidator(_absolute), _text(_ABSOLUTE, _AN_ABSOLUTE)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
Port = Annotated[
    int,
    Field(ge=1, le=65535),
    BeforeValidator(_whole),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, _text("[0-9]+").json_schema]}),
]
HttpUrl = Annotated[str, BeforeValidator(_address), _text(_ADDRESS, _AN_ADDRESS)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Mode(StrEnum):
    """How much is done without a person. The database always asks."""

    OBSERVE = "observe"
    PROPOSE = "propose"
    AUTOMATIC = "automatic"


class LogFormat(StrEnum):
    """What a line of an access log looks like: combined of nginx and Apache, the same with nginx's $request_time behind
    it, or `option httplog` of HAProxy."""

    COMBINED = "combined"
    COMBINED_TIMED = "combined-timed"
    HAPROXY = "haproxy"

    @property
    def timed(self) -> bool:
        """Whether a line says how long its request took."""
        return self is not LogFormat.COMBINED


class AccessLogConfig(_Section):
    """The request log of a reverse proxy, one line for each finished request. path: relative to lastgood.yaml."""

    path: str
    format: LogFormat


class TrafficConfig(_Section):
    """Where finished requests are counted. metrics: a Prometheus text page of the service. access_log: the log of the
    reverse proxy before it. exclude: handlers of health checks."""

    metrics: (
        Annotated[
            Annotated[HttpUrl, Tag("one")] | Annotated[tuple[HttpUrl, ...], Tag("several")],
            Discriminator(lambda value: "one" if isinstance(value, str) else "several"),
        ]
        | None
    ) = None
    access_log: AccessLogConfig | None = None
    exclude: tuple[str, ...] = ("/health", "/metrics")

    @property
    def pages(self) -> tuple[str, ...]:
        """The addresses to read, one per replica."""
        return (self.metrics,) if isinstance(self.metrics, str) else self.metrics or ()

    @model_validator(mode="after")
    def _one_place(self) -> TrafficConfig:
        if (self.metrics is None) == (self.access_log is None):
            message = "expected exactly one of metrics and access_log"
            raise ValueError(message)
        return self


class ProbeConfig(_Section):
    """A request that asks a feature to do its work. expect: keys of the JSON answer; `present` asks only that it is
    there and not empty."""

    post: HttpUrl | None = None
    get: HttpUrl | None = None
    json_body: Any = Field(default=None, alias="json")
    status: Whole = 200
    expect: Mapping[str, Any] = Field(default_factory=dict)
    timeout: SomeTime = 4.0

    @model_validator(mode="after")
    def _one_method(self) -> ProbeConfig:
        if (self.post is None) == (self.get is None):
            message = "expected exactly one of post and get"
            raise ValueError(message)
        return self


class ErrorRateTrigger(_Section):
    """More than `limit` of the requests answered 5xx."""

    kind: Literal["error_rate"]
    limit: Ratio = 0.01


class LatencyTrigger(_Section):
    """The quantile is over `limit`: more than (1 - quantile) of the requests took longer."""

    kind: Literal["latency"]
    quantile: Quantile = 0.95
    limit: SomeTime = 0.5


class FeatureTrigger(_Section):
    """A feature stopped doing its work. limit: share of probes that may fail."""

    kind: Literal["feature"]
    probe: ProbeConfig
    limit: Ratio = 0.05


class DataTrigger(_Section):
    """Invalid rows. invariants: glob of SQL files, relative to lastgood.yaml, each a SELECT of the rows that break
    it, key first. repairs: of files named as those, each an UPDATE that puts the row whose key is $1 right."""

    kind: Literal["data"]
    invariants: str
    repairs: str | None = None
    timeout: SomeTime = 5.0


class ContainersTrigger(_Section):
    """A serving container keeps restarting, or was killed for its memory. restarts: within the watch."""

    kind: Literal["containers"]
    restarts: Count = 3


TriggerConfig = Annotated[
    ErrorRateTrigger | LatencyTrigger | FeatureTrigger | DataTrigger | ContainersTrigger, Field(discriminator="kind")
]


class WatchConfig(_Section):
    """The watch window and what is watched in it. false_alarm: chance of a false rollback over the whole window, all
    triggers together."""

    window: SomeTime = 3600.0
    interval: SomeTime = 5.0
    warm_up: Duration = 35.0
    bake: Duration = 900.0
    baseline: Duration = 30.0
    false_alarm: Ratio = 0.001
    traffic: TrafficConfig | None = None
    triggers: Mapping[Name, TriggerConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _traffic_where_needed(self) -> WatchConfig:
        for name, trigger in self.triggers.items():
            if isinstance(trigger, ErrorRateTrigger | LatencyTrigger) and self.traffic is None:
                message = f"trigger {name} counts requests: expected watch.traffic"
                raise ValueError(message)
            log = self.traffic.access_log if self.traffic else None
            if isinstance(trigger, LatencyTrigger) and log and not log.format.timed:
                message = (
                    f"trigger {name} counts slow requests: expected a format of watch.traffic.access_log with durations"
                )
                raise ValueError(message)
        limits = {trigger.limit for trigger in self.triggers.values() if isinstance(trigger, LatencyTrigger)}
        if len(limits) > 1:
            # slow requests are counted once, against one edge of the histogram
            message = "expected one limit for all latency triggers"
            raise ValueError(message)
        return self


class ComposeConfig(_Section):
    """The compose project. files: relative to lastgood.yaml. profiles and env_file as they are given to docker
    compose."""

    files: tuple[str, ...] = ("docker-compose.yml",)
    project: Name
    profiles: tuple[str, ...] = ()
    env_file: str | None = None


class Standby(StrEnum):
    """What becomes of the release before, while a new one is watched behind an edge."""

    RUNNING = "running"
    STOPPED = "stopped"
    NONE = "none"


class EdgeConfig(_Section):
    """The HAProxy in front of the services. service: its name in the compose project. routes: service to the port on
    which its containers serve. one_at_a_time: those of them of which no second copy may run. drain: how long a request
    may go on after the switch. standby_memory: bytes up to which the release before is left running, all its containers
    together."""

    service: Name = "lastgood-edge"
    routes: Annotated[Mapping[Name, Port], Field(min_length=1)]
    one_at_a_time: tuple[Name, ...] = ()
    standby: Standby = Standby.RUNNING
    standby_memory: Size | None = None
    drain: Duration = 30.0


class ContainersConfig(_Section):
    """What a rollback may touch. Services not named here are never recreated. workers: those that work by themselves
    (queues, schedules): no second one is ever started beside."""

    compose: ComposeConfig
    services: Annotated[tuple[Name, ...], Field(min_length=1)]
    workers: tuple[Name, ...] = ()
    boot: SomeTime = 60.0
    stop: Duration = 10.0
    edge: EdgeConfig | None = None

    @model_validator(mode="after")
    def _only_what_goes_back(self) -> ContainersConfig:
        if unknown := sorted(set(self.workers) - set(self.services)):
            message = f"expected in workers only names of services, not {', '.join(unknown)}"
            raise ValueError(message)
        if self.edge is None:
            return self
        for name in self.edge.routes:
            at = ("edge", "routes", name, "[key]")
            if name not in self.services:
                raise misfit(at, f"expected the name of one of containers.services: {', '.join(self.services)}")
            if name in self.workers:
                raise misfit(at, "expected no name of containers.workers: they work by themselves")
        for index, name in enumerate(self.edge.one_at_a_time):
            if name not in self.edge.routes:
                known = ", ".join(self.edge.routes)
                place = ("edge", "one_at_a_time", index)
                raise misfit(place, f"expected the name of one of containers.edge.routes: {known}")
        return self


class ProcessService(_Section):
    """One service of the process engine. It gets its private port in PORT; the holder owns `port` and forwards to
    it."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    port: Port
    health: str = "/health"
    env: Mapping[str, str] = Field(default_factory=dict)


class ProcessConfig(_Section):
    """The embedded target. source: the tree whose copy each release keeps, relative to lastgood.yaml."""

    source: str = "."
    exclude: tuple[str, ...] = (".git", ".lastgood")
    services: Annotated[Mapping[Name, ProcessService], Field(min_length=1)]
    boot: SomeTime = 30.0
    stop: Duration = 10.0


class PostgresConfig(_Section):
    """The database. container: reach it at that container, with the tools inside; else host and port, with the tools
    in `bin` or on PATH.

    log: the server's log file, read for SQL errors; of a container its own log is read.
    """

    name: str
    user: str
    password: SecretText | None = None
    container: Name | None = None
    host: str = "127.0.0.1"
    port: Port = 5432
    bin: str | None = None
    log: str | None = None


class PgBouncerConfig(_Section):
    """The admin console of a PgBouncer in front of the database, one process. container: reach it at that container,
    else host and port. user: one of its admin_users. databases: by which names clients know the database; none for
    every one that leads to a database of its name."""

    user: str
    password: SecretText | None = None
    container: Name | None = None
    host: str = "127.0.0.1"
    port: Port = 6432
    databases: tuple[str, ...] = ()


class MigrationsConfig(_Section):
    """Migrations: the folder of Prisma's or of Alembic's, and the command that applies them (DATABASE_URL is set for
    it). down: the command that prints the SQL which takes the new ones down again; `{from}` and `{to}` in it are the
    newest migration of the release and the newest one that the database has. on_copy: whether `command` goes by
    DATABASE_URL alone, so that it may be tried on an empty copy before a deploy. at_start: what every release runs by
    itself when it starts; it goes by DATABASE_URL alone too, and is tried on an empty copy before a release goes
    back."""

    prisma: str | None = None
    alembic: str | None = None
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    down: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    on_copy: bool = False
    at_start: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    timeout: SomeTime = 600.0

    @model_validator(mode="after")
    def _one_tool(self) -> MigrationsConfig:
        if (self.prisma is None) == (self.alembic is None):
            message = "expected exactly one of prisma and alembic"
            raise ValueError(message)
        return self


class RestorePointsConfig(_Section):
    """Where dumps are kept, relative to lastgood.yaml, and how many. require_lossless: refuse a deploy after which a
    rollback of the database could not replay every transaction. capture_limit: bytes of log that the server may keep
    for a replay, beyond what the restore of the point itself wrote. allow_pause: for how long everybody may be kept out
    of the database so that it can be copied; none for a dump, for which nobody waits."""

    path: str = "restore-points"
    keep: Count = 5
    require_lossless: bool = False
    allow_pause: SomeTime | None = None
    capture_limit: Size = 4 << 30
    timeout: SomeTime = 3600.0


class PgBackRestConfig(_Section):
    """pgBackRest, which keeps backups and log of the whole server. path: folder for a side cluster, inside the
    container where there is one; made when it is needed, and empty otherwise. user: who owns the server's data. config:
    pgBackRest's own file, by default where it looks itself."""

    stanza: Name
    path: AbsolutePath = "/var/lib/postgresql/lastgood-recovery"
    user: Name = "postgres"
    config: AbsolutePath | None = None


class Merging(StrEnum):
    """How a change of a value is put where another one was kept out: by as much as it changed, or only over the value
    that it found."""

    DELTA = "delta"
    SET = "set"


class DatabaseConfig(_Section):
    """The database that belongs to the release. pgbouncer: what its clients go through, where it is one. statements:
    glob of what the release says to it, tried on today's schema. merge: how a replay puts a column back, where what the
    database itself says of it is not enough."""

    postgres: PostgresConfig
    pgbouncer: PgBouncerConfig | None = None
    migrations: MigrationsConfig | None = None
    statements: str | None = None
    merge: Mapping[ColumnName, Merging] = Field(default_factory=dict)
    restore_points: RestorePointsConfig = RestorePointsConfig()
    pgbackrest: PgBackRestConfig | None = None


class VercelConfig(_Section):
    """The project at Vercel. url: only for a stand-in. domains: fetched after a rollback; site: how to reach them
    where DNS does not."""

    project: Name
    team: str | None = None
    token: SecretText
    domains: tuple[str, ...] = ()
    url: HttpUrl = "https://api.vercel.com"
    site: str = "https://{domain}/"
    timeout: SomeTime = 60.0


class FrontendConfig(_Section):
    """Where the frontend is served."""

    vercel: VercelConfig


class SmokeConfig(_Section):
    """The team's own smoke tests: a command that writes JUnit XML where `--junitxml=FILE` says (pytest does), or just
    exits 0."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    timeout: SomeTime = 60.0
    env: Mapping[str, str] = Field(default_factory=dict)


class VerifyConfig(_Section):
    """What must pass after a rollback. health: addresses that must answer 200; where the body or X-Release names a
    release, it must be the planned one."""

    health: tuple[HttpUrl, ...] = ()
    smoke: SmokeConfig | None = None


class SlackConfig(_Section):
    """Where the team is told. url: only for a stand-in."""

    channel: str
    token: SecretText
    url: HttpUrl = "https://slack.com/api/"


class NotifyConfig(_Section):
    """Channels of the team. owner: under whose name an incident is opened."""

    slack: SlackConfig | None = None
    owner: str = "on-call"


class Config(_Section):
    """The whole file. state: directory of the journal and of what is kept of each release, relative to
    lastgood.yaml. retain: how many releases are kept to go back to; what serves and the last good one always are."""

    version: Literal[1]
    stack: Name
    environment: Name = "production"
    mode: Mode = Mode.OBSERVE
    state: str = ".lastgood"
    retain: Count = 5
    watch: WatchConfig = WatchConfig()
    containers: ContainersConfig | None = None
    process: ProcessConfig | None = None
    database: DatabaseConfig | None = None
    frontend: FrontendConfig | None = None
    verify: VerifyConfig = VerifyConfig()
    notify: NotifyConfig = NotifyConfig()

    @model_validator(mode="after")
    def _one_engine(self) -> Config:
        if (self.containers is None) == (self.process is None):
            message = "expected exactly one of containers and process"
            raise ValueError(message)
        return self


def parse_config(text: str, *, file: str, env: Mapping[str, str], read_file: Callable[[str], str]) -> Config:
    """Parse the text of lastgood.yaml.

    file: named in errors. env: for `${VAR}`. read_file: returns the content behind `file:PATH`; raises OSError, or
    ValueError for what is no text. Raises ConfigError, one line per fault, at most 20, in the order of the file:
    `file:line:column: place: what was expected`. Nothing changed.
    """
    tree = yaml_tree.read(text, file=file)
    reading = _Filling(env=env, read_file=read_file)
    values = reading.filled(tree, place="")
    if reading.faults:
        raise refusal(file, reading.faults)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        found = [fault(tree, Config, e) for e in error.errors(include_url=False, include_input=False)]
        raise refusal(file, found) from None


_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filling:
    """Makes plain values of a tree, with references filled in; what cannot be filled is added to `faults`."""

    env: Mapping[str, str]
    read_file: Callable[[str], str]
    faults: list[Fault] = field(default_factory=list[Fault])

    def filled(self, node: Node, *, place: str) -> object:
        if node.members is not None:
            below = node.members.items()
            return {key: self.filled(member, place=f"{place}.{shown(key)}".lstrip(".")) for key, member in below}
        if node.items is not None:
            return [self.filled(item, place=f"{place}.{index}") for index, item in enumerate(node.items)]
        return self._text(node.value, node.at, place) if isinstance(node.value, str) else node.value

    def _text(self, text: str, at: Place, place: str) -> str:
        if text.startswith("file:"):
            try:
                return self.read_file(text.removeprefix("file:")).rstrip("\n")
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
                self.faults.append(Fault(at, f"{place}: cannot read {shown(text)}: {why}"))
                return ""
        missing = [name for name in _REFERENCE.findall(text) if name not in self.env]
        self.faults.extend(Fault(at, f"{place}: the environment has no {name}") for name in missing)
        return _REFERENCE.sub(lambda m: self.env.get(m[1], ""), text)

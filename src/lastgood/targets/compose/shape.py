"""What kind of thing a service is: whether it answers requests, works on its own, ends by itself or keeps data.

A service is judged by its image, its command, its volumes and its ports together, never by its name: a `web` may be
nginx, a `mysql` MariaDB, a `frontend` Traefik. The surest sign is asked first, and where nothing speaks for a service
that answers requests it is a worker: a worker that is mistaken for a server would work twice, a server that is
mistaken for a worker is recreated in its place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final, cast

from lastgood.targets.compose.project import CALLED_BY, Json, Project


class Kind(StrEnum):
    """What a service does all day."""

    SERVING = "serving"
    """Answers requests of its own accord."""
    WORKER = "worker"
    """Runs all the time and answers nobody: queue workers, schedulers, cron."""
    ONE_SHOT = "one-shot"
    """Ends by itself: migrations, seeders."""
    STATEFUL = "stateful"
    """Its data is its own: never recreated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A service as the ladder sees it.

    why: the sign that decided the kind, one line, lower case. port: the container's port on which it serves HTTP, None
    if it does not, if it speaks something else there, or if the model does not say. alone: why no second copy may run
    beside it, one line each.
    """

    kind: Kind
    why: str
    port: int | None
    alone: tuple[str, ...]


# Servers whose data is their own business. From the images of 50 public compose stacks.
_DATA_SERVERS: Final = frozenset(
    """
    postgres postgresql postgis timescaledb timescaledb-ha pgvector mysql mysql-server mariadb percona mongo mongodb
    redis redis-stack redis-stack-server valkey keydb dragonfly rabbitmq kafka cp-kafka nats zookeeper etcd consul
    vault elasticsearch opensearch clickhouse clickhouse-server influxdb cassandra scylla neo4j qdrant weaviate milvus
    minio couchdb arangodb cockroach memgraph surrealdb meilisearch typesense chroma memcached
    """.split()  # noqa: SIM905 # fifty names read better as a paragraph
)
# They stand in front of a database, declare its port, and keep nothing.
_POOLERS: Final = frozenset({"pgbouncer", "pgpool", "pgcat", "odyssey", "proxysql", "maxscale"})
_DATA_COMMANDS: Final = frozenset(
    """
    postgres mysqld mariadbd mongod redis-server valkey-server rabbitmq-server etcd minio
    clickhouse-server
    """.split()  # noqa: SIM905 # ten names read better as a paragraph
)
_DATA_FOLDERS: Final = (
    *("/var/lib/postgresql", "/var/lib/mysql", "/data/db", "/var/lib/redis", "/var/lib/rabbitmq", "/var/lib/kafka"),
    *("/usr/share/elasticsearch/data", "/var/lib/clickhouse", "/var/lib/influxdb", "/bitnami", "/qdrant/storage"),
)
_DATA_PORTS: Final = frozenset({5432, 3306, 27017, 6379, 5672, 9092, 2379, 9200, 8086, 9042, 7687, 6333})
# A check that asks the server in its own container; one that names another host asks for somebody else.
_DATA_CHECKS: Final = re.compile(
    r"\b(pg_isready|mysqladmin|mariadb-admin|redis-cli|valkey-cli|mongosh?|rabbitmq-diagnostics|cqlsh)\b"
)
_ELSEWHERE: Final = re.compile(r"\s(?:-h\s*|--host[= ])(?!\s|localhost|127\.0\.0\.1|/)")

# Server: its images, the checks that ask it, and where it keeps its data.
_DATABASES: Final[Mapping[str, tuple[frozenset[str], frozenset[str], str]]] = {
    "postgres": (
        frozenset({"postgres", "postgresql", "postgis", "timescaledb", "timescaledb-ha", "pgvector"}),
        frozenset({"pg_isready"}),
        "/var/lib/postgresql",
    ),
    "mariadb": (frozenset({"mariadb"}), frozenset({"mariadb-admin"}), "/bitnami/mariadb"),
    "mysql": (frozenset({"mysql", "mysql-server", "percona"}), frozenset({"mysqladmin"}), "/var/lib/mysql"),
    "mongo": (frozenset({"mongo", "mongodb"}), frozenset({"mongo", "mongosh"}), "/data/db"),
}
_PROXIES: Final = frozenset(
    {"nginx", "traefik", "caddy", "haproxy", "envoy", "openresty", "nginx-proxy", "nginx-proxy-manager", "swag"}
)

_SERVERS: Final = frozenset(
    """
    gunicorn uvicorn hypercorn daphne granian waitress-serve puma unicorn rackup nginx apache2 apache2-foreground httpd
    caddy traefik haproxy envoy php-fpm http-server runserver flower streamlit webserver api-server jupyter
    """.split()  # noqa: SIM905 # twenty names read better as a paragraph
)
_SERVER_IMAGES: Final = frozenset(
    """
    nginx traefik caddy httpd haproxy envoy openresty nginx-unprivileged nginx-proxy swag nginx-proxy-manager
    cloudflared adminer phpmyadmin pgadmin4 grafana prometheus
    """.split()  # noqa: SIM905 # a dozen names read better as a paragraph
)
_WORKERS: Final = frozenset(
    """
    worker workers scheduler beat consumer consume cron crond supercronic ofelia sidekiq resque horizon dramatiq
    huey_consumer celery rqworker rqscheduler poller listener autoheal watchtower
    """.split()  # noqa: SIM905 # twenty names read better as a paragraph
)
_WORK: Final = re.compile(
    r"\b(rq\s+worker|jobs:work|queue:(work|listen)|schedule:(work|run)|messenger:consume|arq\s+\S+Settings"
    r"|while\s+(true|:|\[?\s*1\b)|sleep\s+inf|tail\s+-f\s+/dev/null)"
)
_SERVING_WORDS: Final = frozenset({"serve", "server", "web", "api"})
_TASKS: Final = frozenset(
    """
    migrate migrations migration seed seeder seeds flyway liquibase dbmate chown chmod mkdir cp createsuperuser
    collectstatic loaddata bootstrap setup true createbucket createbuckets goose
    """.split()  # noqa: SIM905 # twenty names read better as a paragraph
)
_TASK: Final = re.compile(r"\b(upgrade\s+heads?|db\s+push|db:(migrate|seed|setup|prepare)|mc\s+mb|exit\s+0)\b")
_ENDS: Final = frozenset({"no", "on-failure"})

# Where something else than plain HTTP is spoken: mail, names, files, queues, databases and their poolers, TLS, logs,
# film, talk, gRPC (50051 by custom, 4317 OpenTelemetry, 7233 Temporal, 19530 Milvus).
_NOT_HTTP: Final = _DATA_PORTS | {
    *(
        21,
        22,
        25,
        53,
        110,
        139,
        143,
        389,
        443,
        445,
        465,
        514,
        554,
        587,
        636,
        853,
        873,
        993,
        995,
        1433,
        1521,
        1883,
        1935,
    ),
    *(2049, 2222, 3389, 4222, 4317, 5044, 5060, 5061, 5222, 5269, 5671, 5900, 6432, 6514, 6667, 7233, 8443, 8554, 8883),
    *(11211, 19530, 24224, 25565, 50051, 61613, 61616),
}
_FAST_CGI: Final = 9000
_OTHER_SERVERS: Final = frozenset(
    """
    eclipse-mosquitto mosquitto openssh-server sftp vsftpd pure-ftpd samba coturn postfix dovecot mailserver
    docker-mailserver bind9 unbound coredns dnsmasq rsyslog syslog-ng minecraft-server
    """.split()  # noqa: SIM905 # twenty names read better as a paragraph
)
_HTTP: Final = frozenset({"http", "http1", "http/1.1"})
# By which others call what an edge cannot carry; `tcp://` is said of anything, and of HTTP as well.
_OTHER_SCHEMES: Final = frozenset(
    """
    grpc grpcs dns h2c https wss mqtt mqtts amqp amqps nats redis rediss smtp smtps ssh sftp ftp ftps ldap ldaps thrift
    rtmp rtsp turn turns stun
    """.split()  # noqa: SIM905 # two dozen names read better as a paragraph
)
_ASKS_GRPC: Final = re.compile(r"\b(?:grpc[_-]health[_-]probe|grpcurl)\b.*?:(?P<port>\d{2,5})(?!\d)")

# Paths that everybody may mount and nobody writes to, although the short form of a mount is writable.
_SYSTEM_PATHS: Final = ("/etc/localtime", "/etc/timezone", "/proc", "/sys", "/dev", "/run/docker.sock", "/var/run")
_SETTINGS: Final = frozenset(
    """
    .conf .cfg .ini .yml .yaml .toml .env .template .tmpl .cnf .pem .crt .key .sh .py .js .php .html .css .xml
    Caddyfile Corefile
    """.split()  # noqa: SIM905 # twenty names read better as a paragraph
)

_OWN: Final = r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\])"
_ASKS_ITSELF: Final = re.compile(rf"(?:(?P<scheme>https?)://)?{_OWN}(?:[: ]\s*(?P<port>\d{{2,5}}))?(?!\d)")
_LISTENS: Final = re.compile(
    r"(?:0\.0\.0\.0|\[::\]|\*):(?P<bound>\d{2,5})\b|--(?:http-|server[.-])?port[= ](?P<port>\d{2,5})\b"
)
_LABEL_PORT: Final = re.compile(r"traefik\.http\.services\.[^.]+\.loadbalancer\.server\.port")
# Labels by which a scheduler has a command run in every container that bears them (README of each, read 2026-11).
_JOBS: Final = ("ofelia.job-", "chadburn.job-", "deck-chores.")
_SQLITE: Final = re.compile(r"sqlite[^:]*:/{3}(?P<path>/?[^?\s]+)|file:(?P<file>[^?\s]+\.(?:db|sqlite3?))")


def shape_of(project: Project, name: str, *, exposed: Collection[int] = ()) -> Shape:
    """Say what a service is. exposed: TCP ports that its image declares, empty when the image is not there yet."""
    kind, why = _kind(project, name, exposed)
    port = _port(project, name, exposed) if kind is Kind.SERVING else None
    return Shape(kind=kind, why=why, port=port, alone=tuple(_alone(project, name)))


def why_stateful(project: Project, name: str, *, exposed: Collection[int] = ()) -> str:
    """Say why a service must never be recreated, empty when nothing speaks for it."""
    image = _image(project, name)
    if image in _DATA_SERVERS:
        return f"its image is {image}"
    service = project.service(name)
    first = PurePosixPath(str(next(iter(service.get("command") or ()), ""))).name
    if first in _DATA_COMMANDS:
        return f"it runs {first}"
    volumes = [str(m["target"]) for m in project.mounts(name) if m.get("type") == "volume"]
    folders = [str(m["target"]) for m in project.mounts(name) if m.get("type") != "tmpfs"]
    if kept := next((f for f in folders if f.startswith(_DATA_FOLDERS)), ""):
        return f"it keeps data in {kept}"
    ports = {*_published(service), *_expose(service)}
    if volumes and (port := next(iter(sorted(ports & _DATA_PORTS)), None)):
        return f"it listens on {port} and keeps a volume at {volumes[0]}"
    check = _check(service)
    if (asks := _DATA_CHECKS.search(check)) and not _ELSEWHERE.search(check):
        return f"its health check is {asks[1]}"
    if (
        image not in _POOLERS
        and not service.get("command")
        and (port := next(iter(sorted(set(exposed) & _DATA_PORTS)), None))
    ):
        return f"its image declares port {port}"
    return ""


def database_server(project: Project, name: str) -> str:
    """Which database a service is a server of, `postgres` for all its kinds; empty when it is none."""
    if not why_stateful(project, name):
        return ""
    check = _DATA_CHECKS.search(_check(project.service(name)))
    folders = [str(mount["target"]) for mount in project.mounts(name)]
    for server, (images, asks, folder) in _DATABASES.items():
        by_check = check is not None and check[1] in asks
        if _image(project, name) in images or by_check or any(f.startswith(folder) for f in folders):
            return server
    return ""


def awaited(project: Project, services: Collection[str]) -> tuple[str, ...]:
    """The services that end before one of `services` starts, or before another of these, in the order in which they
    run. Compose refuses a circle."""
    found: dict[str, None] = {}

    def find(name: str) -> None:
        for other in _ends_before(project, name):
            if other in project.services and other not in services and other not in found:
                find(other)
                found[other] = None

    for name in services:
        if name in project.services:
            find(name)
    return tuple(found)


def what_is_lost(project: Project, name: str) -> str:
    """What a service loses when somebody recreates it, empty when nothing that anybody would miss."""
    mounts = project.mounts(name)
    kept = any(m.get("source") or m.get("type") == "tmpfs" for m in mounts) or project.service(name).get("tmpfs")
    if kept or not why_stateful(project, name) or _image(project, name) == "memcached":
        return ""
    if database_server(project, name):
        return "keeps its data in an anonymous volume: whoever recreates it loses it all"
    return "has no volume: whoever recreates it loses what it holds"


def sqlite_inside(project: Project, name: str) -> str:
    """The SQLite file that the environment names and no mount holds, empty when there is none."""
    folders = [PurePosixPath(str(m["target"])) for m in project.mounts(name)]
    for value in project.environment(name).values():
        if (found := _SQLITE.fullmatch(value)) and (path := found["path"] or found["file"]) and ":memory:" not in path:
            where = PurePosixPath(path)
            if not where.is_absolute():
                where = PurePosixPath(str(project.service(name).get("working_dir") or "/")) / where
            if not any(where.is_relative_to(folder) for folder in folders):
                return path
    return ""


def proxy(project: Project, name: str) -> str:
    """Which proxy a service is, empty when it is none."""
    image, service = _image(project, name), project.service(name)
    return image if image in _PROXIES and service.get("ports") else ""


def found_past_names(project: Project, name: str) -> str:
    """Which proxy asks the engine for the service's containers, by their labels or environment, and sends requests to
    their addresses: whoever takes over the service's name gets none of them. Empty when none does."""
    labels = cast("Mapping[str, str]", project.service(name).get("labels") or {})
    enabled = str(labels.get("traefik.enable", "true")).lower() != "false"
    if enabled and any(key.startswith(("traefik.http.", "traefik.enable")) for key in labels):
        return "traefik"
    if any(re.fullmatch(r"caddy(_\d+)?", key) for key in labels):
        return "caddy"
    given = project.environment(name)
    return "nginx-proxy" if any(given.get(variable) for variable in CALLED_BY) else ""


def exposed_by(image: Json | None) -> tuple[int, ...]:
    """The TCP ports that an image declares, as `inspect` shows it; empty for one that is not there."""
    ports = cast("Mapping[str, object]", (image or {}).get("Config", {}).get("ExposedPorts") or {})
    return tuple(sorted(int(port.split("/")[0]) for port in ports if not port.endswith("/udp")))


def may_end(project: Project, name: str) -> bool:
    """Whether neither the file nor the command says that the service runs all the time."""
    return not restarts(project, name) and not _work(project, name)


def restarts(project: Project, name: str) -> bool:
    """Whether the file says that the service is to run again when it ends well: nobody says that of a task."""
    return project.restart_policy(name).split(":")[0] not in _ENDS


def _kind(project: Project, name: str, exposed: Collection[int]) -> tuple[Kind, str]:
    if reason := why_stateful(project, name, exposed=exposed):
        return Kind.STATEFUL, reason
    if waiting := next(_waiting_for_its_end(project, name), ""):
        return Kind.ONE_SHOT, f"{waiting} waits for its end"
    service, words = project.service(name), _words(project, name)
    if server := next((w for w in words if w in _SERVERS), ""):
        return Kind.SERVING, f"it runs {server}"
    if work := _work(project, name):
        return Kind.WORKER, f"it runs {work}"
    ports = [*_published(service), *_published(service, "udp"), *_expose(service)]
    stays = restarts(project, name) or bool(ports)
    if not stays and (task := _task(project, name)):
        return Kind.ONE_SHOT, f"it runs {task} and is not started again"
    return _serving(project, name, exposed) or _silent(project, name)


def _serving(project: Project, name: str, exposed: Collection[int]) -> tuple[Kind, str] | None:
    service, image = project.service(name), _image(project, name)
    why = ""
    if published := [*_published(service), *_published(service, "udp")]:
        why = f"it publishes port {published[0]}"
    elif port := _label_port(service):
        why = f"a proxy sends it requests on port {port}"
    elif expose := _expose(service):
        why = f"it exposes port {expose[0]}"
    elif _ASKS_ITSELF.search(_check(service)):
        why = "its health check asks a port of its own"
    elif image in _SERVER_IMAGES:
        why = f"its image is {image}"
    elif asked := next(_asked_by(project, name), None):
        why = f"{asked[0]} asks it on port {asked[1]}"
    elif word := next((w for w in _stems(_words(project, name)) if w in _SERVING_WORDS), ""):
        why = f"it runs {word}"
    elif exposed and not (service.get("command") or service.get("entrypoint")):
        why = f"its image declares port {min(exposed)}"
    return (Kind.SERVING, why) if why else None


def _silent(project: Project, name: str) -> tuple[Kind, str]:
    if project.service(name).get("restart") == "no":
        return Kind.ONE_SHOT, "it has no port and is not started again"
    return Kind.WORKER, "nothing shows that it answers requests"


def _port(project: Project, name: str, exposed: Collection[int]) -> int | None:
    """The port on which a serving service answers HTTP, by the surest sign. None rather than a guess."""
    return next((port for port in _ports(project, name, exposed) if port and not not_http(project, name, port)), None)


def not_http(project: Project, name: str, port: int) -> str:
    """What says that a service speaks something else than plain HTTP on a port, empty when nothing does. What the file
    says of the port (`app_protocol`) goes before every sign."""
    service = project.service(name)
    ports = cast("Sequence[Json]", service.get("ports") or ())
    for said in (str(p["app_protocol"]) for p in ports if p["target"] == port and p.get("app_protocol")):
        return "" if said.lower() in _HTTP else f"app_protocol says {said}"
    if port in _NOT_HTTP or (port == _FAST_CGI and _is_php(project, name)):
        return f"{port} is a port of something else"
    if (image := _image(project, name)) in _OTHER_SERVERS:
        return f"its image is {image}"
    check = _check(service)
    if (asks := _ASKS_GRPC.search(check)) and int(asks["port"]) == port:
        return "its health check asks it by gRPC"
    if (asks := _ASKS_ITSELF.search(check)) and asks["scheme"] == "https" and _own_port(check) == port:
        return "its health check asks it by https"
    return next(_called_otherwise(project, name, port), "")


def _called_otherwise(project: Project, name: str, port: int) -> Iterator[str]:
    for variable, value in project.environment(name).items():
        if "GRPC" in variable.upper() and re.search(rf"(?:^|:){port}$", value):
            yield f"its {variable} is that port"
    for call in (c for c in _calls(project, name) if c.port == port):
        if call.scheme in _OTHER_SCHEMES:
            yield f"{call.by} calls it by {call.scheme}"
        elif "GRPC" in call.variable.upper():
            yield f"{call.by} calls it by {call.variable}"


def others_asked(project: Project, name: str, port: int) -> tuple[int, ...]:
    """Further ports of a service that others may ask by its name: those that it exposes, or that their settings say."""
    service = project.service(name)
    asked = {*_expose(service), *(call.port for call in _calls(project, name))}
    return tuple(sorted(asked - {port, *_published(service)}))


def _ports(project: Project, name: str, exposed: Collection[int]) -> Iterator[int | None]:
    service = project.service(name)
    yield _label_port(service)
    published, own = _published(service), _own_port(_check(service))
    yield own if own in published else None
    yield from published
    if published:
        return
    yield from _expose(service)[:1]
    yield own
    if listens := _LISTENS.search(" ".join(project.sentence(name))):
        yield int(listens["bound"] or listens["port"])
    told = project.environment(name).get("PORT", "")
    yield int(told) if told.isdigit() else None
    yield next((port for _, port in _asked_by(project, name)), None)
    yield from exposed if len(exposed) == 1 else ()


def _is_php(project: Project, name: str) -> bool:
    """Whether it is PHP's own server, which speaks FastCGI."""
    return "php-fpm" in _words(project, name) or _image(project, name) == "php"


def _alone(project: Project, name: str) -> Iterator[str]:
    """Say what a second copy would share or take that only one container can have."""
    service = project.service(name)
    for mount in project.mounts(name):
        if _shares(mount):
            kind = "volume" if mount["type"] == "volume" else "path"
            yield f"it may write to {mount['target']}: a second copy would share the {kind} {mount['source']}"
    if path := sqlite_inside(project, name):
        yield f"it keeps its SQLite file {path} in its container: a second copy would have another"
    mode = str(service.get("network_mode") or "")
    if mode == "host" or mode.startswith(("service:", "container:")):
        yield f"it has network_mode {mode}: a second copy would take the same ports"
    for other in project.services:
        if project.service(other).get("network_mode") == f"service:{name}":
            yield f"{other} lives in its network"
    if sources := [str(v) for v in service.get("volumes_from") or () if not str(v).endswith(":ro")]:
        yield f"it may write to the volumes of {', '.join(sources)}"
    if addresses := sorted(_addresses(service)):
        yield f"it has the fixed address {addresses[0]}"
    if datagrams := _published(service, "udp"):
        yield f"it publishes port {datagrams[0]}/udp, which no edge carries"
    if service.get("devices"):
        yield f"it holds the device {_device(service['devices'][0])}"
    if service.get("gpus") or _reserved(service):
        yield "it reserves a device of the host"
    if service.get("privileged"):
        yield "it is privileged"
    yield from _done_by_others(service)


def _done_by_others(service: Json) -> Iterator[str]:
    """Say what somebody else does to every container of a service, or to those alone that compose made."""
    for job in (label for label in service.get("labels") or () if label.startswith(_JOBS)):
        yield f"by its labels {job.partition('.')[0]} runs a job in every copy of it ({job})"
    # The engine knows nothing of them (docs.docker.com/compose/how-tos/lifecycle, compose >= 2.30).
    for hook in ("post_start", "pre_stop"):
        if service.get(hook):
            yield f"it has {hook}, which only compose runs"


def _shares(mount: Json) -> bool:
    """Whether a mount is one folder or file for all copies, and written to. An anonymous volume is each copy's own."""
    if mount.get("read_only") or mount.get("type") not in ("volume", "bind") or not mount.get("source"):
        return False
    if mount["type"] == "volume":
        return True
    source, target = str(mount["source"]), PurePosixPath(str(mount["target"]))
    system = source.startswith(_SYSTEM_PATHS) or source.endswith(".sock")
    return not system and target.suffix.lower() not in _SETTINGS and target.name not in _SETTINGS


def _waiting_for_its_end(project: Project, name: str) -> Iterator[str]:
    return (other for other in project.services if name in _ends_before(project, other))


def _ends_before(project: Project, name: str) -> tuple[str, ...]:
    """The services that have ended well before one starts."""
    needs = cast("Mapping[str, Json]", project.service(name).get("depends_on") or {})
    ends = "service_completed_successfully"
    return tuple(other for other, need in needs.items() if need.get("condition") == ends)


def _work(project: Project, name: str) -> str:
    words = _stems(_words(project, name))
    if word := next((w for w in words if w in _WORKERS), ""):
        return word
    if found := _WORK.search(" ".join(project.sentence(name))):
        return found[0]
    image = _image(project, name)
    return image if image in _WORKERS else ""


def _task(project: Project, name: str) -> str:
    """What the last act of the command is, if it is one that ends."""
    last = re.split(r"&&|;|\|\|", " ".join(project.sentence(name)))[-1]
    if word := next((w for w in _stems(_names(last.split())) if w in _TASKS), ""):
        return word
    if found := _TASK.search(last):
        return found[0]
    image = _image(project, name)
    return image if image in _TASKS else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """An address of a service in the settings of another one. variable: of its environment, empty for its command.
    scheme: before the address, empty where there is none."""

    by: str
    variable: str
    scheme: str
    port: int


def _calls(project: Project, name: str) -> Iterator[_Call]:
    """Every address of a service, with the port in it, that the environment or the command of another one holds."""
    called = "|".join(re.escape(n) for n in project.names(name))
    before = r"(?:\b([a-z][a-z0-9+]*):/+(?:[^\s/@]*@)?|(?<![\w.-]))"
    address = re.compile(rf"{before}(?:{called}):(\d{{2,5}})(?!\d)")
    for other in (s for s in project.services if s != name):
        said = (*project.environment(other).items(), *(("", word) for word in project.sentence(other)))
        for variable, text in said:
            for scheme, port in address.findall(text):
                yield _Call(by=other, variable=variable, scheme=scheme, port=int(port))


def _asked_by(project: Project, name: str) -> Iterator[tuple[str, int]]:
    """The services whose environment or command holds this one's address, with the port in the first of them."""
    first = {call.by: call.port for call in reversed(tuple(_calls(project, name)))}
    yield from ((other, first[other]) for other in project.services if other in first)


def _words(project: Project, name: str) -> tuple[str, ...]:
    return _names(" ".join(project.sentence(name)).split())


def _names(words: Sequence[str]) -> tuple[str, ...]:
    """Programs and arguments without their folders. Options name no program: `--workers 4`, `-server`."""
    return tuple(PurePosixPath(word.strip("\"'();&|")).name for word in words if not word.startswith("-"))


def _stems(words: Sequence[str]) -> Iterator[str]:
    """The words, and what a file or a target of a script is made of: `worker.js`, `run:worker`, `app.worker`."""
    for word in words:
        yield word.lower()
        yield from re.split(r"[^a-z0-9]+", word.lower())


def _image(project: Project, name: str) -> str:
    """The last part of the image's name, without registry, tag and digest."""
    return project.reference(name).split("@")[0].rsplit("/", 1)[-1].split(":")[0].lower()


def _published(service: Json, protocol: str = "tcp") -> list[int]:
    """Container ports that are published, a random host port counted, in the file's order."""
    ports = cast("Sequence[Json]", service.get("ports") or ())
    return [int(p["target"]) for p in ports if p.get("protocol", "tcp") == protocol]


def _expose(service: Json) -> list[int]:
    """Ports that the compose file exposes to other services; of a range the first."""
    exposed = (str(port) for port in service.get("expose") or ())
    firsts = (re.fullmatch(r"(\d+)(?:-\d+)?(?:/tcp)?", port) for port in exposed)
    return [int(first[1]) for first in firsts if first]


def _label_port(service: Json) -> int | None:
    """The port to which the labels tell a proxy to send requests."""
    labels = cast("Mapping[str, str]", service.get("labels") or {})
    found = (value for key, value in labels.items() if _LABEL_PORT.fullmatch(key))
    return next((int(value) for value in found if value.isdigit()), None)


def _check(service: Json) -> str:
    check = cast("Json", service.get("healthcheck") or {})
    return "" if check.get("disable") else " ".join(str(word) for word in check.get("test") or ())


def _own_port(check: str) -> int | None:
    """The port of its own that a health check asks."""
    found = _ASKS_ITSELF.search(check)
    if not found:
        return None
    if found["port"]:
        return int(found["port"])
    return {"http": 80, "https": 443}.get(found["scheme"] or "")


def _addresses(service: Json) -> Iterator[str]:
    for network in cast("Mapping[str, Json | None]", service.get("networks") or {}).values():
        for key in ("ipv4_address", "ipv6_address"):
            if address := (network or {}).get(key):
                yield str(address)


def _device(device: Json | str) -> str:
    return device.split(":")[0] if isinstance(device, str) else str(device.get("source"))


def _reserved(service: Json) -> bool:
    resources = cast("Json", cast("Json", service.get("deploy") or {}).get("resources") or {})
    return bool(cast("Json", resources.get("reservations") or {}).get("devices"))

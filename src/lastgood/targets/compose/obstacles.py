"""What in a compose project keeps a service from going back by its image, and which services are stateful.

A service is judged by its image, its command, its volumes and its ports together, never by its name: a `web` may be
nginx, a `mysql` MariaDB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from lastgood.targets.compose.project import Json, Project

# Servers whose data is their own business. From the images of 50 public compose stacks.
_DATA_SERVERS: Final = frozenset(
    """
    postgres postgresql postgis timescaledb pgvector mysql mariadb percona mongo mongodb redis valkey
    keydb dragonfly rabbitmq kafka nats zookeeper etcd consul vault elasticsearch opensearch clickhouse
    clickhouse-server influxdb cassandra scylla neo4j qdrant weaviate milvus minio couchdb arangodb
    cockroach memgraph surrealdb
    """.split()  # noqa: SIM905 # forty names read better as a paragraph
)
_DATA_COMMANDS: Final = frozenset(
    """
    postgres mysqld mariadbd mongod redis-server valkey-server rabbitmq-server etcd minio
    clickhouse-server
    """.split()  # noqa: SIM905 # forty names read better as a paragraph
)
_DATA_FOLDERS: Final = (
    *("/var/lib/postgresql", "/var/lib/mysql", "/data/db", "/var/lib/redis", "/var/lib/rabbitmq", "/var/lib/kafka"),
    *("/usr/share/elasticsearch/data", "/var/lib/clickhouse", "/var/lib/influxdb", "/bitnami", "/qdrant/storage"),
)
_DATA_PORTS: Final = frozenset({5432, 3306, 27017, 6379, 5672, 9092, 2379, 9200, 8086, 9042, 7687, 6333})

_CODE: Final = frozenset(
    """
    .py .js .mjs .cjs .ts .tsx .jsx .vue .svelte .html .css .rb .php .go .rs .java .kt .scala .clj .cs .ex .exs
    .pl .lua .sh .jar .war .wasm
    """.split()  # noqa: SIM905 # forty names read better as a paragraph
)
_LOOKED_AT_MOST: Final = 5000


def why_stateful(project: Project, name: str) -> str:
    """Say why a service must never be recreated, empty when nothing speaks for it."""
    image = project.reference(name).split("@")[0].rsplit("/", 1)[-1].split(":")[0].lower()
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
    ports = {int(p["target"]) for p in service.get("ports") or ()} | {
        int(str(p).split("/")[0]) for p in service.get("expose") or () if str(p).split("/")[0].isdigit()
    }
    if volumes and (port := next(iter(sorted(ports & _DATA_PORTS)), None)):
        return f"it listens on {port} and keeps a volume at {volumes[0]}"
    return ""


def obstacles(project: Project, name: str, *, root: Path, boot_s: float) -> Iterator[str]:
    """Say what keeps a service from being rolled back by its image, one line each. root: folder of the checkout."""
    if reason := why_stateful(project, name):
        yield f"{name} is stateful ({reason}) and is never recreated: take it out of containers.services"
    checkout = _checkout(root)
    for mount in project.mounts(name):
        source = Path(str(mount.get("source", "")))
        ours = source.is_relative_to(checkout) or checkout.is_relative_to(source)
        if mount.get("type") == "bind" and ours and (file := _code_in(source)):
            yield (
                f"{name} runs code from a bind mount ({source} on {mount['target']}, {file}): an image that goes back "
                "would not take it along; copy it into the image"
            )
    service = project.service(name)
    mode = str(service.get("network_mode") or "")
    if mode == "host" or mode.startswith(("service:", "container:")):
        yield f"{name} has network_mode {mode}: no candidate can be started beside it"
    if service.get("volumes_from"):
        yield f"{name} has volumes_from: its data is another container's"
    for kind, key, origin in project.unkept(name):
        yield f"{name} takes its {kind} {key} from {origin}, which no release keeps: put it in a file"
    yield from missing_files(project, name)
    if slow := slow_to_start(project, name, boot_s=boot_s, of_image={}):
        yield slow


def slow_to_start(project: Project, name: str, *, boot_s: float, of_image: Json) -> str:
    """Say that a service may take longer to start than it would be waited for, empty when it may not. of_image: the
    health check in its image, which counts for what the compose file leaves open."""
    period_s = project.start_period_s(name)
    if not period_s and not project.has_no_health_check(name):
        period_s = float(of_image.get("StartPeriod") or 0) / 1e9
    if period_s <= boot_s:
        return ""
    return f"{name} may take {period_s:.0f} s to start (start_period), containers.boot is {boot_s:.0f} s: raise it"


def missing_files(project: Project, name: str) -> Iterator[str]:
    """Say which secrets and configs of a service are files that are not there (any more)."""
    for kind, key, path in project.files(name):
        if not Path(path).exists():
            yield f"{kind} {key} of {name} is gone: there is no {path}"


def _checkout(root: Path) -> Path:
    """The folder of the whole repository: a compose file may lie below it and mount what lies beside."""
    return next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), root)


def _code_in(source: Path) -> str:
    """Name one file of code in a path, empty when there is none among the first few thousand."""
    if source.is_file():
        return source.name if source.suffix in _CODE else ""
    looked = 0
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        if found := next((f for f in sorted(files) if Path(f).suffix in _CODE), None):
            return str((Path(folder) / found).relative_to(source))
        looked += len(files)
        if looked > _LOOKED_AT_MOST:
            break
    return ""

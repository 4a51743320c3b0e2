"""What in a compose project keeps a service from going back by its image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lastgood.targets.compose.project import Json, Project
from lastgood.targets.compose.shape import sqlite_inside, why_stateful

_CODE: Final = frozenset(
    """
    .py .js .mjs .cjs .ts .tsx .jsx .vue .svelte .html .css .rb .php .go .rs .java .kt .scala .clj .cs .ex .exs
    .pl .lua .sh .jar .war .wasm
    """.split()  # noqa: SIM905 # forty names read better as a paragraph
)
# What only one process can talk to at a time: serial lines and sticks.
_ONE_HOLDER: Final = ("/dev/tty", "/dev/serial", "/dev/bus/usb", "/dev/usb")
_LOOKED_AT_MOST: Final = 5000


def obstacles(project: Project, name: str, *, root: Path, boot_s: float) -> Iterator[str]:
    """Say what keeps a service from being rolled back by its image, one line each. root: folder of the checkout."""
    if reason := why_stateful(project, name):
        yield f"{name} is stateful ({reason}) and is never recreated: take it out of containers.services"
    for code in bound_code(project, name, root=root):
        if code.why_not:
            yield (
                f"{name} runs code from a bind mount ({code.source} on {code.inside}, {code.file}), and no release can "
                f"keep a copy of it: {code.why_not}; copy it into the image, or mount it read-only (:ro)"
            )
    service = project.service(name)
    if project.instances(name) == 0:
        yield f"{name} is asked for in no container (scale or replicas: 0): take it out of containers.services"
    yield from _shared_namespaces(project, name)
    if path := sqlite_inside(project, name):
        yield f"{name} keeps its SQLite file {path} in its container and would lose it when recreated: give it a volume"
    for device in service.get("devices") or ():
        if (path := str(device.get("source"))).startswith(_ONE_HOLDER):
            yield f"{name} holds the device {path}: a candidate beside it would take it"
    if service.get("volumes_from"):
        yield f"{name} has volumes_from: its data is another container's"
    for kind, key, origin in project.unkept(name):
        yield f"{name} takes its {kind} {key} from {origin}, which no release keeps: put it in a file"
    yield from missing_files(project, name)
    if slow := slow_to_start(project, name, boot_s=boot_s, of_image={}):
        yield slow


def _shared_namespaces(project: Project, name: str) -> Iterator[str]:
    service = project.service(name)
    mode = str(service.get("network_mode") or "")
    if mode == "host" or mode.startswith(("service:", "container:")):
        yield f"{name} has network_mode {mode}: no candidate can be started beside it"
    for kind in ("ipc", "pid"):
        if (shared := str(service.get(kind) or "")).startswith(("service:", "container:")):
            yield f"{name} has {kind} {shared}: no candidate can be started beside it"
    for other in project.services:
        theirs = project.service(other)
        if theirs.get("network_mode") == f"service:{name}":
            yield f"{other} lives in the network of {name} and would be cut off when {name} is recreated"
        for kind in ("ipc", "pid"):
            if theirs.get(kind) == f"service:{name}":
                yield f"{other} has {kind} service:{name} and would be cut off when {name} is recreated"


def slow_to_start(project: Project, name: str, *, boot_s: float, of_image: Json) -> str:
    """Say that a service may take longer to start than it would be waited for, empty when it may not. of_image: the
    health check in its image, which counts for what the compose file leaves open."""
    period_s = project.start_period_s(name)
    if not period_s and not project.has_no_health_check(name):
        period_s = float(of_image.get("StartPeriod") or 0) / 1e9
    if period_s <= boot_s:
        return ""
    return f"{name} may take {period_s:.0f} s to start (start_period), containers.boot is {boot_s:.0f} s: raise it"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCode:
    """Code that a service has from the checkout. source: on this host. inside: in the container. file: one of its
    files. relative: of the source, to the checkout. why_not: why a release cannot have a copy of its own; empty when it
    can."""

    source: Path
    inside: str
    file: str
    relative: str
    why_not: str


def bound_code(project: Project, name: str, *, root: Path) -> Iterator[BoundCode]:
    """Find the bind mounts by which a service runs code of the checkout. root: folder of lastgood.yaml."""
    checkout = _checkout(root)
    for mount in project.mounts(name):
        source = _on_host(mount)
        ours = source.is_relative_to(checkout) or checkout.is_relative_to(source)
        if mount.get("type") != "bind" or not ours or not (file := _code_in(source)):
            continue
        within = source.is_relative_to(checkout)
        yield BoundCode(
            source=source,
            inside=str(mount["target"]),
            file=file,
            relative=str(source.relative_to(checkout)) if within else str(source),
            why_not=_why_not_copied(project, mount) if within else "it holds more than the checkout",
        )


def _why_not_copied(project: Project, mount: Json) -> str:
    """A copy is what the service sees only while nobody writes there: else rows of a file, or uploads, would be left
    behind in the copy of a release that was left."""
    if not mount.get("read_only"):
        return "the service may write there"
    source = _on_host(mount)
    for other in project.services:
        for theirs in project.mounts(other):
            at = _on_host(theirs)
            overlap = source.is_relative_to(at) or at.is_relative_to(source)
            if theirs.get("type") == "bind" and not theirs.get("read_only") and overlap:
                return f"{other} may write there ({at})"
    return ""


def _on_host(mount: Json) -> Path:
    return Path(str(mount.get("source", "")).replace("$$", "$"))


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

"""What is saved of the containers before anything is changed: their logs and what inspect shows, without secrets."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from lastgood.core.facts import ServiceLog
from lastgood.core.secret import MASK
from lastgood.targets.compose.engine import Container, Engine
from lastgood.targets.compose.kept import write_private
from lastgood.targets.masking import Masker

LOG_LINES: Final = 2000
FILE_LIMIT_BYTES: Final = 8 * 1024 * 1024


def save_evidence(engine: Engine, containers: tuple[Container, ...], into: Path) -> tuple[str, ...]:
    """Save the last 2,000 log lines and the inspect output of each container, 0600; return the files' names."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    saved: list[str] = []
    for container in containers:
        masker = Masker([container.environment])
        # Before it is JSON: a quote or an umlaut in a secret would be written in another way there.
        shown = json.dumps(_cleaned(_masked(container), masker), indent=1, sort_keys=True)
        # The newest lines are at the end.
        log = engine.logs(container.id, lines=LOG_LINES).encode()[-FILE_LIMIT_BYTES:].decode(errors="replace")
        for name, text in ((f"{container.name}.log", masker.clean(log)), (f"{container.name}.inspect.json", shown)):
            (into / name).unlink(missing_ok=True)
            write_private(into / name, text.encode())
            saved.append(name)
    return tuple(saved)


def logs_of(engine: Engine, containers: tuple[Container, ...], since: datetime) -> tuple[ServiceLog, ...]:
    """Return what each container wrote since then, its last 2,000 lines, without secrets."""
    return tuple(
        ServiceLog(
            service=container.service,
            release=container.facts().release,
            lines=tuple(
                Masker([container.environment])
                .clean(engine.logs(container.id, lines=LOG_LINES, since=since))
                .splitlines()
            ),
            addresses=container.addresses,
            # it is told to the second, and an address goes from one container to the next
            since=container.started_at + timedelta(seconds=1),
        )
        for container in containers
    )


def _cleaned(value: object, masker: Masker) -> object:
    """The same tree with every text in it cleaned."""
    if isinstance(value, str):
        return masker.clean(value)
    if isinstance(value, dict):
        pairs = cast("dict[str, object]", value).items()
        return {masker.clean(name): _cleaned(inner, masker) for name, inner in pairs}
    if isinstance(value, list):
        return [_cleaned(inner, masker) for inner in cast("list[object]", value)]
    return value


def _masked(container: Container) -> dict[str, Any]:
    config = cast("dict[str, Any]", container.shown["Config"])
    names = [pair.split("=", 1)[0] for pair in cast("list[str]", config.get("Env") or [])]
    return {**container.shown, "Config": {**config, "Env": [f"{name}={MASK}" for name in names]}}

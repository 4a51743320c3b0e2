"""Where the docker client finds its engine, so that everything else asks the same one.

The SDK knows nothing of contexts: images would be built on one engine, and looked for on another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from lastgood.core.errors import Refused

_HERE: Final = "unix://"


def docker_host(env: Mapping[str, str]) -> str:
    """The engine's address, empty for the client's own default.

    DOCKER_HOST, else that of the context that DOCKER_CONTEXT or `docker context use` names (docker CLI 28,
    cli/command/cli.go, resolveContextName). Raises Refused for a context that is not there or leads to another
    host: what it takes to get there, a key or a certificate, is the client's own.
    """
    if named := env.get("DOCKER_HOST"):
        return named
    folder = _settings(env)
    context = env.get("DOCKER_CONTEXT") or (str(_read(folder / "config.json").get("currentContext") or ""))
    if context in ("", "default"):
        return ""
    # docker CLI 28, cli/context/store: a context lies under the hash of its name
    found = _read(folder / "contexts" / "meta" / hashlib.sha256(context.encode()).hexdigest() / "meta.json")
    endpoints = cast("dict[str, Any]", found.get("Endpoints") or {})
    host = str(cast("dict[str, Any]", endpoints.get("docker") or {}).get("Host") or "")
    if not host:
        raise Refused(f"there is no docker context {context}", hint="docker context ls")
    if not host.startswith(_HERE):
        raise Refused(
            f"the docker context {context} leads to {host}; an engine of another host is reached by DOCKER_HOST only",
            hint=f"export DOCKER_HOST={host}",
        )
    return host


def _settings(env: Mapping[str, str]) -> Path:
    return Path(env["DOCKER_CONFIG"]) if env.get("DOCKER_CONFIG") else Path(env.get("HOME") or "/") / ".docker"


def _read(file: Path) -> dict[str, Any]:
    """What stands in a file of the client's; nothing where it cannot be read, as the client has it."""
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", read) if isinstance(read, dict) else {}

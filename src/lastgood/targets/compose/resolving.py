"""Resolving compose files: what `docker compose config` makes of them, and which values it would need that nobody gave.

A value that is missing is never guessed. Compose itself puts an empty text in its place, or stops at the first one that
the file demands; here every one of them is named, with the services and keys that wait for it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, cast

from lastgood.core.errors import Refused, Retryable
from lastgood.targets import child
from lastgood.targets.compose.commands import Words, without_values
from lastgood.targets.compose.project import Json, Project
from lastgood.targets.masking import Masker, dotenv_values

RESOLVE_S: Final = 30.0
_ERROR_LINES: Final = 12
_LOOK: Final = ("config", "--quiet")
_NAMED_AT_MOST: Final = 12
_PLACES_AT_MOST: Final = 3

# Compose 2.26 and 2.40: `level=warning msg="The \"NAME\" variable is not set. Defaulting to a blank string."`. There
# is no exit code for it, and a blank password is no configuration.
_UNSET: Final = re.compile(r'The \\?"([A-Za-z_][A-Za-z0-9_]*)\\?" variable is not set')

# compose-spec, "Interpolation": `$NAME`, `${NAME}` and `${NAME:?why}` have no value of their own; `$$` is a dollar.
_WANTED: Final = re.compile(
    r"\$\$|\$(?P<bare>[A-Za-z_]\w*)|\$\{(?P<plain>[A-Za-z_]\w*)\}|\$\{(?P<needed>[A-Za-z_]\w*)(?P<filled>:?)\?"
)


def resolve(words: Words, *, env: Mapping[str, str], env_file: Path) -> Project:
    """Run `words` (`docker compose ... config --format json`) and read what it prints. env_file: what compose reads
    variables from beside `env`; it need not be there.

    Raises Refused with compose's own words, and with every value that is missing.
    """
    given = dotenv_values(env_file.read_text(encoding="utf-8", errors="replace")) if env_file.is_file() else {}
    ended = _run(words, env)
    unset = set(_UNSET.findall(ended.err))
    if ended.code == 0 and not unset:
        return Project.parse(ended.out, hint=shlex.join(words))
    raw = _run(without_values(words), env)
    missing = dict(_missing(raw.out, {**given, **env}, unset)) if raw.code == 0 else dict.fromkeys(unset, ())
    unknown = f"unknown, needs {env_file.name}: {_listed(missing)}" if missing else ""
    if ended.code == 0:
        raise Refused(
            f"the compose file uses variables that are not set; {unknown}",
            hint=f"set {min(unset)} in {env_file}, empty if that is meant",
        )
    said = Masker([env, given]).tail(ended.err, lines=_ERROR_LINES)
    raise Refused(
        f"the compose file cannot be used: {said}" + (f"; {unknown}" if unknown else ""),
        hint=f"set {min(missing)} in {env_file}" if missing else shlex.join([*words[: words.index("config")], *_LOOK]),
    )


def _run(words: Words, env: Mapping[str, str]) -> child.Ended:
    try:
        return child.run(words, deadline_s=RESOLVE_S, env=env)
    except child.Overran as error:
        raise Retryable(str(error), delay_s=2.0, hint="docker version") from error
    except FileNotFoundError as error:
        raise Refused(
            "there is no docker client with compose on this machine", hint="docker compose version"
        ) from error


def _missing(text: str, given: Mapping[str, str], unset: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Variables without a value, and where the files use them: `service key`."""
    model = cast("Json", json.loads(text))
    found: dict[str, list[str]] = {name: [] for name in sorted(unset)}
    for place, value in _places(model):
        for wanted in _WANTED.finditer(value):
            needed = wanted["needed"]
            name = needed or wanted["bare"] or wanted["plain"]
            absent = name not in given or (needed and wanted["filled"] and not given[name])
            if name and absent and place not in found.setdefault(name, []):
                found[name].append(place)
    yield from ((name, tuple(places)) for name, places in found.items())


def _places(model: Json) -> Iterator[tuple[str, str]]:
    for name, service in cast("Json", model.get("services") or {}).items():
        for key, value in cast("Json", service).items():
            if key == "environment" and isinstance(value, dict):
                for variable, given in cast("Json", value).items():
                    yield from ((f"{name} {key}.{variable}", text) for text in _texts(given))
            else:
                yield from ((f"{name} {key}", text) for text in _texts(value))
    for kind in ("networks", "volumes", "secrets", "configs"):
        for name, defined in cast("Json", model.get(kind) or {}).items():
            yield from ((f"{kind}.{name}", text) for text in _texts(defined))


def _texts(value: object) -> Iterator[str]:
    """Every text in a tree of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in cast("Json", value).values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _texts(item)


def _listed(missing: Mapping[str, tuple[str, ...]]) -> str:
    shown = [
        f"{name} ({_few(places, _PLACES_AT_MOST)})" if places else name for name, places in sorted(missing.items())
    ]
    return _few(tuple(shown), _NAMED_AT_MOST)


def _few(items: tuple[str, ...], most: int) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more

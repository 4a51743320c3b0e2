"""A probe that asks a feature to do its work and looks at what came back: a `/health` that says 200 proves nothing.

A feature that refuses the connection did not do its work, so that is a failed probe and not a source that is down.
Only when this machine itself could not ask is nothing known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from lastgood.core.config import ProbeConfig
from lastgood.core.errors import ConfigError
from lastgood.core.reading import Probed, Reading, SourceDown, Window
from lastgood.wire.asking import Answer, NoAnswer, ask
from lastgood.wire.foreign_text import one_line, place

MAX_BYTES: Final = 1 << 20
LONGEST_S: Final = 4.8
"""A source has 5 s; a probe that was given more is cut here."""
PRESENT: Final = "present"


class Probe:
    """core.ports.SignalSource for one feature. Raises ConfigError when its JSON cannot be sent."""

    def __init__(self, name: str, config: ProbeConfig) -> None:
        self._name = name
        self._config = config
        self._method, self._url = ("POST", config.post) if config.post is not None else ("GET", config.get or "")
        self._body = _encoded(name, config.json_body)

    @property
    def name(self) -> str:
        return self._name

    def read(self, window: Window) -> Reading:
        del window  # a probe is about now
        answer = ask(
            self._method,
            self._url,
            deadline_s=min(self._config.timeout, LONGEST_S),
            max_bytes=MAX_BYTES,
            json=self._body,
        )
        if isinstance(answer, NoAnswer) and answer.own:
            return SourceDown(reason=f"cannot ask: {answer.reason}")
        fault = answer.reason if isinstance(answer, NoAnswer) else self._fault(answer)
        if fault:
            return Probed(asked=1, failed=1, detail=one_line(f"{self._method} {place(self._url)}: {fault}"))
        return Probed(asked=1, failed=0)

    def _fault(self, answer: Answer) -> str:
        """Say how the answer differs from what was expected; empty when it does not."""
        if answer.status != self._config.status:
            return f"answered {answer.status}, expected {self._config.status}"
        if not self._config.expect:
            return ""
        try:
            body = json.loads(answer.body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return "the answer is not JSON"
        return next(_differences(body, self._config.expect), "")


def _differences(body: object, expect: Mapping[str, Any]) -> Iterator[str]:
    for path, wanted in expect.items():
        try:
            found = _at(body, path)
        except LookupError:
            yield f"{path} is missing"
            continue
        if wanted == PRESENT:
            if found is None or found in ("", [], {}):
                yield f"{path} is empty"
        elif found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
            yield f"{path} is {_shown(found)}, expected {_shown(wanted)}"


def _at(body: object, path: str) -> object:
    """Go down the dotted path; a number is a place in a list. Raises LookupError when it leads nowhere."""
    found = body
    for part in path.split("."):
        if isinstance(found, dict):
            found = cast("dict[str, object]", found)[part]
        elif isinstance(found, list) and part.isdecimal():
            found = cast("Sequence[object]", found)[int(part)]
        else:
            raise LookupError(part)
    return found


def _encoded(name: str, body: object) -> bytes | None:
    if body is None:
        return None
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"watch.triggers.{name}.probe.json: cannot be sent as JSON: {error}") from error


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _shown(value: object) -> str:
    return one_line(json.dumps(value), 60)

"""The health addresses: each must answer 200, and where the answer names a release it must be an expected one.

Smoke tests that pass on the instance of another release prove nothing, so the name matters as much as the status.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Final, cast

from lastgood.core.report import Check
from lastgood.wire.asking import Answer, NoAnswer, ask
from lastgood.wire.foreign_text import one_line, place

MAX_BYTES: Final = 1 << 20


class HealthAddresses:
    """core.ports.Checker over `urls`. timeout_s: for each of them, whole answer included."""

    def __init__(self, urls: Sequence[str], timeout_s: float = 5.0) -> None:
        self._urls = tuple(urls)
        self._timeout_s = timeout_s

    def named(self) -> tuple[str, ...]:
        answers = [self._ask(url) for url in self._urls]
        return tuple(sorted({n for a in answers if isinstance(a, Answer) and a.status == 200 for n in _releases(a)}))

    def _ask(self, url: str) -> Answer | NoAnswer:
        return ask("GET", url, deadline_s=self._timeout_s, max_bytes=MAX_BYTES)

    def run(self, names: Collection[str]) -> tuple[Check, ...]:
        checks: list[Check] = []
        for url in self._urls:
            answer = self._ask(url)
            fault = answer.reason if isinstance(answer, NoAnswer) else _fault(answer, names)
            name = "health" if len(self._urls) == 1 else f"health {place(url)}"
            checks.append(
                Check(name=name, passed=not fault, detail=one_line(f"{place(url)}: {fault}") if fault else "")
            )
        return tuple(checks)


def _fault(answer: Answer, names: Collection[str]) -> str:
    if answer.status != 200:
        return f"answered {answer.status}, expected 200"
    expected = " or ".join(sorted(names))
    return next((f"release {n} answers, expected {expected}" for n in _releases(answer) if n not in names), "")


def _releases(answer: Answer) -> list[str]:
    """The releases that the answer names: in X-Release, and as `release` of a JSON body."""
    named = [answer.headers["x-release"]] if "x-release" in answer.headers else []
    try:
        body: object = json.loads(answer.body)
    except (ValueError, RecursionError):
        return named
    if isinstance(body, dict) and "release" in body:
        named.append(str(cast("dict[str, object]", body)["release"]))
    return named

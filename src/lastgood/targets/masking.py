"""Keeps secrets and terminal tricks out of what this target says: error messages, logs and inspect output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote

from lastgood.core.secret import MASK, Secret

# A value is taken for a secret by its variable's name, or by standing before the @ of an address.
_SECRET_NAME: Final = re.compile(
    r"PASS|SECRET|TOKEN|KEY|CREDENTIAL|PRIVATE|AUTH|DSN|COOKIE|SALT|WEBHOOK|CERT", re.IGNORECASE
)
_USERINFO: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://[^\s:/@]*:)(?P<password>[^\s@]+)@", re.IGNORECASE)
_SHORTEST: Final = 4

# C0 and C1 but for newline and tab, and the marks that turn text around.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Masker:
    """Knows the secret values of some environments and takes them out of text."""

    def __init__(self, environments: Iterable[Mapping[str, str]]) -> None:
        found: set[str] = set()
        for environment in environments:
            for name, value in environment.items():
                found.update(_secrets_in(name, value))
        # The longest first: a secret may be a part of another.
        self._secrets = tuple(Secret(text) for text in sorted(found, key=len, reverse=True))

    def clean(self, text: str) -> str:
        """Return `text` without known secrets, passwords in addresses and control characters."""
        for secret in self._secrets:
            text = secret.hidden_in(text)
        return _CONTROL.sub("", _USERINFO.sub(rf"\g<scheme>{MASK}@", text))

    def tail(self, text: str, *, lines: int = 5, width: int = 240) -> str:
        """Return the last lines of `text`, cleaned, in one line."""
        last = [line.strip() for line in self.clean(text).splitlines() if line.strip()][-lines:]
        return " | ".join(line[:width] for line in last)


def _secrets_in(name: str, value: str) -> set[str]:
    found = {value} if _SECRET_NAME.search(name) else set[str]()
    for match in _USERINFO.finditer(value):
        found |= {match["password"], unquote(match["password"])}
    return {text for text in found if len(text) >= _SHORTEST}


def dotenv_values(text: str) -> dict[str, str]:
    """Read NAME=VALUE lines well enough to know what to mask; compose itself reads the file for real."""
    pairs = (line.removeprefix("export ").partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, equals, value in pairs if equals}

"""Text that somebody else wrote, made fit for one line of a report: no control, escape or direction characters."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

LIMIT: Final = 200


def one_line(text: str, limit: int = LIMIT) -> str:
    """Return the text on one line, what does not print left out, cut to `limit` characters."""
    # looked at only as far as it can matter: the text may be megabytes
    shown = "".join(c if c.isprintable() else " " for c in text[: limit * 10])
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def place(url: str) -> str:
    """Return the address without user, password, query and fragment, which may be secrets."""
    parts = urlsplit(url)
    return one_line(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")

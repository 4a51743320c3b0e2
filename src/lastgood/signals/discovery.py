"""Which of some local ports answer a health check or show request metrics: for `lastgood init`. One GET each."""

from __future__ import annotations

from typing import Final

from lastgood.signals.metrics_page import MAX_BYTES, REQUESTS
from lastgood.wire.asking import NoAnswer, ask

DEADLINE_S: Final = 2.0
HEALTH_PATHS: Final = ("/health", "/healthz", "/api/health")
_OK: Final = 200


def health_address(port: int) -> str | None:
    """Return the first usual health address on this port that answers 200, None when there is none."""
    addresses = [f"http://127.0.0.1:{port}{path}" for path in HEALTH_PATHS]
    return next((address for address in addresses if _get(address) is not None), None)


def metrics_address(port: int) -> str | None:
    """Return the metrics page on this port when it counts requests, else None."""
    address = f"http://127.0.0.1:{port}/metrics"
    return address if REQUESTS.encode() in (_get(address) or b"") else None


def _get(address: str) -> bytes | None:
    answer = ask("GET", address, deadline_s=DEADLINE_S, max_bytes=MAX_BYTES)
    return None if isinstance(answer, NoAnswer) or answer.status != _OK else answer.body

"""A metrics page on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lastgood.signals.metrics_page import MetricsPage
from tests.contract.rigs.sources import Act, Rigs, SourceRig
from tests.signals.loopback import answer, drip_body, drip_headers, flood, hang, loopback


@contextmanager
def metrics_page_rig() -> Iterator[SourceRig]:
    text = (
        'http_requests_total{handler="/a",status="200"} 5\n'
        'http_request_duration_seconds_bucket{handler="/a",le="0.5"} 5\n'
        'http_request_duration_seconds_count{handler="/a"} 5\n'
    )
    with loopback(answer(text)) as server:

        def reply(what: object) -> Act:
            return lambda: setattr(server, "reply", what)

        yield SourceRig(
            source=MetricsPage("the source", [f"{server.url}/metrics"], ("/health",), 0.5),
            troubles={
                "away": reply(b""),
                "hangs": reply(hang),
                "drips": reply(drip_body),
                "drips-headers": reply(drip_headers),
                "floods": reply(flood),
                "nonsense": reply(answer(b"\xff\x00{{{")),
                "not-http": reply(b"\x00" * 100 + b"\r\n"),
                "error": reply(answer(text, status=500)),
                "elsewhere": reply(answer("", status=302, headers=f"location: {server.url}/other\r\n")),
                "not-numbers": reply(answer(text.replace(" 5", " NaN"))),
            },
            footprint=lambda: [line for line, _ in server.requests if line != "GET /metrics HTTP/1.1"],
            counting=True,
        )


RIGS: Rigs = {"metrics-page": metrics_page_rig}

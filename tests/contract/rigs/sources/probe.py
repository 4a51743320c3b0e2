"""A feature on loopback that does its work when asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lastgood.core.config import ProbeConfig
from lastgood.signals.probe import Probe
from tests.contract.rigs.sources import Act, Rigs, SourceRig
from tests.signals.loopback import answer, drip_body, drip_headers, flood, hang, loopback


@contextmanager
def probe_rig() -> Iterator[SourceRig]:
    with loopback(answer('{"status": "completed"}')) as server:

        def reply(what: object) -> Act:
            return lambda: setattr(server, "reply", what)

        asking = ("POST /execute HTTP/1.1", b'{"task": "ping"}')
        settings = {"post": f"{server.url}/execute", "json": {"task": "ping"}, "expect": {"status": "completed"}}
        yield SourceRig(
            source=Probe("the source", ProbeConfig.model_validate({**settings, "timeout": "300ms"})),
            troubles={
                "away": reply(b""),
                "hangs": reply(hang),
                "drips": reply(drip_body),
                "drips-headers": reply(drip_headers),
                "floods": reply(flood),
                "nonsense": reply(answer(b"\xff\x00{{{")),
                "deep": reply(answer("[" * 500_000)),
                "not-http": reply(b"\x00" * 100 + b"\r\n"),
                "error": reply(answer('{"status": "completed"}', status=500)),
                "elsewhere": reply(answer("", status=302, headers=f"location: {server.url}/other\r\n")),
            },
            footprint=lambda: [asked for asked in server.requests if asked != asking],
        )


RIGS: Rigs = {"probe": probe_rig}

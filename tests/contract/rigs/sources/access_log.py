"""An access log in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from lastgood.core.config import LogFormat
from lastgood.signals.access_log import MAX_BYTES, AccessLog
from tests.contract.rigs.sources import Act, Rigs, SourceRig

NEEDS_SERVER = False
LINES = {
    LogFormat.COMBINED: '10.0.0.1 - - [01/Jan/2026:00:00:00 +0000] "GET /a HTTP/1.1" 200 12 "-" "curl/8"',
    LogFormat.COMBINED_TIMED: '10.0.0.1 - - [01/Jan/2026:00:00:00 +0000] "GET /a HTTP/1.1" 200 12 "-" "curl/8" 0.010',
    LogFormat.HAPROXY: "Jan  1 00:00:00 host haproxy[7]: 10.0.0.1:4711 [01/Jan/2026:00:00:00.000] web core/c1 "
    '0/0/1/9/10 200 12 - - ---- 1/1/0/0/0 0/0 "GET /a HTTP/1.1"',
}


@contextmanager
def access_log_rig(log_format: LogFormat) -> Iterator[SourceRig]:
    limit_s = 0.5 if log_format.timed else None
    with TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_text(LINES[log_format] + "\n")

        def add(what: bytes) -> Act:
            def act() -> None:
                with log.open("ab") as file:
                    file.write(what)

            return act

        def gone() -> None:
            log.unlink()

        def replaced() -> None:
            other = Path(folder, "other")
            other.write_text(LINES[log_format] + "\n")
            other.rename(log)

        yield SourceRig(
            source=AccessLog("the source", log, log_format, ("/health",), limit_s),
            troubles={
                "nonsense": add(b"\xff\x00{{{\n"),
                "not-numbers": add(LINES[log_format].replace(" 200 ", " NaN ").encode() + b"\n"),
                "no-end-of-line": add(b"\x00" * 100_000),
                "floods": add(LINES[log_format].encode() * (MAX_BYTES // 50)),
                "replaced": replaced,
                "away": gone,
                "a-folder": log.mkdir,
            },
            footprint=lambda: (
                [(p, p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in log.parent.iterdir()]
                + [len(list(Path("/proc/self/fd").iterdir()))]
            ),
            counting=True,
        )


RIGS: Rigs = {f"access-log-{log_format.value}": partial(access_log_rig, log_format) for log_format in LogFormat}

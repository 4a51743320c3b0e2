"""Serve an application on HOST:PORT until SIGTERM or SIGINT; requests that are being answered are finished first."""

import os
import signal
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_FINISH_S: Final = 4  # below the stop_grace_period of 5 s in docker-compose.yml
_KEEP_ALIVE_S: Final = (
    75  # longer than any client keeps an idle connection, so that the client is the one that closes it
)


def serve(app: ASGIApp, *, default_port: int) -> None:
    """HOST defaults to 127.0.0.1; containers set 0.0.0.0."""
    # uvicorn raises the signal again once it has finished: without these the exit code of a clean stop would be 143.
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGINT, _stopped)
    uvicorn.run(
        app,
        host=os.environ.get("HOST", "127.0.0.1"),
        port=int(os.environ.get("PORT", default_port)),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FINISH_S,
    )


def _stopped(_signal: int, _frame: FrameType | None) -> None:
    """uvicorn has already stopped; the process ends by returning from `serve`."""

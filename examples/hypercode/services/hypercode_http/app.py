"""Build a service's ASGI application and put the boundary around it.

The boundary sees every request once: it adds `X-Release` and `X-Releases` to the answer, measures it, and writes one
JSON line to stderr for every answer of 500 or above, with the SQLSTATE when a database error was the cause. It never
lets an exception out: a request that failed is a 500 that was counted, not a hole in the metrics.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from time import perf_counter
from typing import Final, Protocol

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hypercode_http.path import HEADER, begin_path
from hypercode_http.release import RELEASE

_FAILURE_KEY: Final = "hypercode.failure"
_LONGEST_MESSAGE: Final = 500  # characters of an error text in a log line

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


class ObserveRequest(Protocol):
    """Told about each finished request. `handler` is the route's template, so the number of labels stays bounded."""

    def __call__(self, *, handler: str, method: str, status: int, elapsed_s: float) -> None: ...


def service_app(
    *,
    service: str,
    routes: Sequence[BaseRoute],
    lifespan: Lifespan,
    observe: ObserveRequest | None = None,
    middleware: Sequence[Middleware] = (),
) -> ASGIApp:
    """The service's routes, `/health`, and the boundary around both."""
    every_route = [Route("/health", health), *routes]
    inner = Starlette(
        routes=every_route,
        lifespan=lifespan,
        middleware=list(middleware),
        exception_handlers={HTTPException: _problem, Exception: _unexpected},
    )
    return _Boundary(inner, service=service, routes=every_route, observe=observe)


async def health(_request: Request) -> Response:
    """Says that the process answers and which release it is; it asks nobody else, so it is cheap and proves little."""
    return JSONResponse({"status": "ok", "release": RELEASE})


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    request.scope[_FAILURE_KEY] = error
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


async def _unexpected(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, status_code=500)


class _Boundary:
    def __init__(
        self, app: ASGIApp, *, service: str, routes: Sequence[BaseRoute], observe: ObserveRequest | None
    ) -> None:
        self._app = app
        self._service = service
        self._routes = routes
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = perf_counter()
        path = begin_path()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Release"] = RELEASE
                headers[HEADER] = ", ".join(sorted(path))
            await send(message)

        failure: BaseException | None = None
        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # noqa: BLE001 - outermost guard: Starlette has answered 500, here it is logged
            failure = error
        finally:
            elapsed_s = perf_counter() - started
            if self._observe is not None:
                handler = _handler_name(self._routes, scope)
                self._observe(handler=handler, method=scope["method"], status=status, elapsed_s=elapsed_s)
        if status >= 500:
            self._log_failure(scope, status, elapsed_s, failure or scope.get(_FAILURE_KEY))

    def _log_failure(self, scope: Scope, status: int, elapsed_s: float, failure: BaseException | None) -> None:
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": "request_failed",
            "service": self._service,
            "release": RELEASE,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "elapsed_ms": round(elapsed_s * 1000),
            "error": None if failure is None else f"{type(failure).__name__}: {failure}"[:_LONGEST_MESSAGE],
            "sqlstate": _sqlstate(failure),
        }
        print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


def _handler_name(routes: Sequence[BaseRoute], scope: Scope) -> str:
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route.path_format if isinstance(route, Route) else "static"
    return "unmatched"


def _sqlstate(failure: BaseException | None) -> str | None:
    """The SQLSTATE of the database error that is, or caused, this failure."""
    while failure is not None:
        code = getattr(failure, "sqlstate", None)
        if isinstance(code, str):
            return code
        failure = failure.__cause__
    return None

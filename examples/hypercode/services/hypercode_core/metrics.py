"""The numbers at /metrics: how many requests, with which status, how long they took.

`/health` and `/metrics` are counted like everything else; whoever reads the page leaves them out by `handler`.
"""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from starlette.requests import Request
from starlette.responses import Response


class Metrics:
    """Counters of this process; they start at 0 with it."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "http_requests",  # the client library adds `_total`
            "HTTP requests answered, by route and status.",
            ["handler", "method", "status"],
            registry=self._registry,
        )
        self._duration_s = Histogram(
            "http_request_duration_seconds",
            "Time from the request to the end of its answer.",
            ["handler", "method"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5),  # 0.5 is the limit of the service objective, so it is an edge
            registry=self._registry,
        )

    def observe(self, *, handler: str, method: str, status: int, elapsed_s: float) -> None:
        """One finished request."""
        self._requests.labels(handler, method, str(status)).inc()
        self._duration_s.labels(handler, method).observe(elapsed_s)

    async def page(self, _request: Request) -> Response:
        """The Prometheus text format."""
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

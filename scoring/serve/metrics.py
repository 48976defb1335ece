"""What `ecluse serve` measures of itself, beside what any process with a model does."""

import asyncio
import contextlib
from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from ecluse.telemetry import Telemetry
from scoring.champion import Champion

_EDGES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpTelemetry:
    """Counts requests by route and status. `queued` tells the rows that wait for the model."""

    def __init__(self, telemetry: Telemetry, queued: Callable[[], float]) -> None:
        self._telemetry = telemetry
        registry = telemetry.registry
        self._requests = Counter(
            "ecluse_http_requests", "Requests answered, by route and status.", ["route", "code"], registry=registry
        )
        self._seconds = Histogram(
            "ecluse_http_request_seconds",
            "From a request's headers to its answer.",
            ["route", "code"],
            buckets=_EDGES,
            registry=registry,
        )
        waiting = Gauge("ecluse_http_queue_rows", "Rows that wait for the model.", registry=registry)
        waiting.set_function(queued)
        self._in_hand, self._idle = 0, asyncio.Event()
        in_hand = Gauge("ecluse_http_in_hand", "Requests whose answers are not made yet.", registry=registry)
        in_hand.set_function(lambda: self._in_hand)
        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._told: Champion | None = None
        ProcessCollector(registry=registry)

    def begin(self) -> None:
        """A request has come."""
        self._in_hand += 1

    def end(self) -> None:
        """Its answer is made."""
        self._in_hand -= 1
        if not self._in_hand:
            self._idle.set()

    async def nothing_in_hand(self, seconds: float) -> None:
        """Wait until all that has come has its answer, and at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._in_hand:
                    self._idle.clear()
                    await self._idle.wait()

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        found = self._by_route.get((route, status))
        if found is None:
            labels = (route, str(status))
            found = self._by_route[route, status] = self._requests.labels(*labels), self._seconds.labels(*labels)
        found[0].inc()
        found[1].observe(seconds)

    def exposition(self, champion: Champion | None) -> bytes:
        """All of it in Prometheus' text format."""
        if champion is not None and champion is not self._told:
            self._told = champion
            self._telemetry.model_info.clear()
            self._telemetry.model_info.labels(champion.name, str(champion.version), champion.sha256).set(1)
            self._telemetry.model_load.set(champion.load_seconds)
        return self._telemetry.exposition()

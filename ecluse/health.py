"""What a process on the transport tells the outside: /metrics, /health/live, /health/ready and more, in a thread of its own."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from faust.types import TP
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ecluse.errors import SettingsError
from ecluse.transport.progress import Progress

#: With records that wait, and no commit for so long, a process is not ready: its lag does not move.
STILL_SECONDS = 30.0


class Health(Protocol):
    """What is known of a process. `progress` is None until it joins its group."""

    progress: Progress | None

    @property
    def waits(self) -> bool | None:
        """Whether it is outside its group on purpose; None: it never is."""
        ...

    def live(self) -> list[str]:
        """Why the process should be restarted; empty where it should not."""
        ...

    def ready(self) -> list[str]:
        """Why it does not do its work; empty where it does."""
        ...


class ProgressCollector(Collector):
    """The owning thread's progress as metrics, read when they are asked for."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterable[Metric]:
        """The metrics; of progress none while the worker is outside its group."""
        progress, now, waits = self._health.progress, time.monotonic(), self._health.waits
        if waits is not None:
            yield GaugeMetricFamily("ecluse_standby", "1 while the worker waits outside its group, warm.", float(waits))
        if progress is None or waits:
            return
        yield _by_partition("ecluse_consumer_lag", "Events not yet confirmed.", progress.lag)
        yield _by_partition(
            "ecluse_consumer_lag_seconds",
            "How long the oldest event that is not confirmed has been at the broker.",
            progress.lag_seconds,
        )
        yield _by_partition(
            "ecluse_rebalance_pause_seconds",
            "From the last rebalance to the partition's next commit, where events waited.",
            progress.pauses,
        )
        oldest = progress.oldest_unscored
        yield CounterMetricFamily("ecluse_rebalances", "Assignments that this worker has had.", progress.rebalances)
        yield CounterMetricFamily(
            "ecluse_commit_failures", "Commits that the broker refused.", progress.commit_failures
        )
        yield CounterMetricFamily("ecluse_transactions_aborted", "Transactions aborted.", progress.aborted)
        yield GaugeMetricFamily("ecluse_assigned_partitions", "Partitions held.", progress.partitions)
        yield GaugeMetricFamily("ecluse_open_chunks", "Chunks in hand.", progress.open_chunks)
        yield GaugeMetricFamily(
            "ecluse_oldest_chunk_seconds",
            "Age of the oldest chunk without a score.",
            0.0 if oldest is None else now - oldest,
        )
        yield GaugeMetricFamily(
            "ecluse_commit_age_seconds", "Since the last confirmed commit.", now - progress.committed_at
        )


def _by_partition(name: str, documentation: str, values: Mapping[TP, float]) -> Metric:
    gauge = GaugeMetricFamily(name, documentation, labels=["topic", "partition"])
    for partition, value in list(values.items()):
        gauge.add_metric([partition.topic, str(partition.partition)], value)
    return gauge


class HealthServer:
    """Serves the metrics, the health and the `pages` of one process: each page is a path and what it shows, as JSON.

    `section` names its settings metrics_host and metrics_port.

    Raises:
        SettingsError: the address cannot be listened on.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        host: str,
        port: int,
        pages: Mapping[str, Callable[[], object]] | None = None,
        section: str = "worker",
    ) -> None:
        registry.register(ProgressCollector(health))
        ProcessCollector(registry=registry)
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(registry, health, pages or {}))
        except OSError as error:
            raise SettingsError(
                [f"{section}.metrics_host, metrics_port: {host}:{port} cannot be used: {error.strerror}."]
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="ecluse-health", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens: ``host:port``."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "HealthServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def _handler(
    registry: CollectorRegistry, health: Health, pages: Mapping[str, Callable[[], object]]
) -> type[BaseHTTPRequestHandler]:
    """Answers the requests."""
    known = ["/metrics", "/health/live", "/health/ready", *pages]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.split("?")[0]:
                case "/metrics":
                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                case "/health/live":
                    self._say(health.live())
                case "/health/ready":
                    self._say(health.ready())
                case path if path in pages:
                    self._answer(200, json.dumps(pages[path]()).encode(), "application/json")
                case _:
                    error = {"error": f"there is {', '.join(known[:-1])} and {known[-1]}"}
                    self._answer(404, json.dumps(error).encode(), "application/json")

        def _say(self, faults: list[str]) -> None:
            body = json.dumps({"ok": not faults, "faults": faults}).encode()
            self._answer(503 if faults else 200, body, "application/json")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    return Handler

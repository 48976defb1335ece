"""What a worker tells the outside: /metrics, /health/live and /health/ready, in a thread of its own.

`live` fails only when a chunk has waited for its score too long: then the worker hangs, and a restart helps. A broker that
is away does not fail it, because a restart would only lose the warm model. `ready` says whether the worker does its work.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from faust.types import TP
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ecluse.errors import SettingsError
from ecluse.telemetry import Telemetry
from ecluse.transport.progress import Progress

#: With events that wait, and no commit for so long, a worker is not ready: its lag does not move.
STILL_SECONDS = 30.0


class Health:
    """What is known of the worker's state.

    `progress` is None until the worker joins its group; `waits` says that it is a standby, outside the group on purpose.
    """

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self.progress: Progress | None = None
        self.warm = self.waits = False

    def live(self) -> list[str]:
        """Why the worker should be restarted; empty where it should not."""
        oldest = self.progress.oldest_unscored if self.progress else None
        age = time.monotonic() - oldest if oldest is not None else 0.0
        return [f"a chunk has waited for its score for {age:.0f} s"] if age > self._stuck_after else []

    def ready(self) -> list[str]:
        """Why the worker does not do its work; empty where it does."""
        if not self.warm:
            return ["the model is not warm yet"]
        if self.waits:
            return []
        if self.progress is None or not self.progress.assigned:
            return ["the worker waits for its partitions"]
        still = time.monotonic() - self.progress.moved_at
        if still > STILL_SECONDS:
            return [f"events wait, and nothing was committed for {still:.0f} s"]
        return []


class ProgressCollector(Collector):
    """The owning thread's progress as metrics, read when they are asked for."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterable[Metric]:
        """The metrics; of progress none while the worker is outside its group."""
        progress, now, waits = self._health.progress, time.monotonic(), self._health.waits
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
    """Serves the metrics and the health of one worker.

    Raises:
        SettingsError: the address cannot be listened on.
    """

    def __init__(self, telemetry: Telemetry, health: Health, host: str, port: int) -> None:
        telemetry.registry.register(ProgressCollector(health))
        ProcessCollector(registry=telemetry.registry)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                match self.path.split("?")[0]:
                    case "/metrics":
                        self._answer(200, telemetry.exposition(), CONTENT_TYPE_LATEST)
                    case "/health/live":
                        self._say(health.live())
                    case "/health/ready":
                        self._say(health.ready())
                    case _:
                        self._answer(
                            404, b'{"error": "there is /metrics, /health/live and /health/ready"}', "application/json"
                        )

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

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise SettingsError(
                [f"worker.metrics_host, metrics_port: {host}:{port} cannot be used: {error.strerror}."]
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="ecluse-health", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens: ``host:port``."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def __enter__(self) -> "HealthServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)

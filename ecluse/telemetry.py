"""What a worker measures of itself: Prometheus metrics, in seconds and bytes, without ids in labels."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_LATENCY_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ArrayHistogram(Collector):
    """A histogram that takes a whole chunk's values in one call: one call per event would cost more than scoring it."""

    def __init__(self, name: str, documentation: str, edges: Sequence[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._edges = np.array(edges)
        self._counts = np.zeros(len(edges) + 1, dtype=np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: NDArray[np.float64]) -> None:
        """Count values, shape (n,)."""
        self._counts += np.bincount(np.searchsorted(self._edges, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def collect(self) -> Iterable[Metric]:
        """The state, as Prometheus wants it: cumulative counts."""
        limits = [*map(str, self._edges.tolist()), "+Inf"]
        buckets = list(zip(limits, np.cumsum(self._counts).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=self._sum)


class Telemetry:
    """The metrics of one worker, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.events = Counter(
            "ecluse_events",
            "Events taken, by what came of each: prediction or dead_letter.",
            ["topic", "outcome"],
            registry=registry,
        )
        self.predictions = Counter(
            "ecluse_predictions", "Predictions made.", ["model", "version", "arm", "decision"], registry=registry
        )
        self.bypassed = Counter("ecluse_bypassed", "Events that went past the model.", registry=registry)
        self.bypass_share = Gauge("ecluse_bypass_share", "The share that goes past the model.", registry=registry)
        self.alerts = Counter("ecluse_alerts", "Alerts raised.", ["severity"], registry=registry)
        self.dead_letters = Counter(
            "ecluse_dead_letters", "Records that could not be scored.", ["stage"], registry=registry
        )
        self.profiles = Counter("ecluse_profiles", "Profiles made for the monitor.", registry=registry)
        self.batch_size = Histogram(
            "ecluse_batch_size",
            "Events in one model call.",
            buckets=(1, 10, 50, 100, 500, 1000, 2000, 4000),
            registry=registry,
        )
        self.predict = Histogram(
            "ecluse_predict_seconds", "Time of one model call.", buckets=_LATENCY_EDGES, registry=registry
        )
        self.latency = ArrayHistogram(
            "ecluse_event_to_prediction_seconds",
            "From the event's arrival at the broker to its score; on the clocks of two machines.",
            _LATENCY_EDGES,
            registry,
        )
        self.model_info = Gauge(
            "ecluse_model_info", "The model that scores: 1.", ["model", "version", "sha256"], registry=registry
        )
        self.model_load = Gauge("ecluse_model_load_seconds", "Time to load and warm the model.", registry=registry)
        self.model_swaps = Counter("ecluse_model_swaps", "Models that took the place of another.", registry=registry)
        self.model_failures = Counter(
            "ecluse_model_failures",
            "Attempts to bring a routed version into service that failed, by the step at which they did.",
            ["step"],
            registry=registry,
        )
        self.model_degraded = Gauge(
            "ecluse_model_degraded",
            "1 while the routed version does not serve and an older one goes on.",
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

"""What the sink tells of itself: metrics, and whether it does its work."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ecluse.health import STILL_SECONDS
from ecluse.sections import StoreSettings
from ecluse.transport.progress import Progress
from ingest.label_metrics import LabelMetrics

_COMMIT_EDGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: A record that has been in hand for so much longer than it should says that the process hangs, in seconds.
STUCK_SECONDS = 300.0


class SinkTelemetry:
    """The metrics of one sink, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rows = Counter("ecluse_store_rows", "Rows committed.", ["table"], registry=registry)
        self.commits = Counter("ecluse_store_commits", "Commits made.", ["table"], registry=registry)
        self.seconds = Histogram(
            "ecluse_store_commit_seconds",
            "Time of one commit, its files' writing included.",
            buckets=_COMMIT_EDGES,
            registry=registry,
        )
        self.conflicts = Counter(
            "ecluse_store_conflicts",
            "Commits refused because another writer came before: their records were read again.",
            ["table"],
            registry=registry,
        )
        self.pending = Gauge("ecluse_store_pending_rows", "Records in hand and in no commit yet.", registry=registry)
        self.rejected = Counter(
            "ecluse_store_rejected_labels", "Labels that became dead letters.", ["topic"], registry=registry
        )
        self.care = Counter(
            "ecluse_store_maintenance",
            "Compactions with their vacuum, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.labels = LabelMetrics(registry)


class SinkHealth:
    """Whether the sink does its work. `progress` is None until it joins its group."""

    waits = None

    def __init__(self, store: StoreSettings) -> None:
        self._store = store
        self.progress: Progress | None = None

    def live(self) -> list[str]:
        """Why the sink should be restarted; empty where it should not."""
        oldest = self.progress.oldest_unscored if self.progress else None
        age = time.monotonic() - oldest if oldest is not None else 0.0
        stuck = age > self._store.commit_seconds + STUCK_SECONDS
        return [f"a record has waited for its commit for {age:.0f} s"] if stuck else []

    def ready(self) -> list[str]:
        """Why the sink does not do its work; empty where it does."""
        if self.progress is None or not self.progress.assigned:
            return ["the sink waits for its partitions"]
        still = time.monotonic() - self.progress.moved_at
        if still > max(STILL_SECONDS, 3 * self._store.commit_seconds):
            return [f"records wait, and nothing was committed for {still:.0f} s"]
        return []

"""What the monitor tells of itself: metrics, and whether it does its work."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ecluse.contract.loop import Asker, DriftReport, Level
from ecluse.contract.records import Moment, Version
from ecluse.health import STILL_SECONDS
from ecluse.transport.progress import Progress
from retrain.drift.fold import Apart

#: A profile that waits for so long says that the process hangs, in seconds: a look into a large store takes minutes.
STUCK_SECONDS = 1800.0
_HEIGHT = {Level.OK: 0.0, Level.WARN: 1.0, Level.ALARM: 2.0}


class MonitorTelemetry:
    """The metrics of one monitor, in a registry of its own.

    `reports` are the newest by version, `apart` what was not counted, `stream_time` how far the stream has come, `episode`
    whether one is open: as the fold has them, so a restart does not set them back.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.reports: dict[Version, DriftReport] = {}
        self.apart = Apart()
        self.stream_time: Moment | None = None
        self.episode = False
        self.profiles = Counter("ecluse_monitor_profiles", "Profiles taken.", registry=registry)
        self.made = Counter("ecluse_monitor_reports", "Reports made, by their level.", ["level"], registry=registry)
        self.asked = Counter(
            "ecluse_monitor_requests", "Requests for a new model made, by who asked.", ["asker"], registry=registry
        )
        self.failures = Counter(
            "ecluse_monitor_failures",
            "What could not be had or read: a manifest, the training store, a profile.",
            ["what"],
            registry=registry,
        )
        for level in Level:
            self.made.labels(level.value)
        for asker in (Asker.DRIFT, Asker.SCHEDULE):
            self.asked.labels(asker.value)
        for what in ("manifest", "store", "profile"):
            self.failures.labels(what)
        registry.register(_Newest(self))


class _Newest(Collector):
    """What the fold says, read when it is asked for."""

    def __init__(self, telemetry: MonitorTelemetry) -> None:
        self._told = telemetry

    def collect(self) -> Iterable[Metric]:
        """The metrics; those of reports while there are any."""
        told, newest = self._told, list(self._told.reports.values())
        apart = CounterMetricFamily(
            "ecluse_monitor_apart",
            "Events that were not judged, by why; uncounted: offsets in no profile.",
            labels=["why"],
        )
        for why in told.apart.__struct_fields__:
            apart.add_metric([why], getattr(told.apart, why))
        yield apart
        yield GaugeMetricFamily("ecluse_monitor_episode", "1 while an episode is open.", float(told.episode))
        if told.stream_time is not None:
            yield GaugeMetricFamily("ecluse_monitor_stream_time_seconds", "The stream's clock.", told.stream_time)
        level = GaugeMetricFamily("ecluse_drift_level", "Newest report: 0 ok, 1 warn, 2 alarm.", labels=["version"])
        number = GaugeMetricFamily(
            "ecluse_drift_statistic", "What the newest report judged.", labels=["version", "name", "input"]
        )
        for report in newest:
            level.add_metric([str(report.version)], _HEIGHT[report.level])
            for each in report.statistics:
                number.add_metric([str(report.version), each.name, each.input or ""], each.value)
        yield from (level, number)


class MonitorHealth:
    """Whether the monitor does its work. `progress` is None until it joins its group; `trouble` is what it waits for."""

    waits = None

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.trouble = ""

    def live(self) -> list[str]:
        """Why the monitor should be restarted; empty where it should not."""
        oldest = self.progress.oldest_unscored if self.progress else None
        age = time.monotonic() - oldest if oldest is not None else 0.0
        return [f"a profile has waited for {age:.0f} s"] if age > STUCK_SECONDS and not self.trouble else []

    def ready(self) -> list[str]:
        """Why the monitor does not do its work; empty where it does, or where another one does it."""
        if self.progress is None or not self.progress.assigned:
            return ["the monitor waits for its group"]
        if self.trouble:
            return [self.trouble]
        still = time.monotonic() - self.progress.moved_at
        waits = self.progress.partitions > 0 and still > STILL_SECONDS
        return [f"profiles wait, and nothing was committed for {still:.0f} s"] if waits else []

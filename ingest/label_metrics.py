"""What a sink tells of the labels: how many it wrote, and what they cover."""

import math

import polars as pl
from prometheus_client import CollectorRegistry, Counter, Gauge

from ingest.coverage import Coverage

#: The ages of cohorts that are shown, in days: each is a series, so they are few.
AGES = (1, 3, 7, 14, 30, 60)


class LabelMetrics:
    """Labels written, and of the let-through events of some ages how many have one; in the registry of the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._labels = Counter("ecluse_labels", "Labels committed to the store.", ["origin"], registry=registry)
        self._covered = Gauge(
            "ecluse_label_coverage_ratio",
            "Of the events let through on the day that is so many days past (UTC), the share that has a label.",
            ["age_days"],
            registry=registry,
        )
        self._to_come = Gauge(
            "ecluse_labels_expected", "Labels that let-through events of the last days still expect.", registry=registry
        )
        self._to_come.set(math.nan)  # until somebody has looked
        self._delay = Gauge(
            "ecluse_label_delay_seconds",
            "From a mature event to its first label, by origin: the median and two higher quantiles.",
            ["origin", "quantile"],
            registry=registry,
        )

    def wrote(self, rows: pl.DataFrame) -> None:
        """Count rows of the table `labels` that were committed."""
        for origin, count in rows.group_by("origin").len().iter_rows():
            self._labels.labels(origin).inc(count)

    def show(self, found: Coverage) -> None:
        """Show a coverage instead of the one before."""
        self._covered.clear()
        self._delay.clear()
        self._to_come.set(math.nan)
        if found.as_of is None:
            return
        ages = {(found.as_of.date() - cohort.day).days: cohort.let_through for cohort in found.cohorts}
        for age in AGES:
            if (group := ages.get(age)) and group.events:
                self._covered.labels(str(age)).set(group.labelled / group.events)
        expected = [cohort.let_through.expected for cohort in found.cohorts]
        self._to_come.set(sum(math.nan if count is None else count for count in expected))
        for origin, delays in found.origins.items():
            for quantile, seconds in (("0.5", delays.median), ("0.9", delays.p90), ("0.99", delays.p99)):
                self._delay.labels(origin, quantile).set(seconds)

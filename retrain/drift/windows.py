"""What a version's events look like, window by window: counts that were merged, as dense arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecluse.contract.loop import Counts, WindowCounts
from ecluse.contract.records import BYPASS, Decision
from ecluse.model.manifest import Histogram, Manifest

Cells = NDArray[np.int64]

#: The scores are counted as one more column behind the inputs; no input has this name.
SCORES = ""
#: Beside a histogram's bins there is a cell for what lies below it, above it, and for what is missing.
_EXTRA = 3


@dataclass(frozen=True)
class Reference:
    """What a version's events are held against: its manifest's histograms, and the share of alerts on its held-out rows.

    `alert_share` is None where it is not known: then alerts are not judged. It rests on `alert_rows` that alerted; where
    that is None, on as many as the scores' histogram says.
    """

    inputs: dict[str, Histogram]
    scores: Histogram
    alert_share: float | None
    alert_rows: float | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> "Reference":
        """The reference in a manifest."""
        share, rows = manifest.metrics.get("alert_share"), manifest.metrics.get("alert_rows")
        return cls(dict(manifest.reference), manifest.score_reference, share, rows)

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Where the cells of each input and of the scores lie: below, the bins, above, missing."""
        sizes = [len(histogram.counts) + _EXTRA for histogram in self.histograms.values()]
        ends = list(accumulate(sizes))
        return {name: slice(end - size, end) for name, size, end in zip(self.histograms, sizes, ends, strict=True)}

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        """Those of the inputs, and last that of the scores, named `SCORES`."""
        return {**self.inputs, SCORES: self.scores}

    @cached_property
    def width(self) -> int:
        """How many cells there are."""
        return sum(len(histogram.counts) + _EXTRA for histogram in self.histograms.values())

    def column(self, cells: Cells, name: str) -> "Column":
        """One input's part of the cells, shape (width,)."""
        return Column(cells[self.columns[name]], self.histograms[name])

    def cells(self, counted: WindowCounts) -> Cells | None:
        """The counts as cells, shape (width,); None where they cannot be of these histograms."""
        cells = np.zeros(self.width, dtype=np.int64)
        for name, counts in ((SCORES, counted.scores), *counted.inputs.items()):
            column = self.columns.get(name)
            if column is None or not _fits(counts, column.stop - column.start - _EXTRA):
                return None
            part = cells[column]
            part[0], part[-2], part[-1] = counts.below, counts.above, counts.missing
            for i, count in counts.bins.items():
                part[1 + i] = count
        return cells if (cells >= 0).all() else None


@dataclass(frozen=True, slots=True)
class Column:
    """The counts of one input (or of the scores), shape (bins + 3,), beside its histogram."""

    cells: Cells
    histogram: Histogram

    @property
    def events(self) -> int:
        """How many were counted, with those that lacked it."""
        return int(self.cells.sum())

    @property
    def missing(self) -> int:
        """How many lacked it."""
        return int(self.cells[-1])

    @property
    def outside(self) -> int:
        """How many lay below or above all that the reference rows held."""
        return int(self.cells[0] + self.cells[-2])

    @property
    def bins(self) -> Cells:
        """The counts by bin, shape (bins,); what lies below or above is in the first or last."""
        bins = self.cells[1:-2].copy()
        bins[0] += self.cells[0]
        bins[-1] += self.cells[-2]
        return bins

    @property
    def expected(self) -> Cells:
        """The reference's counts by bin, shape (bins,)."""
        return np.array(self.histogram.counts, dtype=np.int64)


class Window(msgspec.Struct, gc=False):
    """The counts of one version's events in one window. `events` were decided, `scored` by the model."""

    cells: Cells
    events: int = 0
    scored: int = 0
    alerts: int = 0
    rejected: int = 0

    @property
    def size(self) -> int:
        """How many events it knows of, dead letters included."""
        return self.events + self.rejected

    def add(self, other: "Window") -> None:
        """Merge another's counts into it."""
        self.cells = self.cells + other.cells
        self.events += other.events
        self.scored += other.scored
        self.alerts += other.alerts
        self.rejected += other.rejected


class Seen(msgspec.Struct):
    """What is known of one version: its windows by number, and the series of its spans."""

    manifest_sha256: str
    windows: dict[int, Window] = {}
    series: dict[str, list[float]] = {}

    def span(self, first: int, last: int) -> Window:
        """The windows from number `first` to `last`, merged; one of them at least has counts."""
        windows = list(self._between(first, last))
        merged = Window(np.zeros_like(windows[0].cells))
        for window in windows:
            merged.add(window)
        return merged

    def _between(self, first: int, last: int) -> Iterator[Window]:
        return (window for number, window in sorted(self.windows.items()) if first <= number <= last)


def window_of(counted: WindowCounts, reference: Reference) -> Window | None:
    """One window's counts as they are merged; None where they cannot be of this reference."""
    cells = reference.cells(counted)
    numbers = [count for decisions in counted.arms.values() for count in decisions.values()]
    if cells is None or min([*numbers, counted.rejected]) < 0:
        return None
    scored = [decisions for arm, decisions in counted.arms.items() if arm != BYPASS]
    return Window(
        cells,
        events=sum(numbers),
        scored=sum(sum(decisions.values()) for decisions in scored),
        alerts=sum(_alerts(scored)),
        rejected=counted.rejected,
    )


def size_of(counted: WindowCounts) -> int:
    """How many events the counts are of, dead letters included."""
    return sum(sum(decisions.values()) for decisions in counted.arms.values()) + counted.rejected


def _alerts(arms: Iterable[dict[Decision, int]]) -> Iterator[int]:
    return (count for arm in arms for decision, count in arm.items() if decision is not Decision.ALLOW)


def _fits(counts: Counts, bins: int) -> bool:
    return all(0 <= i < bins for i in counts.bins)

"""A past as workers would have counted it: a file's rows, scored by a model, by window of the stream's clock."""

import datetime as dt
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse import tables
from ecluse.contract.loop import Covered, Profile, WindowCounts
from ecluse.contract.records import Decision, Thresholds
from ecluse.errors import DataError
from ecluse.loop_sections import MonitorSettings
from ecluse.model.bins import Bins
from ecluse.model.features import seconds_of
from ecluse.model.manifest import Manifest
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from retrain.drift.fold import Closed, Fold, Outcomes
from retrain.drift.windows import SCORES, Reference

#: How much of the first and of the last window may be without events: what a file cuts off counts as no window.
_CUT = 0.1
_ARM = "champion"
#: The monitor's clock is the middle one of so many times.
_TOLD = 5

#: What had matured of a window, from its start and its end.
Matured = Callable[[float, float], Outcomes]


def _unknown(_since: float, _until: float) -> Outcomes:
    return Outcomes()


@dataclass(frozen=True)
class Past:
    """Whole windows in order of time, those without events left out; `rows` is what they count, `untimed` how many rows have
    no time, `cut` how many lie in windows that the file holds in part."""

    windows: tuple[WindowCounts, ...]
    window_seconds: float
    rows: int
    untimed: int = 0
    cut: int = 0

    @property
    def positions(self) -> NDArray[np.int64]:
        """Which window of all time each is."""
        return np.array([round(window.window / self.window_seconds) for window in self.windows], dtype=np.int64)

    def after(self, moment: float) -> "Past":
        """The windows that begin then or later."""
        windows = tuple(window for window in self.windows if window.window >= moment)
        return replace(self, windows=windows, rows=sum(map(_rows, windows)))

    @property
    def days(self) -> float:
        """From the first window's start to the last one's end."""
        if not self.windows:
            return 0.0
        return (self.windows[-1].window - self.windows[0].window + self.window_seconds) / 86_400


def seen_until(manifest: Manifest) -> float:
    """The time of the last row that a version was trained or measured on, in seconds since 1970; before all where it does not
    say. What it has seen is nearer to its reference than new events are."""
    spans = (manifest.training.get(name) for name in ("span", "held_out_span"))
    ends = [dt.datetime.fromisoformat(span[1]).timestamp() for span in spans if span]
    return max(ends, default=-math.inf)


def count_past(
    settings: Settings,
    model: Model,
    thresholds: Thresholds,
    batches: Iterable[pl.DataFrame],
    tell: Callable[[int], None] = lambda _: None,
) -> Past:
    """Count the rows of a past as workers count events: in memory that grows with its windows, not with its rows.

    A row that lacks a required field is one that a worker would have rejected. A row's time is that of `stream.time_field`.

    Args:
        settings: the stream's.
        model: which scores them, and whose bins are meant.
        thresholds: of the arm that decides.
        batches: the rows with the stream's columns, in any order.
        tell: told how many rows are done.

    Raises:
        DataError: there is no time by which to tell windows apart, or a column that the model needs is missing or unfit.
    """
    time_field = settings.stream.time_field
    if time_field is None:
        raise DataError("A past is counted by window, which needs stream.time_field.")
    counter = _Counter(settings, model, thresholds)
    done = untimed = 0
    for batch in batches:
        if time_field not in batch.columns:
            raise DataError(f"The rows have no column '{time_field}', which stream.time_field names.")
        times = seconds_of(batch[time_field])
        known = np.isfinite(times)
        counter.add(batch.filter(pl.Series(known)), times[known])
        done += batch.height
        untimed += int((~known).sum())
        tell(done)
    windows, cut = counter.whole_windows()
    rows = sum(_rows(window) for window in windows)
    return Past(windows, counter.seconds, rows, untimed, cut)


class _Counter:
    """Totals by window, as they grow."""

    def __init__(self, settings: Settings, model: Model, thresholds: Thresholds) -> None:
        self.seconds = settings.monitor.window_hours * 3600
        self._texts = settings.stream.texts
        self._required = [name for name, field in settings.stream.fields.items() if field.required]
        self._model = model
        self._limits = [thresholds.review, thresholds.block]
        manifest = model.manifest
        inputs = {name: manifest.reference[name] for name in model.features.names}
        self._bins = Bins(inputs | {SCORES: manifest.score_reference})
        #: Of each window: cells of inputs and scores, decisions, and the rejected.
        width = self._bins.width + len(Decision) + 1
        self._totals: dict[int, NDArray[np.int64]] = defaultdict(lambda: np.zeros(width, dtype=np.int64))
        self._first, self._last = np.inf, -np.inf

    def add(self, rows: pl.DataFrame, times: NDArray[np.float64]) -> None:
        """Count rows, whose times (n,) are all known."""
        if rows.is_empty():
            return
        self._first, self._last = min(self._first, times.min()), max(self._last, times.max())
        windows, groups = np.unique(np.floor(times / self.seconds).astype(np.int64), return_inverse=True)
        fit = self._fit(rows)
        rejected = np.bincount(groups[~fit], minlength=len(windows))[:, None]
        texts = [name for name in self._texts if name in rows.columns and not rows[name].dtype.is_nested()]
        matrix = self._model.features.matrix_of_frame(
            rows.with_columns(tables.as_texts(rows[name]) for name in texts).filter(pl.Series(fit))
        )
        totals = np.hstack([*self._counted(matrix, groups[fit], len(windows)), rejected])
        for window, counted in zip(windows.tolist(), totals, strict=True):
            self._totals[window] += counted

    def _fit(self, rows: pl.DataFrame) -> NDArray[np.bool_]:
        held = [_held(rows[name]) for name in self._required if name in rows.columns]
        return reduce(np.logical_and, held, np.ones(rows.height, dtype=bool))

    def _counted(
        self, matrix: NDArray[np.float32], groups: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], ...]:
        scores = self._model.score(matrix) if len(matrix) else np.empty(0)
        decided = groups * len(Decision) + np.searchsorted(self._limits, scores, side="right")
        return (
            self._bins.totals(self._bins.cells(matrix, scores), groups, count),
            np.bincount(decided, minlength=count * len(Decision)).reshape(count, len(Decision)),
        )

    def whole_windows(self) -> tuple[tuple[WindowCounts, ...], int]:
        """The windows in order, and how many rows lie in those that the file holds in part."""
        slack = _CUT * self.seconds
        counted = [self._window(position, self._totals[position]) for position in sorted(self._totals)]
        whole = [
            window
            for window in counted
            if window.window >= self._first - slack and window.window + self.seconds <= self._last + slack
        ]
        return tuple(whole), sum(map(_rows, counted)) - sum(map(_rows, whole))

    def _window(self, position: int, totals: NDArray[np.int64]) -> WindowCounts:
        cells, decisions, rejected = np.split(totals, [self._bins.width, self._bins.width + len(Decision)])
        inputs = self._bins.counts(cells)
        scores = inputs.pop(SCORES)
        return WindowCounts(
            window=position * self.seconds,
            inputs=inputs,
            scores=scores,
            arms={_ARM: dict(zip(Decision, decisions.tolist(), strict=True))},
            rejected=int(rejected[0]),
        )


def _held(column: pl.Series) -> NDArray[np.bool_]:
    """Which values an event would carry, shape (n,)."""
    return (column.fill_nan(None) if column.dtype.is_float() else column).is_not_null().to_numpy()


def _rows(window: WindowCounts) -> int:
    return window.rejected + sum(sum(decisions.values()) for decisions in window.arms.values())


def judged(
    settings: MonitorSettings, reference: Reference, windows: Iterable[WindowCounts], outcomes: Matured = _unknown
) -> Iterator[Closed]:
    """What the monitor makes of windows in order of time, one profile each, all of one version.

    Args:
        settings: the monitor's; no schedule asks.
        reference: what the version is held against.
        windows: their counts.
        outcomes: given a window's start and end, tells what had matured by then.
    """
    fold = Fold("past", settings.model_copy(update={"schedule": ""}), lambda _version, _sha256: reference)
    seconds, late = settings.window_hours * 3600, settings.late_hours * 3600
    time = 0.0
    for offset, counted in enumerate(chain(windows, [None])):
        # The clock stands where the window before has just closed.
        time = counted.window + late if counted is not None else time + seconds
        covers = [Covered(0, offset, offset + 1, time)] * _TOLD
        fold.take(Profile("past", 1, "", "past", seconds, [counted] if counted else [], covers), time, offset)
        while (closing := fold.due()) is not None:
            yield fold.close({1: outcomes(closing.since, closing.until)})

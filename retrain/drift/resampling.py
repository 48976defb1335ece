"""A steady past in other orders: whole weeks of its windows, drawn with replacement, judged as the monitor would have.

The moving block bootstrap (H. R. Künsch, 1989, Annals of Statistics 17:1217-1241; R. Y. Liu, K. Singh, 1992) with blocks that
keep their place in the week, as for seasonal series (A. E. Dudek, J. Leśkow, E. Paparoditis, D. N. Politis, 2014, Journal of
Time Series Analysis 35:89-114): what hangs together within a week stays together, and a Monday follows a Sunday.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecluse.contract.loop import Statistic, WindowCounts
from ecluse.loop_sections import MonitorSettings
from retrain.drift.past import Past, judged
from retrain.drift.windows import Reference

#: The statistics that have thresholds, in the columns of a `Track`.
NAMES = ("psi", "missing", "range", "rejected", "alerts")
_WEEK_HOURS = 7 * 24
_COLUMNS = {name: i for i, name in enumerate(NAMES)}


@dataclass(frozen=True)
class Track:
    """What a run of windows was judged: the largest of each statistic over all inputs, shape (windows, names), -inf where it
    was not judged; and whether a change of level was found, shape (windows,)."""

    values: NDArray[np.float64]
    changed: NDArray[np.bool_]

    def alone(self, name: str | None) -> "Track":
        """As if there were nothing but this statistic; None: nothing but changes of level."""
        values = np.full_like(self.values, -np.inf)
        if name is None:
            return Track(values, self.changed)
        values[:, _COLUMNS[name]] = self.values[:, _COLUMNS[name]]
        return Track(values, np.zeros_like(self.changed))


def windows_a_block(settings: MonitorSettings) -> int:
    """How many windows are drawn together: whole weeks that are no shorter than a span, or one window where that is longer."""
    weeks = math.ceil(settings.span_windows * settings.window_hours / _WEEK_HOURS)
    return max(round(weeks * _WEEK_HOURS / settings.window_hours), 1)


def drawn(past: Past, block: int, random: np.random.Generator) -> list[WindowCounts]:
    """As many windows as the past has, in an order of its own: blocks that begin at the same place in the week, which is drawn
    too, so that every block of the past may come."""
    first, length = int(past.positions[0]), int(past.positions[-1] - past.positions[0]) + 1
    phase = int(random.integers(min(block, length - block + 1)))
    starts = np.arange(phase, length - block + 1, block)
    chosen = random.choice(starts, size=math.ceil(length / block))
    sources = (chosen[:, None] + np.arange(block)).ravel()[:length] + first
    held = dict(zip(past.positions.tolist(), past.windows, strict=True))
    return [
        msgspec.structs.replace(held[source], window=(first + phase + i) * past.window_seconds)
        for i, source in enumerate(sources.tolist())
        if source in held
    ]


def statistics_of(
    settings: MonitorSettings, reference: Reference, windows: Iterable[WindowCounts]
) -> list[tuple[float, tuple[Statistic, ...]]]:
    """What the monitor says of each window, and when it ends."""
    closed = judged(settings, reference, windows)
    return [(report.until, report.statistics) for each in closed for report in each.reports]


def track_of(told: Iterable[tuple[float, tuple[Statistic, ...]]]) -> Track:
    """The largest of each statistic, window by window."""
    values, changed = [], []
    for _, statistics in told:
        row = [-math.inf] * len(NAMES)
        for each in statistics:
            if (column := _COLUMNS.get(each.name)) is not None:
                row[column] = max(row[column], each.value)
        values.append(row)
        changed.append(any(each.name == "change" for each in statistics))
    return Track(np.array(values).reshape(-1, len(NAMES)), np.array(changed, dtype=bool))


def episodes(track: Track, warn: NDArray[np.float64], alarm: NDArray[np.float64], calm_windows: int) -> int:
    """How many episodes would have opened with these thresholds, (names,) each: as `retrain.drift.episodes` has it."""
    alarms = (track.values >= alarm).any(axis=1) | track.changed
    warns = alarms | (track.values >= warn).any(axis=1)
    count, calm, is_open = 0, 0, False
    for alarms_now, warns_now in zip(alarms.tolist(), warns.tolist(), strict=True):
        if not is_open and alarms_now:
            count, is_open = count + 1, True
        calm = 0 if warns_now else calm + 1
        is_open = is_open and calm < calm_windows
    return count

"""Whether a past is steady: its first half against its second, beside what the halves of its other orders differ by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.loop import WindowCounts
from ecluse.loop_sections import MonitorSettings
from retrain.drift.past import Past
from retrain.drift.resampling import drawn, windows_a_block
from retrain.drift.statistics import psi
from retrain.drift.windows import Reference, window_of

#: Orders that are drawn, and how seldom they may differ as much, over all inputs together.
_ORDERS, _LEVEL = 200, 0.05
#: What is less than this part of `monitor.psi.warn` is too little to speak of.
_WORTH = 0.2


@dataclass(frozen=True)
class Trend:
    """An input (None: the scores) and the population stability index of the past's second half against its first."""

    input: str | None
    psi: float


def trends(settings: MonitorSettings, past: Past, reference: Reference, random: np.random.Generator) -> list[Trend]:
    """The inputs whose second half lies further from the first than weeks in any order would have it, the furthest first."""
    block = windows_a_block(settings)
    seen = _halves_apart(past.windows, reference)
    orders = [_halves_apart(drawn(past, block, random), reference) for _ in range(_ORDERS)]
    # Each input on its own scale: that of the 95% quantile of its own orders.
    scale = np.maximum(np.quantile(orders, 1 - _LEVEL, axis=0), _WORTH * settings.psi.warn)
    limit = np.quantile((np.array(orders) / scale).max(axis=1), 1 - _LEVEL)
    told = zip(reference.histograms, seen.tolist(), (seen / scale).tolist(), strict=True)
    found = [Trend(name or None, index) for name, index, apart in told if apart > max(limit, 1.0)]
    return sorted(found, key=lambda each: -each.psi)


def _halves_apart(windows: Sequence[WindowCounts], reference: Reference) -> NDArray[np.float64]:
    """Of each input and of the scores, shape (inputs + 1,)."""
    middle = len(windows) // 2
    first, second = (
        sum((made.cells for each in part if (made := window_of(each, reference))), np.zeros(reference.width, np.int64))
        for part in (windows[:middle], windows[middle:])
    )
    return np.array([_index(reference, name, first, second) for name in reference.histograms])


def _index(reference: Reference, name: str, first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    before, after = (reference.column(cells, name).bins for cells in (first, second))
    return psi(after, before) if before.sum() and after.sum() else 0.0

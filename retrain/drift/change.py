"""A change of level in a series of windows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN

#: So many values of a series are kept.
LENGTH = 120


def change(series: Sequence[float], confidence: float) -> float | None:
    """How far the level of a series of values in 0 to 1 has moved, if its last value shows that it has; else None.

    ADWIN (A. Bifet, R. Gavaldà, 2007, "Learning from time-changing data with adaptive windowing", SIAM Data Mining) looks at
    each value; `confidence` is its delta. In a short series it sees large changes only: at 0.002 and after 60 steady values, a
    move by 0.7 shows with the 26th value, one by 0.4 with the 55th, and one by 0.2 not within `LENGTH`.
    """
    detector = ADWIN(delta=confidence, clock=1)  # type: ignore[no-untyped-call]
    for value in series:
        detector.update(value)  # type: ignore[no-untyped-call]
    return _moved(np.array(series)) if detector.drift_detected else None


def _moved(series: NDArray[np.float64]) -> float:
    """The difference of the means before and after the place where they differ most evidently (E. S. Page's cumulative sum)."""
    cut = 1 + int(np.argmax(np.abs(np.cumsum(series - series.mean())[:-1])))
    return abs(float(series[cut:].mean() - series[:cut].mean()))

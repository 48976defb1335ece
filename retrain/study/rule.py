"""The rule by which a study picks: the smallest candidate that loses no more than is tolerated against the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

#: What an interval of 95% leaves out at either end.
_TAIL = 0.025


class Interval(msgspec.Struct, frozen=True):
    """A number and its interval of 95%."""

    value: float
    low: float
    high: float


class Loss(msgspec.Struct, frozen=True):
    """How much less average precision than the best, and the upper end of its interval of 95%. Below 0: it has more."""

    value: float
    upper: float


@dataclass(frozen=True)
class Quality:
    """What the rule knows of a candidate: its size on disk, its average precision on the slice and on the resamples of it,
    shape (count,), and whether it can be served at all."""

    size_bytes: int
    average_precision: float
    resampled: NDArray[np.float64]
    servable: bool = True

    @property
    def interval(self) -> Interval:
        """The average precision with its percentile interval."""
        low, high = _quantiles(self.resampled, (_TAIL, 1 - _TAIL))
        return Interval(self.average_precision, low, high)


@dataclass(frozen=True)
class Choice:
    """Places in the list of candidates: the one that is picked and the one that it was held against; and what each loses."""

    picked: int
    best: int
    losses: tuple[Loss, ...]


def choose(candidates: Sequence[Quality], tolerance: float, max_size_bytes: int | None) -> Choice | None:
    """Pick from candidates in their order, small to large; None where none can be served within the limit.

    The best is the one of highest average precision among those that could be picked. One that is too large is no yardstick: it
    cannot be had, so a smaller one gives nothing up against it. Equal candidates: the smaller on disk, then the first.
    """
    eligible = [
        i
        for i, each in enumerate(candidates)
        if each.servable and (max_size_bytes is None or each.size_bytes <= max_size_bytes)
    ]
    if not eligible:
        return None
    best = min(eligible, key=lambda i: (-candidates[i].average_precision, candidates[i].size_bytes, i))
    losses = tuple(
        Loss(0.0, 0.0) if i == best else _loss(candidates[best], candidate) for i, candidate in enumerate(candidates)
    )
    within = [i for i in eligible if losses[i].upper <= tolerance]
    return Choice(min(within, key=lambda i: (candidates[i].size_bytes, i)), best, losses)


def _loss(best: Quality, other: Quality) -> Loss:
    (upper,) = _quantiles(best.resampled - other.resampled, (1 - _TAIL,))
    return Loss(best.average_precision - other.average_precision, upper)


def _quantiles(values: NDArray[np.float64], at: tuple[float, ...]) -> list[float]:
    """Quantiles of what the resamples with a positive gave."""
    return [float(value) for value in np.quantile(values[~np.isnan(values)], at)]

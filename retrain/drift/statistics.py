"""The numbers by which a window is judged; each only as far as chance cannot explain it."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaincinv  # type: ignore[import-untyped]

#: How seldom chance alone may throw one number out of its interval.
CHANCE = 1e-3
#: An empty bin counts as half an event: the logarithm needs more than none.
_LEAST = 0.5


def psi(counts: NDArray[np.int64], reference: NDArray[np.int64]) -> float:
    """The population stability index of two histograms of shape (bins,), less what it is without any drift.

    Without drift the index is about (1/n + 1/m) times a chi-squared variable of bins - 1 degrees of freedom, n and m being the
    sums of the histograms (B. Yurdakul, 2018, "Statistical Properties of Population Stability Index", Western Michigan
    University, dissertation 3208). So its mean, (bins - 1)(1/n + 1/m), is taken off: steady data lie around 0, some below.

    Both sums are above 0.
    """
    n, m = int(counts.sum()), int(reference.sum())
    seen, expected = np.maximum(counts, _LEAST) / n, np.maximum(reference, _LEAST) / m
    index = float(((seen - expected) * np.log(seen / expected)).sum())
    return index - (len(counts) - 1) * (1 / n + 1 / m)


def share_interval(hits: int, events: int, outside: float = CHANCE) -> tuple[float, float]:
    """The exact interval of a share (C. J. Clopper, E. S. Pearson, 1934, Biometrika 26:404-413), `hits` of `events`."""
    low = float(betaincinv(hits, events - hits + 1, outside / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, events - hits, 1 - outside / 2)) if hits < events else 1.0
    return low, high


def share_at_least(hits: int, events: int) -> float:
    """The least share that `hits` of `events` speak for."""
    return share_interval(hits, events)[0]


def shares_apart(hits: int, events: int, reference_hits: int, reference_events: int) -> float:
    """How far two shares lie apart at least: the gap between their intervals, 0 where these touch."""
    low, high = share_interval(hits, events)
    reference_low, reference_high = share_interval(reference_hits, reference_events)
    return max(low - reference_high, reference_low - high, 0.0)


def count_interval(count: float, outside: float = CHANCE) -> tuple[float, float]:
    """The exact interval of a Poisson mean of which `count` was seen (F. Garwood, 1936, Biometrika 28:437-442)."""
    low = float(gammaincinv(count, outside / 2)) if count else 0.0
    return low, float(gammaincinv(count + 1, 1 - outside / 2))


def times_apart(count: int, events: int, reference_count: float, reference_events: float) -> float:
    """How many times more, or fewer, were counted than the reference lets expect, at least; 1 where chance explains it."""
    low, high = (bound / events for bound in count_interval(count))
    reference_low, reference_high = (bound / reference_events for bound in count_interval(reference_count))
    return max(low / reference_high, reference_low / high, 1.0)


def mean_rank(counts: NDArray[np.int64]) -> float:
    """In which bin values lie on average, 0 for the first to 1 for the last; `counts` of shape (bins,), bins above 1."""
    return float(counts @ np.arange(len(counts)) / (counts.sum() * (len(counts) - 1)))

"""How well a model does, from weighted rows whose outcome was seen, with 95% intervals.

Rates are ratios of weighted sums (J. Hájek, 1971, in "Foundations of Statistical Inference"). Their variance is that of
the linearised ratio (C.-E. Särndal, B. Swensson, J. Wretman, 1992, "Model Assisted Survey Sampling", section 5.6), summed
within the units that were drawn as one and squared between them (K.-Y. Liang, S. L. Zeger, 1986, Biometrika 73:13-22): rows of
one unit are seen together or not at all, so they do not count as independent. The interval is the exact one of a binomial
share (C. J. Clopper, E. S. Pearson, 1934, Biometrika 26:404-413) with as many draws as have this variance (E. L. Korn,
B. I. Graubard, 1998, Survey Methodology 24:193-201): it stays inside 0 to 1, and holds where few rows are of one kind.
Average precision is linearised too, by its derivative after each row's weight. The number of positives for each that the scores
say has, in the same way, the exact interval of as many Poisson counts (F. Garwood, 1936, Biometrika 28:437-442).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, gammaincinv, ndtri, stdtrit  # type: ignore[import-untyped]

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: What lies outside the interval at either end: it is of 95%.
_TAIL = 0.025
#: With fewer units behind it, an interval is not to be relied on.
FEW_UNITS = 10
_ALONE = "one unit alone has no interval"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, None where no row speaks of it, and its interval, None where one unit alone does.

    `rows` are those that it rests on, and `units` how many draws these came of. `note` says what is wrong with it, if anything.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    units: int
    note: str = ""


def false_discovery_rate(positive: Flags, blocked: Flags, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """The share of legitimate events among those that the model blocks, or would have blocked.

    Args:
        positive: the outcome of each row, shape (n,).
        blocked: whether the model would block it: its score reaches the threshold, shape (n,).
        weights: 1/pi of each row, shape (n,).
        units: what was drawn as one with the row, shape (n,); equal values are one unit.
    """
    return _ratio(~positive, blocked, weights, units)


def false_positive_rate(positive: Flags, blocked: Flags, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """The share of those that the model blocks, or would have blocked, among legitimate events; arguments as above."""
    return _ratio(blocked, ~positive, weights, units)


def precision(positive: Flags, alerted: Flags, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """The share of positives among the events that alert; `alerted`: whether the score reaches that threshold, shape (n,)."""
    return _ratio(positive, alerted, weights, units)


def recall(positive: Flags, alerted: Flags, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """The share of events that alert among the positives; arguments as of `precision`."""
    return _ratio(alerted, positive, weights, units)


def average_precision(positive: Flags, scores: Numbers, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """The mean, over the positives, of the precision at their own score; events of equal score are reached together.

    Args:
        positive: the outcome of each row, shape (n,).
        scores: of the rows, shape (n,).
        weights, units: as above.
    """
    if not positive.any():
        return _nothing()
    order = np.argsort(-scores, kind="stable")
    weight, hit, ranked = weights[order], positive[order], scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of those of equal score
    level = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1))
    reached, found = np.cumsum(weight)[last], np.cumsum(weight * hit)[last]
    share, new = found / reached, np.diff(found, prepend=0.0)
    value = float((new * share).sum() / found[-1])
    # A row counts in the precision of every positive at or below its score: sums from the lowest score upwards.
    within, lost = (np.cumsum(each[::-1])[::-1][level] for each in (new / reached, new * share / reached))
    slope = (hit * (share[level] - value + within) - lost) / found[-1]
    names, unit = np.unique(units[order], return_inverse=True)
    return _estimate(min(value, 1.0), _variance(weight * slope, unit, len(names)), weight[hit], unit[hit])


def calibration(positive: Flags, scores: Numbers, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """How many positives there are for each that the scores say: 1 where they are right; arguments as above."""
    expected = float((weights * scores).sum())
    if not expected > 0:
        return _nothing()
    names, unit = np.unique(units, return_inverse=True)
    drawn, there = len(names), float(weights[positive].sum())
    value = there / expected
    if drawn == 1:
        return Estimate(value, None, None, len(weights), 1, _ALONE)
    if not there:  # as if each count weighed as much as the heaviest row
        most = float(weights.max() * gammaincinv(1, 1 - _TAIL)) / expected
        return Estimate(0.0, 0.0, most, len(weights), drawn, _few(drawn))
    variance = _variance(weights * (positive - value * scores), unit, drawn)
    counts = min(1.0 / max(variance / there**2, np.finfo(float).tiny), float(positive.sum()))
    counts *= float(ndtri(1 - _TAIL) / stdtrit(drawn - 1, 1 - _TAIL)) ** 2
    low, high = gammaincinv(counts, _TAIL) / counts, gammaincinv(counts + 1, 1 - _TAIL) / counts
    return Estimate(value, value * float(low), value * float(high), len(weights), drawn, _few(drawn))


def _ratio(counted: Flags, among: Flags, weights: Numbers, units: NDArray[np.generic]) -> Estimate:
    """The weighted share of the rows `counted` among the rows `among`."""
    if not among.any():
        return _nothing()
    weight, hit = weights[among], counted[among]
    names, unit = np.unique(units[among], return_inverse=True)
    total = float(weight.sum())
    value = float(weight[hit].sum()) / total
    return _estimate(value, _variance(weight * (hit - value), unit, len(names)) / total**2, weight, unit)


def _variance(residuals: Numbers, unit: NDArray[np.intp], drawn: int) -> float:
    """Of the sum of residuals whose sum is zero, from `drawn` units."""
    return drawn / max(drawn - 1, 1) * float((np.bincount(unit, residuals) ** 2).sum())


def _estimate(value: float, variance: float, weight: Numbers, unit: NDArray[np.intp]) -> Estimate:
    """A share with its interval; the rows whose share it is have these weights, and are of these units."""
    rows, drawn, sums = len(weight), len(np.unique(unit)), np.bincount(unit, weight)
    if drawn == 1:
        return Estimate(value, None, None, rows, 1, _ALONE)
    if 0 < value < 1:
        # Units that are alike leave no variance but rounding; no rows tell more than each by itself would.
        draws = min(value * (1 - value) / max(variance, np.finfo(float).tiny), float(rows))
    else:  # the rows agree: they count as so many as if every unit weighed as much as the heaviest
        draws = float(sums.sum() / sums.max())
    draws *= float(stdtrit(max(rows - 1, 1), 1 - _TAIL) / stdtrit(drawn - 1, 1 - _TAIL)) ** 2
    low, high = _exact(value * draws, draws)
    return Estimate(value, low, high, rows, drawn, _few(drawn))


def _nothing() -> Estimate:
    return Estimate(None, None, None, 0, 0, "no row speaks of it")


def _few(drawn: int) -> str:
    return f"fewer than {FEW_UNITS} units" if drawn < FEW_UNITS else ""


def _exact(hits: float, draws: float) -> tuple[float, float]:
    """Clopper and Pearson's interval, of draws that need not be whole."""
    misses = draws - hits
    low = float(betaincinv(hits, misses + 1, _TAIL)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, misses, 1 - _TAIL)) if misses > 0 else 1.0
    return low, high

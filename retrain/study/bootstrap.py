"""Average precision on resamples of the held-out slice, the same ones for every candidate.

The bootstrap (B. Efron, 1979, Annals of Statistics 7:1-26) draws whole clusters, with replacement: rows of one entity are
alike, so they are in a resample together or not at all (A. C. Davison, D. V. Hinkley, 1997, "Bootstrap Methods and their
Application", section 3.8). All candidates see the same resamples, so differences between them are paired.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Ranking:
    """Rows in the order of their scores: made once, asked for many weights.

    Average precision is the mean, over the positives, of the precision among all rows that score as high or higher; rows with
    equal scores stand together, as in scikit-learn.
    """

    def __init__(self, scores: Numbers, labels: NDArray[np.int8]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        falling = -scores[self._order]
        at = np.flatnonzero(labels[self._order] == 1)
        self._positives = self._order[at]
        # For each positive the last row that scores the same, and the last positive that does.
        self._ends = np.searchsorted(falling, falling[at], side="right") - 1
        self._last = np.searchsorted(self._ends, self._ends, side="right") - 1

    def average_precision(self, weights: Numbers) -> float:
        """With weights of the rows, shape (n,); NaN where no positive weighs anything."""
        above = np.cumsum(weights[self._order])[self._ends]
        mine = weights[self._positives]
        found = np.cumsum(mine)
        if not len(found) or not found[-1]:
            return float("nan")
        precision = np.divide(found[self._last], above, out=np.zeros(len(above)), where=above > 0)
        return float(mine @ precision / found[-1])


def resampled(
    rankings: Sequence[Ranking], weights: Numbers, clusters: NDArray[np.int64] | None, count: int, seed: int
) -> Numbers:
    """The average precision of each candidate on each resample, shape (candidates, count); NaN in those without a positive.

    Args:
        rankings: the candidates', of the same n rows.
        weights: how many events each row stands for, shape (n,).
        clusters: what each row is drawn together with, shape (n,); each row for itself where None.
        count: how many resamples.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    names, cluster = (None, None) if clusters is None else np.unique(clusters, return_inverse=True)
    units = len(weights) if names is None else len(names)
    found = np.empty((len(rankings), count))
    for i in range(count):
        times = np.bincount(random.integers(units, size=units), minlength=units).astype(np.float64)
        drawn = weights * (times if cluster is None else times[cluster])
        found[:, i] = [ranking.average_precision(drawn) for ranking in rankings]
    return found

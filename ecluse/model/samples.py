"""Sample rows of an artefact: made up from its reference histograms, with the scores that its estimator gave them.

A worker scores them before it serves the model, so a model that loads but computes otherwise never meets an event. No row is
a customer's: each value is drawn from the edges of its own input's histogram, whatever the others are.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecluse.errors import ModelRefused
from ecluse.model.features import Feature
from ecluse.model.manifest import UNREADABLE, Histogram

ROWS = 256
_SEED = 20180401


class Samples(msgspec.Struct, frozen=True):
    """Rows of features (null: missing), and the probability of class 1 that the estimator gave each."""

    rows: tuple[tuple[float | None, ...], ...]
    scores: tuple[float, ...]

    @staticmethod
    def of(matrix: NDArray[np.float32], scores: NDArray[np.float64]) -> "Samples":
        """Samples of rows of features, (n, features), and their scores, (n,)."""
        rows = tuple(tuple(None if np.isnan(value) else float(value) for value in row) for row in matrix)
        return Samples(rows, tuple(scores.tolist()))

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The rows of features, shape (n, features)."""
        return np.array(self.rows, dtype=np.float32)

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(data: bytes, features: int) -> "Samples":
        """Read what `encode` wrote.

        Raises:
            ModelRefused: these are no samples of a model of so many features.
        """
        try:
            samples = msgspec.json.decode(data, type=Samples)
        except UNREADABLE as error:
            raise ModelRefused(f"The sample rows cannot be read: {error}.") from error
        if not samples.rows or len(samples.rows) != len(samples.scores):
            raise ModelRefused("The artefact has no sample rows, or not a score for each.")
        if any(len(row) != features for row in samples.rows):
            raise ModelRefused(f"The sample rows do not have the model's {features} features.")
        return samples


def synthetic_rows(
    features: Sequence[Feature], reference: Mapping[str, Histogram], rows: int = ROWS
) -> NDArray[np.float32]:
    """Rows of features drawn from the histograms, each input for itself, shape (rows, features). The same each time.

    Every bin that holds anything is drawn, and so is a missing value where one was seen.
    """
    random = np.random.default_rng(_SEED)
    columns = [_drawn(feature, reference[feature.name], rows, random) for feature in features]
    return np.column_stack(columns).astype(np.float32)


def _drawn(feature: Feature, histogram: Histogram, rows: int, random: np.random.Generator) -> NDArray[np.float64]:
    counts = np.array([*histogram.counts, histogram.missing], dtype=np.float64)
    if not counts.sum():
        return np.full(rows, histogram.median)
    seen = random.permutation(np.flatnonzero(counts))[:rows]
    rest = random.choice(len(counts), size=rows - len(seen), p=counts / counts.sum())
    bins = random.permutation(np.concatenate([seen, rest]))
    if feature.transform == "category":
        values = np.append(np.arange(len(histogram.counts), dtype=np.float64), np.nan)
    else:
        # The value of a bin is its upper edge, which lies in it; the last bin has none.
        edge = histogram.edges[-1] if histogram.edges else 0.0
        last = (
            edge + max(1.0, abs(edge) / 1000) if histogram.edges else histogram.median
        )  # so far that float32 tells it
        values = np.array([*histogram.edges, last, np.nan])
    return np.take(values, bins)

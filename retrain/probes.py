"""What a model does with inputs that its rows may not show but an event may bring: tried before it is published."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.schema import EventSchema
from ecluse.errors import ModelRefused
from ecluse.model.features import Feature

Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]
#: Rows on which is tried what a missing value does.
_PROBES = 64


def probe(
    features: Sequence[Feature],
    schema: EventSchema,
    matrix: NDArray[np.float32],
    score: Score,
    *,
    missing: str,
    strange: str,
) -> NDArray[np.float32]:
    """Rows in which one feature after the other is what an event may bring, shape (probes, features): missing, or a text that
    is none of its categories.

    Args:
        features: the model's.
        schema: the stream's.
        matrix: rows of the features, shape (n, features).
        score: the model's, of rows of features.
        missing: what to do where the model gives no score without a value, the end of a sentence.
        strange: what to do where it gives none for such a text.

    Raises:
        ModelRefused: the model fails on whole rows, or gives no score for such a one.
    """
    whole = _whole(matrix[:_PROBES], matrix)
    checked_scores(score, whole)
    probes = []

    def fails(column: int, value: float) -> bool:
        row = whole.copy()
        row[:, column] = value
        probes.append(row)
        return not _bears(score, row)

    may_lack = [
        feature.missing is None and (not schema.fields[feature.field].required or bool(np.isnan(matrix[:, i]).any()))
        for i, feature in enumerate(features)
    ]
    without = [feature.name for i, feature in enumerate(features) if may_lack[i] and fails(i, np.nan)]
    if without:
        raise ModelRefused(
            f"The model gives no score where {', '.join(without)} is missing, and an event may lack it: {missing}"
        )
    texts = [(i, feature) for i, feature in enumerate(features) if feature.transform == "category"]
    unknown = [f"{each.name} ({len(each.categories)})" for i, each in texts if fails(i, len(each.categories))]
    if unknown:
        raise ModelRefused(
            f"The model gives no score for the code of a text that is no category of {', '.join(unknown)}, and an event may "
            f"bring one: {strange}"
        )
    return np.concatenate([whole[:0], *probes])


def _whole(rows: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows with the columns' medians where a value is missing; each is a value that occurs, as a category's code must be."""
    known = [column[~np.isnan(column)] for column in matrix.T]
    medians = [np.quantile(column, 0.5, method="lower") if column.size else 0.0 for column in known]
    return np.where(np.isnan(rows), np.array(medians, dtype=np.float32), rows)


def _bears(score: Score, rows: NDArray[np.float32]) -> bool:
    """Whether the model gives numbers for rows with missing values."""
    try:
        return bool(np.isfinite(score(rows)).all())
    except Exception:  # a model raises anything
        return False


def checked_scores(score: Score, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The model's scores of rows of features, (n, features) to (n,).

    Raises:
        ModelRefused: it fails on them, or gives no probabilities.
    """
    try:
        scores = score(rows)
    except ModelRefused:
        raise
    except Exception as error:  # a model raises anything
        said = (str(error).strip().splitlines() or [""])[0]
        raise ModelRefused(
            f"The model fails on rows that it was tried on: {type(error).__name__}: {said[:300]}".rstrip(".") + "."
        ) from error
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).sum())
        raise ModelRefused(f"The model gives NaN or infinity for {bad:,} of {len(rows):,} rows that it was tried on.")
    if scores.min() < -1e-5 or scores.max() > 1 + 1e-5:
        raise ModelRefused(
            f"The model gives scores from {scores.min():.3g} to {scores.max():.3g}, which are no probabilities."
        )
    return scores

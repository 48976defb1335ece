"""The training script that ships: gradient boosting, which takes numbers of any scale and missing values as they are."""

from collections.abc import Sequence

import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]

from retrain.dataset import own_column


def train(frame: pl.DataFrame, features: Sequence[str]) -> HistGradientBoostingClassifier:
    """Fit 100 boosted trees.

    Args:
        frame: one float32 column a feature, `label` (0 or 1) and `weight`, in time order.
        features: the feature columns, in the order in which the model gets them.
    """
    # No early stopping: it sets a shuffled tenth of the rows aside to choose the number of trees, and in a stream
    # neighbours in time on both sides make that choice look better than it is.
    model = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.06, l2_regularization=10.0, early_stopping=False, random_state=0
    )
    weights = frame[own_column("weight", features)].to_numpy()
    return model.fit(frame.select(features).to_numpy(), frame["label"].to_numpy(), sample_weight=weights)

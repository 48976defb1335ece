"""A training script for a model that takes many times as long as the one that ships: a neural network of two wide layers."""

from collections.abc import Sequence

import polars as pl
from sklearn.neural_network import MLPClassifier  # type: ignore[import-untyped]
from sklearn.pipeline import Pipeline, make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

LAYERS = (1_000, 1_000)
ROWS = 5_000


def train(frame: pl.DataFrame, features: Sequence[str]) -> Pipeline:
    """Fit it to the last `ROWS` rows, and not well: its speed is what matters here."""
    last = frame.tail(ROWS)
    model = make_pipeline(
        StandardScaler(), MLPClassifier(LAYERS, max_iter=3, tol=1.0, n_iter_no_change=2, random_state=0)
    )
    return model.fit(last.select(features).to_numpy(), last["label"].to_numpy())

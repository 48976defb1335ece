"""The candidates of a study, small to large: those that the script names, or a ladder of our own with the script on it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from sklearn.compose import ColumnTransformer  # type: ignore[import-untyped]
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]
from sklearn.impute import SimpleImputer  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.pipeline import Pipeline, make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import OneHotEncoder, StandardScaler  # type: ignore[import-untyped]

from ecluse.model.features import Feature
from ecluse.model.manifest import sha256
from retrain.dataset import own_column
from retrain.script import Script, own_candidates

#: Trees of our own ladder, and how much each adds: few trees must each add more.
_BOOSTING = ((15, 0.3), (50, 0.12), (150, 0.06), (400, 0.03))
_FILE = Path(__file__)


def candidates_of(script: Script, features: Sequence[Feature]) -> dict[str, Script]:
    """The candidates by name, in the order in which they are told.

    Raises:
        ModelRefused: the script's `candidates` fails.
    """
    own = own_candidates(script, [feature.name for feature in features])
    if own is not None:
        return {name: script.of_candidate(name, train) for name, train in own.items()}
    ladder = Script("study", sha256(_FILE.read_bytes()), lambda _, __: None, _FILE)
    ours: dict[str, Any] = {"logistic": partial(_logistic, features)}
    ours |= {f"boosting-{trees}": partial(_boosting, trees, rate) for trees, rate in _BOOSTING}
    return {name: ladder.of_candidate(name, train) for name, train in ours.items()} | {"script": script}


def _logistic(known: Sequence[Feature], frame: pl.DataFrame, features: Sequence[str]) -> Pipeline:
    """Logistic regression on scaled numbers and one column a category."""
    texts = [i for i, feature in enumerate(known) if feature.transform == "category"]
    numbers = [i for i in range(len(known)) if i not in texts]
    scaled = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    # -1 is no category's code.
    coded = make_pipeline(
        SimpleImputer(strategy="constant", fill_value=-1.0), OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    )
    columns = ColumnTransformer(
        [(name, way, which) for name, way, which in (("numbers", scaled, numbers), ("texts", coded, texts)) if which]
    )
    rows, labels, weights = _parts(frame, features)
    return make_pipeline(columns, LogisticRegression(max_iter=2000)).fit(
        rows, labels, logisticregression__sample_weight=weights
    )


def _boosting(trees: int, rate: float, frame: pl.DataFrame, features: Sequence[str]) -> HistGradientBoostingClassifier:
    """So many boosted trees."""
    model = HistGradientBoostingClassifier(
        max_iter=trees, learning_rate=rate, l2_regularization=10.0, early_stopping=False, random_state=0
    )
    rows, labels, weights = _parts(frame, features)
    return model.fit(rows, labels, sample_weight=weights)


def _parts(frame: pl.DataFrame, features: Sequence[str]) -> tuple[Any, Any, Any]:
    weights = frame[own_column("weight", features)].to_numpy()
    return frame.select(features).to_numpy(), frame["label"].to_numpy(), weights

"""Estimators that people bring: the ONNX that workers serve gives the scores of `predict_proba`."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from ecluse.errors import ModelRefused
from ecluse.model import runtime
from ecluse.model.runtime import TOLERANCE, onnx_scorer
from retrain.convert import convert
from retrain.script import probabilities


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """OpenMP's threads would wait for each other, spinning, where other tests use the cores."""
    with threadpool_limits(1):
        yield


SEED = 20180401
ROWS = 4000
CODES = 3
Matrix = NDArray[np.float32]


def rows(count: int, seed: int, missing: float = 0.0) -> Matrix:
    """Money in cents, large and small numbers, and a category's codes, some of them missing."""
    random = np.random.default_rng(seed)
    columns = [
        np.round(random.gamma(2, 300, count), 2),
        random.random(count) * 1e5,
        random.normal(0, 1, count),
        random.integers(0, CODES + 2, count),
    ]
    matrix = np.column_stack(columns).astype(np.float32)
    matrix[random.random(matrix.shape) < missing] = np.nan
    return matrix


def learnt(estimator: Any, matrix: Matrix) -> Any:
    whole = np.nan_to_num(matrix)
    noise = np.random.default_rng(SEED).normal(0, 60, len(matrix))
    labels = (whole[:, 0] * whole[:, 1] / 1e5 + 50 * whole[:, 2] + 30 * (whole[:, 3] == 2) + noise) > 400
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short training does not converge, and need not
        return estimator.fit(matrix, labels.astype(np.int8))


def prepared(*steps: Any) -> Any:
    """Scaled numbers and one-hot codes before a classifier."""
    columns = ColumnTransformer(
        [("scaled", StandardScaler(), [0, 1, 2]), ("coded", OneHotEncoder(handle_unknown="ignore"), [3])]
    )
    return make_pipeline(columns, *steps)


def boosting() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=40, random_state=SEED)


def forest(trees: int = 25) -> RandomForestClassifier:
    return RandomForestClassifier(trees, random_state=SEED)


def scaled_regression() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression())


ESTIMATORS = {
    "LogisticRegression": LogisticRegression(max_iter=500),
    "LogisticRegression, scaled": scaled_regression(),
    "RandomForestClassifier": forest(),
    "ExtraTreesClassifier": ExtraTreesClassifier(25, random_state=SEED),
    "HistGradientBoostingClassifier": boosting(),
    "GradientBoostingClassifier": GradientBoostingClassifier(n_estimators=40, random_state=SEED),
    "GradientBoostingClassifier, exponential": GradientBoostingClassifier(
        n_estimators=20, loss="exponential", random_state=SEED
    ),
    "DecisionTreeClassifier": DecisionTreeClassifier(max_depth=8, random_state=SEED),
    "MLPClassifier": MLPClassifier((16, 8), max_iter=20, random_state=SEED),
    "MLPClassifier, scaled": make_pipeline(StandardScaler(), MLPClassifier((16, 8), max_iter=20, random_state=SEED)),
    "ColumnTransformer, LogisticRegression": prepared(LogisticRegression(max_iter=300)),
    "ColumnTransformer, RandomForestClassifier": prepared(forest()),
    "StandardScaler, HistGradientBoostingClassifier": make_pipeline(StandardScaler(), boosting()),
    "CalibratedClassifierCV of a forest": CalibratedClassifierCV(forest(10), cv=3),
    "CalibratedClassifierCV of extra trees": CalibratedClassifierCV(ExtraTreesClassifier(10, random_state=SEED), cv=3),
    "CalibratedClassifierCV of boosting": CalibratedClassifierCV(boosting(), cv=3),
    "CalibratedClassifierCV of a pipeline": CalibratedClassifierCV(scaled_regression(), cv=3),
    "CalibratedClassifierCV of a pipeline with a forest": CalibratedClassifierCV(prepared(forest(10)), cv=3),
    "CalibratedClassifierCV, isotonic": CalibratedClassifierCV(scaled_regression(), cv=3, method="isotonic"),
    "VotingClassifier, soft": VotingClassifier(
        [("line", scaled_regression()), ("forest", forest(10)), ("boosting", boosting())], voting="soft"
    ),
    "VotingClassifier, weighted": VotingClassifier(
        [("line", scaled_regression()), ("forest", forest(10))], voting="soft", weights=[1, 3]
    ),
}
WITH_MISSING = {
    "HistGradientBoostingClassifier": boosting(),
    "RandomForestClassifier": forest(),
    "ExtraTreesClassifier": ExtraTreesClassifier(25, random_state=SEED),
    "DecisionTreeClassifier": DecisionTreeClassifier(max_depth=8, random_state=SEED),
    "SimpleImputer, LogisticRegression": make_pipeline(SimpleImputer(strategy="median"), scaled_regression()),
    "StandardScaler, HistGradientBoostingClassifier": make_pipeline(StandardScaler(), boosting()),
    "SimpleImputer, RandomForestClassifier": make_pipeline(SimpleImputer(), forest()),
    "CalibratedClassifierCV of boosting": CalibratedClassifierCV(boosting(), cv=3),
}


def agrees(estimator: Any, matrix: Matrix) -> bytes:
    """Convert, and hold both forms against each other here, not only where the code under test does."""
    onnx, scores, difference = convert(estimator, matrix)
    expected = probabilities(estimator, matrix)
    assert expected.std() > 0.02, "scores that are all alike would prove nothing"
    assert np.abs(scores - expected).max() <= TOLERANCE and difference <= TOLERANCE
    assert np.abs(onnx_scorer(onnx, matrix.shape[1])(matrix) - expected).max() <= TOLERANCE
    return onnx


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_onnx_of_what_people_bring_gives_the_scores_of_predict_proba(name: str) -> None:
    training = rows(ROWS, SEED)
    estimator = learnt(ESTIMATORS[name], training)
    onnx = agrees(estimator, np.concatenate([training, rows(ROWS, SEED + 1)]))
    outputs = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"]).get_outputs()
    assert (outputs[-1].type, outputs[-1].shape) == ("tensor(float)", [None, 2])


@pytest.mark.parametrize("name", WITH_MISSING)
def test_missing_values_take_the_branch_that_was_learnt(name: str) -> None:
    training = rows(ROWS, SEED, missing=0.15)
    estimator = learnt(WITH_MISSING[name], training)
    agrees(estimator, np.concatenate([training, rows(ROWS, SEED + 1, missing=0.15)]))


def thresholds_of(estimator: Any) -> NDArray[np.float64]:
    """Every threshold of every tree, by feature: shape (n, 2)."""
    if isinstance(estimator, HistGradientBoostingClassifier):
        nodes = np.concatenate([tree[0].nodes for tree in estimator._predictors])
        inner = nodes[nodes["is_leaf"] == 0]
        return np.column_stack([inner["feature_idx"], inner["num_threshold"]])
    trees = [tree.tree_ for tree in np.ravel(estimator.estimators_)]
    pairs = [(tree.feature[i], tree.threshold[i]) for tree in trees for i in np.flatnonzero(tree.feature >= 0)]
    return np.array(pairs, dtype=np.float64)


@pytest.mark.parametrize(
    "name",
    ["RandomForestClassifier", "ExtraTreesClassifier", "HistGradientBoostingClassifier", "GradientBoostingClassifier"],
)
def test_values_on_a_threshold_and_beside_it_take_the_branch_that_scikit_learn_takes(name: str) -> None:
    training = rows(ROWS, SEED)
    estimator = learnt(ESTIMATORS[name], training)
    chosen = np.random.default_rng(SEED).permutation(thresholds_of(estimator))[:3000]
    nearest = chosen[:, 1].astype(np.float32)
    neighbours = [np.nextafter(nearest, np.float32(limit)) for limit in (-np.inf, np.inf)]
    probes = []
    for values in (nearest, *neighbours):
        probe = training[np.arange(len(chosen)) % ROWS].copy()
        probe[np.arange(len(chosen)), chosen[:, 0].astype(int)] = values
        probes.append(probe)
    agrees(estimator, np.concatenate(probes))


@pytest.mark.parametrize("trees", [forest(), boosting()], ids=lambda trees: type(trees).__name__)
def test_trees_behind_a_scaler_see_scikit_learns_own_scaled_values(trees: Any) -> None:
    training = rows(ROWS, SEED)
    estimator = learnt(make_pipeline(StandardScaler(), trees), training)
    scaler = estimator.steps[0][1]
    chosen = thresholds_of(estimator.steps[1][1])[:5000]
    features = chosen[:, 0].astype(int)
    probe = training[np.arange(len(chosen)) % ROWS].copy()
    probe[np.arange(len(chosen)), features] = chosen[:, 1] * scaler.scale_[features] + scaler.mean_[features]
    agrees(estimator, probe)


def test_what_was_frozen_before_it_was_calibrated_is_converted_as_it_is() -> None:
    training = rows(ROWS, SEED)
    agrees(learnt(CalibratedClassifierCV(FrozenEstimator(learnt(forest(10), training))), training), training)


def test_isotonic_calibration_is_interpolated_between_its_thresholds() -> None:
    training = rows(600, SEED)
    estimator = learnt(CalibratedClassifierCV(LogisticRegression(), cv=2, method="isotonic"), training)
    agrees(estimator, rows(ROWS, SEED + 1))


def test_boosting_that_splits_by_sets_of_categories_is_refused_and_not_served_by_thresholds() -> None:
    training = rows(ROWS, SEED)
    estimator = learnt(
        HistGradientBoostingClassifier(max_iter=5, categorical_features=[3], random_state=SEED), training
    )
    with pytest.raises(ModelRefused, match=r"cannot be converted to ONNX: its splits by sets of categories"):
        convert(estimator, training)


def test_the_converters_are_as_they_were_when_the_conversion_is_over() -> None:
    from skl2onnx.common import _registration
    from skl2onnx.operator_converters import random_forest

    before = (
        random_forest.add_tree_to_attribute_pairs,
        *(registered._fct for registered in _registration._converter_pool.values()),
    )
    convert(learnt(forest(2), rows(100, SEED)), rows(100, SEED))
    assert before == (
        random_forest.add_tree_to_attribute_pairs,
        *(registered._fct for registered in _registration._converter_pool.values()),
    )


def test_a_model_in_doubles_runs_where_workers_run_it() -> None:
    matrix = rows(100, SEED)
    onnx, _, _ = convert(learnt(scaled_regression(), matrix), matrix)
    assert runtime.session(onnx, matrix.shape[1]).get_inputs()[0].type == "tensor(float)"

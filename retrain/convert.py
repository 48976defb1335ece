"""scikit-learn to ONNX, and the proof that both give the same scores."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx  # type: ignore[import-untyped]
from skl2onnx.common.data_types import FloatTensorType  # type: ignore[import-untyped]
from skl2onnx.operator_converters import random_forest  # type: ignore[import-untyped]

from ecluse.errors import ModelRefused
from ecluse.model import runtime
from retrain.script import probabilities

#: How far the ONNX's probability of a row may lie from the estimator's.
TOLERANCE = 1e-5


def to_onnx_bytes(estimator: Any, features: int) -> bytes:
    """Convert a fitted classifier: input float32 (n, `features`), outputs the class and the probabilities of both.

    Raises:
        ModelRefused: there is no conversion for such an estimator.
    """
    with _exact_boosted_trees(), warnings.catch_warnings():
        # numpy complains of the way in which a converter reads its arrays; that is between the two libraries.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"skl2onnx|onnx")
        try:
            model = to_onnx(
                estimator, initial_types=[("features", FloatTensorType([None, features]))], options={"zipmap": False}
            )
        except Exception as error:  # converters raise anything
            reason = str(error).strip().split("\n")[0][:300]
            raise ModelRefused(
                f"{type(estimator).__name__} cannot be converted to ONNX, which is what workers serve: {reason}"
            ) from error
    return bytes(model.SerializeToString())


@contextmanager
def _exact_boosted_trees() -> Iterator[None]:
    """Mend two faults of skl2onnx 1.20 in `HistGradientBoosting` trees while it converts.

    It rounds thresholds to the nearest float32, so that values beside one take the other branch (sklearn-onnx issue 1192);
    for other trees it rounds down, which is exact for float32 inputs, and here it is told to do the same. And it marks
    leaves with truth values where whole numbers are declared, which protobuf takes no more.
    """
    add_tree = random_forest.add_tree_to_attribute_pairs_hist_gradient_boosting

    def add_exact_tree(attributes: Any, is_classifier: bool, tree: Any, *args: Any, dtype: Any) -> None:
        tracks = attributes["nodes_missing_value_tracks_true"]
        before = len(tracks)
        tree_id, weight, bias, are_counts, _round_down = args
        add_tree(attributes, is_classifier, tree, tree_id, weight, bias, are_counts, True, dtype=dtype)
        tracks[before:] = [int(value) for value in tracks[before:]]

    random_forest.add_tree_to_attribute_pairs_hist_gradient_boosting = add_exact_tree
    try:
        yield
    finally:
        random_forest.add_tree_to_attribute_pairs_hist_gradient_boosting = add_tree


def compare(estimator: Any, onnx: bytes, rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Score rows with both; returns the ONNX's probabilities of class 1, shape (n,), and the largest difference.

    Raises:
        ModelRefused: the difference is larger than `TOLERANCE`, or the ONNX cannot be run.
    """
    # Clipped as in a worker: no score there reaches a threshold that was chosen a rounding error above 1.
    scores = runtime.clipped(runtime.probabilities(runtime.session(onnx, rows.shape[1]), rows))
    difference = float(np.max(np.abs(scores - probabilities(estimator, rows))))
    if not difference <= TOLERANCE:
        raise ModelRefused(
            f"The ONNX form of {type(estimator).__name__} differs from its predict_proba by up to {difference:.2g} on "
            f"{len(rows):,} held-out rows, where {TOLERANCE:g} is allowed. Workers serve only ONNX, so nothing was published."
        )
    return scores, difference

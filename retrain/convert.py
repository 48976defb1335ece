"""scikit-learn to ONNX, and the proof that both give the same scores."""

import warnings
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from skl2onnx import to_onnx  # type: ignore[import-untyped]
from skl2onnx._supported_operators import sklearn_operator_name_map  # type: ignore[import-untyped]
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # type: ignore[import-untyped]

from ecluse.errors import ModelRefused
from ecluse.model import runtime
from ecluse.model.runtime import TOLERANCE
from retrain.exact import TREES, exact_converters
from retrain.probes import checked_scores
from retrain.script import probabilities


def convert(estimator: Any, rows: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float64], float]:
    """The ONNX form of a fitted classifier, and its scores of rows: see `to_onnx_bytes` and `compare`.

    Trees compute in float32; all else in doubles, as in scikit-learn: scaled values that were rounded otherwise would pass a
    tree's threshold on the other side. What has no form in doubles is tried in float32.

    Raises:
        ModelRefused: there is no conversion for such an estimator, or it computes otherwise.
    """
    trees_alone = sklearn_operator_name_map.get(type(estimator)) in TREES
    refused: list[ModelRefused] = []
    for doubles in (False,) if trees_alone else (True, False):
        try:
            onnx = to_onnx_bytes(estimator, rows.shape[1], doubles=doubles)
            return onnx, *compare(estimator, onnx, rows)
        except ModelRefused as error:
            refused.append(error)
    raise refused[0]


def to_onnx_bytes(estimator: Any, features: int, *, doubles: bool = False) -> bytes:
    """Convert a fitted classifier: input float32 (n, `features`), outputs the class and the probabilities of both, (n, 2).

    Raises:
        ModelRefused: there is no conversion for such an estimator.
    """
    rows = (DoubleTensorType if doubles else FloatTensorType)([None, features])
    with exact_converters(), warnings.catch_warnings():
        # numpy complains of the way in which a converter reads its arrays; that is between the two libraries.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"skl2onnx|onnx")
        try:
            model = to_onnx(estimator, initial_types=[("features", rows)], options={"zipmap": False})
            _take_and_give_floats(model, features)
            return bytes(model.SerializeToString())
        except Exception as error:  # converters raise anything
            reason = str(error).strip().split("\n")[0][:300]
            raise ModelRefused(f"{type(estimator).__name__} cannot be converted to ONNX: {reason}") from error


def _take_and_give_floats(model: ModelProto, features: int) -> None:
    """Put casts around a graph of doubles, and declare the shapes that workers ask for."""
    graph = model.graph
    if graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE:
        graph.node.insert(0, helper.make_node("Cast", ["rows"], [graph.input[0].name], to=TensorProto.DOUBLE))
        graph.input[0].CopyFrom(helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, features]))
    given = graph.output[-1].name
    if graph.output[-1].type.tensor_type.elem_type == TensorProto.DOUBLE:
        graph.node.append(helper.make_node("Cast", [given], ["scores"], to=TensorProto.FLOAT))
        given = "scores"
    graph.output[-1].CopyFrom(helper.make_tensor_value_info(given, TensorProto.FLOAT, [None, 2]))


def compare(estimator: Any, onnx: bytes, rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """Score rows with both; returns the ONNX's probabilities of class 1, shape (n,), and the largest difference.

    Raises:
        ModelRefused: the difference is larger than `TOLERANCE`, or one of the two fails on the rows.
    """
    # Clipped as in a worker: no score there reaches a threshold that was chosen a rounding error above 1.
    scores = runtime.clipped(checked_scores(runtime.onnx_scorer(onnx, rows.shape[1]), rows))
    difference = float(np.max(np.abs(scores - checked_scores(partial(probabilities, estimator), rows))))
    if not difference <= TOLERANCE:
        raise ModelRefused(
            f"The ONNX form of {type(estimator).__name__} differs from its predict_proba by up to {difference:.2g} on "
            f"{len(rows):,} rows, where {TOLERANCE:g} is allowed."
        )
    return scores, difference

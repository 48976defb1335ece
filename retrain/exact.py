"""What skl2onnx 1.20 computes otherwise than scikit-learn, mended while it converts. Each function says what was wrong."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx.common import _registration  # type: ignore[import-untyped]
from skl2onnx.common._apply_operation import apply_cast  # type: ignore[import-untyped]
from skl2onnx.common._topology import Variable  # type: ignore[import-untyped]
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # type: ignore[import-untyped]
from skl2onnx.operator_converters import (  # type: ignore[import-untyped]
    calibrated_classifier_cv,
    decision_tree,
    random_forest,
)
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]
from sklearn.frozen import FrozenEstimator  # type: ignore[import-untyped]

#: The classifiers that are trees, whose converters know float32 only.
TREES = (
    "SklearnDecisionTreeClassifier",
    "SklearnExtraTreeClassifier",
    "SklearnRandomForestClassifier",
    "SklearnExtraTreesClassifier",
    "SklearnGradientBoostingClassifier",
    "SklearnHistGradientBoostingClassifier",
)
Convert = Callable[[Any, Any, Any], None]


@contextmanager
def exact_converters() -> Iterator[None]:
    """skl2onnx with its faults mended, inside the context."""
    converters: dict[str, Callable[[Convert], Convert]] = dict.fromkeys(TREES, _in_single)
    converters |= {"SklearnPipeline": _with_raw_scores, "SklearnVotingClassifier": _soft, "SklearnImputer": _imputed}
    with ExitStack() as replaced:
        for name, mend in converters.items():
            registered = _registration.get_converter(name)
            replaced.enter_context(_replaced(registered, "_fct", mend(registered._fct)))
        boosted = random_forest.add_tree_to_attribute_pairs_hist_gradient_boosting
        replaced.enter_context(
            _replaced(random_forest, "add_tree_to_attribute_pairs_hist_gradient_boosting", _exact_boosted(boosted))
        )
        for module in (decision_tree, random_forest):
            add = module.add_tree_to_attribute_pairs
            replaced.enter_context(_replaced(module, "add_tree_to_attribute_pairs", _with_missing(add)))
        base = calibrated_classifier_cv.convert_calibrated_classifier_base_estimator
        replaced.enter_context(
            _replaced(calibrated_classifier_cv, "convert_calibrated_classifier_base_estimator", _thawed(base))
        )
        replaced.enter_context(_replaced(calibrated_classifier_cv, "_transform_isotonic", _interpolated))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _exact_boosted(add_tree: Callable[..., None]) -> Callable[..., None]:
    """`HistGradientBoosting` thresholds are rounded to the nearest float32, so that values beside one take the other branch
    (sklearn-onnx issue 1192); for other trees they are rounded down, which is exact for float32 inputs, and so it is here.
    Leaves are marked with truth values where whole numbers are declared, which protobuf takes no more. Splits by sets of
    categories are taken for splits by a threshold: they are refused."""

    def add_exact_tree(attributes: Any, is_classifier: bool, tree: Any, *args: Any, dtype: Any) -> None:
        if tree.nodes["is_categorical"].any():
            raise NotImplementedError("its splits by sets of categories (categorical_features) have no ONNX form")
        tracks = attributes["nodes_missing_value_tracks_true"]
        before = len(tracks)
        tree_id, weight, bias, are_counts, _round_down = args
        add_tree(attributes, is_classifier, tree, tree_id, weight, bias, are_counts, True, dtype=dtype)
        tracks[before:] = [int(value) for value in tracks[before:]]

    return add_exact_tree


def _with_missing(add_tree: Callable[..., None]) -> Callable[..., None]:
    """Trees and forests learn the branch of a missing value, and it is not passed on: all take the right one."""

    def add_whole_tree(attributes: Any, is_classifier: bool, tree: Any, *args: Any, **others: Any) -> None:
        tracks = attributes["nodes_missing_value_tracks_true"]
        before = len(tracks)
        add_tree(attributes, is_classifier, tree, *args, **others)
        tracks[before:] = np.asarray(tree.missing_go_to_left).astype(int).tolist()

    return add_whole_tree


def _in_single(convert: Convert) -> Convert:
    """In a graph of doubles, a tree's rows are not rounded to float32 as scikit-learn rounds them, and some trees cannot be
    converted at all: here a tree gets float32 rows there too (but for histogram-based boosting, which rounds none), and gives
    doubles where the graph goes on in doubles."""

    def converted(scope: Any, operator: Any, container: Any) -> None:
        _forget_raw_scores(operator.raw_operator, scope, container)
        if not isinstance(operator.inputs[0].type, DoubleTensorType):
            convert(scope, operator, container)
            return
        given_rows = operator.inputs[0].full_name
        rows = _single(scope, operator.inputs[0], "single_rows")
        label, given = operator.outputs
        single = copy.copy(operator)
        scores = _single(scope, given, "single_scores") if isinstance(given.type, DoubleTensorType) else given
        single.__dict__ |= {"inputs": [rows], "outputs": [label, scores]}
        convert(scope, single, container)
        if isinstance(operator.raw_operator, HistGradientBoostingClassifier):
            _compare_doubles(operator.raw_operator, given_rows, container)
        else:
            apply_cast(scope, given_rows, rows.full_name, container, to=TensorProto.FLOAT)
        if scores is not given:
            apply_cast(scope, scores.full_name, given.full_name, container, to=TensorProto.DOUBLE)

    return converted


def _compare_doubles(boosting: Any, rows: str, container: Any) -> None:
    """Histogram-based boosting rounds nothing: let the trees that were just written take doubles."""
    node = next(node for node in reversed(container.nodes) if node.op_type == "TreeEnsembleClassifier")
    node.input[0] = rows
    nodes = np.concatenate([tree.nodes for trees in boosting._predictors for tree in trees])
    leaves = nodes["is_leaf"] == 1
    doubles = {
        "nodes_values": np.where(leaves, 0.0, nodes["num_threshold"]),
        "class_weights": nodes["value"][leaves],
        "base_values": np.ravel(boosting._baseline_prediction),
    }
    kept = [attribute for attribute in node.attribute if attribute.name not in (*doubles, "nodes_hitrates")]
    del node.attribute[:]
    node.attribute.extend(kept)
    for name, values in doubles.items():
        tensor = numpy_helper.from_array(values.astype(np.float64), name)
        node.attribute.append(helper.make_attribute(f"{name}_as_tensor", tensor))
    container.node_domain_version_pair_sets.add(("ai.onnx.ml", 3))  # the first in which trees can hold doubles


def _single(scope: Any, variable: Any, name: str) -> Any:
    name = scope.get_unique_variable_name(name)
    return Variable(name, name, scope.name, FloatTensorType(variable.type.shape))


def _with_raw_scores(convert: Convert) -> Convert:
    """A pipeline that is calibrated by its decision function is asked for it and does not pass that on to its last step."""

    def converted(scope: Any, operator: Any, container: Any) -> None:
        pipeline = operator.raw_operator
        if container.get_options(pipeline, {"raw_scores": False})["raw_scores"]:
            last = pipeline.steps[-1][1]
            if container.has_options(last, "raw_scores"):
                for options in (scope, container):
                    options.add_options(id(last), {"raw_scores": True})
        _forget_raw_scores(pipeline, scope, container)
        convert(scope, operator, container)

    return converted


def _forget_raw_scores(estimator: Any, scope: Any, container: Any) -> None:
    """What has no decision function is calibrated by its probabilities, and is asked for raw scores all the same."""
    if not hasattr(estimator, "decision_function") and container.has_options(estimator, "raw_scores"):
        for options in (scope, container):
            options.add_options(id(estimator), {"raw_scores": False})


def _soft(convert: Convert) -> Convert:
    """A vote is refused for `flatten_transform`, which is about `transform` only, and weights are taken for an array."""

    def converted(scope: Any, operator: Any, container: Any) -> None:
        vote = copy.copy(operator.raw_operator)
        vote.flatten_transform = False
        vote.weights = None if vote.weights is None else np.array(vote._weights_not_none)
        twin = copy.copy(operator)
        twin.__dict__["raw_operator"] = vote
        convert(scope, twin, container)

    return converted


def _imputed(convert: Convert) -> Convert:
    """The operator for missing values takes no doubles."""

    def converted(scope: Any, operator: Any, container: Any) -> None:
        imputer, rows = operator.raw_operator, operator.inputs[0]
        statistics = np.asarray(imputer.statistics_, dtype=np.float64)
        plain = np.isnan(imputer.missing_values) and not imputer.add_indicator and not np.isnan(statistics).any()
        if not plain or len(operator.inputs) > 1 or not isinstance(rows.type, DoubleTensorType):
            convert(scope, operator, container)
            return
        known, missing = (scope.get_unique_variable_name(name) for name in ("statistics", "missing"))
        container.add_initializer(known, TensorProto.DOUBLE, [1, len(statistics)], statistics.tolist())
        for kind, inputs, output in (
            ("IsNaN", [rows.full_name], missing),
            ("Where", [missing, known, rows.full_name], operator.outputs[0].full_name),
        ):
            container.add_node(kind, inputs, output, name=scope.get_unique_operator_name(kind), op_version=13)

    return converted


def _thawed(convert: Callable[..., Any]) -> Callable[..., Any]:
    """What was fitted before and frozen is calibrated as it is; there is no converter for its wrapping."""

    def converted(scope: Any, operator: Any, container: Any, model: Any, index: int) -> Any:
        if isinstance(model.estimator, FrozenEstimator):
            model = copy.copy(model)
            model.estimator = model.estimator.estimator
        return convert(scope, operator, container, model, index)

    return converted


def _interpolated(scope: Any, container: Any, model: Any, scores: str, k: int, _dtype: Any, proto_type: int) -> str:
    """Isotonic calibration takes the value of the nearest threshold; scikit-learn interpolates between the two around a score.

    Returns:
        The name of the calibrated scores, shape (n, 1).
    """
    calibrator = model.calibrators[k]
    x, y = (np.asarray(values, dtype=np.float64) for values in (calibrator.X_thresholds_, calibrator.y_thresholds_))
    if len(x) == 1:
        x, y = np.append(x, x + 1.0), np.append(y, y)

    def constant(name: str, kind: int, values: NDArray[Any]) -> str:
        name = scope.get_unique_variable_name(name)
        container.add_initializer(name, kind, values.shape, values.ravel().tolist())
        return name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        output: str = scope.get_unique_variable_name(f"isotonic_{kind}")
        container.add_node(kind, list(inputs), output, name=scope.get_unique_operator_name(kind), **attributes)
        return output

    column = node("Reshape", scores, constant("column", TensorProto.INT64, np.array([-1, 1])))
    if calibrator.X_thresholds_.dtype == np.float32:  # then it rounds the scores, too
        column = node("Cast", node("Cast", column, to=TensorProto.FLOAT, op_version=13), to=proto_type, op_version=13)
    lowest, highest = (constant("limit", proto_type, limit) for limit in (x[0], x[-1]))
    clipped = node("Clip", column, lowest, highest, op_version=13)
    # A score lies in the stretch that begins at the last threshold, but for the outermost, that is not above it.
    above = node("Less", clipped, constant("thresholds", proto_type, x[1:-1][None]), op_version=13)
    counted = node("Cast", node("Not", above, op_version=1), to=TensorProto.INT64, op_version=13)
    stretch = node("ReduceSum", counted, constant("axis", TensorProto.INT64, np.array([1])), keepdims=1, op_version=13)
    begin, value, slope = (
        node("Gather", constant("stretches", proto_type, values), stretch, op_version=13)
        for values in (x[:-1], y[:-1], np.diff(y) / np.diff(x))
    )
    rise = node("Mul", node("Sub", clipped, begin, op_version=13), slope, op_version=13)
    return node("Add", rise, value, op_version=13)

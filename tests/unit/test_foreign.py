"""Models that people bring: what could not be served is refused in one sentence, in the process that checks it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from ecluse.contract.records import Thresholds
from ecluse.errors import DataError, EcluseError, ModelRefused
from ecluse.model.manifest import Manifest
from retrain.foreign import register
from retrain.process import Register, for_child
from tests.conftest import MakeSettings

SEED = 20180401
FEATURES = ["amount", "terminal_risk_30d"]
ROWS = 1200


def matrix(columns: int = 2) -> np.ndarray:
    random = np.random.default_rng(SEED)
    return np.column_stack([random.gamma(2, 30, ROWS), *(random.random(ROWS) for _ in range(columns - 1))]).astype("f4")


def fraud(rows: np.ndarray) -> np.ndarray:
    return ((rows[:, 0] * rows[:, 1] + np.random.default_rng(SEED).normal(0, 5, len(rows))) > 40).astype(int)


def fitted(estimator: Any, columns: int = 2, labels: np.ndarray | None = None) -> Any:
    rows = matrix(columns)
    with threadpool_limits(1):
        return estimator.fit(rows, fraud(rows) if labels is None else labels)


class Bench:
    """Registers a model in this process, without publishing it."""

    def __init__(self, folder: Path, make_settings: MakeSettings) -> None:
        self.folder, self.make_settings = folder, make_settings
        self.features: Any = {"features": FEATURES}
        self.sections: dict[str, Any] = {}
        rows = matrix()
        self.samples = pl.DataFrame(rows, schema=FEATURES).with_columns(night=pl.lit(0))

    def save(self, model: Any) -> Path:
        if isinstance(model, onnx.ModelProto):
            path = self.folder / "mine.onnx"
            onnx.save(model, str(path))
        elif isinstance(model, bytes):
            path = self.folder / "mine.onnx"
            path.write_bytes(model)
        else:
            path = self.folder / "mine.joblib"
            joblib.dump(model, path)
        return path

    def register(self, model: Any, thresholds: Thresholds | None = None) -> Manifest:
        path = model if isinstance(model, Path) else self.save(model)
        self.samples.write_parquet(self.folder / "samples.parquet")
        (self.folder / "features.json").write_bytes(msgspec.json.encode(self.features))
        self.draft = self.folder / "draft"
        self.draft.mkdir(exist_ok=True)
        settings = self.make_settings(**self.sections)
        files = (str(self.folder / name) for name in ("features.json", "samples.parquet"))
        register(
            settings, Register(for_child(settings), str(self.draft), str(path), *files, thresholds), lambda _: None
        )
        return Manifest.decode((self.draft / "manifest.json").read_bytes())


@pytest.fixture
def bench(tmp_path: Path, make_settings: MakeSettings) -> Bench:
    return Bench(tmp_path, make_settings)


def graph(
    columns: Any = 2,
    kind: int = TensorProto.FLOAT,
    output: tuple[int, Any] = (TensorProto.FLOAT, [None, 2]),
    weights: Any = ((0.0, 0.01), (0.0, 1.0)),
    after: str = "Softmax",
    rows: Any = None,
) -> onnx.ModelProto:
    """A small ONNX classifier: rows times weights, and something after."""
    values = np.array(weights, dtype=helper.tensor_dtype_to_np_dtype(kind) if kind != TensorProto.STRING else "f4")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node(after, ["z"], ["p"])]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [rows, columns])],
        [helper.make_tensor_value_info("p", *output)],
        [numpy_helper.from_array(values, "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def with_two_inputs() -> onnx.ModelProto:
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2]))
    model.graph.node.insert(0, helper.make_node("Add", ["x", "y"], ["sum"]))
    model.graph.node[1].input[0] = "sum"
    return model


def of_strings() -> onnx.ModelProto:
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["x"],
            ["z"],
            domain="ai.onnx.ml",
            keys_strings=["a"],
            values_floats=[1.0],
            default_float=0.0,
        ),
        helper.make_node("Softmax", ["z"], ["p"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [None, 2])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def converted(estimator: Any, columns: int = 2, **options: Any) -> onnx.ModelProto:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    return to_onnx(estimator, initial_types=[("x", FloatTensorType([None, columns]))], **options)


def line() -> LogisticRegression:
    return fitted(LogisticRegression(max_iter=500))


def three_classes() -> np.ndarray:
    return np.arange(ROWS) % 3


class Dict(dict):  # type: ignore[type-arg]
    """Something that is no estimator."""


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "three classes": (
        lambda: fitted(LogisticRegression(), labels=three_classes()),
        r"LogisticRegression knows 3 classes \(0, 1, 2\): workers need a classifier of two",
    ),
    "other classes": (
        lambda: fitted(LogisticRegression(), labels=np.where(fraud(matrix()), "yes", "no")),
        r"knows 2 classes \('no', 'yes'\)",
    ),
    "a regressor": (lambda: fitted(LinearRegression()), "LinearRegression is a regressor"),
    "no probabilities": (lambda: fitted(LinearSVC()), "LinearSVC has no predict_proba: CalibratedClassifierCV"),
    "not fitted": (LogisticRegression, "LogisticRegression is not fitted"),
    "a pipeline not fitted": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), "Pipeline is not fitted"),
    "wrong number of inputs": (
        lambda: fitted(LogisticRegression(), columns=3),
        "LogisticRegression takes 3 inputs, and the features file names 2",
    ),
    "texts": (
        lambda: make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(
            [["a", "b"], ["b", "a"]] * 9, [0, 1] * 9
        ),
        r"Pipeline takes texts \(OneHotEncoder was fitted on them\)",
    ),
    "several targets": (
        lambda: RandomForestClassifier(2).fit(matrix(), np.column_stack([fraud(matrix()), three_classes()])),
        "RandomForestClassifier predicts 2 targets",
    ),
    "another order of those that it shares": (
        lambda: LogisticRegression().fit(pl.DataFrame(matrix(), schema=["risk_score", FEATURES[0]]), fraud(matrix())),
        "was fitted on risk_score, amount, in this order",
    ),
    "another order": (
        lambda: LogisticRegression().fit(pl.DataFrame(matrix(), schema=FEATURES[::-1]), fraud(matrix())),
        "was fitted on terminal_risk_30d, amount, in this order, and the features file names amount, terminal_risk_30d",
    ),
    "another thing": (lambda: Dict(a=1), "holds a Dict, not a fitted scikit-learn estimator"),
    "a class": (lambda: LogisticRegression, "not a fitted scikit-learn estimator"),
    "garbage": (lambda: b"nonsense", "is no ONNX model, or only the beginning of one"),
    "an empty file": (lambda: b"", "is no ONNX model, or only the beginning of one"),
    "a truncated ONNX": (
        lambda: graph().SerializeToString()[:-40],
        r"is no ONNX model, or only the beginning of one|cannot be loaded by ONNX Runtime",
    ),
    "an ONNX with two inputs": (with_two_inputs, r"has 2 inputs \(x, y\): a model has one input of float32 rows"),
    "an ONNX of texts": (of_strings, "takes texts: a model has one input of float32 rows"),
    "an ONNX of float64": (
        lambda: graph(kind=TensorProto.DOUBLE, output=(TensorProto.DOUBLE, [None, 2])),
        "takes float64: a model has one input of float32 rows",
    ),
    "an ONNX with more inputs": (
        lambda: graph(columns=3, weights=((0, 0.01), (0, 1), (0, 1))),
        "takes 3 inputs, and the features file names 2",
    ),
    "an ONNX that does not say": (lambda: graph(columns=None), "takes inputs whose number it does not say"),
    "an ONNX of one row": (lambda: graph(rows=1, output=(TensorProto.FLOAT, [1, 2])), "takes 1 rows at a time"),
    "zipmap": (lambda: converted(line()), "as a list of maps: convert it with options={'zipmap': False}"),
    "an ONNX regressor": (
        lambda: converted(fitted(LinearRegression())),
        "one number for each row, as a regressor does",
    ),
    "an ONNX of three classes": (
        lambda: converted(fitted(LogisticRegression(), labels=three_classes()), options={"zipmap": False}),
        "gives probabilities of 3 classes",
    ),
    "an ONNX of classes 1 and 2": (
        lambda: converted(fitted(LogisticRegression(), labels=fraud(matrix()) + 1), options={"zipmap": False}),
        r"knows other classes than 0 and 1 \(1, 2\)",
    ),
    "an ONNX of two columns that are no probabilities": (
        lambda: graph(after="Sigmoid"),
        "do not add up to 1: these are no probabilities",
    ),
    "an ONNX that gives NaN": (lambda: graph(weights=((0, np.nan), (0, 1))), r"gives NaN or infinity for 64 of 64"),
    "an ONNX that gives classes only": (
        lambda: graph(after="ArgMax", output=(TensorProto.INT64, [None, 1])),
        "gives no probabilities, or not last",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_not_be_served_is_refused_with_the_reason(bench: Bench, what: str) -> None:
    make, words = REFUSED[what]
    with pytest.raises(ModelRefused, match=words) as refused:
        bench.register(make())
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert not (bench.draft / "manifest.json").exists()


def test_a_pickle_whose_library_is_not_here_is_refused_by_the_librarys_name(bench: Bench) -> None:
    path = bench.folder / "mine.joblib"
    path.write_bytes(b"cnowhere_library.models\nForest\n.")
    with pytest.raises(ModelRefused, match="needs the library nowhere_library, which is not installed here"):
        bench.register(path)
    path.write_bytes(b"csklearn.linear_model\nNoSuchThing\n.")
    with pytest.raises(ModelRefused, match="needs something that is not defined here"):
        bench.register(path)
    path.write_bytes(pickle.dumps(fitted(LogisticRegression()))[:-30])
    with pytest.raises(ModelRefused, match="cannot be unpickled"):
        bench.register(path)


def optional(bench: Bench) -> None:
    fields = {"amount": {"type": "number", "required": False}, "terminal_risk_30d": "number", "night": "integer"}
    bench.sections["stream"] = {"fields": fields, "id_field": None, "time_field": None, "key_field": None}


@pytest.mark.parametrize("onnx_too", [False, True])
def test_a_feature_that_may_be_missing_needs_a_value_or_a_model_that_bears_it(bench: Bench, onnx_too: bool) -> None:
    optional(bench)
    model = converted(line(), options={"zipmap": False}) if onnx_too else line()
    with pytest.raises(
        ModelRefused, match="gives no score where amount is missing, and an event may lack it: give `missing`"
    ):
        bench.register(model)
    bench.features = {"features": [{"field": "amount", "missing": 60.0}, "terminal_risk_30d"]}
    assert bench.register(model).features[0].missing == 60.0


def test_sample_rows_with_blanks_show_that_a_value_may_be_missing(bench: Bench) -> None:
    bench.samples = bench.samples.with_columns(terminal_risk_30d=pl.Series([None, *[0.5] * (ROWS - 1)]))
    with pytest.raises(ModelRefused, match="gives no score where terminal_risk_30d is missing"):
        bench.register(line())


@pytest.mark.parametrize("onnx_too", [False, True])
def test_a_model_must_score_a_text_that_its_categories_do_not_name(bench: Bench, onnx_too: bool) -> None:
    bench.sections["stream"] = {
        "fields": {"shop": "text", "amount": "number"},
        "id_field": None,
        "time_field": None,
        "key_field": None,
    }
    bench.features = {"features": [{"field": "shop", "categories": ["food", "book"]}, "amount"]}
    bench.samples = bench.samples.with_columns(shop=pl.Series(["food", "book"] * (ROWS // 2)))
    rows = matrix()[:, ::-1].copy()
    rows[:, 0] = np.arange(ROWS) % 2

    def one_hot(unknown: str) -> Any:
        encoder = ColumnTransformer(
            [("shop", OneHotEncoder(handle_unknown=unknown), [0]), ("amount", "passthrough", [1])]
        )
        with threadpool_limits(1):
            model = make_pipeline(encoder, LogisticRegression(max_iter=500)).fit(rows, fraud(matrix()))
        return converted(model, options={"zipmap": False}) if onnx_too else model

    with pytest.raises(
        ModelRefused, match=r"no score for the code of a text .* of shop \(2\), .*handle_unknown='ignore'"
    ):
        bench.register(one_hot("error"))
    assert bench.register(one_hot("ignore")).features[0].categories == ("food", "book")


def test_a_model_that_learnt_from_missing_values_is_taken_with_them(bench: Bench) -> None:
    optional(bench)
    rows = matrix()
    rows[::7, 0] = np.nan
    with threadpool_limits(1):
        model = RandomForestClassifier(20, random_state=SEED).fit(rows, fraud(np.nan_to_num(rows)))
    manifest = bench.register(model, Thresholds(0.3, 0.9))
    assert manifest.onnx["max_difference"] <= 1e-5
    assert sorted(manifest.files) == ["model.joblib", "model.onnx", "samples.json"]


def test_labels_in_the_sample_rows_are_measured_and_without_them_scores_give_the_thresholds(bench: Bench) -> None:
    manifest = bench.register(line())
    assert manifest.metrics == {}
    scores = line().predict_proba(matrix())[:, 1]
    assert manifest.thresholds.review == pytest.approx(np.sort(scores)[::-1][5], abs=1e-5)  # 0.5% of 1,200 rows
    assert manifest.memory_bytes > 0
    bench.samples = bench.samples.with_columns(fraud=pl.Series(fraud(matrix())))
    measured = bench.register(line())
    assert measured.metrics["rows"] == ROWS and measured.metrics["roc_auc"] > 0.9


@pytest.mark.parametrize(
    ("rows", "policy", "words"),
    [
        (0, "budget", "holds no rows"),
        (
            999,
            "budget",
            r"999 sample rows are too few .* \(1,000 are needed\): give more, or give the model's thresholds",
        ),
        (1200, "cost", "Costs cannot be weighed on sample rows without the label 'fraud'"),
    ],
)
def test_thresholds_are_given_where_the_sample_rows_do_not_suffice(
    bench: Bench, rows: int, policy: str, words: str
) -> None:
    bench.sections["thresholds"] = {"policy": policy}
    bench.samples = bench.samples.head(rows)
    with pytest.raises(EcluseError, match=words):
        bench.register(line())
    if rows:
        assert bench.register(line(), Thresholds(0.3, 0.9)).thresholds == Thresholds(0.3, 0.9)


def test_labels_do_not_make_few_sample_rows_enough_for_a_budget(bench: Bench) -> None:
    bench.samples = bench.samples.with_columns(fraud=pl.Series(fraud(matrix()))).head(999)
    with pytest.raises(ModelRefused, match=r"999 sample rows are too few .* \(1,000 are needed\)"):
        bench.register(line())


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"feature": []}, "is no list `features` of names or tables"),
        ({"features": [{"field": "amount", "transformed": "log1p"}]}, "is no list `features` of names or tables"),
        ({"features": ["amount", "nothing"]}, "The feature 'nothing' needs the field 'nothing'"),
        ({"features": ["amount", "time"]}, "is a time: write time.hour or time.weekday"),
        ({"features": ["amount", "customer_id"]}, "'customer_id' is a text: give its `categories`"),
        ({"features": ["amount", {"field": "night", "categories": ["a"]}]}, "'night' is no category"),
        ({"features": ["amount", "amount"]}, "two features are called 'amount'"),
        ({"features": ["amount", "amount.hour"]}, "takes hour of 'amount', whose type is number"),
        ({"features": []}, "a model needs at least one"),
    ],
)
def test_a_features_file_that_cannot_be_is_refused(bench: Bench, features: Any, words: str) -> None:
    bench.features = features
    with pytest.raises((ModelRefused, DataError), match=words):
        bench.register(line())


def test_what_has_no_onnx_form_is_served_from_its_joblib_only_where_the_settings_say_so(bench: Bench) -> None:
    model = fitted(make_pipeline(FunctionTransformer(np.tanh), LogisticRegression()))
    with pytest.raises(ModelRefused, match=r"only where the setting model\.unpickle names the model"):
        bench.register(model)
    bench.sections["model"] = {"name": "cards", "unpickle": ("cards",)}
    manifest = bench.register(model)
    assert sorted(manifest.files) == ["model.joblib", "samples.json"]
    assert "no ONNX form" in manifest.training["notes"][0]
    assert manifest.memory_bytes > 0


def external(folder: Path, name: str = "weights.bin") -> Path:
    model = graph(weights=np.column_stack([np.zeros(2), [0.01, 1.0]]))
    path = folder / "mine.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location=name, size_threshold=0)
    return path


def test_external_data_is_taken_along_from_beside_the_model(bench: Bench) -> None:
    manifest = bench.register(external(bench.folder))
    assert sorted(manifest.files) == ["model.onnx", "samples.json", "weights.bin"]


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "sub/weights.bin", "manifest.json", "missing.bin"]
)
def test_external_data_is_taken_from_nowhere_else(bench: Bench, location: str) -> None:
    path = external(bench.folder)
    model = onnx.load(str(path), load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match="has its weights in"):
        bench.register(path)


def test_external_data_behind_a_link_is_refused(bench: Bench) -> None:
    path = external(bench.folder)
    (bench.folder / "weights.bin").rename(bench.folder / "elsewhere")
    (bench.folder / "weights.bin").symlink_to(bench.folder / "elsewhere")
    with pytest.raises(ModelRefused, match="there is no such file beside it"):
        bench.register(path)

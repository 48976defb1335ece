from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from ecluse.errors import ModelRefused
from ecluse.model import runtime
from retrain.convert import TOLERANCE, compare, to_onnx_bytes
from retrain.script import load_script, probabilities, run_script

SEED = 20180401


def frame(rows: int = 400) -> pl.DataFrame:
    random = np.random.default_rng(SEED)
    a, b = random.random((2, rows)).astype(np.float32)
    return pl.DataFrame(
        {"a": a, "b": b, "label": ((a + 0.3 * random.random(rows)) > 0.7).astype(np.int8)}
    ).with_columns(weight=1.0)


def script(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"from sklearn.linear_model import LogisticRegression\n\n\ndef train(frame, features):\n{body}\n")
    return f"{path}:train"


def test_a_script_of_ones_own_is_run_with_rows_in_time_order(tmp_path: Path) -> None:
    own = load_script(
        script(
            tmp_path,
            "    assert frame.columns == [*features, 'label', 'weight'] == ['a', 'b', 'label', 'weight']\n"
            "    return LogisticRegression().fit(frame.select(features).to_numpy(), frame['label'].to_numpy())",
        )
    )
    estimator = run_script(own, frame(), ("a", "b"))
    assert isinstance(estimator, LogisticRegression)
    assert len(own.sha256) == 64


def test_the_script_that_ships_takes_missing_values() -> None:
    rows = frame().with_columns(b=pl.Series([np.nan] * 200 + [1.0] * 200, dtype=pl.Float32))
    assert probabilities(run_script(load_script("default"), rows, ("a", "b")), np.zeros((3, 2), np.float32)).shape == (
        3,
    )


def test_the_script_that_ships_learns_by_the_weights() -> None:
    rows = pl.DataFrame({"weight": np.zeros(400, np.float32), "label": [0, 1] * 200, "weight_": [1.0, 3.0] * 200})
    scores = probabilities(run_script(load_script("default"), rows, ("weight",)), np.zeros((1, 1), np.float32))
    assert scores[0] == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    frame['nothing']", r"failed: ColumnNotFoundError: .*\(mine.py line 5: frame\['nothing'\]\)"),
        ("    raise SystemExit(3)", "failed: SystemExit: 3"),
        ("    return 42", "returned int, which has no predict_proba"),
        ("    return LogisticRegression()", "returned LogisticRegression, whose predict_proba fails"),
        ("    return LogisticRegression().fit(frame.select('a').to_numpy(), frame['label'])", "predict_proba fails"),
        (
            "    return LogisticRegression().fit(frame.select(features).to_numpy(), ['no', 'yes'] * 200)",
            "predict_proba",
        ),
    ],
)
def test_a_script_that_gives_nothing_usable_is_refused_with_the_reason(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        run_script(load_script(script(tmp_path, body)), frame(), ("a", "b"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train.py", "it must be FILE.py:FUNCTION"),
        ("nowhere.py:train", "there is no such file"),
        ("broken.py:train", r"cannot be loaded: ZeroDivisionError: .*broken.py line 1: 1 / 0"),
        ("empty.py:train", "has no function 'train'"),
    ],
)
def test_a_script_that_cannot_be_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0\n")
    Path("empty.py").write_text("")
    with pytest.raises(ModelRefused, match=words):
        load_script(name)


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingClassifier(max_iter=20, random_state=SEED),
        LogisticRegression(),
        RandomForestClassifier(10, random_state=SEED),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_onnx_form_gives_the_scores_of_predict_proba(estimator: object) -> None:
    rows = frame()
    matrix = rows.select("a", "b").to_numpy()
    estimator.fit(matrix, rows["label"].to_numpy())  # type: ignore[attr-defined]
    scores, difference = compare(estimator, to_onnx_bytes(estimator, 2), matrix)
    assert scores.shape == (400,) and scores.std() > 0.1
    assert difference <= TOLERANCE


def test_boosted_trees_split_neighbouring_float32_values_as_they_do_in_scikit_learn() -> None:
    values = [np.float32(1000)]
    for _ in range(30):
        values.append(np.nextafter(values[-1], np.float32(2000)))
    which = np.random.default_rng(SEED).integers(0, 31, 2000)
    rows = np.array(values, dtype=np.float32)[which][:, None]
    estimator = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=1, random_state=SEED).fit(rows, which % 2)
    assert compare(estimator, to_onnx_bytes(estimator, 1), rows)[1] <= TOLERANCE


def test_an_onnx_that_differs_is_refused() -> None:
    rows = frame()
    matrix, labels = rows.select("a", "b").to_numpy(), rows["label"].to_numpy()
    one, other = LogisticRegression().fit(matrix, labels), LogisticRegression(C=0.1).fit(matrix, labels)
    with pytest.raises(ModelRefused, match=r"differs from its predict_proba by up to 0"):
        compare(one, to_onnx_bytes(other, 2), matrix)


def test_an_estimator_without_an_onnx_form_is_refused() -> None:
    rows = frame()
    matrix = rows.select("a", "b").to_numpy()
    estimator = make_pipeline(FunctionTransformer(np.tanh), KNeighborsClassifier()).fit(
        matrix, rows["label"].to_numpy()
    )
    with pytest.raises(ModelRefused, match="Pipeline cannot be converted to ONNX"):
        to_onnx_bytes(estimator, 2)


def test_no_threshold_can_lie_above_what_a_worker_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    above = np.nextafter(np.float32(1), np.float32(2)).astype(np.float64)
    monkeypatch.setattr(runtime, "onnx_scorer", lambda *_: lambda rows: np.full(len(rows), above))
    sure = SimpleNamespace(predict_proba=lambda rows: np.tile([0.0, 1.0], (len(rows), 1)))
    scores, _ = compare(sure, b"", np.zeros((3, 1), dtype=np.float32))
    assert scores.max() == 1.0

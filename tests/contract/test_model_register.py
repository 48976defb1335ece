"""`ecluse model register`: a model that was trained elsewhere is released, and does not become champion by it."""

import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import msgspec
import numpy as np
import onnx
import polars as pl
import pytest
from click.testing import Result
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from console.main import app
from ecluse.errors import ModelRefused
from ecluse.model.artefact import load_model
from ecluse.model.registry import read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings

SEED = 20180401
FEATURES = ["amount.log1p", "terminal_risk_30d", "time.hour"]


def rows(count: int = 1200) -> pl.DataFrame:
    random = np.random.default_rng(SEED)
    amount, risk = random.gamma(2.0, 30.0, count), random.random(count)
    times = pl.datetime_range(pl.datetime(2026, 1, 1), pl.datetime(2026, 3, 5), "1h", eager=True)[:count]
    return pl.DataFrame(
        {
            "time": times,
            "amount": amount,
            "terminal_risk_30d": risk,
            "night": np.zeros(count, dtype=int),
            "fraud": (amount * risk + random.normal(0, 5, count) > 40).astype(int),
        }
    )


def learnt(frame: pl.DataFrame) -> tuple[object, np.ndarray]:
    """A pipeline, and the rows of features it was fitted on."""
    columns = [np.log1p(frame["amount"]), frame["terminal_risk_30d"], frame["time"].dt.hour()]
    matrix = np.column_stack([column.to_numpy() for column in columns]).astype(np.float32)
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(matrix, frame["fraud"].to_numpy()), matrix


class Command:
    """`ecluse model register`, with the files of a test."""

    def __init__(self, folder: Path, stream: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", stream.kafka.bootstrap_servers)
        self.folder, self.settings = folder, stream
        self.config, self.features, self.samples = (
            folder / name for name in ("ecluse.toml", "features.toml", "samples.csv")
        )
        self.config.write_text(
            f'[stream]\nname = "{stream.stream.name}"\ntime_field = "time"\n'
            '[stream.fields]\ntime = "time"\namount = "number"\nterminal_risk_30d = "number"\nnight = "integer"\n'
            f'[model]\nlabel = "fraud"\nstore = "{stream.model.store}"\nsigning_key = "{stream.model.signing_key}"\n'
            "[topics]\npartitions = 4\n"
        )
        self.features.write_text(
            'features = ["amount.log1p", "terminal_risk_30d", { name = "time.hour", field = "time", transform = "hour" }]\n'
        )

    def __call__(self, model: Path, frame: pl.DataFrame, *options: str) -> Result:
        frame.write_csv(self.samples)
        files = ["--features", str(self.features), "--samples", str(self.samples), "-c", str(self.config)]
        return CliRunner().invoke(app, ["model", "register", str(model), *files, *options])


@pytest.fixture
def command(tmp_path: Path, stream: Settings, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, stream, monkeypatch)


def test_a_fitted_pipeline_is_released_and_serves_the_scores_that_it_gave(command: Command, stream: Settings) -> None:
    frame = rows()
    pipeline, matrix = learnt(frame)
    joblib.dump(pipeline, command.folder / "mine.joblib")
    result = command(command.folder / "mine.joblib", frame, "--trust-pickle")
    assert result.exit_code == 0, result.output
    assert "version 1, released" in result.stdout and "ROC AUC" in result.stdout
    assert "`ecluse model promote 1` makes it so" in result.stderr

    registry = read_registry(stream)
    assert registry.routes == {}, "a release is no promotion"
    model = load_model(stream, 1, registry.releases[stream.model_name, 1])
    schema = stream.stream.schema_of_events()
    events = [schema.decode(msgspec.json.encode(row)) for row in frame.drop("fraud").to_dicts()]
    expected = pipeline.predict_proba(matrix)[:, 1]  # type: ignore[attr-defined]
    assert np.abs(model.score(model.features.matrix(events)) - expected).max() <= 1e-5
    assert [feature.name for feature in model.manifest.features] == FEATURES
    assert model.manifest.metrics["rows"] == 1200
    assert model.manifest.training["registered"] == "mine.joblib"


def test_an_onnx_file_is_released_with_its_weights_and_the_thresholds_that_are_given(
    command: Command, stream: Settings
) -> None:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    frame = rows(50)
    pipeline, _ = learnt(rows())
    converted = to_onnx(
        pipeline,
        initial_types=[("x", FloatTensorType([None, 3]))],
        options={"zipmap": False},
        black_op={"Scaler", "LinearClassifier"},
    )
    for weights in converted.graph.initializer:  # as raw bytes, which can lie outside; shapes must not
        if weights.data_type == onnx.TensorProto.FLOAT:
            weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights), weights.name))
    path = command.folder / "mine.onnx"
    onnx.save(converted, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = command(path, frame.drop("fraud"), "--review", "0.3", "--block", "0.9", "--json")
    assert result.exit_code == 0, result.output
    manifest = msgspec.json.decode(result.stdout)["manifest"]
    assert manifest["thresholds"] == {"review": 0.3, "block": 0.9} and manifest["metrics"] == {}
    model = load_model(stream, 1, read_registry(stream).releases[stream.model_name, 1])
    assert sorted(model.manifest.files) == ["model.onnx", "samples.json", "weights.bin"]


class Writing:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_is_not_loaded_unless_it_is_trusted(command: Command, stream: Settings) -> None:
    path, done = command.folder / "mine.joblib", command.folder / "done"
    path.write_bytes(pickle.dumps(Writing(done)))
    refused = command(path, rows(50))
    assert isinstance(refused.exception, ModelRefused)
    assert "say so with --trust-pickle" in str(refused.exception)
    assert not done.exists(), "the command in the pickle ran"
    trusted = command(path, rows(50), "--trust-pickle", "--review", "0.3", "--block", "0.9")
    assert "not a fitted scikit-learn estimator" in str(trusted.exception)
    assert done.exists(), "or this would show nothing"
    assert read_registry(stream).releases == {} and ModelStore.of(stream).versions(stream.model_name) == []


@pytest.mark.parametrize(
    "options", [("--review", "0.3"), ("--block", "0.3"), ("--review", "0.9", "--block", "0.3")], ids=" ".join
)
def test_thresholds_are_given_in_order_and_both(command: Command, options: tuple[str, ...]) -> None:
    result = command(command.folder / "mine.onnx", rows(2), *options)
    assert result.exit_code == 2


DRIVER = """
import sys
from pathlib import Path
from console.main import app
try:
    app([*sys.argv[1:]])
finally:
    loaded = [name for name in ("sklearn", "skl2onnx", "onnx", "joblib") if name in sys.modules]
    print("loaded here:", loaded, file=sys.stderr)
"""


def test_who_holds_the_key_loads_no_machinery_of_models(command: Command) -> None:
    frame = rows(200)
    joblib.dump(learnt(frame)[0], command.folder / "mine.joblib")
    frame.write_csv(command.samples)
    model = [
        str(command.folder / "mine.joblib"),
        "--features",
        str(command.features),
        "--samples",
        str(command.samples),
    ]
    options = ["--trust-pickle", "--review", "0.3", "--block", "0.9", "-c", str(command.config)]
    for arguments in (["register", *model, *options], ["train", str(command.samples), "-c", str(command.config)]):
        ended = subprocess.run(
            [sys.executable, "-c", DRIVER, "model", *arguments], capture_output=True, text=True, timeout=100
        )
        assert ended.returncode == 0, ended.stderr
        assert "loaded here: []" in ended.stderr

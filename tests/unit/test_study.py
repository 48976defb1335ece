"""The size study: what it tries, measures, picks and drafts, and what it tells of those that fail."""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from ecluse.errors import ModelRefused
from ecluse.model.manifest import Manifest
from ecluse.settings import Settings
from ingest.generator import generate
from retrain.memory import memory_of
from retrain.process import Train, for_child
from retrain.study import run
from retrain.study.candidates import candidates_of
from retrain.study.report import STUDY, Candidate, Cost, Latency, Study
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings

SEED = 20240101
FIELDS = {
    "time": "time",
    "customer_id": "text",
    "amount": {"type": "number", "required": False},
    "terminal_risk_7d": "number",
    "customer_mean_amount_7d": "number",
    "shop": {"type": "text", "required": False},
}
SCRIPT = """
import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.tree import DecisionTreeClassifier


def fit(model):
    def train(frame, features):
        return model.fit(frame.select(features).to_numpy(), frame["label"].to_numpy())
    return train


def forest(trees):
    return fit(RandomForestClassifier(trees, max_depth=6, random_state=0))


def raising(frame, features):
    raise ValueError("too few frauds")


def train(frame, features):
    raise AssertionError("the script offers candidates, so this is none")


def greedy(frame, features):
    frame.drop_in_place("weight")
    raise ValueError("it kept the weights")

def candidates(features):
    stump = fit(DecisionTreeClassifier(max_depth=1, random_state=0))
    coded = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder())  # fails on what it has not seen
    moody = fit(make_pipeline(ColumnTransformer([("amount", coded, [0])]), DecisionTreeClassifier(max_depth=1)))
    without_onnx = fit(make_pipeline(FunctionTransformer(np.nan_to_num), DecisionTreeClassifier(max_depth=1)))
    return OFFERED
"""
LADDER = '{"stump": stump, "forest-5": forest(5), "forest-25": forest(25)}'


class Bench:
    """Studies in this process; what costs what is measured by one test only, for it takes a process a candidate."""

    def __init__(self, folder: Path, make_settings: MakeSettings, rows: pl.DataFrame) -> None:
        self.folder, self.make_settings, self.times = folder, make_settings, 0
        self.file = folder / "rows.parquet"
        rows.write_parquet(self.file)

    def settings(self, offered: str, **wanted: Any) -> Settings:
        own = self.folder / "own.py"
        own.write_text(SCRIPT.replace("OFFERED", offered))
        return self.make_settings(
            stream={"fields": FIELDS, "id_field": None},
            model={"script": f"{own}:train", "holdout": 0.3},
            study={"bootstrap": 100} | wanted,
        )

    def study(self, offered: str, **wanted: Any) -> tuple[Study, Path]:
        """Study, and return what was found and the draft."""
        settings, draft = self.settings(offered, **wanted), self.folder / f"draft-{self.times}"
        self.times += 1
        draft.mkdir()
        job = Train(for_child(settings), str(draft), str(self.file), study=True)
        run.study(settings, job, lambda _: None)
        return Study.read(draft / STUDY), draft


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    found = generate(SEED, 12, customers=400, terminals=400)
    return found.with_columns(shop=pl.when(pl.col("night") == 1).then(pl.lit("bar")).otherwise(pl.lit("food")))


@pytest.fixture
def bench(tmp_path: Path, make_settings: MakeSettings, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> Bench:
    latency = Latency(100, 1.0, 2.0)
    monkeypatch.setattr(run, "cost_of", lambda *_: Cost(2**20, 2**20, 1.0, latency, latency, 1e6))
    return Bench(tmp_path, make_settings, rows)


def only(study: Study, name: str) -> Candidate:
    return next(each for each in study.candidates if each.name == name)


def test_a_small_one_is_picked_where_a_large_one_brings_little_and_drafted_with_the_study(bench: Bench) -> None:
    found, draft = bench.study(LADDER, tolerance=0.2)
    assert found.picked == "forest-5"
    assert [each.name for each in found.candidates] == ["stump", "forest-5", "forest-25"]
    assert found.drawn == "entity" and 300 < found.units <= 400 < found.rows
    manifest = Manifest.decode((draft / "manifest.json").read_bytes())
    assert sorted(manifest.files) == ["model.joblib", "model.onnx", "samples.json", STUDY]
    assert manifest.sizes["model.onnx"] == only(found, "forest-5").size_bytes
    assert manifest.training["study"]["picked"] == "forest-5"
    assert manifest.training["script"].endswith("own.py:train, candidate forest-5")
    quality = only(found, "forest-5").average_precision
    assert quality is not None and quality.value == pytest.approx(manifest.metrics["average_precision"])
    assert quality.low < quality.value < quality.high

    again, other = bench.study(LADDER, tolerance=0.2)
    assert msgspec.structs.replace(again.decided, model=found.model) == found.decided
    for name in ("model.onnx", "samples.json"):
        assert (other / name).read_bytes() == (draft / name).read_bytes()


def test_the_best_is_picked_where_no_loss_is_tolerated_and_its_gain_is_clear(bench: Bench) -> None:
    found, draft = bench.study('{"stump": stump, "forest": forest(10)}', tolerance=0.0)
    assert (found.picked, found.best) == ("forest", "forest")
    loss, quality = only(found, "stump").loss, only(found, "forest").average_precision
    assert loss is not None and quality is not None and loss.value > 0.1
    assert Manifest.decode((draft / "manifest.json").read_bytes()).training["study"]["loss"] == {"value": 0, "upper": 0}


def test_what_fails_is_told_with_its_reason_and_ends_nothing(bench: Bench) -> None:
    offered = '{"raising": raising, "no onnx": without_onnx, "stump": stump, "no model": fit, "large": forest(25)}'
    found, draft = bench.study(offered, max_size_bytes=20_000)
    assert found.picked == "stump"
    assert re.search(
        r"candidate raising failed: ValueError: too few frauds \(own.py line", only(found, "raising").reason
    )
    assert "cannot be converted to ONNX" in only(found, "no onnx").reason
    assert "Nothing was published" not in only(found, "no onnx").reason
    assert "candidate no model failed: TypeError" in only(found, "no model").reason
    large = only(found, "large")
    assert large.reason == "larger than study.max_size_bytes (20,000)" and large.cost is None
    assert large.loss is not None and large.loss.value < 0, "it would have been better, and the study says so"
    assert re.search(r"large would have had 0\.\d+ more than stump, but is larger", found.why)
    assert not (draft / "raising").exists() and len(list(draft.iterdir())) == 5


def test_a_model_that_raises_on_later_rows_is_a_candidate_that_fails(bench: Bench) -> None:
    found, _ = bench.study('{"moody": moody, "stump": stump}')
    assert found.picked == "stump" and found.required is None
    assert (
        "The model fails on rows that it was tried on: ValueError: Found unknown categories"
        in only(found, "moody").reason
    )


def test_what_a_candidate_does_to_its_frame_is_its_own(bench: Bench) -> None:
    found, _ = bench.study('{"greedy": greedy, "stump": stump}')
    assert found.picked == "stump" and only(found, "stump").average_precision is not None


def test_where_all_fail_each_reason_is_told_and_nothing_is_drafted(bench: Bench) -> None:
    with pytest.raises(
        ModelRefused, match=r"No candidate .* a: .*too few frauds.* b: larger than study.max_size_bytes"
    ):
        bench.study('{"a": raising, "b": stump}', max_size_bytes=10)
    assert [file.name for file in (bench.folder / "draft-0").iterdir()] == [STUDY]
    assert Study.read(bench.folder / "draft-0" / STUDY).picked is None


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ("{}", "must return at least one name"),
        ("[stump]", "must return at least one name"),
        ('{"a": 1}', "must return at least one name"),
        ("features['nothing']", r"failed: TypeError: .* \(own.py line \d+: return features\['nothing'\]\)"),
    ],
)
def test_candidates_that_are_none_are_refused(bench: Bench, offered: str, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        bench.study(offered)


def test_a_script_without_candidates_stands_on_a_ladder_of_ours(bench: Bench) -> None:
    settings = bench.settings("None")
    from retrain.fitting import fit, prepare
    from retrain.script import load_script, run_script

    script = load_script("default")
    job = Train(for_child(settings), "", str(bench.file))
    ground = prepare(settings, job, lambda _: None)
    found = candidates_of(script, ground.features)
    assert [*found] == ["logistic", "boosting-15", "boosting-50", "boosting-150", "boosting-400", "script"]
    assert found["script"] is script
    sizes = []
    for name in ("logistic", "boosting-15"):
        fitted = fit(settings, ground, run_script(found[name], ground.frame, ground.names))
        assert fitted.metrics["average_precision"] > 0.3, name
        sizes.append(len(fitted.compiled.files["model.onnx"]))
    assert sizes == sorted(sizes)


def test_a_training_sets_rows_are_measured_by_their_weights(bench: Bench, rows: pl.DataFrame) -> None:
    weights = pl.Series("weight", np.where(np.arange(rows.height) % 7, 1.0, 20.0))
    ours = {"unit": pl.lit("u"), "label_origin": pl.lit("silence"), "entity": pl.col("customer_id").cast(pl.String)}
    rows.with_columns(weights, **ours).write_parquet(bench.file)
    found, draft = bench.study('{"stump": stump}')
    from retrain.fitting import prepare
    from retrain.study.timing import _load

    ground = prepare(bench.settings("None"), Train({}, "", str(bench.file)), lambda _: None)
    scores, later = _load(draft, len(ground.features))(ground.later_matrix), ground.later
    quality = only(found, "stump").average_precision
    weighted, plain = (average_precision_score(later.labels, scores, sample_weight=w) for w in (later.weights, None))
    assert quality is not None and quality.value == pytest.approx(weighted) != pytest.approx(plain)
    assert found.drawn == "entity" and any("stand for" in note for note in found.notes)


def test_the_command_measures_what_each_costs_draws_it_and_publishes_nothing(
    tmp_path: Path, make_settings: MakeSettings, rows: pl.DataFrame
) -> None:
    bench = Bench(tmp_path, make_settings, rows)
    settings = bench.settings('{"stump": stump, "raising": raising, "forest": forest(5)}')
    plot = tmp_path / "study.png"
    told = ecluse(settings, "model", "study", str(bench.file), "--plot", str(plot))
    assert told.exit_code == 0, told.output
    assert re.search(r"^forest \* +0\.\d+ +0\.\d{4} to 0\.\d{4} ", told.stdout, re.MULTILINE)
    assert re.search(
        r"^raising +- .*^raising cannot be picked: .* ValueError: too few frauds", told.stdout, re.M | re.S
    )
    assert re.search(r"^Picked: forest has the highest average precision", told.stdout, re.MULTILINE)
    assert plot.read_bytes().startswith(b"\x89PNG") and not Path(settings.model.store).exists()


def test_the_command_fails_where_no_candidate_can_be_picked_and_shows_the_study_all_the_same(
    tmp_path: Path, make_settings: MakeSettings, rows: pl.DataFrame
) -> None:
    bench = Bench(tmp_path, make_settings, rows)
    settings = bench.settings('{"stump": stump}', max_size_bytes=10)
    refused = ecluse(settings, "model", "study", str(bench.file), "--json")
    assert refused.exit_code == 1
    found = json_of(refused)
    assert found["picked"] is None and "No candidate of the study can be picked" in refused.stderr


def test_the_memory_of_a_model_is_not_that_of_the_process_which_asks(bench: Bench) -> None:
    _, draft = bench.study('{"stump": stump}')
    ballast = np.ones(50_000_000)  # 400 MB
    grown, peak = memory_of(draft)
    assert 0 < grown <= peak < ballast.nbytes / 4

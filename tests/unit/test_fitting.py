"""Training refuses a model that would give no score for what an event may bring."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ecluse.errors import ModelRefused
from ecluse.model.manifest import Manifest
from retrain.fitting import train
from retrain.process import Train, for_child
from tests.conftest import MakeSettings

ROLES = {"id_field": None, "time_field": None, "key_field": None}
#: The script that docs/models.md shows.
SHOWN = re.search(
    r"```python\n(# train\.py.*?)```", (Path(__file__).parents[2] / "docs" / "models.md").read_text(), re.DOTALL
)
ONE_HOT = """
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder


def train(frame, features):
    encoder = ColumnTransformer([("shop", OneHotEncoder(UNKNOWN), [features.index("shop")])], remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression(max_iter=500))
    return model.fit(frame.select(features).to_numpy(), frame["label"].to_numpy())
"""


class Bench:
    """Trains in this process, without publishing."""

    def __init__(self, folder: Path, make_settings: MakeSettings) -> None:
        self.folder, self.make_settings = folder, make_settings

    def train(self, fields: dict[str, Any], script: str | None) -> Manifest:
        file, draft, own = self.folder / "labelled.csv", self.folder / "draft", self.folder / "own.py"
        amounts = [float(i % 97) for i in range(400)]
        shops, fraud = ["food" if i % 3 else "book" for i in range(400)], [int(amount > 60) for amount in amounts]
        pl.DataFrame({"shop": shops, "amount": amounts, "fraud": fraud}).write_csv(file)
        draft.mkdir(exist_ok=True)
        own.write_text(script or "")
        model = {"script": f"{own}:train" if script else "default"}
        settings = self.make_settings(stream=ROLES | {"fields": fields}, model=model)
        train(settings, Train(for_child(settings), str(draft), str(file)), lambda _: None)
        return Manifest.decode((draft / "manifest.json").read_bytes())


@pytest.fixture
def bench(tmp_path: Path, make_settings: MakeSettings) -> Bench:
    return Bench(tmp_path, make_settings)


def test_a_model_that_cannot_take_a_text_that_comes_later_is_refused_with_what_to_do(bench: Bench) -> None:
    fields = {"shop": "text", "amount": "number"}
    with pytest.raises(
        ModelRefused,
        match=r'a text that is no category of shop \(2\), .*: have the training script .*handle_unknown="ignore"',
    ):
        bench.train(fields, ONE_HOT.replace("UNKNOWN", ""))
    assert not (bench.folder / "draft" / "manifest.json").exists()
    drafted = bench.train(fields, ONE_HOT.replace("UNKNOWN", 'handle_unknown="ignore"'))
    assert drafted.features[0].categories == ("food", "book")


def test_a_model_that_cannot_do_without_an_optional_field_is_refused_with_what_to_do(bench: Bench) -> None:
    assert SHOWN is not None
    script, optional = SHOWN[1], {"amount": {"type": "number", "required": False}, "shop": "text"}
    with pytest.raises(
        ModelRefused,
        match=r"no score where amount is missing, .*: have the training script .*SimpleImputer.*`required`",
    ):
        bench.train(optional, script)
    assert not (bench.folder / "draft" / "manifest.json").exists()
    bench.train({"amount": "number", "shop": "text"}, script)
    bench.train(optional, None)  # the script that ships takes missing values
    imputing = script.replace("make_pipeline(", "make_pipeline(SimpleImputer(), ")
    bench.train(optional, f"from sklearn.impute import SimpleImputer\n{imputing}")

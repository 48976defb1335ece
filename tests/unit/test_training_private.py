"""What does not reach the training store as it was is no input of what is trained from there."""

from pathlib import Path

import pytest

from ecluse.errors import ModelRefused
from ecluse.settings import Settings
from retrain.fitting import prepare
from retrain.process import Train, for_child
from retrain.trainingset import build
from tests.conftest import MakeSettings
from tests.stores import at
from tests.trainers import HOURS, with_past
from tests.unit.artefacts import with_model


def job(settings: Settings, folder: Path) -> Train:
    """As the trainer makes it: `terminal_risk_30d`, which events must have, is dropped, and `night` is masked."""
    file = folder / "set.parquet"
    build(settings, at(HOURS), None, file, lambda *_: None)
    return Train(
        for_child(settings), str(folder), str(file), None, None, None, private=("terminal_risk_30d", "night", "unknown")
    )


@pytest.fixture
def settings(make_settings: MakeSettings, tmp_path: Path) -> Settings:
    made = make_settings(
        labels={"maturity_hours": 24.0}, store={"url": str(tmp_path / "store"), "drop": ["terminal_risk_30d"]}
    )
    with_past(made)
    return made


def test_private_fields_are_no_inputs_and_the_manifest_says_why(settings: Settings, tmp_path: Path) -> None:
    ground = prepare(settings, job(settings, tmp_path), lambda _: None)
    assert ground.names == ["amount"]
    for field in ("terminal_risk_30d", "night"):
        assert "does not reach the training store as it was (store.drop, store.hash" in ground.left_out[field]


@pytest.mark.parametrize("named", ["night", "terminal_risk_30d"])
def test_a_private_field_that_is_named_as_an_input_is_refused_in_a_sentence(
    settings: Settings, tmp_path: Path, named: str
) -> None:
    settings = with_model(settings, features=("amount", named))
    words = f"model.features names '{named}', which cannot be an input: it does not reach the training store"
    with pytest.raises(ModelRefused, match=words):
        prepare(settings, job(settings, tmp_path), lambda _: None)

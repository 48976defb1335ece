import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ecluse.contract.schema import EventSchema, Field, FieldType
from ecluse.errors import DataError, ModelRefused
from ecluse.model.features import FeatureSet
from ecluse.settings import Settings
from ingest.replay import Replay
from retrain.dataset import hold_out, read_rows
from retrain.inputs import choose_features
from tests.conftest import MakeSettings

DAY = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    fields = {"amount": "number", "time": {"type": "time", "required": False}}
    return make_settings(stream={"fields": fields, "id_field": None, "time_field": "time", "key_field": None})


def rows_of(settings: Settings, folder: Path, since: dt.datetime | None = None, **columns: list[Any]) -> Any:
    height = len(columns["fraud"])
    columns = {"amount": list(range(height)), "time": [DAY + dt.timedelta(days=i) for i in range(height)]} | columns
    pl.DataFrame(columns, strict=False).write_parquet(folder / "rows.parquet")
    return read_rows(settings, folder / "rows.parquet", since, None)


@pytest.mark.parametrize(
    "labels",
    [[1, 0, 1, 0], [True, False, True, False], [1.0, 0.0, 1.0, 0.0], ["1", "0", " true", "FALSE"]],
)
def test_a_truth_may_be_written_in_the_usual_ways(settings: Settings, tmp_path: Path, labels: list[Any]) -> None:
    assert rows_of(settings, tmp_path, fraud=labels).labels.tolist() == [1, 0, 1, 0]


def test_the_positive_class_may_be_named(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        stream={"fields": {"amount": "number"}, "id_field": None, "time_field": None}, model={"positive": "churned"}
    )
    assert rows_of(settings, tmp_path, fraud=["churned", "stayed", "moved"]).labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["red", "green", "blue"], r"has 3 classes \('blue', 'green', 'red'\)"),
        ([0, 1, 2], "has 3 classes"),
        (["good", "bad", "bad"], "neither 0/1 nor true/false .* set model.positive"),
        ([0, 0, 0], "has one class only"),
        ([None, None, None], "blank throughout"),
    ],
)
def test_a_label_that_is_no_truth_of_two_classes_is_refused(
    settings: Settings, tmp_path: Path, labels: list[Any], words: str
) -> None:
    with pytest.raises(ModelRefused, match=words):
        rows_of(settings, tmp_path, fraud=labels)


def test_rows_without_a_label_are_left_out_and_counted(settings: Settings, tmp_path: Path) -> None:
    rows = rows_of(settings, tmp_path, fraud=["1", "", None, "0", " "])
    assert rows.frame["amount"].to_list() == [0, 3]
    assert rows.notes == ("3 rows have no label and were left out.",)


def test_rows_are_put_in_order_of_time_and_those_without_one_first(settings: Settings, tmp_path: Path) -> None:
    times = [DAY + dt.timedelta(days=2), None, DAY, DAY + dt.timedelta(days=1)]
    rows = rows_of(settings, tmp_path, fraud=[1, 0, 0, 1], time=times)
    assert rows.frame["amount"].to_list() == [1, 2, 3, 0]
    assert rows.span == ("2026-11-01T00:00:00Z", "2026-11-03T00:00:00Z")
    assert rows.notes == ("1 rows have no time and were put before all others.",)


def test_limits_in_time_take_the_first_moment(settings: Settings, tmp_path: Path) -> None:
    rows = rows_of(settings, tmp_path, since=dt.datetime(2026, 11, 3), fraud=[0, 1, 0, 1])
    assert rows.frame["amount"].to_list() == [2, 3]


def test_what_is_held_out_is_the_latest_and_never_shares_a_moment_with_training(
    settings: Settings, tmp_path: Path
) -> None:
    days = [0, 0, 1, 2, 2, 2, 3, 3]
    rows = rows_of(settings, tmp_path, fraud=[0, 1] * 4, time=[DAY + dt.timedelta(days=day) for day in days])
    early, late = hold_out(rows, 0.4, None)  # four rows would part the third day
    assert early.frame["amount"].to_list() == [0, 1, 2]
    assert late.frame["amount"].to_list() == [3, 4, 5, 6, 7]
    early, late = hold_out(rows, 0.4, dt.datetime(2026, 11, 4))
    assert late.frame["amount"].to_list() == [6, 7]
    assert np.nanmax(early.times) < np.nanmin(late.times)


def test_a_slice_without_both_classes_is_refused(settings: Settings, tmp_path: Path) -> None:
    rows = rows_of(settings, tmp_path, fraud=[0, 1, 0, 1, 0, 0])
    with pytest.raises(ModelRefused, match="The 2 held-out rows hold 0 positive labels"):
        hold_out(rows, 0.3, None)


SET = {"unit": list("abcd"), "label_origin": ["analyst"] * 4, "entity": ["x", None, "x", None]}


def test_the_rows_of_a_training_set_count_for_the_events_that_they_stand_for(
    settings: Settings, tmp_path: Path
) -> None:
    days = [DAY + dt.timedelta(days=day) for day in (3, 2, 1, 0)]
    rows = rows_of(settings, tmp_path, fraud=[0, 1, 0, 1], time=days, weight=[1.0, 50.0, 1.0, 2.5], **SET)
    assert rows.weights.tolist() == [2.5, 1.0, 50.0, 1.0]
    assert len(set(rows.entities)) == 3 and rows.entities[1] == rows.entities[3], "nobody is nobody else"
    assert any("4 of them stand for 54 events" in note for note in rows.notes)
    _, late = hold_out(rows, 0.5, None)
    assert late.weights.tolist() == [50.0, 1.0] and len(set(late.entities)) == 2


def test_a_weight_of_somebody_elses_is_not_taken_for_ours(settings: Settings, tmp_path: Path) -> None:
    rows = rows_of(settings, tmp_path, fraud=[0, 1, 0, 1], weight=[70.5, 81.0, 60.0, 55.0])
    assert rows.weights.tolist() == [1.0] * 4 and rows.entities is None


@pytest.mark.parametrize("weight", [0.0, -1.0, None, float("nan"), float("inf")])
def test_a_training_set_with_a_weight_that_is_none_is_refused(
    settings: Settings, tmp_path: Path, weight: float | None
) -> None:
    with pytest.raises(DataError, match=r"'weight' of .* holds no weight in 1 rows"):
        rows_of(settings, tmp_path, fraud=[0, 1, 0, 1], weight=[1.0, 1.0, weight, 1.0], **SET)


def test_a_file_without_the_label_or_a_required_field_is_refused(settings: Settings, tmp_path: Path) -> None:
    pl.DataFrame({"amount": [1.0]}).write_csv(tmp_path / "a.csv")
    pl.DataFrame({"fraud": [1]}).write_csv(tmp_path / "b.csv")
    with pytest.raises(DataError, match="no column 'fraud'"):
        read_rows(settings, tmp_path / "a.csv", None, None)
    with pytest.raises(DataError, match="lacks the required fields amount"):
        read_rows(settings, tmp_path / "b.csv", None, None)


SCHEMA = EventSchema(
    {
        "card": Field(FieldType.TEXT),
        "shop": Field(FieldType.TEXT, required=False),
        "at": Field(FieldType.TIME),
        "amount": Field(FieldType.NUMBER),
        "score": Field(FieldType.NUMBER, required=False),
        "blank": Field(FieldType.NUMBER, required=False),
        "note": Field(FieldType.TEXT, required=False),
    }
)
FRAME = pl.DataFrame(
    {
        "card": ["a"] * 200,
        "shop": ["web"] * 120 + ["corner"] * 40 + [None] * 40,
        "at": [DAY] * 200,
        "amount": [1.0] * 200,
        "blank": pl.Series([None] * 200, dtype=pl.Float64),
        "note": [f"note {i}" for i in range(200)],
    }
)


def test_every_usable_field_is_an_input_and_the_others_say_why_not() -> None:
    features, left_out = choose_features(SCHEMA, FRAME, None, {"card": "the key"})
    assert [(f.name, f.transform, f.categories) for f in features] == [
        ("shop", "category", ("web", "corner")),
        ("amount", "number", ()),
    ]
    assert left_out["card"] == "the key"
    assert "only as its hour or weekday" in left_out["at"]
    assert left_out["score"] == "the file has no such column"
    assert left_out["blank"] == "it is blank in all rows"
    assert "200 of 200" in left_out["note"]


def test_named_inputs_are_taken_as_they_are_named() -> None:
    features, left_out = choose_features(SCHEMA, FRAME, ("at.hour", "amount.log1p", "card"), {"card": "the key"})
    assert [(f.name, f.field, f.transform) for f in features] == [
        ("at.hour", "at", "hour"),
        ("amount.log1p", "amount", "log1p"),
        ("card", "card", "category"),
    ]
    assert left_out == {}


@pytest.mark.parametrize("name", ["at", "at.minute", "fraud_scenario", "shop.hour", "score"])
def test_a_named_input_that_cannot_be_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelRefused, match=name):
        choose_features(SCHEMA, FRAME, (name,), {})


def test_a_text_may_be_called_as_polars_calls_its_counts() -> None:
    schema = EventSchema({"count": Field(FieldType.TEXT)})
    features, _ = choose_features(schema, pl.DataFrame({"count": ["a", "b", "a"]}), None, {})
    assert features[0].categories == ("a", "b")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    "values",
    [
        ["00123", "456", None],
        [1.0, 2.0, None],
        [dt.date(2026, 1, 2), None, None],
        [True, None, False],
        ["True", None, "x"],
    ],
)
def test_a_text_is_the_same_category_in_training_and_in_the_event_that_publish_makes(
    make_settings: MakeSettings, tmp_path: Path, values: list[Any], suffix: str
) -> None:
    fields = {"code": {"type": "text", "required": False}}
    settings = make_settings(stream={"fields": fields, "id_field": None, "time_field": None, "key_field": None})
    file, frame = tmp_path / f"rows.{suffix}", pl.DataFrame({"code": values, "fraud": [0, 1, 0]})
    frame.write_csv(file) if suffix == "csv" else frame.write_parquet(file)
    rows, schema = read_rows(settings, file, None, None), settings.stream.schema_of_events()
    features, _ = choose_features(schema, rows.frame, ("code",), {})
    inputs = FeatureSet(features, schema)
    replay = Replay(settings, file)
    events = [schema.decode(value) for batch in replay.batches() for _, value in replay.records(batch)]
    np.testing.assert_array_equal(inputs.matrix(events), inputs.matrix_of_frame(rows.frame))
    if suffix == "csv" and values[0] == "00123":
        assert features[0].categories == ("00123", "456")

"""What a label's value means in a person's words and in a column, and which rows of a file are labels."""

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from ecluse.contract.records import Label
from ecluse.errors import DataError
from ingest.labels import LabelFile, column_meaning, meaning, moment
from tests.conftest import MakeSettings

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def labels_of(file: LabelFile) -> list[Label]:
    found = [
        msgspec.json.decode(value, type=Label)
        for batch in file._frame.collect_batches()
        for _, value in file._records(batch)
    ]
    assert len(found) == file.total
    return found


@pytest.mark.parametrize(
    ("word", "value"),
    [("1", 1), ("positive", 1), ("FRAUD", 1), (" true ", 1), ("0", 0), ("negative", 0), ("legit", 0), ("None", None)],
)
def test_a_persons_words_are_understood(word: str, value: int | None) -> None:
    assert meaning(word, None) == meaning(word, "stolen") == value


def test_the_training_files_word_is_positive_unless_it_means_the_opposite() -> None:
    assert meaning("stolen", "stolen") == 1
    with pytest.raises(DataError, match="or 'stolen'"):
        meaning("stoln", "stolen")
    with pytest.raises(DataError, match="write positive or negative"):
        meaning("0", "0")


@pytest.mark.parametrize(
    ("text", "positive", "value"),
    [
        ("1", None, 1),
        ("0.0", None, 0),
        ("True", None, 1),
        ("stolen", "stolen", 1),
        ("disputed", "stolen", 0),  # as in training: all else is 0
        ("2.0", "2", 1),
        ("1", "0", 0),
        ("0", "0", 1),
    ],
)
def test_a_column_means_what_it_means_in_training(text: str, positive: str | None, value: int) -> None:
    assert column_meaning(text, positive) == value


@pytest.mark.parametrize(("text", "positive"), [("stolen", None), ("2", None), ("1", "stolen")])
def test_a_column_that_means_neither_or_both_is_refused(text: str, positive: str | None) -> None:
    with pytest.raises(DataError, match="the value"):
        column_meaning(text, positive)


@pytest.mark.parametrize(
    "cell",
    [
        NOON,
        NOON.replace(tzinfo=None),
        "2026-03-01T12:00:00Z",
        " 2026-03-01T13:00:00+01:00 ",
        "2026-03-01 12:00:00",
        NOON.timestamp(),
        int(NOON.timestamp() * 1000),
        str(int(NOON.timestamp())),
    ],
)
def test_a_time_may_be_written_as_an_events_time(cell: object) -> None:
    assert moment(cell, "known") == NOON.timestamp()


@pytest.mark.parametrize("cell", ["soon", "1e999", True, 1e300, -1e18, ["2026"]])
def test_what_is_no_time_is_refused_with_the_columns_name(cell: object) -> None:
    with pytest.raises(DataError, match="'known' is no time"):
        moment(cell, "known")


def test_a_blank_time_is_none() -> None:
    assert moment(None, "known") is moment(float("nan"), "known") is None


def write(folder: Path, rows: list[dict[str, Any]], ending: str = "parquet") -> Path:
    file = folder / f"rows.{ending}"
    frame = pl.DataFrame(rows)
    {"parquet": frame.write_parquet, "csv": frame.write_csv, "jsonl": frame.write_ndjson}[ending](file)
    return file


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_an_id_is_the_text_that_an_event_of_the_same_file_has(
    make_settings: MakeSettings, tmp_path: Path, ending: str
) -> None:
    fields = {"id": {"type": "integer"}, "amount": {"type": "number"}}
    settings = make_settings(stream={"fields": fields, "id_field": "id", "time_field": None})
    file = LabelFile(settings, write(tmp_path, [{"id": 17.0, "fraud": 1.0}, {"id": 18.0, "fraud": None}], ending))
    assert labels_of(file) == [Label("17", 1)]
    assert file.left_out == 1


def test_the_usual_columns_are_those_of_the_configuration_before_those_of_the_record(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    row = {"event_id": "x", "transaction_id": "tx-1", "value": 0, "fraud": 1, "label_known_at": NOON, "confidence": 7}
    file = LabelFile(make_settings(), write(tmp_path, [row]))
    assert labels_of(file) == [Label("tx-1", 1, NOON.timestamp())]
    named = LabelFile(make_settings(), write(tmp_path, [row]), {"event_id": "event_id", "value": "value"})
    assert labels_of(named) == [Label("x", 0, NOON.timestamp())]
    assert named.columns == {"event_id": "event_id", "value": "value", "known_at": "label_known_at"}


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"fraud": 1}, {}, "no column transaction_id"),
        ({"transaction_id": "a"}, {}, "no column fraud"),
        ({"transaction_id": "a", "fraud": 1}, {"labeler": "who"}, "no column 'who'"),
        ({"transaction_id": "a", "fraud": [1]}, {}, "lists or objects"),
        ({"transaction_id": "", "fraud": 1}, {}, "Row 1: event_id: "),
        ({"transaction_id": None, "fraud": 1}, {}, "Row 1: the event's id"),
        ({"transaction_id": "a", "fraud": 1, "sure": 1.5}, {"confidence": "sure"}, "Row 1: confidence: "),
        ({"transaction_id": "a", "fraud": 1, "sure": "very"}, {"confidence": "sure"}, "Row 1: confidence: "),
        ({"transaction_id": "a", "fraud": 1, "why": "alert"}, {"alerted": "why"}, "Row 1: alerted: "),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(
    make_settings: MakeSettings, tmp_path: Path, row: dict[str, Any], columns: dict[str, str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        LabelFile(make_settings(), write(tmp_path, [row]), columns)


def test_on_the_events_clock_every_row_says_when_it_became_known(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(stream={"clock": "event"})
    row = {"transaction_id": "a", "fraud": 1}
    with pytest.raises(DataError, match="--known-at names the column"):
        LabelFile(settings, write(tmp_path, [row]))
    with pytest.raises(DataError, match="Row 2: 'known_at' is blank"):
        LabelFile(settings, write(tmp_path, [row | {"known_at": NOON}, row | {"known_at": None}]))


def test_only_the_first_bad_rows_are_named_and_all_are_counted(make_settings: MakeSettings, tmp_path: Path) -> None:
    file = write(tmp_path, [{"transaction_id": "a", "fraud": 5}] * 13)
    with pytest.raises(DataError) as raised:
        LabelFile(make_settings(), file)
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[0][:14], lines[-1]) == (12, "13 of the 13 r", "… and 3 more.")

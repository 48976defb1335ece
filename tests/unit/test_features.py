import datetime as dt
import math
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecluse.contract.schema import EventSchema, Field, FieldType
from ecluse.errors import DataError, ModelRefused
from ecluse.model.features import Feature, FeatureSet, seconds_of

SCHEMA = EventSchema(
    {
        "amount": Field(FieldType.NUMBER, required=False),
        "count": Field(FieldType.INTEGER, required=False),
        "flag": Field(FieldType.BOOLEAN, required=False),
        "shop": Field(FieldType.TEXT, required=False),
        "at": Field(FieldType.TIME, required=False),
    }
)
ALL = FeatureSet(
    [
        Feature("amount", "amount", "number"),
        Feature("shop", "shop", "category", categories=("corner", "web", "kiosk")),
        Feature("amount.log1p", "amount", "log1p"),
        Feature("count", "count", "number", missing=-1.0),
        Feature("flag", "flag", "number"),
        Feature("at.hour", "at", "hour"),
        Feature("at.weekday", "at", "weekday", missing=7.0),
        Feature("shop known", "shop", "category", categories=("web",), missing=-1.0),
    ],
    SCHEMA,
)
COLUMNS = {
    "amount": pl.Float64,
    "count": pl.Int64,
    "flag": pl.Boolean,
    "shop": pl.String,
    "at": pl.Datetime("us", "UTC"),
}
TIMES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "amount": st.none() | st.floats(allow_infinity=False),
            "count": st.none() | st.integers(-(2**63), 2**63 - 1),
            "flag": st.none() | st.booleans(),
            "shop": st.none() | st.sampled_from(["corner", "web", "kiosk", "elsewhere"]) | st.text(max_size=3),
            "at": st.none() | TIMES,
        }
    ),
    max_size=20,
)


def events(rows: list[dict[str, Any]], encode: Any) -> list[Any]:
    return [SCHEMA.decode(encode(row)) for row in rows]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS)
def test_training_and_scoring_see_the_same_numbers_to_the_last_bit(rows: list[dict[str, Any]]) -> None:
    trained = ALL.matrix_of_frame(pl.DataFrame(rows, schema=COLUMNS))
    assert trained.dtype == np.float32 and trained.shape == (len(rows), 8)
    for encode in (msgspec.json.encode, msgspec.msgpack.encode):
        np.testing.assert_array_equal(ALL.matrix(events(rows, encode)), trained)


def test_each_transform_gives_what_it_says() -> None:
    row = {"amount": -3.0, "count": None, "flag": True, "shop": "kiosk", "at": "2026-11-22T23:30:00Z"}
    matrix = ALL.matrix(events([row, {}], msgspec.json.encode))
    assert matrix[0].tolist() == pytest.approx([-3.0, 2.0, -math.log(4), -1.0, 1.0, 23.0, 6.0, 1.0])
    assert np.isnan(matrix[1, [0, 1, 2, 4, 5]]).all()
    assert matrix[1, [3, 6, 7]].tolist() == [-1.0, 7.0, -1.0]


def test_what_float32_cannot_hold_takes_its_largest_value() -> None:
    matrix = ALL.matrix(events([{"amount": 1e300}, {"amount": -1e300}], msgspec.json.encode))
    assert matrix[:, 0].tolist() == [np.finfo(np.float32).max, np.finfo(np.float32).min]


def test_infinity_in_a_file_is_blank_as_it_is_in_the_event_made_of_it() -> None:
    schema = EventSchema({"x": Field(FieldType.NUMBER, required=False)})
    inputs = FeatureSet([Feature("x", "x", "number")], schema)
    trained = inputs.matrix_of_frame(pl.DataFrame({"x": [math.inf, -math.inf, 1.0]}))
    scored = inputs.matrix([schema.decode(msgspec.json.encode({"x": x})) for x in (math.inf, -math.inf, 1.0)])
    np.testing.assert_array_equal(trained, scored)


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("at", [dt.datetime(2026, 11, 22, 12), None]),
        pl.Series("at", [dt.datetime(2026, 11, 22, 13, tzinfo=dt.timezone(dt.timedelta(hours=1))), None]),
        pl.Series("at", ["2026-11-22T13:00:00+01:00", None]),
        pl.Series("at", ["2026-11-22T12:00:00", None]),
        pl.Series("at", [1_795_348_800, None]),
        pl.Series("at", [1_795_348_800_000, None]),
    ],
)
def test_a_time_column_may_have_any_form_that_an_event_may(column: pl.Series) -> None:
    first, second = seconds_of(column)
    assert first == 1_795_348_800 and np.isnan(second)


def test_a_column_that_holds_no_times_is_refused() -> None:
    with pytest.raises(DataError, match="'at' holds what is no time"):
        seconds_of(pl.Series("at", ["yesterday"]))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([Feature("a", "fraud", "number")], "needs the field 'fraud', which the stream does not declare"),
        ([Feature("a", "shop", "number")], "takes number of 'shop', whose type is text"),
        ([Feature("a", "amount", "hour")], "takes hour of 'amount', whose type is number"),
        ([Feature("a", "amount", "number"), Feature("a", "count", "number")], "two features are called 'a'"),
        ([], "needs at least one"),
    ],
)
def test_features_that_the_stream_cannot_give_are_refused_by_name(features: list[Feature], words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        FeatureSet(features, SCHEMA)


def test_a_file_without_a_features_column_is_refused() -> None:
    with pytest.raises(DataError, match="no column 'amount'"):
        ALL.matrix_of_frame(pl.DataFrame({"shop": ["web"]}))

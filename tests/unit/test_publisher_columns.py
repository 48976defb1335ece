"""A file's columns as an event's fields: of the declared type where that loses nothing, else as they are."""

import datetime as dt
import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecluse.contract.schema import EventSchema, Field, FieldType, seconds
from ingest.replay import _records, _utc, cells

NAN = math.nan


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        (FieldType.NUMBER, [1, None], [1, None]),
        (FieldType.NUMBER, [1.5, NAN, None], [1.5, None, None]),
        (FieldType.NUMBER, ["1", " 2.5 ", "n/a", None], [1.0, 2.5, "n/a", None]),
        (FieldType.NUMBER, [True, False, None], [1, 0, None]),
        (FieldType.INTEGER, [3.0, 2.5, NAN, 1e30], [3, 2.5, None, 1e30]),
        (FieldType.INTEGER, ["3", "3.5", None], [3, "3.5", None]),
        (FieldType.INTEGER, [True, None], [1, None]),
        (FieldType.TEXT, [596, None], ["596", None]),
        (FieldType.TEXT, [596.0, 0.5, NAN], ["596", "0.5", None]),
        (FieldType.TEXT, [True], ["true"]),
        (FieldType.TEXT, ["007", ""], ["007", ""]),
        (FieldType.BOOLEAN, [1, 0, 2, None], [True, False, 2, None]),
        (FieldType.BOOLEAN, [1.0, 0.0], [True, False]),
        (FieldType.BOOLEAN, ["True", "FALSE", "1", "maybe"], [True, False, True, "maybe"]),
        (FieldType.TIME, [dt.datetime(2024, 1, 2, 3), None], ["2024-01-02T03:00:00Z", None]),
        (FieldType.TIME, [dt.date(2024, 1, 2)], ["2024-01-02T00:00:00Z"]),
        (FieldType.TIME, ["2024-01-02 03:00:00"], ["2024-01-02 03:00:00"]),
        (FieldType.TIME, [1_704_164_400], [1_704_164_400]),
        (FieldType.NUMBER, [[1, 2]], [[1, 2]]),
    ],
)
def test_a_column_becomes_the_declared_type_where_that_loses_nothing(
    kind: FieldType, column: list[Any], expected: list[Any]
) -> None:
    found = cells(pl.Series(column), kind)
    assert list(found) == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_a_time_with_a_zone_is_told_in_utc() -> None:
    zoned = pl.Series([dt.datetime(2024, 1, 2, 3, 4, 5, 250_000, tzinfo=dt.UTC)]).dt.convert_time_zone("Asia/Tokyo")
    assert cells(zoned, FieldType.TIME) == ["2024-01-02T03:04:05.250Z"]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "number": st.none() | st.floats(allow_nan=True, allow_infinity=False),
                "integer": st.none() | st.integers(-(2**63), 2**63 - 1),
                "text": st.none() | st.text(),
                "boolean": st.none() | st.booleans(),
                "time": st.none() | st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2200, 1, 1)),
            }
        ),
        min_size=1,
        max_size=20,
    )
)
def test_rows_survive_the_way_through_an_event(rows: list[dict[str, Any]]) -> None:
    dtypes = {"number": pl.Float64, "integer": pl.Int64, "text": pl.String, "boolean": pl.Boolean, "time": pl.Datetime}
    fields = {name: Field(FieldType(name), required=False) for name in dtypes}
    schema = EventSchema(fields)
    values = schema.getter(*fields)
    records = _records(pl.DataFrame(rows, schema=dtypes), fields, "text")
    for row, (key, value) in zip(rows, records, strict=True):
        assert key == (None if row["text"] is None else row["text"].encode())
        number, integer, text, boolean, time = values(schema.decode(value))
        blank = row["number"] is None or math.isnan(row["number"])
        assert number == (None if blank else row["number"])
        assert (integer, text, boolean) == (row["integer"], row["text"], row["boolean"])
        assert seconds(time) == seconds(row["time"])
        assert b"null" not in value.replace(b'"' + (row["text"] or "").encode() + b'"', b"") or row["text"]


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ([dt.datetime(2024, 1, 2, 3)], pl.Datetime("ms")),
        ([dt.datetime(2024, 1, 2, 3)], pl.Datetime("us", "UTC")),
        (["2024-01-02T03:00:00Z"], pl.String),
        (["2024-01-02T05:00:00+02:00"], pl.String),
        (["2024-01-02 03:00:00"], pl.String),
        ([1_704_164_400], pl.Int64),
        ([1_704_164_400_000], pl.Int64),
        ([1_704_164_400.0], pl.Float64),
    ],
)
def test_an_event_time_is_read_in_every_form_that_a_time_field_may_have(column: list[Any], dtype: pl.DataType) -> None:
    frame = pl.DataFrame({"time": pl.Series(column, dtype=dtype)})
    expression = _utc("time", frame.schema["time"])
    assert frame.select(expression).item() == dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC)

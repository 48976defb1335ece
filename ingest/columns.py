"""Columns of the training store's tables, made of lists of Python values. No value of a stranger makes one fail."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from ecluse.contract.schema import Field, FieldType, seconds
from ecluse.contract.tables import Table
from ecluse.events import END_OF_TIME, FIRST_TIME
from ecluse.store.schema import polars_schema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The times that a table holds, in microseconds since 1970: the years 1 to 9999, as in an event's fields.
EARLIEST = FIRST_TIME * 1_000_000
LATEST = END_OF_TIME * 1_000_000 - 1
_INT64 = range(-(2**63), 2**63)


def frame(table: Table, columns: Mapping[str, Sequence[Any] | pl.Series]) -> pl.DataFrame:
    """The rows of a table, from its columns without `day`: that is the day of `known_at`."""
    schema = polars_schema(table)
    made = {name: _series(name, values, schema[name]) for name, values in columns.items()}
    made["day"] = made["known_at"].dt.date().alias("day")
    return pl.DataFrame([made[name] for name in schema])


def _series(name: str, values: Sequence[Any] | pl.Series, kind: pl.DataType) -> pl.Series:
    if isinstance(values, pl.Series):
        return values.alias(name)
    if kind == pl.Datetime:
        return pl.Series(name, values, dtype=pl.Int64).cast(kind)
    return pl.Series(name, values, dtype=kind, strict=False)


def micros(moment: float | None) -> int | None:
    """Seconds since 1970 as microseconds; None where no table's time can say it."""
    if moment is None or not EARLIEST / 1e6 <= moment < (LATEST + 1) / 1e6:  # NaN is neither
        return None
    return round(moment * 1e6)


def arrival(milliseconds: int) -> int:
    """A record's timestamp in microseconds; where a producer gave an absurd one, the first or the last that a table can say."""
    return min(max(milliseconds * 1000, EARLIEST), LATEST)


def field_column(field: Field, values: Sequence[Any]) -> pl.Series:
    """The column of a declared field, from values as its decoder gives them; NaN, which means missing, is null."""
    match field.type:
        case FieldType.TIME:
            return pl.Series(list(map(moment, values)), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
        case FieldType.NUMBER:
            numbers = pl.Series(values, dtype=pl.Float64)
            if field.required:
                return numbers
            return numbers.to_frame("").select(pl.when(pl.col("").is_finite()).then(pl.col(""))).to_series()
        case FieldType.INTEGER:
            return pl.Series(values, dtype=pl.Int64)
        case FieldType.TEXT:
            return pl.Series(values, dtype=pl.String)
        case FieldType.BOOLEAN:
            return pl.Series(values, dtype=pl.Boolean)


def moment(value: datetime | float | None) -> int | None:
    """A `time` field's value in microseconds, exactly where it is a date's.

    A zone can bring a date's first and last day out of the calendar: it is the first or the last that a table can say then,
    because a required field must not be null.
    """
    if not isinstance(value, datetime):
        return micros(seconds(value))
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    whole = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return min(max(whole, EARLIEST), LATEST)


def integer(value: int | None) -> int | None:
    """A whole number, or None where 64 bits do not hold it."""
    return value if value is None or value in _INT64 else None

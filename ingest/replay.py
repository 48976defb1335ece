"""A file's rows as events: CSV, JSON lines or Parquet, in the file's order, in memory that does not grow with the file."""

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from ecluse import tables
from ecluse.contract.codecs import encoder
from ecluse.contract.schema import Field, FieldType
from ecluse.errors import DataError
from ecluse.sections import StreamSettings
from ecluse.settings import Settings
from ingest.publisher import Publisher

#: Rows that are read and turned into events at a time.
BATCH_ROWS = 10_000
#: The shortest wait of a paced replay, in seconds: events that are due within it go together.
_TICK = 0.01
_TIME = "__ecluse_time"

Column = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a file is replayed: `rate` events a second, or `speed` times as fast as the events' times say, or unbounded."""

    rate: float | None = None
    speed: float | None = None


class Replay:
    """The rows of a file that are to be events; made before anything is sent, so that a wrong file sends nothing.

    Args:
        settings: the stream: only its declared fields are sent, and its key field is the records' key.
        path: a .csv, .jsonl, .ndjson or .parquet file.
        since: the earliest event time (included); without a zone it is UTC.
        until: the end of event times (excluded).
        limit: how many rows at most.
        pace: how fast.

    Raises:
        DataError: the file cannot be read, lacks a column that the stream needs, or is not in the order of its times
            where the pace follows them.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        *,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        limit: int | None = None,
        pace: Pace = Pace(),
    ) -> None:
        self.path = path
        self.pace = pace
        self.stream = settings.stream
        frame = tables.scan(path, self.stream.texts)
        #: The file's columns and their types.
        self.columns = tables.columns(frame, path)
        self.fields = _fields_in_file(self.stream, self.columns, path)
        time_field = self.stream.time_field
        if since or until or pace.speed:
            if time_field is None or time_field not in self.columns:
                raise DataError(
                    f"--since, --until and --speed need the events' times: stream.time_field is {time_field or 'not set'}"
                    f"{f', and {path} has no such column' if time_field else ''}."
                )
            frame = frame.with_columns(_utc(time_field, self.columns[time_field]).alias(_TIME))
            frame = tables.between(frame, _TIME, since, until)
        self._frame = frame if limit is None else frame.head(limit)
        self.total = self._count()

    def _count(self) -> int:
        """Count the rows; where the pace follows their times, refuse times that run backwards."""
        backwards = pl.lit(False)
        if self.pace.speed:
            time = pl.col(_TIME).drop_nulls()
            backwards = (time.diff() < pl.duration()).any()
        counts = tables.collect(self._frame.select(rows=pl.len(), backwards=backwards), self.path)
        if counts["backwards"][0]:
            raise DataError(
                f"{self.path} is not in the order of '{self.stream.time_field}', which --speed follows: sort it first."
            )
        return int(counts["rows"][0])

    async def run(self, publisher: Publisher, progress: Callable[[int], None] | None = None) -> None:
        """Publish the rows and wait for their confirmation; `progress` is told how many are confirmed.

        Raises:
            DataError: the file turned out to be broken; what came before is published.
            DeliveryError: the broker refused an event, or did not confirm the last ones in time.
        """
        tell = progress or (lambda _: None)
        clock = asyncio.get_running_loop().time
        start, sent, first = clock(), 0, None
        for batch in self.batches():
            records = self.records(batch)
            if first is None and self.pace.speed:
                first = batch[_TIME].drop_nulls().min()
            due = start + self._due(batch, sent, first)
            done = 0
            while done < len(records):
                ready = max(done, int(np.searchsorted(due, clock(), side="right")))
                await publisher.publish_encoded(records[done:ready])
                tell(publisher.confirmed)
                done = ready
                if done < len(records):
                    await asyncio.sleep(max(due[done] - clock(), _TICK))
            sent += len(records)
        await publisher.flush()
        tell(publisher.confirmed)

    def records(self, batch: pl.DataFrame) -> list[tuple[bytes | None, bytes]]:
        """The key and the JSON value of each row, as they are published."""
        return _records(batch, self.fields, self.stream.key_field)

    def batches(self) -> Iterator[pl.DataFrame]:
        """The rows in the file's order, `BATCH_ROWS` at a time: the columns that the stream names.

        Raises:
            DataError: the file turned out to be broken.
        """
        needed = dict.fromkeys([*self.fields, *([self.stream.key_field] if self.stream.key_field else [])])
        columns = [*needed, *([_TIME] if self.pace.speed else [])]
        return in_batches(self._frame.select(columns), self.path)

    def _due(self, batch: pl.DataFrame, sent: int, first: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds after the start at which each row is due, never falling."""
        if self.pace.rate:
            return np.arange(sent, sent + batch.height) / self.pace.rate
        if self.pace.speed and first is not None:
            # A row without a time goes with the one before it.
            passed = (batch[_TIME] - first).dt.total_microseconds().fill_null(strategy="forward").fill_null(0)
            return np.maximum.accumulate(passed.to_numpy().astype(np.float64) / 1e6 / self.pace.speed)
        return np.zeros(batch.height)


def in_batches(frame: pl.LazyFrame, path: Path) -> Iterator[pl.DataFrame]:
    """A file's rows in its order, `BATCH_ROWS` at a time.

    Raises:
        DataError: the file turned out to be broken.
    """
    try:
        yield from frame.collect_batches(chunk_size=BATCH_ROWS, lazy=True, engine="streaming")
    except (PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read to its end: {error}.") from error


def _fields_in_file(stream: StreamSettings, schema: pl.Schema, path: Path) -> dict[str, Field]:
    """The declared fields that the file has.

    Raises:
        DataError: a required one, or the key, is not there.
    """
    missing = [name for name, field in stream.fields.items() if field.required and name not in schema]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}, which stream.fields requires. Its columns: {', '.join(schema)}."
        )
    if stream.key_field and stream.key_field not in schema:
        raise DataError(f"{path} has no column {stream.key_field}, which stream.key_field names as the events' key.")
    present = {name: field for name, field in stream.fields.items() if name in schema}
    if not present:
        raise DataError(f"{path} has none of the columns of stream.fields: {', '.join(stream.fields)}.")
    return present


def _records(batch: pl.DataFrame, fields: dict[str, Field], key_field: str | None) -> list[tuple[bytes | None, bytes]]:
    """A key and a JSON value for each row; what is blank is left out."""
    encode = encoder("json")
    columns = [cells(batch[name], field.type) for name, field in fields.items()]
    rows = (dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True))
    if any(None in column for column in columns):
        rows = ({name: cell for name, cell in row.items() if cell is not None} for row in rows)
    values = [encode(row) for row in rows]
    if key_field is None:
        return [(None, value) for value in values]
    keys = cells(batch[key_field], FieldType.TEXT)
    return [(None if key is None else str(key).encode(), value) for key, value in zip(keys, values, strict=True)]


def cells(series: pl.Series, kind: FieldType) -> Column:
    """A column's values as an event carries them: of the declared type where that loses nothing, else as they are."""
    dtype = series.dtype
    if dtype.is_float():
        series = series.fill_nan(None)
    elif dtype.is_temporal():
        return tables.rfc3339(series).to_list()
    match kind:
        case FieldType.TEXT:
            return series.to_list() if dtype.is_nested() else tables.as_texts(series).to_list()
        case FieldType.NUMBER if dtype == pl.Boolean:
            return series.cast(pl.Int8).to_list()
        case FieldType.NUMBER if dtype == pl.String:
            return _or_as_it_is(series.str.strip_chars().cast(pl.Float64, strict=False).fill_nan(None), series)
        case FieldType.INTEGER if dtype == pl.Boolean:
            return series.cast(pl.Int8).to_list()
        case FieldType.INTEGER if dtype == pl.String:
            return _or_as_it_is(series.str.strip_chars().cast(pl.Int64, strict=False), series)
        case FieldType.INTEGER if dtype.is_float():
            return _or_as_it_is(tables.whole(series), series)
        case FieldType.BOOLEAN if dtype.is_numeric():
            return _or_as_it_is(
                series.replace_strict({0: False, 1: True}, default=None, return_dtype=pl.Boolean), series
            )
        case FieldType.BOOLEAN if dtype == pl.String:
            words = {"true": True, "false": False, "1": True, "0": False}
            plain = series.str.strip_chars().str.to_lowercase()
            return _or_as_it_is(plain.replace_strict(words, default=None, return_dtype=pl.Boolean), series)
    return series.to_list()


def _or_as_it_is(converted: pl.Series, original: pl.Series) -> Column:
    if converted.null_count() == original.null_count():
        return converted.to_list()
    return [o if c is None else c for c, o in zip(converted.to_list(), original.to_list(), strict=True)]


def _utc(column: str, dtype: pl.DataType) -> pl.Expr:
    """An event's time, in any of the forms that a `time` field may have, as a UTC datetime."""
    time = pl.col(column)
    if isinstance(dtype, pl.Datetime):
        zoned = time.dt.convert_time_zone("UTC") if dtype.time_zone else time.dt.replace_time_zone("UTC")
        return zoned.cast(pl.Datetime("us", "UTC"))
    if dtype == pl.Date:
        return time.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if dtype == pl.String:
        return time.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
    if dtype.is_numeric():
        epoch = pl.when(time.abs() >= 1e11).then(time / 1e3).otherwise(time)  # as `seconds` of the contract's schema
        return (epoch * 1e6).cast(pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    raise DataError(f"The column '{column}' holds {dtype}, which is no time.")

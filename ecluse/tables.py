"""Files of rows: CSV, JSON lines and Parquet, read lazily; the same rows for training, publishing and `ecluse init`."""

import datetime as dt
import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import polars.selectors as cs
from polars.exceptions import PolarsError

from ecluse.errors import DataError

#: What CSV files write for a value that is missing; an empty cell too.
_BLANKS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
_INFERRED_ROWS = 10_000
_SEPARATORS = ",;\t|"
_RFC3339 = "%Y-%m-%dT%H:%M:%S%.fZ"
_HEADER_BYTES = 64 * 1024


def scan(path: Path, texts: Iterable[str] = ()) -> pl.LazyFrame:
    """A file's rows, by its ending: .csv (the separator is seen from the header), .jsonl or .ndjson, .parquet.

    A date is read as its midnight and a decimal as a float: the types that an event's fields have. In CSV, digits behind a
    zero (00123) are text, and so are the columns that `texts` names, as they stand.

    Raises:
        DataError: there is no such file, it cannot be opened, or its ending is none of these.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    match path.suffix.lower():
        case ".csv":
            separator = _separator(path)
            frame = pl.scan_csv(
                path,
                separator=separator,
                infer_schema_length=_INFERRED_ROWS,
                schema_overrides=dict.fromkeys({*texts, *_zero_led(path, separator)}, pl.String),
                try_parse_dates=True,
                null_values=list(_BLANKS),
            )
        case ".jsonl" | ".ndjson":
            frame = pl.scan_ndjson(path, infer_schema_length=_INFERRED_ROWS)
        case ".parquet":
            frame = pl.scan_parquet(path)
        case other:
            raise DataError(f"{path} ends in '{other}': rows are read from .csv, .jsonl, .ndjson or .parquet files.")
    return frame.with_columns(cs.date().cast(pl.Datetime("us")), cs.decimal().cast(pl.Float64))


def _separator(path: Path) -> str:
    try:
        with path.open("rb") as file:
            header = file.readline(_HEADER_BYTES).decode(errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    bare = re.sub(r'"[^"]*"', "", header)  # a quoted name may hold a separator
    return max(_SEPARATORS, key=bare.count)


def _zero_led(path: Path, separator: str) -> list[str]:
    """The columns of a CSV file with numbers like 00123: codes, which would lose their zeros as numbers."""
    try:
        head = pl.read_csv(path, separator=separator, infer_schema=False, n_rows=_INFERRED_ROWS)
    except (PolarsError, OSError):  # said when the file itself is read
        return []
    return [column.name for column in head if column.str.contains(r"^0[0-9]+$").any()]


def columns(frame: pl.LazyFrame, path: Path) -> pl.Schema:
    """The columns and their types.

    Raises:
        DataError: the file is not what its ending says.
    """
    try:
        return frame.collect_schema()
    except (PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def collect(frame: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """Read the rows into memory.

    Raises:
        DataError: the file is not what its ending says.
    """
    try:
        return frame.collect(engine="streaming")
    except (PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def as_texts(column: pl.Series) -> pl.Series:
    """A column as the texts that an event carries: whole floats without a fraction (596.0 is how a whole column with blanks
    was written), times as RFC 3339 in UTC (without a zone they are UTC), true and false in small letters."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
        integers = whole(column)
        return integers.cast(pl.String).zip_with(integers.is_not_null(), column.cast(pl.String))
    return rfc3339(column) if column.dtype.is_temporal() else column.cast(pl.String)


def whole(column: pl.Series) -> pl.Series:
    """The whole numbers among floats as integers; null where there is a fraction."""
    return column.set((column.floor() != column).fill_null(True), None).cast(pl.Int64, strict=False)


def rfc3339(column: pl.Series) -> pl.Series:
    """Dates and times as RFC 3339 text in UTC; times without a zone are UTC."""
    if isinstance(column.dtype, pl.Datetime) or column.dtype == pl.Date:
        zoned = isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone
        moments = column.dt.convert_time_zone("UTC") if zoned else column.cast(pl.Datetime("us"))
        return moments.dt.strftime(_RFC3339)
    return column.cast(pl.String)


def between(
    frame: pl.LazyFrame, time_column: str | None, since: dt.datetime | None, until: dt.datetime | None
) -> pl.LazyFrame:
    """The rows from `since` (included) to `until` (excluded); times without a zone are UTC.

    Raises:
        DataError: a limit is given and there is no time column, or it holds no times.
    """
    if since is None and until is None:
        return frame
    if time_column is None:
        raise DataError("A limit in time needs stream.time_field, which is not set.")
    kind = frame.collect_schema().get(time_column)
    if not isinstance(kind, pl.Datetime):
        raise DataError(f"A limit in time needs times in column '{time_column}', which holds {kind or 'nothing'}.")
    time = pl.col(time_column)
    time = time.dt.replace_time_zone("UTC") if kind.time_zone is None else time.dt.convert_time_zone("UTC")
    for limit, keep in ((since, time.__ge__), (until, time.__lt__)):
        if limit is not None:
            frame = frame.filter(
                keep(pl.lit(limit.astimezone(dt.UTC) if limit.tzinfo else limit.replace(tzinfo=dt.UTC)))
            )
    return frame

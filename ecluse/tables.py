"""Files of rows: CSV, JSON lines and Parquet, read lazily; the same rows for training, publishing and `ecluse init`."""

import datetime as dt
import re
from pathlib import Path

import polars as pl
import polars.selectors as cs
from polars.exceptions import PolarsError

from ecluse.errors import DataError

#: What CSV files write for a value that is missing; an empty cell too.
_BLANKS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
_SEPARATORS = ",;\t|"
_HEADER_BYTES = 64 * 1024


def scan(path: Path) -> pl.LazyFrame:
    """A file's rows, by its ending: .csv (the separator is seen from the header), .jsonl or .ndjson, .parquet.

    A date is read as its midnight and a decimal as a float: the types that an event's fields have.

    Raises:
        DataError: there is no such file, or its ending is none of these.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    match path.suffix.lower():
        case ".csv":
            frame = pl.scan_csv(
                path,
                separator=_separator(path),
                infer_schema_length=10_000,
                try_parse_dates=True,
                null_values=list(_BLANKS),
            )
        case ".jsonl" | ".ndjson":
            frame = pl.scan_ndjson(path, infer_schema_length=10_000)
        case ".parquet":
            frame = pl.scan_parquet(path)
        case other:
            raise DataError(f"{path} ends in '{other}': rows are read from .csv, .jsonl, .ndjson or .parquet files.")
    return frame.with_columns(cs.date().cast(pl.Datetime("us")), cs.decimal().cast(pl.Float64))


def _separator(path: Path) -> str:
    with path.open("rb") as file:
        header = file.readline(_HEADER_BYTES).decode(errors="replace")
    bare = re.sub(r'"[^"]*"', "", header)  # a quoted name may hold a separator
    return max(_SEPARATORS, key=bare.count)


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

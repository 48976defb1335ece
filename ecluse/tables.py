"""Files of rows: CSV, JSON lines and Parquet, read lazily."""

import datetime as dt
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from ecluse.errors import DataError


def scan(path: Path) -> pl.LazyFrame:
    """A file's rows, by its ending: .csv, .jsonl or .ndjson, .parquet.

    Raises:
        DataError: there is no such file, or its ending is none of these.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    match path.suffix.lower():
        case ".csv":
            return pl.scan_csv(path, infer_schema_length=10_000, try_parse_dates=True)
        case ".jsonl" | ".ndjson":
            return pl.scan_ndjson(path, infer_schema_length=10_000)
        case ".parquet":
            return pl.scan_parquet(path)
        case other:
            raise DataError(f"{path} ends in '{other}': rows are read from .csv, .jsonl, .ndjson or .parquet files.")


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
        DataError: a limit is given and there is no time column.
    """
    if since is None and until is None:
        return frame
    if time_column is None:
        raise DataError("A limit in time needs stream.time_field, which is not set.")
    time = pl.col(time_column)
    for limit, keep in ((since, time.__ge__), (until, time.__lt__)):
        if limit is not None:
            frame = frame.filter(
                keep(pl.lit(limit.astimezone(dt.UTC) if limit.tzinfo else limit.replace(tzinfo=dt.UTC)))
            )
    return frame

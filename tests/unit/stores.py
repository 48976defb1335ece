"""Training stores for tests, and rows for their tables."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from ecluse.contract.tables import PREDICTIONS, Table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema

KNOWN = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)


def app(partition: int) -> str:
    """The application transaction of a partition."""
    return f"ecluse.t.predictions/{partition}"


def open_store(url: Path | str, **store: Any) -> TrainingStore:
    """A store at a folder or URL, with settings of the section `store`."""
    return TrainingStore(
        Settings(stream={"name": "t", "fields": {"amount": "number"}}, store={"url": str(url)} | store)
    )


def rows(
    partition: int,
    start: int,
    end: int,
    table: Table = PREDICTIONS,
    *,
    days: int = 0,
    values: Mapping[str, object] | None = None,
) -> pl.DataFrame:
    """Rows of the records [start, end) of a partition, known some days after `KNOWN`. Other columns: `values`, or null."""
    known = KNOWN + timedelta(days=days)
    constant = {"known_at": known, "day": known.date(), "partition": partition} | dict(values or {})
    schema = polars_schema(table)
    columns = [pl.lit(constant.get(name), kind).alias(name) for name, kind in schema.items() if name != "offset"]
    return pl.int_range(start, end, eager=True).alias("offset").to_frame().with_columns(columns).select(schema.names())


def fill(store: TrainingStore, appends: int, *, partition: int = 0, size: int = 10, table: Table = PREDICTIONS) -> None:
    """Append batches where the table stands, as one sink does."""
    for _ in range(appends):
        start = store.offsets(table).get(app(partition))
        first = start or 0
        store.append(table, rows(partition, first, first + size, table), {app(partition): (start, first + size)})


def places(store: TrainingStore, table: Table = PREDICTIONS) -> list[tuple[int, int]]:
    """Partition and offset of each row, sorted."""
    return sorted(store.scan(table).select("partition", "offset").collect().rows())


def data_files(store: TrainingStore, table: Table = PREDICTIONS) -> list[Path]:
    """The data files in the folder of a table, whether the table holds them or not."""
    return sorted(Path(store.location(table)).glob("day=*/*"))


def log_files(store: TrainingStore, table: Table = PREDICTIONS) -> list[Path]:
    """The files of a table's log."""
    return sorted((Path(store.location(table)) / "_delta_log").iterdir())

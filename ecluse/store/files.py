"""The data files of a table, as the log names them."""

import io
import json
import time
import uuid
from datetime import date, datetime
from typing import Any

import polars as pl
from deltalake.transaction import AddAction

from ecluse.store.place import Place

#: The columns whose bounds the log keeps for each file, to pass over files. No other: the log outlives the rows.
BOUNDED = ("known_at", "partition", "offset", "source_offset")


def new_path(day: date) -> str:
    """A file that nobody else writes."""
    return f"day={day}/part-{uuid.uuid4()}.parquet"


def write(place: Place, rows: pl.DataFrame) -> list[AddAction]:
    """Write rows into one file for each of their days; what a commit says of these files."""
    actions: dict[str, AddAction] = {}
    try:
        for (day,), part in rows.group_by("day", maintain_order=True):
            if not isinstance(day, date):
                raise ValueError("a row has no day")
            path, buffer = new_path(day), io.BytesIO()
            part.drop("day").write_parquet(buffer)
            actions[path] = added(path, day, buffer.tell(), part.lazy())
            place.put(path, buffer.getvalue())
            place.settle(path)
    except BaseException:
        place.discard(actions)
        raise
    return list(actions.values())


def added(path: str, day: date, size: int, rows: pl.LazyFrame, *, data_change: bool = True) -> AddAction:
    """What the commit says of a new file: its rows' number and bounds among it.

    Args:
        path: in the table's folder.
        day: of all its rows.
        size: bytes.
        rows: its rows.
        data_change: False: they were in the table before.
    """
    columns = [pl.col(name) for name in BOUNDED if name in rows.collect_schema().names()]
    facts = rows.select(
        pl.len(),
        pl.struct(column.min() for column in columns).alias("low"),
        pl.struct(column.max() for column in columns).alias("high"),
        pl.struct(column.null_count() for column in columns).alias("nulls"),
    )
    count, low, high, nulls = facts.collect().row(0)
    stats = {"numRecords": count, "minValues": _json(low), "maxValues": _json(high), "nullCount": nulls}
    return AddAction(path, size, {"day": str(day)}, int(time.time() * 1000), data_change, json.dumps(stats))


def _json(bounds: dict[str, Any]) -> dict[str, int | str]:
    """Without what has no bounds; times, which are UTC, as the protocol writes them."""
    there = {name: value for name, value in bounds.items() if value is not None}
    return {
        name: f"{value.replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
        if isinstance(value, datetime)
        else value
        for name, value in there.items()
    }

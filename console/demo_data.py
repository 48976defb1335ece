"""What the demonstration plays: history to learn from, later rows to stream, and a few events of another make."""

import datetime as dt
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from console.config import as_toml
from console.init import render
from ecluse import tables
from ecluse.contract.headers import cloud_event_headers
from ecluse.contract.schema import FieldType
from ecluse.errors import DataError
from ecluse.settings import Settings, StreamSettings
from ingest import generate
from ingest.infer import infer

SEED = 20240101
#: History reaches back that many days before the first that is streamed; the last ones of it are held out.
HISTORY_DAYS, HELD_OUT_DAYS = 27, 7
#: Of a file, the last seventh of its days is streamed: days 77 to 89 of 90.
_LIVE_SHARE = 1 / 7
#: Where there are no days to go by: the share of rows to learn from, in their order.
_HISTORY_SHARE = 0.7
_GENERATED_A_DAY = 9_300
_LEAST_ROWS = 1_000
#: Rows kept back for the events of another make.
_GUEST_ROWS = 3

Headers = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Guest:
    """A record by a plain Kafka producer. `broken` ones cannot be scored: each must become a dead letter."""

    value: bytes | None
    headers: Headers = ()
    broken: bool = True


@dataclass(frozen=True, slots=True)
class Scene:
    """What is played: the stream's configuration, and its files in the demonstration's folder."""

    config: dict[str, Any]
    history: Path
    held_out_since: dt.datetime | None
    live: Path
    events: int
    rows: int
    left_out: tuple[str, ...]
    samples: tuple[dict[str, Any], ...]


def generated(folder: Path, events: int) -> tuple[Path, int]:
    """A file of generated card transactions, and the first day to stream: history and room for `events`."""
    days = max(1, math.ceil((events + _GUEST_ROWS) / _GENERATED_A_DAY))
    first = HISTORY_DAYS
    path = folder / "card_transactions.parquet"
    generate(SEED, first + days).write_parquet(path)
    return path, first


def prepare(file: Path, folder: Path, events: int, first_live_day: int | None = None) -> Scene:
    """Infer the stream from a labelled file, as `ecluse init` does, and split the file in time.

    Args:
        file: labelled rows.
        folder: where to write the two parts.
        events: how many rows to stream at most.
        first_live_day: the first day to stream, 0 being the file's first; its last seventh where None.

    Raises:
        DataError: the file cannot be read, its label is not clear, or it has too few rows.
    """
    found = infer(file)
    if found.rows < _LEAST_ROWS:
        raise DataError(
            f"{file} has {found.rows:,} rows; the demonstration needs {_LEAST_ROWS:,} to learn and to stream."
        )
    frame = tables.scan(file)
    history, live, held_out_since = _split(frame, file, found.time, found.rows, first_live_day)
    tables.collect(history, file).write_parquet(folder / "history.parquet")
    rows = tables.collect(live.head(events + _GUEST_ROWS), file)
    played = rows.head(min(events, rows.height - _GUEST_ROWS))
    played.write_parquet(folder / "live.parquet")
    return Scene(
        config=tomllib.loads(render(found, file)),
        history=folder / "history.parquet",
        held_out_since=held_out_since,
        live=folder / "live.parquet",
        events=played.height,
        rows=found.rows,
        left_out=tuple(column.name for column in found.columns if column.use == "left out"),
        samples=tuple(rows.tail(_GUEST_ROWS).to_dicts()),
    )


def _split(
    frame: pl.LazyFrame, file: Path, time: str | None, rows: int, first_live_day: int | None
) -> tuple[pl.LazyFrame, pl.LazyFrame, dt.datetime | None]:
    """History, later rows, and from when on history is held out: by days, else by the rows' order."""
    split = int(rows * _HISTORY_SHARE)
    kind = None if time is None else tables.columns(frame, file)[time]
    if time is None or not isinstance(kind, pl.Datetime):
        return frame.head(split), frame.slice(split), None
    if kind.time_zone is None:
        frame = frame.with_columns(pl.col(time).dt.replace_time_zone("UTC"))
    frame = frame.sort(time, maintain_order=True)
    first, last = tables.collect(frame.select(first=pl.col(time).min(), last=pl.col(time).max()), file).row(0)
    midnight = dt.datetime.combine(first.date(), dt.time(), first.tzinfo)
    days = (last - midnight).days + 1
    day = days - round(days * _LIVE_SHARE) if first_live_day is None else first_live_day
    if day < 2 * HELD_OUT_DAYS:
        return frame.head(split), frame.slice(split), None
    live_since = midnight + dt.timedelta(days=day)
    history = tables.between(frame, time, live_since - dt.timedelta(days=HISTORY_DAYS), live_since)
    return history, frame.filter(pl.col(time) >= live_since), live_since - dt.timedelta(days=HELD_OUT_DAYS)


def write_config(scene: Scene, folder: Path, servers: str, prefix: str, partitions: int) -> Path:
    """The stream's ``ecluse.toml``, as `ecluse init` would write it but for the demonstration's own places."""
    config = scene.config
    config["stream"]["prefix"] = prefix
    config["topics"] = {"partitions": partitions}
    config["model"]["store"] = str(folder / "models")
    config["kafka"] = {"bootstrap_servers": servers}
    path = folder / "ecluse.toml"
    path.write_text(as_toml(config), encoding="utf-8")
    return path


def guests(settings: Settings, samples: Sequence[dict[str, Any]]) -> Iterator[Guest]:
    """Events that an unknowing producer sends: three that must be scored, and broken ones of nine kinds."""
    plain, binary, structured = (_event(settings.stream, row) for row in samples)
    number = next((name for name, field in settings.stream.fields.items() if field.type is FieldType.NUMBER), "amount")
    encode = msgspec.json.encode
    headers = cloud_event_headers("demo-binary", "/demo", "demo.event", None, b"application/json")
    envelope = {"specversion": "1.0", "id": "demo-structured", "source": "/demo", "type": "demo.event"}
    cloud = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    yield Guest(b"pay 12 euros to terminal 8")
    yield Guest(encode(plain), broken=False)
    yield Guest(encode(plain | {number: "a lot"}))
    yield Guest(encode(plain)[:-5])
    yield Guest(encode(binary), headers, broken=False)
    yield Guest(encode({name: value for name, value in plain.items() if name != number}))
    yield Guest(b"[1, 2, 3]")
    yield Guest(encode(envelope | {"data": structured}), cloud, broken=False)
    yield Guest(b'{"caf\xe9": 1}')
    yield Guest(b"")
    yield Guest(None)
    yield Guest(encode({"event": plain}), cloud)


def _event(stream: StreamSettings, row: dict[str, Any]) -> dict[str, Any]:
    """A row's declared fields; what is blank is left out."""
    fields = {name: row.get(name) for name in stream.fields}
    return {
        name: str(value) if stream.fields[name].type is FieldType.TEXT else value
        for name, value in fields.items()
        if value is not None
    }

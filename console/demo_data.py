"""What the demonstration plays: history to learn from, later rows to stream, and a few events of another make."""

import datetime as dt
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from console.config import as_toml
from console.init import render
from ecluse import tables
from ecluse.contract.headers import cloud_event_headers
from ecluse.contract.schema import FieldType
from ecluse.errors import DataError
from ecluse.model.signing import make_development_keys
from ecluse.secrets import make_secret
from ecluse.sections import StreamSettings
from ecluse.settings import Settings
from ingest import Drift, DriftKind, generate
from ingest.infer import infer

SEED = 20240101
#: History reaches back that many days before the first that is streamed; the last ones of it are held out.
HISTORY_DAYS, HELD_OUT_DAYS = 27, 7
#: Of a file, the last third of its days is streamed, and no more days than are generated.
_LIVE_SHARE, LIVE_DAYS = 1 / 3, 36
#: Where there are no days to go by: the share of rows to learn from, in their order.
_HISTORY_SHARE = 0.7
#: With fewer customers than that, each of them is a drift; with a shorter way to go, each makes so many payments a day.
_LEAST_CUSTOMERS, _PAYMENTS_A_DAY = 1_200, 0.7
#: On that day of what is streamed amounts rise: the alarm comes a week later, before the last part begins.
_DRIFT_DAY = 20
#: Of fewer events a week is too short for the monitor to judge it, and too few frauds come to learn from.
_LEAST_TO_JUDGE = 6_500
_LEAST_ROWS = 1_000
#: Of the time that is streamed, the share that comes only when the second version serves.
_LAST_SHARE = 0.18
#: Rows kept back for the events of another make, each from where it comes in the stream.
_GUEST_PLACES = (2 / 12, 5 / 12, 8 / 12)
#: When an outcome counts as known: generated frauds are disputed about a week after they happened. Of a short file sooner.
_MATURITY, _MATURITY_SHARE = dt.timedelta(days=9), 1 / 4
#: The origin of the labels that are published.
ORIGIN = "chargeback"
_COMMIT_SECONDS = 2.0
#: A week's index in a demonstration of some thousand events a week. Chunks hold a day and more, and no partition waits for
#: another: what is a day late still counts, nothing is too early, and one request is enough.
_MONITOR = {
    "psi": {"warn": 0.05, "alarm": 0.1},
    "late_hours": 24.0,
    "max_ahead_hours": 24.0 * LIVE_DAYS,
    "cooldown_hours": 24.0 * LIVE_DAYS,
}

Headers = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Guest:
    """A record by a plain Kafka producer. `broken` ones cannot be scored: each must become a dead letter."""

    value: bytes | None
    headers: Headers = ()
    broken: bool = True


@dataclass(frozen=True, slots=True)
class Scene:
    """What is played: the stream's configuration, and its files in the demonstration's folder.

    `parts` are streamed one after the other: the last when the second version serves, the first is all whose outcome is known
    when the second ends; `events` are the rows of all. `maturity`: after which time an outcome counts as known. `drifts`: the
    data change on the way, so that the monitor must ask for a new version. `numbered`: the file has no ids, so its rows have
    got numbers as such, by which labels name events.
    """

    config: dict[str, Any]
    history: Path
    held_out_since: dt.datetime | None
    parts: tuple[Path, ...]
    events: int
    rows: int
    left_out: tuple[str, ...]
    samples: tuple[dict[str, Any], ...]
    maturity: dt.timedelta = _MATURITY
    drifts: bool = False
    numbered: bool = False

    @property
    def first_rows(self) -> tuple[str, ...]:
        """What `ecluse model train` is told for the first version: all of history, the last week held out."""
        since = self.held_out_since
        return (str(self.history), *(("--holdout-since", f"{since:%Y-%m-%dT%H:%M:%S}") if since else ()))

    @property
    def story(self) -> str:
        """What is going to happen, in two sentences."""
        why = "Amounts rise in mid-stream: `ecluse monitor` asks" if self.drifts else "The monitor or a person asks"
        return f"{why} for a new version, and `ecluse trainer` makes it. The last part comes when both workers have it."


def generated(folder: Path, events: int) -> tuple[Path, int]:
    """A file of generated card transactions in which amounts rise late, and the first day to stream: history and `events`."""
    a_day = max(events, _LEAST_TO_JUDGE) / LIVE_DAYS
    customers = max(_LEAST_CUSTOMERS, math.ceil(a_day / _PAYMENTS_A_DAY))
    path = folder / "card_transactions.parquet"
    generate(
        SEED,
        HISTORY_DAYS + LIVE_DAYS,
        customers=customers,
        terminals=2 * customers,
        # A little more than is streamed: what is too much is left out, customer by customer.
        per_day=1.1 * a_day / customers,
        drift=Drift(DriftKind.AMOUNTS_UP, HISTORY_DAYS + _DRIFT_DAY),
    ).write_parquet(path)
    return path, HISTORY_DAYS


def prepare(file: Path, folder: Path, events: int, first_live_day: int | None = None) -> Scene:
    """Infer the stream from a labelled file, as `ecluse init` does, and split the file in time.

    Args:
        file: labelled rows.
        folder: where to write the parts.
        events: how many rows to stream at most; of more, some entities' are left out.
        first_live_day: of a generated file the first day to stream, 0 being its first; of another the last third is.

    Raises:
        DataError: the file cannot be read, its label is not clear, or it has too few rows.
    """
    found = infer(file)
    if found.rows < _LEAST_ROWS:
        raise DataError(
            f"{file} has {found.rows:,} rows; the demonstration needs {_LEAST_ROWS:,} to learn and to stream."
        )
    config = tomllib.loads(render(found, file, make_development_keys(folder / "keys")))
    for secret in (config["bypass"]["secret_file"], config["store"]["hash_key_file"]):
        make_secret(Path(secret))
    frame = tables.scan(file)
    if found.id is None:
        frame = _numbered(frame, file, config["stream"])
    history, live, held_out_since = _split(frame, file, found.time, found.rows, first_live_day)
    tables.collect(history, file).write_parquet(folder / "history.parquet")
    rows = _thinned(tables.collect(live, file), found.key, events + len(_GUEST_PLACES))
    guests = [int(rows.height * place) for place in _GUEST_PLACES]
    samples, rows = rows[guests], rows[np.setdiff1d(np.arange(rows.height), guests)]
    first, second, maturity = _cuts(rows, None if held_out_since is None else found.time)
    parts = {"first": rows[:first], "second": rows[first:second], "last": rows[second:]}
    for name, part in parts.items():
        part.write_parquet(folder / f"{name}.parquet")
    return Scene(
        config=config,
        history=folder / "history.parquet",
        held_out_since=held_out_since,
        parts=tuple(folder / f"{name}.parquet" for name in parts),
        events=rows.height,
        rows=found.rows,
        left_out=tuple(column.name for column in found.columns if column.use == "left out"),
        samples=tuple(samples.to_dicts()),
        maturity=maturity,
        drifts=first_live_day is not None and rows.height >= _LEAST_TO_JUDGE,
        numbered=found.id is None,
    )


def _thinned(rows: pl.DataFrame, key: str | None, wanted: int) -> pl.DataFrame:
    """So many rows, over all the time that there is: of whole entities, so that what is told of one's past stays true."""
    if key is not None and rows.height > wanted:
        sizes = rows.group_by(key, maintain_order=True).len().sample(fraction=1.0, shuffle=True, seed=SEED)
        kept = sizes.filter(sizes["len"].cum_sum() - sizes["len"] < wanted)[key]
        rows = rows.filter(pl.col(key).is_in(kept.implode(), nulls_equal=True))
    wanted = min(wanted, rows.height)
    return rows[np.arange(wanted) * rows.height // max(wanted, 1)]


def _cuts(rows: pl.DataFrame, time: str | None) -> tuple[int, int, dt.timedelta]:
    """Where the second and the last part begin, and after which time an outcome counts as known.

    What is a maturity older than the end of the second part is in the first.
    """
    count = rows.height
    if time is None:
        second = int(count * (1 - _LAST_SHARE))
        return second * 2 // 3, second, dt.timedelta()
    begin, end = rows[time][0], rows[time][-1]
    maturity = min(_MATURITY, dt.timedelta(days=(end - begin).days + 1) * _MATURITY_SHARE)
    last_since = end - (end - begin) * _LAST_SHARE
    second = min(max(int((rows[time] < last_since).sum()), 2), count - 1)
    first = min(max(int((rows[time] < last_since - maturity).sum()), 1), second - 1)
    return first, second, maturity


def _numbered(frame: pl.LazyFrame, file: Path, stream: dict[str, Any]) -> pl.LazyFrame:
    """The rows with their number as id, and the stream with that field."""
    name = "event_number"
    while name in tables.columns(frame, file):
        name += "_"
    stream["id_field"] = name
    stream["fields"][name] = FieldType.INTEGER.value
    return frame.with_row_index(name).with_columns(pl.col(name).cast(pl.Int64))


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
    day = days - min(round(days * _LIVE_SHARE), LIVE_DAYS) if first_live_day is None else first_live_day
    if day < 2 * HELD_OUT_DAYS:
        return frame.head(split), frame.slice(split), None
    live_since = midnight + dt.timedelta(days=day)
    history = tables.between(frame, time, live_since - dt.timedelta(days=HISTORY_DAYS), live_since)
    return history, frame.filter(pl.col(time) >= live_since), live_since - dt.timedelta(days=HELD_OUT_DAYS)


def write_config(scene: Scene, folder: Path, servers: str, prefix: str, partitions: int) -> Path:
    """The stream's ``ecluse.toml``, as `ecluse init` would write it, but for the demonstration's own places, the clock of the
    events, and more blocks: half of the alerts, so that a short stream shows what blocks cost."""
    config = scene.config
    config["stream"] |= {"prefix": prefix, "clock": "event"}
    config["thresholds"]["block_budget"] = config["thresholds"]["alert_budget"] / 2
    config["labels"] = {"origins": [ORIGIN], "maturity_hours": scene.maturity / dt.timedelta(hours=1)}
    config["store"] |= {"url": str(folder / "store"), "commit_seconds": _COMMIT_SECONDS}
    config["monitor"], config["trainer"] = _MONITOR, {"runs": str(folder / "runs")}
    config["topics"] = {"partitions": partitions}
    config["model"] |= {"store": str(folder / "models"), "cache": str(folder / "cache")}
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

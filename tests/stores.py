"""Training stores for tests: rows laid into the tables as the sink would leave them, without the hours that they tell of."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import polars as pl

from ecluse.contract.records import BYPASS, Arm, Decision, Release, Route, Thresholds
from ecluse.contract.tables import LABELS, PREDICTIONS, REVISIONS, Table, events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema

START = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
ROUTE = 1


def at(hours: float) -> dt.datetime:
    """So many hours after the start of what these stores tell of."""
    return START + dt.timedelta(hours=hours)


def event(partition: int, offset: int, hours: float, **said: Any) -> dict[str, Any]:
    """A row of `events` that happened after so many hours and was known at once; `said` overrides, and gives fields."""
    return {
        "event_id": f"e-{partition}-{offset}",
        "entity": "card-1",
        "event_time": at(hours),
        "known_at": at(hours),
        "partition": partition,
        "offset": offset,
        "readable": True,
        "amount": 10.0,
        "terminal_risk_30d": 0.0,
        "night": 0,
        "time": at(hours),
    } | said


def prediction(of: Mapping[str, Any], **said: Any) -> dict[str, Any]:
    """The row of `predictions` of an event, let through by the champion, on the same offset; `said` overrides."""
    return {
        **{name: of[name] for name in ("event_id", "entity", "event_time", "known_at", "partition", "offset")},
        "source_offset": of["offset"],
        "scored_at": of["known_at"],
        "model": "m",
        "version": 1,
        "arm": "champion",
        "propensity": 1.0,
        "score": 0.1,
        "decision": "allow",
        "threshold": 0.5,
        "route_revision": ROUTE,
        "switch_revision": -1,
    } | said


def past(of: Mapping[str, Any], share: float, **said: Any) -> dict[str, Any]:
    """The prediction of an event that went past the model."""
    return prediction(of, arm=BYPASS, propensity=share, score=None, **said)


def label(event_id: str, value: int | None, hours: float, offset: int, **said: Any) -> dict[str, Any]:
    """A row of `labels`, known after so many hours."""
    return {
        "event_id": event_id,
        "origin": "chargeback",
        "known_at": at(hours),
        "partition": 0,
        "offset": offset,
        "value": value,
        "labeler": "",
        "confidence": 1.0,
        "alerted": False,
    } | said


def revision(offset: int, record: Route | Release) -> dict[str, Any]:
    """A row of `revisions`."""
    kind, name = ("release", record.name) if isinstance(record, Release) else ("route", record.name)
    return {
        "known_at": START,
        "partition": 0,
        "offset": offset,
        "kind": kind,
        "name": name,
        "record": msgspec.json.encode(record).decode(),
    }


def route(settings: Settings, block: float = 0.5, *others: Arm) -> Route:
    """A route whose champion is version 1, blocking from `block` on."""
    champion = Arm("champion", 1, Thresholds(block / 2, block))
    return Route(settings.model_name, (champion, *others), 0.0)


def decision(score: float, block: float) -> Decision:
    """What thresholds as those of `route` make of a score."""
    return Decision.BLOCK if score >= block else Decision.REVIEW if score >= block / 2 else Decision.ALLOW


def write(settings: Settings, table: Table, rows: Sequence[Mapping[str, Any]], topics: Mapping[str, int]) -> None:
    """Append rows; `topics` says how far each ``<topic>/<partition>`` has come then, if not further already."""
    store = TrainingStore(settings)
    schema = polars_schema(table)
    frame = pl.DataFrame([{"day": row["known_at"].date(), **row} for row in rows], schema=schema)
    before = store.offsets(table)
    store.append(
        table, frame, {place: (before.get(place), max(end, before.get(place, 0))) for place, end in topics.items()}
    )


def fill(
    settings: Settings,
    events: Sequence[Mapping[str, Any]] = (),
    predictions: Sequence[Mapping[str, Any]] = (),
    labels: Sequence[Mapping[str, Any]] = (),
    revisions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Append rows to the tables; each topic has come as far as its rows."""
    names = settings.names
    for table, rows, topic in (
        (events_table(settings.stream.fields), events, names.events),
        (PREDICTIONS, predictions, names.predictions),
        (LABELS, labels, None),
        (REVISIONS, revisions, names.models),
    ):
        ends: dict[str, int] = {}
        for row in rows:
            place = f"{topic or names.labels(row['origin'])}/{row['partition']}"
            ends[place] = max(ends.get(place, 0), row["offset"] + 1)
        if rows:
            write(settings, table, rows, ends)


def logit(share: float) -> float:
    """Of a share between 0 and 1."""
    return math.log(share / (1 - share))

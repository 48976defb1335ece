"""The tables of the training store: their names, their columns, and how a stream's fields become columns.

A row of a table is one record of a topic. `partition` and `offset` are the record's place on its own topic, by which rows are
unique (with `origin`, for labels); `source_offset` is the event's, whose partition is the same. Times are UTC. `known_at` is
when the row became known, `day` the day of that, in UTC, by which a table's files are laid out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ecluse.contract.schema import Field, FieldType
from ecluse.errors import SettingsError


class Kind(StrEnum):
    """What a column holds. A `time` has microseconds and is UTC, a `day` is a date."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its name, and its columns in their order."""

    name: str
    columns: Mapping[str, Kind]


_PLACE = {"known_at": Kind.TIME, "day": Kind.DAY, "partition": Kind.INTEGER, "offset": Kind.INTEGER}
_EVENT = {"event_id": Kind.TEXT, "entity": Kind.TEXT, "event_time": Kind.TIME, **_PLACE}

PREDICTIONS = Table(
    "predictions",
    {
        **_EVENT,
        "source_offset": Kind.INTEGER,
        "scored_at": Kind.TIME,
        "model": Kind.TEXT,
        "version": Kind.INTEGER,
        "arm": Kind.TEXT,
        "propensity": Kind.NUMBER,
        "score": Kind.NUMBER,
        "decision": Kind.TEXT,
        "threshold": Kind.NUMBER,
        "route_revision": Kind.INTEGER,
        "switch_revision": Kind.INTEGER,
    },
)
LABELS = Table(
    "labels",
    {
        "event_id": Kind.TEXT,
        "origin": Kind.TEXT,
        **_PLACE,
        "value": Kind.INTEGER,
        "labeler": Kind.TEXT,
        "confidence": Kind.NUMBER,
        "alerted": Kind.BOOLEAN,
    },
)
#: Every record of the models topic as JSON, for the odds of past events: the topic itself is compacted.
REVISIONS = Table("revisions", {**_PLACE, "kind": Kind.TEXT, "name": Kind.TEXT, "record": Kind.TEXT})
#: What `ecluse store forget` took out, told by keyed hashes and by places. A row of `kind` "entity" says that the events of an
#: entity below `offset` of `partition` are forgotten, with what comes of them; of "event", that the labels of an event are; of
#: "row", that the record at this place has no row in `table_name` (of `origin`, for labels).
FORGOTTEN = Table(
    "forgotten",
    {
        **_PLACE,
        "kind": Kind.TEXT,
        "hash": Kind.TEXT,
        "table_name": Kind.TEXT,
        "origin": Kind.TEXT,
    },
)

_EVENTS = {**_EVENT, "readable": Kind.BOOLEAN}
_BYPASS = {
    **_EVENT,
    "source_offset": Kind.INTEGER,
    "propensity": Kind.NUMBER,
    "route_revision": Kind.INTEGER,
    "switch_revision": Kind.INTEGER,
}
#: What the stream does not declare, and declared fields whose value has the wrong type: a JSON object.
EXTRA = "extra"
_RESERVED = {*_EVENTS, *_BYPASS, *PREDICTIONS.columns, *LABELS.columns, EXTRA}
#: What Delta takes in no column's name.
_ILLEGAL = re.compile(r"[ ,;{}()\n\t=]")
_KINDS = {
    FieldType.NUMBER: Kind.NUMBER,
    FieldType.INTEGER: Kind.INTEGER,
    FieldType.TEXT: Kind.TEXT,
    FieldType.BOOLEAN: Kind.BOOLEAN,
    FieldType.TIME: Kind.TIME,
}


def events_table(fields: Mapping[str, Field]) -> Table:
    """`events`: every event of the stream; its declared fields are columns (see `column_of`)."""
    return Table("events", {**_EVENTS, **_field_columns(fields), EXTRA: Kind.TEXT})


def bypass_table(fields: Mapping[str, Field]) -> Table:
    """`bypass`: the events that went past the model, with the odds of that."""
    return Table("bypass", {**_BYPASS, **_field_columns(fields), EXTRA: Kind.TEXT})


def column_of(field: str) -> str:
    """The column of a declared field: its name, with what Delta refuses as underscores, and with an underscore behind it where
    the tables have a column of that name themselves. Names of columns do not tell small letters from capitals."""
    name = _ILLEGAL.sub("_", field)
    return f"{name}_" if name.lower() in _RESERVED else name


def _field_columns(fields: Mapping[str, Field]) -> dict[str, Kind]:
    columns: dict[str, Kind] = {}
    taken: dict[str, str] = {}
    for name, field in fields.items():
        column = column_of(name)
        if (other := taken.setdefault(column.lower(), name)) != name:
            raise SettingsError([f"The fields '{other}' and '{name}' would be one column of the training store."])
        columns[column] = _KINDS[field.type]
    return columns

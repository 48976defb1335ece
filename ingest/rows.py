"""From the records of a topic to rows of a table of the training store: exactly one row a record, whatever it holds.

What a stranger wrote makes no error here: an event that no worker can read gives a row too, whose `readable` is false. Only
labels may be refused, one by one: a wrong outcome does more harm than none.
"""

import logging
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
import polars as pl

from ecluse.contract.codecs import Reader
from ecluse.contract.headers import Envelope, read_envelope
from ecluse.contract.records import BypassSample, Label, Prediction, Source
from ecluse.contract.tables import LABELS, PREDICTIONS, REVISIONS, bypass_table, events_table
from ecluse.errors import RecordError, Stage
from ecluse.events import LONGEST_NAME, PLAIN, Decoder, FiniteNumbers, entity, identity
from ecluse.settings import Settings
from ecluse.transport.ledger import Output, Record
from ingest.columns import arrival, frame, integer, micros
from ingest.fields import FieldColumns, Values, as_json, read_object
from ingest.privacy import Privacy

logger = logging.getLogger(__name__)

T = TypeVar("T")
Rejected = list[tuple[Record, RecordError]]

_read_label = Reader(Label)


class EventRows:
    """Rows of `events`. `readable` says that a worker would take the event: it decodes by the stream's schema and validates.

    Id, entity and time are those of the worker's prediction. An event that it refused has what can be told of them; where its
    id or its key is too long, its place is its id.
    """

    def __init__(self, settings: Settings) -> None:
        stream, schema = settings.stream, settings.stream.schema_of_events()
        self.table = events_table(settings.stored_fields)
        self._topic = settings.names.events
        self._privacy = Privacy(settings)
        self._decoder = Decoder(stream, schema)
        self._finite = FiniteNumbers(schema)
        self._fields = FieldColumns(settings, schema)
        names = list(stream.fields)
        self._id = names.index(stream.id_field) if stream.id_field else None
        self._time = names.index(stream.time_field) if stream.time_field else None
        self._event_clock = stream.clock == "event"

    def __call__(self, partition: int, records: Sequence[Record]) -> pl.DataFrame:
        """One row a record of this partition."""
        places: list[int] = []
        names: list[tuple[str, str | None, int | None]] = []
        fields: list[Values] = []
        readable: list[bool] = []
        events: list[Any] = []
        nowhere: list[Output] = []
        for record in records:
            source = Source(self._topic, partition, record.offset())
            places.append(source.offset)
            try:
                row = self._decoder(record, source, nowhere)
                envelope = _envelope(record)
                events.append(row.event)
                names.append((row.id, row.entity, micros(row.time)))
                fields.append(self._fields.of_event(row.event, envelope.value or b"", envelope.json))
                readable.append(True)
            except RecordError:
                self._salvage(record, source, names, fields)
                readable.append(False)
        of_readable = [i for i, taken in enumerate(readable) if taken]
        for i in self._finite.errors(events):
            readable[of_readable[i]] = False
        ids, entities, times = zip(*names, strict=True) if names else ((), (), ())
        return frame(
            self.table,
            {
                **_names(self._privacy, ids, entities),
                "event_time": times,
                "known_at": _known_at(records, times if self._event_clock else ()),
                "partition": pl.repeat(partition, len(places), dtype=pl.Int64, eager=True),
                "offset": places,
                "readable": readable,
                **self._fields.columns(fields),
            },
        )

    def _salvage(self, record: Record, source: Source, names: list[Any], fields: list[Values]) -> None:
        """What can be told of an event that a worker refuses."""
        try:
            envelope = _envelope(record)
        except RecordError:
            envelope = PLAIN
        values, extra = self._fields.of_object(read_object(envelope.value, envelope.json))
        given_id = values[self._id] if self._id is not None else None
        given_time = values[self._time] if self._time is not None else None
        try:
            event_id, whose, time = identity(record, source, envelope, given_id, given_time)
            names.append((event_id, whose, micros(time)))
        except RecordError:
            key = record.key()
            whose_key = entity(key) if key is not None and len(key) <= LONGEST_NAME else None
            names.append((f"{source.topic}-{source.partition}-{source.offset}", whose_key, None))
        fields.append((values, extra))


class PredictionRows:
    """Rows of `predictions`. A record that is none has a row of nulls."""

    table = PREDICTIONS

    def __init__(self, settings: Settings) -> None:
        self._read = Reader(Prediction)
        self._event_clock = settings.stream.clock == "event"
        self._topic = settings.names.predictions
        self._privacy = Privacy(settings)

    def __call__(self, partition: int, records: Sequence[Record]) -> pl.DataFrame:
        """One row a record of this partition."""
        read = _read_all(self._read, records, self._topic)
        event_time = _times(read, "event_time")
        scored_at = _times(read, "scored_at")
        whole = ("version", "route_revision", "switch_revision")
        others = ("model", "arm", "decision", "propensity", "score", "threshold")
        return frame(
            PREDICTIONS,
            {
                **_names(self._privacy, _column(read, "event_id"), _column(read, "entity")),
                "event_time": event_time,
                "known_at": _known_at(records, event_time if self._event_clock else scored_at),
                "partition": pl.repeat(partition, len(read), dtype=pl.Int64, eager=True),
                "offset": [record.offset() for record in records],
                "source_offset": _whole(read, "source.offset"),
                "scored_at": scored_at,
                **{name: _column(read, name) for name in others},
                **{name: _whole(read, name) for name in whole},
            },
        )


class BypassRows:
    """Rows of `bypass`. A record that is no sample has a row of nulls."""

    def __init__(self, settings: Settings) -> None:
        self.table = bypass_table(settings.stored_fields)
        self._read = Reader(BypassSample)
        self._fields = FieldColumns(settings, settings.stream.schema_of_events())
        self._event_clock = settings.stream.clock == "event"
        self._topic = settings.names.bypass
        self._privacy = Privacy(settings)

    def __call__(self, partition: int, records: Sequence[Record]) -> pl.DataFrame:
        """One row a record of this partition."""
        read = _read_all(self._read, records, self._topic)
        event_time = _times(read, "event_time")
        return frame(
            self.table,
            {
                **_names(self._privacy, _column(read, "event_id"), _column(read, "entity")),
                "event_time": event_time,
                "known_at": _known_at(records, event_time if self._event_clock else ()),
                "partition": pl.repeat(partition, len(read), dtype=pl.Int64, eager=True),
                "offset": [record.offset() for record in records],
                "source_offset": _whole(read, "source.offset"),
                "propensity": _column(read, "propensity"),
                **{name: _whole(read, name) for name in ("route_revision", "switch_revision")},
                **self._fields.columns([self._fields.of_object(sample.event if sample else None) for sample in read]),
            },
        )


class LabelRows:
    """Rows of `labels`, of one origin. What is no label is rejected, to become a dead letter."""

    table = LABELS

    def __init__(self, settings: Settings, origin: str) -> None:
        self._origin = origin
        self._privacy = Privacy(settings)

    def __call__(self, partition: int, records: Sequence[Record]) -> tuple[pl.DataFrame, Rejected]:
        """A row for each record of this partition that is a label, and the others with what is wrong with them."""
        rejected: Rejected = []
        taken: list[Record] = []
        labels: list[Label] = []
        for record in records:
            try:
                labels.append(read_label(record))
                taken.append(record)
            except RecordError as error:
                rejected.append((record, error))
        rows = frame(
            LABELS,
            {
                "event_id": [self._privacy.event_id(label.event_id) for label in labels],
                "origin": [self._origin] * len(labels),
                "known_at": [_label_known_at(label, record) for label, record in zip(labels, taken, strict=True)],
                "partition": [partition] * len(labels),
                "offset": [record.offset() for record in taken],
                "value": [None if label.value is None else int(label.value) for label in labels],
                "labeler": [label.labeler for label in labels],
                "confidence": [label.confidence for label in labels],
                "alerted": [label.alerted for label in labels],
            },
        )
        return rows, rejected


def read_label(record: Record) -> Label:
    """The label in a record.

    Raises:
        RecordError: it is none, in a sentence that does not quote it.
    """
    try:
        label = _read_label(record.value() or b"")
    except msgspec.DecodeError as error:
        reason, _, field = str(error).replace("`", "'").partition(" - at '$.")
        # The field stands in no quotes: what does is covered when it is shown.
        where = field and f" in {field.removesuffix(chr(39))}"
        raise RecordError(Stage.LABEL, f"The record is no label: {reason}{where}.") from error
    key = record.key()
    if key is not None and entity(key) != label.event_id:
        raise RecordError(Stage.LABEL, "The label's key is not its event_id: it would be found under another event.")
    if label.known_at is not None and micros(label.known_at) is None:
        raise RecordError(
            Stage.LABEL, "The label's known_at is no time: seconds since 1970 were expected, to the year 9999."
        )
    if not math.isfinite(label.confidence):
        raise RecordError(Stage.LABEL, "The label's confidence is not a number from 0 to 1.")
    return label


def _label_known_at(label: Label, record: Record) -> int:
    moment = micros(label.known_at)
    return arrival(record.timestamp()[1]) if moment is None else moment


class RevisionRows:
    """Rows of `revisions`: each record of the models topic as JSON. Where a record was deleted, its `record` is null."""

    table = REVISIONS

    def __init__(self, settings: Settings) -> None:
        del settings

    def __call__(self, partition: int, records: Sequence[Record]) -> pl.DataFrame:
        """One row a record of the topic's one partition."""
        said = [read_object(record.value()) for record in records]
        keys = [entity(record.key() or b"").split("/") for record in records]
        return frame(
            REVISIONS,
            {
                "known_at": _known_at(records, [_created(one) for one in said]),
                "partition": pl.repeat(partition, len(said), dtype=pl.Int64, eager=True),
                "offset": [record.offset() for record in records],
                "kind": [key[0] for key in keys],
                "name": [key[1] if len(key) > 1 else None for key in keys],
                "record": [None if one is None else as_json(one) for one in said],
            },
        )


def _created(said: dict[str, Any] | None) -> int | None:
    try:
        return micros(msgspec.convert(said and said.get("created_at"), float | None))
    except msgspec.ValidationError:
        return None


def _envelope(record: Record) -> Envelope:
    headers = record.headers()
    return read_envelope(headers, record.value()) if headers else Envelope(value=record.value())


def _read_all(read: Reader[T], records: Sequence[Record], topic: str) -> list[T | None]:
    """The records of a topic that only Écluse writes; None for each that another wrote there."""
    found: list[T | None] = []
    for record in records:
        try:
            found.append(read(record.value() or b""))
        except msgspec.DecodeError:
            found.append(None)
            logger.warning(
                "The record at offset %d of %s is none of Écluse's: its row is empty.", record.offset(), topic
            )
    return found


def _known_at(records: Sequence[Record], moments: Sequence[int | None]) -> list[int]:
    """In microseconds: these moments, and the record's arrival where there is none."""
    if not moments:
        return [arrival(record.timestamp()[1]) for record in records]
    return [
        arrival(record.timestamp()[1]) if moment is None else moment
        for record, moment in zip(records, moments, strict=True)
    ]


def _names(
    privacy: Privacy, ids: Sequence[str | None], entities: Sequence[str | None]
) -> dict[str, Sequence[str | None]]:
    """Whose rows they are, as the store may have it."""
    if privacy:
        pairs = zip(ids, entities, strict=True)
        entities = [privacy.entity(whose, event_id) for event_id, whose in pairs]
        ids = list(map(privacy.event_id, ids))
    return {"event_id": ids, "entity": entities}


def _column(read: Sequence[Any], name: str) -> list[Any]:
    get = attrgetter(name)
    return [None if one is None else get(one) for one in read]


def _times(read: Sequence[Any], name: str) -> list[int | None]:
    return list(map(micros, _column(read, name)))


def _whole(read: Sequence[Any], name: str) -> list[int | None]:
    return list(map(integer, _column(read, name)))

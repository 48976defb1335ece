"""From a record's bytes to an event: what it says, which it is, whose it is, and when it was."""

import base64
from collections.abc import Sequence
from datetime import datetime

import msgspec
import numpy as np

from ecluse.contract.headers import Envelope, read_envelope
from ecluse.contract.records import Source
from ecluse.contract.schema import Event, EventSchema, FieldType, seconds
from ecluse.errors import RecordError, Stage
from ecluse.sections import StreamSettings
from ecluse.transport.ledger import Output, Record

#: The longest id and key, in characters and bytes: both stand in every record that comes of an event.
LONGEST_NAME = 4096
#: The times that an event may have, in seconds since 1970 (the second is the first that none has): the years 1 to 9999, UTC.
FIRST_TIME, END_OF_TIME = -62_135_596_800, 253_402_300_800
#: What the headers say of an event that has none.
PLAIN = Envelope()


class Row(msgspec.Struct, gc=False):
    """One decoded event; `outputs` is where what comes of it goes. `propensity`: of the way that it takes, past the model or
    through it."""

    record: Record
    source: Source
    event: Event
    id: str
    entity: str
    time: float
    outputs: list[Output]
    propensity: float = 1.0


class Decoder:
    """Decodes and checks events by the stream's schema and its id, time and key rules."""

    def __init__(self, stream: StreamSettings, schema: EventSchema) -> None:
        self._decode = schema.decode
        self._id_field = schema.getter(stream.id_field) if stream.id_field else _nothing
        self._time_field = schema.getter(stream.time_field) if stream.time_field else _nothing

    def __call__(self, record: Record, source: Source, outputs: list[Output]) -> Row:
        """Decode one record.

        Raises:
            RecordError: it is no event of this stream, in a sentence.
        """
        envelope = PLAIN
        if headers := record.headers():
            envelope = read_envelope(headers, record.value())
            event = self._decode(envelope.value, json=envelope.json)
        else:
            event = self._decode(record.value())
        names = identity(record, source, envelope, self._id_field(event), self._time_field(event))
        return Row(record, source, event, *names, outputs)


def identity(
    record: Record, source: Source, envelope: Envelope, given_id: str | int | None, given_time: datetime | float | None
) -> tuple[str, str, float]:
    """An event's id, its entity and its time, in seconds since 1970: by its headers, else by what its fields give, else by its
    record.

    Raises:
        RecordError: the id or the key is too long, or the time is none that a calendar holds.
    """
    event_id, time, key = envelope.id, envelope.time, record.key()
    if event_id is None:
        event_id = f"{source.topic}-{source.partition}-{source.offset}" if given_id is None else str(given_id)
    if time is None:
        time = seconds(given_time)
        if time is None:
            time = record.timestamp()[1] / 1e3
    if not FIRST_TIME <= time < END_OF_TIME:  # as no NaN is
        raise RecordError(Stage.VALIDATE, "The event's time lies outside the years 1 to 9999 (UTC).")
    if len(event_id) > LONGEST_NAME or (key is not None and len(key) > LONGEST_NAME):
        raise RecordError(Stage.VALIDATE, f"The event's id or key is longer than {LONGEST_NAME} characters.")
    return event_id, event_id if key is None else entity(key), time


def _nothing(event: Event) -> None:
    del event


def entity(key: bytes) -> str:
    """A record key as text: UTF-8, else base64url."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return base64.urlsafe_b64encode(key).decode()


class FiniteNumbers:
    """Finds infinite numbers in optional fields: there NaN means missing. In required ones the decoder refuses both."""

    def __init__(self, schema: EventSchema) -> None:
        self._names = [
            name for name, field in schema.fields.items() if field.type is FieldType.NUMBER and not field.required
        ]
        self._get = schema.getter(*self._names) if self._names else None

    def errors(self, events: Sequence[Event]) -> dict[int, RecordError]:
        """The error of each event, by its position, that holds one; empty where all is well."""
        if self._get is None or not events:
            return {}
        numbers = np.array(list(map(self._get, events)), dtype=np.float64).reshape(len(events), -1)
        infinite = np.isinf(numbers)
        return {
            int(row): RecordError(
                Stage.VALIDATE,
                f"The event does not fit the stream's schema: "
                f"the number in field '{self._names[int(infinite[row].argmax())]}' is infinite.",
            )
            for row in np.flatnonzero(infinite.any(axis=1))
        }

"""From a record's bytes to an event: what it says, which it is, whose it is, and when it was."""

import base64
import math

import msgspec

from ecluse.contract.headers import read_envelope
from ecluse.contract.records import Source
from ecluse.contract.schema import Event, EventSchema, seconds
from ecluse.errors import RecordError, Stage
from ecluse.settings import StreamSettings
from ecluse.transport.ledger import Output, Record

#: The longest id and key, in characters and bytes: both stand in every record that comes of an event.
LONGEST_NAME = 4096


class Row(msgspec.Struct, gc=False):
    """One decoded event; `outputs` is where what comes of it goes."""

    record: Record
    source: Source
    event: Event
    id: str
    entity: str
    time: float
    outputs: list[Output]


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
        event_id = time = None
        if headers := record.headers():
            envelope = read_envelope(headers, record.value())
            event_id, time = envelope.id, envelope.time
            event = self._decode(envelope.value, json=envelope.json)
        else:
            event = self._decode(record.value())
        if event_id is None:
            given = self._id_field(event)
            event_id = f"{source.topic}-{source.partition}-{source.offset}" if given is None else str(given)
        if time is None:
            time = seconds(self._time_field(event))
            if time is None:
                time = record.timestamp()[1] / 1e3
            elif not math.isfinite(time):
                raise RecordError(Stage.VALIDATE, "The event's time is not a finite number.")
        key = record.key()
        if len(event_id) > LONGEST_NAME or (key is not None and len(key) > LONGEST_NAME):
            raise RecordError(Stage.VALIDATE, f"The event's id or key is longer than {LONGEST_NAME} characters.")
        return Row(record, source, event, event_id, event_id if key is None else entity(key), time, outputs)


def _nothing(event: Event) -> None:
    del event


def entity(key: bytes) -> str:
    """A record key as text: UTF-8, else base64url."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return base64.urlsafe_b64encode(key).decode()

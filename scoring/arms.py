"""Arms: which events of a chunk go past the model, and the sample that is kept of each that does.

Who may, and whom the draw takes, stands in `ecluse.contract.arms`; here a worker applies it to rows.
"""

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ecluse.contract.arms import DAY_SECONDS, Draw, Eligibility, day_of
from ecluse.contract.codecs import content_headers, encoder, looks_like_json
from ecluse.contract.headers import read_envelope
from ecluse.contract.records import BypassSample
from ecluse.contract.schema import Event, EventSchema
from ecluse.events import LONGEST_NAME, Row
from ecluse.model.registry import Switched
from ecluse.settings import Settings
from ecluse.transport.ledger import Output, Record

logger = logging.getLogger(__name__)

_DAY_MS = DAY_SECONDS * 1000
#: Of so many days the draw is kept ready.
_DAYS = 64
#: No event takes more than so many times its bytes in a sample: msgpack as JSON, where one byte may become ``false,``.
GROWTH = 6
#: What else a sample takes, in bytes: id and entity at their longest, escaped, its key, and its other fields.
BESIDE = 12 * LONGEST_NAME + 8 * 1024

_from_json = msgspec.json.Decoder(dict[str, Any]).decode
_from_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)


class Bypass:
    """A switch as a worker obeys it. `revision` is the switch's, -1 where there is none or it is not obeyed.

    Args:
        settings: the stream's.
        switched: the switch, where there is one.
        secret: the operator's, which draws; not needed while nobody goes past.

    Raises:
        SettingsError: its rules mean nothing to the stream.
    """

    def __init__(self, settings: Settings, switched: Switched | None = None, secret: bytes = b"") -> None:
        self.revision = -1 if switched is None else switched.revision
        self.share = 0.0 if switched is None else switched.switch.share
        self._by_event_time = settings.stream.clock == "event"
        #: A sample must fit on its topic; a larger event never goes past.
        self._largest = (settings.topics.largest_output - BESIDE) // GROWTH
        if switched is not None and self.share:
            self._draw = Draw(secret, settings.stream.name)
            self._takes: dict[int, Callable[[bytes], bool]] = {}
            self._eligible = Eligibility(switched.switch, settings.stream.schema_of_events())

    def split(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """The rows that the model scores, and those that go past it. Each is told with which probability it went its way."""
        scored: list[Row] = []
        past: list[Row] = []
        eligible, share, largest, by_event = self._eligible, self.share, self._largest, self._by_event_time
        for row in rows:
            record = row.record
            key = record.key()
            if key is None or not eligible(key, row.event) or len(record) > largest:
                scored.append(row)
                continue
            day = day_of(row.time) if by_event else record.timestamp()[1] // _DAY_MS
            takes = self._takes.get(day) or self._begin(day)
            if takes(key):
                row.propensity = share
                past.append(row)
            else:
                row.propensity = 1.0 - share
                scored.append(row)
        return scored, past

    def _begin(self, day: int) -> Callable[[bytes], bool]:
        """What draws on a day."""
        if len(self._takes) >= _DAYS:
            self._takes.clear()
        takes = self._takes[day] = self._draw.takes(self.share, day)
        return takes


class Samples:
    """Makes the sample of an event that went past the model."""

    def __init__(self, settings: Settings, schema: EventSchema) -> None:
        self._topic = settings.names.bypass
        self._encode = encoder(settings.stream.encoding)
        self._headers = content_headers(settings.stream.encoding)
        self._fields = {name: schema.getter(name) for name in schema.fields}

    def __call__(self, row: Row, route_revision: int, switch_revision: int) -> Output:
        """The sample of a row, by the route and the switch in force. It fits on its topic: see `Bypass`."""
        try:
            value = self._encoded(row, route_revision, switch_revision, _as_sent(row.record))
        except _UNREADABLE as error:
            # A field that nobody declared may hold what no reader could take; the event was accepted without looking at it.
            logger.warning("the sample of %s holds declared fields only: %s", row.source, type(error).__name__)
            value = self._encoded(row, route_revision, switch_revision, self._declared(row.event))
        return Output(self._topic, row.record.key(), value, self._headers)

    def _encoded(self, row: Row, route_revision: int, switch_revision: int, event: dict[str, Any]) -> bytes:
        return self._encode(
            BypassSample(
                row.id,
                row.entity,
                row.time,
                row.propensity,
                route_revision,
                switch_revision,
                row.source,
                event,
            )
        )

    def _declared(self, event: Event) -> dict[str, Any]:
        """The declared fields of an event, times as text."""
        read = ((name, get(event)) for name, get in self._fields.items())
        return {
            name: value.isoformat() if isinstance(value, dt.datetime) else value
            for name, value in read
            if value is not None
        }


def _as_sent(record: Record) -> dict[str, Any]:
    """The whole event as its producer wrote it, fields that the stream does not declare included."""
    value, json = record.value() or b"", None
    if headers := record.headers():
        envelope = read_envelope(headers, value)
        value, json = envelope.value or b"", envelope.json
    return _from_json(value) if (looks_like_json(value) if json is None else json) else _from_msgpack(value)

"""The headers that we read and write: CloudEvents 1.0 (Kafka binding) and Kafka Connect's error headers."""

import base64
import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ecluse.contract.codecs import CONTENT_TYPE
from ecluse.contract.records import Source
from ecluse.contract.schema import seconds
from ecluse.errors import RecordError, Stage

Headers = Sequence[tuple[str, bytes | None]]

STRUCTURED_PREFIX = b"application/cloudevents"
ERROR_PREFIX = "__connect.errors."
#: On an event that was replayed from a dead letter: how often so far, and the place of the event that failed before it.
ATTEMPTS = "ecluse-attempts"
REPLAYED_FROM = "ecluse-replayed-from"
#: On a prediction of `ecluse replay`: which run made it.
REPLAY_RUN = "ecluse-replay-run"
#: On a dead letter of which only a part could be kept: what its value was.
ORIGINAL_BYTES = "ecluse-original-bytes"
ORIGINAL_SHA256 = "ecluse-original-sha256"

_NUMBER = re.compile(r"[0-9]{1,18}")
_PLACE = re.compile(r"(.+)-([0-9]{1,9})-([0-9]{1,18})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an event's headers say of it; None where they do not say."""

    id: str | None = None
    time: float | None = None
    json: bool | None = None
    value: bytes | None = None


class _StructuredEvent(msgspec.Struct):
    id: str
    source: str
    specversion: str
    type: str
    time: dt.datetime | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: str | None = None


_structured = msgspec.json.Decoder(_StructuredEvent)


def read_envelope(headers: Headers, value: bytes | None) -> Envelope:
    """Read CloudEvents headers in binary mode, or unwrap structured mode; plain records give an empty envelope.

    Source: CloudEvents Kafka protocol binding 1.0.2, sections 3.2 and 3.3.

    Raises:
        RecordError: the event says it is a CloudEvent and is none.
    """
    found = {name.lower(): content for name, content in headers if content is not None}
    content_type = found.get(CONTENT_TYPE, b"").lower()
    if content_type.startswith(STRUCTURED_PREFIX):
        return _unwrap(value)
    try:
        ce_id = found.get("ce_id")
        return Envelope(
            id=ce_id.decode() if ce_id else None,
            time=_rfc3339(found.get("ce_time")),
            json=b"json" in content_type if b"json" in content_type or b"msgpack" in content_type else None,
            value=value,
        )
    except UnicodeDecodeError as error:
        raise RecordError(Stage.DECODE, "The event's ce_id header is not UTF-8.") from error


def _rfc3339(text: bytes | None) -> float | None:
    if not text:
        return None
    try:
        return seconds(msgspec.convert(text.decode(), dt.datetime))
    except (UnicodeDecodeError, msgspec.ValidationError) as error:
        raise RecordError(Stage.DECODE, "The event's ce_time header is no RFC 3339 time.") from error


def _unwrap(value: bytes | None) -> Envelope:
    try:
        event = _structured.decode(value or b"")
        data = base64.b64decode(event.data_base64, validate=True) if event.data_base64 else bytes(event.data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RecordError(Stage.DECODE, f"The value is no CloudEvent in structured mode: {error}.") from error
    return Envelope(id=event.id or None, time=seconds(event.time), json=None if event.data_base64 else True, value=data)


def cloud_event_headers(
    event_id: str, source: str, kind: str, time: str | None, content_type: bytes
) -> list[tuple[str, Any]]:
    """The headers of an event in CloudEvents binary mode; `time` is RFC 3339."""
    headers: list[tuple[str, Any]] = [
        (CONTENT_TYPE, content_type),
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", kind.encode()),
    ]
    if time is not None:
        headers.append(("ce_time", time.encode()))
    return headers


def dead_letter_headers(
    original: Headers | None, source: Source, error: RecordError, *, app: str, worker: str
) -> list[tuple[str, bytes | None]]:
    """The record's own headers, then Kafka Connect's error headers. Incoming headers of that name are dropped, so that
    the source is always true (KIP-298)."""
    cause = error.__cause__ or error
    errors = {
        "topic": source.topic,
        "partition": str(source.partition),
        "offset": str(source.offset),
        "connector.name": app,
        "task.id": worker,
        "stage": error.stage.value,
        "exception.class.name": f"{type(cause).__module__}.{type(cause).__qualname__}",
        "exception.message": error.reason,
    }
    return [
        *((name, content) for name, content in original or () if not name.startswith(ERROR_PREFIX)),
        *((ERROR_PREFIX + name, text.encode(errors="replace")) for name, text in errors.items()),
    ]


def read_error_headers(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """The error headers of a dead letter, without their prefix."""
    return {
        name.removeprefix(ERROR_PREFIX): (content or b"").decode(errors="replace")
        for name, content in headers
        if name.startswith(ERROR_PREFIX)
    }


def replay_headers(letter: Headers, source: Source, attempts: int) -> list[tuple[str, Any]]:
    """The headers of an event that is replayed: those that the record came with, how often it was replayed, and what from."""
    ours = {ATTEMPTS, REPLAYED_FROM}
    return [
        *((name, content) for name, content in letter if name not in ours and not name.startswith(ERROR_PREFIX)),
        (ATTEMPTS, str(attempts).encode()),
        (REPLAYED_FROM, f"{source.topic}-{source.partition}-{source.offset}".encode()),
    ]


def read_source(letter: Headers) -> Source | None:
    """The event that a dead letter was; None where its error headers do not say."""
    said = read_error_headers(letter)
    topic, partition, offset = (said.get(part, "") for part in ("topic", "partition", "offset"))
    if topic and _NUMBER.fullmatch(partition) and _NUMBER.fullmatch(offset):
        return Source(topic, int(partition), int(offset))
    return None


def read_attempts(headers: Headers) -> int | None:
    """How often a record was replayed, 0 for one that never was; None where its header is no number."""
    text = _last(headers, ATTEMPTS, b"0").decode(errors="replace")
    return int(text) if _NUMBER.fullmatch(text) else None


def read_replayed_from(headers: Headers) -> Source | None:
    """The event that failed before this one, which was made of its dead letter; None where there was none."""
    found = _PLACE.fullmatch(_last(headers, REPLAYED_FROM, b"").decode(errors="replace"))
    return Source(found[1], int(found[2]), int(found[3])) if found else None


def _last(headers: Headers, name: str, default: bytes) -> bytes:
    return next((content or b"" for key, content in reversed(headers) if key == name), default)

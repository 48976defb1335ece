"""What the headers of an event say, and the headers of a dead letter."""

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ecluse.contract.headers import (
    ERROR_PREFIX,
    Envelope,
    cloud_event_headers,
    dead_letter_headers,
    read_envelope,
    read_error_headers,
)
from ecluse.contract.records import Source
from ecluse.errors import RecordError, Stage

STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
SOURCE = Source("cards.events", 3, 41)
BECAUSE = RecordError(Stage.VALIDATE, "The field 'größe' is missing.")
header_names = st.sampled_from(["content-type", "Content-Type", "ce_id", "ce_time", "CE_Time", "ce_type", "other"])
header_lists = st.lists(st.tuples(header_names, st.none() | st.binary(max_size=40)), max_size=6)


def structured(**attributes: Any) -> bytes:
    event = {"specversion": "1.0", "id": "e1", "source": "/shop", "type": "payment"} | attributes
    return json.dumps({name: value for name, value in event.items() if value is not ...}).encode()


def refusal(headers: list[tuple[str, bytes | None]], value: bytes | None) -> str:
    with pytest.raises(RecordError) as refused:
        read_envelope(headers, value)
    assert refused.value.stage is Stage.DECODE
    return str(refused.value)


def test_a_record_without_headers_says_nothing_of_itself() -> None:
    assert read_envelope([], b"{}") == Envelope(value=b"{}")
    assert read_envelope([("trace", b"\xff"), ("ce_id", None), ("content-type", b"text/plain")], None) == Envelope()


def test_binary_mode_gives_id_time_and_format() -> None:
    headers = cloud_event_headers("e1", "/shop", "payment", "1970-01-01T00:01:00+00:00", b"application/json")
    assert read_envelope(headers, b"{}") == Envelope("e1", 60.0, True, b"{}")
    upper = [(name.upper(), content) for name, content in headers[1:]]
    assert read_envelope([*upper, ("Content-Type", b"Application/MsgPack")], b"\x80") == Envelope(
        "e1", 60.0, False, b"\x80"
    )


def test_structured_mode_is_unwrapped_when_the_header_says_so() -> None:
    value = structured(time="1970-01-01T00:01:00Z", data={"amount": 1})
    assert read_envelope(STRUCTURED, value) == Envelope("e1", 60.0, True, b'{"amount": 1}')
    shouted = [("Content-Type", b"APPLICATION/CloudEvents+JSON")]
    assert read_envelope(shouted, value) == read_envelope(STRUCTURED, value)
    packed = structured(data_base64=base64.b64encode(b"\x80").decode())
    assert read_envelope(STRUCTURED, packed) == Envelope("e1", None, None, b"\x80")
    assert read_envelope([], value) == Envelope(value=value), "without the header it is a plain event"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"[]",
        b"not json",
        b"\xff\xfe",
        structured(id=...),
        structured(id=7),
        structured(time="yesterday", data={}),
        structured(data_base64="no base64!"),
        structured(data_base64="größe"),
        structured(data=...)[:-1] + b', "data": ' + b"[" * 100_000,
    ],
)
def test_what_says_it_is_a_structured_event_and_is_none_is_refused(value: bytes | None) -> None:
    assert refusal(STRUCTURED, value).startswith("The value is no CloudEvent in structured mode: ")


def test_broken_binary_headers_are_refused_by_name() -> None:
    assert refusal([("ce_id", b"\xff")], b"{}") == "The event's ce_id header is not UTF-8."
    for time in (b"\xff", b"yesterday", b"2024-01-01", b"2024-13-01T00:00:00Z"):
        assert refusal([("ce_time", time)], b"{}") == "The event's ce_time header is no RFC 3339 time."


@given(headers=header_lists, value=st.none() | st.binary(max_size=60))
@example(headers=[("ce_time", b"0001-01-01T00:00:00+14:00")], value=b"")
@example(headers=[("ce_time", b"9999-12-31T23:59:59.999999-14:00")], value=b"")
def test_any_headers_are_read_or_refused_with_a_sentence(
    headers: list[tuple[str, bytes | None]], value: bytes | None
) -> None:
    try:
        envelope = read_envelope(headers, value)
    except RecordError as error:
        assert error.stage is Stage.DECODE
        return
    assert envelope.time is None or isinstance(envelope.time, float)
    assert envelope.value == value


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
)
attributes = st.dictionaries(
    st.sampled_from(["id", "source", "specversion", "type", "time", "data", "data_base64"]), json_values | st.just("")
)


@given(event=attributes, complete=st.booleans())
def test_any_structured_object_is_unwrapped_or_refused(event: dict[str, Any], complete: bool) -> None:
    base = {"id": "e1", "source": "s", "specversion": "1.0", "type": "t"} if complete else {}
    try:
        envelope = read_envelope(STRUCTURED, json.dumps(base | event).encode())
    except RecordError as error:
        assert error.stage is Stage.DECODE
    else:
        assert envelope.value is not None


def test_a_dead_letter_keeps_its_headers_and_says_where_it_was_and_why() -> None:
    original = [("trace", b"\xff\x00"), ("empty", None), ("trace", b"again")]
    written = dead_letter_headers(original, SOURCE, BECAUSE, app="cards", worker="w-1")
    assert written[:3] == original
    assert read_error_headers(written) == {
        "topic": "cards.events",
        "partition": "3",
        "offset": "41",
        "connector.name": "cards",
        "task.id": "w-1",
        "stage": "validate",
        "exception.class.name": "ecluse.errors.RecordError",
        "exception.message": "The field 'größe' is missing.",
    }


def test_the_cause_of_an_error_is_named() -> None:
    try:
        try:
            msgspec.json.decode(b"{")
        except msgspec.DecodeError as cause:
            raise RecordError(Stage.DECODE, "No JSON.") from cause
    except RecordError as error:
        written = read_error_headers(dead_letter_headers(None, SOURCE, error, app="a", worker="w"))
    assert written["exception.class.name"] == "msgspec.DecodeError"
    assert written["exception.message"] == "No JSON."


@given(
    original=st.lists(
        st.tuples(st.text(max_size=8) | st.text(max_size=8).map(ERROR_PREFIX.__add__), st.binary(max_size=8))
    )
)
def test_incoming_error_headers_are_dropped_so_that_the_source_is_true(
    original: list[tuple[str, bytes | None]],
) -> None:
    forged = [*original, (f"{ERROR_PREFIX}topic", b"elsewhere"), (f"{ERROR_PREFIX}exception.stacktrace", b"x")]
    written = dead_letter_headers(forged, SOURCE, BECAUSE, app="a", worker="w")
    assert [header for header in written if not header[0].startswith(ERROR_PREFIX)] == [
        header for header in original if not header[0].startswith(ERROR_PREFIX)
    ]
    ours = [name for name, _ in written if name.startswith(ERROR_PREFIX)]
    assert len(ours) == len(set(ours)) == 8
    assert read_error_headers(written)["topic"] == "cards.events"


def test_a_reason_that_utf8_cannot_hold_does_not_stop_the_dead_letter() -> None:
    written = dead_letter_headers(None, SOURCE, RecordError(Stage.SCORE, "no file \udcff"), app="a", worker="w")
    assert read_error_headers(written)["exception.message"] == "no file ?"

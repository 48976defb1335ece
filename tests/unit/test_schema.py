"""The stream's schema: which events are taken, and what is said of those that are not."""

import datetime as dt
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ecluse.contract.schema import EventSchema, Field, FieldType, seconds
from ecluse.errors import RecordError, Stage

SCHEMA = EventSchema(
    {
        "amount": Field(FieldType.NUMBER),
        "count": Field(FieldType.INTEGER, required=False),
        "shop": Field(FieldType.TEXT, required=False),
        "night": Field(FieldType.BOOLEAN, required=False),
        "time": Field(FieldType.TIME, required=False),
        "ratio": Field(FieldType.NUMBER, required=False),
    }
)
values = SCHEMA.getter(*SCHEMA.fields)
pack = msgspec.msgpack.encode
UNFIT = "The event does not fit the stream's schema: "
NO_OBJECT = "The event is neither a JSON nor a msgpack object"
#: Words of Python and of the decoder that say nothing to a person.
JARGON = re.compile(r"\b(str|int|float|bool|dict|NoneType|Struct|datetime|Expected|object at|Traceback|f\d)\b|\$|`")


def refusal(value: bytes | None, schema: EventSchema = SCHEMA, *, json: bool | None = None) -> RecordError:
    with pytest.raises(RecordError) as refused:
        schema.decode(value, json=json)
    return refused.value


def test_json_and_msgpack_give_the_same_event() -> None:
    event = {"amount": 12, "count": 3, "shop": "é", "night": True, "time": 5, "ratio": None, "more": {"x": [1]}}
    expected = (12.0, 3, "é", True, 5.0, None)
    assert values(SCHEMA.decode(msgspec.json.encode(event))) == expected
    assert values(SCHEMA.decode(pack(event))) == expected
    assert values(SCHEMA.decode(b'\n\t {"amount":1}')) == (1.0, None, None, None, None, None)


def test_a_header_stands_over_the_first_byte() -> None:
    assert SCHEMA.decode(b'{"amount":1}', json=True)
    assert refusal(b'{"amount":1}', json=False).stage is Stage.DECODE
    assert refusal(pack({"amount": 1}), json=True).stage is Stage.DECODE


def test_the_last_of_a_key_that_stands_twice_holds() -> None:
    assert values(SCHEMA.decode(b'{"amount":1,"amount":2}'))[0] == 2.0


TIME = "field 'time' must be a time (RFC 3339 text, or seconds or milliseconds since 1970)"
WHOLE = "field 'count' must be a whole number of at most 64 bits"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"{}", "the required field 'amount' is missing"),
        (b"[]", "it is a list, not an object"),
        (b'"text"', "it is text, not an object"),
        (b'{"amount":null}', "field 'amount' must be a number, but is null"),
        (b'{"amount":"12"}', "field 'amount' must be a number, but is text"),
        (b'{"amount":true}', "field 'amount' must be a number, but is true or false"),
        (b'{"amount":[1]}', "field 'amount' must be a number, but is a list"),
        (b'{"amount":{"v":1}}', "field 'amount' must be a number, but is an object"),
        (b'{"amount":1e999}', "field 'amount' must be a number, but is NaN, infinite or too large"),
        (pack({"amount": math.nan}), "field 'amount' must be a number, but is NaN, infinite or too large"),
        (pack({"amount": -math.inf}), "field 'amount' must be a number, but is NaN, infinite or too large"),
        (pack({"amount": b"1"}), "field 'amount' must be a number, but is bytes"),
        (b'{"amount":1,"count":1.5}', f"{WHOLE}, but is a number with a fraction"),
        (b'{"amount":1,"count":' + b"9" * 30 + b"}", f"{WHOLE}, but is too large"),
        (b'{"amount":1,"count":' + b"9" * 9_999 + b"}", f"{WHOLE}, but is too large"),
        (pack({"amount": 1, "count": 2**64 - 1}), f"{WHOLE}, but is too large"),
        (b'{"amount":1,"shop":7}', "field 'shop' must be text, but is a whole number"),
        (b'{"amount":1,"night":1}', "field 'night' must be true or false, but is a whole number"),
        (b'{"amount":1,"time":"today"}', f"{TIME}, but is no such time"),
        (b'{"amount":1,"time":1e300}', f"{TIME}, but is no such time"),
        (b'{"amount":1,"time":-99999999999}', f"{TIME}, but is no such time"),
        (b'{"amount":1,"time":false}', f"{TIME}, but is true or false"),
        (pack({1: 2}), "the names of its fields must be text"),
    ],
)
def test_an_event_that_does_not_fit_is_refused_with_the_field_and_the_reason(value: bytes, said: str) -> None:
    error = refusal(value)
    assert (error.stage, error.reason) == (Stage.VALIDATE, f"{UNFIT}{said}.")


@pytest.mark.parametrize(
    "value",
    [
        b"amount=12",
        b"<event/>",
        b"\0" * 2_000_000,
        b"\xef\xbb\xbf{}",
        b"3",
        b" ",
        b"{",
        b'{"amount":1}{"amount":2}',
        b'{"amount":NaN}',
        b"{'amount':1}",
        b'{"amount":1,"shop":"\\ud800"}',
        b'{"amount":1,"deep":' + b"[" * 100_000,
        b"\x81\xa6amount\xcb",
        pack({"amount": 1}) + b"\0",
        b"\xdf\xff\xff\xff\xff",
        pack([{"amount": 1}]),
    ],
)
def test_bytes_that_are_no_object_are_refused_at_decode(value: bytes) -> None:
    error = refusal(value)
    assert error.stage is Stage.DECODE
    assert error.reason.startswith(NO_OBJECT)


def test_no_value_and_text_that_is_not_utf8_are_said() -> None:
    for value in (None, b""):
        assert str(refusal(value)) == "The event has no value: a JSON or msgpack object was expected."
    for value in (b'{"amount":1,"shop":"\xff"}', b"\x82\xa6amount\x01\xa4shop\xa1\xff"):
        assert str(refusal(value)).startswith("The event holds text that is not UTF-8")


@pytest.mark.parametrize("name", ["int", "a.b", "`x`", "$", "größe", "it's", "- at `$.x`", "f1", "", " "])
def test_a_field_of_any_name_is_read_and_named_in_a_refusal(name: str) -> None:
    schema = EventSchema({name: Field(FieldType.NUMBER), "f0": Field(FieldType.TEXT)})
    assert schema.getter(name, "f0")(schema.decode(msgspec.json.encode({name: 1, "f0": "a"}))) == (1.0, "a")
    assert refusal(msgspec.json.encode({"f0": "a"}), schema).reason == f"{UNFIT}the required field '{name}' is missing."
    wrong = refusal(msgspec.json.encode({name: [], "f0": "a"}), schema)
    assert wrong.reason == f"{UNFIT}field '{name}' must be a number, but is a list."


def test_a_number_that_may_be_missing_may_be_nan() -> None:
    assert math.isnan(values(SCHEMA.decode(pack({"amount": 1, "ratio": math.nan})))[-1])


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-01 00:01:00", 60.0),
        (60, 60.0),
        (1_700_000_000.5, 1_700_000_000.5),
        (1_700_000_000_500, 1_700_000_000.5),
        (None, None),
        (dt.datetime(1970, 1, 1, 0, 1, tzinfo=dt.UTC), 60.0),
    ],
)
def test_times_are_seconds_since_1970(time: Any, expected: float | None) -> None:
    for encode in (msgspec.json.encode, pack):
        assert seconds(values(SCHEMA.decode(encode({"amount": 1, "time": time})))[4]) == expected


def check(value: bytes, json: bool | None) -> None:
    """Whatever the bytes: an event whose values have the fields' types, or a sentence."""
    try:
        event = SCHEMA.decode(value, json=json)
    except RecordError as error:
        assert error.stage in (Stage.DECODE, Stage.VALIDATE)
        if error.stage is Stage.VALIDATE:
            assert error.reason.startswith(UNFIT)
            assert not JARGON.search(error.reason), error.reason
        assert error.reason.endswith(".")
        return
    amount, count, shop, night, time, ratio = values(event)
    assert isinstance(amount, float)
    assert math.isfinite(amount)
    assert count is None or -(2**63) <= count < 2**63
    assert isinstance(shop, str | None)
    assert isinstance(night, bool | None)
    assert isinstance(ratio, float | None)
    moment = seconds(time)
    if moment is not None:  # years 1 to 9999, give or take a time zone: what a date can show
        assert -62_135_700_000 < moment < 253_402_400_000


formats = st.none() | st.booleans()


@given(value=st.binary(max_size=200), json=formats)
def test_any_bytes_are_decoded_or_refused_with_a_sentence(value: bytes, json: bool | None) -> None:
    check(value, json)


@given(
    value=st.binary(max_size=80),
    start=st.sampled_from([b'{"amount":', b"\x81\xa6amount", b"\x86", b"{", b'{"']),
    json=formats,
)
def test_any_bytes_after_a_good_start_are_decoded_or_refused(value: bytes, start: bytes, json: bool | None) -> None:
    check(start + value, json)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.datetimes(timezones=st.none() | st.timezones()).map(dt.datetime.isoformat)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
objects = st.dictionaries(st.sampled_from([*SCHEMA.fields]) | st.text(max_size=5), anything, max_size=6)


@given(event=objects | st.builds(lambda event: event | {"amount": 1}, objects))
@example(event={"amount": 1, "time": "0001-01-01T00:00:00+14:00"})
@example(event={"amount": 1, "time": "9999-12-31T23:59:59.999999-14:00"})
@example(event={"amount": 1, "time": -62_135_596_800})
def test_any_object_is_decoded_or_refused_in_both_formats(event: dict[str, Any]) -> None:
    check(msgspec.json.encode(event), None)
    check(pack(event), None)


@given(st.integers().map(lambda number: number * 10**40))
def test_numbers_of_any_length_are_decoded_or_refused(number: int) -> None:
    for name in SCHEMA.fields:
        check(b'{"amount":1,"%s":%d}' % (name.encode(), number), None)

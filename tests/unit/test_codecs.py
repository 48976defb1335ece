"""Records to bytes and back, in both formats."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecluse.contract.codecs import CONTENT_TYPES, Encoding, Reader, encoder, looks_like_json
from ecluse.contract.records import Arm, Prediction, Release, Route, Thresholds
from tests.unit import records

ENCODINGS: tuple[Encoding, ...] = ("msgpack", "json")


@given(record=records.records, encoding=st.sampled_from(ENCODINGS))
def test_every_record_comes_back_as_it_was_in_either_format(record: msgspec.Struct, encoding: Encoding) -> None:
    assert Reader(type(record))(encoder(encoding)(record)) == record


@given(record=records.records, encoding=st.sampled_from(ENCODINGS))
def test_a_reader_ignores_fields_that_a_later_version_added(record: msgspec.Struct, encoding: Encoding) -> None:
    later = msgspec.to_builtins(record) | {"added later": {"nested": [1, None]}}
    assert Reader(type(record))(encoder(encoding)(later)) == record


@given(record=records.records, encoding=st.sampled_from(ENCODINGS))
def test_the_first_byte_tells_the_format(record: msgspec.Struct, encoding: Encoding) -> None:
    assert looks_like_json(encoder(encoding)(record)) is (encoding == "json")


@given(value=st.binary(max_size=60))
def test_bytes_that_are_no_record_are_refused_as_such(value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        Reader(Prediction)(value)


@pytest.mark.parametrize(
    "value", [b"", b"null", b"{}", b"\x80", b"\xc0", b'{"name": 3}', b"\x81\xa4name\xa1\xff", b'{"x":' + b"[" * 99_999]
)
def test_values_that_lack_what_a_record_needs_are_refused(value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        Reader(Release)(value)


def test_a_route_whose_thresholds_are_in_the_wrong_order_is_refused() -> None:
    wrong: dict[str, Any] = {"name": "m", "created_at": 0.0, "arms": [{"name": "a", "version": 1}]}
    wrong["arms"][0]["thresholds"] = {"review": 0.9, "block": 0.1}
    with pytest.raises(msgspec.ValidationError, match=r"review threshold 0.9 lies above the block threshold 0.1"):
        Reader(Route)(encoder("json")(wrong))


def test_keys_on_the_models_topic_name_the_kind_and_the_version() -> None:
    champion, other = (Arm(name, 1, Thresholds(0.1, 0.2)) for name in ("champion", "other"))
    route = Route("cards", (champion, other), 0.0)
    assert (route.key, route.champion) == ("route/cards", champion)
    assert Release("cards", 3, 0.0, "", 0).key == "release/cards/3"


def test_the_content_type_names_the_format() -> None:
    assert CONTENT_TYPES == {"msgpack": b"application/msgpack", "json": b"application/json"}


def test_a_route_without_arms_is_no_route() -> None:
    with pytest.raises(msgspec.ValidationError, match="at least one arm"):
        Reader(Route)(b'{"name": "cards", "arms": [], "created_at": 0.0}')

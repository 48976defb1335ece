"""Bytes to records and back. The ``content-type`` header says which of the two formats a record is in."""

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

Encoding = Literal["msgpack", "json"]
CONTENT_TYPE = "content-type"
CONTENT_TYPES: dict[Encoding, bytes] = {"msgpack": b"application/msgpack", "json": b"application/json"}

_JSON_STARTS = frozenset(b'{[" \t\r\n')


def encoder(encoding: Encoding) -> Callable[[Any], bytes]:
    """The function that turns a record into bytes."""
    return msgspec.msgpack.Encoder().encode if encoding == "msgpack" else msgspec.json.Encoder().encode


def content_headers(encoding: Encoding) -> list[tuple[str, str | bytes | None]]:
    """The headers of a record in this format."""
    return [(CONTENT_TYPE, CONTENT_TYPES[encoding])]


def looks_like_json(value: bytes) -> bool:
    """Tell JSON from msgpack by the first byte: none that starts a JSON object starts a msgpack map."""
    return value[0] in _JSON_STARTS


class Reader(Generic[T]):
    """Decodes the records of one topic, in either format."""

    def __init__(self, record: type[T]) -> None:
        self._json = msgspec.json.Decoder(record)
        self._msgpack = msgspec.msgpack.Decoder(record)

    def __call__(self, value: bytes) -> T:
        """Decode one value.

        Raises:
            msgspec.DecodeError: it is not such a record.
        """
        if not value:
            raise msgspec.DecodeError("the value is empty")
        try:
            return self._json.decode(value) if looks_like_json(value) else self._msgpack.decode(value)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error

"""The stream's input schema: the fields that an event must or may carry, and the struct that decodes them.

The schema belongs to the stream, not to a model, so that every version of the model accepts the same events. An event is
a flat object; fields that are not declared are ignored.
"""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any

import msgspec

from ecluse.contract.codecs import looks_like_json
from ecluse.errors import RecordError, Stage

Event = Any  # an instance of the struct that `EventSchema` generates


class FieldType(StrEnum):
    """What a field holds. A `time` is an RFC 3339 text (UTC where it names no zone) or seconds or milliseconds since 1970."""

    NUMBER = "number"
    INTEGER = "integer"
    TEXT = "text"
    BOOLEAN = "boolean"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field. A required one must be present and hold a value; others may be absent, null or NaN."""

    type: FieldType
    required: bool = True


_PYTHON_TYPES: dict[FieldType, Any] = {
    FieldType.NUMBER: float,
    FieldType.INTEGER: int,
    FieldType.TEXT: str,
    FieldType.BOOLEAN: bool,
    FieldType.TIME: dt.datetime | float | int,
}
_PLAIN_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "null": "nothing",
    "object": "an object",
    "array": "a list",
    "datetime": "a time",
    "bytes": "bytes",
}
#: Epoch numbers above this are milliseconds: as seconds it would be the year 5138.
_MILLISECONDS_FROM = 1e11


def seconds(moment: dt.datetime | float | None) -> float | None:
    """A `time` field's value as seconds since 1970-01-01 UTC."""
    if moment is None:
        return None
    if isinstance(moment, dt.datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    return moment / 1e3 if abs(moment) >= _MILLISECONDS_FROM else float(moment)


class EventSchema:
    """Decodes events by the stream's declared fields.

    Attribute names of the generated struct are positional (``f0``, ``f1``, …), because a field may have any name that a
    column of a file may have; `getter` reads fields by their real names.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = dict(fields)
        self._attributes = {name: f"f{i}" for i, name in enumerate(self.fields)}
        ordered = sorted(self.fields.items(), key=lambda item: not item[1].required)
        self.struct = msgspec.defstruct(
            "Event",
            [
                (self._attributes[name], kind) if field.required else (self._attributes[name], kind | None, None)
                for name, field in ordered
                for kind in [_PYTHON_TYPES[field.type]]
            ],
            rename={attribute: name for name, attribute in self._attributes.items()},
            gc=False,
        )
        self.from_json: Callable[[bytes], Event] = msgspec.json.Decoder(self.struct).decode
        self.from_msgpack: Callable[[bytes], Event] = msgspec.msgpack.Decoder(self.struct).decode

    def getter(self, *names: str) -> Callable[[Event], Any]:
        """A function that reads fields of an event: one name gives its value, several a tuple."""
        return attrgetter(*(self._attributes[name] for name in names))

    def decode(self, value: bytes | None, *, json: bool | None = None) -> Event:
        """Decode and check one event's value; `json` says the format where a header does, else the first byte tells.

        Raises:
            RecordError: at `decode` where the bytes are no JSON or msgpack, at `validate` where they do not fit the fields.
        """
        if not value:
            raise RecordError(Stage.DECODE, "The event has no value: a JSON or msgpack object was expected.")
        try:
            is_json = looks_like_json(value) if json is None else json
            return self.from_json(value) if is_json else self.from_msgpack(value)
        except msgspec.ValidationError as error:
            raise RecordError(
                Stage.VALIDATE, f"The event does not fit the stream's schema: {_plain(error)}."
            ) from error
        except UnicodeDecodeError as error:
            raise RecordError(Stage.DECODE, f"The event holds text that is not UTF-8: {error.reason}.") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise RecordError(Stage.DECODE, f"The event is neither a JSON nor a msgpack object: {error}.") from error


def _plain(error: msgspec.ValidationError) -> str:
    """Say a decoder's complaint in words of the schema."""
    text = re.sub(r"`\$\.(.+)`$", r"field '\1'", str(error))
    text = re.sub(r"`([a-z]+)`", lambda word: _PLAIN_WORDS.get(word[1], word[0]), text)
    return text[0].lower() + text[1:].replace(" - at ", " in ")

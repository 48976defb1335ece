"""The stream's input schema: the fields that an event must or may carry, and the struct that decodes them.

The schema belongs to the stream, not to a model, so that every version of the model accepts the same events. An event is
a flat object; fields that are not declared are ignored.
"""

import datetime as dt
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any

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


#: What the name of a field cannot hold: the generated decoder compares names as they stand in JSON, where these are escaped.
ILLEGAL_IN_NAMES = re.compile(r'["\\\x00-\x1f]')


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field. A required one must be present and hold a value; others may be absent, null or NaN."""

    type: FieldType
    required: bool = True


#: Bounds cost nothing in msgspec's decoder and refuse NaN and infinity, which msgpack can carry. Times go from year 1 to 9999.
_Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Epoch = Annotated[float, msgspec.Meta(ge=-62_135_596_800, le=253_402_300_799_999)]
#: Types whose values are numbers to a model.
NUMERIC = frozenset({FieldType.NUMBER, FieldType.INTEGER, FieldType.BOOLEAN})

_PYTHON_TYPES: dict[FieldType, Any] = {
    FieldType.NUMBER: _Finite,
    FieldType.INTEGER: _Int64,
    FieldType.TEXT: str,
    FieldType.BOOLEAN: bool,
    FieldType.TIME: dt.datetime | _Epoch,
}
_WANTED = {
    FieldType.NUMBER: "a number",
    FieldType.INTEGER: "a whole number of at most 64 bits",
    FieldType.TEXT: "text",
    FieldType.BOOLEAN: "true or false",
    FieldType.TIME: "a time (RFC 3339 text, or seconds or milliseconds since 1970)",
}
#: msgspec's names of what stands in an event, in plain words.
_FOUND = {
    "float": "a number with a fraction",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
    "datetime": "a time",
    "bytes": "bytes",
}
_UNFIT = {
    FieldType.NUMBER: "NaN, infinite or too large",
    FieldType.INTEGER: "too large",
    FieldType.TIME: "no such time",
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


def python_type(field: Field) -> Any:
    """The type that decodes a field; a number that may be missing may be NaN."""
    return float if field.type is FieldType.NUMBER and not field.required else _PYTHON_TYPES[field.type]


def _is_msgpack_map(value: bytes) -> bool:
    return 0x80 <= value[0] <= 0x8F or value[0] in (0xDE, 0xDF)


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
                for kind in [python_type(field)]
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
        is_json = looks_like_json(value) if json is None else json
        try:
            return self.from_json(value) if is_json else self.from_msgpack(value)
        except msgspec.ValidationError as error:
            if not is_json and not _is_msgpack_map(value):  # any byte is some msgpack: text that is no JSON comes here
                raise RecordError(Stage.DECODE, "The event is neither a JSON nor a msgpack object.") from error
            raise RecordError(
                Stage.VALIDATE, f"The event does not fit the stream's schema: {self._plain(str(error))}."
            ) from error
        except UnicodeDecodeError as error:
            raise RecordError(Stage.DECODE, f"The event holds text that is not UTF-8: {error.reason}.") from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise RecordError(Stage.DECODE, f"The event is neither a JSON nor a msgpack object: {error}.") from error

    def _plain(self, complaint: str) -> str:
        """Say a decoder's complaint in words of the schema."""
        if missing := re.fullmatch(r"Object missing required field `(.*)`", complaint, re.DOTALL):
            return f"the required field '{missing[1]}' is missing"
        at = re.search(r" - at `\$\.(.*)`$", complaint, re.DOTALL)
        found = re.match(r"Expected `[^`]*`, got `([^`]*)`", complaint)
        what = _FOUND.get(found[1], found[1]) if found else None
        if at is None:
            return (
                "the names of its fields must be text" if " - at `key`" in complaint else f"it is {what}, not an object"
            )
        kind = self.fields[at[1]].type
        return f"field '{at[1]}' must be {_WANTED[kind]}, but is {what or _UNFIT.get(kind, 'something else')}"

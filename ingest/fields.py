"""What an event says, as columns: a typed one for each declared field, and `extra` for everything else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import polars as pl

from ecluse.contract.codecs import looks_like_json
from ecluse.contract.schema import Event, EventSchema, Field, FieldType, python_type
from ecluse.contract.tables import EXTRA, column_of
from ecluse.settings import Settings
from ingest.columns import field_column, moment
from ingest.privacy import Privacy

#: The values of an event's declared fields, in their order, and its `extra`.
Values = tuple[tuple[Any, ...], str | None]

_any_json = msgspec.json.Decoder(dict[str, Any]).decode
_any_msgpack = msgspec.msgpack.Decoder(dict[str, Any]).decode
_raw_json = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_raw_msgpack = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_UNWRITABLE = (msgspec.MsgspecError, TypeError, ValueError, RecursionError)


class FieldColumns:
    """Makes the columns of a stream's declared fields, and `extra`."""

    def __init__(self, settings: Settings, schema: EventSchema) -> None:
        names = list(schema.fields)
        get = schema.getter(*names)
        self._get: Callable[[Event], tuple[Any, ...]] = get if len(names) > 1 else lambda event: (get(event),)
        self._types = {name: python_type(field) | None for name, field in schema.fields.items()}
        self._nothing = (None,) * len(names)
        privacy = Privacy(settings)
        self._cover = privacy.cover if privacy else None
        self._columns = [
            (column_of(name), names.index(name), schema.fields[name], privacy.way(name))
            for name in settings.stored_fields
        ]

    def of_event(self, event: Event, value: bytes, json: bool | None) -> Values:
        """From an event that the stream's schema took; what it does not declare is read from its bytes."""
        said = read_object(value, json)
        if said is None or said.keys() <= self._types.keys():
            return self._get(event), None
        left = {name: found for name, found in said.items() if name not in self._types}
        return self._get(event), as_json(left, self._cover)

    def of_object(self, said: Mapping[str, Any] | None) -> Values:
        """From any object: a value that does not fit its field stands in `extra`."""
        if said is None:
            return self._nothing, None
        values: list[Any] = []
        left = dict(said)
        for name, kind in self._types.items():
            try:
                values.append(msgspec.convert(said.get(name), kind))
                left.pop(name, None)
            except (msgspec.ValidationError, RecursionError):
                values.append(None)
        return tuple(values), as_json(left, self._cover) if left else None

    def columns(self, rows: Sequence[Values]) -> dict[str, pl.Series]:
        """The columns of these events."""
        by_field = list(zip(*(values for values, _ in rows), strict=True)) or [()] * len(self._types)
        made = {name: _column(field, by_field[i], way) for name, i, field, way in self._columns}
        return made | {EXTRA: pl.Series([extra for _, extra in rows], dtype=pl.String)}


def _column(field: Field, values: Sequence[Any], way: Callable[[Any], str | None] | None) -> pl.Series:
    if way is None:
        return field_column(field, values)
    if field.type is FieldType.TIME:
        values = list(map(moment, values))
    return pl.Series(list(map(way, values)), dtype=pl.String)


def read_object(value: bytes | None, json: bool | None = None) -> dict[str, Any] | None:
    """The object in a JSON or msgpack value, whatever stands in it; None where it is none. Of a field that alone
    cannot be read (a number beyond all bounds, text that is not UTF-8) only the name is kept, with null."""
    if not value:
        return None
    is_json = looks_like_json(value) if json is None else json
    try:
        return _any_json(value) if is_json else _any_msgpack(value)
    except _UNREADABLE:
        return _salvage(value, is_json)


def _salvage(value: bytes, is_json: bool) -> dict[str, Any] | None:
    decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
    said: dict[str, Any] = {}
    try:
        for name, raw in (_raw_json(value) if is_json else _raw_msgpack(value)).items():
            try:
                said[name] = decode(raw)
            except _UNREADABLE:
                said[name] = None
    except _UNREADABLE:
        return None
    return said


def as_json(said: dict[str, Any], cover: Callable[[Any], Any] | None = None) -> str | None:
    """An object as JSON, its private fields covered; None where nothing is left. Where msgpack said what JSON cannot, the
    field is null."""
    try:
        left = said if cover is None else cover(said)
        return _encode(left).decode() if left else None
    except _UNWRITABLE:
        if len(said) > 1:
            parts = (as_json({name: value}, cover) for name, value in said.items())
            return "{" + ",".join(part[1:-1] for part in parts if part) + "}"
        return _encode(dict.fromkeys(said)).decode()

"""What never reaches the training store as it is: the fields that the settings drop, hash or mask.

A field is private by its name, wherever it stands: as a declared field, among what the stream does not declare, within objects
and lists, in the events of bypass samples. Where it is `stream.id_field` or `stream.key_field`, so are `event_id` and `entity`
in every table, so that rows still find each other.
"""

import math
from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from ecluse.errors import SettingsError
from ecluse.secrets import read_secret
from ecluse.settings import Settings
from ingest.columns import moment

#: Values shorter than this are masked wholly.
_SHOWN_FROM = 8
_STARS = "****"


class HashKey:
    """The key of the store's hashes, from `store.hash_key_file`: BLAKE2b (RFC 7693), 128 bits, keyed, each use apart.

    Raises:
        SettingsError: there is none, or its file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        file = settings.store.hash_key_file
        if file is None:
            raise SettingsError(
                [
                    "store.hash_key_file is not set: it names the key of the hashes in the training store, by which it knows "
                    "what was forgotten. `ecluse init` makes one."
                ]
            )
        self._key = blake2b(read_secret(file, "store.hash_key_file"), digest_size=32).digest()
        #: Tells keys apart and tells nothing of them: 63 bits.
        self.id = int.from_bytes(self._hashed("", b"id"), "big") >> 65

    def hashed(self, text: str) -> str:
        """What stands in the store for a value of a hashed field."""
        return self._hashed(text, b"value").hex()

    def forgotten(self, text: str) -> str:
        """What stands in the table `forgotten` for an entity or an event's id as the store had it."""
        return self._hashed(text, b"forgotten").hex()

    def _hashed(self, text: str, use: bytes) -> bytes:
        return blake2b(text.encode(), digest_size=16, key=self._key, person=use).digest()


class Privacy:
    """What the settings make of private fields on their way to the store.

    Raises:
        SettingsError: fields are to be hashed, and the key cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        store, stream = settings.store, settings.stream
        hashed = HashKey(settings).hashed if store.hash else _unused
        ways: Iterable[tuple[tuple[str, ...], Callable[[str], str] | None]] = (
            (store.drop, None),
            (store.hash, hashed),
            (store.mask, masked),
        )
        self._ways = {name.lower(): way for names, way in ways for name in names}
        self._id = self._ways.get((stream.id_field or "").lower())
        self._entity = self._ways.get((stream.key_field or "").lower())

    def __bool__(self) -> bool:
        """Whether any field is private."""
        return bool(self._ways)

    def way(self, field: str) -> Callable[[Any], str | None] | None:
        """How the values of a field become text; None where they stay as they are, or are dropped."""
        way = self._ways.get(field.lower())
        return None if way is None else lambda value: None if (text := as_text(value)) is None else way(text)

    def event_id(self, event_id: str | None) -> str | None:
        """An event's id as the store has it."""
        return event_id if self._id is None or event_id is None else self._id(event_id)

    def entity(self, entity: str | None, event_id: str | None) -> str | None:
        """An entity as the store has it; where events have no key their id stands for it, and is as private as that."""
        if self._entity is not None and entity is not None:
            return self._entity(entity)
        return self.event_id(entity) if entity == event_id else entity

    def cover(self, said: Any) -> Any:
        """What was said with its private fields dropped, hashed or masked, at any depth.

        Raises:
            RecursionError: it is nested too deeply.
            TypeError: a private field holds what JSON cannot say.
        """
        if isinstance(said, dict):
            return {name: self._covered(name, value) for name, value in said.items() if not self._dropped(name)}
        return list(map(self.cover, said)) if isinstance(said, list | tuple) else said

    def _dropped(self, name: Any) -> bool:
        name = _plain(name)
        return name in self._ways and self._ways[name] is None

    def _covered(self, name: Any, value: Any) -> Any:
        way = self._ways.get(_plain(name))
        if way is None:
            return self.cover(value)
        text = as_text(value)
        return None if text is None else way(text)


def _plain(name: Any) -> str:
    """The name of a field within an object; msgpack has names that are no text."""
    return (name.decode(errors="replace") if isinstance(name, bytes) else str(name)).lower()


def masked(text: str) -> str:
    """The last four characters of a text; of a short one nothing, not even how long it is."""
    return _STARS + text[-len(_STARS) :] if len(text) >= _SHOWN_FROM else _STARS


def as_text(value: Any) -> str | None:
    """A value as the text that is hashed or masked, so that equal values stay equal: 12 and 12.0 are, and are the id "12".

    Raises:
        RecursionError: it is nested too deeply.
        TypeError: JSON cannot say it.
    """
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            if not math.isfinite(value):
                return None
            return str(int(value)) if value.is_integer() else repr(value)
        case int():
            return str(value)
        case datetime():
            return str(moment(value))
        case _:
            return msgspec.json.encode(value, order="deterministic").decode()


def _unused(text: str) -> str:
    raise AssertionError(text)

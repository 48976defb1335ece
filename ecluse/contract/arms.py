"""Which events go past the model: who may, and whom the draw takes.

The draw is a keyed hash of entity and day. Only who holds the operator's secret can tell its outcome beforehand, and a client
that tries again with another event id is drawn once a day all the same. What is eligible is a pure function of the event and
the switch, so the same event has the same arm under the same revision, on any worker, after any replay.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

from ecluse.contract.records import Switch
from ecluse.contract.schema import Event, EventSchema, FieldType
from ecluse.errors import SettingsError

DAY_SECONDS = 86_400
#: What a value of `never` must be, by the type of its field. Times and numbers with fractions make no segments.
_SEGMENTS: dict[FieldType, tuple[type, ...]] = {
    FieldType.TEXT: (str,),
    FieldType.BOOLEAN: (bool,),
    FieldType.INTEGER: (int,),
    FieldType.NUMBER: (int,),
    FieldType.TIME: (),
}


def day_of(moment: float) -> int:
    """The day (UTC) of a moment in seconds since 1970, in days since then."""
    return math.floor(moment / DAY_SECONDS)


def secret_id(secret: bytes) -> str:
    """A name for a secret that tells nothing of it: 16 hexadecimal digits."""
    return hashlib.blake2b(key=_key(secret, b"ecluse secret id"), digest_size=8).hexdigest()


class Draw:
    """Draws a number for an entity and a day, evenly from [0, 1): BLAKE2b (RFC 7693), keyed by the operator's secret.

    Shares are nested: whom a share takes (a number below it), every larger share takes too.

    Args:
        secret: the operator's: 32 bytes or more of chance (`ecluse.secrets`).
        stream: the stream's name. An entity is drawn for each stream by itself.
    """

    def __init__(self, secret: bytes, stream: str) -> None:
        name = hashlib.blake2b(stream.encode(), digest_size=hashlib.blake2b.PERSON_SIZE).digest()
        self._start = hashlib.blake2b(key=_key(secret, b"ecluse bypass"), person=name, digest_size=8).copy

    def __call__(self, entity: bytes, day: int) -> float:
        """The number of an entity (the record's key as it stands) on a day (as `day_of` gives it)."""
        drawn = self._on(day)
        drawn.update(entity)
        return (int.from_bytes(drawn.digest(), "big") >> 11) * 2.0**-53

    def takes(self, share: float, day: int) -> Callable[[bytes], bool]:
        """What tells whether a share takes an entity on a day: whether its number is below the share, without making it."""
        start = self._on(day).copy
        below = math.ceil(share * 2**53) << 11
        limit = below.to_bytes(8, "big") if below < 2**64 else b"\xff" * 9  # longer than any: everybody

        def takes(entity: bytes) -> bool:
            drawn = start()
            drawn.update(entity)
            return drawn.digest() < limit

        return takes

    def _on(self, day: int) -> "hashlib.blake2b":
        """The hash of a day, to which an entity is added. The day comes first and has a fixed length: no other pair of day and
        entity makes the same bytes."""
        begun = self._start()
        begun.update(day.to_bytes(8, "big", signed=True))
        return begun


def _key(secret: bytes, use: bytes) -> bytes:
    """A key of its own for each use: none of them tells another, or the secret."""
    return hashlib.blake2b(secret, person=use).digest()


class Eligibility:
    """Says whether an event may go past the model, by the rules of a switch: see `Switch`.

    Without a key there is no entity, and such an event never does. Where the switch names an amount, an event must say it,
    and it must be finite.

    Raises:
        SettingsError: the stream does not declare a field that the switch names, or it is of another type: one sentence each.
    """

    def __init__(self, switch: Switch, schema: EventSchema) -> None:
        if faults := _faults(switch, schema):
            raise SettingsError(faults)
        self._amount = None if switch.amount_field is None else schema.getter(switch.amount_field)
        self._limit = math.inf if switch.max_amount is None else switch.max_amount
        self._never: list[tuple[Callable[[Event], Any], frozenset[Any]]] = [
            (schema.getter(name), frozenset(values)) for name, values in switch.never.items()
        ]

    def __call__(self, key: bytes | None, event: Event) -> bool:
        """Whether an event of this record key may go past."""
        if key is None:
            return False
        if self._amount is not None:
            amount = self._amount(event)
            if amount is None or not math.isfinite(amount) or amount > self._limit:
                return False
        return not any(read(event) in values for read, values in self._never)


def _faults(switch: Switch, schema: EventSchema) -> list[str]:
    """Why the rules of a switch mean nothing to a stream, one sentence each."""
    faults = []
    if (name := switch.amount_field) is not None:
        field = schema.fields.get(name)
        if field is None or field.type not in (FieldType.NUMBER, FieldType.INTEGER):
            faults.append(
                f"The bypass takes amounts from the field '{name}', which the stream does not declare as a number."
            )
    for name, values in switch.never.items():
        field = schema.fields.get(name)
        if field is None:
            faults.append(f"The bypass leaves out segments by the field '{name}', which the stream does not declare.")
        elif wrong := [value for value in values if type(value) not in _SEGMENTS[field.type]]:
            faults.append(
                f"The bypass leaves out events whose field '{name}' is {wrong[0]!r}, "
                f"which a field of type {field.type} never is."
            )
    return faults

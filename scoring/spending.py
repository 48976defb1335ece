"""What the samples on the bypass topic say of its cost: when each event went past, with which odds, and what it was worth."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Message

from ecluse.contract.codecs import Reader
from ecluse.sections import StreamSettings


class Spent(NamedTuple):
    """One event that went past. `at` is in seconds since 1970 on the stream's clock; `amount` 0 where it does not say one.

    A negative amount (money that comes back) is worth nothing: nobody earns room in a budget.
    """

    at: float
    propensity: float
    amount: float
    entity: str


def spent_reader(stream: StreamSettings, amount_field: str | None) -> Callable[[Message], Spent | None]:
    """Reads samples; None where a record is none. Of the event only the amount is decoded.

    Args:
        stream: its clock says what the time of a sample is: its event's own, or its arrival on the topic.
        amount_field: the event's field that says what it is worth.
    """
    value = msgspec.defstruct("Value", [("amount", Any, None)], rename={"amount": amount_field or ""}, gc=False)
    fields = [("event_time", float), ("propensity", float), ("entity", str), ("event", value)]
    read: Reader[Any] = Reader(msgspec.defstruct("Sample", fields, gc=False))
    by_event = stream.clock == "event"

    def decode(message: Message) -> Spent | None:
        try:
            sample = read(message.value() or b"")
        except msgspec.DecodeError:
            return None
        at = sample.event_time if by_event else message.timestamp()[1] / 1e3
        return Spent(at, sample.propensity, _worth(sample.event.amount), sample.entity)

    return decode


def _worth(amount: object) -> float:
    if not isinstance(amount, int | float) or isinstance(amount, bool) or not math.isfinite(amount):
        return 0.0
    return max(0.0, float(amount))

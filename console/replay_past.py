"""What was decided about events in the past: predictions and dead letters of one partition, by the offset of their event."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
from confluent_kafka import Message

from console.reading import headers_of
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import read_source
from ecluse.contract.records import Decision, Source
from scoring.replaying import Outcome


class Past(NamedTuple):
    """What became of an event; of a prediction also its score, the arm's version and route revision, and the threshold.

    A prediction without a score is of an event that went past the model.
    """

    outcome: Outcome
    score: float | None = None
    version: int = 0
    revision: int = 0
    threshold: float = 0.0

    @property
    def bypassed(self) -> bool:
        """Whether the event went past the model."""
        return self.score is None and self.outcome is not Outcome.DEAD_LETTER


#: Reads an output; None where it is none, or names no event.
Decode = Callable[[Message], tuple[Source, Past] | None]


class Outputs:
    """The outputs of one topic for one partition of the events, read in step with the events, each event's first only.

    Outputs stand in the order of their events, as workers write them. Those that come again, or out of order, because the
    group was set back, are passed over. Memory is bounded by what one batch reads ahead.
    """

    def __init__(
        self, read: Iterator[list[Message]], decode: Decode, events: tuple[str, int], first: int, since: float
    ) -> None:
        self._read, self._decode = read, decode
        self._events, self._first, self._since = events, first, since
        self._ahead: dict[int, Past] = {}
        self._highest = -1
        #: Outputs made since the range began, of events before `first`.
        self.earlier = 0

    def up_to(self, end: int) -> dict[int, Past]:
        """What became of the events before offset `end` that were not asked for yet."""
        while self._highest < end - 1 and (batch := next(self._read, None)) is not None:
            for message in batch:
                self._take(message)
        found = {offset: past for offset, past in self._ahead.items() if offset < end}
        self._ahead = {offset: past for offset, past in self._ahead.items() if offset >= end}
        return found

    def _take(self, message: Message) -> None:
        decoded = self._decode(message)
        if decoded is None or (decoded[0].topic, decoded[0].partition) != self._events:
            return
        offset = decoded[0].offset
        if offset <= self._highest:
            return
        self._highest = offset
        if offset >= self._first:
            self._ahead[offset] = decoded[1]
        elif message.timestamp()[1] >= self._since * 1e3:
            self.earlier += 1


class _Prediction(msgspec.Struct, gc=False):
    source: Source
    version: int
    score: float | None
    decision: Decision
    threshold: float
    route_revision: int


def prediction_reader() -> Decode:
    """Reads predictions."""
    read = Reader(_Prediction)

    def decode(message: Message) -> tuple[Source, Past] | None:
        try:
            made = read(message.value() or b"")
        except msgspec.DecodeError:
            return None
        past = Past(Outcome(made.decision), made.score, made.version, made.route_revision, made.threshold)
        return made.source, past

    return decode


def read_dead_letter(message: Message) -> tuple[Source, Past] | None:
    """Reads a dead letter."""
    source = read_source(headers_of(message))
    return None if source is None else (source, Past(Outcome.DEAD_LETTER))

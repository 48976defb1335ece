"""The ledger of a partition: what was fetched, what came of it, and which offset may be committed.

It holds the partition's chunks in fetch order, from the first that is not yet confirmed. A chunk moves through three
states, always in that order: fetched, produced, confirmed. Nothing of a chunk is produced before all earlier chunks of its
partition, and an offset is committable only when everything below it is confirmed.

The identity of the ledger object is the ownership epoch: a partition that is revoked, lost or sought back gets another
ledger, and what comes back for a chunk of the old one finds nobody who listens.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
from faust.types import TP


class Record(Protocol):
    """A fetched record: a `confluent_kafka.Message` that is no error, so that its place is always known."""

    def __len__(self) -> int:
        """The value's size in bytes."""
        ...

    def offset(self) -> int:
        """Where in its partition it stands."""
        ...

    def key(self) -> bytes | None:
        """The entity, as the producer gave it."""
        ...

    def value(self) -> bytes | None:
        """The event, or nothing."""
        ...

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """The producer's headers; None where there are none."""
        ...

    def timestamp(self) -> tuple[int, int]:
        """Kind, and milliseconds since 1970."""
        ...


class Output(msgspec.Struct, gc=False):
    """A record to produce to the partition of the event that it comes from."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]] | None


class Chunk:
    """Consecutive records of one partition, covering the offsets from `offset` up to `next_offset` (excluded)."""

    __slots__ = (
        "arrived",
        "confirmed",
        "fetched_at",
        "ledger",
        "next_offset",
        "number",
        "offset",
        "outputs",
        "records",
        "since",
        "tally",
    )

    def __init__(
        self, ledger: "Ledger", records: Sequence[Record], offset: int, next_offset: int, fetched_at: float
    ) -> None:
        if not offset < next_offset:
            raise ValueError(f"a chunk cannot reach from {offset} to {next_offset}")
        self.ledger = ledger
        self.records = records
        self.offset = offset
        self.next_offset = next_offset
        #: Where the chunk before it ended, with the gap between the two; its own start where that is not known.
        self.since = offset if ledger.taken is None else ledger.taken
        #: When the chunk was fetched, on the monotonic clock.
        self.fetched_at = fetched_at
        #: When its last record came to the broker, in seconds since 1970.
        self.arrived = records[-1].timestamp()[1] / 1e3 if records else 0.0
        #: What to produce; None until the records are scored.
        self.outputs: Sequence[Output] | None = None
        #: What the app counted of it, for its seal (see `ecluse.transport.delivery.Seal`); kept until that is produced.
        self.tally: object = None
        self.confirmed = False
        #: How many chunks its ledger took in before it: who must not miss one can tell.
        self.number = ledger.count


class Ledger:
    """The chunks of one partition in the hands of one owner."""

    __slots__ = (
        "_end",
        "_fetched",
        "_produced",
        "arrived",
        "committable",
        "committed",
        "count",
        "partition",
        "position",
        "start",
        "taken",
    )

    def __init__(self, partition: TP, start: int = -1) -> None:
        """Of a partition that is read from offset `start` on; negative where that is not known."""
        self.partition = partition
        #: The offset from which it is read; None where that is not known: the group's, or the first that is held.
        self.start = start if start >= 0 else None
        self._fetched: deque[Chunk] = deque()
        self._produced: deque[Chunk] = deque()
        self._end: int | None = None
        #: How many chunks were taken in.
        self.count = 0
        #: The offset after the last record taken in; None before the first.
        self.position: int | None = self.start
        #: The same without the gap that may lie behind that record.
        self.taken: int | None = self.start
        #: The offset after the confirmed prefix; None before the first chunk is confirmed.
        self.committable: int | None = None
        #: The last offset that the broker took, or the first one read.
        self.committed: int | None = self.start
        #: When the last confirmed record came to the broker, in seconds since 1970.
        self.arrived = 0.0

    def __len__(self) -> int:
        """How many chunks are in hand."""
        return len(self._fetched) + len(self._produced)

    def again(self) -> "Ledger":
        """A new ledger of the partition, with nothing in hand, that knows what is committed."""
        ledger = Ledger(self.partition)
        ledger.committed = self.committed
        return ledger

    def add(self, records: Sequence[Record], offset: int, next_offset: int, fetched_at: float) -> Chunk:
        """Take in the next records. Offsets only grow; gaps (compaction, transaction markers) are covered.

        Raises:
            ValueError: the records lie before the ledger's position.
        """
        if self.position is not None and offset < self.position:
            raise ValueError(f"{self.partition}: offset {offset} lies before the position {self.position}")
        chunk = Chunk(self, records, offset, next_offset, fetched_at)
        self._fetched.append(chunk)
        self.count += 1
        self.position = self.taken = next_offset
        if self.committed is None:
            self.committed = offset
        return chunk

    def take_scored(self) -> Iterator[Chunk]:
        """The chunks that may be produced now, in order; each counts as produced once it is taken."""
        while self._fetched and self._fetched[0].outputs is not None:
            chunk = self._fetched.popleft()
            self._produced.append(chunk)
            yield chunk

    def confirm(self, chunk: Chunk) -> None:
        """The broker has all that came of a chunk: move `committable` behind the confirmed chunks at the head."""
        chunk.confirmed = True
        while self._produced and self._produced[0].confirmed:
            head = self._produced.popleft()
            self.committable, self.arrived = head.next_offset, head.arrived
        self._pass_gap()

    def confirm_transaction(self, offset: int) -> None:
        """The broker took all that was produced, and with it the offset `to_send` as it stood then."""
        for chunk in self.produced:
            self.confirm(chunk)
        self.committed = offset

    def reached_end(self, offset: int) -> None:
        """Nothing more is on the broker below `offset`, whatever gaps (markers of a producer's transactions) lie before it."""
        self._end = offset
        self._pass_gap()

    def end_after(self, next_offset: int) -> int:
        """The end of the gap behind `next_offset` where nothing lies between the two, else `next_offset`. From any thread."""
        end = self._end  # first: what lies before this end was taken in before it was told
        return end if end is not None and end > next_offset and self.position == next_offset else next_offset

    def _pass_gap(self) -> None:
        if self._end is not None and not self and (self.position or 0) <= self._end:
            self.position = self.committable = self._end

    @property
    def produced(self) -> tuple[Chunk, ...]:
        """The chunks that are produced and wait for the broker, in order."""
        return tuple(self._produced)

    @property
    def unconfirmed(self) -> int:
        """How many produced chunks wait for the broker."""
        return len(self._produced)

    @property
    def unconfirmed_span(self) -> int:
        """How many offsets the produced chunks cover that wait for the broker."""
        return self._produced[-1].next_offset - self._produced[0].offset if self._produced else 0

    @property
    def to_commit(self) -> int | None:
        """The offset after the confirmed prefix, where the broker has not taken it yet."""
        return self.committable if self.committable != self.committed else None  # None before the first is confirmed

    @property
    def to_send(self) -> int | None:
        """The offset after all that was produced, confirmed or not: what belongs into one transaction with it."""
        return self._produced[-1].next_offset if self._produced else self.to_commit

    @property
    def oldest_unscored(self) -> float | None:
        """When the oldest chunk without outputs was fetched, on the monotonic clock."""
        return next((chunk.fetched_at for chunk in self._fetched if chunk.outputs is None), None)

"""The proof that the training store holds every record of its topics once: by partition, the topic's records against the rows.

A record that the store must not hold is accounted for otherwise: a rejected label by its dead letter, what was forgotten by the
table `forgotten`. A window of offsets is compared at a time, so that memory does not grow with the topics.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import polars as pl
from confluent_kafka import Consumer, Message
from numpy.typing import NDArray

from console.reading import Span, batches, headers_of, reader, spans
from ecluse.contract.headers import read_error_headers
from ecluse.contract.tables import FORGOTTEN, LABELS, PREDICTIONS, Table, bypass_table, events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore

#: Offsets that are compared at a time.
WINDOW = 1_000_000
_SAMPLE = 10
#: Offsets beyond the stored ones that are looked at one by one.
_COUNTED = 1000
Offsets = NDArray[np.int64]
_NONE: Offsets = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PartitionOfTable:
    """What became of the records from offset `first` to `end` (excluded) of one partition of `topic`.

    `rows` are the rows of these records in `table`; `doubled` are those beyond the first of a record. `rejected` records are
    dead letters, `forgotten` ones were removed on purpose. `missing` records are nowhere (those among them that were deleted
    from the topic before they were stored); `missing_offsets` are the first of them. `stray` rows stand for an offset at which
    there is no record. `waiting` records lie beyond `end`: not stored yet.
    """

    topic: str
    table: str
    partition: int
    first: int
    end: int
    records: int
    rows: int
    rejected: int
    forgotten: int
    missing: int
    doubled: int
    stray: int
    waiting: int
    missing_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """The audit of all tables."""

    url: str
    partitions: tuple[PartitionOfTable, ...]
    seconds: float

    def total(self, column: str) -> int:
        """A count over all partitions."""
        return sum(getattr(row, column) for row in self.partitions)

    @property
    def holds(self) -> bool:
        """Whether every record is where it must be, once."""
        return not any(self.total(column) for column in ("missing", "doubled", "stray"))

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        records, missing, doubled, stray = (self.total(name) for name in ("records", "missing", "doubled", "stray"))
        parts = []
        if missing:
            parts.append(f"{missing:,} of {records:,} records have no row in the training store.")
        if doubled:
            parts.append(f"{doubled:,} rows of the training store are repetitions.")
        if stray:
            parts.append(f"{stray:,} rows of the training store stand for no record.")
        if not parts:
            parts.append(
                f"Each of {records:,} records is accounted for in the training store once."
                if records
                else "There was no record to compare with the training store."
            )
        for column, what in (("rejected", "are rejected labels"), ("forgotten", "were forgotten")):
            if count := self.total(column):
                parts.append(f"{count:,} of them {what}, and have no row on purpose.")
        if waiting := self.total("waiting"):
            parts.append(f"{waiting:,} wait to be stored.")
        return " ".join(parts)


def audit_store(settings: Settings, *, everything: bool = False, since: float | None = None) -> StoreReport:
    """Compare each topic that the store keeps with its table, from the first record held to where the table has come.

    Args:
        everything: to the end of the topics; what waits to be stored then counts as missing.
        since: leave out records that came before, in seconds since 1970.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: a topic is missing.
        BrokerError: records were deleted while they were read.
        StoreError: the store cannot be read.
    """
    began, names, fields = time.monotonic(), settings.names, settings.stored_fields
    store = TrainingStore(settings)
    topics: list[tuple[str, Table, str | None]] = [
        (names.events, events_table(fields), None),
        (names.predictions, PREDICTIONS, None),
        (names.bypass, bypass_table(fields), None),
        *((names.labels(origin), LABELS, origin) for origin in settings.labels.origins),
    ]
    # First how far the tables have come: what lies before that has its row, or its dead letter, by now.
    come = {table.name: store.offsets(table) for _, table, _ in topics}
    rows = []
    with closing(reader(settings)) as consumer:
        letters = _letters(settings, consumer)
        for topic, table, origin in topics:
            source = _Rows(store, table, origin)
            for partition, (low, high) in spans(settings, consumer, topic, since).items():
                stored = come[table.name].get(f"{topic}/{partition}")
                span = low, high if everything else min(high, max(low, stored or 0))
                found = _Compared(source, partition, letters.get((topic, partition), _NONE))
                if since is None and stored is not None:
                    found.lost(stored, low)
                found.before(low if since is None else 0)
                for offsets, window in _windows(settings, consumer, topic, partition, span):
                    found.window(offsets, window)
                waiting = _waiting(settings, consumer, topic, partition, (span[1], high))
                rows.append(found.row(topic, span, waiting))
    return StoreReport(store.url, tuple(rows), time.monotonic() - began)


class _Rows:
    """The rows of a table, by their offsets."""

    def __init__(self, store: TrainingStore, table: Table, origin: str | None) -> None:
        self.table, self._store = table, store
        same_origin = pl.lit(True) if origin is None else pl.col("origin") == origin
        self._rows = store.scan(table).filter(same_origin).select("partition", "offset")
        gone = (pl.col("kind") == "row") & (pl.col("table_name") == table.name) & same_origin
        self._forgotten = store.scan(FORGOTTEN).filter(gone).select("partition", "offset")

    def within(self, partition: int, window: Span) -> Offsets:
        """The rows' offsets within a window, in order, repeated ones included."""
        return self._sorted(self._rows, partition, window)

    def forgotten(self, partition: int, window: Span) -> Offsets:
        """The offsets within a window of which the rows were removed on purpose."""
        return self._sorted(self._forgotten, partition, window)

    def first(self, partition: int) -> int | None:
        """The lowest offset that has a row."""
        lowest = self._rows.filter(pl.col("partition") == partition).select(pl.col("offset").min())
        with self._store.reading(self.table):
            found: int | None = lowest.collect().item()
        return found

    def _sorted(self, frame: pl.LazyFrame, partition: int, window: Span) -> Offsets:
        offset = pl.col("offset")
        inside = frame.filter((pl.col("partition") == partition) & (offset >= window[0]) & (offset < window[1]))
        with self._store.reading(self.table):
            return np.sort(inside.select("offset").collect()["offset"].to_numpy())


class _Compared:
    """The counts of one partition, window by window."""

    def __init__(self, source: _Rows, partition: int, letters: Offsets) -> None:
        self._source, self._partition, self._letters = source, partition, letters
        self._records = self._rows = self._rejected = self._forgotten = 0
        self._missing = self._doubled = self._stray = 0
        self._sample: list[int] = []

    def lost(self, stored: int, low: int) -> None:
        """What was deleted before it was stored is missing too."""
        self._missing += max(0, low - stored)
        self._sample += range(stored, min(low, stored + _SAMPLE))

    def before(self, low: int) -> None:
        """Of records that the topic does not hold any more, only repetitions can be told."""
        first = self._source.first(self._partition)
        for start in range(low if first is None else first, low, WINDOW):
            rows = self._source.within(self._partition, (start, min(start + WINDOW, low)))
            self._doubled += len(rows) - len(np.unique(rows))

    def window(self, records: Offsets, window: Span) -> None:
        """Compare the records' offsets within a window with the rows."""
        rows = self._source.within(self._partition, window)
        once = np.unique(rows)
        letters = self._letters[np.isin(self._letters, records)]
        gone = np.setdiff1d(np.intersect1d(self._source.forgotten(self._partition, window), records), once)
        absent = np.setdiff1d(records, np.concatenate([once, letters, gone]))
        self._records += len(records)
        self._rows += len(rows)
        self._rejected += len(letters)
        self._forgotten += len(gone)
        self._missing += len(absent)
        self._doubled += len(rows) - len(once) + len(np.intersect1d(once, letters))
        self._stray += len(np.setdiff1d(once, records))
        self._sample += absent[: _SAMPLE - len(self._sample)].tolist()

    def row(self, topic: str, span: Span, waiting: int) -> PartitionOfTable:
        """All counts."""
        return PartitionOfTable(
            topic=topic,
            table=self._source.table.name,
            partition=self._partition,
            first=span[0],
            end=span[1],
            records=self._records,
            rows=self._rows,
            rejected=self._rejected,
            forgotten=self._forgotten,
            missing=self._missing,
            doubled=self._doubled,
            stray=self._stray,
            waiting=waiting,
            missing_offsets=tuple(self._sample),
        )


def _windows(
    settings: Settings, consumer: Consumer, topic: str, partition: int, span: Span
) -> Iterator[tuple[Offsets, Span]]:
    """The offsets of a span's records in pieces, each with the window of offsets that it fills."""
    start, end = span
    found: list[int] = []
    for batch in batches(settings, consumer, topic, {partition: span}):
        found += [message.offset() or 0 for message in batch]
        if len(found) >= WINDOW:
            yield np.array(found, np.int64), (start, found[-1] + 1)
            start, found = found[-1] + 1, []
    if start < end:
        yield np.array(found, np.int64), (start, end)


def _waiting(settings: Settings, consumer: Consumer, topic: str, partition: int, span: Span) -> int:
    """How many records a span holds: its offsets; a short one may hold markers of transactions alone, and is read."""
    if span[1] - span[0] > _COUNTED:
        return span[1] - span[0]
    return sum(map(len, batches(settings, consumer, topic, {partition: span})))


def _letters(settings: Settings, consumer: Consumer) -> dict[tuple[str, int], Offsets]:
    """The records that are dead letters of this store's topics, each once: by topic and partition, in order."""
    names = settings.names
    wanted = {names.labels(origin) for origin in settings.labels.origins}
    found: dict[tuple[str, int], list[int]] = {}
    for batch in batches(settings, consumer, names.dead_letters, spans(settings, consumer, names.dead_letters)):
        for message in batch:
            if (place := _place(message)) is not None and place[0] in wanted:
                found.setdefault(place[:2], []).append(place[2])
    return {place: np.unique(np.array(offsets, np.int64)) for place, offsets in found.items()}


def _place(message: Message) -> tuple[str, int, int] | None:
    said = read_error_headers(headers_of(message))
    topic, partition, offset = (said.get(name, "") for name in ("topic", "partition", "offset"))
    return (topic, int(partition), int(offset)) if partition.isdecimal() and offset.isdecimal() else None

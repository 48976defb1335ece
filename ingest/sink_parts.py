"""What the sink has in hand: by partition, whole chunks as rows, from where the table ends to where a commit would bring it."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import polars as pl
from faust.types import TP

from ecluse.contract.records import Source
from ecluse.contract.tables import Table
from ecluse.errors import RecordError
from ecluse.settings import Settings
from ecluse.transport.hand import size_of
from ecluse.transport.ledger import Chunk, Ledger, Record
from ingest.rows import BypassRows, EventRows, LabelRows, PredictionRows, Rejected, RevisionRows

#: Records of one partition that become rows at once: enough that columns are quick, and little enough for the event loop.
ROWS_AT_ONCE = 1000

Rows = Callable[[int, Sequence[Record]], pl.DataFrame]
#: A record that no table takes, where it stood, and why.
Letter = tuple[Record, Source, RecordError]


@dataclass(frozen=True, slots=True)
class Feed:
    """A topic, and the table that its records become rows of. `rows` may refuse some, and then gives them beside the others."""

    topic: str
    table: Table
    rows: Rows | LabelRows


def feeds_of(settings: Settings) -> dict[str, Feed]:
    """Every topic that the store keeps, by its name."""
    names = settings.names
    events, predictions, bypass = EventRows(settings), PredictionRows(settings), BypassRows(settings)
    revisions = RevisionRows(settings)
    feeds = [
        Feed(names.events, events.table, events),
        Feed(names.predictions, predictions.table, predictions),
        Feed(names.bypass, bypass.table, bypass),
        Feed(names.models, revisions.table, revisions),
    ]
    for origin in settings.labels.origins:
        labels = LabelRows(settings, origin)
        feeds.append(Feed(names.labels(origin), labels.table, labels))
    return {feed.topic: feed for feed in feeds}


def app_id(partition: TP) -> str:
    """By what name a table knows how far it has come in a partition."""
    return f"{partition.topic}/{partition.partition}"


class Part:
    """What is in hand of one partition in the hands of one owner. `start` is how far the table has come in it."""

    def __init__(self, feed: Feed, ledger: Ledger) -> None:
        self.feed, self.ledger = feed, ledger
        self.start = ledger.start
        #: Its rows do not count any more: what comes before its ledger is replaced is given back.
        self.dropped = False
        self._taken_in = 0
        self._clear()

    def _clear(self) -> None:
        self.chunks: list[Chunk] = []
        self.frames: list[pl.DataFrame] = []
        self.letters: list[Letter] = []
        self.records = self.bytes = 0
        self.since = 0.0
        self._raw: list[Record] = []

    def add(self, chunk: Chunk) -> None:
        """Take in the next chunk.

        Raises:
            RuntimeError: it is not the next: a commit would pass over the one that is missing.
        """
        if chunk.number != self._taken_in:
            raise RuntimeError(f"{self.ledger.partition}: chunk {chunk.number} came where {self._taken_in} is the next")
        self._taken_in += 1
        if not self.chunks:
            self.since = time.monotonic()
        self.chunks.append(chunk)
        self.records += len(chunk.records)
        self.bytes += size_of(chunk.records)
        self._raw += chunk.records
        chunk.records = ()
        if len(self._raw) >= ROWS_AT_ONCE:
            self.convert()

    def convert(self) -> None:
        """Make rows of the records that are none yet."""
        if not self._raw:
            return
        number = self.ledger.partition.partition
        made: pl.DataFrame | tuple[pl.DataFrame, Rejected] = self.feed.rows(number, self._raw)
        self._raw = []
        if isinstance(made, tuple):
            made, rejected = made
            topic = self.feed.topic
            self.letters += [(record, Source(topic, number, record.offset()), error) for record, error in rejected]
        self.frames.append(made)

    @property
    def advance(self) -> tuple[int | None, int] | None:
        """From where to where the table comes in this partition by what is in hand; None where it stays.

        Gaps behind it (transaction markers, what compaction took away) are passed, so that the table never stands at a record
        that its topic will not hold for ever.
        """
        position = self.ledger.position  # first: what lies before it is in hand or in the table
        if self.chunks:
            return self.start, self.ledger.end_after(self.chunks[-1].next_offset)
        if len(self.ledger) or position is None or position == self.start:
            return None
        return self.start, position

    def drop(self) -> list[Chunk]:
        """Forget what is in hand, for good; returns the chunks, which are to be given back."""
        chunks = self.chunks
        self._clear()
        self.dropped = True
        return chunks

    def take(self) -> "Taken":
        """Everything in hand, as what is to be committed; what comes from now on is of the next commit."""
        self.convert()
        taken = Taken(self, self.advance, self.chunks, self.frames, self.letters)
        self._clear()
        return taken


@dataclass(frozen=True, slots=True)
class Taken:
    """What one commit takes of a partition."""

    part: Part
    advance: tuple[int | None, int] | None
    chunks: list[Chunk]
    frames: list[pl.DataFrame]
    letters: list[Letter]


@dataclass(frozen=True, slots=True)
class Batch:
    """One commit: rows of one table, and how far its topics come by it."""

    table: Table
    taken: list[Taken] = field(default_factory=list)

    @property
    def frames(self) -> list[pl.DataFrame]:
        """The rows, in pieces."""
        return [frame for taken in self.taken for frame in taken.frames if frame.height]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(frame.height for frame in self.frames)

    @property
    def letters(self) -> list[Letter]:
        """The records that no table takes."""
        return [letter for taken in self.taken for letter in taken.letters]

    @property
    def advances(self) -> dict[str, tuple[int | None, int]]:
        """For each partition, named as the table names it, its beginning and its end."""
        return {app_id(taken.part.ledger.partition): taken.advance for taken in self.taken if taken.advance is not None}


class Parts:
    """The parts of all partitions that this sink holds. Used by the event loop alone.

    Args:
        feeds: by topic.
        held: the ledgers of the partitions that are held now.
    """

    def __init__(self, feeds: dict[str, Feed], held: Callable[[], Collection[Ledger]]) -> None:
        self._feeds, self._held = feeds, held
        self._parts: dict[TP, Part] = {}

    def add(self, chunk: Chunk) -> list[Chunk]:
        """Take in a chunk; returns those that are to be given back: this one where it is not wanted, and those of a ledger that
        it replaces."""
        lost: list[Chunk] = []
        part = self._parts.get(chunk.ledger.partition)
        if part is not None and part.ledger is not chunk.ledger:
            lost = self._forget([part])
        part = self._of(chunk.ledger)
        if part.dropped:
            return [*lost, chunk]
        part.add(chunk)
        return lost

    def _of(self, ledger: Ledger) -> Part:
        if ledger.partition not in self._parts:
            self._parts[ledger.partition] = Part(self._feeds[ledger.partition.topic], ledger)
        return self._parts[ledger.partition]

    def drop_lost(self) -> list[Chunk]:
        """Forget the partitions that are not ours as they were; returns their chunks, which are to be given back."""
        held = {id(ledger) for ledger in self._held()}
        return self._forget([part for part in self._parts.values() if id(part.ledger) not in held])

    def _forget(self, parts: Iterable[Part]) -> list[Chunk]:
        chunks = []
        for part in parts:
            del self._parts[part.ledger.partition]
            chunks += part.drop()
        return chunks

    def drop(self, table: Table) -> list[Chunk]:
        """Forget what is in hand of a table's partitions, and take in no more of them until they are read again; returns the
        chunks, which are to be given back."""
        return [chunk for part in self.of(table) for chunk in part.drop()]

    def of(self, table: Table) -> list[Part]:
        """The parts of a table's partitions that are held as they were, those with nothing in hand too."""
        ledgers = [held for held in self._held() if self._feeds[held.partition.topic].table.name == table.name]
        parts = [(self._of(ledger), ledger) for ledger in ledgers]
        return [part for part, ledger in parts if part.ledger is ledger and not part.dropped]

    def waiting(self) -> dict[str, list[Part]]:
        """The parts with something in hand, by their table's name."""
        found: dict[str, list[Part]] = {}
        for part in self._parts.values():
            if part.chunks:
                found.setdefault(part.feed.table.name, []).append(part)
        return found

    @property
    def records(self) -> int:
        """How many records are in hand and in no commit."""
        return sum(part.records for part in self._parts.values())

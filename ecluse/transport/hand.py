"""What the event loop has in hand: chunks that were handed to it and not given back, and whether it may get more."""

from collections.abc import Iterable
from dataclasses import dataclass

from ecluse.transport.ledger import Chunk, Record

#: A chunk is bounded by records, by bytes, and by the time that scoring it takes, so that nothing holds the loop for long.
CHUNK_RECORDS = 2000
CHUNK_SECONDS = 0.02
#: Until it is known how long scoring takes; a model may need milliseconds a record.
FIRST_CHUNK_RECORDS = 100
#: Chunks handed to the event loop and not yet scored; with more, nothing is fetched.
UNSCORED_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the loop may have in hand. The defaults are a worker's, which gives each chunk back at once."""

    chunk_records: int = FIRST_CHUNK_RECORDS
    """How many records a chunk has at most, to begin with (see `Owner.pace`)."""
    chunks: int | None = UNSCORED_CHUNKS
    records: int | None = None
    bytes: int | None = None
    """Of the records (see `size_of`), kept or not, until their chunk is given back."""
    wait: float = 0.002
    """How long the thread waits for a chunk to come back before it fetches more, in seconds, while any is out."""


SCORING = Limits()


def paced(chunk_records: int, seconds: float, records: int) -> int:
    """How many records a chunk shall have, so that it stays within `CHUNK_SECONDS` of work, after so many took so long."""
    if seconds < CHUNK_SECONDS and records < chunk_records // 2:
        return chunk_records  # a small chunk's time is mostly the call's own, and tells nothing of large ones
    fitting = CHUNK_SECONDS * records / max(seconds, 1e-6)
    return min(CHUNK_RECORDS, max(1, int(0.8 * chunk_records + 0.2 * fitting)))


def size_of(records: Iterable[Record]) -> int:
    """The bytes of records' values, keys and headers: each may be what makes one large."""
    size = 0
    for record in records:
        size += len(record) + len(record.key() or b"")
        for name, content in record.headers() or ():
            size += len(name) + len(content or b"")
    return size


class Hand:
    """The chunks in hand. Used by the owning thread alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._chunks: dict[Chunk, tuple[int, int]] = {}
        self._records = self._bytes = 0

    def __len__(self) -> int:
        """How many chunks there are."""
        return len(self._chunks)

    def add(self, chunk: Chunk) -> None:
        """A chunk is handed to the loop."""
        records = len(chunk.records)
        size = size_of(chunk.records) if self._limits.bytes is not None else 0
        self._chunks[chunk] = records, size
        self._records += records
        self._bytes += size

    def discard(self, chunk: Chunk) -> None:
        """A chunk came back."""
        records, size = self._chunks.pop(chunk, (0, 0))
        self._records -= records
        self._bytes -= size

    @property
    def has_room(self) -> bool:
        """Whether more may be fetched. One fetch may go beyond a limit, by what it brings at once."""
        limits = self._limits
        return (
            (limits.chunks is None or len(self._chunks) < limits.chunks)
            and (limits.records is None or self._records < limits.records)
            and (limits.bytes is None or self._bytes < limits.bytes)
        )

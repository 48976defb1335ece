"""What the owning thread tells of itself; written by it alone, read by anyone."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import TopicPartition
from faust.types import TP

from ecluse.transport.ledger import Ledger


@dataclass(slots=True)
class Progress:
    """Counts and ages. Times are on the monotonic clock, in seconds."""

    beat: float = field(default_factory=time.monotonic)
    assigned: bool = False
    rebalances: int = 0
    commits: int = 0
    commit_failures: int = 0
    aborted: int = 0
    committed_at: float = field(default_factory=time.monotonic)
    moved_at: float = field(default_factory=time.monotonic)  # the last commit, or the last look at which nothing waited
    #: Events that are not confirmed, and for how long the oldest of them has been at the broker.
    lag: dict[TP, int] = field(default_factory=dict)
    lag_seconds: dict[TP, float] = field(default_factory=dict)
    #: From the last rebalance to the partition's next commit, where it had events that waited.
    pauses: dict[TP, float] = field(default_factory=dict)
    partitions: int = 0
    open_chunks: int = 0
    oldest_unscored: float | None = None
    _clear_at: dict[TP, float] = field(default_factory=dict)
    _silent_since: dict[TP, float] = field(default_factory=dict)

    def look(self, ledgers: Mapping[TP, Ledger], end_of: Callable[[TP], int]) -> None:
        """Tell how things stand.

        Args:
            ledgers: of the partitions held.
            end_of: the offset after the last committed record of a partition; negative where it is not known.
        """
        for partition, ledger in ledgers.items():
            done = ledger.committed if ledger.committable is None else ledger.committable
            end = end_of(partition)
            if end >= 0 and done is not None:
                self._note_lag(partition, max(0, end - done), ledger.arrived)
        if not any(self.lag.values()) and all(ledger.to_commit is None for ledger in ledgers.values()):
            self.moved_at = time.monotonic()
        self.partitions = len(ledgers)
        self.open_chunks = sum(map(len, ledgers.values()))
        self.oldest_unscored = oldest_unscored(ledgers.values())

    def _note_lag(self, partition: TP, lag: int, arrived: float) -> None:
        now = time.time()
        if lag == 0:
            self._clear_at[partition] = now
            self._silent_since.pop(partition, None)
        # What waits came after the last record that is confirmed, and after the last look at which nothing waited.
        since = max(arrived, self._clear_at.setdefault(partition, now))
        self.lag[partition], self.lag_seconds[partition] = lag, max(0.0, now - since) if lag else 0.0

    def rebalanced(self, held: Iterable[TP]) -> None:
        """A rebalance touched this worker: the pause of each partition that it holds now begins."""
        now = time.monotonic()
        for partition in held:
            self._silent_since.setdefault(partition, now)

    def committed(self, partitions: Iterable[TP]) -> None:
        """The broker took an offset of each of these partitions."""
        self.commits += 1
        self.committed_at = self.moved_at = time.monotonic()
        if self._silent_since:
            for partition in partitions:
                if (since := self._silent_since.pop(partition, None)) is not None:
                    self.pauses[partition] = self.committed_at - since

    def forget(self, partition: TP) -> None:
        """The partition is not this worker's any more."""
        for told in (self.lag, self.lag_seconds, self.pauses, self._clear_at, self._silent_since):
            told.pop(partition, None)


def oldest_unscored(ledgers: Iterable[Ledger]) -> float | None:
    """When the oldest chunk that waits for its score was fetched, on the monotonic clock."""
    return min((age for ledger in ledgers if (age := ledger.oldest_unscored) is not None), default=None)


def named(places: Collection[TopicPartition]) -> str:
    """Partitions for a log: their numbers, behind the topic's name where there are several topics."""
    numbers: dict[str, list[int]] = {}
    for place in places:
        numbers.setdefault(place.topic, []).append(place.partition)
    if len(numbers) < 2:
        return str(sorted(place.partition for place in places))
    return ", ".join(f"{topic} {sorted(those)}" for topic, those in sorted(numbers.items()))

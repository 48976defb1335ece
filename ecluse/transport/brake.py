"""Which partitions are not read for the moment, and why.

New ones wait until the app admits them; where confirmations hang, their partition waits; where the loop stands still, all
wait, so that rebalances are served meanwhile. Pausing throws away what librdkafka has prefetched, so a partition that is
only busy is not paused. Used by the owning thread; only what `hold` returns may be called from any thread.
"""

import queue
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import Consumer, TopicPartition
from faust.types import TP

from ecluse.transport.ledger import Ledger

#: Produced events that wait for the broker, over all partitions; a partition with more than its share is paused.
UNCONFIRMED_EVENTS = 128_000
#: How long the loop may hold fetching back before partitions are paused.
STALL_SECONDS = 1.0


class Brake:
    """Pauses and resumes the partitions of one consumer."""

    def __init__(self) -> None:
        #: The partitions that are not read now.
        self.paused: set[TP] = set()
        self._held: dict[TP, object] = {}
        self._admitted: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._stalled_since: float | None = None

    def hold(self, consumer: Consumer, partitions: Iterable[TP]) -> Callable[[], None]:
        """Do not read partitions that were just assigned, until what is returned is called; by then they may be others'."""
        assignment, partitions = object(), set(partitions)
        consumer.pause([TopicPartition(*partition) for partition in partitions])
        self.paused |= partitions
        self._held |= dict.fromkeys(partitions, assignment)
        return lambda: self._admitted.put(assignment)

    def forget(self, partition: TP) -> None:
        """It is not ours any more."""
        self.paused.discard(partition)
        self._held.pop(partition, None)

    def stalled(self, now: float) -> bool:
        """Whether nothing could be fetched for so long that everything is paused."""
        return self._stalled_since is not None and now - self._stalled_since > STALL_SECONDS

    def apply(self, consumer: Consumer, ledgers: Mapping[TP, Ledger], now: float, *, may_fetch: bool) -> bool:
        """Pause and resume what has to be; whether something was resumed."""
        while not self._admitted.empty():
            admitted = self._admitted.get_nowait()
            self._held = {partition: held for partition, held in self._held.items() if held is not admitted}
        if may_fetch:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        stalled, share = self.stalled(now), UNCONFIRMED_EVENTS // max(1, len(ledgers))
        wanted = {
            partition
            for partition, ledger in ledgers.items()
            if stalled
            or partition in self._held
            or ledger.unconfirmed_span > (share // 2 if partition in self.paused else share)
        }
        if pause := wanted - self.paused:
            consumer.pause([TopicPartition(*partition) for partition in pause])
        if resume := (self.paused & ledgers.keys()) - wanted:
            consumer.resume([TopicPartition(*partition) for partition in resume])
        self.paused = wanted
        return bool(resume)

"""Producing a chunk's records, knowing that the broker has them, and committing the offsets behind them.

`Delivery` is what the owning thread asks for; here at least once, in `ecluse.transport.transactions` exactly once.

At least once: all of it runs in the thread that owns the consumer. A chunk is confirmed when the last record that it
produced to each topic is reported: the producer is idempotent and without gaps (`ecluse.kafka.producer_config`), so a record
is only reported when all before it in its partition are there. Any failed report ends the worker; its lag waits for the next.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from faust.types import TP

from ecluse.errors import DeliveryError
from ecluse.kafka import Config
from ecluse.transport.ledger import Chunk, Ledger, Output

logger = logging.getLogger(__name__)

Report = Callable[[KafkaError | None, Message], None]
#: Makes what is told of chunks whose offsets are committed together, in the owning thread; it goes to partition 0 of its
#: topics. Exactly once it is in the transaction of the chunks, at least once it is produced after their commit.
Seal = Callable[[Sequence[Chunk]], Sequence[Output]]

#: Records, and bytes of values, that wait for the broker: with more, no chunk is produced. A chunk's own fit beside them.
QUEUED_RECORDS = 100_000
QUEUED_BYTES = 128 * 1024 * 1024
#: At least once, so many chunks wait for their commit before what was counted of them is dropped.
UNTOLD_CHUNKS = 10_000


def nothing(chunks: Sequence[Chunk]) -> Sequence[Output]:
    """The seal of an app that tells nothing."""
    del chunks
    return ()


class Delivery(Protocol):
    """How what comes of chunks gets to the broker, and how the offsets behind it are committed."""

    #: Transactions aborted so far.
    aborted: int

    def ready(self) -> None:
        """Prepare; called before the worker joins its group and before it reads on after an abort, until it succeeds."""
        ...

    def full(self) -> bool:
        """Whether nothing more may be produced now."""
        ...

    def produce_scored(self, ledger: Ledger) -> None:
        """Produce the scored chunks at the head of a ledger, as far as there is room."""
        ...

    def serve(self, wait: float = 0.0) -> None:
        """Let the producer work, for `wait` seconds where there is nothing else to do."""
        ...

    def commit_when_due(self, consumer: Consumer, ledgers: Collection[Ledger], *, busy: bool) -> Collection[TP]:
        """Commit where it is time; the partitions of which the broker has taken offsets already."""
        ...

    def finish(
        self, consumer: Consumer, ledgers: Collection[Ledger], leaving: Iterable[Ledger], patience: float
    ) -> None:
        """Commit what is produced for the ledgers that leave, within `patience` seconds."""
        ...

    def give_up(self) -> None:
        """Partitions were lost: nothing that is not committed yet may count for them any more."""
        ...


class AtLeastOnce:
    """The delivery of one worker, at least once.

    Args:
        config: the producer's, idempotent and without gaps.
        commit_interval: how often offsets are committed, in seconds.
        beat: called wherever it waits, so that the watchdog sees progress.
        seal: see `Seal`.
    """

    aborted = 0

    def __init__(self, config: Config, commit_interval: float, beat: Callable[[], None], seal: Seal = nothing) -> None:
        limits = {
            "queue.buffering.max.messages": 2 * QUEUED_RECORDS,
            "queue.buffering.max.kbytes": 4 * QUEUED_BYTES // 1024,
            # Chunks are batches already: a longer wait adds to every prediction's latency and nothing to the rate.
            "linger.ms": 1,
        }
        self._producer = Producer(config | limits)
        self._interval = commit_interval
        self._next_commit = 0.0
        self._beat = beat
        self._seal = seal
        self._untold: list[Chunk] = []
        self._failure: DeliveryError | None = None
        self._queued_bytes = 0

    def ready(self) -> None:
        """Nothing is to be prepared."""

    def full(self) -> bool:
        """Whether nothing more is produced until the broker confirms some of what waits."""
        return len(self._producer) >= QUEUED_RECORDS or self._queued_bytes >= QUEUED_BYTES

    def produce_scored(self, ledger: Ledger) -> None:
        """Produce the scored chunks at the head of a ledger, as far as the producer has room.

        Raises:
            DeliveryError: an earlier record was not delivered.
        """
        if self.full():
            return
        for chunk in ledger.take_scored():
            self._produce(chunk)
            if self.full():
                return

    def _produce(self, chunk: Chunk) -> None:
        outputs, partition = chunk.outputs or (), chunk.ledger.partition.partition
        lasts = set({output.topic: i for i, output in enumerate(outputs)}.values())
        size = sum(len(output.value or b"") for output in outputs)
        self._queued_bytes += size
        report = self._report_for(chunk, len(lasts), size)
        for i, output in enumerate(outputs):
            confirmed = report if i in lasts else None
            self._producer.produce(output.topic, output.value, output.key, partition, confirmed, headers=output.headers)
        chunk.records = chunk.outputs = ()
        if chunk.tally is not None:
            self._untold.append(chunk)
        if not lasts:
            chunk.ledger.confirm(chunk)

    def _report_for(self, chunk: Chunk, reports: int, size: int) -> Report:
        def report(error: KafkaError | None, message: Message) -> None:
            nonlocal reports
            if error is not None:
                self._failure = DeliveryError(str(message.topic()), error.str())
                return
            reports -= 1
            if reports == 0:
                self._queued_bytes -= size
                chunk.ledger.confirm(chunk)

        return report

    def serve(self, wait: float = 0.0) -> None:
        """Take in delivery reports, waiting for the first up to `wait` seconds.

        Raises:
            DeliveryError: a record was not delivered.
        """
        self._beat()
        self._producer.poll(wait)
        if self._failure is not None:
            raise self._failure

    def commit_when_due(self, consumer: Consumer, ledgers: Collection[Ledger], *, busy: bool) -> Collection[TP]:
        """Commit the confirmed prefix of each ledger every interval. The answer comes to the consumer's `on_commit`."""
        del busy
        now = time.monotonic()
        if now >= self._next_commit:
            self._next_commit = now + self._interval
            self._tell(ledgers)
            self._commit(consumer, ledgers, wait=False)
        return ()

    def finish(
        self, consumer: Consumer, ledgers: Collection[Ledger], leaving: Iterable[Ledger], patience: float
    ) -> None:
        """Wait for what was produced to be confirmed, then commit. What is late goes to the next owner, twice."""
        leaving, deadline = list(leaving), time.monotonic() + patience
        while any(ledger.unconfirmed for ledger in leaving) and time.monotonic() < deadline:
            self.serve(0.01)
        self._commit(consumer, leaving, wait=True)
        self._tell(ledgers)
        while len(self._producer) and time.monotonic() < deadline:
            self.serve(0.01)

    def give_up(self) -> None:
        """What is produced is produced: the next owner will produce it again."""

    def _tell(self, ledgers: Collection[Ledger]) -> None:
        """Produce the seal of the chunks whose offsets the broker has taken. Those of partitions that were lost never are."""
        waiting, told = self._untold, []
        self._untold = []
        for chunk in waiting:
            committed = chunk.ledger.committed
            if committed is not None and chunk.next_offset <= committed:
                told.append(chunk)
            elif chunk.ledger in ledgers:
                self._untold.append(chunk)
        if len(self._untold) > UNTOLD_CHUNKS:
            logger.warning("no commit succeeds: what was counted of %d chunks is dropped", len(self._untold))
            self._untold = []
        for output in self._seal(told):
            self._producer.produce(output.topic, output.value, output.key, 0, self._told, headers=output.headers)

    def _told(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = DeliveryError(str(message.topic()), error.str())

    def _commit(self, consumer: Consumer, ledgers: Iterable[Ledger], *, wait: bool) -> None:
        """What fails is committed again with the next offsets."""
        due = {ledger: offset for ledger in ledgers if (offset := ledger.to_commit) is not None}
        places = [TopicPartition(*ledger.partition, offset) for ledger, offset in due.items()]
        if not places:
            return
        try:
            if wait:
                ledgers_of = {ledger.partition: ledger for ledger in due}
                for place in consumer.commit(offsets=places, asynchronous=False) or ():
                    if place.error is None:
                        ledgers_of[TP(place.topic, place.partition)].committed = place.offset
            else:
                consumer.commit(offsets=places)
        except KafkaException as error:
            if error.args[0].fatal():
                raise
            logger.warning("commit failed, will be tried again: %s", error.args[0].str())

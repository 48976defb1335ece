"""Producing a chunk's records, knowing that the broker has them, and committing the offsets behind them: at least once.

All of it runs in the thread that owns the consumer. A chunk is confirmed when the last record that it produced to each
topic is reported: the producer is idempotent and without gaps (`ecluse.kafka.producer_config`), so a record is only
reported when all before it in its partition are there. Any failed report ends the worker; its lag waits for the next.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from ecluse.errors import DeliveryError
from ecluse.kafka import Config
from ecluse.transport.ledger import Chunk, Ledger

logger = logging.getLogger(__name__)

Report = Callable[[KafkaError | None, Message], None]

#: Records, and bytes of values, that wait for the broker: with more, no chunk is produced. A chunk's own fit beside them.
QUEUED_RECORDS = 100_000
QUEUED_BYTES = 128 * 1024 * 1024


class AtLeastOnce:
    """The delivery of one worker. `beat` is called wherever it waits, so that the watchdog sees progress."""

    def __init__(self, config: Config, beat: Callable[[], None]) -> None:
        limits = {
            "queue.buffering.max.messages": 2 * QUEUED_RECORDS,
            "queue.buffering.max.kbytes": 4 * QUEUED_BYTES // 1024,
            # Chunks are batches already: a longer wait adds to every prediction's latency and nothing to the rate.
            "linger.ms": 1,
        }
        self._producer = Producer(config | limits)
        self._beat = beat
        self._failure: DeliveryError | None = None
        self._queued_bytes = 0

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

    def commit(self, consumer: Consumer, ledgers: Iterable[Ledger], *, wait: bool) -> None:
        """Commit the confirmed prefix of each ledger. What fails is committed again with the next offsets.

        Without `wait` the answer comes to `committed`, in a later call of the consumer's `poll`.
        """
        places = [
            TopicPartition(*ledger.partition, offset) for ledger in ledgers if (offset := ledger.to_commit) is not None
        ]
        if not places:
            return
        try:
            if wait:
                consumer.commit(offsets=places, asynchronous=False)
            else:
                consumer.commit(offsets=places)
        except KafkaException as error:
            if error.args[0].fatal():
                raise
            logger.warning("commit failed, will be tried again: %s", error.args[0].str())

    def finish(self, consumer: Consumer, ledgers: Collection[Ledger], patience: float) -> None:
        """Wait for what was produced to be confirmed, then commit. What is late goes to the next owner, twice."""
        deadline = time.monotonic() + patience
        while any(ledger.unconfirmed for ledger in ledgers) and time.monotonic() < deadline:
            self.serve(0.01)
        self.commit(consumer, ledgers, wait=True)

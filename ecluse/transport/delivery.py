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
from ecluse.transport.ledger import Chunk, Ledger, Output

logger = logging.getLogger(__name__)

Report = Callable[[KafkaError | None, Message], None]

#: Records that wait in the producer's queue: a chunk is held back when they would become more.
QUEUED_RECORDS = 100_000


class AtLeastOnce:
    """The delivery of one worker. `beat` is called wherever it waits, so that the watchdog sees progress."""

    def __init__(self, config: Config, beat: Callable[[], None]) -> None:
        limits = {"queue.buffering.max.messages": 2 * QUEUED_RECORDS, "queue.buffering.max.kbytes": 256 * 1024}
        self._producer = Producer(config | limits)
        self._beat = beat
        self._failure: DeliveryError | None = None

    def full(self) -> bool:
        """Whether nothing more is produced until the broker confirms some of what waits."""
        return len(self._producer) >= QUEUED_RECORDS

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
        report = self._report_for(chunk, len(lasts))
        for i, output in enumerate(outputs):
            self._produce_one(output, partition, report if i in lasts else None)
        chunk.records = chunk.outputs = ()
        if not lasts:
            chunk.ledger.confirm(chunk)

    def _produce_one(self, output: Output, partition: int, report: Report | None) -> None:
        while True:
            try:
                self._producer.produce(
                    output.topic, output.value, output.key, partition, report, headers=output.headers
                )
                return
            except BufferError:
                self.serve(0.01)

    def _report_for(self, chunk: Chunk, reports: int) -> Report:
        def report(error: KafkaError | None, message: Message) -> None:
            nonlocal reports
            if error is not None:
                self._failure = DeliveryError(str(message.topic()), error.str())
                return
            reports -= 1
            if reports == 0:
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

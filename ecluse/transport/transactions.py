"""Producing and committing in transactions: exactly once, for readers of committed records.

A transaction holds the outputs of a contiguous run of chunks of each partition, and the offsets after them. It opens at
the first produced record. All of it runs in the thread that owns the consumer (KIP-98, KIP-447).

Whatever goes wrong, the end is the same: the transaction is not open any more, and `Aborted` asks the owner to drop every
ledger and to read on from what is committed. Where no one can tell what became of the producer (it was fenced, the broker
ended its transaction, a commit's outcome is unknown), it is thrown away. The next one has an id that none had before: with
the old id it could fence its rightful successor.
"""

import logging
import struct
import time
import uuid
from collections.abc import Callable, Collection, Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from faust.types import TP

from ecluse.errors import DeliveryError
from ecluse.kafka import Config
from ecluse.transport.delivery import QUEUED_BYTES, QUEUED_RECORDS, Seal, nothing
from ecluse.transport.ledger import Ledger

logger = logging.getLogger(__name__)

#: The age at which a transaction is committed while there is little to do.
QUIET_SECONDS = 0.01
#: One blocking call into librdkafka; what can be retried is called again.
CALL_SECONDS = 5.0
#: The wait before such a call: some fail at once.
RETRY_SECONDS = 0.05
#: So many aborts with no commit in between end the worker: what fails will fail again.
ABORTS_IN_A_ROW = 20

#: The broker will not take these records or this producer, however often they come.
REFUSALS = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.POLICY_VIOLATION,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}


class Aborted(Exception):
    """What was produced since the last commit does not count: drop the ledgers, and read on from what is committed.

    `clean` tells that nothing was committed since the last commit that the ledgers know of.
    """

    def __init__(self, reason: str, *, clean: bool) -> None:
        super().__init__(reason)
        self.clean = clean


class ExactlyOnce:
    """The delivery of one worker, in transactions.

    Args:
        config: the producer's, with its ``transactional.id`` and ``transaction.timeout.ms``.
        commit_interval: the age at which a transaction is committed under a backlog, in seconds.
        beat: called wherever it waits, so that the watchdog sees progress.
        seal: see `ecluse.transport.delivery.Seal`.
    """

    def __init__(self, config: Config, commit_interval: float, beat: Callable[[], None], seal: Seal = nothing) -> None:
        timeout = config["transaction.timeout.ms"] / 1e3
        call_seconds = min(CALL_SECONDS, timeout / 2)
        self._config = config | {
            "queue.buffering.max.messages": 4 * QUEUED_RECORDS,
            "queue.buffering.max.kbytes": 4 * QUEUED_BYTES // 1024,
            "linger.ms": 1,
            # Where the broker still ends the transaction before, the next one's start waits this long (default 100).
            "retry.backoff.ms": 10,
            # A call into librdkafka overruns its own time-out by that of the request that hangs.
            "socket.timeout.ms": int(call_seconds * 1e3),
        }
        self._timeout = timeout
        self._call_seconds = call_seconds
        self._interval = commit_interval
        self._beat = beat
        self._seal = seal
        self._producer: Producer | None = None
        self._opened: float | None = None
        self._queued_bytes = 0
        self._next_gap = 0.0
        self._aborts_in_a_row = 0
        self._renewed = False
        #: Transactions aborted so far.
        self.aborted = 0

    def ready(self) -> None:
        """Have a producer that can open transactions. The first one ends what the first one of this slot before left open.

        Raises:
            KafkaException: the broker does not answer, or refuses. May be called again.
        """
        if self._producer is not None:
            return
        own_id = self._config["transactional.id"]
        transactional_id = f"{own_id}.{uuid.uuid4().hex[:12]}" if self._renewed else own_id
        producer = Producer(self._config | {"transactional.id": transactional_id})
        self._again(producer.init_transactions, self._timeout)
        self._producer, self._renewed = producer, True

    def full(self) -> bool:
        """Whether nothing more is produced before the open transaction is committed."""
        return self._producer is None or len(self._producer) >= QUEUED_RECORDS or self._queued_bytes >= QUEUED_BYTES

    def produce_scored(self, ledger: Ledger) -> None:
        """Produce the scored chunks at the head of a ledger.

        Raises:
            Aborted: the transaction could not go on.
            DeliveryError: the broker refuses this producer.
        """
        if self._producer is None or self.full():
            return
        try:
            for chunk in ledger.take_scored():
                if self._opened is None:
                    self._producer.begin_transaction()
                    self._opened = time.monotonic()
                produce, partition = self._producer.produce, ledger.partition.partition
                for output in chunk.outputs or ():
                    produce(output.topic, output.value, output.key, partition, headers=output.headers)
                    self._queued_bytes += len(output.value or b"")
                chunk.records = chunk.outputs = ()
                if self.full():
                    return
        except KafkaException as error:
            self._abort(error.args[0])
        except BufferError:
            self._abort(KafkaError(KafkaError._QUEUE_FULL))

    def serve(self, wait: float = 0.0) -> None:
        """Let the client work; with `wait` seconds where there is nothing else to do."""
        self._beat()
        try:
            if self._producer is not None:
                self._producer.poll(wait)
        except KafkaException as error:  # a fence may show here first
            self._abort(error.args[0])

    def commit_when_due(self, consumer: Consumer, ledgers: Collection[Ledger], *, busy: bool) -> Collection[TP]:
        """Commit the open transaction if it is old enough, or full; or offsets alone where only markers lay before them.

        Args:
            consumer: the member of the group for which offsets are committed.
            ledgers: of all partitions held.
            busy: a backlog waits, so that larger transactions are better.

        Raises:
            Aborted: the transaction could not be committed.
            DeliveryError: the broker refuses what was produced.
        """
        now = time.monotonic()
        if self._opened is not None:
            age = self._interval if busy else min(QUIET_SECONDS, self._interval)
            due = now - self._opened >= age or self.full()
        else:
            due = now >= self._next_gap and any(ledger.to_commit is not None for ledger in ledgers)
        return self._commit(consumer, ledgers, self._timeout * 2) if due else ()

    def finish(
        self, consumer: Consumer, ledgers: Collection[Ledger], leaving: Iterable[Ledger], patience: float
    ) -> None:
        """Commit what is produced, for all partitions: a transaction cannot be split. See `commit_when_due`."""
        del leaving
        if self._opened is not None:
            self._commit(consumer, ledgers, patience)

    def give_up(self) -> None:
        """Abort what is open: a partition of it was lost, or the worker cannot go on.

        Raises:
            Aborted: always, where a transaction was open.
        """
        if self._opened is not None:
            self._abort(KafkaError(KafkaError._STATE, "its partitions are another worker's now"))

    def _commit(self, consumer: Consumer, ledgers: Collection[Ledger], patience: float) -> Collection[TP]:
        sent = {ledger: offset for ledger in ledgers if (offset := ledger.to_send) is not None}
        places = [TopicPartition(*ledger.partition, offset) for ledger, offset in sent.items()]
        producer, self._next_gap = self._producer, time.monotonic() + self._interval
        if producer is None:
            return ()
        try:
            if self._opened is None:
                producer.begin_transaction()
                self._opened = time.monotonic()
            # All that is produced and not confirmed is in this transaction, and nothing else is.
            for output in self._seal([chunk for ledger in ledgers for chunk in ledger.produced]):
                producer.produce(output.topic, output.value, output.key, 0, headers=output.headers)
            self._again(producer.send_offsets_to_transaction, patience, places, membership(consumer))
            self._again(producer.commit_transaction, patience)
        except KafkaException as error:
            self._abort(error.args[0])
        except BufferError:
            self._abort(KafkaError(KafkaError._QUEUE_FULL))
        self._close()
        self._aborts_in_a_row = 0
        for ledger, offset in sent.items():
            ledger.confirm_transaction(offset)
        return [ledger.partition for ledger in sent]

    def _again(self, call: Callable[..., object], patience: float, *args: object) -> None:
        """Call, and call again after an error that allows it: librdkafka goes on where it stood."""
        deadline = time.monotonic() + patience
        while True:
            self._beat()
            try:
                call(*args, self._call_seconds)
            except KafkaException as error:
                # A conflict: another call has not ended, and what it will come to is not known.
                conflict = error.args[0].code() == KafkaError._CONFLICT
                if conflict or not error.args[0].retriable() or time.monotonic() > deadline:
                    raise
                logger.info("%s is tried again: %s", getattr(call, "__name__", call), error.args[0].str())
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _abort(self, error: KafkaError) -> None:
        """End the open transaction in any way that can be had, and say so by raising.

        Raises:
            Aborted: the owner reads on from what is committed.
            DeliveryError: the same would fail again.
        """
        self._close()
        self.aborted += 1
        self._aborts_in_a_row += 1
        clean = not error.fatal() and self._abort_transaction()
        if not clean:
            self._throw_away()
            logger.warning("the producer of this worker is given up and a new one takes its place: %s", error.str())
        if error.code() in REFUSALS or self._aborts_in_a_row >= ABORTS_IN_A_ROW:
            raise DeliveryError("the topics of this stream", error.str())
        raise Aborted(error.str(), clean=clean)

    def _abort_transaction(self) -> bool:
        try:
            if self._producer is not None:
                self._again(self._producer.abort_transaction, self._timeout)
        except KafkaException as error:
            logger.info("the transaction could not be aborted: %s", error.args[0].str())
            return False
        return True

    def _throw_away(self) -> None:
        if self._producer is not None:
            self._producer.purge()
        self._producer = None

    def _close(self) -> None:
        self._opened, self._queued_bytes = None, 0


def membership(consumer: Consumer) -> object:
    """The group's metadata, by which the broker fences who is no member any more.

    Raises:
        KafkaException: this consumer is no member now. A live group would take its offsets without fencing.
    """
    metadata = consumer.consumer_group_metadata()
    if generation(metadata) < 0:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID, "this worker is no member of its group now"))
    return metadata


def generation(metadata: object) -> int:
    """The group's generation in a consumer's metadata (KIP-848: the member's epoch); 0 or less where it is no member."""
    # librdkafka's own format: "CGMDv2:", then the generation as a 32-bit number.
    raw = bytes(metadata) if metadata is not None else b""  # type: ignore[call-overload]
    return int(struct.unpack_from("<i", raw, 7)[0]) if raw[:7] == b"CGMDv2:" else -1


def taken_in(consumer: Consumer, config: Config) -> bool:
    """Whether a KIP-848 group has taken this member in: librdkafka does not tell one that is given nothing. A classic group's
    first assignment tells, also an empty one."""
    return config.get("group.protocol") == "consumer" and generation(consumer.consumer_group_metadata()) > 0

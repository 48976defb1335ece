"""The one thread that owns all that decides: the consumer's handle, the ledgers, the producer.

Fetch, rebalance callbacks, produce, commit, abort and rewind run in it one after another, so there are no locks, and no
commit overlaps a revoke. The event loop only turns chunks of records into records to produce.

A turn of the loop: take in what is scored and produce it, let the producer work, commit what is due, fetch. After an abort
nothing is produced and nothing taken in before every partition stands at its committed offset again.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from ecluse.errors import BrokerError, DeliveryError
from ecluse.kafka import Config
from ecluse.transport.brake import Brake
from ecluse.transport.delivery import AtLeastOnce, Delivery, Seal, nothing
from ecluse.transport.fetching import Start, app_starts, judge, lost, partition_of, place_of, split, starts_of, wake
from ecluse.transport.hand import SCORING, Hand, Limits, paced
from ecluse.transport.ledger import Chunk, Ledger, Output, Record
from ecluse.transport.progress import Progress, named, oldest_unscored
from ecluse.transport.transactions import REFUSALS, Aborted, ExactlyOnce, taken_in

logger = logging.getLogger(__name__)

#: With so many of them there is a backlog: larger transactions are better than early ones.
BUSY_CHUNKS = 3
#: How often the thread tells of lag and of chunks in hand.
LOOK_SECONDS = 0.25
#: How often an outage of the broker is told again.
TELL_SECONDS = 30.0
IDLE_WAIT = 0.02
BUSY_WAIT = 0.002
#: How long leaving or handing over a partition waits for the broker to confirm what was produced.
FINISH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class OwnerConfig:
    """What the thread is made of: topics to read, and the configurations of its two clients.

    A producer with a ``transactional.id`` makes the delivery exactly-once, any other at-least-once. `admit` is given, for each
    assignment, what to call (from any thread) when its partitions may be read; without it they are at once.

    `start` is asked, in this thread, from which offset partitions are to be read: on assignment, after an abort, and by
    `Owner.read_again`. No offset of the group is ever read then: they tell the lag. A partition that the answer leaves out
    begins at the first record that its topic holds.

    `seal` makes what is told of the chunks that are committed together.
    """

    topics: Sequence[str]
    consumer: Config
    producer: Config
    commit_interval: float
    admit: Callable[[Callable[[], None]], None] | None = None
    start: Start | None = None
    seal: Seal = nothing
    limits: Limits = SCORING


class Owner(threading.Thread):
    """Owns a worker's consumer, ledgers and producer.

    Args:
        config: see `OwnerConfig`.
        deliver: takes each fetched chunk, in this thread; must not block.
        assigned: told of the full set of partitions after each assignment, in this thread; may block for a moment.
        crashed: told of the error that ended the thread.
    """

    def __init__(
        self,
        config: OwnerConfig,
        deliver: Callable[[Chunk], None],
        assigned: Callable[[set[TP]], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(name="ecluse-owner", daemon=True)
        self._config = config
        self._deliver = deliver
        self._tell_assigned = assigned
        self._crashed = crashed
        self._scored: queue.SimpleQueue[Chunk | frozenset[TP]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._brake = Brake()
        self._hand = Hand(config.limits)
        self._next_look = self._tell_outage_after = 0.0
        self._rewind_due = self._wake_due = False
        self._again: set[TP] = set()
        self.ledgers: dict[TP, Ledger] = {}
        self.chunk_records = config.limits.chunk_records
        self.progress = Progress()

    # -- called from the event loop ------------------------------------------------------------------------------------

    def live(self, chunk: Chunk) -> bool:
        """Whether the chunk's partition is still held as it was when the chunk was fetched."""
        return self.ledgers.get(chunk.ledger.partition) is chunk.ledger

    def done(self, chunk: Chunk, outputs: Sequence[Output]) -> None:
        """Give back a chunk with what is to be produced for it; it must be given back even if it is not live any more."""
        chunk.outputs = outputs
        self._scored.put(chunk)

    def read_again(self, partitions: Collection[TP]) -> None:
        """Drop what is in hand of these partitions, and read them again from where `OwnerConfig.start` says by then.

        Their chunks are not live any more and must still be given back, after this call.
        """
        self._scored.put(frozenset(partitions))

    def pace(self, seconds: float, records: int) -> None:
        """Tell how long scoring took."""
        self.chunk_records = paced(self.chunk_records, seconds, records)

    def close(self) -> None:
        """Ask the thread to finish: fetch nothing more, confirm and commit what was produced, leave the group."""
        self._closing.set()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until closed or crashed."""
        try:
            delivery = ExactlyOnce if "transactional.id" in self._config.producer else AtLeastOnce
            self._delivery: Delivery = delivery(
                self._config.producer, self._config.commit_interval, self._beat, self._config.seal
            )
            self._consumer = Consumer(
                self._config.consumer
                | {"on_commit": self._on_commit, "error_cb": self._on_error, "enable.partition.eof": True}
            )
        except BaseException as error:
            self._crashed(error)
            return
        try:
            self._prepare()
            while not self._closing.is_set():
                self._turn()
            self._produce_scored(0.0)
            self._finish(self.ledgers.values())
        except BaseException as error:
            self._closing.set()
            self._abandon()
            self._crashed(BrokerError(f"Kafka: {error.args[0].str()}.") if isinstance(error, KafkaException) else error)
        finally:
            self._consumer.close()

    def _prepare(self) -> None:
        """Have the producer ready before joining: an older worker of this slot must be fenced by then."""
        while not self._closing.is_set():
            try:
                self._delivery.ready()
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                logger.warning("the producer is not ready yet: %s", error.args[0].str())
            else:
                self._consumer.subscribe(
                    list(self._config.topics),
                    on_assign=self._on_assign,
                    on_revoke=self._on_revoke,
                    on_lost=self._on_lost,
                )
                return

    def _turn(self) -> None:
        self._beat()
        if self._rewind_due and not self._rewind():
            return
        may_fetch = self._hand.has_room and not self._delivery.full()
        # While chunks are being scored, wait for what comes of them, so that it is produced at once.
        scoring = len(self._hand) > 0
        self._produce_scored(self._config.limits.wait if scoring else 0.0)
        # With a full producer and nothing to score there is only the broker to wait for.
        self._guard(lambda: self._delivery.serve(0.0 if scoring or may_fetch else BUSY_WAIT))
        self._guard(self._commit)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look()
        self._wake_due |= self._brake.apply(self._consumer, self.ledgers, now, may_fetch=may_fetch)
        if self._wake_due:
            self._wake_due = False
            wake(self._consumer, self.ledgers)
        if may_fetch:
            self._fetch(0.0 if scoring else BUSY_WAIT if any(self.ledgers.values()) else IDLE_WAIT)
        elif self._brake.stalled(now):
            self._fetch(BUSY_WAIT)  # everything is paused: this only serves rebalances and commits

    def _produce_scored(self, wait: float) -> None:
        """Take in the chunks that the loop gave back, waiting for the first up to `wait` seconds, and produce in order."""
        try:
            self._take_back(self._scored.get(block=wait > 0, timeout=wait))
            while True:
                self._take_back(self._scored.get_nowait())
        except queue.Empty:
            pass
        self._guard(self._produce)

    def _take_back(self, given: Chunk | frozenset[TP]) -> None:
        if isinstance(given, Chunk):
            self._hand.discard(given)
        else:
            self._drop(given)

    def _drop(self, partitions: Collection[TP]) -> None:
        """What was read of these partitions counts no more: a rewind is due, after which it comes again."""
        again = {partition for partition in self.ledgers if partition in partitions} - self._again
        self.ledgers |= {partition: Ledger(partition) for partition in again}
        self._again |= again
        self._rewind_due |= bool(again)

    def _produce(self) -> None:
        for ledger in self.ledgers.values():
            self._delivery.produce_scored(ledger)

    def _commit(self) -> None:
        busy = len(self._hand) >= BUSY_CHUNKS
        if taken := self._delivery.commit_when_due(self._consumer, self.ledgers.values(), busy=busy):
            self.progress.committed(taken)

    def _guard(self, step: Callable[[], None]) -> None:
        """Take a step that may end in an abort: then no chunk in hand counts any more, and a rewind is due."""
        try:
            step()
        except Aborted as why:
            self._rewind_due = True
            self.ledgers = {
                partition: ledger.again() if why.clean else Ledger(partition)
                for partition, ledger in self.ledgers.items()
            }
            self._again = set(self.ledgers)
            logger.warning("a transaction was aborted, its events are scored again: %s", why)

    def _rewind(self) -> bool:
        """Read on from what is committed, or where the app says; tried again where the broker does not answer."""
        try:
            self._delivery.ready()
            ledgers = {partition: ledger for partition, ledger in self.ledgers.items() if partition in self._again}
            start, group = self._config.start, self._config.consumer["group.id"]
            starts = app_starts(start, ledgers) if start else starts_of(self._consumer, ledgers, group)
            for place in starts:
                self._consumer.seek(place)
        except KafkaException as error:
            if error.args[0].code() in REFUSALS:
                raise
            logger.info("reading on is tried again: %s", error.args[0].str())
            record = self._consumer.poll(0.1)  # serves rebalances
            self._drop({place_of(record)} if record is not None else set())
            return False
        self.ledgers |= {partition_of(place): Ledger(partition_of(place), place.offset) for place in starts}
        self._rewind_due, self._wake_due, self._again = False, True, set()
        return True

    def _fetch(self, wait: float) -> None:
        first = self._consumer.poll(wait)  # returns at the first record; consume(n, wait) would always wait
        if first is None:
            return
        held = self.ledgers.get(place_of(first))
        fetched = self._consumer.consume(2 * self.chunk_records, 0)
        # Else that call served a rebalance, and `first` is of the time before it.
        if self.ledgers.get(place_of(first)) is held:
            fetched.insert(0, first)
        if self._rewind_due:  # by a rebalance in that call that ended in an abort, or because the app reads again
            fetched = [message for message in fetched if place_of(message) not in self._again]
        records: list[Any] = [message for message in fetched if message.error() is None]
        for place, run in groupby(records, place_of):
            if (ledger := self.ledgers.get(place)) is not None:
                self._take_in(ledger, list(run))
        if len(records) < len(fetched):
            for message in fetched:
                if (error := message.error()) is None:
                    continue
                if error.code() == KafkaError._PARTITION_EOF:
                    self._pass_end(message)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET and self._config.start is not None:
                    raise lost(self._consumer, self.ledgers, place_of(message))
                else:
                    judge(error, self._config.consumer["group.id"])

    def _take_in(self, ledger: Ledger, records: list[Record]) -> None:
        now = time.monotonic()
        start = ledger.position
        if start is not None and records[0].offset() < start:
            logger.warning("%s: records before offset %d came again and are dropped", ledger.partition, start)
            records = [record for record in records if record.offset() >= start]
        for part in split(records, self.chunk_records):
            chunk = ledger.add(part, part[0].offset(), part[-1].offset() + 1, now)
            self._hand.add(chunk)
            self._deliver(chunk)

    def _pass_end(self, message: Message) -> None:
        ledger, end = self.ledgers.get(place_of(message)), message.offset()
        if ledger is not None and end is not None:
            ledger.reached_end(end)

    def _look(self) -> None:
        """Tell how things stand."""
        self.progress.aborted = self._delivery.aborted
        self.progress.assigned = self.progress.assigned or taken_in(self._consumer, self._config.consumer)
        marks = self._consumer.get_watermark_offsets
        self.progress.look(self.ledgers, lambda place: int(marks(TopicPartition(*place), cached=True)[1]))

    def _finish(self, leaving: Iterable[Ledger]) -> None:
        """Commit what is produced."""
        finish = self._delivery.finish
        self._guard(lambda: finish(self._consumer, self.ledgers.values(), leaving, FINISH_SECONDS))

    def _abandon(self) -> None:
        """The worker cannot go on: nothing of what is not committed may count."""
        self.ledgers = {}
        try:
            self._delivery.give_up()
        except (Aborted, DeliveryError) as why:
            logger.info("the open transaction was aborted: %s", why)

    # -- rebalances: these run inside poll() and close(), in this thread ---------------------------------------------------

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if self._config.start is not None:
            places = app_starts(self._config.start, map(partition_of, places))
        consumer.incremental_assign(places)
        consumer.resume(places)  # librdkafka remembers a pause beyond a revoke: the partition would be silent for ever
        came = {partition_of(place): Ledger(partition_of(place), place.offset) for place in places}
        self.ledgers |= came
        self._again |= came.keys() if self._rewind_due else set()  # what a rewind polls meanwhile is lost to them
        self.progress.rebalances += 1
        self.progress.assigned = True
        self.progress.rebalanced(self.ledgers)
        if self._config.admit is not None:
            self._config.admit(self._brake.hold(consumer, map(partition_of, places)))
        self._wake_due = True
        logger.info("assigned partitions %s", named(places))
        if not self._closing.is_set():
            self._tell_assigned(set(self.ledgers))

    def _on_revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        leaving = [self.ledgers[partition] for partition in map(partition_of, places) if partition in self.ledgers]
        try:
            self._produce_scored(0.0)
            self._finish(leaving)
        finally:
            self._forget(places)
            consumer.incremental_unassign(places)
            self.progress.rebalanced(self.ledgers)
            self._wake_due = True
            logger.info("gave back partitions %s", named(places))

    def _on_lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        del consumer
        self._guard(self._delivery.give_up)
        self._forget(places)
        self.progress.assigned = False  # until the group takes this worker in again
        logger.warning(
            "lost partitions %s: this process was silent for a session, or cut off from the broker",
            named(places),
        )

    def _forget(self, places: list[TopicPartition]) -> None:
        for partition in map(partition_of, places):
            self.ledgers.pop(partition, None)
            self._brake.forget(partition)
            self.progress.forget(partition)

    def _on_commit(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        taken = [place for place in places if error is None and place.error is None]
        for place in taken:
            if (ledger := self.ledgers.get(partition_of(place))) is not None:
                ledger.committed = place.offset
        if taken:
            self.progress.committed(map(partition_of, taken))
        if error is not None:
            self.progress.commit_failures += 1
            logger.warning("commit failed, will be tried again: %s", error.str())

    def _on_error(self, error: KafkaError) -> None:
        """What librdkafka says of its connections. Most passes; that nobody answers should be told."""
        now = time.monotonic()
        if error.code() == KafkaError._ALL_BROKERS_DOWN and now >= self._tell_outage_after:
            self._tell_outage_after = now + TELL_SECONDS
            servers = self._config.consumer["bootstrap.servers"]
            logger.warning("no broker answers at %s: nothing is read or written until one does", servers)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self.progress.beat > LOOK_SECONDS:  # a call took long, in which the event loop went on
            self.progress.oldest_unscored = oldest_unscored(self.ledgers.values())
        self.progress.beat = now

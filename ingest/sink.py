"""The sink: commits what comes on the topics to the tables of the training store, each record once.

The tables are the truth about offsets. A commit holds rows and, for each partition, the offset after the last of them; it is
refused where a partition does not stand where the rows begin. So whoever dies, hangs or is taken for dead at whatever moment,
a record is in its table once; the group's offsets tell the lag and decide nothing.

On the event loop chunks become rows; one thread, the writer, commits them, a table at a time, and takes care of the tables
when there is nothing else to do.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import polars as pl
from confluent_kafka import KafkaError, Message, Producer
from faust.types import TP

from ecluse import kafka
from ecluse.contract.tables import FORGOTTEN, LABELS, Table
from ecluse.deadletters import DeadLetters
from ecluse.errors import DeliveryError, StoreConflict, StoreError
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from ecluse.transport.hand import CHUNK_RECORDS, Limits
from ecluse.transport.ledger import Chunk
from ecluse.transport.owner import Owner
from ingest.coverage import coverage
from ingest.forgotten import Forgotten
from ingest.sink_parts import Batch, Feed, Letter, Parts, app_id, feeds_of
from ingest.sink_telemetry import SinkTelemetry

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A table is committed too when its waiting records hold so many bytes.
COMMIT_BYTES = 24 * 1024 * 1024
#: How often the loop looks whether a commit is due, in seconds.
TICK = 0.05
#: How long the owning thread gathers what librdkafka has fetched: small chunks cost more than they are worth.
GATHER_SECONDS = 0.02
#: How often the tables are compacted and vacuumed, in seconds, where no backlog waits.
CARE_SECONDS = 600.0
#: Where a topic ends with offsets that hold no record (markers of transactions), its table passes them after so many seconds
#: without a commit: else it would stand where the topic's retention has deleted all, and nothing were lost by that.
GAP_SECONDS = 60.0
#: How often it is looked at what the labels cover, in seconds, and the largest share of the time that this may take: it reads
#: weeks of the tables, and takes the longer the more events there are.
LOOK_SECONDS, LOOK_SHARE = 3600.0, 0.05
#: How long a look that is under way is waited for when the sink ends.
LOOK_END_SECONDS = 1.0
#: How many dead letters are sent at once, far below what a producer's queue holds, and how long the broker may take to confirm
#: these, in seconds.
LETTERS = 10_000
LETTER_SECONDS = 30.0


def group_of(settings: Settings) -> str:
    """The sinks' consumer group."""
    return f"{settings.names.prefix}store"


class Sink:
    """Gathers chunks and commits them. Everything but `starts` is called on the event loop.

    Args:
        settings: the stream's.
        telemetry: of this process.
        owner: the thread that fetches; known once the app runs.

    Raises:
        StoreError: the store's location cannot be used.
        SettingsError: the key of the store's hashes cannot be used.
    """

    def __init__(self, settings: Settings, telemetry: SinkTelemetry, owner: Callable[[], Owner]) -> None:
        self._settings, self._telemetry, self._owner = settings, telemetry, owner
        self.feeds: dict[str, Feed] = feeds_of(settings)
        self._tables = {feed.table.name: feed.table for feed in self.feeds.values()}
        self._parts = Parts(self.feeds, lambda: tuple(owner().ledgers.values()))
        self._store = TrainingStore(settings)
        self._forgotten = Forgotten(settings, self._store)
        self._forgotten.require_sound()
        self._writer = ThreadPoolExecutor(1, "ecluse-store")
        self._letters = _Letters(settings)
        self._next_care = time.monotonic() + CARE_SECONDS
        self._next_look, self._looking = 0.0, threading.Thread()
        self._committed_at = dict.fromkeys(self._tables, time.monotonic())
        self._to_care_for: list[Table] = []
        telemetry.pending.set_function(lambda: self._parts.records)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()  # a commit that is under way ends
        if self._looking.is_alive():  # it only reads, and may do so for minutes: it ends with the process
            self._looking.join(LOOK_END_SECONDS)

    @property
    def limits(self) -> Limits:
        """What may be in hand: with all of it there, at least one table is due."""
        most = len(self._tables) + 1
        return Limits(
            chunk_records=CHUNK_RECORDS,
            chunks=None,
            records=most * self._settings.store.commit_rows,
            bytes=most * COMMIT_BYTES,
            wait=GATHER_SECONDS,
        )

    def starts(self, partitions: Collection[TP]) -> Mapping[TP, int]:
        """Where the tables have come to. Called by the owning thread.

        Raises:
            StoreError: a table cannot be read.
        """
        store = TrainingStore(self._settings)  # one thread at a time may use one
        tables = {self.feeds[partition.topic].table.name for partition in partitions}
        known = {name: store.offsets(self._tables[name]) for name in tables}
        found = {
            partition: known[self.feeds[partition.topic].table.name].get(app_id(partition)) for partition in partitions
        }
        return {partition: offset for partition, offset in found.items() if offset is not None}

    def take_in(self, chunks: Iterable[Chunk]) -> None:
        """Take in chunks of any partitions, in the order of each."""
        owner = self._owner()
        for chunk in chunks:
            self._give_back(self._parts.add(chunk) if owner.live(chunk) else [chunk])

    async def run(self) -> None:
        """Commit what is due and take care of the tables, for as long as the app runs.

        Raises:
            StoreError: the store cannot be written. What was in hand is in no table, and is read again after a restart.
            DeliveryError: the broker did not take a dead letter.
        """
        while True:
            self._give_back(self._parts.drop_lost())
            if (table := self._due()) is not None:
                await self._commit(table)
            elif (table := self._neglected()) is not None:
                await self._in_writer(self._care, table)
            else:
                await asyncio.sleep(TICK)

    def _due(self) -> Table | None:
        """The table that is to be committed now: of those that are due, the one whose records have waited longest."""
        settings, now = self._settings.store, time.monotonic()
        due = {}
        for name, parts in self._parts.waiting().items():
            since = min(part.since for part in parts)
            if (
                sum(part.records for part in parts) >= settings.commit_rows
                or sum(part.bytes for part in parts) >= COMMIT_BYTES
                or now - since >= settings.commit_seconds
            ):
                due[since] = name
        if due:
            return self._tables[due[min(due)]]
        quiet = (table for name, table in self._tables.items() if now - self._committed_at[name] >= GAP_SECONDS)
        return next((table for table in quiet if any(part.advance for part in self._parts.of(table))), None)

    async def _commit(self, table: Table) -> None:
        batch, self._committed_at[table.name] = Batch(table), time.monotonic()
        for part in self._parts.of(table):
            if not part.dropped and part.advance is not None:
                batch.taken.append(part.take())
                await asyncio.sleep(0)  # making rows is a chunk's work
        if not batch.advances:
            return
        try:
            await self._in_writer(self._write, batch)
        except StoreConflict as conflict:
            logger.warning("%s What this sink held of it is read again from where the table stands.", conflict)
            self._telemetry.conflicts.labels(table.name).inc()
            parts = self._parts.of(table)
            chunks = self._parts.drop(table)
            self._owner().read_again({part.ledger.partition for part in parts})
            self._give_back(chunks)
        else:
            for taken in batch.taken:
                if taken.advance is not None:
                    taken.part.start = taken.advance[1]
        self._give_back(chunk for taken in batch.taken for chunk in taken.chunks)

    def _give_back(self, chunks: Iterable[Chunk]) -> None:
        owner = self._owner()
        for chunk in chunks:
            owner.done(chunk, ())

    def _neglected(self) -> Table | None:
        """The next table to take care of: by the sink that holds the first partition of its topic, while no backlog waits."""
        if not self._to_care_for:
            if time.monotonic() < self._next_care:
                return None
            self._next_care = time.monotonic() + CARE_SECONDS
            owner = self._owner()
            first = {feed.table.name: topic for topic, feed in reversed(self.feeds.items())}
            first[FORGOTTEN.name] = self._settings.names.events  # no topic's, and it grows as well
            tables = (*self._tables.values(), FORGOTTEN)
            self._to_care_for = [table for table in tables if TP(first[table.name], 0) in owner.ledgers]
        backlog = sum(tuple(self._owner().progress.lag.values())) - self._parts.records
        return self._to_care_for.pop() if backlog < self._settings.store.commit_rows else None

    async def _in_writer(self, call: Callable[[T], None], argument: T) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, call, argument)

    # -- in the writer's thread ----------------------------------------------------------------------------------------

    def _write(self, batch: Batch) -> None:
        began = time.monotonic()
        # Before the commit: a crash between the two repeats dead letters, where the other order would lose them.
        self._letters.send(batch.letters)
        rows = pl.concat(frames) if (frames := batch.frames) else pl.DataFrame(schema=polars_schema(batch.table))
        rows = self._forgotten.append(batch.table, rows, batch.advances)
        self._telemetry.seconds.observe(time.monotonic() - began)
        self._telemetry.commits.labels(batch.table.name).inc()
        self._telemetry.rows.labels(batch.table.name).inc(rows.height)
        if batch.table is LABELS:
            self._telemetry.labels.wrote(rows)
        for _, source, _ in batch.letters:
            self._telemetry.rejected.labels(source.topic).inc()

    def _care(self, table: Table) -> None:
        """Compact and vacuum; what fails here waits for the next time."""
        try:
            replaced, removed = self._store.compact(table), self._store.vacuum(table)
        except StoreError as error:
            logger.warning("Maintenance of %s failed and is tried again in %.0f s. %s", table.name, CARE_SECONDS, error)
            self._telemetry.care.labels("failed").inc()
        else:
            if replaced or removed:
                logger.info("%s: %d small files put together, %d old files removed", table.name, replaced, removed)
            self._telemetry.care.labels("done").inc()
        if table is LABELS and time.monotonic() >= self._next_look and not self._looking.is_alive():
            # Beside the writer: with many events it reads for minutes, in which the tables must be written.
            self._looking = threading.Thread(target=self._look_at_labels, name="ecluse-coverage", daemon=True)
            self._looking.start()

    def _look_at_labels(self) -> None:
        """Tell what the labels cover; what fails here waits for the next time."""
        began = time.monotonic()
        try:
            self._telemetry.labels.show(coverage(self._settings, TrainingStore(self._settings)))
        except StoreError as error:
            logger.warning("What the labels cover is not known; it is looked at again later. %s", error)
        finally:
            self._next_look = began + max(LOOK_SECONDS, (time.monotonic() - began) / LOOK_SHARE)


class _Letters:
    """Sends what no table takes to the dead letters, to the partition that it came from."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.names.dead_letters
        largest = settings.topics.largest_output
        self._make = DeadLetters(self._topic, group_of(settings), kafka.member_name(), largest)
        self._producer: Producer | None = None
        self._failure: KafkaError | None = None

    def send(self, letters: Sequence[Letter]) -> None:
        """Send and wait until the broker has all.

        Raises:
            DeliveryError: it has not.
        """
        for start in range(0, len(letters), LETTERS):
            self._send(letters[start : start + LETTERS])

    def _send(self, letters: Sequence[Letter]) -> None:
        self._producer = producer = self._producer or kafka.producer(self._settings)
        for record, source, error in letters:
            letter = self._make(record, source, error)
            producer.produce(
                letter.topic, letter.value, letter.key, source.partition, self._told, headers=letter.headers
            )
            producer.poll(0)
        late = producer.flush(LETTER_SECONDS)
        if late or self._failure is not None:
            raise DeliveryError(self._topic, self._failure.str() if self._failure else "the broker does not answer")

    def _told(self, error: KafkaError | None, message: Message) -> None:
        del message
        self._failure = error or self._failure

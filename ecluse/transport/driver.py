"""The Faust driver ``rdkafka://``: an agent gets lists of chunks, and Faust's own acks, commits and seeks decide nothing.

    async for chunks in stream:
        for chunk in chunks:
            app.owner.done(chunk, [Output(...), ...])

Faust stays what runs the worker: its services, agents, signals and supervision. Its transport is not used, because it
handles one event at a time and acknowledges events that failed.
"""

import asyncio
import faulthandler
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, MutableMapping
from typing import Any, ClassVar, cast

import faust
from faust.transport import base, conductor
from faust.transport.consumer import Consumer
from faust.types import TP, ConsumerMessage
from mode import Service
from mode.utils.queues import FlowControlEvent

from ecluse.transport.ledger import Chunk
from ecluse.transport.owner import FINISH_SECONDS, Owner, OwnerConfig

logger = logging.getLogger(__name__)
#: Where the services below say that they start and stop: with Faust's own, which say the same.
_services = logging.getLogger("faust.ecluse")

#: Faust hands a message to a stream only if its generation is the current one; ours never changes.
GENERATION = 1
#: Exit code of a worker whose owning thread hangs.
HUNG = 70
#: While a broker is away, single calls into librdkafka have taken 20 s: no reason to give up a warm model.
WATCHDOG_SECONDS = 60.0


class _NeverRead(dict[TP, int]):
    """Faust drops, without a word, a message below the last offset that it saw. Ours remembers nothing."""

    def __missing__(self, partition: TP) -> None:
        return None

    def __setitem__(self, partition: TP, offset: int) -> None: ...


class ChunkConsumer(Consumer):
    """Faust's view of the owning thread: starts it, passes its chunks on, joins it, and ends the process if it hangs.

    A worker is in its group while such a thread lives. `enter` and `leave` may follow each other for as long as the app runs.
    """

    app: "ChunkApp"
    logger = _services

    async def on_start(self) -> None:
        """Make the owning thread; it starts when the worker enters its group."""
        self._read_offset = cast(MutableMapping[TP, int | None], _NeverRead())
        self._main = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Chunk] = asyncio.Queue()
        self.owner = self._new_owner()
        self._subscribed = self._leaving = False

    def _new_owner(self) -> Owner:
        return Owner(self.app.owner_config, self._deliver, self._on_assigned, self._on_crashed)

    async def on_stop(self) -> None:
        """Leave the group, if the worker is in it."""
        await self.leave()

    async def enter(self) -> None:
        """Enter the group: the owning thread starts."""
        if not self.should_stop:
            self._leaving = False
            self.owner.start()

    async def leave(self) -> None:
        """Let the owning thread confirm, commit and leave the group; nothing new is taken. Ends when the thread has ended."""
        self._leaving, owner = True, self.owner
        owner.close()
        if owner.is_alive():
            await asyncio.to_thread(owner.join, 4 * FINISH_SECONDS)
            if owner.is_alive():
                logger.critical(
                    "the owning thread does not end; the process exits and its lag waits for the next worker"
                )
                os._exit(HUNG)
        # A thread runs once. Of chunks that the old one handed out the new one knows no partition: they are not live.
        self.owner = self._new_owner()

    @Service.task
    async def _watchdog(self) -> None:
        """Counts its own ticks: a process that was stopped and goes on (SIGCONT) has not been hanging."""
        seen, silent = 0.0, 0
        while not self.should_stop:
            await self.sleep(1.0)
            beat = self.owner.progress.beat
            works = self.owner.is_alive() and not self._leaving  # leaving has a deadline of its own
            seen, silent = beat, silent + 1 if beat == seen and works else 0
            if silent > self.app.watchdog_seconds:
                logger.critical("the owning thread made no progress for %d s; the process exits", silent)
                faulthandler.dump_traceback()
                os._exit(HUNG)

    # -- called by the owning thread ---------------------------------------------------------------------------------------

    def _deliver(self, chunk: Chunk) -> None:
        self._main.call_soon_threadsafe(self._inbox.put_nowait, chunk)

    def _on_assigned(self, full: set[TP]) -> None:
        asyncio.run_coroutine_threadsafe(self._tell_faust(full), self._main).result(self.app.watchdog_seconds)

    async def _tell_faust(self, full: set[TP]) -> None:
        self.app.consumer_generation_id = GENERATION
        self.app.on_rebalance_start()
        await self.on_partitions_assigned(full, GENERATION)

    def _on_crashed(self, error: BaseException) -> None:
        logger.critical("the worker cannot go on: %s", error)
        asyncio.run_coroutine_threadsafe(self.crash(error), self._main)

    # -- called by Faust, on its loop --------------------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """The agents are ready: enter the group, or let a standby decide. What to read stands in the app's configuration."""
        del topics
        if self._subscribed:
            return
        self._subscribed = True
        if self.app.stand_by is None:
            await self.enter()
        else:
            self.app.stand_by(self)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109 - Faust's signature
        """One message: all chunks that wait, so that small ones share one model call, up to one chunk's worth of records."""
        try:
            chunks = [await asyncio.wait_for(self._inbox.get(), timeout)]
        except TimeoutError:
            return
        records = len(chunks[0].records)
        while not self._inbox.empty() and records < self.owner.chunk_records:
            chunks.append(self._inbox.get_nowait())
            records += len(chunks[-1].records)
        first, payload = chunks[0], cast(Any, chunks)
        tp = first.ledger.partition
        fields = (*tp, first.offset, 0.0, 0, None, None, payload, None, 0, 0, tp)
        yield tp, ConsumerMessage(*fields, generation_id=GENERATION)

    def ack(self, message: Any) -> bool:
        """Acks of Faust decide nothing: it acks failed messages too."""
        del message
        return True

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commits belong to the ledger."""
        del topics, start_new_transaction
        return False

    async def wait_empty(self) -> None:
        """Nothing is drained: what is not produced goes to the next owner."""

    async def perform_seek(self) -> None:
        """librdkafka starts at the committed offsets by itself."""

    async def verify_all_partitions_active(self) -> None:
        """Faust's detector of stalls misleads both ways; ours are the watchdog and /health."""

    def assignment(self) -> set[TP]:
        """The partitions held."""
        return set(self.owner.ledgers)


def _unused(name: str) -> Any:
    async def refuse(self: Consumer, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"Consumer.{name} has no meaning here: the ledger decides")

    return refuse


# Faust declares more abstract methods than it calls on this path. A call to one of them is a mistake, and says so.
for _name in ChunkConsumer.__abstractmethods__:
    setattr(ChunkConsumer, _name, _unused(_name))
ChunkConsumer.__abstractmethods__ = frozenset()


class NoProducer(base.Producer):
    """Faust's producer is never used: the owning thread has its own."""

    logger = _services

    async def flush(self) -> None:
        """Nothing is ever in it."""


class ChunkConductor(conductor.Conductor):
    """Hands messages to streams without decoding, and without a task for each."""

    logger = _services

    def _build_handler(self, tp: TP, channels: Any) -> Any:
        del tp

        async def on_message(message: ConsumerMessage) -> None:
            await self.app.flow_control.acquire()
            message.incref(len(channels))
            for channel in list(channels):
                await channel.put(self.app.create_event(None, message.value, None, message))

        return on_message


class Transport(base.Transport):
    """``rdkafka://host:port,host:port``."""

    Consumer: ClassVar[type] = ChunkConsumer
    Producer: ClassVar[type] = NoProducer
    Conductor: ClassVar[type] = ChunkConductor
    default_port = 9092
    driver_version = "confluent-kafka"


class _SafeFlow(FlowControlEvent):
    """Faust's resume empties every stream's queue, even if nothing was suspended: it would drop live chunks."""

    def resume(self) -> None:
        if not self.is_active():
            super().resume()


class ChunkApp(faust.App):
    """A Faust app on this transport. It has no tables: our driver does not recover them."""

    logger = _services
    owner_config: OwnerConfig
    watchdog_seconds: float
    stand_by: Callable[[ChunkConsumer], None] | None

    def _create_directories(self) -> None:
        """Faust would make folders for its tables."""

    @property
    def flow_control(self) -> FlowControlEvent:
        """See `_SafeFlow`."""
        if "_safe_flow" not in self.__dict__:
            self.__dict__["_safe_flow"] = _SafeFlow(loop=self.loop)
        return cast(FlowControlEvent, self.__dict__["_safe_flow"])

    @property
    def owner(self) -> Owner:
        """The thread that owns consumer, ledgers and producer."""
        return cast(ChunkConsumer, self.consumer).owner


def make_app(
    app_id: str,
    config: OwnerConfig,
    *,
    watchdog_seconds: float,
    stand_by: Callable[[ChunkConsumer], None] | None = None,
) -> ChunkApp:
    """A Faust app whose agents get lists of chunks.

    Args:
        app_id: the consumer group.
        config: of the owning thread.
        watchdog_seconds: the process ends if the owning thread makes no progress for so long.
        stand_by: called on the app's loop, once, instead of entering the group; `ChunkConsumer.enter` is then up to it.
    """
    app = ChunkApp(
        app_id,
        broker=f"rdkafka://{config.consumer['bootstrap.servers']}",
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        web_enabled=False,
        stream_buffer_maxsize=4,
    )
    app.owner_config = config
    app.watchdog_seconds = watchdog_seconds
    app.stand_by = stand_by
    return app


def run(app: ChunkApp) -> None:
    """Run the app until SIGTERM or SIGINT. Does not return: the process exits, with 1 where the app crashed."""
    worker = faust.Worker(app, quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()


def watchdog_of(session: float) -> float:
    """After how many seconds without progress a process ends that is a member of a group with this session."""
    return max(WATCHDOG_SECONDS, 2 * session)

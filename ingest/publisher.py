"""Events from Python services to Kafka: confirmed, in order, and held back rather than lost."""

import asyncio
import contextlib
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ecluse import kafka
from ecluse.contract.codecs import CONTENT_TYPES, Encoding, encoder
from ecluse.contract.headers import cloud_event_headers
from ecluse.contract.records import Source
from ecluse.errors import DeliveryError, RecordError, Stage, TopicsWrong
from ecluse.settings import Settings

#: How long the polling thread sleeps where no delivery report comes, in seconds.
_POLL_SECONDS = 0.05
#: Encoded records that are handed over before other tasks of the event loop have their turn.
_SLICE = 1_000
#: How long the records that are given up at the end may take to report so, in seconds.
_PURGE_SECONDS = 5.0
#: What Kafka adds to a batch with one record: the batch's header, and the lengths inside the record at their longest.
_BATCH_OVERHEAD = 61 + 21
_HEADER_OVERHEAD = 10

Outcome = KafkaError | tuple[int, int]  # what the broker refused, or the partition and offset
Report = tuple[asyncio.Future[Source] | None, Outcome]


class Publisher:
    """Publishes events to a stream's events topic; an async context manager, for one event loop.

    ``async with Publisher(settings) as publisher: source = await publisher.publish({"amount": 12.5})``

    While the broker is away, `publish` waits: at most `max_unconfirmed` events are in hand, and none is dropped. Leaving
    the context waits for the last confirmations. The Kafka timestamp is never set: an event's time travels in the event
    or in ``ce_time``.

    Args:
        settings: the stream and its cluster.
        topic: another topic of the stream, as for labels; the events topic where empty.
        source: the CloudEvents source, a URI reference that names the service; ``/<stream>`` where empty.
        kind: the CloudEvents type; ``ecluse.<stream>.event`` where empty.
        encoding: the events' format; JSON can be read by any consumer.
        max_unconfirmed: events that may wait for the broker's confirmation at a time.
        flush_seconds: how long leaving the context waits for the last confirmations.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        topic: str = "",
        source: str = "",
        kind: str = "",
        encoding: Encoding = "json",
        max_unconfirmed: int = 10_000,
        flush_seconds: float = 30.0,
    ) -> None:
        if max_unconfirmed < 1:
            raise ValueError("max_unconfirmed must be 1 or more")
        self.settings = settings
        self.topic = topic or settings.names.events
        self.source = source or f"/{settings.stream.name}"
        self.kind = kind or f"{settings.names.prefix}event"
        self._encode = encoder(encoding)
        self._content_type = CONTENT_TYPES[encoding]
        self._limit = settings.topics.max_message_bytes
        self._max_unconfirmed = max_unconfirmed
        self._flush_seconds = flush_seconds
        self._link: _Link | None = None
        self._sent = 0
        self._confirmed = 0
        self._refused: KafkaError | None = None

    @property
    def confirmed(self) -> int:
        """How many events the broker has confirmed."""
        return self._confirmed

    @property
    def unconfirmed(self) -> int:
        """How many events wait for the broker's confirmation."""
        return self._sent - self._confirmed

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnreachable: no broker answered.
            TopicsWrong: there is no such topic.
        """
        present = await asyncio.to_thread(kafka.partition_counts, self.settings)
        if self.topic not in present:
            raise TopicsWrong([f"The topic {self.topic} is missing: `ecluse topics create` makes it."])
        self._turn = asyncio.Lock()  # first come, first served, so that waiting events keep their order
        self._progress = asyncio.Event()
        self._link = _Link(self._producer(), asyncio.get_running_loop(), self._settle)
        return self

    def _producer(self) -> Producer:
        limits = {
            # librdkafka counts a record until its report was served: its queue is the bound on unconfirmed events.
            "queue.buffering.max.messages": self._max_unconfirmed,
            "queue.buffering.max.kbytes": max(64 * 1024, 2 * self._limit // 1024),
            "batch.size": min(1 << 20, self._limit),
            "message.max.bytes": self._limit,
            # Every event has a confirmation of its own: one that the broker refuses must not end the others.
            "enable.gapless.guarantee": False,
        }
        return Producer(kafka.producer_config(self.settings) | limits)

    async def publish(
        self,
        event: Mapping[str, Any] | msgspec.Struct,
        *,
        key: str | bytes | None = None,
        id: str | None = None,
        time: dt.datetime | None = None,
    ) -> Source:
        """Publish one event and return where it stands, once the broker has confirmed it.

        An event whose `publish` was cancelled may still be delivered.

        Args:
            event: a flat object.
            key: the entity (card, customer), whose events keep their order; the event's `stream.key_field` where None.
            id: the CloudEvents id; the event's `stream.id_field` where None, else a random UUID.
            time: when it happened (UTC where it names no zone), where no field of the event says so.

        Raises:
            RecordError: the event cannot be encoded.
            DeliveryError: the event is too large, or the broker refused it.
        """
        stream = self.settings.stream
        key = _text(event, stream.key_field) if key is None else key
        id = id or _text(event, stream.id_field) or str(uuid.uuid4())
        headers = cloud_event_headers(id, self.source, self.kind, _rfc3339(time), self._content_type)
        future: asyncio.Future[Source] = asyncio.get_running_loop().create_future()
        async with self._turn_of_open():
            await self._hand_over(key.encode() if isinstance(key, str) else key, self._encoded(event), headers, future)
        return await future

    async def publish_encoded(
        self, records: Iterable[tuple[bytes | None, bytes]], headers: list[tuple[str, Any]] | None = None
    ) -> None:
        """Publish keys and encoded values, all with the same `headers` or none, as fast as the broker takes them.

        Returns when the last one is handed over, not confirmed: `confirmed` counts, and `flush` waits.

        Raises:
            DeliveryError: a record is too large, or the broker refused one of this call or an earlier one.
        """
        remaining = iter(records)
        async with self._turn_of_open():
            while part := list(islice(remaining, _SLICE)):
                self._raise_refused()
                for key, value in part:
                    await self._hand_over(key, value, headers, None)
                await asyncio.sleep(0)

    async def flush(self) -> None:
        """Wait until every event is confirmed.

        Raises:
            DeliveryError: some were not within `flush_seconds`, or the broker refused one of `publish_encoded`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._flush_seconds):
                while self.unconfirmed:
                    self._progress.clear()
                    await self._progress.wait()
        self._raise_refused()
        if self.unconfirmed:
            raise DeliveryError(
                self.topic, f"{self.unconfirmed:,} records were not confirmed within {self._flush_seconds:g} s."
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the last confirmations, then disconnect.

        Raises:
            DeliveryError: some events were not confirmed in time; where an error is under way already, a note on it says so.
        """
        link, self._link = self._link, None
        try:
            await self.flush()
        except DeliveryError as undelivered:
            if error is None:
                raise
            error.add_note(str(undelivered))
        finally:
            if link:
                await asyncio.shield(asyncio.to_thread(link.close))

    def _turn_of_open(self) -> asyncio.Lock:
        if self._link is None:
            raise DeliveryError(self.topic, "the publisher is not open; use it with `async with`.")
        return self._turn

    async def _hand_over(
        self,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, Any]] | None,
        future: asyncio.Future[Source] | None,
    ) -> None:
        """Give one record to librdkafka; wait where its queue is full."""
        self._require_room(key, value, headers or ())
        while True:
            if self._link is None:
                raise DeliveryError(self.topic, "the publisher was closed before the broker took it.")
            self._progress.clear()
            try:
                self._link.produce(self.topic, key, value, headers, future)
            except BufferError:
                await self._progress.wait()
            except KafkaException as error:
                raise DeliveryError(self.topic, f"{error.args[0].str()}.") from error
            else:
                self._sent += 1
                return

    def _encoded(self, event: Mapping[str, Any] | msgspec.Struct) -> bytes:
        try:
            return self._encode(event)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise RecordError(Stage.PRODUCE, f"The event cannot be encoded: {error}.") from error

    def _require_room(self, key: bytes | None, value: bytes, headers: Iterable[tuple[str, bytes]]) -> None:
        size = len(value) + len(key or b"") + _BATCH_OVERHEAD
        size += sum(len(name) + len(content) + _HEADER_OVERHEAD for name, content in headers)
        if size > self._limit:
            raise DeliveryError(
                self.topic, f"it has {size:,} bytes, and the limit is {self._limit:,} (topics.max_message_bytes)."
            )

    def _raise_refused(self) -> None:
        if self._refused:
            raise DeliveryError(self.topic, f"{self._refused.str()}.")

    def _settle(self, reports: list[Report]) -> None:
        """Take the delivery reports over, in the event loop."""
        for future, outcome in reports:
            if isinstance(outcome, KafkaError):
                self._sent -= 1
                if future is None:
                    self._refused = self._refused or outcome
                elif not future.done():
                    future.set_exception(DeliveryError(self.topic, f"{outcome.str()}."))
                continue
            self._confirmed += 1
            if future is not None and not future.done():
                future.set_result(Source(self.topic, *outcome))
        self._progress.set()


class _Link:
    """A librdkafka producer and the thread that polls it: reports reach the event loop a poll's worth at a time."""

    def __init__(
        self, producer: Producer, loop: asyncio.AbstractEventLoop, settle: Callable[[list[Report]], None]
    ) -> None:
        self._producer = producer
        self._loop = loop
        self._settle = settle
        self._reports: list[Report] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="ecluse-publisher", daemon=True)
        self._thread.start()

    def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, Any]] | None,
        future: asyncio.Future[Source] | None,
    ) -> None:
        report = self._report_bulk if future is None else partial(self._report, future)
        if headers is None:
            self._producer.produce(topic, value, key, on_delivery=report)
        else:
            self._producer.produce(topic, value, key, on_delivery=report, headers=headers)

    def close(self) -> None:
        """Give up what is not confirmed, and join the thread."""
        self._closing.set()
        self._thread.join()

    def _report_bulk(self, error: KafkaError | None, _: Message) -> None:
        self._reports.append((None, error or (0, 0)))

    def _report(self, future: asyncio.Future[Source], error: KafkaError | None, message: Message) -> None:
        self._reports.append((future, error or (message.partition() or 0, message.offset() or 0)))

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(_POLL_SECONDS)
            self._pass_on()
        if len(self._producer):
            with contextlib.suppress(KafkaException):  # after a fatal error there is nothing left to purge
                self._producer.purge()
                self._producer.flush(_PURGE_SECONDS)
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._reports:
            return
        reports, self._reports = self._reports, []
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, reports)


def _text(event: Mapping[str, Any] | msgspec.Struct, field: str | None) -> str | None:
    """A field's value as text; None where there is no such field, or it holds nothing."""
    if field is None:
        return None
    value = event.get(field) if isinstance(event, Mapping) else getattr(event, field, None)
    return None if value is None else str(value)


def _rfc3339(time: dt.datetime | None) -> str | None:
    if time is None:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).isoformat()

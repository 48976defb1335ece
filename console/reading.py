"""Reading a topic as it stands: spans of offsets, committed records only, outside any group."""

import datetime as dt
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Annotated, cast

import typer
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ecluse import kafka
from ecluse.contract.headers import Headers
from ecluse.errors import BrokerError, BrokerUnreachable, TopicsWrong
from ecluse.settings import Settings

#: From an offset (included) to an offset (excluded).
Span = tuple[int, int]

_BATCH = 10_000
#: A batch that is not full is handed over after this many seconds.
_BATCH_SECONDS = 0.02
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)([smhd])$")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str) -> float:
    """A time (RFC 3339; UTC where it names no zone) or a duration before now (30s, 15m, 2h, 7d), in seconds since 1970.

    Raises:
        typer.BadParameter: it is neither.
    """
    if found := _DURATION.match(text):
        return time.time() - float(found[1]) * _UNIT_SECONDS[found[2]]
    try:
        when = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}' is neither a time (2026-03-01T12:00:00Z) nor a duration (30s, 15m, 2h, 7d)."
        ) from error
    return (when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp()


SinceOption = Annotated[
    float | None,
    typer.Option(
        "--since",
        parser=moment,
        metavar="TIME",
        help="From this time on (2026-03-01T12:00:00Z), or a duration before now (30s, 15m, 2h, 7d).",
        show_default=False,
    ),
]


def reader(settings: Settings) -> Consumer:
    """A consumer outside any group that also says where a partition ends; its user closes it."""
    config = kafka.consumer_config(settings, f"{settings.names.prefix}readers")
    # What is fetched ahead bounds the memory of a command; librdkafka's default is 64 MB a consumer.
    return Consumer(config | {"enable.partition.eof": True, "queued.max.messages.kbytes": 16 * 1024})


def spans(settings: Settings, consumer: Consumer, topic: str, since: float | None = None) -> dict[int, Span]:
    """What each partition of `topic` holds now; `since` (seconds since 1970) leaves out what came before.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: there is no such topic.
    """
    count = kafka.partition_counts(settings).get(topic)
    if count is None:
        raise TopicsWrong([f"The topic {topic} is missing: `ecluse topics create` makes it."])
    held = {partition: kafka.watermarks(consumer, topic, partition) for partition in range(count)}
    if since is None:
        return held
    asked = [TopicPartition(topic, partition, int(since * 1e3)) for partition in held]
    found = consumer.offsets_for_times(asked, timeout=kafka.PATIENCE)
    if refused := next((place.error for place in found if place.error is not None), None):
        raise BrokerUnreachable(settings.kafka.bootstrap_servers, refused.str())
    starts = {place.partition: place.offset for place in found}
    # A negative answer means that no record is as late as that.
    return {p: (starts[p] if starts[p] >= 0 else high, high) for p, (_, high) in held.items()}


def batches(settings: Settings, consumer: Consumer, topic: str, wanted: Mapping[int, Span]) -> Iterator[list[Message]]:
    """The records of each span in batches, in order within a partition.

    Raises:
        BrokerUnreachable: nothing came for `kafka.PATIENCE` seconds.
        BrokerError: records were deleted before they could be read, or the broker refused.
    """
    ends = {partition: end for partition, (start, end) in wanted.items() if start < end}
    if not ends:
        return
    consumer.assign([TopicPartition(topic, partition, wanted[partition][0]) for partition in ends])
    deadline = time.monotonic() + kafka.PATIENCE
    while ends:
        batch = []
        for message in consumer.consume(_BATCH, timeout=_BATCH_SECONDS):
            partition, offset = message.partition() or 0, message.offset() or 0
            end = ends.get(partition, -1)
            if message.error() is not None:
                _end_or_raise(message)
                ends.pop(partition, None)
            elif offset < end:
                batch.append(message)
            if offset + 1 >= end:
                ends.pop(partition, None)
        if batch:
            yield batch
            deadline = time.monotonic() + kafka.PATIENCE
        elif ends and time.monotonic() > deadline:
            raise BrokerUnreachable(settings.kafka.bootstrap_servers, f"no record of {topic} came in time")


def records(settings: Settings, consumer: Consumer, topic: str, wanted: Mapping[int, Span]) -> Iterator[Message]:
    """The records of each span, one by one; raises as `batches` does."""
    for batch in batches(settings, consumer, topic, wanted):
        yield from batch


def newest(settings: Settings, consumer: Consumer, topic: str, held: Mapping[int, Span], count: int) -> list[Message]:
    """The latest `count` records within the spans, oldest first; raises as `batches` does."""
    reach = count
    while True:
        wanted = {p: (max(start, end - reach), end) for p, (start, end) in held.items()}
        found: dict[int, deque[Message]] = {p: deque(maxlen=count) for p in held}
        for message in records(settings, consumer, topic, wanted):
            found[message.partition() or 0].append(message)
        if all(len(found[p]) == count or wanted[p] == held[p] for p in held):
            break
        reach *= 4  # offsets that hold no record (transaction markers) lie between
    ordered = sorted((message for kept in found.values() for message in kept), key=lambda record: record.timestamp()[1])
    return ordered[-count:]


def follow(consumer: Consumer, topic: str, held: Mapping[int, Span]) -> Iterator[Message]:
    """The records that come after the spans, for ever.

    Raises:
        BrokerError: the broker refused.
    """
    consumer.assign([TopicPartition(topic, partition, end) for partition, (_, end) in held.items()])
    while True:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error() is None:
            yield message
        else:
            _end_or_raise(message)


def _end_or_raise(message: Message) -> None:
    """Let the end of a partition pass.

    Raises:
        BrokerError: the message is another error.
    """
    error = message.error()
    if error is None or error.code() == KafkaError._PARTITION_EOF:
        return
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise BrokerError(f"Records of {message.topic()} were deleted while they were read: run the command again.")
    raise KafkaException(error)


def headers_of(message: Message) -> Headers:
    """A record's headers; none give an empty list."""
    return cast(Headers, message.headers() or [])


def printable(text: object, width: int = 80) -> str:
    """Foreign text in one line of at most `width` characters that cannot steer a terminal."""
    line = "".join(char if char.isprintable() else "�" for char in str(text))
    return line if len(line) <= width else line[: width - 1] + "…"


def clock_time(when: float) -> str:
    """Seconds since 1970 as a time in UTC for people; a time that no calendar holds as the number."""
    try:
        return dt.datetime.fromtimestamp(when, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{when:g}"


def percent(share: float) -> str:
    """A share for people: 2%, 0.05%."""
    return f"{100 * share:.4g}%"

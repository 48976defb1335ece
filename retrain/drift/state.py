"""Where the monitor stands: the newest state on the drift topic, and not the group's offset.

A state is written in one transaction with the reports and requests that it follows. Whoever takes over reads it back once every
transaction of those before it has ended, so that it knows of all that they said, and reads the profiles on from there.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import msgspec
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import OffsetSpec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.loop import DriftReport
from ecluse.contract.records import ModelName, Moment
from ecluse.errors import DataError, cause
from ecluse.settings import Settings

T = TypeVar("T")

#: How long one question to the broker may take, in seconds; it is asked again until the deadline.
ASK_SECONDS = 5.0
#: How many of the newest offsets are read first; with no state among them, eight times as many, and so on.
REACH = 64


class MonitorState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the monitor of a model stands: what came of all profiles before the offset `profiles`.

    `stream_time` is how far the stream has come, on its clock; None before that has begun. `fold` is what `Fold.dump` gives,
    `reports` the newest on each version that is followed. `written_at` is on the wall's clock.
    """

    model: ModelName
    profiles: int
    stream_time: Moment | None
    written_at: Moment
    fold: bytes
    reports: tuple[DriftReport, ...] = ()

    @property
    def key(self) -> str:
        """The record's key on the drift topic."""
        return f"state/{self.model}"


def group_of(settings: Settings) -> str:
    """The monitors' consumer group."""
    return f"{settings.names.prefix}monitor"


def restore(settings: Settings, patience: float) -> MonitorState | None:
    """The newest state that is committed; None where there is none. What other monitors may still commit is waited for.

    Args:
        settings: the stream's.
        patience: how long that may take, in seconds: longer than a transaction may stay open.

    Raises:
        KafkaException: the broker did not answer, or a transaction stayed open, for so long.
        DataError: the state cannot be read.
    """
    deadline = time.monotonic() + patience
    with closing(_consumer(settings)) as consumer:
        # An offset that is sent and not committed yet is told by the broker only once it is (KIP-447); who has not sent his by
        # now cannot any more, because the group has another generation. So all that can still be committed is.
        _asked(lambda: _sent(settings, consumer), deadline)
        # Its markers may come to the drift topic a moment later: hence the end is that of records of any kind.
        end = _asked(lambda: _end(settings), deadline)
        return newest_state(settings, consumer, end, deadline)


def read_state(settings: Settings) -> MonitorState | None:
    """The newest committed state as it stands now; None where there is none.

    Raises:
        KafkaException: the broker did not answer in time.
    """
    deadline = time.monotonic() + kafka.PATIENCE
    with closing(_consumer(settings)) as consumer:
        _, end = _asked(lambda: kafka.watermarks(consumer, settings.names.drift, 0), deadline)
        return newest_state(settings, consumer, end, deadline)


def unread(settings: Settings) -> int:
    """How many offsets of the profiles no monitor has read yet.

    Raises:
        KafkaException: the broker did not answer in time.
    """
    deadline, topic = time.monotonic() + kafka.PATIENCE, settings.names.profiles
    config = kafka.consumer_config(settings, group_of(settings)) | {"isolation.level": "read_uncommitted"}
    with closing(Consumer(config)) as consumer:
        read = _asked(lambda: _sent(settings, consumer), deadline)
        low, high = _asked(lambda: kafka.watermarks(consumer, topic, 0), deadline)
        return max(0, high - max(low, read))


def newest_state(settings: Settings, consumer: Consumer, end: int, deadline: float) -> MonitorState | None:
    """The last committed state before an offset of the drift topic, looked for from there backwards; None where there is none.

    Raises:
        KafkaException: the topic could not be read to that offset by the deadline.
        DataError: the state cannot be read.
    """
    topic = settings.names.drift
    key = f"state/{settings.model_name}".encode()
    low, _ = _asked(lambda: kafka.watermarks(consumer, topic, 0), deadline)
    start, reach = end, REACH
    while start > low:
        start = max(low, end - reach)
        found = [message for message in _committed(consumer, topic, start, end, deadline) if message.key() == key]
        if found:
            return _read(found[-1])
        reach *= 8
    return None


def _read(message: Message) -> MonitorState | None:
    """The state in a record; None where it was deleted by hand, so that the monitor begins anew."""
    value = message.value()
    try:
        return None if value is None else Reader(MonitorState)(value)
    except msgspec.DecodeError as error:
        place = f"{message.topic()}, offset {message.offset()}"
        raise DataError(f"The monitor's state ({place}) cannot be read: {cause(error)}.") from error


def _consumer(settings: Settings) -> Consumer:
    return Consumer(kafka.consumer_config(settings, group_of(settings)) | {"enable.partition.eof": True})


def _committed(consumer: Consumer, topic: str, start: int, end: int, deadline: float) -> Iterator[Message]:
    """The committed records from one offset to before another, once every transaction in between has ended."""
    consumer.assign([TopicPartition(topic, 0, start)])
    position = start
    while position < end:
        if time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{topic} could not be read to its end"))
        message = consumer.poll(0.5)
        if message is None:
            continue
        error, offset = message.error(), message.offset() or 0
        if error is None:
            position = offset + 1
            if offset < end:
                yield message
        elif error.code() == KafkaError._PARTITION_EOF:
            position = offset  # the end of what is committed, past markers and what compaction took
        elif error.fatal():
            raise KafkaException(error)


def _sent(settings: Settings, consumer: Consumer) -> int:
    """The monitors' offset in the profiles; negative where there is none."""
    (place,) = consumer.committed([TopicPartition(settings.names.profiles, 0)], timeout=ASK_SECONDS)
    if place.error is not None:
        raise KafkaException(place.error)
    return int(place.offset)


def _end(settings: Settings) -> int:
    """The offset after all that stands on the drift topic, of transactions that have ended or not."""
    client, place = kafka.admin(settings), TopicPartition(settings.names.drift, 0)
    every = IsolationLevel.READ_UNCOMMITTED
    asked = client.list_offsets({place: OffsetSpec.latest()}, isolation_level=every, request_timeout=ASK_SECONDS)
    try:
        return int(asked[place].result(ASK_SECONDS + 1.0).offset)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "it does not tell where the topic ends")) from error


def _asked(question: Callable[[], T], deadline: float) -> T:
    """The broker's answer; it is asked again until the deadline."""
    again = retry_if_exception_type(KafkaException)
    left = stop_after_delay(max(0.0, deadline - time.monotonic()))
    return Retrying(stop=left, wait=wait_fixed(0.1), retry=again, reraise=True)(question)

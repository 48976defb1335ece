"""What the owning thread makes of what librdkafka gives it: places, runs of records, errors that pass or do not, and where to
read on."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from ecluse.errors import BrokerError
from ecluse.transport.ledger import Ledger, Record

logger = logging.getLogger(__name__)

#: Says from which offsets the app wants partitions to be read.
Start = Callable[[Collection[TP]], Mapping[TP, int]]

CHUNK_BYTES = 2 * 1024 * 1024
#: How long a question about committed offsets may take; it is asked again.
ASK_SECONDS = 1.0
#: How long waking the fetching may take.
WAKE_SECONDS = 0.2


def place_of(message: Message) -> Any:
    """Topic and partition as a plain tuple: it equals and hashes like TP, and costs a third."""
    return message.topic(), message.partition()


def partition_of(place: TopicPartition) -> TP:
    """Faust's name of a partition."""
    return TP(place.topic, place.partition)


def split(records: list[Record], most: int) -> list[list[Record]]:
    """Cut records into runs of at most `most` records and `CHUNK_BYTES` bytes; a larger record is a run by itself."""
    if not records:
        return []
    if len(records) <= most and sum(map(len, records)) <= CHUNK_BYTES:
        return [records]
    runs: list[list[Record]] = [[]]
    size = 0
    for record in records:
        if runs[-1] and (len(runs[-1]) == most or size + len(record) > CHUNK_BYTES):
            runs.append([])
            size = 0
        runs[-1].append(record)
        size += len(record)
    return runs


def no_offset(group: str, reason: str) -> BrokerError:
    """The group's place in a partition is not known: to guess would score events again, or skip them."""
    return BrokerError(
        f"An offset of group {group} is not on the broker any more, or was never set "
        f"({reason}). Events between it and the first that is held are lost; `ecluse doctor` shows where. "
        "Start with --from earliest or --from latest if the group has no offset yet."
    )


def judge(error: KafkaError, group: str) -> None:
    """Let an error of the consumer pass that passes by itself.

    Raises:
        BrokerError: the group has no usable offset.
        KafkaException: the consumer cannot go on.
    """
    if error.code() == KafkaError._AUTO_OFFSET_RESET:
        raise no_offset(group, error.str())
    if error.fatal() or error.code() in (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    ):
        raise KafkaException(error)
    logger.warning("consumer: %s", error.str())


def starts_of(consumer: Consumer, ledgers: Mapping[TP, Ledger], group: str) -> list[TopicPartition]:
    """Where each partition is read on after an abort: at what is committed.

    The broker is asked only where the ledger does not know it: in a rebalance its answer queues behind the group's, and it
    waits for the outcome of transactions that are still open (KIP-447).

    Raises:
        KafkaException: it did not answer in time.
        BrokerError: the group has no offset in a partition.
    """
    known, unknown = [], []
    for partition, ledger in ledgers.items():
        if ledger.committed is None:
            unknown.append(TopicPartition(*partition))
        else:
            known.append(TopicPartition(*partition, ledger.committed))
    answer = consumer.committed(unknown, timeout=ASK_SECONDS) if unknown else []
    for place in answer:
        if place.error is not None:
            raise KafkaException(place.error)
        if place.offset < 0:
            raise no_offset(group, "none is committed")
    return known + answer


def app_starts(start: Start, partitions: Iterable[TP]) -> list[TopicPartition]:
    """Where the app has partitions read from; the first record held where it does not say."""
    asked = tuple(partitions)
    chosen = start(asked)
    return [TopicPartition(*partition, chosen.get(partition, OFFSET_BEGINNING)) for partition in asked]


def lost(consumer: Consumer, ledgers: Mapping[TP, Ledger], partition: TP) -> BrokerError:
    """A partition does not hold the offset at which it was to be read: what is lost by that, in a sentence."""
    topic, number = partition
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ASK_SECONDS)
    position = ledgers[partition].position if partition in ledgers else None
    wanted = f"Partition {number} of {topic} is to be read on from offset {position},"
    if position is not None and position > high:
        return BrokerError(f"{wanted} and ends at {high}: it is not the topic that was read before.")
    return BrokerError(
        f"{wanted} and its retention has deleted all before {low}: what stood between is lost. "
        "`ecluse store --skip-lost` goes on behind it."
    )


def wake(consumer: Consumer, partitions: Iterable[TP]) -> None:
    """Have librdkafka fetch again at once.

    Around each rebalance and pause the threads that talk to the brokers sleep for up to a second, and a resume does not wake
    them (librdkafka 2.15), while any request to a partition's leader does.
    """
    places = [TopicPartition(*partition, int(time.time() * 1e3)) for partition in partitions]
    try:
        if places:
            consumer.offsets_for_times(places, timeout=WAKE_SECONDS)
    except KafkaException as error:
        logger.debug("fetching may begin a second late: %s", error.args[0].str())

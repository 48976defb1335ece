"""What the owning thread makes of what librdkafka gives it: places, runs of records, and errors that pass or do not."""

import logging
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from faust.types import TP

from ecluse.errors import BrokerError
from ecluse.transport.ledger import Record

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2 * 1024 * 1024


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

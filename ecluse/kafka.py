"""Kafka clients with the defaults that Écluse needs, made from the settings."""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from ecluse.errors import BrokerUnreachable
from ecluse.sections import KafkaSettings, WorkerSettings
from ecluse.settings import Settings

#: How long a call to the cluster may take before the cluster counts as unreachable, in seconds.
PATIENCE = 10.0

#: The wait before a broker that does not answer is asked again, in seconds; each question takes as long as its own patience.
LOOK_FOR_BROKER = 5.0

Config = dict[str, Any]
T = TypeVar("T")
logger = logging.getLogger(__name__)


def client_config(kafka: KafkaSettings) -> Config:
    """What every client needs to reach the cluster. Holds secrets: never log it."""
    config: Config = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "security.protocol": kafka.security_protocol,
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password.get_secret_value() if kafka.sasl_password else None,
        "ssl.ca.location": kafka.ssl_cafile and str(kafka.ssl_cafile),
        "ssl.certificate.location": kafka.ssl_certfile and str(kafka.ssl_certfile),
        "ssl.key.location": kafka.ssl_keyfile and str(kafka.ssl_keyfile),
        # librdkafka's default would leave events waiting for 10 s after the broker is back.
        "reconnect.backoff.max.ms": 1000,
        # What librdkafka prints by itself goes to stderr in its own format; errors reach us through the calls.
        "log_level": 2,
    }
    return {key: value for key, value in config.items() if value is not None}


def producer_config(settings: Settings) -> Config:
    """An idempotent producer without gaps: the report for a record vouches for all before it in its partition.

    `message.timeout.ms` is 0 (never), because a record that timed out would be a gap that the guarantee does not cover;
    while the broker is away records wait, and the bounded queue holds their producers back.
    """
    return client_config(settings.kafka) | {
        "enable.idempotence": True,
        "enable.gapless.guarantee": True,
        "message.timeout.ms": 0,
        "linger.ms": 5,
        "batch.size": 1 << 20,
        "compression.type": "lz4",
        "message.max.bytes": settings.topics.largest_output,
        "partitioner": "murmur2_random",
    }


def transactional_config(settings: Settings, transactional_id: str, timeout: float) -> Config:
    """A producer whose transactions the broker ends after `timeout` seconds; its records time out with them."""
    config = producer_config(settings) | {
        "transactional.id": transactional_id,
        "transaction.timeout.ms": int(timeout * 1e3),
    }
    del config["message.timeout.ms"]
    return config


def consumer_config(settings: Settings, group: str) -> Config:
    """A consumer that commits nothing by itself, reads committed records only, and fails where its offset is gone."""
    return client_config(settings.kafka) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        # librdkafka's default of a second stalls a consumer each time that its queue fills.
        "fetch.queue.backoff.ms": 10,
        "fetch.wait.max.ms": 10,
        "fetch.message.max.bytes": settings.topics.largest_output,
    }


def membership(worker: WorkerSettings, group: str) -> Config:
    """How a worker is a member of its group. With KIP-848 the broker holds the session and picks the partitions."""
    session = worker.session_timeout_seconds
    config: Config = {
        "max.poll.interval.ms": max(600_000, int(session * 1e3)),
        "queued.min.messages": 100_000,
        "queued.max.messages.kbytes": 64 * 1024,
        # A partition's share of an answer. With more, a backlog is read in long runs of one partition, and the others wait.
        "fetch.message.max.bytes": 512 * 1024,
    }
    if worker.static_member:
        config["group.instance.id"] = f"{group}-{worker.slot}"
    if worker.group_protocol == "consumer":
        return config | {"group.protocol": "consumer"}
    return config | {
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(session * 1e3),
        "heartbeat.interval.ms": min(500, int(session * 1e3 / 3)),  # a partition that moves waits for heartbeats
    }


def member_config(settings: Settings, group: str, port: int) -> Config:
    """A consumer that is a member of a group. Its client id says who it is and on which port it answers."""
    member = membership(settings.worker, group) | {"client.id": f"ecluse/{member_name()}/{port}"}
    return consumer_config(settings, group) | member


def slot(worker: WorkerSettings) -> str:
    """A member's place in its group; where none is set, one that no other has."""
    return worker.slot or f"{member_name()}-{uuid.uuid4().hex[:8]}"


def member_name() -> str:
    """This process among all members of its group: host and pid."""
    return f"{socket.gethostname()}-{os.getpid()}"


def offsets_config(settings: Settings) -> Config:
    """A consumer that only asks for the workers' committed offsets. One that reads committed records would be told of none
    while a transaction that moves them is open, which after a SIGKILL is until its time-out."""
    return consumer_config(settings, settings.group) | {"isolation.level": "read_uncommitted"}


def admin(settings: Settings) -> AdminClient:
    """A client for topics and groups. Keep a reference while its futures are open."""
    return AdminClient(client_config(settings.kafka))


@contextmanager
def reader(settings: Settings) -> Iterator[Consumer]:
    """A consumer outside any group, for reading partitions that its user assigns."""
    config = consumer_config(settings, f"{settings.names.prefix}readers") | {"enable.partition.eof": False}
    with closing(Consumer(config)) as consumer:
        yield consumer


def producer(settings: Settings) -> Producer:
    """A producer as `producer_config` makes it."""
    return Producer(producer_config(settings))


def partition_counts(settings: Settings) -> dict[str, int]:
    """How many partitions each topic of the cluster has.

    Raises:
        BrokerUnreachable: no broker answered in time.
    """
    client, deadline, wait = admin(settings), time.monotonic() + PATIENCE, 0.5
    while True:
        try:
            # Short calls, so that Ctrl-C is heard in between; longer ones then: a slow answer to an ended call is lost.
            metadata = client.list_topics(timeout=wait)
            break
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise BrokerUnreachable(settings.kafka.bootstrap_servers, error.args[0].str()) from error
            wait *= 2
    return {name: len(topic.partitions) for name, topic in metadata.topics.items()}


def once_coordinated(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call, and call again while a group's coordinator or a partition's leader is on its way (a broker or a topic that
    has only just come).

    Raises:
        KafkaException: another error, or it was not there within `PATIENCE`.
    """
    coming = {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._WAIT_COORD,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    }
    retrying = Retrying(
        stop=stop_after_delay(PATIENCE),
        wait=wait_fixed(0.1),
        retry=retry_if_exception(lambda error: isinstance(error, KafkaException) and error.args[0].code() in coming),
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def once_reachable(call: Callable[..., T], *args: Any) -> T:
    """Call, and call again for as long as no broker answers: for what must outlive an outage, also where it starts in one."""
    while True:
        try:
            return call(*args)
        except BrokerUnreachable as error:
            logger.warning("%s It is waited for.", error)
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            logger.warning("The broker does not answer yet: %s.", error.args[0].str())
        time.sleep(LOOK_FOR_BROKER)


def watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The first offset that a partition still holds, and the one after its last committed record."""
    low, high = once_coordinated(consumer.get_watermark_offsets, TopicPartition(topic, partition), timeout=PATIENCE)
    return low, high

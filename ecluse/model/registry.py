"""The `models` topic: which versions are released, and which of them score the stream. Compacted, one partition."""

import logging
import time
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from ecluse import kafka
from ecluse.contract.codecs import CONTENT_TYPE, CONTENT_TYPES, Reader, encoder
from ecluse.contract.records import Release, Route
from ecluse.errors import BrokerError, DeliveryError, ModelRefused, TopicsWrong
from ecluse.settings import Settings

log = logging.getLogger(__name__)

#: How long reading the topic, or a writer's turn, may take, in seconds.
_DEADLINE = 60.0
#: A client that was fenced calls it fatal on stderr; here it is another writer's turn, and errors reach us by the calls.
_client_log = logging.getLogger(f"{__name__}.client")
_client_log.addHandler(logging.NullHandler())
_client_log.propagate = False
_FENCED = frozenset({KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED})

_release = Reader(Release)
_route = Reader(Route)


@dataclass(frozen=True)
class Routed:
    """A route and its revision: its offset on the models topic."""

    route: Route
    revision: int


@dataclass
class Registry:
    """What the models topic holds: releases by name and version, the route of each name."""

    releases: dict[tuple[str, int], Release] = field(default_factory=dict)
    routes: dict[str, Routed] = field(default_factory=dict)

    def newest(self, name: str) -> int:
        """The highest version released under a name; 0 where there is none."""
        return max((version for model, version in self.releases if model == name), default=0)


def read_registry(settings: Settings) -> Registry:
    """Read the whole topic, to its end. A record that cannot be read is logged and passed over.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: the topic is missing.
        BrokerError: the topic could not be read to its end in time.
    """
    topic = settings.names.models
    if topic not in kafka.partition_counts(settings):
        raise TopicsWrong([f"The topic {topic} is missing: `ecluse topics create` makes it."])
    registry = Registry()
    config = kafka.consumer_config(settings, f"{settings.names.prefix}readers") | {"enable.partition.eof": True}
    with closing(Consumer(config)) as consumer:
        # Asked first, because an assignment to the beginning waits half a second where the leader is not known yet.
        start, _ = kafka.watermarks(consumer, topic, 0)
        consumer.assign([TopicPartition(topic, 0, start)])
        deadline = time.monotonic() + _DEADLINE
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            error = message.error() if message is not None else None
            if message is None:
                continue
            if error is None:
                _take(registry, message)
            elif error.code() == KafkaError._PARTITION_EOF:
                # The end of what is committed, past transaction markers and what compaction took.
                return registry
            elif not error.retriable():
                raise BrokerError(f"The topic {topic} cannot be read: {error.str()}.")
    raise BrokerError(f"The topic {topic} could not be read to its end within {_DEADLINE:.0f} s.")


def _take(registry: Registry, message: Message) -> None:
    """Put one record into the registry; a record without a value takes back what its key names."""
    try:
        kind, _, rest = (message.key() or b"").decode().partition("/")
        value = message.value()
        if kind == "release":
            name, _, version = rest.rpartition("/")
            release = _release(value) if value else None
            if release is None:
                registry.releases.pop((name, int(version)), None)
            else:
                _require_key(release.key, kind, rest)
                registry.releases[name, int(version)] = release
        elif kind == "route":
            route = _route(value) if value else None
            if route is None:
                registry.routes.pop(rest, None)
            else:
                _require_key(route.key, kind, rest)
                if not route.arms:
                    raise ValueError("a route names at least one arm")
                registry.routes[rest] = Routed(route, message.offset() or 0)
    except (msgspec.DecodeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        log.warning("%s: the record at offset %s is passed over: %s", message.topic(), message.offset(), error)


def _require_key(key: str, kind: str, rest: str) -> None:
    if key != f"{kind}/{rest}":
        raise ValueError(f"its key is {kind}/{rest}, but it speaks of {key}")


def announce(settings: Settings, release: Release, route: Route) -> int:
    """Write a release and the route that uses it, both or neither, and return the route's revision.

    Writers take turns: each opens the same transactional id, which fences the one before it; the fenced one tries again.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: the topic is missing.
        ModelRefused: the version is released already, with another artefact.
        DeliveryError: the broker did not take the records in time.
    """
    retrying = Retrying(
        stop=stop_after_delay(_DEADLINE),
        # Writers that come back at once would fence each other for ever.
        wait=wait_random_exponential(multiplier=0.5, max=5.0),
        retry=retry_if_exception(lambda error: isinstance(error, KafkaException) and error.args[0].code() in _FENCED),
        before_sleep=lambda _: log.info("Another writer took its turn on %s; trying again.", settings.names.models),
        reraise=True,
    )
    try:
        return retrying(_turn, settings, release, route)
    except KafkaException as error:
        raise DeliveryError(settings.names.models, error.args[0].str()) from error


def _turn(settings: Settings, release: Release, route: Route) -> int:
    config = kafka.producer_config(settings) | {
        "transactional.id": f"{settings.names.prefix}route",
        "transaction.timeout.ms": 10_000,
        "message.timeout.ms": 10_000,
        "logger": _client_log,
    }
    producer = Producer(config)
    producer.init_transactions(kafka.PATIENCE)
    # Only now nothing older can still be written: read what is there.
    taken = read_registry(settings).releases.get((release.name, release.version))
    if taken is not None and taken.manifest_sha256 != release.manifest_sha256:
        raise ModelRefused(f"Version {release.version} of model {release.name} is released already.")
    producer.begin_transaction()
    try:
        revision = _produce(producer, settings, release, route)
        producer.commit_transaction(kafka.PATIENCE)
    except KafkaException as error:
        if error.args[0].txn_requires_abort():
            producer.abort_transaction(kafka.PATIENCE)
        raise
    return revision


def _produce(producer: Producer, settings: Settings, release: Release, route: Route) -> int:
    """Produce both records, wait until the broker has them, and return the route's offset."""
    encoding = settings.stream.encoding
    encode = encoder(encoding)
    offsets: dict[str, int] = {}

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            offsets[(message.key() or b"").decode()] = message.offset() or 0

    for record in (release, route):
        producer.produce(
            settings.names.models,
            key=record.key,
            value=encode(record),
            headers=[(CONTENT_TYPE, CONTENT_TYPES[encoding])],
            partition=0,
            on_delivery=delivered,
        )
    producer.flush(kafka.PATIENCE)
    if route.key not in offsets:
        # A fenced producer's commit raises what it is; the revision is not needed then.
        producer.commit_transaction(kafka.PATIENCE)
        raise DeliveryError(settings.names.models, "the broker did not confirm the route in time")
    return offsets[route.key]

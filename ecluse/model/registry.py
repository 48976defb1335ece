"""The `models` topic: which versions are released, which of them score the stream, what goes past them, what was trained.

Compacted, one partition.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import msgspec
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.loop import Run
from ecluse.contract.records import Release, Route, Switch
from ecluse.errors import BrokerError, TopicsWrong
from ecluse.settings import Settings

log = logging.getLogger(__name__)

#: How long reading the topic may take, in seconds.
READ_SECONDS = 60.0

Record = TypeVar("Record", Release, Route, Run, Switch)

_READERS: dict[str, Reader[Any]] = {
    "release": Reader(Release),
    "route": Reader(Route),
    "run": Reader(Run),
    "switch": Reader(Switch),
}


@dataclass(frozen=True)
class Routed:
    """A route and its revision: its offset on the models topic."""

    route: Route
    revision: int


@dataclass(frozen=True)
class Switched:
    """A bypass switch and its revision: its offset on the models topic."""

    switch: Switch
    revision: int


@dataclass
class Registry:
    """What the models topic holds: releases by name and version, the route and the bypass switch of each name, the
    trainer's runs by name and request."""

    releases: dict[tuple[str, int], Release] = field(default_factory=dict)
    routes: dict[str, Routed] = field(default_factory=dict)
    switches: dict[str, Switched] = field(default_factory=dict)
    runs: dict[tuple[str, str], Run] = field(default_factory=dict)

    def newest(self, name: str) -> int:
        """The highest version released under a name; 0 where there is none."""
        return max((version for model, version in self.releases if model == name), default=0)

    def add(self, record: Release | Route | Run | Switch, offset: int) -> None:
        """Take in a record that stands at an offset of the topic."""
        match record:
            case Release():
                self.releases[record.name, record.version] = record
            case Route():
                self.routes[record.name] = Routed(record, offset)
            case Run():
                self.runs[record.name, record.request] = record
            case Switch():
                self.switches[record.name] = Switched(record, offset)

    def remove(self, kind: str, named: str) -> None:
        """Drop what a key names, as ``kind/named``.

        Raises:
            ValueError: a release is named without a version.
        """
        if kind == "release":
            name, _, version = named.rpartition("/")
            self.releases.pop((name, int(version)), None)
        elif kind == "run":
            name, _, request = named.partition("/")
            self.runs.pop((name, request), None)
        else:
            (self.routes if kind == "route" else self.switches).pop(named, None)

    def holds(self, record: Release | Route | Run | Switch) -> bool:
        """Whether this very record stands on the topic, and no later one took its place."""
        if isinstance(record, Release):
            return self.releases.get((record.name, record.version)) == record
        if isinstance(record, Run):
            return self.runs.get((record.name, record.request)) == record
        if isinstance(record, Switch):
            switched = self.switches.get(record.name)
            return switched is not None and switched.switch == record
        routed = self.routes.get(record.name)
        return routed is not None and routed.route == record

    def revisions(self, records: Iterable[Release | Route | Run | Switch]) -> dict[str, int]:
        """The revision of each route and switch among records that stand on the topic, by its key."""
        return {
            record.key: self.routes[record.name].revision
            if isinstance(record, Route)
            else self.switches[record.name].revision
            for record in records
            if not isinstance(record, Release | Run)
        }


class RegistryReader:
    """Follows the models topic from its start. A context, in whose end its consumer is closed; used by one thread.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: the topic is missing.
    """

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.names.models
        if self._topic not in kafka.partition_counts(settings):
            raise TopicsWrong([f"The topic {self._topic} is missing: `ecluse topics create` makes it."])
        self.registry = Registry()
        config = kafka.consumer_config(settings, f"{settings.names.prefix}readers") | {"enable.partition.eof": True}
        self._consumer = Consumer(config)
        try:
            # Asked first, because an assignment to the beginning waits half a second where the leader is not known yet.
            start, _ = kafka.watermarks(self._consumer, self._topic, 0)
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.assign([TopicPartition(self._topic, 0, start)])
        self._position = start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def poll(self, seconds: float) -> bool:
        """Take in the next record, waiting for it at most so long; whether anything came.

        Raises:
            BrokerError: the topic cannot be read.
        """
        message = self._consumer.poll(seconds)
        error = message.error() if message is not None else None
        if message is None:
            return False
        if error is None:
            _take(self.registry, message)
            self._position = (message.offset() or 0) + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            # The end of what is committed, past transaction markers and what compaction took.
            self._position = message.offset() or 0
        elif not error.retriable():
            raise BrokerError(f"The topic {self._topic} cannot be read: {error.str()}.")
        return True

    def catch_up(self) -> None:
        """Take in what has come by now.

        Raises: as `poll`.
        """
        while self.poll(0.0):
            pass

    def read_to_end(self, seconds: float) -> Registry:
        """All that is committed on the topic at this moment.

        Raises:
            BrokerError: the topic could not be read to its end in time.
            KafkaException: the broker does not say where that is.
        """
        _, end = kafka.watermarks(self._consumer, self._topic, 0)
        self.read_to(end, seconds)
        return self.registry

    def read_to(self, end: int, seconds: float) -> None:
        """Take in all records before an offset, and wait for those that are on their way.

        Raises:
            BrokerError: they were not there in time.
        """
        deadline = time.monotonic() + seconds
        while self._position < end:
            if time.monotonic() > deadline:
                raise BrokerError(f"The topic {self._topic} could not be read to its end within {seconds:.0f} s.")
            self.poll(0.5)


def read_registry(settings: Settings) -> Registry:
    """Read the whole topic, to its end. A record that cannot be read is logged and passed over.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: the topic is missing.
        BrokerError: the topic could not be read to its end in time.
    """
    with RegistryReader(settings) as reader:
        return reader.read_to_end(READ_SECONDS)


def _take(registry: Registry, message: Message) -> None:
    """Put one record into the registry; one without a value takes back what its key names. Other kinds are not ours."""
    try:
        key, value = (message.key() or b"").decode(), message.value()
        kind, _, rest = key.partition("/")
        if kind not in _READERS:
            return
        if value is None:
            registry.remove(kind, rest)
        else:
            registry.add(_require_key(_READERS[kind](value), key), message.offset() or 0)
    except (msgspec.DecodeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        log.warning("%s: the record at offset %s is passed over: %s", message.topic(), message.offset(), error)


def _require_key(record: Record, key: str) -> Record:
    if record.key != key:
        raise ValueError(f"its key is {key}, but it speaks of {record.key}")
    return record

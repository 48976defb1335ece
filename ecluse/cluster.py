"""The stream's topics and its workers' group on the cluster: make them, and hold them against what the stream needs."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import ConfigResource, NewTopic
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from ecluse import kafka
from ecluse.contract.topics import TopicSpec
from ecluse.errors import BrokerError, BrokerUnreachable, TopicsWrong
from ecluse.settings import Settings

Where = Literal["earliest", "latest"]

#: How long one look at the lag may wait for an answer, in seconds: who looks again and again must stay able to act.
_LOOK_SECONDS = 2.0


def create_topics(settings: Settings) -> list[str]:
    """Make the topics that are missing, seed the group's offsets at the events' start, and return the names made.

    Raises:
        BrokerUnreachable: no broker answered.
        TopicsWrong: a topic that is there already is not as it must be.
        BrokerError: the broker refused to make one.
    """
    missing = _make_missing(settings, settings.topic_specs)
    require_topics(settings)
    seed_offsets(settings, "earliest")
    return missing


def require_replays(settings: Settings) -> None:
    """Make the topic of replays where it is missing, with as many partitions as the events have, and hold it against that.

    Raises:
        BrokerUnreachable: no broker answered.
        TopicsWrong: it is there already, and is not as it must be.
        BrokerError: the broker refused to make it.
    """
    _make_missing(settings, [settings.replays_spec])
    if problems := _problems(settings, [settings.replays_spec]):
        raise TopicsWrong(problems)


def _make_missing(settings: Settings, specs: Sequence[TopicSpec]) -> list[str]:
    present = kafka.partition_counts(settings)
    missing = [spec for spec in specs if spec.name not in present]
    client = kafka.admin(settings)
    if missing:
        new = [NewTopic(spec.name, spec.partitions, spec.replication, config=dict(spec.config)) for spec in missing]
        for name, future in client.create_topics(new, operation_timeout=kafka.PATIENCE).items():
            try:
                future.result(kafka.PATIENCE)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise BrokerError(f"The broker refused to make {name}: {error.args[0].str()}.") from error
        _await_visible(settings, [spec.name for spec in missing])
    return [spec.name for spec in missing]


def _await_visible(settings: Settings, names: list[str]) -> None:
    """The controller makes topics; the brokers that clients ask hear of it a moment later."""
    waiting = Retrying(
        stop=stop_after_delay(kafka.PATIENCE),
        wait=wait_fixed(0.05),
        retry=retry_if_result(lambda all_there: not all_there),
    )
    try:
        waiting(lambda: set(names) <= kafka.partition_counts(settings).keys())
    except RetryError as error:
        raise BrokerError(f"The new topics did not show within {kafka.PATIENCE:.0f} s.") from error


def require_topics(settings: Settings) -> None:
    """Hold the topics against what the stream needs.

    Raises:
        BrokerUnreachable: no broker answered.
        TopicsWrong: one sentence for each fault.
    """
    if problems := check_topics(settings):
        raise TopicsWrong(problems)


def check_topics(settings: Settings) -> list[str]:
    """One sentence for each fault of the topics; none where all is well."""
    return _problems(settings, settings.topic_specs)


def _problems(settings: Settings, specs: Sequence[TopicSpec]) -> list[str]:
    present = kafka.partition_counts(settings)
    problems = []
    there = []
    for spec in specs:
        count = present.get(spec.name)
        if count is None:
            problems.append(f"The topic {spec.name} is missing: `ecluse topics create` makes it.")
        elif count != spec.partitions:
            problems.append(
                f"The topic {spec.name} has {count} partitions where {spec.partitions} are set (topics.partitions). "
                "The count is fixed for a stream's life: correct the setting, or choose a new stream.prefix."
            )
        else:
            there.append(spec)
    return problems + _wrong_configs(settings, there)


def _wrong_configs(settings: Settings, specs: list[TopicSpec]) -> list[str]:
    """What would lose or refuse data: another clean-up, or room for smaller records than the stream allows."""
    client = kafka.admin(settings)
    resources = {spec.name: ConfigResource(ConfigResource.Type.TOPIC, spec.name) for spec in specs}
    if not resources:
        return []
    futures = client.describe_configs(list(resources.values()), request_timeout=kafka.PATIENCE)
    problems = []
    for spec in specs:
        try:
            actual = futures[resources[spec.name]].result(kafka.PATIENCE)
        except TimeoutError as error:
            raise BrokerUnreachable(settings.kafka.bootstrap_servers, "it says nothing of its topics") from error
        except KafkaException as error:
            if error.args[0].retriable():
                raise BrokerUnreachable(settings.kafka.bootstrap_servers, error.args[0].str()) from error
            problems.append(f"The settings of {spec.name} cannot be read: {error.args[0].str()}.")
            continue
        cleanup, room = actual["cleanup.policy"].value, actual["max.message.bytes"].value
        if cleanup != spec.config["cleanup.policy"]:
            problems.append(
                f"The topic {spec.name} has cleanup.policy={cleanup}; it must be {spec.config['cleanup.policy']}."
            )
        if int(room) < int(spec.config.get("max.message.bytes", 0)):
            problems.append(
                f"The topic {spec.name} has max.message.bytes={room}; "
                f"it must be {spec.config['max.message.bytes']} or more (topics.max_message_bytes)."
            )
    return problems


def committed_offsets(settings: Settings) -> dict[int, int | None]:
    """The workers' committed offset in each partition of the events; None where there is none.

    Raises:
        BrokerUnreachable: no broker answered in time.
    """
    places = [TopicPartition(settings.names.events, partition) for partition in range(settings.topics.partitions)]
    # A consumer that never joins asks: the admin client of librdkafka 2.15 crashes while the group's coordinator loads.
    with closing(Consumer(kafka.offsets_config(settings))) as consumer:
        try:
            answer = kafka.once_coordinated(consumer.committed, places, timeout=kafka.PATIENCE)
        except KafkaException as error:
            raise BrokerUnreachable(settings.kafka.bootstrap_servers, error.args[0].str()) from error
    return {place.partition: place.offset if place.offset >= 0 else None for place in answer}


def end_offsets(settings: Settings, topic: str, where: Where = "latest") -> dict[int, int]:
    """The offset after the last committed record of each partition (`latest`), or the first one held (`earliest`)."""
    # A consumer asks, not the admin client, whose answer counts what is not committed.
    with kafka.reader(settings) as consumer:
        count = kafka.partition_counts(settings)[topic]
        held = {partition: kafka.watermarks(consumer, topic, partition) for partition in range(count)}
    return {partition: low if where == "earliest" else high for partition, (low, high) in held.items()}


def seed_offsets(settings: Settings, where: Where) -> list[int]:
    """Commit a start for the partitions in which the group has none, and return them. The others stay as they are.

    Raises:
        BrokerUnreachable: no broker answered in time.
        BrokerError: the group has live members, or the broker refused.
    """
    unset = [partition for partition, offset in committed_offsets(settings).items() if offset is None]
    if not unset:
        return []
    ends = end_offsets(settings, settings.names.events, where)
    places = [TopicPartition(settings.names.events, partition, ends[partition]) for partition in unset]
    with closing(Consumer(kafka.consumer_config(settings, settings.group))) as consumer:
        try:
            kafka.once_coordinated(consumer.commit, offsets=places, asynchronous=False)
        except KafkaException as error:
            raise BrokerError(f"The offsets of group {settings.group} cannot be set: {error.args[0].str()}.") from error
    return unset


@dataclass(frozen=True, slots=True)
class Backlog:
    """How far the workers' group has come in the events, as sums of offsets over the partitions.

    `done` is committed, or deleted before it was; `end` is after the last committed record.
    """

    done: int
    end: int

    @property
    def lag(self) -> int:
        """Events that wait."""
        return self.end - self.done


class LagReader:
    """Looks at the group's backlog again and again over connections that stay open; it never joins the group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        settings = self._settings
        # Only a reader of committed records knows their end, and it is not always told of offsets. Hence two.
        self._offsets = self._stack.enter_context(closing(Consumer(kafka.offsets_config(settings))))
        self._ends = self._stack.enter_context(kafka.reader(settings))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def look(self) -> Backlog:
        """The backlog now; a partition without a committed offset counts from its first event.

        Raises:
            BrokerUnreachable: there was no answer in time, or a coordinator or leader is on its way: look again later.
        """
        places = [
            TopicPartition(self._settings.names.events, partition)
            for partition in range(self._settings.topics.partitions)
        ]
        done = end = 0
        try:
            # First what is done, then what there is: lag is never less than it is.
            for place in self._offsets.committed(places, timeout=_LOOK_SECONDS):
                if place.error is not None:
                    raise KafkaException(place.error)
                low, high = self._ends.get_watermark_offsets(
                    TopicPartition(place.topic, place.partition), timeout=_LOOK_SECONDS
                )
                done += min(max(place.offset, low), high)
                end += high
        except KafkaException as error:
            raise BrokerUnreachable(self._settings.kafka.bootstrap_servers, error.args[0].str()) from error
        return Backlog(done, end)

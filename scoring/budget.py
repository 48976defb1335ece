"""The controller of the bypass' budget: reads what went past today, and sets the share by `scoring.pacing`.

It runs in the worker that holds partition 0 of the events. Two at once (a rebalance, a worker that was frozen) do no harm: both
read the same samples, and what one writes is based on the revision that it saw. Where a person set the switch meanwhile, the
person's stays.
"""

import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ecluse import kafka
from ecluse.contract.arms import DAY_SECONDS, day_of
from ecluse.contract.records import Switch
from ecluse.errors import BrokerError, EcluseError, SwitchChanged
from ecluse.model.registry import Switched
from ecluse.model.routes import set_switch
from ecluse.settings import Settings
from scoring.pacing import Spending, next_share
from scoring.spending import spent_reader
from scoring.switch import LiveSwitch

logger = logging.getLogger(__name__)

_BATCH = 5_000
_WAIT_SECONDS = 0.05
#: How long a look may read, in seconds, where the interval is shorter.
_LEAST_READ = 1.0
_END_SECONDS = 30.0


class SampleReader:
    """Reads the bypass topic from a day's start and goes on; used by one thread, which closes it.

    Args:
        settings: the stream's.
        amount_field: what an event is worth.
        day: by the stream's clock. On the clock of events all that is held is read: their times are in no order.
    """

    def __init__(self, settings: Settings, amount_field: str, day: int) -> None:
        self.amount_field = amount_field
        self.spending = Spending(day)
        self._settings, self._topic = settings, settings.names.bypass
        self._decode = spent_reader(settings.stream, amount_field)
        config = kafka.consumer_config(settings, f"{settings.names.prefix}readers")
        self._consumer = Consumer(config | {"enable.partition.eof": True, "queued.max.messages.kbytes": 8 * 1024})
        try:
            starts = self._starts(day)
            self._positions = {place.partition: place.offset for place in starts}
            self._consumer.assign(starts)
        except BaseException:
            self._consumer.close()
            raise

    def _starts(self, day: int) -> list[TopicPartition]:
        held = self._held()
        if self._settings.stream.clock == "event":
            return [TopicPartition(self._topic, partition, low) for partition, (low, _) in held.items()]
        asked = [TopicPartition(self._topic, partition, int(day * DAY_SECONDS * 1e3)) for partition in held]
        found = self._consumer.offsets_for_times(asked, timeout=kafka.PATIENCE)
        return [  # a negative answer means that no record is as late as that
            TopicPartition(
                self._topic, place.partition, place.offset if place.offset >= 0 else held[place.partition][1]
            )
            for place in found
        ]

    def _held(self) -> dict[int, tuple[int, int]]:
        partitions = range(self._settings.topics.partitions)
        return {partition: kafka.watermarks(self._consumer, self._topic, partition) for partition in partitions}

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def read(self, seconds: float) -> bool:
        """Take in what has gone past by now, for so long at most; whether that is all.

        Raises:
            BrokerError: the topic cannot be read.
            KafkaException: the broker does not say where its end is.
        """
        deadline = time.monotonic() + seconds
        ends = {partition: end for partition, (_, end) in self._held().items()}
        while behind := any(self._positions[partition] < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                break
            for message in self._consumer.consume(_BATCH, _WAIT_SECONDS):
                self._take(message)
        return not behind

    def _take(self, message: Message) -> None:
        error, partition, offset = message.error(), message.partition() or 0, message.offset() or 0
        if error is None:
            self._positions[partition] = offset + 1
            if (spent := self._decode(message)) is not None:
                self.spending.add(spent)
        elif error.code() == KafkaError._PARTITION_EOF:  # past transaction markers too
            self._positions[partition] = offset
        elif not error.retriable():
            raise BrokerError(f"The bypass topic cannot be read: {error.str()}.")


class Budget(threading.Thread):
    """Keeps the budget of the bypass while it may. A context, whose end ends the thread.

    Args:
        settings: the stream's.
        switch: what the models topic says.
        holds: whether this worker is the one that controls.
        times: the times of the last events, where the stream's clock is theirs.
    """

    def __init__(
        self, settings: Settings, switch: LiveSwitch, holds: Callable[[], bool], times: Callable[[], Sequence[float]]
    ) -> None:
        super().__init__(name="ecluse-budget", daemon=True)
        self._settings, self._switch, self._holds, self._times = settings, switch, holds, times
        self._closing = threading.Event()
        self._reader: SampleReader | None = None
        self._seen: tuple[int, float] = (-1, 0.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.join(_END_SECONDS)

    def run(self) -> None:
        """Look every `bypass.control_seconds`, until closed. What fails is tried again."""
        seconds = self._settings.bypass.control_seconds
        try:
            while not self._closing.wait(seconds):
                try:
                    self._look(seconds)
                except (EcluseError, KafkaException) as error:
                    logger.warning("the bypass' budget is not kept at the moment, which is tried again: %s", error)
                    self._let_go()
                except Exception:
                    logger.exception("keeping the bypass' budget failed, which is tried again")
                    self._let_go()
        finally:
            self._let_go()

    def _look(self, seconds: float) -> None:
        switched, now = self._switch.switched, self._now()
        if switched is None or now is None or not _has_budget(switched.switch) or not self._holds():
            self._let_go()
            return
        reader = self._reading(switched.switch.amount_field or "", day_of(now))
        whole = reader.read(max(seconds, _LEAST_READ))
        share = next_share(switched.switch, reader.spending, now, self._changed(switched, now), whole=whole)
        if share is not None:
            self._set(switched, share, reader.spending)

    def _now(self) -> float | None:
        """The time on the stream's clock; None where no event has told it yet. Of events the middle one: one that is far off
        moves nothing."""
        if self._settings.stream.clock == "arrival":
            return time.time()
        times = self._times()
        return statistics.median(times) if times else None

    def _reading(self, amount_field: str, day: int) -> SampleReader:
        """What went past on a day. A stream that plays its past again is read again."""
        reader = self._reader
        if reader is not None and (reader.amount_field != amount_field or day < reader.spending.day):
            self._let_go()
            reader = None
        if reader is None:
            reader = self._reader = SampleReader(self._settings, amount_field, day)
        elif day > reader.spending.day:
            reader.spending.turn(day)
        return reader

    def _changed(self, switched: Switched, now: float) -> float:
        """When the switch was set, on the stream's clock: on that of events, when it was first seen."""
        if self._settings.stream.clock == "arrival":
            return switched.switch.created_at
        if self._seen[0] != switched.revision:
            self._seen = switched.revision, now
        return self._seen[1]

    def _set(self, switched: Switched, share: float, spending: Spending) -> None:
        switch = switched.switch
        wanted = msgspec.structs.replace(switch, share=share, created_at=time.time())
        try:
            revision = set_switch(self._settings, wanted, switched.revision)
        except SwitchChanged as error:
            logger.info("the bypass' budget changes nothing: %s", error)
            return
        logger.warning(
            "a share of %g goes past the model in the place of %g, by revision %d: %g of the day's budget of %g is spent",
            share,
            switch.share,
            revision,
            spending.amount,
            switch.budget,
        )

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _has_budget(switch: Switch) -> bool:
    return switch.budget is not None and switch.amount_field is not None and switch.wanted > 0

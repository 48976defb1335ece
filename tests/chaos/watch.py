"""What a reader of committed predictions sees while the faults happen, and whether a transaction is open."""

import threading
import time
from collections.abc import Collection
from contextlib import closing

from confluent_kafka import Consumer, TopicPartition

from ecluse import kafka
from ecluse.settings import Settings


class Watch(threading.Thread):
    """Counts committed predictions as they come, and the longest time that any partition gave none."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="chaos-watch", daemon=True)
        self._settings = settings
        self._ending = threading.Event()
        self.count = 0
        self.silence = 0.0

    def run(self) -> None:
        """Read from the beginning until told to end."""
        topic, partitions = self._settings.names.predictions, range(self._settings.topics.partitions)
        last: dict[int | None, float] = {}
        with kafka.reader(self._settings) as consumer:
            consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
            while not self._ending.is_set():
                messages = [message for message in consumer.consume(2_000, 0.05) if message.error() is None]
                now = time.monotonic()
                for partition in {message.partition() for message in messages}:
                    self.silence = max(self.silence, now - last.get(partition, now))
                    last[partition] = now
                self.count += len(messages)

    def end(self) -> None:
        """End the reading."""
        self._ending.set()
        if self.ident is not None:
            self.join(20.0)


def unfinished(settings: Settings, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """Of these partitions of a topic, the ones in which a transaction is open, and where the first open one begins.

    There the last stable offset is behind the end of the log.
    """
    with (
        kafka.reader(settings) as committed,
        closing(
            Consumer(kafka.consumer_config(settings, "chaos") | {"isolation.level": "read_uncommitted"})
        ) as anything,
    ):
        stable = {partition: kafka.watermarks(committed, topic, partition)[1] for partition in partitions}
        return {
            partition: offset
            for partition, offset in stable.items()
            if offset < kafka.watermarks(anything, topic, partition)[1]
        }

"""The hand-written loop: librdkafka, msgspec, numpy and ONNX Runtime in one thread, no Faust. At least once.

Offsets are committed behind confirmed records only: the producer is idempotent and without gaps, so the report for the
last record of a batch in a partition vouches for those before it.
"""

import signal
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.work import CONTENT_TYPE, Work
from ecluse import kafka

HEADERS: list[tuple[str, str | bytes | None]] = [CONTENT_TYPE]
BATCH = 2000
QUEUED = 100_000
COMMIT_SECONDS = 0.1


class Place:
    """The end of a batch in one partition, and whether the broker has all that came of it."""

    def __init__(self, next_offset: int) -> None:
        self.next_offset = next_offset
        self.confirmed = False

    def __call__(self, error: Any, _: Any) -> None:
        if error is not None:
            sys.exit(f"a prediction was not delivered: {error}")
        self.confirmed = True


def main(config: Path, group: str) -> None:
    """Score until SIGTERM."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    work = Work(config)
    events, predictions = work.settings.names.events, work.settings.names.predictions
    queue = {"queue.buffering.max.messages": 2 * QUEUED, "queue.buffering.max.kbytes": 256 * 1024}
    producer = Producer(kafka.producer_config(work.settings) | queue | {"linger.ms": 1})
    consumer = Consumer(
        kafka.consumer_config(work.settings, group)
        | {"queued.min.messages": 100_000, "queued.max.messages.kbytes": 64 * 1024, "fetch.queue.backoff.ms": 10}
    )
    consumer.subscribe([events])
    open_places: defaultdict[int, deque[Place]] = defaultdict(deque)
    next_commit = 0.0
    while not stopped:
        first = consumer.poll(0.002 if any(open_places.values()) else 0.02)
        producer.poll(0.01 if len(producer) > QUEUED else 0)
        if time.monotonic() >= next_commit:
            next_commit = time.monotonic() + COMMIT_SECONDS
            commit(consumer, events, open_places)
        if first is None:
            continue
        parts: defaultdict[int, list[Any]] = defaultdict(list)
        for message in [first, *consumer.consume(BATCH - 1, 0)]:
            if message.error():
                sys.exit(f"consumer: {message.error()}")
            parts[message.partition() or 0].append(
                (message.key(), message.value(), message.partition(), message.offset())
            )
        records = [record for part in parts.values() for record in part]
        values = iter(work(records))
        for partition, part in parts.items():
            place = Place(part[-1][3] + 1)
            open_places[partition].append(place)
            *earlier, (last, *_) = part
            for key, *_ in earlier:
                producer.produce(predictions, next(values), key, partition, headers=HEADERS)
            producer.produce(predictions, next(values), last, partition, place, headers=HEADERS)
    producer.flush(10)
    commit(consumer, events, open_places)
    consumer.close()


def commit(consumer: Consumer, topic: str, open_places: dict[int, deque[Place]]) -> None:
    """Commit the confirmed prefix of each partition."""
    offsets = []
    for partition, places in open_places.items():
        done = None
        while places and places[0].confirmed:
            done = places.popleft().next_offset
        if done is not None:
            offsets.append(TopicPartition(topic, partition, done))
    if offsets:
        consumer.commit(offsets=offsets)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Looking at a worker from outside: what it has committed and how large it is, many times a second."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
from confluent_kafka import Consumer, TopicPartition

from benchmarks.ground import Ground
from ecluse import kafka
from ecluse.settings import Settings
from tests.cli import config_file
from tests.workers import WorkerProcess

LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Look:
    """At a moment (seconds, wall clock): the events committed so far, and the worker's resident bytes and CPU seconds."""

    at: float
    done: int
    resident: int
    cpu: float


class Watch:
    """What was seen. A look costs one request."""

    def __init__(self) -> None:
        self.looks: list[Look] = []

    def between(self, start: float, end: float) -> list[Look]:
        """The looks of a time."""
        return [look for look in self.looks if start <= look.at <= end]

    def rate(self, start: float, end: float) -> float:
        """Events committed a second."""
        first, last = self._ends(start, end)
        return (last.done - first.done) / (last.at - first.at)

    def cores(self, start: float, end: float) -> float:
        """How many cores the worker used."""
        first, last = self._ends(start, end)
        return (last.cpu - first.cpu) / (last.at - first.at)

    def resident(self, start: float, end: float) -> tuple[int, int]:
        """The largest and the last resident size, in bytes."""
        sizes = [look.resident for look in self.between(start, end)]
        return max(sizes), sizes[-1]

    def _ends(self, start: float, end: float) -> tuple[Look, Look]:
        looks = self.between(start, end)
        assert len(looks) > 1, "too short a time"
        return looks[0], looks[-1]


@contextmanager
def watching(settings: Settings, worker: WorkerProcess) -> Iterator[Watch]:
    """Look while the context lasts."""
    watch, ending, process = Watch(), threading.Event(), psutil.Process(worker.process.pid)

    def look() -> None:
        with Ground(Path(), config_file(settings), 0).counter(settings.group) as done:
            while not ending.wait(LOOK_SECONDS) and process.is_running():
                with process.oneshot():
                    times, resident = process.cpu_times(), process.memory_info().rss
                watch.looks.append(Look(time.time(), done(), resident, times.user + times.system))

    thread = threading.Thread(target=look, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        ending.set()
        thread.join(30)


def longest_pause(settings: Settings, start: float, end: float) -> float:
    """The longest time, in seconds, in which the worker wrote no prediction: by the records' own timestamps."""
    topic, partitions = settings.names.predictions, range(settings.topics.partitions)
    seen: list[int] = []
    with closing(Consumer(kafka.consumer_config(settings, "study"))) as consumer:
        first, last = (
            consumer.offsets_for_times([TopicPartition(topic, p, int(at * 1000)) for p in partitions], timeout=30)
            for at in (start, end)
        )
        for begin, stop in zip(first, last, strict=True):
            _, high = consumer.get_watermark_offsets(TopicPartition(topic, begin.partition), timeout=30)
            until = stop.offset if stop.offset >= 0 else high - 1
            consumer.assign([begin])
            place = begin.offset
            while 0 <= place < until:
                found = [message for message in consumer.consume(10_000, 1.0) if message.error() is None]
                if not found:
                    break  # transaction markers only
                seen += [message.timestamp()[1] for message in found]
                place = (found[-1].offset() or 0) + 1
    moments = sorted({stamp for stamp in seen if start * 1000 <= stamp <= end * 1000})
    assert len(moments) > 1, "no predictions were seen"
    return max(later - sooner for sooner, later in pairwise(moments)) / 1000

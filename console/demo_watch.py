"""What the demonstration sees of a running stream: offsets, the workers' own metrics, and the newest alerts."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from console.reading import headers_of, printable
from console.stage import Child
from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import read_error_headers
from ecluse.contract.records import Alert
from ecluse.settings import Settings

#: Rates are means over so many seconds.
_RATE_SECONDS = 3.0
_NEWEST = 50


@dataclass(frozen=True, slots=True)
class Working:
    """A worker: the partitions that it holds, and how many predictions of each decision it has made."""

    name: str
    partitions: tuple[int, ...]
    decisions: Counter[str]


@dataclass(frozen=True, slots=True)
class Picture:
    """The stream at a moment; `at` is monotonic. `done` events are confirmed: scored, or set aside as dead letters."""

    at: float
    published: int
    done: int
    lag: tuple[int, ...]
    workers: tuple[Working, ...]

    @property
    def decisions(self) -> Counter[str]:
        """How many predictions of each decision there are."""
        return sum((worker.decisions for worker in self.workers), Counter[str]())


class Watch:
    """Looks at a stream whenever it is asked to, and remembers what rates and the newest alerts need."""

    def __init__(self, settings: Settings, workers: Sequence[Child]) -> None:
        self._settings = settings
        self._workers = workers
        self._alert = Reader(Alert)
        self._stack = ExitStack()
        self.pictures: deque[Picture] = deque(maxlen=240)
        self.newest: deque[Alert] = deque(maxlen=_NEWEST)
        self.alerts = self.explained = self.dead_letters = 0
        self.last_dead_letter = ""

    def __enter__(self) -> Self:
        """Connect."""
        settings, names = self._settings, self._settings.names
        # It asks for the group's offsets and never joins.
        self._offsets = self._stack.enter_context(closing(Consumer(kafka.offsets_config(settings))))
        self._news = self._stack.enter_context(kafka.reader(settings))
        partitions = range(settings.topics.partitions)
        self._news.assign(
            [TopicPartition(topic, p, 0) for topic in (names.alerts, names.dead_letters) for p in partitions]
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._stack.close()

    def look(self) -> Picture:
        """The stream now.

        Raises:
            KafkaException: the broker does not answer.
        """
        events, partitions = self._settings.names.events, range(self._settings.topics.partitions)
        places = [TopicPartition(events, p) for p in partitions]
        # First what is done, then what there is: lag is never less than it is.
        committed = kafka.once_coordinated(self._offsets.committed, places, timeout=kafka.PATIENCE)
        done = [max(0, place.offset) for place in committed]
        ends = [kafka.watermarks(self._offsets, events, p)[1] for p in partitions]
        lag = tuple(end - at for end, at in zip(ends, done, strict=True))
        self._read_news()
        picture = Picture(time.monotonic(), sum(ends), sum(done), lag, tuple(map(_working, self._workers)))
        self.pictures.append(picture)
        return picture

    def moved(self) -> bool:
        """Whether the last look showed anything else than the one before."""
        before, now = ([None, *self.pictures])[-2:]
        return before is None or now is None or (before.published, before.done) != (now.published, now.done)

    def rates(self) -> tuple[float, float]:
        """Events a second that come in, and that are done."""
        last = self.pictures[-1]
        first = next(picture for picture in self.pictures if picture.at >= last.at - _RATE_SECONDS)
        seconds = last.at - first.at
        if seconds == 0:
            return 0.0, 0.0
        return (last.published - first.published) / seconds, (last.done - first.done) / seconds

    def _read_news(self) -> None:
        for message in self._news.consume(1_000, timeout=0.05):
            if message.error() is not None:
                continue
            if message.topic() == self._settings.names.dead_letters:
                self.dead_letters += 1
                said = read_error_headers(headers_of(message))
                self.last_dead_letter = f"{said.get('stage')}: {printable(said.get('exception.message'), 200)}"
                continue
            alert = self._alert(message.value() or b"")
            self.newest.append(alert)
            self.alerts += 1
            self.explained += alert.reasons != "skipped" and bool(alert.reasons)


def _working(child: Child) -> Working:
    """A worker by its own metrics; one that does not answer holds nothing."""
    partitions, decisions = [], Counter[str]()
    for family in text_string_to_metric_families(child.get("/metrics")[1]):
        for sample in family.samples:
            if sample.name == "ecluse_consumer_lag":
                partitions.append(int(sample.labels["partition"]))
            elif sample.name == "ecluse_predictions_total":
                decisions[sample.labels["decision"]] += int(sample.value)
    return Working(child.name, tuple(sorted(partitions)), decisions)

"""What the demonstration sees of a running stream: offsets, the workers' own metrics, predictions and the newest alerts."""

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from console.demo_loop import Loop
from console.reading import headers_of, printable
from console.stage import Child
from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import read_error_headers
from ecluse.contract.records import BYPASS, Alert, Decision
from ecluse.model.registry import READ_SECONDS, RegistryReader
from ecluse.settings import Settings

#: Rates are means over so many seconds.
_RATE_SECONDS = 3.0
_NEWEST = 50
_BATCH = 5_000
#: How long the last outputs may take to be read.
_LAST_SECONDS = 10.0
#: The tables of what flows, in the order in which they are shown.
_STORED = ("events", "predictions", "bypass", "labels")
#: The version that comes by the loop, and takes over, while the stream runs.
SECOND = 2


class Prediction(msgspec.Struct, gc=False):
    """The fields of a `Prediction` that are decoded."""

    event_id: str
    event_time: float
    version: int
    scored_at: float
    arm: str
    decision: Decision


@dataclass(frozen=True, slots=True)
class Working:
    """A worker: the version that scores, the partitions that it holds, and how many events it scored, by decision."""

    name: str
    version: int | None
    partitions: tuple[int, ...]
    decisions: Counter[str]


@dataclass(frozen=True, slots=True)
class Picture:
    """The stream at a moment; `at` is monotonic. `done` events are confirmed: scored, or set aside as dead letters.

    `changed`: every worker has come to score by the second version. `stored`: how many rows the sink has committed, by table.
    """

    at: float
    published: int
    done: int
    lag: tuple[int, ...]
    workers: tuple[Working, ...]
    changed: bool
    stored: Counter[str]

    @property
    def state(self) -> tuple[int, int, bool]:
        """What differs from look to look while anything moves."""
        return self.published, self.done, self.changed

    @property
    def decisions(self) -> Counter[str]:
        """How many scored events of each decision there are."""
        return sum((worker.decisions for worker in self.workers), Counter[str]())


class Watch:
    """Looks at a stream whenever it is asked to, and remembers what rates and the newest alerts need."""

    def __init__(
        self,
        settings: Settings,
        workers: Sequence[Child],
        sink: Child,
        hear: Callable[[Prediction], None] = lambda _: None,
    ) -> None:
        self._settings, self._hear = settings, hear
        #: What has come of the loop.
        self.loop = Loop(settings)
        self._workers, self._sink = workers, sink
        self._alert, self._prediction = Reader(Alert), Reader(Prediction)
        self._holders: dict[int, str] = {}
        #: The workers that have not come to score by the second version.
        self.behind = {worker.name for worker in workers}
        self._stack = ExitStack()
        self.pictures: deque[Picture] = deque(maxlen=240)
        self.newest: deque[Alert] = deque(maxlen=_NEWEST)
        self.alerts = self.explained = self.dead_letters = 0
        self.last_dead_letter = ""
        #: Of the predictions on the topic: how many went past the model, how many were blocked, the latest event's time.
        self.bypassed = self.blocked = 0
        self.last_event = 0.0
        #: Predictions on the topic by version. Times are in seconds since 1970.
        self.versions: Counter[int] = Counter()
        self.began = time.time()
        #: When the second version was announced, and when each worker first scored by it.
        self.announced: float | None = None
        self.first: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Connect."""
        settings, names = self._settings, self._settings.names
        # It asks for the group's offsets and never joins.
        self._offsets = self._stack.enter_context(closing(Consumer(kafka.offsets_config(settings))))
        self._news = self._stack.enter_context(kafka.reader(settings))
        self._models = self._stack.enter_context(RegistryReader(settings))
        partitions, topics = range(settings.topics.partitions), (names.predictions, names.alerts, names.dead_letters)
        loop = [TopicPartition(topic, 0, 0) for topic in (names.profiles, names.drift, names.retrain_requests)]
        self._news.assign([*loop, *(TopicPartition(topic, p, 0) for topic in topics for p in partitions)])
        self.began = time.time()
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
        workers = tuple(map(_working, self._workers))
        self.behind -= {worker.name for worker in workers if worker.version == SECOND}
        picture = Picture(time.monotonic(), sum(ends), sum(done), lag, workers, not self.behind, stored_by(self._sink))
        self._holders |= {p: worker.name for worker in workers for p in worker.partitions}
        self._read_news()
        self._read_models()
        self.pictures.append(picture)
        return picture

    @property
    def outputs(self) -> int:
        """How many events have come to an end that was read: a prediction or a dead letter."""
        return self.versions.total() + self.dead_letters

    @property
    def records(self) -> int:
        """How many records of theirs the store must come to hold, beside labels: events, predictions, bypass samples."""
        return self.outputs + self.versions.total() + self.bypassed

    def finish(self, outputs: int) -> None:
        """Read on until so many outputs are read and counted, or no more come in time: the audit tells what is missing."""
        deadline, loop = time.monotonic() + _LAST_SECONDS, self.loop
        while min(self.outputs, loop.counted + loop.rejected) < outputs and time.monotonic() < deadline:
            self._read_news()

    @property
    def still(self) -> float:
        """For how many seconds every look has shown the same."""
        last = self.pictures[-1]
        same = itertools.takewhile(lambda picture: picture.state == last.state, reversed(self.pictures))
        return last.at - min(picture.at for picture in same)

    def rates(self) -> tuple[float, float]:
        """Events a second that come in, and that are done."""
        last = self.pictures[-1]
        first = next(picture for picture in self.pictures if picture.at >= last.at - _RATE_SECONDS)
        seconds = last.at - first.at
        if seconds == 0:
            return 0.0, 0.0
        return (last.published - first.published) / seconds, (last.done - first.done) / seconds

    def _read_models(self) -> None:
        registry = self._models.read_to_end(READ_SECONDS)
        self.loop.take_registry(registry)
        route = registry.routes[self._settings.model_name].route
        if route.champion.version == SECOND:
            self.announced = route.created_at

    def _read_news(self) -> None:
        names, loop, full = self._settings.names, self.loop, True
        take = {
            names.predictions: self._take_prediction,
            names.dead_letters: self._take_dead_letter,
            names.profiles: loop.take_profile,
            names.drift: loop.take_report,
            names.retrain_requests: loop.take_request,
        }
        while full:
            batch = self._news.consume(_BATCH, timeout=0.05)
            for message in batch:
                if message.error() is None:
                    take.get(message.topic() or "", self._take_alert)(message)
            full = len(batch) == _BATCH

    def _take_prediction(self, message: Message) -> None:
        prediction = self._prediction(message.value() or b"")
        self.versions[prediction.version] += 1
        self.bypassed += prediction.arm == BYPASS
        self.last_event = max(self.last_event, prediction.event_time)
        self.blocked += prediction.decision is Decision.BLOCK
        self._hear(prediction)
        # The partitions were handed out before the stream began.
        worker = self._holders.get(message.partition() or 0, "a worker")
        if prediction.version == SECOND:
            self.first[worker] = min(prediction.scored_at, self.first.get(worker, prediction.scored_at))

    def _take_dead_letter(self, message: Message) -> None:
        self.dead_letters += 1
        said = read_error_headers(headers_of(message))
        self.last_dead_letter = f"{said.get('stage')}: {printable(said.get('exception.message'), 200)}"

    def _take_alert(self, message: Message) -> None:
        alert = self._alert(message.value() or b"")
        self.newest.append(alert)
        self.alerts += 1
        self.explained += alert.reasons != "skipped" and bool(alert.reasons)


def stored_by(sink: Child) -> Counter[str]:
    """How many rows of the stream's records a sink has committed, by table; none where it does not answer."""
    families = text_string_to_metric_families(sink.get("/metrics")[1])
    samples = [sample for family in families for sample in family.samples if sample.name == "ecluse_store_rows_total"]
    rows = Counter({sample.labels["table"]: int(sample.value) for sample in samples})
    return Counter({name: rows[name] for name in _STORED})


def _working(child: Child) -> Working:
    """A worker by its own metrics; one that does not answer holds nothing."""
    version, partitions, decisions = None, [], Counter[str]()
    for family in text_string_to_metric_families(child.get("/metrics")[1]):
        for sample in family.samples:
            if sample.name == "ecluse_consumer_lag":
                partitions.append(int(sample.labels["partition"]))
            elif sample.name == "ecluse_predictions_total" and sample.labels["arm"] != BYPASS:
                decisions[sample.labels["decision"]] += int(sample.value)
            elif sample.name == "ecluse_model_info":
                version = int(sample.labels["version"])
    return Working(child.name, version, tuple(sorted(partitions)), decisions)

"""Events of the past, scored again with any version: on the path of the stream (`scoring.pipeline`), into a topic beside it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Literal, NamedTuple, Self

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from faust.types import TP

from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import REPLAY_RUN, read_source
from ecluse.contract.records import Arm, Decision, Reason, Source
from ecluse.errors import DeliveryError, ModelNotFound
from ecluse.model.artefact import Progress, load_model
from ecluse.model.registry import Registry
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Ledger, Output, Record
from scoring.champion import Champion
from scoring.pipeline import Pipeline

#: The arm in the predictions of a replay, and their route's revision: no route has it.
ARM, NO_ROUTE = "replay", -1
#: Events in one call of the model: so few that the reasons of all alerts are found where no more than one in twenty alerts.
_ROWS = 1_000
#: How long the broker may take to confirm a record, in seconds.
_PATIENCE = 30


class Outcome(StrEnum):
    """What becomes of an event: a decision, or a dead letter."""

    ALLOW = "allow"
    REVIEW = "review"
    BLOCK = "block"
    DEAD_LETTER = "dead letter"


class Rescored(NamedTuple):
    """What a version makes of one event; `why` is the input that raised an alert's score most, where that was looked for."""

    outcome: Outcome
    score: float | None = None
    why: str | None = None


class _Prediction(msgspec.Struct, gc=False):
    source: Source
    score: float
    decision: Decision


class _Alert(msgspec.Struct):
    source: Source
    reasons: list[Reason] | Literal["skipped"]


def load_version(settings: Settings, version: int, registry: Registry, progress: Progress) -> Champion:
    """A released version, warm, with the thresholds of its own manifest.

    Raises:
        ModelNotFound: it was never released.
        ModelRefused, ModelError: as `ecluse.model.artefact.load_model`.
    """
    name = settings.model_name
    release = registry.releases.get((name, version))
    if release is None:
        released = sorted(number for model, number in registry.releases if model == name)
        there = f"released are {', '.join(map(str, released))}" if released else "no version of it was"
        raise ModelNotFound(f"Version {version} of model {name} was never released; {there}.")
    started = time.perf_counter()
    model = load_model(settings, version, release, progress=progress)
    arm = Arm(ARM, version, model.manifest.thresholds)
    return Champion(model, arm, NO_ROUTE, release.manifest_sha256, time.perf_counter() - started)


class Rescorer:
    """Scores events of one stream again, and hands the predictions to the side topic.

    Alerts and dead letters are looked at and go nowhere.
    """

    def __init__(self, settings: Settings, champion: Champion, side: "SideTopic") -> None:
        self._names = settings.names
        self._pipeline = Pipeline(settings, champion, ARM, Telemetry())
        self._side = side
        self._prediction, self._alert = Reader(_Prediction), Reader(_Alert)

    def __call__(self, partition: int, records: Sequence[Record]) -> dict[int, Rescored]:
        """What becomes of each record of the events' partition, by its offset. Offsets may have gaps.

        Raises:
            ModelError: the model fails on every row.
            DeliveryError: a prediction was not confirmed.
        """
        found: dict[int, Rescored] = {}
        ledger = Ledger(TP(self._names.events, partition))
        for start in range(0, len(records), _ROWS):
            part = records[start : start + _ROWS]
            chunk = Chunk(ledger, part, part[0].offset(), part[-1].offset() + 1, 0.0)
            (outputs,) = self._pipeline([chunk])
            found.update(self._outcomes(outputs))
            self._side.send(partition, (output for output in outputs if output.topic == self._names.predictions))
        return found

    def _outcomes(self, outputs: Sequence[Output]) -> dict[int, Rescored]:
        found: dict[int, Rescored] = {}
        for output in outputs:  # an alert comes after its prediction
            if output.topic == self._names.predictions:
                made = self._prediction(output.value or b"")
                found[made.source.offset] = Rescored(Outcome(made.decision), made.score)
            elif output.topic == self._names.alerts:
                alert = self._alert(output.value or b"")
                why = None if alert.reasons == "skipped" else alert.reasons[0].feature if alert.reasons else ""
                found[alert.source.offset] = found[alert.source.offset]._replace(why=why)
            elif (source := read_source(_as_read(output))) is not None:
                found[source.offset] = Rescored(Outcome.DEAD_LETTER)
        return found


def _as_read(letter: Output) -> list[tuple[str, bytes | None]]:
    return [(name, text.encode() if isinstance(text, str) else text) for name, text in letter.headers or ()]


class SideTopic:
    """Writes the predictions of one run to the topic of replays. A context: left without an error, all are confirmed.

    Raises:
        DeliveryError: the broker did not take or confirm one.
    """

    def __init__(self, settings: Settings, run: str) -> None:
        self._topic = settings.names.replays
        self._run = (REPLAY_RUN, run.encode())
        limits = {
            "queue.buffering.max.kbytes": 64 * 1024,
            "message.timeout.ms": _PATIENCE * 1000,
            # Each record has its own report, so a gap shows; with the guarantee it would hide the reason.
            "enable.gapless.guarantee": False,
        }
        self._producer = Producer(kafka.producer_config(settings) | limits)
        self._failure: KafkaError | None = None
        #: How many the broker has confirmed.
        self.confirmed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            while len(self._producer):
                self._poll(0.1)
            self._poll(0)
        else:
            with suppress(KafkaException):  # after a fatal error there is nothing left to take back
                self._producer.purge()
                self._producer.flush(1)

    def send(self, partition: int, predictions: Iterator[Output]) -> None:
        """Hand predictions over for the partition of their events; waits while too many are unconfirmed."""
        for output in predictions:
            headers = [*(output.headers or ()), self._run]
            while True:
                try:
                    self._producer.produce(
                        self._topic, output.value, output.key, partition, headers=headers, on_delivery=self._settle
                    )
                    break
                except BufferError:
                    self._poll(0.1)
                except KafkaException as error:
                    raise DeliveryError(self._topic, f"{error.args[0].str()}.") from error
        self._poll(0)

    def _poll(self, seconds: float) -> None:
        self._producer.poll(seconds)
        if self._failure:
            raise DeliveryError(self._topic, f"{self._failure.str()}.")

    def _settle(self, error: KafkaError | None, _: Message | None) -> None:
        if error is None:
            self.confirmed += 1
        else:
            self._failure = self._failure or error

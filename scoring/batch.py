"""Scoring in batch: the worker's own pipeline, with a table of results where the topics stood."""

import dataclasses
import time
from collections.abc import Sequence

import msgspec
import polars as pl
from faust.types import TP

from ecluse.contract.codecs import Reader
from ecluse.contract.headers import read_error_headers
from ecluse.contract.records import Prediction
from ecluse.errors import ModelNotFound
from ecluse.model.artefact import Progress
from ecluse.model.registry import read_registry
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Ledger
from scoring.champion import Champion
from scoring.pipeline import Pipeline
from scoring.replaying import load_version

#: What is said of each record: a prediction, or the sentence that a dead letter would have carried.
RESULT = pl.Schema(
    {
        "score": pl.Float64(),
        "decision": pl.String(),
        "threshold": pl.Float64(),
        "model": pl.String(),
        "version": pl.Int64(),
        "error": pl.String(),
    }
)


class BatchScorer:
    """Scores records as a worker would that found them on the events topic, in this order and without headers."""

    def __init__(self, settings: Settings, champion: Champion) -> None:
        self._topics = settings.names
        self._pipeline = Pipeline(settings, champion, "batch", Telemetry())
        self._prediction = Reader(Prediction)

    def __call__(self, records: Sequence[tuple[bytes | None, bytes]]) -> pl.DataFrame:
        """The result of each record, in the columns of `RESULT`.

        Args:
            records: key and value of each event, as they stand on the topic.

        Raises:
            ModelError: the model fails on every row, its own usual values too.
        """
        if not records:
            return RESULT.to_frame()
        now = int(time.time() * 1e3)
        taken = [_Record(offset, key, value, now) for offset, (key, value) in enumerate(records)]
        chunk = Chunk(Ledger(TP(self._topics.events, 0)), taken, 0, len(taken), 0.0)
        rows: list[tuple[object, ...]] = [()] * len(taken)
        for output in self._pipeline([chunk])[0]:
            if output.topic == self._topics.predictions:
                made = self._prediction(output.value or b"")
                decided = (made.score, made.decision.value, made.threshold, made.model, made.version, None)
                rows[made.source.offset] = decided
            elif output.topic == self._topics.dead_letters:
                said = read_error_headers((k, v) for k, v in output.headers or () if not isinstance(v, str))
                rows[int(said["offset"])] = (None, None, None, None, None, said["exception.message"])
        return pl.DataFrame(rows, schema=RESULT, orient="row")


class _Record(msgspec.Struct, gc=False):
    """One event as if it had been fetched."""

    at: int
    key_bytes: bytes | None
    value_bytes: bytes
    arrived: int

    def __len__(self) -> int:
        return len(self.value_bytes)

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return self.key_bytes

    def value(self) -> bytes:
        return self.value_bytes

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 0, self.arrived


def model_to_score_with(settings: Settings, version: int | None, progress: Progress) -> Champion:
    """The stream's champion with the thresholds of its route, or any released version with those of its manifest.

    Args:
        settings: the stream's.
        version: a released one; None: the champion.
        progress: told of the bytes that are fetched, and of all.

    Raises:
        BrokerError: the models topic could not be read.
        ModelNotFound: there is no champion yet, or the version was never released, or the store does not hold it.
        ModelRefused, ModelError, SettingsError: as `ecluse.model.artefact.load_model`.
    """
    registry = read_registry(settings)
    if version is not None:
        return load_version(settings, version, registry, progress)
    routed = registry.routes.get(settings.model_name)
    if routed is None:
        raise ModelNotFound(f"No model scores stream {settings.stream.name} yet: `ecluse model train FILE` makes one.")
    arm = routed.route.champion
    champion = load_version(settings, arm.version, registry, progress)
    return dataclasses.replace(champion, arm=arm, revision=routed.revision)

"""The path of a chunk, from bytes to the records that come of it. Start reading here.

    decode and validate -> assign arms -> features -> score -> decide -> alert with reasons -> encode -> count

What comes before (fetch) and after (produce, confirm, commit) is the transport's. A record that fails at any stage becomes
a dead letter and the rest goes on: every record gives exactly one prediction or one dead letter.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecluse.bisect import by_halves
from ecluse.contract.codecs import content_headers, encoder
from ecluse.contract.records import BYPASS, Alert, Decision, Prediction, Source
from ecluse.deadletters import DeadLetters
from ecluse.errors import RecordError, Stage
from ecluse.events import LONGEST_NAME, Decoder, FiniteNumbers, Row
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Output
from scoring.alerts import Explainer, severity
from scoring.arms import Bypass, Samples
from scoring.champion import Champion, Verdict
from scoring.profiles import Batch, Profiles

Matrix = NDArray[np.float32]
Scores = NDArray[np.float64]
#: A row, its score (None: it went past the model), and what was decided.
Decided = tuple[Row, float | None, Verdict]


class Pipeline:
    """Turns chunks of records into what is to be produced for them.

    Args:
        settings: the stream's.
        champion: the model that scores, its arm and the route's revision.
        worker: this worker's name, in the dead letters' headers.
        telemetry: where it counts.
        profiles: counts what comes of each chunk, for the monitor.
        clock: the time of day, in seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        champion: Champion,
        worker: str,
        telemetry: Telemetry,
        profiles: Profiles | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        schema = settings.stream.schema_of_events()
        self._topics = settings.names
        self._decoder = Decoder(settings.stream, schema)
        self._finite = FiniteNumbers(schema)
        largest = settings.topics.largest_output
        self._largest_alert = largest - 2 * LONGEST_NAME
        self._dead_letter = DeadLetters(self._topics.dead_letters, settings.group, worker, largest)
        self._encode = encoder(settings.stream.encoding)
        self._headers = content_headers(settings.stream.encoding)
        self._telemetry = telemetry
        self._profiles = profiles
        self._rejected: list[Row] = []
        self._clock = clock
        self._settings, self._schema = settings, schema
        self._samples = Samples(settings, schema)
        self._times: deque[float] = deque(maxlen=31)
        self.serve(champion)
        self.obey(Bypass(settings))

    @property
    def champion(self) -> Champion:
        """The model that scores."""
        return self._champion

    def serve(self, champion: Champion) -> None:
        """Score with this model from the next chunk on: to be called between two."""
        self._champion = champion
        if self._profiles is not None:
            self._profiles.serve(champion)
        self.serves_since = time.monotonic()
        self._explainer = Explainer(champion.model, self._schema, self._settings.stream.visible)
        self._telemetry.model_info.clear()
        self._telemetry.model_info.labels(champion.name, str(champion.version), champion.sha256).set(1)
        self._telemetry.model_load.set(champion.load_seconds)

    @property
    def bypass(self) -> Bypass:
        """The switch that says who goes past the model."""
        return self._bypass

    def obey(self, bypass: Bypass) -> None:
        """Let go past whom this switch says from the next chunk on: to be called between two."""
        self._bypass = bypass
        self._telemetry.bypass_share.set(bypass.share)

    def last_times(self) -> list[float]:
        """The times of some of the last events: where the stream stands on its own clock. May be called from any thread."""
        return list(self._times)

    def __call__(self, chunks: Sequence[Chunk]) -> list[list[Output]]:
        """The records that come of each chunk, in the order of its events. All chunks share one model call.

        Raises:
            ModelError: the model fails on every row, its own usual values too: the worker must stop, uncommitted.
        """
        outputs: list[list[Output]] = [[] for _ in chunks]
        self._rejected = []
        rows = self._decode(chunks, outputs)
        rows = self._validate(rows)
        rows, past = self._assign(rows)
        rows, matrix = self._features(rows)
        rows, matrix, scores = self._score(rows, matrix)
        levels = self._champion.levels(scores)
        verdicts = self._decide(levels)
        arrived = np.array([row.record.timestamp()[1] for row in (*rows, *past)], dtype=np.float64) / 1e3
        self._predict(rows, scores, verdicts, past, arrived)
        self._alert(rows, matrix, scores, verdicts)
        if self._profiles is not None:
            self._profiles.count(chunks, outputs, Batch(rows, past, self._rejected, matrix, scores, levels, arrived))
        return outputs

    def _decode(self, chunks: Sequence[Chunk], outputs: Sequence[list[Output]]) -> list[Row]:
        """From bytes to events, by a struct generated from the stream's schema."""
        rows = []
        for chunk, out in zip(chunks, outputs, strict=True):
            topic, partition = chunk.ledger.partition
            for record in chunk.records:
                source = Source(topic, partition, record.offset())
                try:
                    rows.append(self._decoder(record, source, out))
                except RecordError as error:
                    self._reject(Row(record, source, None, "", "", 0.0, out), error)
        return rows

    def _validate(self, rows: list[Row]) -> list[Row]:
        """What the struct's types do not say."""
        return self._without(rows, Stage.VALIDATE, self._finite.errors([row.event for row in rows]))

    def _assign(self, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """The rows for the model, and those that go past it, with a sample of each."""
        if not self._bypass.share:
            return rows, []
        rows, past = self._bypass.split(rows)
        for row in past:
            row.outputs.append(self._samples(row, self._champion.revision, self._bypass.revision))
        self._telemetry.bypassed.inc(len(past))
        return rows, past

    def _features(self, rows: list[Row]) -> tuple[list[Row], Matrix]:
        """The model's inputs, shape (rows, features), by the code that computed them for training."""
        features = self._champion.model.features
        blocks, errors = by_halves(lambda part: features.matrix([row.event for row in part]), rows)
        matrix = np.concatenate(blocks) if blocks else np.empty((0, len(features.names)), dtype=np.float32)
        return self._without(rows, Stage.FEATURES, errors), matrix

    def _score(self, rows: list[Row], matrix: Matrix) -> tuple[list[Row], Matrix, Scores]:
        """One call of the champion for all rows; where it raises, halves of them, until the rows that fail are alone."""
        if not rows:
            return rows, matrix, np.empty(0)
        started = time.perf_counter()
        blocks, errors = by_halves(lambda part: self._champion.score(matrix[part[0] : part[-1] + 1]), range(len(rows)))
        self._telemetry.predict.observe(time.perf_counter() - started)
        self._telemetry.batch_size.observe(len(rows))
        if not blocks:
            self._champion.require_sound(errors[0])
            return self._without(rows, Stage.SCORE, errors), matrix[:0], np.empty(0)
        return self._without(rows, Stage.SCORE, errors), np.delete(matrix, list(errors), axis=0), np.concatenate(blocks)

    def _decide(self, levels: NDArray[np.int64]) -> list[Verdict]:
        """By the thresholds of the champion's arm."""
        champion, verdicts = self._champion, self._champion.verdicts
        for verdict, count in zip(verdicts, np.bincount(levels, minlength=len(verdicts)).tolist(), strict=True):
            labels = (champion.name, str(champion.version), champion.arm.name, verdict.decision.value)
            self._telemetry.predictions.labels(*labels).inc(count)
        return [verdicts[level] for level in levels.tolist()]

    def _predict(
        self, rows: Sequence[Row], scores: Scores, verdicts: Sequence[Verdict], past: Sequence[Row], arrived: Scores
    ) -> None:
        """One prediction a row, in the order of the events. Those that went past the model are allowed, without a score."""
        now, champion, topic = self._clock(), self._champion, self._topics.predictions
        model, version, arm, share = champion.name, champion.version, champion.arm.name, champion.arm.share
        revision, switch, encode, headers = champion.revision, self._bypass.revision, self._encode, self._headers
        decided: Iterable[Decided] = zip(rows, scores.tolist(), verdicts, strict=True)
        if past:
            allowed = champion.verdicts[0]
            decided = sorted([*decided, *((row, None, allowed) for row in past)], key=_offset)
            self._telemetry.predictions.labels(model, str(version), BYPASS, Decision.ALLOW.value).inc(len(past))
        for row, score, (decision, threshold) in decided:
            prediction = Prediction(
                row.id,
                row.entity,
                row.time,
                now,
                model,
                version,
                BYPASS if score is None else arm,
                row.propensity if score is None else row.propensity * share,
                score,
                decision,
                threshold,
                revision,
                row.source,
                switch,
            )
            row.outputs.append(Output(topic, row.record.key(), encode(prediction), headers))
        made = [*rows, *past]
        self._telemetry.events.labels(self._topics.events, "prediction").inc(len(made))
        if made:
            self._times.append(made[len(made) // 2].time)
            self._telemetry.latency.observe(now - arrived)

    def _alert(self, rows: Sequence[Row], matrix: Matrix, scores: Scores, verdicts: Sequence[Verdict]) -> None:
        """An alert for each row that is reviewed or blocked, with the inputs that moved its score most."""
        alerted = [i for i, verdict in enumerate(verdicts) if verdict.decision is not Decision.ALLOW]
        if not alerted:
            return
        now, champion = self._clock(), self._champion
        reasons = self._explainer.reasons([rows[i].event for i in alerted], matrix[alerted], scores[alerted])
        for i, why in zip(alerted, reasons, strict=True):
            row, score, (decision, threshold) = rows[i], float(scores[i]), verdicts[i]
            urgency = severity(decision, score, champion.arm.thresholds.block)
            alert = Alert(
                event_id=row.id,
                entity=row.entity,
                event_time=row.time,
                scored_at=now,
                model=champion.name,
                version=champion.version,
                arm=champion.arm.name,
                score=score,
                decision=decision,
                threshold=threshold,
                severity=urgency,
                reasons=why,
                fields=self._explainer.fields(row.event),
                route_revision=champion.revision,
                source=row.source,
            )
            value = self._encode(alert)
            if len(value) > self._largest_alert:
                value = self._encode(msgspec.structs.replace(alert, fields={}))
            row.outputs.append(Output(self._topics.alerts, row.record.key(), value, self._headers))
            self._telemetry.alerts.labels(urgency.value).inc()

    def _without(self, rows: list[Row], stage: Stage, errors: Mapping[int, Exception]) -> list[Row]:
        """The rows that did not fail; the others become dead letters."""
        if not errors:
            return rows
        for i, error in errors.items():
            self._reject(rows[i], error if isinstance(error, RecordError) else _record_error(stage, error))
        return [row for i, row in enumerate(rows) if i not in errors]

    def _reject(self, row: Row, error: RecordError) -> None:
        self._rejected.append(row)
        row.outputs.append(self._dead_letter(row.record, row.source, error))
        self._telemetry.dead_letters.labels(error.stage.value).inc()
        self._telemetry.events.labels(self._topics.events, "dead_letter").inc()


def _offset(decided: Decided) -> int:
    """Where an event stands: by it the rows of a chunk come into their order again."""
    return decided[0].source.offset


def _record_error(stage: Stage, error: Exception) -> RecordError:
    """Say that a row failed alone. The text of a foreign error may hold the event's values: only its kind is told."""
    reason = "its features cannot be computed" if stage is Stage.FEATURES else "the model fails on it, and on it alone"
    wrapped = RecordError(stage, f"The event cannot be scored: {reason} ({type(error).__name__}).")
    wrapped.__cause__ = error
    return wrapped

"""A model of the first month of a generated stream, and the later windows as its workers would have counted them."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from ecluse.model.features import Feature
from ecluse.model.manifest import Manifest, histogram
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from ingest.generator import START, Drift, DriftKind, generate
from retrain.drafting import Reference, measure
from retrain.drift.past import Past, count_past
from retrain.thresholds import choose_thresholds

#: Days of a stream: trained on, and until the change sets in; the change is watched for as long as it takes to train.
TRAINED, CHANGED, WATCHED = 30, 44, 74  # so that there are 30 windows of each
TRUTH = ("fraud", "fraud_scenario", "label_known_at")
NOT_INPUTS = ("transaction_id", "time", "customer_id", "terminal_id", *TRUTH)


def settings_of(frame: pl.DataFrame, **monitor: Any) -> Settings:
    """Settings of a stream of these rows: its inputs are numbers, its clock the events' own."""
    optional = {"type": "number", "required": False}
    fields: dict[str, Any] = {name: optional for name in frame.columns if name not in NOT_INPUTS}
    fields["time"] = "time"
    return Settings(
        stream={"name": "drifting", "fields": fields, "time_field": "time", "clock": "event"},
        model={"label": "fraud", "name": "drifting"},
        monitor=monitor,
    )


def days(frame: pl.DataFrame, since: float, until: float) -> pl.DataFrame:
    """The rows from a day on until another, counted from the first row's midnight."""
    first = frame["time"][0].replace(hour=0, minute=0, second=0, microsecond=0)
    ends = (first + dt.timedelta(days=day) for day in (since, until))
    return frame.filter(pl.col("time").is_between(*ends, closed="left"))


def trained(settings: Settings, rows: pl.DataFrame, seed: int) -> Model:
    """A small model of these rows, with the manifest that training would have written: the latest fifth is held out."""
    features = [Feature(name, name, "number") for name in settings.stream.fields if name != "time"]
    matrix = rows.select(feature.name for feature in features).to_numpy().astype(np.float32)
    labels = rows["fraud"].to_numpy().astype(np.int8)
    cut = round(len(rows) * (1 - settings.model.holdout))
    estimator = HistGradientBoostingClassifier(max_iter=40, learning_rate=0.15, random_state=seed)
    estimator.fit(matrix[:cut].astype(np.float64), labels[:cut])

    def score(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(estimator.predict_proba(matrix.astype(np.float64))[:, 1])

    scores = score(matrix[cut:])
    thresholds = choose_thresholds(scores, labels[cut:], settings.thresholds)
    reference = Reference.of(features, matrix[:cut])
    manifest = Manifest(
        name=settings.model_name,
        version=1,
        created_at=0.0,
        features=reference.features,
        reference=reference.histograms,
        score_reference=histogram(scores),
        thresholds=thresholds,
        policy=settings.thresholds.model_dump(),
        metrics=measure(scores, labels[cut:], thresholds),
        training={},
        onnx={},
        libraries={},
        files={},
        sizes={},
    )
    return Model(manifest, score, settings.stream.schema_of_events())


@dataclass(frozen=True)
class Outcomes:
    """Of the events that alert or are fraud, the rest being neither: when they were, what they are, when that was known."""

    times: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int8]
    known_at: NDArray[np.float64]


@dataclass(frozen=True)
class Watched:
    """What a monitor is told of a stream after a model of its first month."""

    seed: int
    kind: DriftKind | None
    manifest: Manifest
    past: Past
    outcomes: Outcomes


def watched(seed: int, customers: int = 5_000) -> Iterator[Watched]:
    """The later days of a generated stream: steady, and with each kind of change, which sets in on day `CHANGED`."""
    make = partial(generate, seed, WATCHED, customers=customers, terminals=2 * customers)
    steady = make()
    settings = settings_of(steady)
    model = trained(settings, days(steady, 0, TRAINED), seed)
    yield _counted(settings, model, seed, None, days(steady, TRAINED, WATCHED))
    before = days(steady, TRAINED, CHANGED)
    for kind in DriftKind:
        changed = days(make(drift=Drift(kind, CHANGED)), CHANGED, WATCHED)
        yield _counted(settings, model, seed, kind, before, changed)


def steady_past(seed: int, until: int) -> tuple[Watched, Settings]:
    """A steady stream from the training's end to the day `until`."""
    frame = generate(seed, until)
    settings = settings_of(frame)
    model = trained(settings, days(frame, 0, TRAINED), seed)
    return _counted(settings, model, seed, None, days(frame, TRAINED, until)), settings


def _counted(settings: Settings, model: Model, seed: int, kind: DriftKind | None, *parts: pl.DataFrame) -> Watched:
    past = count_past(settings, model, model.manifest.thresholds, parts)
    return Watched(seed, kind, model.manifest, past, _outcomes(model, pl.concat(parts)))


def _outcomes(model: Model, rows: pl.DataFrame) -> Outcomes:
    scores, labels = model.score(model.features.matrix_of_frame(rows)), rows["fraud"].to_numpy()
    telling = np.flatnonzero((scores >= model.manifest.thresholds.review) | (labels == 1))
    times, known = (rows[name].dt.epoch("us").to_numpy()[telling] / 1e6 for name in ("time", "label_known_at"))
    return Outcomes(times, scores[telling], labels[telling].astype(np.int8), known)


#: When the change sets in.
CHANGE = (START + dt.timedelta(days=CHANGED)).timestamp()

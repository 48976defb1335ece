"""From a labelled file to a released model: read, train, convert, compare, measure, publish."""

import datetime as dt
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from platform import python_version
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

from ecluse.contract.records import Arm, Release, Route, Thresholds
from ecluse.errors import ModelRefused
from ecluse.model.features import Feature, FeatureSet
from ecluse.model.manifest import JOBLIB, ONNX, Manifest, histogram, reference_histogram, sha256
from ecluse.model.registry import announce, read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.convert import compare, to_onnx_bytes
from retrain.dataset import Rows, hold_out, read_rows
from retrain.inputs import choose_features
from retrain.script import SEED, Script, load_script, run_script
from retrain.thresholds import choose_thresholds

_LIBRARIES = ("scikit-learn", "numpy", "polars", "joblib", "skl2onnx", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Window:
    """Which rows of the file are taken, and from when on they are held out; None: no limit, or `model.holdout`."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    holdout_since: dt.datetime | None = None


@dataclass(frozen=True)
class _Fitted:
    """A model with all that was measured on it, before it has a version."""

    features: tuple[Feature, ...]
    left_out: dict[str, str]
    training: NDArray[np.float32]
    scores: NDArray[np.float64]
    thresholds: Thresholds
    difference: float
    files: dict[str, bytes]


def train_and_publish(
    settings: Settings, file: Path, window: Window | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[Manifest, int]:
    """Train the stream's model, store the artefact, and put its release and a route that makes it champion on `models`.

    Args:
        settings: the stream's.
        file: labelled rows (.csv, .jsonl, .parquet).
        window: which of them.
        say: gets a line before each long step.

    Returns:
        The manifest, and the revision of the route.

    Raises:
        BrokerUnreachable, TopicsWrong: the models topic is not there (asked before anything long begins).
        DataError: the file cannot be read.
        ModelRefused: there is nothing to learn from, the script fails, or the ONNX is not its equal. Nothing is published.
    """
    window = window or Window()
    released = read_registry(settings).newest(settings.model_name)
    store = ModelStore.of(settings)
    script = load_script(settings.model.script)
    say(f"Reading {file}")
    rows = read_rows(settings, file, window.since, window.until)
    training, later = hold_out(rows, settings.model.holdout, window.holdout_since)
    fitted = _fit(settings, script, training, later, say)
    version = store.claim(settings.model_name, above=released)
    manifest = _manifest(settings, version, fitted, training, later)
    manifest.training.update(script=script.name, script_sha256=script.sha256, file=file.name)
    say(f"Publishing version {version}")
    release = Release(
        manifest.name,
        version,
        manifest.created_at,
        manifest_sha256=store.write(manifest, fitted.files),
        size_bytes=sum(manifest.sizes.values()),
    )
    champion = Arm("champion", version, manifest.thresholds)
    return manifest, announce(settings, release, Route(manifest.name, (champion,), time.time()))


def _fit(settings: Settings, script: Script, training: Rows, later: Rows, say: Callable[[str], None]) -> _Fitted:
    stream, schema = settings.stream, settings.stream.schema_of_events()
    roles = {stream.id_field: "the id", stream.time_field: "the time", stream.key_field: "the key"}
    named_roles = {field: role for field, role in roles.items() if field}
    features, left_out = choose_features(schema, training.frame, settings.model.features, named_roles)
    inputs = FeatureSet(features, schema)
    matrix, later_matrix = inputs.matrix_of_frame(training.frame), inputs.matrix_of_frame(later.frame)

    say(f"Training {script.name} on {len(training):,} rows of {len(features)} features (seed {SEED})")
    if "label" in inputs.names:
        raise ModelRefused("A feature cannot be called 'label': that is what a training script finds the truth under.")
    frame = pl.DataFrame(matrix, schema=list(inputs.names)).with_columns(label=pl.Series(training.labels))
    estimator = run_script(script, frame, inputs.names)

    say(f"Converting {type(estimator).__name__} to ONNX and comparing both on {len(later):,} held-out rows")
    onnx = to_onnx_bytes(estimator, len(features))
    scores, difference = compare(estimator, onnx, later_matrix)
    thresholds = choose_thresholds(scores, later.labels, settings.thresholds)
    files = {ONNX: onnx, JOBLIB: _pickled(estimator)}
    return _Fitted(features, left_out, matrix, scores, thresholds, difference, files)


def _pickled(estimator: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        joblib.dump(estimator, buffer, compress=3)
    except Exception as error:  # pickling runs the estimator's own code
        raise ModelRefused(f"{type(estimator).__name__} cannot be written with joblib: {error}.") from error
    return buffer.getvalue()


def _manifest(settings: Settings, version: int, fitted: _Fitted, training: Rows, later: Rows) -> Manifest:
    return Manifest(
        name=settings.model_name,
        version=version,
        created_at=time.time(),
        features=fitted.features,
        reference={
            feature.name: reference_histogram(feature, fitted.training[:, i])
            for i, feature in enumerate(fitted.features)
        },
        score_reference=histogram(fitted.scores),
        thresholds=fitted.thresholds,
        policy=settings.thresholds.model_dump(),
        metrics=measure(fitted.scores, later.labels, fitted.thresholds),
        training={
            "rows": len(training),
            "positives": int(training.labels.sum()),
            "span": training.span,
            "held_out_span": later.span,
            "seed": SEED,
            "left_out": fitted.left_out,
            "notes": (*training.notes, *_doubts(settings, fitted)),
        },
        onnx={"rows": float(len(later)), "max_difference": fitted.difference},
        libraries={"python": python_version()} | {name: installed(name) for name in _LIBRARIES},
        files={name: sha256(data) for name, data in fitted.files.items()},
        sizes={name: len(data) for name, data in fitted.files.items()},
    )


def _doubts(settings: Settings, fitted: _Fitted) -> list[str]:
    """What a person should know about the thresholds, a sentence each."""
    if (fitted.scores >= fitted.thresholds.review).any():
        return []
    policy = settings.thresholds
    if policy.policy == "cost":
        return ["No alert is worth its cost on the held-out rows."]
    return [
        f"The {len(fitted.scores):,} held-out rows are too few for an alert budget of {policy.alert_budget:.2%}, or too many "
        "of them share the highest score: none of them alerts. Give more rows, or a larger thresholds.alert_budget."
    ]


def measure(scores: NDArray[np.float64], labels: NDArray[np.int8], thresholds: Thresholds) -> dict[str, float]:
    """What the scores are worth on rows with their truth, both shape (n,). Precision is 0 where nothing alerts."""
    alerts, positives = scores >= thresholds.review, labels == 1
    found = int((alerts & positives).sum())
    return {
        "rows": float(len(scores)),
        "positives": float(positives.sum()),
        "average_precision": float(average_precision_score(labels, scores)),
        "roc_auc": float(roc_auc_score(labels, scores)),
        "precision_at_review": found / max(int(alerts.sum()), 1),
        "recall_at_review": found / int(positives.sum()),
        "alert_share": float(alerts.mean()),
        "block_share": float((scores >= thresholds.block).mean()),
    }

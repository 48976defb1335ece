"""What a draft is made of: the form that workers serve, sample rows with scores, and the manifest."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from platform import python_version
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score  # type: ignore[import-untyped]

from ecluse.contract.records import Thresholds
from ecluse.errors import ModelRefused
from ecluse.model.features import Feature
from ecluse.model.manifest import (
    JOBLIB,
    MANIFEST,
    ONNX,
    SAMPLES,
    Histogram,
    Manifest,
    histogram,
    reference_histogram,
    sha256_of,
)
from ecluse.model.runtime import clipped
from ecluse.model.samples import Samples, synthetic_rows
from ecluse.settings import Settings
from retrain.convert import convert
from retrain.memory import memory_of
from retrain.probes import checked_scores
from retrain.publish import DRAFT
from retrain.script import probabilities

_LIBRARIES = ("scikit-learn", "numpy", "polars", "joblib", "skl2onnx", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Reference:
    """The rows that a model is measured by: of its features, (n, features), and their histograms by name."""

    features: tuple[Feature, ...]
    histograms: dict[str, Histogram]

    @staticmethod
    def of(
        features: Sequence[Feature], matrix: NDArray[np.float32], weights: NDArray[np.float64] | None = None
    ) -> "Reference":
        """The histograms of rows of features, (n, features), which stand for so many events each, (n,)."""
        columns = zip(features, matrix.T, strict=True)
        return Reference(
            tuple(features),
            {feature.name: reference_histogram(feature, column, weights) for feature, column in columns},
        )

    @property
    def samples(self) -> NDArray[np.float32]:
        """Made-up rows for the artefact."""
        return synthetic_rows(self.features, self.histograms)


@dataclass(frozen=True)
class Compiled:
    """An estimator's form for workers: the scores that it gives, (n,), how far they lie from the estimator's, its files, and
    what a person should know."""

    scores: NDArray[np.float64]
    onnx: dict[str, float]
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()


def compile_estimator(settings: Settings, estimator: Any, rows: NDArray[np.float32], reference: Reference) -> Compiled:
    """Convert a fitted classifier, and compare both on rows of features, (n, features), and on the artefact's samples.

    Raises:
        ModelRefused: the ONNX is not its equal, and the settings do not have this model unpickled.
    """
    samples = reference.samples
    expected = checked_scores(partial(probabilities, estimator), samples)
    files = {SAMPLES: Samples.of(samples, expected).encode()}
    together = np.concatenate([rows, samples])
    try:
        onnx, scores, difference = convert(estimator, together)
    except ModelRefused as error:
        if settings.model_name not in settings.model.unpickle:
            raise ModelRefused(
                f"{error} Workers serve ONNX; they load a pickle instead only where the setting model.unpickle names the "
                "model. Nothing was published."
            ) from error
        note = f"Workers unpickle this model, as model.unpickle allows, because it has no ONNX form. {error}"
        served = clipped(checked_scores(partial(probabilities, estimator), rows))
        return Compiled(served, {}, files | {JOBLIB: _pickled(estimator, compress=0)}, (note,))
    files |= {ONNX: onnx, JOBLIB: _pickled(estimator, compress=3)}
    return Compiled(scores[: len(rows)], {"rows": float(len(together)), "max_difference": difference}, files)


def _pickled(estimator: Any, compress: int) -> bytes:
    """What joblib writes; where it is served it is not compressed, so that it can be mapped into memory."""
    buffer = io.BytesIO()
    try:
        joblib.dump(estimator, buffer, compress=compress)
    except Exception as error:  # pickling runs the estimator's own code
        raise ModelRefused(f"{type(estimator).__name__} cannot be written with joblib: {error}.") from error
    return buffer.getvalue()


def write_draft(
    settings: Settings,
    draft: Path,
    files: Mapping[str, bytes],
    reference: Reference,
    scores: NDArray[np.float64],
    thresholds: Thresholds,
    weights: NDArray[np.float64] | None = None,
    **account: Any,
) -> None:
    """Write the files into the draft's folder, beside what is there, and the manifest of them all.

    Args:
        settings: the stream's.
        draft: the folder.
        files: by name.
        reference: the model's features with their histograms.
        scores: of the rows on which the thresholds were chosen, shape (n,).
        thresholds: the model's.
        weights: how many events each of these rows stands for, shape (n,); 1 where None.
        account: the manifest's `metrics`, `training` and `onnx`.

    Raises:
        ModelRefused: a fresh process cannot load the model.
    """
    for name, data in files.items():
        (draft / name).write_bytes(data)
    present = {path.name: path for path in sorted(draft.iterdir())}
    grown, peak = memory_of(draft)
    manifest = Manifest(
        name=settings.model_name,
        version=DRAFT,
        created_at=time.time(),
        features=reference.features,
        reference=reference.histograms,
        score_reference=histogram(scores, None, weights),
        thresholds=thresholds,
        policy=settings.thresholds.model_dump(),
        libraries={"python": python_version()} | {name: installed(name) for name in _LIBRARIES},
        files={name: sha256_of(path) for name, path in present.items()},
        sizes={name: path.stat().st_size for name, path in present.items()},
        memory_bytes=grown,
        peak_memory_bytes=peak,
        **account,
    )
    (draft / MANIFEST).write_bytes(manifest.encode())


def measure(
    scores: NDArray[np.float64],
    labels: NDArray[np.int8],
    thresholds: Thresholds,
    weights: NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """What the scores are worth on rows with their truth and the events that each stands for (1 where None), all shape (n,).

    `rows` and `positives` count rows, all else events. `alert_rows` is as how many rows of equal weight those that alert tell
    of their share (Kish). Precision is 0 where nothing alerts.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    alerts, positives = scores >= thresholds.review, labels == 1
    found = float(weights[alerts & positives].sum())
    alerting, total = float(weights[alerts].sum()), float(weights.sum())
    return {
        "rows": float(len(scores)),
        "positives": float(positives.sum()),
        "average_precision": float(average_precision_score(labels, scores, sample_weight=weights)),
        "roc_auc": float(roc_auc_score(labels, scores, sample_weight=weights)),
        "precision_at_review": found / alerting if alerting else 0.0,
        "recall_at_review": found / float(weights[positives].sum()),
        "alert_share": alerting / total,
        "alert_rows": alerting**2 / float(np.square(weights[alerts]).sum()) if alerting else 0.0,
        "block_share": float(weights[scores >= thresholds.block].sum()) / total,
    }

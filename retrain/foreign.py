"""A model that somebody brings, in the child process: refused with the reason, or checked, compared and drafted."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse import tables
from ecluse.contract.records import Thresholds
from ecluse.contract.schema import EventSchema
from ecluse.errors import DataError, ModelRefused
from ecluse.model.features import FeatureSet
from ecluse.model.manifest import SAMPLES, sha256_of
from ecluse.model.runtime import clipped
from ecluse.model.samples import Samples
from ecluse.settings import Settings
from retrain.dataset import truth
from retrain.drafting import Compiled, Reference, compile_estimator, measure, write_draft
from retrain.foreign_estimator import load_estimator
from retrain.foreign_onnx import take_onnx
from retrain.given import given_features
from retrain.probes import checked_scores, probe
from retrain.process import Register
from retrain.script import probabilities
from retrain.thresholds import choose_thresholds

Labels = NDArray[np.int8]
#: What a person can do about an input that the model does not score.
_MISSING = "give `missing`, the value that stands for it, in the features file, or have the stream require the field."
_STRANGE = "have it take any code, as OneHotEncoder(handle_unknown='ignore') does."


def register(settings: Settings, job: Register, say: Callable[[str], None]) -> None:
    """Check a model on its sample rows and write the draft.

    Raises:
        DataError: the features file or the sample rows cannot be read.
        ModelRefused: it could not be served.
    """
    model, schema = Path(job.model), settings.stream.schema_of_events()
    features = given_features(Path(job.features), schema)
    frame, labels, notes = _sample_rows(settings, Path(job.samples))
    matrix = FeatureSet(features, schema).matrix_of_frame(frame)
    reference = Reference.of(features, matrix)
    thresholds = job.thresholds
    if thresholds is None:
        _require_choice(settings, labels, len(matrix))

    say(f"Checking {model.name} on {len(matrix):,} sample rows of {len(features)} features")
    if model.suffix.lower() == ".onnx":
        compiled = _from_onnx(job, schema, matrix, reference)
    else:
        compiled = _from_joblib(settings, job, schema, matrix, reference, say)
    scores = compiled.scores[: len(matrix)]
    known = np.zeros(len(matrix), dtype=bool) if labels is None else labels >= 0
    if thresholds is None:
        thresholds = _chosen(settings, scores, labels)
    account = {
        "registered": model.name,
        "sha256": sha256_of(model),
        "samples": Path(job.samples).name,
        "rows": len(matrix),
        "notes": (*notes, *compiled.notes),
    }
    say("Measuring what it takes of a worker's memory")
    write_draft(
        settings,
        Path(job.draft),
        compiled.files,
        reference,
        scores,
        thresholds,
        metrics={} if labels is None else measure(scores[known], labels[known], thresholds),
        training=account,
        onnx=compiled.onnx,
    )


def _from_onnx(job: Register, schema: EventSchema, matrix: NDArray[np.float32], reference: Reference) -> Compiled:
    score = take_onnx(Path(job.model), Path(job.draft), len(reference.features))
    probe(reference.features, schema, matrix, score, missing=_MISSING, strange=_STRANGE)
    samples = Samples.of(reference.samples, checked_scores(score, reference.samples))
    return Compiled(clipped(checked_scores(score, matrix)), {}, {SAMPLES: samples.encode()})


def _from_joblib(
    settings: Settings,
    job: Register,
    schema: EventSchema,
    matrix: NDArray[np.float32],
    reference: Reference,
    say: Callable[[str], None],
) -> Compiled:
    estimator, doubts = load_estimator(Path(job.model), reference.features)

    def score(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        return probabilities(estimator, rows)

    probes = probe(reference.features, schema, matrix, score, missing=_MISSING, strange=_STRANGE)
    checked_scores(score, matrix)
    say(f"Converting {type(estimator).__name__} to ONNX and comparing both")
    compiled = compile_estimator(settings, estimator, np.concatenate([matrix, probes]), reference)
    return replace(compiled, notes=(*doubts, *compiled.notes))


def _sample_rows(settings: Settings, file: Path) -> tuple[pl.DataFrame, Labels | None, list[str]]:
    """The stream's fields in a file, the truth (1, 0, -1: blank) where it holds one of two classes, and notes."""
    scanned = tables.scan(file, settings.stream.texts)
    present, label = tables.columns(scanned, file), settings.model.label
    required = [name for name, field in settings.stream.fields.items() if field.required and name not in present]
    if required:
        raise DataError(f"{file} lacks the required fields {', '.join(required)} (stream.fields).")
    wanted = [name for name in (*settings.stream.fields, label) if name in present]
    frame = tables.collect(scanned.select(wanted), file)
    if frame.is_empty():
        raise DataError(f"{file} holds no rows: the model is tried on sample rows of the stream's fields.")
    texts = [name for name in settings.stream.texts if name in present and not present[name].is_nested()]
    frame = frame.with_columns(tables.as_texts(frame[name]) for name in texts)
    # A field that is not in the file is missing in every row.
    absent = {name: pl.Null for name in settings.stream.fields if name not in present}
    frame = frame.with_columns(pl.lit(None, dtype=kind).alias(name) for name, kind in absent.items())
    if label not in present:
        return frame, None, []
    if frame[label].drop_nulls().n_unique() < 2:
        return frame, None, [f"The label '{label}' of the sample rows has not two classes: nothing was measured."]
    return frame, truth(frame[label], settings.model.positive, label), []


def _require_choice(settings: Settings, labels: Labels | None, rows: int) -> None:
    """Thresholds can be chosen on the sample rows, or somebody has to give them."""
    policy, otherwise = settings.thresholds, "give the model's thresholds with --review and --block."
    if policy.policy == "cost":
        if labels is None:
            raise ModelRefused(
                f"Costs cannot be weighed on sample rows without the label '{settings.model.label}': {otherwise}"
            )
        return
    rows = rows if labels is None else int((labels >= 0).sum())
    needed = math.ceil(1 / min(share for share in (policy.alert_budget, policy.block_budget) if share) - 1e-9)
    if rows < needed:
        raise ModelRefused(
            f"{rows:,} sample rows are too few to choose thresholds for an alert budget of {policy.alert_budget:.2%} and a "
            f"block budget of {policy.block_budget:.2%} ({needed:,} are needed): give more, or {otherwise}"
        )


def _chosen(settings: Settings, scores: NDArray[np.float64], labels: Labels | None) -> Thresholds:
    known = slice(None) if labels is None else labels >= 0
    truths = np.zeros(len(scores), dtype=np.int8) if labels is None else labels
    thresholds = choose_thresholds(scores[known], truths[known], settings.thresholds)
    if not (scores >= thresholds.review).any():
        raise ModelRefused(
            "No sample row would raise an alert: they are too few, too many share the highest score, or no alert is worth its "
            "cost. Give other rows, or the model's thresholds with --review and --block."
        )
    return thresholds

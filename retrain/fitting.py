"""Training, in the child process: read, train, convert, compare, measure, write the draft."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse.contract.records import Thresholds
from ecluse.errors import ModelRefused
from ecluse.model.features import Feature, FeatureSet
from ecluse.settings import Settings
from retrain.dataset import Rows, hold_out, own_column, read_rows
from retrain.drafting import Compiled, Reference, compile_estimator, measure, write_draft
from retrain.inputs import choose_features
from retrain.probes import probe
from retrain.process import Train
from retrain.script import Script, load_script, probabilities, run_script
from retrain.thresholds import choose_thresholds

#: What a training script can do about an input that its model does not score.
_MISSING = (
    "have the training script return a model that takes missing values, as HistGradientBoostingClassifier does, or begin its "
    "pipeline with a SimpleImputer, or have the stream require the field (`required` in stream.fields)."
)
_STRANGE = 'have the training script encode it with OneHotEncoder(handle_unknown="ignore").'

_PRIVATE = "it does not reach the training store as it was (store.drop, store.hash, store.mask)"


@dataclass(frozen=True)
class Ground:
    """What a model is trained on and, later in time and never seen in training, measured by.

    `matrix` and `later_matrix` hold the features of both, (n, features); `frame` is what a script gets. `left_out` says of
    each field that is no feature why.
    """

    training: Rows
    later: Rows
    features: tuple[Feature, ...]
    left_out: dict[str, str]
    matrix: NDArray[np.float32]
    later_matrix: NDArray[np.float32]
    frame: pl.DataFrame
    reference: Reference

    @property
    def names(self) -> list[str]:
        """The features' names, in their order."""
        return [feature.name for feature in self.features]


@dataclass(frozen=True)
class Fitted:
    """A trained model in the form that workers serve, its thresholds, and what it is worth on the later rows."""

    compiled: Compiled
    thresholds: Thresholds
    metrics: dict[str, float]


def train(settings: Settings, job: Train, say: Callable[[str], None]) -> None:
    """Train the stream's model and write the draft.

    Raises:
        DataError: the file cannot be read.
        ModelRefused: there is nothing to learn from, the script fails, its model gives no score for what an event may
            bring, or the ONNX is not its equal.
    """
    script = load_script(settings.model.script)
    ground = prepare(settings, job, say)
    seed = settings.trainer.seed
    say(f"Training {script.name} on {len(ground.training):,} rows of {len(ground.features)} features (seed {seed})")
    estimator = run_script(script, ground.frame, ground.names, seed)
    say(f"Converting {type(estimator).__name__} to ONNX and comparing both on {len(ground.later):,} held-out rows")
    fitted = fit(settings, ground, estimator)
    say("Measuring what it takes of a worker's memory")
    draft(settings, job, ground, script, fitted, fitted.compiled.files)


def prepare(settings: Settings, job: Train, say: Callable[[str], None]) -> Ground:
    """Read the file, part its rows, and compute the features.

    Raises:
        DataError: the file cannot be read.
        ModelRefused: there is nothing to learn from.
    """
    file = Path(job.file)
    say(f"Reading {file}")
    rows = read_rows(settings, file, job.since, job.until)
    training, later = hold_out(rows, settings.model.holdout, job.holdout_since)

    stream, schema = settings.stream, settings.stream.schema_of_events()
    roles = {stream.id_field: "the id", stream.time_field: "the time", stream.key_field: "the key"}
    private = [field for field in schema.fields if field.lower() in job.private]
    named_roles = {field: role for field, role in roles.items() if field} | dict.fromkeys(private, _PRIVATE)
    for name in settings.model.features or ():
        if name in private or name.rpartition(".")[0] in private:
            raise ModelRefused(f"model.features names '{name}', which cannot be an input: {_PRIVATE}.")
    features, left_out = choose_features(schema, training.frame, settings.model.features, named_roles)
    inputs = FeatureSet(features, schema)
    if "label" in inputs.names:
        raise ModelRefused("A feature cannot be called 'label': that is what a training script finds the truth under.")
    matrix, later_matrix = inputs.matrix_of_frame(training.frame), inputs.matrix_of_frame(later.frame)
    weight = pl.Series(own_column("weight", inputs.names), training.weights)
    frame = pl.DataFrame(matrix, schema=list(inputs.names)).with_columns(pl.Series("label", training.labels), weight)
    reference = Reference.of(features, matrix, training.weights)
    return Ground(training, later, features, left_out, matrix, later_matrix, frame, reference)


def fit(settings: Settings, ground: Ground, estimator: Any) -> Fitted:
    """Try, convert, compare and measure what a script returned.

    Raises:
        ModelRefused: it gives no score for what an event may bring, or the ONNX is not its equal.
    """
    schema, later = settings.stream.schema_of_events(), ground.later
    score = partial(probabilities, estimator)
    probe(ground.features, schema, ground.matrix, score, missing=_MISSING, strange=_STRANGE)
    compiled = compile_estimator(settings, estimator, ground.later_matrix, ground.reference)
    thresholds = choose_thresholds(compiled.scores, later.labels, settings.thresholds, later.weights)
    return Fitted(compiled, thresholds, measure(compiled.scores, later.labels, thresholds, later.weights))


def draft(
    settings: Settings,
    job: Train,
    ground: Ground,
    script: Script,
    fitted: Fitted,
    files: Mapping[str, bytes],
    **account: Any,
) -> None:
    """Write the draft: the files, and the manifest of them and of what the folder holds already.

    Raises:
        ModelRefused: a fresh process cannot load the model.
    """
    training, compiled = ground.training, fitted.compiled
    account = {
        "rows": len(training),
        "positives": int(training.labels.sum()),
        "span": training.span,
        "held_out_span": ground.later.span,
        "seed": settings.trainer.seed,
        "left_out": ground.left_out,
        "notes": (
            *training.notes,
            *compiled.notes,
            *doubts(settings, compiled.scores, fitted.thresholds),
        ),
        "script": script.name,
        "script_sha256": script.sha256,
        "file": Path(job.file).name,
    } | account
    write_draft(
        settings,
        Path(job.draft),
        files,
        ground.reference,
        compiled.scores,
        fitted.thresholds,
        ground.later.weights,
        metrics=fitted.metrics,
        training=account,
        onnx=compiled.onnx,
    )


def doubts(settings: Settings, scores: NDArray[np.float64], thresholds: Thresholds) -> list[str]:
    """What a person should know about the thresholds that were chosen, a sentence each."""
    if (scores >= thresholds.review).any():
        return []
    policy = settings.thresholds
    if policy.policy == "cost":
        return ["No alert is worth its cost on the held-out rows."]
    return [
        f"The {len(scores):,} held-out rows are too few for an alert budget of {policy.alert_budget:.2%}, or too many "
        "of them share the highest score: none of them alerts. Give more rows, or a larger thresholds.alert_budget."
    ]

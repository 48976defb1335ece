"""Small models for tests: whole artefacts, signed and stored, without the seconds that training takes."""

import tempfile
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from ecluse.contract.records import Thresholds
from ecluse.model.features import Feature
from ecluse.model.manifest import MANIFEST, ONNX, SAMPLES, Manifest, histogram, reference_histogram
from ecluse.model.samples import Samples, synthetic_rows
from ecluse.settings import Settings
from retrain.convert import to_onnx_bytes
from retrain.publish import DRAFT, publish

AMOUNT = Feature("amount", "amount", "number")


def publish_small(settings: Settings, *, champion: bool = True, block: float = 0.9) -> Manifest:
    """Publish the next version of the stream's model, which blocks from `block` on; scores rise with the amount."""
    with tempfile.TemporaryDirectory() as folder:
        draft_small(settings.model_name, Path(folder), block)
        return publish(settings, Path(folder), champion=champion)[0]


def draft_small(name: str, draft: Path, block: float = 0.9) -> None:
    """Write the draft of such a model into a folder."""
    onnx, manifest, samples = _small()
    manifest = msgspec.structs.replace(manifest, name=name, thresholds=Thresholds(0.5, block))
    (draft / ONNX).write_bytes(onnx)
    (draft / SAMPLES).write_bytes(samples.encode())
    (draft / MANIFEST).write_bytes(manifest.encode())


def small_manifest(settings: Settings) -> Manifest:
    """The manifest of such a model, as version 1, without an artefact."""
    return msgspec.structs.replace(_small()[1], name=settings.model_name, version=1)


@cache
def _small() -> tuple[bytes, Manifest, Samples]:
    amounts = np.arange(400, dtype=np.float32)[:, None]
    estimator = LogisticRegression(max_iter=1000).fit(amounts, amounts[:, 0] > 200)
    reference = {"amount": reference_histogram(AMOUNT, amounts[:, 0])}
    scores = estimator.predict_proba(amounts)[:, 1]
    rows = synthetic_rows([AMOUNT], reference)
    manifest = Manifest(
        name="",
        version=DRAFT,
        created_at=0.0,
        features=(AMOUNT,),
        reference=reference,
        score_reference=histogram(scores),
        thresholds=Thresholds(0.5, 0.9),
        policy={"policy": "budget"},
        metrics={"average_precision": 0.75, "roc_auc": 0.9},
        training={"rows": 400, "script": "default", "seed": 1, "notes": ["made for a test"]},
        onnx={"max_difference": 1e-7},
        libraries={"scikit-learn": "1"},
        files=dict.fromkeys((ONNX, SAMPLES), ""),
        sizes=dict.fromkeys((ONNX, SAMPLES), 0),
        memory_bytes=2**20,
    )
    return to_onnx_bytes(estimator, 1), manifest, Samples.of(rows, estimator.predict_proba(rows)[:, 1])

"""A model in a worker's hands: an ONNX Runtime session behind its features. Nothing here unpickles anything."""

from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ecluse.contract.records import Release
from ecluse.contract.schema import EventSchema
from ecluse.errors import ModelRefused
from ecluse.model.features import FeatureSet
from ecluse.model.manifest import ONNX, Manifest
from ecluse.model.store import ModelStore

ort.disable_telemetry_events()  # a worker tells nobody but its operator what it does

#: Rows in one call when warming: one event, a small chunk, a full one.
_WARM_ROWS = (1, 64, 1024)


class Model:
    """Scores rows of features. `usual` holds the reference medians, shape (features,).

    Raises:
        ModelRefused: the features do not fit the stream's schema, or the ONNX cannot be run or is of another shape.
    """

    def __init__(self, manifest: Manifest, onnx: bytes, schema: EventSchema) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.version = manifest.version
        self.features = FeatureSet(manifest.features, schema)
        if unknown := [name for name in self.features.names if name not in manifest.reference]:
            raise ModelRefused(f"The manifest of {self.name} has no reference histogram of {', '.join(unknown)}.")
        self.usual = np.array([manifest.reference[name].median for name in self.features.names], dtype=np.float32)
        self._session = session(onnx, len(self.features.names))

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probability of class 1 for rows of features, (n, features) to (n,)."""
        return clipped(probabilities(self._session, matrix))

    def warm(self) -> None:
        """Run the model once in each of the usual sizes, so that the first event waits for nothing.

        Raises:
            ModelRefused: the model fails, or gives what is no probability, on the usual values.
        """
        for rows in _WARM_ROWS:
            try:
                scores = probabilities(self._session, np.tile(self.usual, (rows, 1)))
            except Exception as error:  # whatever ONNX Runtime raises: it has no common base
                raise ModelRefused(
                    f"Model {self.name} version {self.version} fails on usual values: {error}"
                ) from error
            if scores.shape != (rows,) or not (np.abs(scores - 0.5) <= 0.5 + 1e-5).all():
                raise ModelRefused(f"Model {self.name} version {self.version} gives no probabilities on usual values.")


def probabilities(loaded: Any, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a session that `session` made says of class 1, (n, features) to (n,)."""
    (both,) = loaded.run([loaded.get_outputs()[-1].name], {loaded.get_inputs()[0].name: matrix})
    return np.asarray(both)[:, 1].astype(np.float64)


def clipped(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores within 0 and 1: float32 sums of a forest's votes may end a rounding error outside."""
    return np.clip(scores, 0.0, 1.0)


def session(onnx: bytes, features: int) -> Any:
    """An ONNX Runtime session that keeps to one thread.

    Raises:
        ModelRefused: the bytes are no ONNX model, or not one of `features` float32 inputs and probabilities of two classes.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Memory plans are kept for every number of rows that was ever seen, and chunks come in all sizes.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        loaded = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever ONNX Runtime raises: it has no common base
        raise ModelRefused(f"The model's ONNX cannot be loaded: {error}") from error
    inputs, output = loaded.get_inputs(), loaded.get_outputs()[-1]
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or inputs[0].shape[1:] != [features]:
        raise ModelRefused(f"The model's ONNX does not take rows of {features} float32 features.")
    if output.type != "tensor(float)" or output.shape[1:] != [2]:
        raise ModelRefused("The model's ONNX does not give the probabilities of two classes.")
    return loaded


def load_model(store: ModelStore, name: str, version: int, schema: EventSchema, release: Release | None) -> Model:
    """Load a version that a worker may serve: everything is checked against its digest.

    Args:
        store: where it lies.
        name: the model's.
        version: the one that the route names.
        schema: the stream's; a model that needs more is refused.
        release: what the models topic says of the version; None trusts the store (offline use).

    Raises:
        ModelNotFound: the store does not hold it.
        ModelRefused: it was changed after its release, calls itself otherwise, needs fields that the stream does not
            declare, or cannot be run.
    """
    manifest = store.manifest(name, version, release.manifest_sha256 if release else None)
    return Model(manifest, store.file(manifest, ONNX), schema)

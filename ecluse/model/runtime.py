"""A model in a process's hands: what turns rows of features into scores, behind its features."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ecluse.contract.schema import EventSchema
from ecluse.errors import ModelRefused, cause
from ecluse.model.features import FeatureSet
from ecluse.model.manifest import Manifest
from ecluse.model.samples import Samples

ort.disable_telemetry_events()  # a worker tells nobody but its operator what it does

#: How far a score may lie from the one that the estimator gave the same row.
TOLERANCE = 1e-5
#: Rows in one call when warming: one event, a small chunk, a full one.
_WARM_ROWS = (1, 64, 1024)
#: A file from which on it is worth its while to look for memory that can be given back.
LARGE_BYTES = 32 * 2**20

#: The probability of class 1 for rows of features, (n, features) to (n,).
Scorer = Callable[[NDArray[np.float32]], NDArray[np.float64]]


class Model:
    """Scores rows of features. `usual` holds the reference medians, shape (features,).

    Raises:
        ModelRefused: the features do not fit the stream's schema, or one has no reference.
    """

    def __init__(self, manifest: Manifest, scorer: Scorer, schema: EventSchema) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.version = manifest.version
        self.features = FeatureSet(manifest.features, schema)
        if unknown := [name for name in self.features.names if name not in manifest.reference]:
            raise ModelRefused(f"The manifest of {self.name} has no reference histogram of {', '.join(unknown)}.")
        self.usual = np.array([manifest.reference[name].median for name in self.features.names], dtype=np.float32)
        self._scorer = scorer

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probability of class 1 for rows of features, (n, features) to (n,)."""
        return clipped(self._scorer(matrix))

    def compare(self, samples: Samples) -> float:
        """The largest difference from the scores that the samples carry.

        Raises:
            ModelRefused: it is larger than `TOLERANCE`, or the model fails on them.
        """
        difference = float(np.max(np.abs(self._probe(samples.matrix, "its sample rows") - np.array(samples.scores))))
        if not difference <= TOLERANCE:
            raise ModelRefused(
                f"Model {self.name} version {self.version} gives its own sample rows other scores than its estimator did: "
                f"they differ by up to {difference:.2g}, where {TOLERANCE:g} is allowed."
            )
        return difference

    def warm(self) -> None:
        """Run the model once in each of the usual sizes, so that the first event waits for nothing.

        Raises:
            ModelRefused: the model fails, or gives what is no probability, on the usual values.
        """
        for rows in _WARM_ROWS:
            scores = self._probe(np.tile(self.usual, (rows, 1)), "usual values")
            if not (np.abs(scores - 0.5) <= 0.5 + TOLERANCE).all():
                raise ModelRefused(f"Model {self.name} version {self.version} gives no probabilities on usual values.")

    def _probe(self, matrix: NDArray[np.float32], what: str) -> NDArray[np.float64]:
        try:
            scores = self._scorer(matrix)
        except Exception as error:  # a model raises anything
            raise ModelRefused(f"Model {self.name} version {self.version} fails on {what}: {cause(error)}.") from error
        if scores.shape != (len(matrix),):
            raise ModelRefused(f"Model {self.name} version {self.version} does not give one score for each row.")
        return scores


def onnx_scorer(onnx: bytes | Path, features: int) -> Scorer:
    """Scores with an ONNX model. From a file, its external data is mapped into memory; it must lie in the file's folder.

    Raises:
        ModelRefused: see `session`.
    """
    loaded = session(onnx, features)
    if isinstance(onnx, Path) and onnx.stat().st_size > LARGE_BYTES:
        give_back()
    name, output = loaded.get_inputs()[0].name, [loaded.get_outputs()[-1].name]

    def score(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        (both,) = loaded.run(output, {name: matrix})
        return np.asarray(both)[:, 1].astype(np.float64)

    return score


def joblib_scorer(file: Path) -> Scorer:
    """Scores with an estimator's own `predict_proba`. Unpickling runs what the file says: the operator has allowed it.

    Raises:
        ModelRefused: the file does not hold a classifier of two classes.
    """
    import joblib  # type: ignore[import-untyped] # noqa: PLC0415 - most processes never unpickle

    try:
        with file.open("rb") as opened:
            compressed = opened.read(1) != b"\x80"  # only a plain pickle's arrays can be mapped
        estimator = joblib.load(file, mmap_mode=None if compressed else "r")
        if "n_jobs" in estimator.get_params():
            estimator.set_params(n_jobs=1)
        classes = np.asarray(estimator.classes_).tolist()
    except Exception as error:  # unpickling raises anything
        raise ModelRefused(f"The model's joblib cannot be loaded: {cause(error)}.") from error
    if classes != [0, 1]:
        raise ModelRefused(f"The model's joblib gives the classes {classes}, not 0 and 1.")

    def score(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        # In doubles, as `retrain` compared it: some estimators compute in what they are given.
        return np.asarray(estimator.predict_proba(matrix.astype(np.float64)), dtype=np.float64)[:, 1]

    return score


def give_back() -> None:
    """Have the C library return free memory to the system, where it can (glibc): else it keeps what loading took for a while.

    A forest of 1 GB of ONNX took 7.4 GB after it was loaded, 4.0 GB after this, and 0.1 instead of 1.3 GB after it was dropped.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def clipped(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores within 0 and 1: float32 sums of a forest's votes may end a rounding error outside."""
    return np.clip(scores, 0.0, 1.0)


def session(onnx: bytes | Path, features: int) -> Any:
    """An ONNX Runtime session that keeps to one thread.

    Raises:
        ModelRefused: this is no ONNX model, or not one of `features` float32 inputs and probabilities of two classes.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Memory plans are kept for every number of rows that was ever seen, and chunks come in all sizes.
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    try:
        source = onnx if isinstance(onnx, bytes) else str(onnx)
        loaded = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever ONNX Runtime raises: it has no common base
        raise ModelRefused(f"The model's ONNX cannot be loaded: {cause(error)}.") from error
    inputs, output = loaded.get_inputs(), loaded.get_outputs()[-1]
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or inputs[0].shape[1:] != [features]:
        raise ModelRefused(f"The model's ONNX does not take rows of {features} float32 features.")
    if output.type != "tensor(float)" or output.shape[1:] != [2]:
        raise ModelRefused("The model's ONNX does not give the probabilities of two classes.")
    return loaded

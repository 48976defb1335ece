"""What an artefact says about itself: ``manifest.json``."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Thresholds
from ecluse.errors import ModelRefused
from ecluse.model.features import Feature

MANIFEST = "manifest.json"
ONNX = "model.onnx"
JOBLIB = "model.joblib"
_BINS = 20


class Histogram(msgspec.Struct, frozen=True):
    """How often a value fell into each bin.

    Bin i holds the values in (edges[i-1], edges[i]]; the first has no lower and the last no upper edge, so there is one
    more bin than edges. `missing` counts NaN. `median` is the usual value: an observed one, and of categories the most
    frequent code.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int
    median: float


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An artefact's own account: what it reads, how it was made, how well it does, and the digests of its files.

    `reference` has a histogram for each feature over the training rows, `score_reference` one of the scores on the
    held-out slice, on which `metrics` and `thresholds` were measured too (the latest in time, never seen in training).
    `policy` holds the settings that chose the thresholds, `training` what it was made from and with, `onnx` how the ONNX
    compared with the estimator, `files` a SHA-256 and `sizes` the bytes of each file.
    """

    name: str
    version: int
    created_at: float
    features: tuple[Feature, ...]
    classes: tuple[int, ...] = (0, 1)
    reference: dict[str, Histogram]
    score_reference: Histogram
    thresholds: Thresholds
    policy: dict[str, Any]
    metrics: dict[str, float]
    training: dict[str, Any]
    onnx: dict[str, float]
    libraries: dict[str, str]
    files: dict[str, str]
    sizes: dict[str, int]

    def encode(self) -> bytes:
        """The manifest as indented JSON, keys in a fixed order."""
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2) + b"\n"

    @staticmethod
    def decode(data: bytes) -> "Manifest":
        """Read what `encode` wrote.

        Raises:
            ModelRefused: it is no manifest.
        """
        try:
            return _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise ModelRefused(f"The manifest cannot be read: {error}.") from error


_decoder = msgspec.json.Decoder(Manifest)


def sha256(data: bytes) -> str:
    """A file's digest as the manifest and the release carry it."""
    return hashlib.sha256(data).hexdigest()


def histogram(values: NDArray[np.float32 | np.float64], edges: Sequence[float] | None = None) -> Histogram:
    """Count values, shape (n,), into bins between `edges`; between their quantiles where None, and where there are few
    distinct values each has a bin of its own."""
    known = values[~np.isnan(values)]
    if edges is None:
        distinct = np.unique(known)
        quantiles = np.linspace(0, 1, _BINS + 1)[1:-1]
        cuts = distinct[:-1] if len(distinct) <= _BINS else np.quantile(known, quantiles, method="lower")
        edges = [float(cut) for cut in np.unique(cuts)]
    counts = np.bincount(np.searchsorted(np.array(edges), known, side="left"), minlength=len(edges) + 1)
    middle = float(np.quantile(known, 0.5, method="nearest")) if len(known) else 0.0
    return Histogram(tuple(edges), tuple(counts.tolist()), int(len(values) - len(known)), middle)


def reference_histogram(feature: Feature, values: NDArray[np.float32]) -> Histogram:
    """The histogram of one feature over the training rows, shape (n,)."""
    if feature.transform != "category":
        return histogram(values)
    counted = histogram(values, [code + 0.5 for code in range(len(feature.categories))])
    return msgspec.structs.replace(counted, median=float(np.argmax(counted.counts)))

"""What an artefact says about itself: ``manifest.json``."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
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
SAMPLES = "samples.json"
SIGNATURE = "model.sig"
#: What msgspec raises on bytes that are not JSON, not UTF-8, or nested without end.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_BINS = 20


class Histogram(msgspec.Struct, frozen=True):
    """How often a value fell into each bin; of weighted rows, as `histogram` says.

    Bin i holds the values in (edges[i-1], edges[i]]; the first has no lower and the last no upper edge, so there is one
    more bin than edges. `missing` counts NaN. `median` is the usual value: an observed one, and of categories the most
    frequent code. `low` and `high` are the least and the largest value; None where there is none, and of categories.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int
    median: float
    low: float | None = None
    high: float | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An artefact's own account: what it reads, how it was made, how well it does, and the digests of its files.

    `reference` has a histogram for each feature over the training rows, `score_reference` one of the scores on the
    held-out slice, on which `metrics` and `thresholds` were measured too (the latest in time, never seen in training).
    `policy` holds the settings that chose the thresholds, `training` what it was made from and with, `onnx` how the ONNX
    compared with the estimator, `files` a SHA-256 and `sizes` the bytes of each file but the manifest and the signature.
    `memory_bytes` is what a process grew by when it loaded the model and scored with it, `peak_memory_bytes` what it did
    meanwhile: loading a forest takes three times what it leaves. What was registered and not trained
    here may have no `metrics`.
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
    memory_bytes: int = 0
    peak_memory_bytes: int = 0

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
        except UNREADABLE as error:
            raise ModelRefused(f"The manifest cannot be read: {error}.") from error


_decoder = msgspec.json.Decoder(Manifest)


def sha256(data: bytes) -> str:
    """A file's digest as the manifest and the release carry it."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(file: Path) -> str:
    """The digest of a file that may be larger than the memory."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def histogram(
    values: NDArray[np.float32 | np.float64],
    edges: Sequence[float] | None = None,
    weights: NDArray[np.float64] | None = None,
) -> Histogram:
    """Count values, shape (n,), into bins between `edges`; between their quantiles where None, and where there are few
    distinct values each has a bin of its own.

    With `weights`, shape (n,), the shares are those of the events for which the rows stand, and the counts add up to about as
    many rows of equal weight as would tell them as surely (L. Kish, 1965, "Survey Sampling", section 11.7). What rows hold
    never counts as nothing.
    """
    there = ~np.isnan(values)
    known = values[there]
    if edges is None:
        distinct = np.unique(known)
        quantiles = np.linspace(0, 1, _BINS + 1)[1:-1]
        cuts = distinct[:-1] if len(distinct) <= _BINS else np.quantile(known, quantiles, method="lower")
        edges = [float(cut) for cut in np.unique(cuts)]
    rows = np.ones(len(values)) if weights is None else weights * weights.sum() / np.square(weights).sum()
    places = np.searchsorted(np.array(edges), known, side="left")
    counts = [_whole(count) for count in np.bincount(places, rows[there], len(edges) + 1).tolist()]
    middle = float(np.quantile(known, 0.5, method="nearest")) if len(known) else 0.0
    low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
    return Histogram(tuple(edges), tuple(counts), _whole(float(rows[~there].sum())), middle, low, high)


def _whole(count: float) -> int:
    return max(round(count), int(count > 0))


def reference_histogram(
    feature: Feature, values: NDArray[np.float32], weights: NDArray[np.float64] | None = None
) -> Histogram:
    """The histogram of one feature over the training rows, shape (n,), and the events for which they stand."""
    if feature.transform != "category":
        return histogram(values, None, weights)
    counted = histogram(values, [code + 0.5 for code in range(len(feature.categories))], weights)
    return msgspec.structs.replace(counted, median=float(np.argmax(counted.counts)), low=None, high=None)

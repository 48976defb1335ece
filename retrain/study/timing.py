"""What a candidate takes of a worker: memory in a fresh process, and times with one thread, as a worker runs it."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecluse.model.manifest import JOBLIB, ONNX
from ecluse.model.runtime import Scorer, joblib_scorer, onnx_scorer
from retrain.memory import memory_of
from retrain.study.report import Cost, Latency

_BATCH = 1000
#: As many calls as fit into the seconds, but so many at least and at most.
_CALLS = {1: (100, 3000), _BATCH: (20, 300)}
_SECONDS, _LOADS, _WARM = 1.0, 5, 5


def cost_of(folder: Path, rows: NDArray[np.float32]) -> Cost:
    """Measure the model in a folder, ONNX or else joblib, on rows of its features, shape (n, features).

    Raises:
        ModelRefused: a fresh process cannot load it.
    """
    grown, peak = memory_of(folder)
    loads: list[float] = []
    while not loads or (len(loads) < _LOADS and sum(loads) < _SECONDS):
        started = time.perf_counter()
        scorer = _load(folder, rows.shape[1])
        loads.append(time.perf_counter() - started)
    (one, _), (many, seconds) = _latency(scorer, rows, 1), _latency(scorer, rows, _BATCH)
    return Cost(grown, peak, float(np.median(loads)) * 1e3, one, many, _BATCH / seconds)


def _load(folder: Path, features: int) -> Scorer:
    onnx = folder / ONNX
    return onnx_scorer(onnx, features) if onnx.exists() else joblib_scorer(folder / JOBLIB)


def _latency(scorer: Scorer, rows: NDArray[np.float32], size: int) -> tuple[Latency, float]:
    """The latency of calls with so many rows, and the median seconds of processor time that one takes: of these, what else runs
    on the machine takes little."""
    least, most = _CALLS[size]
    batches = _batches(rows, size)
    for _ in range(_WARM):
        scorer(next(batches))
    times: list[float] = []
    used: list[float] = []
    begun = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - begun < _SECONDS):
        batch = next(batches)
        started, used_before = time.perf_counter(), time.thread_time()
        scorer(batch)
        used.append(time.thread_time() - used_before)
        times.append(time.perf_counter() - started)
    p50, p99 = np.quantile(times, (0.5, 0.99)) * 1e3
    return Latency(len(times), float(p50), float(p99)), float(np.median(used))


def _batches(rows: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    """Batches of a size, through the rows and again from the first."""
    if len(rows) < size:
        rows = np.resize(rows, (size, rows.shape[1]))
    while True:
        for start in range(0, len(rows) - size + 1, size):
            yield rows[start : start + size]

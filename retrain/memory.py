"""What a model takes of a process's memory: measured in a fresh one, which also shows that it can be loaded there."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import psutil

from ecluse.errors import ModelRefused
from ecluse.model.manifest import JOBLIB, ONNX, SAMPLES
from ecluse.model.runtime import joblib_scorer, onnx_scorer
from ecluse.model.samples import Samples
from retrain.process import how_it_ended, own_stdout

_ROWS = 1024
_SECONDS = 1800.0


class _Measured(msgspec.Struct):
    """What the fresh process says."""

    grown: int = 0
    peak: int = 0
    refused: str = ""


def memory_of(folder: Path) -> tuple[int, int]:
    """The bytes by which a process grows that loads the model in a folder, ONNX or else joblib, and scores 1,024 rows:
    what it has grown by in the end, and at most.

    Raises:
        ModelRefused: a fresh process cannot load it.
    """
    command = [sys.executable, "-P", "-m", "retrain.memory", str(folder)]
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelRefused(f"The model was not loaded within {_SECONDS:,.0f} s.") from error
    if ended.returncode:
        raise ModelRefused(f"A process that loaded the model on trial {how_it_ended(ended.returncode)}.")
    measured = msgspec.json.decode(ended.stdout, type=_Measured)
    if measured.refused:
        raise ModelRefused(f"A fresh process, as a worker is, cannot serve this model. {measured.refused}")
    return measured.grown, measured.peak


def _main(folder: Path) -> None:
    answer = own_stdout()
    try:
        grown, peak = _growth(folder)
        measured = _Measured(grown, peak)
    except ModelRefused as error:
        measured = _Measured(refused=str(error))
    os.write(answer, msgspec.json.encode(measured))


def _growth(folder: Path) -> tuple[int, int]:
    samples = msgspec.json.decode((folder / SAMPLES).read_bytes(), type=Samples).matrix
    rows = np.resize(samples, (_ROWS, samples.shape[1]))
    process = psutil.Process()
    before = process.memory_info().rss
    onnx = folder / ONNX
    scorer = onnx_scorer(onnx, rows.shape[1]) if onnx.exists() else joblib_scorer(folder / JOBLIB)
    scorer(rows)
    return max(0, int(process.memory_info().rss) - before), max(0, _peak() - before)


def _peak() -> int:
    """The most that this process ever held. On Linux `ru_maxrss` is no answer: it begins with what the parent held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes where there is no such file: on macOS
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

"""The data scientists' training script: ``train(frame, features) -> estimator``, and ``candidates`` for a study."""

import importlib.util
import os
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse.errors import ModelRefused
from ecluse.model.manifest import sha256
from retrain import default_script

#: Random generators are set to this before a script runs, so that one which sets none itself can be repeated.
SEED = 20180401
_DEFAULT = "default"
_DEFAULT_FILE = Path(default_script.__file__)
_PROBE_ROWS = 64
#: The function beside `train` that names candidates for a study.
_CANDIDATES = "candidates"

TrainFunction = Callable[[pl.DataFrame, list[str]], Any]


@dataclass(frozen=True)
class Script:
    """A training script: as it is named in the settings, its digest, its function, its file, and what makes candidates, where
    it has that."""

    name: str
    sha256: str
    train: TrainFunction
    file: Path = _DEFAULT_FILE
    candidates: Callable[[list[str]], Mapping[str, TrainFunction]] | None = None

    def of_candidate(self, name: str, train: TrainFunction) -> "Script":
        """The same script with another function, a candidate's."""
        return replace(self, name=f"{self.name}, candidate {name}", train=train)


def load_script(spec: str) -> Script:
    """Load ``FILE.py:FUNCTION``, or the script that ships (`default`).

    Raises:
        ModelRefused: there is no such file or function, or the file fails when it is loaded.
    """
    if spec == _DEFAULT:
        return Script(spec, sha256(_DEFAULT_FILE.read_bytes()), default_script.train)
    file, _, function = spec.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not function.isidentifier():
        raise ModelRefused(f"model.script is '{spec}'; it must be FILE.py:FUNCTION, or {_DEFAULT}.")
    if not path.is_file():
        raise ModelRefused(f"model.script names {path}, and there is no such file.")
    module = _load(path)
    train, candidates = getattr(module, function, None), getattr(module, _CANDIDATES, None)
    if not callable(train):
        raise ModelRefused(f"The training script {path} has no function '{function}'.")
    return Script(spec, sha256(path.read_bytes()), train, path, candidates if callable(candidates) else None)


def _load(path: Path) -> ModuleType:
    name = f"ecluse_training_script_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # the ending is .py
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where joblib looks for classes that the script defines
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelRefused(f"The training script {path} cannot be loaded: {_where(error, path)}.") from error
    return module


def own_candidates(script: Script, features: Sequence[str]) -> dict[str, TrainFunction] | None:
    """The candidates that a script names for these features, small to large; None where it names none.

    Raises:
        ModelRefused: its function raised, or returned something else.
    """
    if script.candidates is None:
        return None
    try:
        found = script.candidates(list(features))
    except (Exception, SystemExit) as error:
        raise ModelRefused(f"candidates() of {script.file} failed: {_where(error, script.file)}.") from error
    if not isinstance(found, Mapping) or not found or not all(map(callable, found.values())):
        raise ModelRefused(
            f"candidates() of {script.file} must return at least one name with a function like train(frame, features)."
        )
    return {str(name): train for name, train in found.items()}


def run_script(script: Script, frame: pl.DataFrame, features: Sequence[str], seed: int = SEED) -> Any:
    """Train, and make sure that what comes back is a fitted binary classifier of these features.

    Args:
        script: what `load_script` gave.
        frame: one float32 column a feature, `label` (0 or 1) and `weight`, in time order.
        features: the columns, in the order in which the model gets them.
        seed: what random generators are set to before.

    Raises:
        ModelRefused: the script raised, or returned something else.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    ours = os.getpid()
    try:
        estimator = script.train(
            frame.clone(), list(features)
        )  # what it does to its frame is its own: columns are shared
    except (Exception, SystemExit) as error:
        raise ModelRefused(f"The training script {script.name} failed: {_where(error, script.file)}.") from error
    finally:
        if os.getpid() != ours:  # it forked, and this is its copy of us
            os._exit(1)
    refuse = f"The training script {script.name} returned {type(estimator).__name__}"
    if not callable(getattr(estimator, "predict_proba", None)):
        raise ModelRefused(f"{refuse}, which has no predict_proba: a fitted classifier is needed.")
    try:
        scores = probabilities(estimator, frame.head(_PROBE_ROWS).select(features).to_numpy())
    except Exception as error:  # an estimator may raise anything
        raise ModelRefused(f"{refuse}, whose predict_proba fails on the training rows: {_line(error)}.") from error
    classes = np.asarray(getattr(estimator, "classes_", (0, 1))).tolist()
    if classes != [0, 1] or not np.isfinite(scores).all() or scores.min() < 0 or scores.max() > 1:
        raise ModelRefused(f"{refuse}, whose predict_proba gives no probabilities of the classes 0 and 1.")
    return estimator


def probabilities(estimator: Any, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """`predict_proba` of class 1 for rows of features, (n, features) to (n,).

    Raises:
        ValueError: the estimator gives another shape.
    """
    with warnings.catch_warnings():
        # A script may have fitted on a frame with column names; the order of the columns is the same.
        warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)
        result = np.asarray(estimator.predict_proba(rows.astype(np.float64)), dtype=np.float64)
    if result.shape != (len(rows), 2):
        raise ValueError(f"predict_proba has shape {result.shape}, not {(len(rows), 2)}")
    return result[:, 1]


def _line(error: BaseException) -> str:
    """An error's type and the first line that it says, without a full stop."""
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}".rstrip(".: ")


def _where(error: BaseException, path: Path) -> str:
    """An error and the last line of the script on its way."""
    steps = [step for step in traceback.extract_tb(error.__traceback__) if Path(step.filename).name == path.name]
    place = f" ({path.name} line {steps[-1].lineno}: {steps[-1].line})" if steps else ""
    return f"{_line(error)}{place}"

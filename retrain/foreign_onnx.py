"""An ONNX model that somebody brings: taken into the draft with its external data, and refused with the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

from ecluse.errors import ModelRefused
from ecluse.model.manifest import JOBLIB, MANIFEST, ONNX, SAMPLES, SIGNATURE
from ecluse.model.runtime import onnx_scorer

_OURS = {MANIFEST, ONNX, JOBLIB, SAMPLES, SIGNATURE}
#: What ONNX calls the types of numbers that are often met.
_TYPES = {"tensor(double)": "float64", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float16)": "float16"}


def take_onnx(file: Path, draft: Path, features: int) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """Copy a model and the files of its external data into the draft, and check its inputs and outputs.

    Returns:
        What scores rows of features, (n, features) to (n,). It raises ModelRefused where the two probabilities of a row do
        not add up to 1, or its classes are others than 0 and 1.

    Raises:
        ModelRefused: it could not be served.
    """
    for name in _external_files(file):
        _require_beside(file, name)
        shutil.copyfile(file.parent / name, draft / name)
    shutil.copyfile(file, draft / ONNX)
    session = _opened(draft / ONNX, file)
    _require_inputs(session, file, features)
    _require_outputs(session, file)
    onnx_scorer(draft / ONNX, features)  # as a worker opens it
    return _scorer(session, file)


def _external_files(file: Path) -> list[str]:
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's own error, which is none of a public class
        raise ModelRefused(f"{file} is no ONNX model, or only the beginning of one.") from error
    if not model.graph.node:
        raise ModelRefused(f"{file} is no ONNX model, or only the beginning of one: it computes nothing.")
    tensors = [tensor for tensor in _get_all_tensors(model) if uses_external_data(tensor)]
    return sorted({ExternalDataInfo(tensor).location for tensor in tensors})


def _require_beside(file: Path, name: str) -> None:
    place = file.parent / name
    if Path(name).name != name or name in _OURS:
        raise ModelRefused(
            f"{file} has its weights in '{name}': they must be in a file beside it, under a name of its own."
        )
    if place.is_symlink() or not place.is_file():
        raise ModelRefused(f"{file} has its weights in '{name}', and there is no such file beside it.")


def _opened(copy: Path, file: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return ort.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever ONNX Runtime raises: it has no common base
        said = str(error).strip().splitlines()[0][:300]
        raise ModelRefused(f"{file} cannot be loaded by ONNX Runtime: {said}.") from error


def _require_inputs(session: Any, file: Path, features: int) -> None:
    inputs = session.get_inputs()
    needed = "a model has one input of float32 rows, (n, features)"
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise ModelRefused(f"{file} has {len(inputs)} inputs ({names}): {needed}.")
    (given,) = inputs
    if given.type == "tensor(string)":
        raise ModelRefused(f"{file} takes texts: {needed}, where a text is the code that `categories` gives it.")
    if given.type != "tensor(float)":
        raise ModelRefused(f"{file} takes {_TYPES.get(given.type, given.type)}: {needed}.")
    if len(given.shape) != 2 or given.shape[1] != features:
        takes = given.shape[1] if len(given.shape) == 2 else given.shape
        takes = f"{takes} inputs" if isinstance(takes, int) else "inputs whose number it does not say"
        raise ModelRefused(f"{file} takes {takes}, and the features file names {features}.")
    if isinstance(given.shape[0], int):
        raise ModelRefused(f"{file} takes {given.shape[0]} rows at a time, no more and no fewer: {needed} for any n.")


def _require_outputs(session: Any, file: Path) -> None:
    outputs = session.get_outputs()
    last, needed = outputs[-1], "the last output must be the probabilities of the classes 0 and 1, float32 (n, 2)"
    if any(one.type.startswith(("seq", "map")) for one in outputs):
        raise ModelRefused(
            f"{file} gives its probabilities as a list of maps: convert it with options={{'zipmap': False}}."
        )
    if outputs[0].type == "tensor(string)":
        raise ModelRefused(f"{file} gives texts as classes: {needed}.")
    if last.type in ("tensor(int64)", "tensor(int32)", "tensor(bool)"):
        raise ModelRefused(f"{file} gives no probabilities, or not last: {needed}.")
    if last.type != "tensor(float)":
        raise ModelRefused(f"{file} gives {_TYPES.get(last.type, last.type)}: {needed}.")
    columns = last.shape[1] if len(last.shape) == 2 else 1
    if columns != 2:
        what = {1: "one number for each row, as a regressor does"}.get(columns, f"probabilities of {columns} classes")
        what = what if isinstance(columns, int) else "an output that does not say how many classes it has"
        raise ModelRefused(f"{file} gives {what}: {needed}.")


def _scorer(session: Any, file: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    name, outputs = session.get_inputs()[0].name, session.get_outputs()
    labelled = len(outputs) > 1 and outputs[0].type == "tensor(int64)"

    def score(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        given = session.run(None, {name: rows})
        both = np.asarray(given[-1], dtype=np.float64)
        if both.shape != (len(rows), 2):
            raise ModelRefused(f"{file} gives an output of the shape {both.shape} for {len(rows)} rows.")
        if np.isfinite(both).all() and not np.allclose(both.sum(axis=1), 1.0, atol=1e-4):
            raise ModelRefused(
                f"{file} gives two numbers for each row that do not add up to 1: these are no probabilities."
            )
        if labelled and not np.isin(given[0], (0, 1)).all():
            classes = ", ".join(map(str, np.unique(given[0])[:5].tolist()))
            raise ModelRefused(f"{file} knows other classes than 0 and 1 ({classes}).")
        return both[:, 1]

    return score

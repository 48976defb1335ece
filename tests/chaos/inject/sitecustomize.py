"""A model that fails, for failure injection from outside: Python runs this first where its folder is on PYTHONPATH.

CHAOS_MODEL says how. `row` raises on each row whose `night` is no 0 or 1. `always` scores some thousands of rows and then
raises on all. `hang` scores as many and then never returns. `slow` takes a third of a millisecond for each row. `load` has
each model but the first wait until the file CHAOS_RELEASE is there.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

#: What a model scores before it fails for good.
SOUND_ROWS = 3_000


def _break_models(kind: str) -> None:
    from ecluse.model.runtime import Model

    sound, scored = Model.score, 0

    def score(self: Model, matrix: Any) -> Any:
        nonlocal scored
        scored += len(matrix)
        spent = scored > SOUND_ROWS
        if kind == "row" and (matrix[:, self.features.names.index("night")] > 1).any():
            raise RuntimeError("the model raises on this row")
        if kind == "always" and spent:
            raise RuntimeError("the model raises")
        while kind == "hang" and spent:
            time.sleep(1.0)
        if kind == "slow":
            time.sleep(len(matrix) / 3_000)
        return sound(self, matrix)

    warm, warmed = Model.warm, 0

    def warm_slowly(self: Model) -> None:
        nonlocal warmed
        warmed += 1
        while kind == "load" and warmed > 1 and not Path(os.environ["CHAOS_RELEASE"]).exists():
            time.sleep(0.05)
        warm(self)

    Model.score, Model.warm = score, warm_slowly  # type: ignore[method-assign]


if "worker" in sys.orig_argv:
    _break_models(os.environ["CHAOS_MODEL"])

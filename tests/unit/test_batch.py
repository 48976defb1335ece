"""Batch scoring without a broker: one result a record, in order, whatever the batches; and nothing is left behind."""

import gc
import json
import weakref
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecluse.contract.records import Arm, Thresholds
from ecluse.errors import ModelError
from ecluse.model.features import Feature, FeatureSet
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from scoring.batch import RESULT, BatchScorer
from scoring.champion import Champion

FIELDS = {"amount": "number", "risk": {"type": "number", "required": False}}
STREAM = Settings(stream={"name": "batch", "fields": FIELDS})
UNSCORABLE = 666.0


def scores(matrix: np.ndarray) -> np.ndarray:
    if (matrix == UNSCORABLE).any():
        raise ValueError("no score for this one")
    return np.nan_to_num(matrix).sum(axis=1).clip(0, 1).astype(np.float64)


def scorer(score: object = scores) -> BatchScorer:
    features = FeatureSet([Feature(n, n, "number") for n in FIELDS], STREAM.stream.schema_of_events())
    usual = np.zeros(2, dtype=np.float32)
    model = SimpleNamespace(name="m", version=3, features=features, usual=usual, score=score)
    return BatchScorer(STREAM, Champion(cast(Model, model), Arm("champion", 3, Thresholds(0.5, 0.9)), 7, "sha", 0.0))


amounts = st.floats(0, 2, width=32) | st.sampled_from(["oops", None, UNSCORABLE])


@settings(deadline=None)
@given(st.lists(amounts, max_size=30), st.integers(0, 30))
def test_each_record_has_its_own_score_or_its_own_error_however_the_rows_are_split(
    found: list[object], split: int
) -> None:
    records = [(None, json.dumps({"amount": amount}).encode()) for amount in found]
    whole = scorer()(records)
    assert whole.schema == RESULT
    assert whole.height == len(found)
    for amount, row in zip(found, whole.to_dicts(), strict=True):
        if isinstance(amount, float) and amount != UNSCORABLE:
            decision = "block" if amount >= 0.9 else "review" if amount >= 0.5 else "allow"
            limit = 0.9 if decision == "block" else 0.5
            expected = [pytest.approx(min(amount, 1.0)), decision, limit, "m", 3, None]
            assert list(row.values()) == expected
        else:
            assert [row[name] for name in RESULT][:-1] == [None] * 5
            assert ("cannot be scored" if amount == UNSCORABLE else "'amount' must be a number") in row["error"]
    assert whole.equals(scorer()(records[:split]).vstack(scorer()(records[split:])))


def test_a_model_that_fails_on_everything_fails_the_batch() -> None:
    def broken(matrix: np.ndarray) -> np.ndarray:
        raise RuntimeError("no")

    with pytest.raises(ModelError, match="usual values"):
        scorer(broken)([(None, b'{"amount": 1}')] * 3)


def test_scored_rows_are_gone_at_once_and_do_not_wait_for_the_garbage_collector() -> None:
    held: list[weakref.ref[np.ndarray]] = []

    def noted(matrix: np.ndarray) -> np.ndarray:
        held.append(weakref.ref(matrix if matrix.base is None else matrix.base))
        return scores(matrix)

    gc.disable()
    try:
        scorer(noted)([(b"c", b'{"amount": 1}')] * 100)
        assert {ref() for ref in held} == {None}
    finally:
        gc.enable()

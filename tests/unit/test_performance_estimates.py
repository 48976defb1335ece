"""Precision, recall, average precision and calibration against a world whose truth is known: weighted they are right on average
and say how sure they are; from the rows that were seen, each counted once, they are neither."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score  # type: ignore[import-untyped]

from ecluse.contract.records import Route
from retrain.drift.performance import Matured, estimates
from retrain.estimates import Estimate, average_precision, calibration, precision, recall
from retrain.weights import arm_shares, seen_odds
from tests.unit.test_bypass_estimates import ALONE, DAYS, ENTITIES, EXPERIMENT, World, blocks, coverage, errors, world

Values = NDArray[np.float64]

SEED, SEEDS = 20261123, 200
#: The share that goes past on each day.
SHARES = np.linspace(0.20, 0.05, DAYS)
#: The mean over the seeds lies within so many of its Monte Carlo errors from the truth; naive ones lie further than `FAR`.
WITHIN, FAR = 3.5, 8.0
NAMES = ("precision", "recall", "average_precision", "calibration")
#: Whose performance it is: the champion's, alone or beside a challenger, or the challenger's.
CASES = {"alone": (ALONE, 0), "champion": (EXPERIMENT, 0), "challenger": (EXPERIMENT, 1)}


def told(scores: Values) -> Values:
    """The probabilities that a model gives which is too sure of itself: further out than they should be, in the same order."""
    odds = (scores / (1 - scores)) ** 1.5
    return odds / (1 + odds)


def seen(route: Route, place: int, world: World, seed: int) -> tuple[Matured, Matured]:
    """The rows of the version in one arm, and the same as if each counted once. Who goes past is drawn by entity and day, the
    arm by entity; what the version blocked is not there."""
    random = np.random.default_rng([SEED, seed])
    share = SHARES[world.day]
    past = random.random((ENTITIES, DAYS))[world.entity, world.day] < share
    shares = arm_shares(route)
    arm = np.searchsorted(np.cumsum(shares)[:-1], random.random(ENTITIES), side="right")[world.entity]
    stops, version = blocks(route, world)[:, place], route.arms[place]
    there = past | ((arm == place) & ~stops)
    scores = world.scores[there, version.version - 1]
    odds = seen_odds(share, shares[place : place + 1], stops[:, None])[there]
    units = (world.entity if len(shares) > 1 else world.entity * DAYS + world.day)[there]
    alerted = scores >= version.thresholds.review
    weighted, naive = (
        Matured(world.positive[there], alerted, told(scores), weights, units)
        for weights in (1 / odds, np.ones(len(odds)))
    )
    return weighted, naive


def truth(route: Route, place: int, world: World) -> dict[str, float]:
    """By the true risk of all events, those that were blocked included."""
    arm = route.arms[place]
    scores, risk = world.scores[:, arm.version - 1], world.risk
    alerted = scores >= arm.thresholds.review
    ranked = risk[np.argsort(-scores)]
    return {
        "precision": float(risk[alerted].mean()),
        "recall": float(risk[alerted].sum() / risk.sum()),
        "average_precision": float((ranked * np.cumsum(ranked) / np.arange(1, len(risk) + 1)).sum() / risk.sum()),
        "calibration": float(risk.sum() / told(scores).sum()),
    }


def runs(route: Route, place: int) -> dict[str, dict[str, Values]]:
    """Of each number over all seeds: truth, weighted and naive estimate, shape (seeds,), and intervals, shape (seeds, 2)."""
    found: dict[str, dict[str, list[object]]] = {
        name: {what: [] for what in ("true", "weighted", "interval", "naive")} for name in NAMES
    }
    for seed in range(SEEDS):
        made = world(seed)
        weighted, naive = (estimates(rows) for rows in seen(route, place, made, seed))
        for name, true in truth(route, place, made).items():
            found[name]["true"].append(true)
            found[name]["weighted"].append(weighted[name].value)
            found[name]["interval"].append((weighted[name].low, weighted[name].high))
            found[name]["naive"].append(naive[name].value)
    return {
        name: {what: np.array(values, dtype=float) for what, values in rows.items()} for name, rows in found.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_weighted_estimates_are_right_on_average_and_their_intervals_cover_and_naive_ones_are_wrong(case: str) -> None:
    for name, found in runs(*CASES[case]).items():
        off, far = errors(found["weighted"] - found["true"]), errors(found["naive"] - found["true"])
        covered = coverage(found["interval"], found["true"])
        print(  # noqa: T201 - the figures of docs/monitoring.md
            f"{name}, {case}, seed {SEED}: true {found['true'].mean():.4f}; weighted {found['weighted'].mean():.4f} "
            f"({off:+.1f} errors); naive {found['naive'].mean():.4f} ({far:+.1f} errors); interval of median half-width "
            f"{np.median(np.diff(found['interval'])) / 2:.4f} covers in {covered:.1%} of {SEEDS} seeds"
        )
        assert abs(off) < WITHIN, name
        assert abs(far) > FAR, name
        assert covered >= 0.93, name


ROWS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 4), st.sampled_from([1.0, 1.25, 5.0, 50.0])), min_size=1, max_size=40
)


@given(ROWS)
def test_average_precision_is_that_of_scikit_learn_ties_included(rows: list[tuple[bool, int, float]]) -> None:
    positive, level, weights = (np.array(column) for column in zip(*rows, strict=True))
    scores, units = level / 4, np.arange(len(rows))
    found = average_precision(positive, scores, weights, units)
    if not positive.any():
        assert found == Estimate(None, None, None, 0, 0, "no row speaks of it")
        return
    expected = average_precision_score(positive, scores, sample_weight=weights)
    assert found.value == pytest.approx(expected)
    if found.low is not None and found.high is not None:
        assert 0 <= found.low <= expected + 1e-9 and expected - 1e-9 <= found.high <= 1


@given(ROWS, st.integers(1, 5))
def test_copies_of_a_row_in_its_own_unit_tell_nothing_new(rows: list[tuple[bool, int, float]], copies: int) -> None:
    positive, level, weights = (np.array(column) for column in zip(*rows, strict=True))
    scores, units = (level + 1) / 6, np.arange(len(rows))
    once = calibration(positive, scores, weights, units)
    assert once.value is not None
    again = calibration(*(np.repeat(each, copies) for each in (positive, scores, weights / copies, units)))
    assert again.value == pytest.approx(once.value)
    if len(rows) == 1:
        assert again.low is None and once.low is None
    elif positive.any():
        assert once.low is not None and once.high is not None and again.low is not None and again.high is not None
        assert 0 <= once.low <= once.value <= once.high
        # Copies of rows that agree could count for more, each by itself.
        assert once.low <= again.low + 1e-9 and again.high <= once.high + 1e-9


def test_without_a_positive_calibration_still_says_how_many_there_could_be() -> None:
    """None of 100 where the scores say 20: with no more than 3.69 at 97.5%, by Poisson."""
    nothing, scores = np.zeros(100, dtype=bool), np.full(100, 0.2)
    found = calibration(nothing, scores, np.ones(100), np.arange(100))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(3.6889 / 20, rel=1e-3)


def test_no_row_says_nothing_and_one_unit_alone_has_no_interval() -> None:
    none, one = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    weights, alone, scores = np.ones(3), np.zeros(3), np.array([0.2, 0.4, 0.9])
    for rate in (precision(one, none, weights, alone), recall(none, one, weights, alone)):
        assert (rate.value, rate.rows) == (None, 0)
    assert calibration(one, np.zeros(3), weights, alone).value is None
    for found in (average_precision(one, scores, weights, alone), calibration(one, scores, weights, alone)):
        assert found.value is not None
        assert (found.low, found.high, found.note) == (None, None, "one unit alone has no interval")

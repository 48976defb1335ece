import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecluse.sections import ThresholdSettings
from retrain.drafting import measure
from retrain.thresholds import NEVER, choose_thresholds

#: Few distinct values, so that ties are the rule.
SLICE = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.integers(0, 1)),
    min_size=1,
    max_size=40,
)
SHARES = st.tuples(st.floats(0.001, 0.99), st.floats(0, 0.99)).map(lambda pair: (max(pair), min(pair)))


def columns(rows: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in rows]), np.array([label for _, label in rows], dtype=np.int8)


@settings(deadline=None)
@given(SLICE, SHARES)
def test_no_more_than_the_budget_alerts_and_nothing_more_would_fit(
    rows: list[tuple[float, int]], shares: tuple[float, float]
) -> None:
    scores, labels = columns(rows)
    chosen = choose_thresholds(scores, labels, ThresholdSettings(alert_budget=shares[0], block_budget=shares[1]))
    assert chosen.review <= chosen.block
    for threshold, share in ((chosen.review, shares[0]), (chosen.block, shares[1])):
        assert (scores >= threshold).sum() <= share * len(scores) + 1e-6
        below = scores[scores < threshold]
        if len(below):
            assert (scores >= below.max()).sum() > share * len(scores) - 1e-6


def test_a_budget_of_nothing_never_blocks() -> None:
    scores, labels = columns([(1.0, 1), (0.2, 0), (0.1, 0), (0.0, 0)])
    chosen = choose_thresholds(scores, labels, ThresholdSettings(alert_budget=0.25, block_budget=0))
    assert (chosen.review, chosen.block) == (1.0, NEVER)


@settings(deadline=None)
@given(SLICE, st.floats(0.5, 100), st.floats(0.5, 100), st.floats(0.5, 100))
def test_no_other_pair_of_thresholds_costs_less(
    rows: list[tuple[float, int]], missed: float, review: float, block: float
) -> None:
    scores, labels = columns(rows)
    policy = ThresholdSettings(policy="cost", cost_missed=missed, cost_review=review, cost_block=block)

    def cost(review_from: float, block_from: float) -> float:
        allowed, blocked = scores < review_from, scores >= block_from
        reviewed = ~allowed & ~blocked
        return (
            missed * (allowed & (labels == 1)).sum() + review * reviewed.sum() + block * (blocked & (labels == 0)).sum()
        )

    chosen = choose_thresholds(scores, labels, policy)
    cuts = sorted({*scores.tolist(), NEVER})
    least = min(cost(low, high) for low, high in itertools.combinations_with_replacement(cuts, 2))
    assert cost(chosen.review, chosen.block) == pytest.approx(least)


def test_certain_cases_are_blocked_and_doubtful_ones_reviewed() -> None:
    rows = [(0.9, 1)] * 20 + [(0.5, 1)] * 5 + [(0.5, 0)] * 5 + [(0.1, 0)] * 70
    chosen = choose_thresholds(*columns(rows), ThresholdSettings(policy="cost"))
    assert (chosen.review, chosen.block) == (0.5, 0.9)


@settings(deadline=None)
@given(
    SLICE.filter(lambda rows: len({label for _, label in rows}) == 2),
    st.lists(st.integers(1, 4), min_size=40, max_size=40),
    SHARES,
    st.sampled_from(["budget", "cost"]),
)
def test_a_row_of_weight_three_counts_as_three_rows(
    rows: list[tuple[float, int]], weights: list[int], shares: tuple[float, float], policy: str
) -> None:
    chosen_by = ThresholdSettings.model_validate(
        {"policy": policy, "alert_budget": shares[0], "block_budget": shares[1], "cost_missed": 20}
    )
    (scores, labels), times = columns(rows), np.array(weights[: len(rows)])
    many = np.repeat(scores, times), np.repeat(labels, times)
    chosen = choose_thresholds(scores, labels, chosen_by, times.astype(float))
    assert chosen == choose_thresholds(*many, chosen_by)
    weighted, repeated = measure(scores, labels, chosen, times.astype(float)), measure(*many, chosen)
    for name in set(weighted) - {"rows", "positives", "alert_rows"}:  # these tell how many rows it rests on
        assert weighted[name] == pytest.approx(repeated[name]), name

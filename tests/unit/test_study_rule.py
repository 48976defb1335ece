"""The rule of the size study, and the resamples that it rests on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from retrain.study.bootstrap import Ranking, resampled
from retrain.study.rule import Quality, choose

SEED = 20180401
RESAMPLES = 12
#: Few sizes and few values, so that ties are the rule.
QUALITY = st.builds(
    lambda size, values, servable: Quality(size, float(np.mean(values)), np.array(values), servable),
    st.integers(1, 6),
    st.lists(st.sampled_from([0.2, 0.5, 0.55, 0.6, 0.9]), min_size=RESAMPLES, max_size=RESAMPLES),
    st.booleans() | st.just(True),
)
QUALITIES = st.lists(QUALITY, min_size=1, max_size=6)
LIMIT = st.none() | st.integers(1, 6)


def fits(one: Quality, limit: int | None) -> bool:
    return one.servable and (limit is None or one.size_bytes <= limit)


@given(QUALITIES, st.floats(0, 0.5), LIMIT)
def test_the_smallest_that_surely_loses_no_more_than_is_tolerated_is_picked(
    candidates: list[Quality], tolerance: float, limit: int | None
) -> None:
    choice = choose(candidates, tolerance, limit)
    if choice is None:
        assert not any(fits(one, limit) for one in candidates)
        return
    picked, best = candidates[choice.picked], candidates[choice.best]
    assert fits(picked, limit) and fits(best, limit)
    assert best.average_precision == max(one.average_precision for one in candidates if fits(one, limit))
    assert choice.losses[choice.picked].upper <= tolerance
    for place, (one, loss) in enumerate(zip(candidates, choice.losses, strict=True)):
        if fits(one, limit) and loss.upper <= tolerance:
            assert (one.size_bytes, place) >= (picked.size_bytes, choice.picked)


@given(QUALITIES, st.floats(0, 0.5), st.floats(0, 0.5), LIMIT)
def test_who_tolerates_more_never_gets_a_larger_one(
    candidates: list[Quality], one: float, other: float, limit: int | None
) -> None:
    strict, mild = (choose(candidates, tolerance, limit) for tolerance in sorted((one, other)))
    if strict is not None and mild is not None:
        assert candidates[mild.picked].size_bytes <= candidates[strict.picked].size_bytes


@given(QUALITIES, st.floats(0, 0.5), st.integers(1, 6))
def test_what_cannot_be_served_has_no_part_in_the_choice(
    candidates: list[Quality], tolerance: float, limit: int
) -> None:
    choice = choose(candidates, tolerance, limit)
    eligible = [one for one in candidates if fits(one, limit)]
    alone = choose(eligible, tolerance, None)
    assert (choice is None) == (alone is None)
    if choice is not None and alone is not None:
        assert candidates[choice.picked] is eligible[alone.picked]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.4, 0.4, 0.9]), st.integers(0, 1), st.sampled_from([0.0, 0.5, 1.0, 7.0])),
        min_size=1,
        max_size=30,
    )
)
def test_a_ranking_gives_scikit_learns_average_precision(rows: list[tuple[float, int, float]]) -> None:
    scores, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = Ranking(scores, labels.astype(np.int8)).average_precision(weights)
    if weights[labels == 1].sum() == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(labels, scores, sample_weight=weights))


def world(random: np.random.Generator, entities: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Entities with up to 25 rows each that share their risk and how well they can be told: entities, labels, and the scores of
    a good and of a less good model."""
    entity = np.repeat(np.arange(entities), random.integers(1, 26, entities))
    shared = random.normal(0, 1.2, entities)[entity]
    labels = (random.random(len(entity)) < 1 / (1 + np.exp(2.2 - shared))).astype(np.int8)
    good = 2.0 * labels + shared + random.normal(0, 1, len(entity))
    return entity, labels, good, good + random.normal(0, 1.0, entities)[entity]


def test_intervals_hold_the_truth_as_often_as_they_say_where_rows_of_an_entity_are_alike() -> None:
    random = np.random.default_rng(SEED)
    _, labels, *models = world(random, 40_000)
    truth = [average_precision_score(labels, scores) for scores in models]
    loss, worlds, covered, by_rows, bounded = truth[0] - truth[1], 150, 0, 0, 0
    for seed in range(worlds):
        entity, labels, *models = world(random, 120)
        rankings, weights = [Ranking(scores, labels) for scores in models], np.ones(len(labels))
        own = [ranking.average_precision(weights) for ranking in rankings]
        for clusters in (entity, None):
            values = resampled(rankings, weights, clusters, 150, seed)
            good, less = (Quality(1, one, found) for one, found in zip(own, values, strict=True))
            inside = good.interval.low <= truth[0] <= good.interval.high
            if clusters is None:
                by_rows += inside
                continue
            covered += inside
            # The bound of the loss that the rule takes, with the good one as the best.
            bounded += loss <= float(np.quantile(good.resampled - less.resampled, 0.975))
    assert covered / worlds >= 0.90, "of 95%, with a standard error of 1.8 points"
    assert bounded / worlds >= 0.90
    assert by_rows < covered - 0.05 * worlds, "rows drawn apart would claim to know more than they do"


def test_resamples_without_a_positive_are_left_out() -> None:
    labels = np.array([1, 0, 0, 0], dtype=np.int8)
    (values,) = resampled([Ranking(np.array([0.9, 0.5, 0.4, 0.1]), labels)], np.ones(4), None, 200, SEED)
    assert 0 < np.isnan(values).sum() < 200
    assert Quality(1, 1.0, values).interval.high == 1.0

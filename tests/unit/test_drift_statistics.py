"""The numbers of the monitor: what they are, and how seldom chance moves them."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2, poisson  # type: ignore[import-untyped]

from ecluse.contract.loop import Level, Statistic
from ecluse.loop_sections import Falling, Rising
from retrain.drift.change import LENGTH, change
from retrain.drift.judge import blamed_inputs, by_blame, judged, reason
from retrain.drift.statistics import (
    CHANCE,
    count_interval,
    mean_rank,
    psi,
    share_at_least,
    share_interval,
    shares_apart,
    times_apart,
)

EVEN = np.full(20, 50_000)


def test_the_stability_index_is_the_textbook_sum_less_its_expectation() -> None:
    seen, reference = np.array([100, 200, 700]), np.array([600, 600, 800])
    by_hand = (0.1 - 0.3) * log(0.1 / 0.3) + (0.2 - 0.3) * log(0.2 / 0.3) + (0.7 - 0.4) * log(0.7 / 0.4)
    assert psi(seen, reference) == pytest.approx(by_hand - 2 * (1 / 1000 + 1 / 2000))


def test_an_empty_bin_counts_as_half_an_event() -> None:
    seen, reference = np.array([0, 1000]), np.array([1000, 1000])
    by_hand = (0.0005 - 0.5) * log(0.0005 / 0.5) + (1 - 0.5) * log(1 / 0.5)
    assert psi(seen, reference) == pytest.approx(by_hand - 1 / 1000 - 1 / 2000)


def test_without_drift_the_stability_index_lies_around_zero_and_beyond_its_quantile_as_often_as_it_should() -> None:
    rng, n, m, repeats = np.random.default_rng(20180401), 2000, 20_000, 4000
    shares = rng.dirichlet(np.full(20, 5.0))
    references, samples = rng.multinomial(m, shares, repeats), rng.multinomial(n, shares, repeats)
    values = np.array([psi(seen, reference) for seen, reference in zip(samples, references, strict=True)])
    scale = 1 / n + 1 / m
    # The chi-squared is a limit: at 50 and more events a bin, a few percent are left of the expectation that was taken off.
    assert abs(values.mean()) < 0.05 * 19 * scale
    beyond = (values > (chi2.ppf(0.95, 19) - 19) * scale).mean()
    assert 0.04 < beyond < 0.075


@given(st.integers(1, 400), st.floats(0.001, 0.999))
def test_a_share_is_overstated_no_more_often_than_chance_may(events: int, share: float) -> None:
    overstated = [hits for hits in range(events + 1) if share_at_least(hits, events) > share]
    assert sum(binom.pmf(overstated, events, share)) <= CHANCE / 2 + 1e-9


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_interval_of_a_share_holds_it(hits: int, more: int) -> None:
    low, high = share_interval(hits, hits + more)
    assert 0 <= low <= (hits / (hits + more) if hits + more else 0.5) <= high <= 1


@given(st.floats(0.1, 200))
def test_a_count_lies_above_its_interval_no_more_often_than_chance_may(mean: float) -> None:
    beyond = [count for count in range(600) if not count_interval(count)[0] <= mean <= count_interval(count)[1]]
    assert sum(poisson.pmf(beyond, mean)) <= CHANCE + 1e-9


def test_shares_lie_apart_by_what_chance_leaves_of_their_difference() -> None:
    assert shares_apart(10, 1000, 100, 10_000) == 0
    assert shares_apart(1000, 1000, 0, 10_000) == pytest.approx(0.99, abs=0.01)
    # A reference that was often missing and now never is has changed as much.
    assert shares_apart(0, 1000, 10_000, 10_000) == pytest.approx(0.99, abs=0.01)


def test_more_and_fewer_are_told_alike_and_chance_is_told_as_one() -> None:
    assert times_apart(110, 10_000, 100, 10_000) == 1
    assert 3 < times_apart(600, 10_000, 1000, 100_000) < 6
    assert 2 < times_apart(17, 10_000, 1000, 100_000) < 6
    assert times_apart(50, 10_000, 0, 10_000) > 3


def test_the_mean_rank_is_zero_in_the_first_bin_and_one_in_the_last() -> None:
    assert mean_rank(np.array([5, 0, 0])) == 0
    assert mean_rank(np.array([0, 0, 5])) == 1
    assert mean_rank(np.array([1, 1, 1])) == 0.5


def test_a_change_of_level_is_told_once_by_the_value_that_shows_it() -> None:
    rng = np.random.default_rng(7)
    series = np.clip(np.r_[rng.normal(0.2, 0.02, 60), rng.normal(0.9, 0.02, 40)], 0, 1).tolist()
    told = [end for end in range(1, 101) if change(series[:end], 0.002) is not None]
    assert len(told) == 1
    assert 70 <= told[0] <= 95
    assert change(series[: told[0]], 0.002) == pytest.approx(0.7, abs=0.02)


def test_noise_is_no_change() -> None:
    rng = np.random.default_rng(11)
    series = np.clip(rng.normal(0.5, 0.05, (20, LENGTH)), 0, 1)
    assert [row for row in series if any(change(row[:end].tolist(), 0.002) for end in range(10, LENGTH + 1, 5))] == []


def test_levels_begin_at_their_thresholds_whichever_way_is_bad() -> None:
    rising, falling = Rising(warn=0.1, alarm=0.25), Falling(warn=0.8, alarm=0.6)
    assert [judged("psi", value, rising).level for value in (0.09, 0.1, 0.25)] == [Level.OK, Level.WARN, Level.ALARM]
    assert [judged("recall", value, falling).level for value in (0.81, 0.8, 0.6)] == [
        Level.OK,
        Level.WARN,
        Level.ALARM,
    ]


def test_blame_goes_by_level_then_by_how_far_beyond_the_alarm() -> None:
    psi_limits, missing = Rising(warn=0.1, alarm=0.25), Rising(warn=0.02, alarm=0.1)
    statistics = [
        judged("psi", 0.2, psi_limits, input="c"),
        judged("psi", 0.5, psi_limits),
        judged("psi", 0.3, psi_limits, input="a"),
        judged("missing", 0.98, missing, input="b"),
        judged("recall", 0.1, Falling(warn=0.8, alarm=0.6)),
        judged("psi", 0.3, psi_limits, input="b"),
        judged("missing", 0.0, missing, input="z"),
        Statistic("change", 0.3, None, None, Level.ALARM, "d"),
    ]
    ordered = by_blame(statistics)
    assert [(each.name, each.input) for each in ordered] == [
        ("missing", "b"),
        ("recall", None),
        ("psi", None),
        ("psi", "a"),
        ("psi", "b"),
        ("change", "d"),
        ("psi", "c"),
        ("missing", "z"),
    ]
    assert blamed_inputs(ordered) == ("b", "a", "d", "c")


def test_the_reason_is_one_sentence_with_the_numbers() -> None:
    statistics = by_blame(
        [
            judged("missing", 0.98, Rising(warn=0.02, alarm=0.1), input="risk"),
            judged("alerts", 4.0, Rising(warn=1.5, alarm=3.0), low=0.2, high=0.3),
        ]
    )
    assert reason("cards", 3, statistics, 0.0, 7 * 86_400.0) == (
        "Version 3 of cards no longer fits the 7 days up to 1970-01-08 00:00 UTC: the share of events without risk lies 98.0% "
        "or more from that in training (alarm at 0.1); there are 4 times fewer alerts than on the held-out rows (alarm at 3)."
    )

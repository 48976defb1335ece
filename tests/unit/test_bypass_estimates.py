"""Weighted estimates against a world whose truth is known: they are right on average and say how sure they are; naive ones are
neither. The weights and estimates are those of `retrain`, the draw is the workers' own."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from ecluse.contract.arms import Draw
from ecluse.contract.records import Arm, Route, Thresholds
from retrain.estimates import false_discovery_rate, false_positive_rate
from retrain.weights import arm_shares, bypass_odds, seen_odds

Values = NDArray[np.float64]

SEED, SEEDS = 20260301, 200
ENTITIES, DAYS = 400, 14
#: The share that goes past: the budget's controller lowers it in the second week.
SHARES = np.where(np.arange(DAYS) < DAYS // 2, 0.35, 0.12)
#: The mean over the seeds lies within so many of its Monte Carlo errors from the truth: by chance outside once in 3,000 times.
WITHIN = 3.5
FAR = 8.0

ALONE = Route("m", (Arm("champion", 1, Thresholds(0.3, 0.45)),), 0.0)
EXPERIMENT = Route(
    "m",
    (Arm("champion", 1, Thresholds(0.3, 0.45)), Arm("challenger", 2, Thresholds(0.4, 0.6), share=0.4)),
    0.0,
    shadows=(Arm("shadow", 2, Thresholds(0.1, 0.2)),),
)
RATES = {"false discovery rate": false_discovery_rate, "false-positive rate": false_positive_rate}


@dataclass(frozen=True)
class World:
    """Events of entities: several a day, whose risk they share; more fraud in the second week. `risk` is the true P(y | x)."""

    entity: NDArray[np.int64]
    day: NDArray[np.int64]
    risk: NDArray[np.float64]
    positive: NDArray[np.bool_]
    scores: NDArray[np.float64]  # by version 1 and version 2, shape (n, 2)


def world(seed: int) -> World:
    random = np.random.default_rng([SEED, seed])
    counts = random.poisson(random.gamma(1.5, 2.0, (ENTITIES, 1)) * np.ones(DAYS))
    entity = np.repeat(np.repeat(np.arange(ENTITIES), DAYS), counts.ravel())
    day = np.repeat(np.tile(np.arange(DAYS), ENTITIES), counts.ravel())
    own, of_day = random.normal(0, 0.7, ENTITIES), random.normal(0, 1.0, (ENTITIES, DAYS))
    latent = own[entity] + of_day[entity, day] + random.normal(0, 1.0, len(entity))
    risk = 1 / (1 + np.exp(-(2.0 * latent - 5.5 + 1.5 * (day >= DAYS // 2))))
    noise = random.normal(0, 1.0, (len(entity), 2)) * [1.2, 0.8]
    scores = 1 / (1 + np.exp(-(1.4 * latent[:, None] - 3.5 + noise)))
    return World(entity, day, risk, random.random(len(entity)) < risk, scores)


def blocks(route: Route, world: World) -> NDArray[np.bool_]:
    """What each arm's version blocks, shape (n, arms)."""
    return np.stack([world.scores[:, arm.version - 1] >= arm.thresholds.block for arm in route.arms], axis=1)


@dataclass(frozen=True)
class Seen:
    """What a run of the workers over a world leaves to be learnt from: the rows whose outcome was seen."""

    positive: NDArray[np.bool_]
    blocked: NDArray[np.bool_]  # by the champion
    weights: NDArray[np.float64]
    units: NDArray[np.int64]


def seen(route: Route, world: World, seed: int) -> Seen:
    """Draw who goes past, by entity and day, and who is in which arm, by entity; keep what was not blocked."""
    secret = f"{SEED} {seed}".encode().rjust(32)
    past, arms = Draw(secret, "past"), Draw(secret, "arms")
    keys = [str(number).encode() for number in range(ENTITIES)]
    chance = np.array([[past(key, day) for day in range(DAYS)] for key in keys])[world.entity, world.day]
    bypassed = chance < SHARES[world.day]
    shares = arm_shares(route)
    arm = np.searchsorted(np.cumsum(shares)[:-1], [arms(key, 0) for key in keys], side="right")[world.entity]
    stops = blocks(route, world)
    # What the predictions say: the arm, and the odds of it.
    propensity = np.where(bypassed, SHARES[world.day], (1 - SHARES[world.day]) * shares[arm])
    let_through = bypassed | ~stops[np.arange(len(arm)), arm]
    odds = seen_odds(bypass_odds(bypassed, propensity, shares[arm]), shares, stops)
    units = world.entity if len(shares) > 1 else world.entity * DAYS + world.day
    return Seen(world.positive[let_through], stops[let_through, 0], 1 / odds[let_through], units[let_through])


def truth(route: Route, world: World) -> dict[str, float]:
    """The rates of the champion by the true risk of all events, those that it blocked included."""
    blocked, innocent = blocks(route, world)[:, 0], 1 - world.risk
    both = float(innocent[blocked].sum())
    return {"false discovery rate": both / float(blocked.sum()), "false-positive rate": both / float(innocent.sum())}


@dataclass(frozen=True)
class Runs:
    """Of one rate, over all seeds: the truth and the estimates, shape (seeds,), and intervals, shape (seeds, 2). In the naive
    estimate every row that was seen counts the same; in the loose interval every row is a unit."""

    true: Values
    weighted: Values
    interval: Values
    naive: Values
    loose: Values


@cache
def runs(route: Route) -> dict[str, Runs]:
    found: dict[str, list[list[object]]] = {rate: [] for rate in RATES}
    for seed in range(SEEDS):
        made = world(seed)
        true, rows = truth(route, made), seen(route, made, seed)
        for rate, estimate in RATES.items():
            weighted = estimate(rows.positive, rows.blocked, rows.weights, rows.units)
            naive = estimate(rows.positive, rows.blocked, np.ones(len(rows.weights)), rows.units)
            loose = estimate(rows.positive, rows.blocked, rows.weights, np.arange(len(rows.weights)))
            found[rate].append(
                [true[rate], weighted.value, (weighted.low, weighted.high), naive.value, (loose.low, loose.high)]
            )
    return {
        rate: Runs(*(np.array(column, dtype=float) for column in zip(*rows, strict=True)))
        for rate, rows in found.items()
    }


def errors(differences: Values) -> float:
    """How many of its Monte Carlo errors the mean lies from zero."""
    return float(differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences))))


def coverage(interval: Values, true: Values) -> float:
    return float(((interval[:, 0] <= true) & (true <= interval[:, 1])).mean())


@pytest.mark.parametrize("route", [ALONE, EXPERIMENT], ids=["no experiment", "an experiment of two arms"])
@pytest.mark.parametrize("rate", RATES)
def test_weighted_estimates_are_right_on_average_and_their_intervals_cover_and_naive_ones_are_wrong(
    route: Route, rate: str
) -> None:
    found = runs(route)[rate]
    off, far = errors(found.weighted - found.true), errors(found.naive - found.true)
    covered, loosely = coverage(found.interval, found.true), coverage(found.loose, found.true)
    print(  # noqa: T201 - the figures of docs/training-sets.md
        f"{rate}, {len(route.arms)} arms, seed {SEED}: true {found.true.mean():.4f}; weighted {found.weighted.mean():.4f} "
        f"({off:+.1f} errors); naive {found.naive.mean():.4f} ({far:+.1f} errors); interval of median half-width "
        f"{np.median(np.diff(found.interval)) / 2:.4f} covers in {covered:.1%} of {SEEDS} seeds, unclustered {loosely:.1%}"
    )
    assert abs(off) < WITHIN
    assert abs(far) > FAR
    assert covered >= 0.93


@pytest.mark.parametrize("units", [2, 3, 7, 20])
@pytest.mark.parametrize("each", [3, 10])
@pytest.mark.parametrize("weight", [1.0, 50.0])
def test_units_that_are_alike_tell_no_more_than_their_rows_would_one_by_one(
    units: int, each: int, weight: float
) -> None:
    """Their variance is a rounding error."""
    unit, blocked = np.repeat(np.arange(units), each), np.ones(units * each, dtype=bool)
    rate = false_discovery_rate(np.tile(np.arange(each) == 0, units), blocked, np.full(units * each, weight), unit)
    assert rate.value == pytest.approx(1 - 1 / each)
    interval = stats.binomtest(units * (each - 1), units * each).proportion_ci(0.95, "exact")
    assert rate.low is not None and rate.high is not None
    assert 0 <= rate.low <= interval.low + 1e-9 and interval.high - 1e-9 <= rate.high <= 1

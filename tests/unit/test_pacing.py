"""The law of the bypass' budget, on a clock that the tests set: days of traffic in a moment."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from ecluse.contract.arms import DAY_SECONDS, day_of
from ecluse.contract.records import Switch
from scoring.pacing import Spending, next_share
from scoring.spending import Spent

START, WANTED, BUDGET, CONTROL = 20_000.0 * DAY_SECONDS, 0.02, 10_000.0, 10.0
SEED = 41
#: What eligible events are worth, on average, a second, by the second of the day.
Traffic = Callable[[float], float]
AMOUNT = 50.0


@dataclass
class World:
    """A stream of events, of which a share goes past, and the controller that looks every interval."""

    traffic: Traffic
    budget: float = BUDGET
    switch: Switch = field(init=False)
    spending: Spending = field(init=False)
    now: float = START
    #: What went past by day, and in the dearest control interval of the day.
    past: dict[int, float] = field(default_factory=dict)
    dearest: dict[int, float] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    samples: list[Spent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(SEED)
        self.switch = Switch("cards", WANTED, WANTED, START, "id", amount_field="amount", budget=self.budget)
        self.spending = Spending(day_of(self.now))

    def take(self, at: float, amount: float) -> float:
        """An event goes past."""
        spent = Spent(at, self.switch.share, amount, "card")
        self.samples.append(spent)
        self.spending.add(spent)
        return amount

    def interval(self, *single: float) -> None:
        """One control interval, in which the amounts of `single` go past beside the usual ones; then the controller looks."""
        expected = self.traffic(self.now % DAY_SECONDS) * CONTROL / AMOUNT * self.switch.share
        amounts = [*self.random.exponential(AMOUNT, self.random.poisson(expected)), *single]
        cost = sum(self.take(self.now, amount) for amount in amounts)
        day = day_of(self.now)
        self.past[day] = self.past.get(day, 0.0) + cost
        self.dearest[day] = max(self.dearest.get(day, 0.0), cost)
        self.now += CONTROL
        self.look()

    def look(self, *, whole: bool = True) -> None:
        if day_of(self.now) > self.spending.day:
            self.spending.turn(day_of(self.now))
        share = next_share(self.switch, self.spending, self.now, self.switch.created_at, whole=whole)
        if share is not None:
            assert share <= WANTED
            assert share != self.switch.share, "a revision that changes nothing"
            self.switch = msgspec.structs.replace(self.switch, share=share, created_at=self.now)
            self.revisions[self.spending.day] = self.revisions.get(self.spending.day, 0) + 1
        self.shares.append(self.switch.share)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / CONTROL)):
            self.interval()

    def restart(self) -> None:
        """The worker that controls dies, and another reads the day from its start."""
        self.spending = Spending(day_of(self.now))
        for sample in self.samples:
            self.spending.add(sample)


def at_budget(times: float) -> float:
    """The traffic of which the wanted share costs so many budgets a day."""
    return times * BUDGET / DAY_SECONDS / WANTED


def bursty(second: float) -> float:
    """Little at night, three bursts of twenty times as much a day."""
    return at_budget(20.0 if any(0 <= second - hour * 3600 < 1800 for hour in (3, 11, 18)) else 0.5)


def test_traffic_that_the_budget_allows_is_left_alone() -> None:
    world = World(lambda _: at_budget(0.7))
    world.run(DAY_SECONDS)
    assert set(world.shares) == {WANTED}
    assert 0.6 * BUDGET < world.past[20_000] < 0.8 * BUDGET


@pytest.mark.parametrize("times", [2.0, 10.0, 200.0])
def test_steady_traffic_is_spread_over_the_day_and_keeps_the_budget(times: float) -> None:
    world = World(lambda _: at_budget(times))
    world.run(2 * DAY_SECONDS)
    for day in (20_000, 20_001):
        assert 0.8 * BUDGET < world.past[day] <= BUDGET + world.dearest[day]
        assert world.revisions[day] < 24 * 6
    half = sum(sample.amount for sample in world.samples if sample.at < START + DAY_SECONDS / 2)
    assert 0.35 * BUDGET < half < 0.65 * BUDGET, "people of all hours go past"


def test_bursts_keep_the_budget_and_the_share_comes_back_after_them() -> None:
    world = World(bursty)
    world.run(DAY_SECONDS)
    assert 0.4 * BUDGET < world.past[20_000] <= BUDGET + world.dearest[20_000]
    assert world.revisions[20_000] < 60
    lowest = min(world.shares)
    after = world.shares[world.shares.index(lowest) :]
    assert lowest < 0.3 * WANTED
    assert max(after) > 2 * lowest


def test_one_huge_amount_ends_the_day_and_the_next_begins_as_wanted() -> None:
    world = World(lambda _: at_budget(0.5))
    world.run(DAY_SECONDS / 4)
    world.interval(3 * BUDGET)
    assert world.switch.share == 0.0
    world.run(DAY_SECONDS / 2)
    assert (world.switch.share, world.revisions[20_000]) == (0.0, 1)
    world.run(DAY_SECONDS / 4)
    assert world.switch.share == WANTED
    assert world.past[20_000] < 3.5 * BUDGET


def test_a_large_amount_within_the_budget_only_slows_the_rest_of_the_day() -> None:
    world = World(lambda _: at_budget(0.5))
    world.run(DAY_SECONDS / 4)
    world.interval(0.3 * BUDGET)
    assert 0 < world.switch.share < 0.5 * WANTED
    world.run(DAY_SECONDS / 2)
    assert world.switch.share > 0.5 * WANTED
    assert world.past[20_000] <= BUDGET
    assert world.revisions[20_000] < 20


def test_a_restart_in_the_middle_of_the_day_changes_nothing() -> None:
    one, other = World(bursty), World(bursty)
    one.run(DAY_SECONDS)
    for _ in range(12):
        other.run(DAY_SECONDS / 12)
        other.restart()
    assert other.shares == one.shares


def test_a_restart_after_midnight_begins_the_day_as_wanted() -> None:
    world = World(lambda _: at_budget(0.5))
    world.interval(2 * BUDGET)
    assert world.switch.share == 0.0
    world.now = START + DAY_SECONDS + 5.0
    world.restart()
    world.look()
    assert world.switch.share == WANTED


def test_who_has_not_read_all_yet_lowers_and_never_raises() -> None:
    world = World(lambda _: at_budget(0.5))
    world.switch = msgspec.structs.replace(world.switch, share=0.01, created_at=START - 2 * DAY_SECONDS)
    world.look(whole=False)
    assert world.switch.share == 0.01
    world.take(world.now, 2 * BUDGET)
    world.look(whole=False)
    assert world.switch.share == 0.0


def test_events_far_ahead_of_the_stream_and_of_days_gone_by_cost_nothing_today() -> None:
    spending = Spending(20_000)
    for day in (19_999, 20_003, 30_000):
        spending.add(Spent(day * DAY_SECONDS + 1.0, 0.02, 5.0, "card"))
    assert (spending.amount, spending.rate(START + 10)) == (0.0, 0.0)
    spending.add(Spent(20_001 * DAY_SECONDS + 1.0, 0.02, 5.0, "card"))
    assert spending.amount == 0.0
    spending.turn(20_001)
    assert spending.amount == 5.0
    spending.turn(20_003)
    assert spending.amount == 5.0, "what partitions brought that are days ahead, where a past is read"

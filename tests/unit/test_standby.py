"""When a standby joins and leaves, over a simulated stream whose time, inflow and workers a test sets."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecluse.sections import WorkerSettings
from scoring.standby import SPREAD, Gate, Observation

SETTINGS = WorkerSettings(standby_join_seconds=10.0, standby_settle_seconds=60.0)


class Stream:
    """A second a look. Other workers do `others` events a second, the standby as many as `own` while it is in the group."""

    def __init__(self, others: float, *, own: float = 1_000.0, seed: int = 1) -> None:
        self.gate = Gate(SETTINGS, random.Random(seed))
        self.others, self.own = others, own
        self.inside = False
        self.now = self.done = self.end = 0
        self.acts: list[tuple[int, str]] = []

    def run(self, seconds: int, inflow: Callable[[int], float], *, seen: bool = True) -> "Stream":
        for _ in range(seconds):
            self.now += 1
            arrived = round(inflow(self.now))
            able = self.others + (self.own if self.inside else 0.0)
            # A tenth of a second's events are always on their way.
            self.done = max(self.done, min(self.done + round(able), self.end + arrived - round(0.1 * arrived)))
            self.end += arrived
            observation = Observation(float(self.now), self.done, self.end) if seen else None
            alone = self.inside and not self.others
            if why := self.gate.decide(observation, inside=self.inside, alone=alone):
                self.inside = not self.inside
                self.acts.append((self.now, why))
        return self


def steady(rate: float) -> Callable[[int], float]:
    return lambda _: rate


def once(events: int) -> Callable[[int], float]:
    """All at the first second that it is asked for."""
    waiting = [events]
    return lambda _: waiting.pop() if waiting else 0


@pytest.mark.parametrize("inflow", [0.0, 0.2, 1.0, 300.0, 900.0])
def test_it_stays_outside_while_the_workers_keep_up(inflow: float) -> None:
    random_inflow = random.Random(3)
    arrivals = lambda _: int(inflow + random_inflow.random())  # noqa: E731
    assert Stream(1_000).run(600, arrivals).acts == []


def test_a_burst_that_is_soon_done_is_left_to_the_workers_also_after_a_lull() -> None:
    stream = Stream(3_400).run(60, steady(10)).run(60, once(41_000 // 2))
    assert stream.acts == []


def test_a_burst_brings_it_at_the_fourth_look_with_the_rate_of_busy_workers() -> None:
    stream = Stream(3_400).run(60, steady(10)).run(10, once(60_000))
    assert stream.acts == [(64, "46,401 events wait, 13.6 s of work at 3,400/s (more than 10.0 s)")]


def test_workers_that_die_under_load_bring_it_before_the_limit_and_without_load_at_the_limit() -> None:
    busy = Stream(1_000).run(30, steady(500))
    busy.others = 0
    busy.run(20, steady(500))
    assert busy.acts[0][0] <= 30 + 10
    quiet = Stream(1_000).run(30, steady(500)).run(30, steady(0))
    quiet.others = 0
    quiet.run(5, once(1)).run(6, steady(0))
    assert quiet.acts == [(71, "1 event waits, and nothing was committed for 11.0 s (more than 10.0 s)")]


def test_without_any_worker_from_the_start_it_joins_at_the_limit_and_stays_for_it_is_alone() -> None:
    stream = Stream(0).run(300, steady(100))
    assert [at for at, _ in stream.acts] == [12]
    stream.others = 1_000
    stream.run(int(60 * SPREAD) + 1, steady(100))
    assert len(stream.acts) == 2
    assert stream.acts[1][1].startswith("less than 1.0 s of work has waited for ")
    assert stream.acts[1][0] >= 360


def test_it_leaves_when_the_lag_has_been_drained_for_the_settling_time_and_no_sooner() -> None:
    stream = Stream(1_000).run(10, steady(500)).run(10, once(40_000))
    assert stream.inside
    stream.run(40, steady(500))
    drained = stream.now
    stream.run(30, steady(500)).run(3, once(9_000)).run(56, steady(500))
    assert stream.inside, "the second burst began the settling time anew"
    stream.run(int(60 * SPREAD), steady(500))
    assert not stream.inside
    assert stream.acts[-1][0] > drained + 30 + 60


def test_while_nothing_is_seen_nothing_changes_and_what_was_seen_before_does_not_count() -> None:
    stream = Stream(0).run(9, steady(100))
    stream.run(100, steady(100), seen=False)
    assert stream.acts == []
    stream.run(10, steady(100))
    assert stream.acts == []
    stream.run(3, steady(100))
    assert len(stream.acts) == 1


def test_several_that_settle_together_leave_at_different_times() -> None:
    times = set()
    for seed in range(5):
        stream = Stream(1_000, seed=seed).run(10, once(40_000)).run(200, steady(0))
        assert [why.partition(" ")[0] for _, why in stream.acts][1:] == ["less"]
        times.add(stream.acts[1][0])
    assert len(times) >= 4


@given(
    st.lists(
        st.tuples(st.integers(0, 5_000), st.sampled_from([0, 500, 2_000]), st.booleans()), min_size=1, max_size=300
    ),
    st.integers(0, 2**32),
)
def test_whatever_comes_it_settles_before_it_leaves_and_never_leaves_alone(
    seconds: list[tuple[int, int, bool]], seed: int
) -> None:
    stream = Stream(1_000, seed=seed)
    for arrived, others, seen in seconds:
        stream.others = others
        acts, inside = len(stream.acts), stream.inside
        stream.run(1, steady(arrived), seen=seen)
        if len(stream.acts) > acts:
            assert seen
            assert not (inside and others == 0)
    entered = [at for at, _ in stream.acts[::2]]
    left = [at for at, _ in stream.acts[1::2]]
    assert all(gone - came >= 60 for came, gone in zip(entered, left, strict=False))

"""What autoscale decides, over a simulated stream whose time, inflow and workers a test sets."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.autoscale import Autoscaler, Decision, Observation, looking
from console.supervisor import Slot, Supervisor
from ecluse.cluster import Backlog
from ecluse.errors import BrokerUnreachable, SettingsError
from ecluse.sections import AutoscaleSettings
from ecluse.settings import load
from tests.cli import ecluse

DEFAULTS = AutoscaleSettings()


class Simulation:
    """A second a look. Workers do `rate` events a second each, `start` seconds after they were asked for."""

    def __init__(
        self, least: int, most: int, rate: float, *, start: int = 4, seed: int = 1, noise: float = 0.0
    ) -> None:
        self.autoscaler = Autoscaler(DEFAULTS, least, most)
        self.rate, self.start, self.noise, self.random = rate, start, noise, random.Random(seed)
        self.ready_at = [0] * least
        self.now = self.done = self.end = 0
        self.decisions: list[tuple[int, Decision]] = []

    @property
    def workers(self) -> int:
        return len(self.ready_at)

    @property
    def steps(self) -> list[tuple[int, int]]:
        return [(decision.workers, decision.wanted) for _, decision in self.decisions]

    def run(self, seconds: int, inflow: Callable[[int], float], *, seen: bool = True) -> None:
        for _ in range(seconds):
            self.now += 1
            self.end += round(inflow(self.now))
            ready = sum(at <= self.now for at in self.ready_at)
            able = ready * self.rate * self.random.uniform(1 - self.noise, 1 + self.noise)
            # A tenth of a second's events are always on their way.
            self.done = max(self.done, min(self.done + round(able), self.end - round(0.1 * inflow(self.now))))
            observation = Observation(float(self.now), self.done, self.end, self.workers, ready)
            if decision := self.autoscaler.decide(observation if seen else None):
                self.decisions.append((self.now, decision))
                self.ready_at = self.ready_at[: decision.wanted]
                self.ready_at += [self.now + self.start] * (decision.wanted - self.workers)


def steady(rate: float) -> Callable[[int], float]:
    return lambda _: rate


def test_a_burst_brings_workers_which_go_when_it_is_over() -> None:
    stream = Simulation(1, 4, rate=1_000)
    stream.run(60, steady(300))
    assert stream.decisions == []
    stream.run(40, steady(3_000))
    assert stream.steps == [(1, 2), (2, 4)]
    stream.run(240, steady(300))
    assert stream.steps[2:] == [(4, 3), (3, 2), (2, 1)]
    assert stream.end - stream.done < 100
    settled = [at for at, decision in stream.decisions if decision.wanted < decision.workers]
    assert all(after - before >= DEFAULTS.settle_seconds for before, after in itertools.pairwise(settled))


def test_the_reasons_say_lag_seconds_and_rate() -> None:
    stream = Simulation(1, 4, rate=1_000)
    stream.run(10, steady(1_500))
    stream.run(60, steady(5_000))
    stream.run(200, steady(10))
    reasons = [decision.why for _, decision in stream.decisions]
    assert "events wait, " in reasons[0]
    assert "s of work at 1,000/s a worker (more than 5.0 s)" in reasons[0]
    assert reasons[-1] == "less than 1.0 s of work has waited for 30 s, and 1 can take the 10/s that come in"


def test_a_backlog_takes_as_many_as_it_needs_but_at_most_doubles_and_waits_for_the_new_ones() -> None:
    stream = Simulation(1, 16, rate=1_000, start=20)
    stream.run(3, steady(100_000))
    stream.run(70, steady(0))
    assert stream.steps[:4] == [(1, 2), (2, 4), (4, 8), (8, 16)]
    times = [at for at, _ in stream.decisions[:4]]
    assert all(after - before > 20 for before, after in itertools.pairwise(times))
    gentle = Simulation(4, 16, rate=1_000)
    gentle.run(1, steady(0))
    gentle.run(1, steady(4_000 * 8))
    gentle.run(4, steady(4_000))
    assert gentle.steps == [(4, 6)], "six take 28,000 events in five seconds, five do not"


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("lag_seconds", [2.0, 4.0])
def test_a_steady_lag_between_the_thresholds_changes_nothing(lag_seconds: float, noise: float) -> None:
    stream = Simulation(2, 8, rate=1_000, noise=noise)
    stream.ready_at.append(0)
    stream.run(1, steady(3_000 * lag_seconds))
    stream.run(600, lambda _: 3_000 + (stream.done - stream.end + 3_000 * lag_seconds))
    assert stream.decisions == []


@given(
    share=st.floats(0.05, 0.95),
    noise=st.floats(0, 0.3),
    workers=st.integers(1, 4),
    seed=st.integers(0, 1_000),
)
def test_a_load_that_the_workers_can_take_does_not_flap(share: float, noise: float, workers: int, seed: int) -> None:
    stream = Simulation(1, 8, rate=1_000, noise=noise, seed=seed)
    stream.ready_at = [0] * workers
    load = share * (1 - noise) * workers * 1_000
    stream.run(1, steady(4_000 * workers))
    stream.run(300, steady(load))
    assert all(after < before for before, after in stream.steps), "never up, so never up and down"


@given(rates=st.lists(st.floats(0, 50_000), min_size=10, max_size=60), most=st.integers(1, 6), seed=st.integers(0, 99))
def test_there_are_never_more_than_most_or_fewer_than_least(rates: list[float], most: int, seed: int) -> None:
    stream = Simulation(1, most, rate=1_000, noise=0.5, seed=seed)
    stream.run(10 * len(rates), lambda now: rates[(now // 10) % len(rates)])
    assert all(1 <= wanted <= most and wanted != workers for workers, wanted in stream.steps)


def test_while_the_lag_cannot_be_seen_nothing_changes_and_calm_does_not_count() -> None:
    stream = Simulation(1, 4, rate=1_000)
    stream.run(30, steady(4_000))
    assert stream.workers == 4
    while stream.workers == 4:
        stream.run(1, steady(0))
    shrunk = len(stream.steps)
    stream.run(20, steady(0))
    stream.run(600, steady(0), seen=False)
    assert len(stream.steps) == shrunk
    stream.run(int(DEFAULTS.settle_seconds), steady(0))
    assert len(stream.steps) == shrunk
    stream.run(3, steady(0))
    assert len(stream.steps) == shrunk + 1


def test_a_little_lag_that_goes_up_for_a_while_before_any_rate_is_known_starts_nobody() -> None:
    autoscaler = Autoscaler(DEFAULTS, 1, 4)
    for second in range(1, 30):
        end = 1_000 * second
        assert autoscaler.decide(Observation(float(second), end - 5 * second, end, 1, 1)) is None


def test_workers_that_do_nothing_yet_are_joined_one_by_one_while_the_lag_grows() -> None:
    stream = Simulation(1, 3, rate=0)
    stream.run(8, steady(100))
    assert stream.steps == [(1, 2)]
    assert "not measured yet" in stream.decisions[0][1].why
    stream.run(60, steady(100))
    assert stream.steps == [(1, 2), (2, 3)]
    assert Simulation(1, 3, rate=0).autoscaler.rate is None


def test_a_trickle_whose_events_are_seen_on_their_way_is_no_lag() -> None:
    scaler = Autoscaler(DEFAULTS, 1, 4)
    for at in range(1, 600):
        on_its_way = at % 3 == 0
        assert scaler.decide(Observation(float(at), 2 * at - on_its_way, 2 * at, 1, 1)) is None


def test_the_rate_follows_what_busy_workers_do() -> None:
    stream = Simulation(2, 2, rate=1_000, noise=0.5)
    stream.run(120, steady(10_000))
    assert stream.autoscaler.rate == pytest.approx(1_000, rel=0.3)
    stream.noise, stream.rate = 0.0, 300
    stream.run(60, steady(10_000))
    assert stream.autoscaler.rate == pytest.approx(300, rel=0.05)


class BrokenReader:
    """A lag that cannot be seen."""

    def __init__(self) -> None:
        self.broken = True

    def look(self) -> Backlog:
        if self.broken:
            raise BrokerUnreachable("127.0.0.1:1")
        return Backlog(0, 0)


def test_an_outage_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    def never(*_: Slot) -> None:
        raise AssertionError("nothing is started")

    reader = BrokenReader()
    supervisor = Supervisor(never, never, lambda: True)  # type: ignore[arg-type]
    look = looking(supervisor, reader, Autoscaler(DEFAULTS, 1, 2), as_json=True)  # type: ignore[arg-type]
    for _ in range(5):
        look()
    reader.broken = False
    look()
    said = capsys.readouterr()
    assert said.err.count("cannot be seen") == 1
    assert said.err.count("can be seen again") == 1
    assert said.out == ""


def test_min_above_max_is_wrong_use() -> None:
    result = ecluse(None, "autoscale", "--min", "3", "--max", "2")
    assert (result.exit_code, "--min 3 is more than --max 2" in result.output) == (2, True)


def test_thresholds_without_room_between_them_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECLUSE_AUTOSCALE__UP_SECONDS", "1")
    file = tmp_path / "e.toml"
    file.write_text('[stream]\nname = "s"\n[stream.fields]\namount = "number"\n')
    with pytest.raises(SettingsError, match="down_seconds must be less than up_seconds"):
        load(file)

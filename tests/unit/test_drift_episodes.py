"""Episodes and their requests: one at a time, each asks once, never within the cool-down; and the schedule."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ecluse.contract.loop import Level
from ecluse.loop_sections import MonitorSettings, Rising
from retrain.drift.episodes import Episodes
from retrain.drift.judge import judged

HOUR = 3600.0
SETTINGS = MonitorSettings(calm_windows=2, cooldown_hours=5, span_windows=3, psi=Rising(warn=1, alarm=2))
#: So many windows without a warning end an episode, whatever they tell: two spans, and two.
UNHEARD = 8
VALUES = {Level.OK: 0.0, Level.WARN: 1.0, Level.ALARM: 2.0}


def statistics(level: Level) -> list:
    return [judged("psi", VALUES[level], SETTINGS.psi, input="amount")]


class Life(RuleBasedStateMachine):
    """Windows of an hour, of any level, beside what a person would keep on paper."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = Episodes()
        self.now = 0.0
        self.version = 1
        self.opened: float | None = None
        self.calm = self.quiet = 0
        self.asked: dict[float, float] = {}  # by when the episode opened

    def close(self, level: Level | None) -> None:
        self.now += HOUR
        self.episodes.lead({self.version: 100})
        asks = self.episodes.judge([] if level is None else statistics(level), self.now, SETTINGS)
        if level is Level.ALARM and self.opened is None:
            self.opened = self.now
        free = not self.asked or self.now >= max(self.asked.values()) + 5 * HOUR
        should = (
            self.opened is not None and level in (Level.WARN, Level.ALARM) and self.opened not in self.asked and free
        )
        assert asks == should
        if asks:
            assert self.opened is not None
            self.asked[self.opened] = self.now
        self.quiet = 0 if level in (Level.WARN, Level.ALARM) else self.quiet + 1
        if self.quiet >= UNHEARD:
            self.opened = None

    @rule()
    def alarm(self) -> None:
        self.close(Level.ALARM)
        self.calm = 0

    @rule()
    def warn(self) -> None:
        self.close(Level.WARN)
        self.calm = 0

    @rule()
    def calm_window(self) -> None:
        self.close(Level.OK)
        self.calm += 1
        if self.calm >= 2:
            self.opened = None

    @rule()
    def window_that_could_not_be_judged(self) -> None:
        self.close(None)

    @precondition(lambda self: self.opened is not None)
    @rule()
    def new_champion(self) -> None:
        self.version += 1
        self.opened, self.calm, self.quiet = None, 0, 0
        self.close(Level.OK)

    @invariant()
    def an_episode_is_open_as_long_as_it_should(self) -> None:
        assert (self.episodes.open is not None) == (self.opened is not None)
        if self.episodes.open is not None:
            assert self.episodes.open.id == f"drift-{self.version}-{self.opened:.0f}"


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase


def test_two_halves_do_not_take_turns_at_leading() -> None:
    episodes = Episodes()
    for events in ({1: 1000, 2: 990}, {1: 990, 2: 1000}, {1: 0, 2: 3}, {2: 3}, {1: 600, 2: 1100}):
        episodes.lead(events)
        assert episodes.leader == 1
    episodes.lead({1: 100, 2: 1000})
    assert episodes.leader == 2
    episodes.lead({1: 1000})
    assert episodes.leader == 1


@given(st.lists(st.floats(0, 100 * HOUR), min_size=1))
def test_the_schedule_asks_once_for_every_moment_passed_the_newest_of_several(steps: list[float]) -> None:
    episodes, times = Episodes(), sorted(steps)
    asked = [episodes.tick(time, "every 6h") for time in times]
    assert asked[0] is None
    for before, after, tick in zip(times, times[1:], asked[1:], strict=False):
        passed = [hour * 6 * HOUR for hour in range(200) if before < hour * 6 * HOUR <= after]
        assert tick == (passed[-1] if passed else None)

"""When a change becomes an episode, and an episode a request: hysteresis, cool-down and schedule, by the stream's clock."""

from collections.abc import Mapping, Sequence

import msgspec

from ecluse.contract.loop import Level, Statistic
from ecluse.contract.records import Moment, Version
from ecluse.loop_sections import MonitorSettings, seconds_of_schedule
from retrain.drift.judge import worst

#: After so many spans without a warning an episode ends, though what it was blamed for is not told any more.
_UNHEARD_SPANS = 2
#: Another version leads once it has more than so many times the events, and at least so many: of two halves none takes turns.
_OVERTAKES, _LEAST = 2, 20


class Episode(msgspec.Struct):
    """A time in which a version does not fit. `blamed` are the statistics that warned when it was last not calm; `quiet` counts
    the windows since, and `calm` those of them that tell."""

    id: str
    version: Version
    asked: bool = False
    calm: int = 0
    quiet: int = 0
    blamed: list[tuple[str, str | None]] = []


class Episodes(msgspec.Struct):
    """The episode that is open, if any: one at a time, of the version that leads, which is the one with the most events.

    An episode opens with the first alarm and ends when no number has warned for `calm_windows` windows that could be judged by
    what it had been blamed for, or for two spans and as many windows more, or when another version leads. It asks once: when it
    opens, or when the cool-down after the request before it has passed and something still warns.
    """

    leader: Version | None = None
    open: Episode | None = None
    cool_until: Moment | None = None
    last_tick: Moment | None = None

    def lead(self, events: Mapping[Version, int]) -> None:
        """See which version leads, by the events of each in the window that closes; a new one ends the old one's episode."""
        foremost = max(events, key=lambda version: (events[version], version))
        if self.leader is not None:
            enough = max(_LEAST, _OVERTAKES * events.get(self.leader, 0) + 1)
            if foremost == self.leader or events[foremost] < enough:
                return
        self.leader, self.open = foremost, None

    def judge(self, statistics: Sequence[Statistic], until: Moment, settings: MonitorSettings) -> bool:
        """Take the statistics of the leader for the window that ended at `until`; says whether to ask for a new model now."""
        level = worst(statistics)
        if self.open is None and level is Level.ALARM and self.leader is not None:
            self.open = Episode(f"drift-{self.leader}-{until:.0f}", self.leader)
        if self.open is None:
            return False
        if level is Level.OK:
            self._calm(self.open, statistics, settings)
            return False
        self.open.calm = self.open.quiet = 0
        self.open.blamed = [(each.name, each.input) for each in statistics if each.level is not Level.OK]
        if self.open.asked or (self.cool_until is not None and until < self.cool_until):
            return False
        self.open.asked = True
        self.cool_until = until + settings.cooldown_hours * 3600
        return True

    def _calm(self, episode: Episode, statistics: Sequence[Statistic], settings: MonitorSettings) -> None:
        """A window in which what was blamed could not be judged says nothing. A change is told once, and then is past.

        What is never told again, as performance without the bypass, must not hold an episode open for ever.
        """
        episode.quiet += 1
        known = {(each.name, each.input) for each in statistics}
        if all(name == "change" or (name, input_) in known for name, input_ in episode.blamed):
            episode.calm += 1
        unheard = _UNHEARD_SPANS * settings.span_windows + settings.calm_windows
        if episode.calm >= settings.calm_windows or episode.quiet >= unheard:
            self.open = None

    def tick(self, time: Moment, schedule: str) -> Moment | None:
        """The newest moment of the schedule that the clock has passed since it was asked last, if any."""
        if not schedule:
            return None
        period = seconds_of_schedule(schedule)
        newest, last = time // period * period, self.last_tick
        self.last_tick = newest if last is None else max(newest, last)
        return newest if last is not None and newest > last else None

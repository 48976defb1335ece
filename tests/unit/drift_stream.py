"""Profiles as workers would send them, for the tests of the monitor."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.loop import Counts, Covered, DriftReport, Profile, RetrainRequest, WindowCounts
from ecluse.contract.records import Decision
from ecluse.loop_sections import MonitorSettings
from ecluse.model.manifest import Histogram
from retrain.drift.fold import Closed, Fold, Outcomes
from retrain.drift.windows import Reference

HOUR, DAY = 3600.0, 86_400.0
#: A Monday.
START = 1_704_067_200.0
MODEL = "cards"

TEN = Histogram(tuple(float(i) for i in range(9)), (1000,) * 10, 0, 4.5, -1.0, 9.0)
FLAG = Histogram((0.5,), (20_000, 10_000), 0, 0.0, 0.0, 1.0)
WEEKEND = Histogram((0.5,), (50_000, 20_000), 0, 0.0, 0.0, 1.0)
REFERENCE = Reference({"amount": TEN, "night": FLAG, "weekend": WEEKEND}, TEN, 0.01)


def counts(numbers: Sequence[int] | NDArray[np.int64], missing: int = 0) -> Counts:
    return Counts({i: int(count) for i, count in enumerate(numbers) if count}, missing)


def even(events: int) -> Counts:
    """`events` spread over ten bins as the reference has them."""
    return counts([events // 10] * 10)


def window(
    since: float, events: int = 2000, *, alerts: int | None = None, rejected: int = 0, **inputs: Counts
) -> WindowCounts:
    """A window without drift, but for the inputs that are given."""
    reviewed = events // 100 if alerts is None else alerts
    return WindowCounts(
        since,
        {"amount": even(events), **inputs},
        even(events),
        {"champion": {Decision.ALLOW: events - reviewed, Decision.REVIEW: reviewed}},
        rejected,
    )


def profile(
    windows: Iterable[WindowCounts] = (),
    times: Sequence[float] = (),
    *,
    version: int = 1,
    seconds: float = DAY,
    sha: str = "a",
    start: int = 0,
    partition: int = 0,
) -> Profile:
    covers = [Covered(partition, start, start, time) for time in times]
    return Profile(MODEL, version, sha, "worker", seconds, list(windows), covers)


def known(version: int, sha: str) -> Reference | None:
    """All manifests but ``none`` are there."""
    return None if sha == "none" else REFERENCE


class Monitor:
    """A fold that is fed one profile after the other, and what has come of it."""

    def __init__(self, **settings: object) -> None:
        self.settings = MonitorSettings.model_validate(settings)
        self.fold = Fold(MODEL, self.settings, known)
        self.closed: list[Closed] = []
        self.scheduled: list[RetrainRequest] = []

    def take(self, taken: Profile, recorded: float = 4e9, outcomes: Mapping[int, Outcomes] | None = None) -> None:
        scheduled = self.fold.take(taken, recorded, self.fold.next_offset)
        if scheduled is not None:
            self.scheduled.append(scheduled)
        while self.fold.due() is not None:
            self.closed.append(self.fold.close(outcomes))

    def tell(self, time: float) -> None:
        """Let the stream's clock come to `time`."""
        self.take(profile(times=[time] * 5, seconds=self.settings.window_hours * HOUR))

    def play(self, windows: Iterable[WindowCounts], *, version: int = 1) -> None:
        """Whole windows, each closed before the next begins."""
        seconds = self.settings.window_hours * HOUR
        for each in windows:
            self.take(profile([each], [each.window] * 5, version=version, seconds=seconds))
            self.tell(each.window + seconds + self.settings.late_hours * HOUR)

    def restart(self) -> None:
        """Another process takes over, from the state alone."""
        state = self.fold.dump()
        self.fold = Fold(MODEL, self.settings, known)
        self.fold.restore(state)

    @property
    def reports(self) -> list[DriftReport]:
        return [report for closed in self.closed for report in closed.reports]

    @property
    def requests(self) -> list[RetrainRequest]:
        return [closed.request for closed in self.closed if closed.request is not None]

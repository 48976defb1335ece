"""What a monitor makes of a stream: when it first alarms after a change, which input it names first, how often it is wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ecluse.contract.loop import DriftReport, Level
from ecluse.loop_sections import Falling, MonitorSettings
from ingest.generator import DAY, DriftKind
from retrain.drift.calibrate import calibrate
from retrain.drift.fold import Outcomes
from retrain.drift.judge import judged as beside
from retrain.drift.past import judged
from retrain.drift.windows import Reference
from retrain.estimates import recall
from tests.study import drifting
from tests.study.drifting import CHANGE, Watched

#: By when labels have come: seven days, one more or less; two standard deviations later all but 2% of them.
MATURITY = 9 * DAY
#: What the business accepts of the share of fraud that was found on the held-out rows: less than nine tenths warns, less than
#: eight alarms, once it is 95% certain.
RECALL = (0.9, 0.8)


@dataclass(frozen=True)
class Noticed:
    """The first alarm since the change: how many windows had closed with it, the inputs in order of blame, and what alarmed
    most. `before` counts the episodes that opened earlier."""

    windows: int | None
    inputs: tuple[str, ...]
    name: str
    before: int


def calibrated(seeds: Sequence[int], until: int, false_alarm_days: int, resamples: int) -> list[MonitorSettings]:
    """The monitor's settings, each calibrated on the steady past of one seed."""
    made = []
    for seed in seeds:
        past, settings = drifting.steady_past(seed, until)
        found = calibrate(
            settings.monitor, Reference.of(past.manifest), past.past, false_alarm_days, resamples=resamples, seed=seed
        )
        limits = {**found.limits, "change_confidence": found.change_confidence}
        made.append(settings.monitor.model_copy(update=limits))
    return made


def with_recall(settings: MonitorSettings, stream: Watched) -> MonitorSettings:
    """The settings with what the business accepts of recall."""
    warn, alarm = (share * stream.manifest.metrics["recall_at_review"] for share in RECALL)
    return settings.model_copy(update={"recall": Falling(warn=warn, alarm=alarm)})


def reports(settings: MonitorSettings, stream: Watched, windows: slice = slice(None)) -> list[DriftReport]:
    """The report of each window."""
    told = judged(settings, Reference.of(stream.manifest), stream.past.windows[windows], _matured(settings, stream))
    return [report for closed in told for report in closed.reports]


def episodes(told: Sequence[DriftReport]) -> int:
    """How many have opened."""
    return len({report.episode for report in told if report.episode})


def noticed(told: Sequence[DriftReport]) -> Noticed:
    """What the reports say of a change that set in at `CHANGE`."""
    before = [report for report in told if report.until <= CHANGE]
    for report in told[len(before) :]:
        if report.level is Level.ALARM:
            inputs = dict.fromkeys(
                each.input for each in report.statistics if each.input and each.level is not Level.OK
            )
            windows = round((report.until - CHANGE) / DAY)
            return Noticed(windows, tuple(inputs), report.statistics[0].name, episodes(before))
    return Noticed(None, (), "", episodes(before))


def _matured(settings: MonitorSettings, stream: Watched) -> Callable[[float, float], Outcomes]:
    """Recall over a span whose labels have come, as if no block hid an outcome."""
    if settings.recall is None:
        return lambda _since, _until: Outcomes()
    outcomes, threshold = stream.outcomes, stream.manifest.thresholds.review

    def matured(limits: Falling, _since: float, until: float) -> Outcomes:
        last = until - MATURITY
        first = max(last - settings.span_windows * DAY, stream.past.windows[0].window)
        rows = (outcomes.times >= first) & (outcomes.times < last)
        positive = (outcomes.labels[rows] == 1) & (outcomes.known_at[rows] <= until)
        alerted = outcomes.scores[rows] >= threshold
        found = recall(positive, alerted, np.ones(len(positive)), np.arange(len(positive)))
        # As the monitor has it: a number has come as far as the whole of its interval has.
        return Outcomes() if found.high is None else Outcomes([beside("recall", found.high, limits)], first, last)

    return partial(matured, settings.recall)


#: The inputs that a change is to be told by; of a new kind of fraud no input tells.
AMOUNTS = {"amount", "customer_mean_amount_1d", "customer_mean_amount_7d", "customer_mean_amount_30d"}
RIGHT = {
    DriftKind.AMOUNTS_UP: AMOUNTS,
    DriftKind.RAMP_UP: AMOUNTS,
    DriftKind.INPUT_NULL: {"terminal_risk_7d"},
    DriftKind.NEW_FRAUD: set(),
}

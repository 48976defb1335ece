"""What the statistics of one version are when a window closes, and which is to blame first."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from math import log

from ecluse.contract.loop import Level, Statistic
from ecluse.loop_sections import Falling, Limits, MonitorSettings
from retrain.drift import change
from retrain.drift.statistics import count_interval, mean_rank, psi, share_at_least, shares_apart, times_apart
from retrain.drift.windows import SCORES, Column, Reference, Seen, Window

#: With fewer events, a share in one window is not judged; against fewer rows of the reference, no population stability index:
#: by how much these lie off by chance stays the same in every span.
LEAST_EVENTS = 200
#: With fewer events a bin, a population stability index is not judged.
LEAST_A_BIN = 50
#: Numbers that say how many times more or fewer: 1 of them is nothing.
_TIMES = ("alerts", "calibration")
_SEVERITY = (Level.ALARM, Level.WARN, Level.OK)


def judged(
    name: str,
    value: float,
    limits: Limits,
    *,
    input: str | None = None,  # the record's own word
    low: float | None = None,
    high: float | None = None,
) -> Statistic:
    """A number beside its thresholds, and how far it has come."""
    sign = -1 if isinstance(limits, Falling) else 1
    level = Level.OK
    if sign * value >= sign * limits.alarm:
        level = Level.ALARM
    elif sign * value >= sign * limits.warn:
        level = Level.WARN
    return Statistic(name, value, limits.warn, limits.alarm, level, input, low, high)


def worst(statistics: Sequence[Statistic]) -> Level:
    """The worst level among them."""
    return next((level for level in _SEVERITY if any(each.level is level for each in statistics)), Level.OK)


def by_blame(statistics: Sequence[Statistic]) -> tuple[Statistic, ...]:
    """Alarms before warnings before the rest; in each, what lies furthest beyond its alarm first."""
    return tuple(sorted(statistics, key=lambda each: (_SEVERITY.index(each.level), -_blame(each))))


def blamed_inputs(statistics: Sequence[Statistic]) -> tuple[str, ...]:
    """The inputs of the statistics that warn or alarm, in their order, each once."""
    return tuple(dict.fromkeys(each.input for each in statistics if each.input is not None and each.level != Level.OK))


def of_window(window: Window, reference: Reference, settings: MonitorSettings) -> Iterator[Statistic]:
    """What the last window alone is judged by: what is missing, out of range, or was rejected."""
    for name in reference.inputs:
        column = reference.column(window.cells, name)
        if column.events >= LEAST_EVENTS:
            histogram = column.histogram
            rows = sum(histogram.counts) + histogram.missing
            apart = shares_apart(column.missing, column.events, histogram.missing, rows)
            yield judged("missing", apart, settings.missing, input=name)
            if histogram.low is not None:
                outside = share_at_least(column.outside, column.events)
                yield judged("range", outside, settings.out_of_range, input=name)
    if window.size >= LEAST_EVENTS:
        yield judged("rejected", share_at_least(window.rejected, window.size), settings.rejected)


def of_alerts(span: Window, reference: Reference, settings: MonitorSettings) -> Iterator[Statistic]:
    """How many times more or fewer events alerted than on the held-out rows, and the interval of that ratio."""
    share, held_out = reference.alert_share, sum(reference.scores.counts)
    if share is None or not held_out or span.scored < LEAST_EVENTS:
        return
    alerted = reference.alert_rows or share * held_out
    value = times_apart(span.alerts, span.scored, alerted, alerted / share if share else held_out)
    low, high = (
        (bound / (share * span.scored) for bound in count_interval(span.alerts, 0.05)) if share else (None, None)
    )
    yield judged("alerts", value, settings.alerts, low=low, high=high)


def of_span(span: Window, reference: Reference, settings: MonitorSettings) -> Iterator[Statistic]:
    """The population stability index of each input and of the scores, over a whole span."""
    for name in reference.histograms:
        column = reference.column(span.cells, name)
        if _comparable(column):
            yield judged("psi", psi(column.bins, column.expected), settings.psi, input=name or None)


def of_series(seen: Seen, span: Window, reference: Reference, settings: MonitorSettings) -> Iterator[Statistic]:
    """Add a whole span to the series of the version; tells which have changed their level with it.

    The values are those of spans and not of windows, so that no pattern of a day or a week is a change. A series in which a
    change was found begins anew, as ADWIN's own window does.
    """
    moved: dict[str, float] = {}
    for key, value in _values(span, reference):
        series = [*seen.series.get(key, ()), value][-change.LENGTH :]
        shift = change.change(series, settings.change_confidence)
        seen.series[key] = series if shift is None else []
        if shift is not None:
            name = key.partition(":")[2]
            moved[name] = max(shift, moved.get(name, 0.0))
    for name, shift in moved.items():
        yield Statistic("change", shift, None, None, Level.ALARM, name or None)


def reason(model: str, version: int, statistics: Sequence[Statistic], since: float, until: float) -> str:
    """Why a new model is asked for, in one sentence; `statistics` in the order of their blame."""
    told = [each for each in statistics if each.level != Level.OK]
    more = f", and {len(told) - 3} more" if len(told) > 3 else ""
    days = (until - since) / 86_400
    span = f"{days:.3g} days" if days >= 2 else f"{days * 24:.3g} hours"
    causes = "; ".join(_told(each) for each in told[:3])
    return f"Version {version} of {model} no longer fits the {span} up to {_date(until)}: {causes}{more}."


def _values(span: Window, reference: Reference) -> Iterator[tuple[str, float]]:
    for name in reference.histograms:
        column = reference.column(span.cells, name)
        if _comparable(column):
            yield f"rank:{name}", mean_rank(column.bins)
        if column.events >= LEAST_EVENTS and name != SCORES:
            yield f"missing:{name}", column.missing / column.events
    if span.scored >= LEAST_EVENTS:
        yield "alerts:", span.alerts / span.scored


def _comparable(column: Column) -> bool:
    """Whether there are enough values on both sides, and more than one bin."""
    counts = column.histogram.counts
    return (
        len(counts) > 1 and sum(counts) >= LEAST_EVENTS and column.events - column.missing >= LEAST_A_BIN * len(counts)
    )


def _blame(statistic: Statistic) -> float:
    value, alarm = statistic.value, statistic.alarm
    if alarm is None:
        return 1.0
    if statistic.warn is not None and statistic.warn > alarm:  # bad when it is small
        value, alarm = alarm, value
    if statistic.name in _TIMES and value > 0 and alarm > 1:
        return log(value) / log(alarm)
    if alarm > 0:
        return value / alarm
    return float("inf") if value > 0 else 0.0


def _told(statistic: Statistic) -> str:
    name, value, what = statistic.name, statistic.value, statistic.input or "the scores"
    alarm = "" if statistic.alarm is None else f" (alarm at {statistic.alarm:g})"
    fewer = statistic.high is not None and statistic.high < 1
    sentences = {
        "psi": f"the values of {what} have a population stability index of {value:.2g}",
        "missing": f"the share of events without {what} lies {value:.1%} or more from that in training",
        "range": f"{value:.1%} or more of the events have {what} outside all that training held",
        "rejected": f"{value:.1%} or more of the events became dead letters",
        "alerts": f"there are {value:.2g} times {'fewer' if fewer else 'more'} alerts than on the held-out rows",
        "change": f"the level of {what} has moved by {value:.2g}",
        "calibration": f"positives are {value:.2g} times more or fewer than the scores say",
    }
    return sentences.get(name, f"{name.replace('_', ' ')} is {value:.3g}") + alarm


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")

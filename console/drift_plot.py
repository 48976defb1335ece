"""The reports as a picture: each number in units of its alarm, over time."""

import datetime as dt
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from console.drift_words import subject
from console.reading import printable
from ecluse.contract.loop import DriftReport, RetrainRequest, Statistic
from ecluse.errors import DataError

#: Numbers further beyond their alarm are drawn here.
_MOST = 4.0
#: So many numbers have a colour and a name, those that came furthest, if they came so far; the others are grey.
_NAMED, _NAMED_FROM = 9, 0.1
_EPISODE, _REQUEST, _VERSION = "#f4a58255", "#ca0020", "0.45"

#: Version, name, input: one line of the picture each.
_Line = tuple[int, str, str | None]


def draw(model: str, reports: Sequence[DriftReport], requests: Sequence[RetrainRequest], file: Path) -> None:
    """Write the picture of reports, in order of time, as PNG; requests within their time are marked at their cut-off.

    Raises:
        DataError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(f"{model}: what the monitor judged, in units of each number's alarm")
    _draw_events(axes, reports, requests)
    _draw_lines(axes, reports)
    axes.axhline(1, color="black", linewidth=1)
    axes.annotate("alarm", (0, 1), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points")
    axes.set_ylim(0, max(1.5, min(_MOST, _reaches(reports)) * 1.05))
    axes.set_ylabel(f"number / alarm ({_MOST:g} and more are drawn at {_MOST:g})")
    axes.set_xlabel("end of the window, on the stream's clock (UTC)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False)
    figure.autofmt_xdate()
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=130)
    try:
        file.write_bytes(written.getvalue())
    except OSError as error:
        raise DataError(f"The plot {file} cannot be written: {error.strerror}.") from error


def relative(number: Statistic) -> float | None:
    """A number in units of its alarm, at 1 where it alarms, bad when large or when small; None of one without an alarm."""
    if number.alarm is None or number.warn is None:
        return None
    falling = number.warn > number.alarm
    above, below = (number.alarm, number.value) if falling else (number.value, number.alarm)
    return min(_MOST, above / below) if below > 0 else _MOST if above > 0 else 0.0


def _draw_lines(axes: Any, reports: Sequence[DriftReport]) -> None:
    lines: dict[_Line, list[tuple[dt.datetime, float]]] = {}
    changes: list[dt.datetime] = []
    for report in reports:
        for number in report.statistics:
            if (height := relative(number)) is not None:
                points = lines.setdefault((report.version, number.name, number.input), [])
                points.append((_when(report.until), max(0.0, height)))
            elif number.name == "change":
                changes.append(_when(report.until))
    furthest = {line: max(height for _, height in points) for line, points in lines.items()}
    ranked = sorted(lines, key=lambda line: furthest[line], reverse=True)
    named = [line for line in ranked[:_NAMED] if furthest[line] >= _NAMED_FROM]
    versions = {version for version, _, _ in lines}
    for place, line in enumerate(ranked):
        times, heights = zip(*lines[line], strict=True)
        if line in named:
            style = {"color": f"C{place}", "linewidth": 1.6, "label": _name(line, versions)}
        else:
            style = {"color": "0.8", "linewidth": 0.8, "zorder": 1}
        axes.plot(times, heights, marker="o", markersize=3, **style)
    if changes:
        axes.plot(changes, [1.0] * len(changes), "kx", markersize=9, label="change of level (ADWIN)")
    if more := len(ranked) - len(named):
        axes.plot([], [], color="0.8", label=f"{more} more" if named else f"{more} numbers")


def _draw_events(axes: Any, reports: Sequence[DriftReport], requests: Sequence[RetrainRequest]) -> None:
    """Episodes, requests, and where another version begins."""
    episodes: dict[str, list[DriftReport]] = {}
    first: dict[int, dt.datetime] = {}
    for report in reports:
        first.setdefault(report.version, _when(report.until))
        if report.episode is not None:
            episodes.setdefault(report.episode, []).append(report)
    ends = sorted({report.until for report in reports})
    step = min((later - end for end, later in pairwise(ends)), default=3600.0)
    for place, found in enumerate(episodes.values()):
        # It goes on until a window closes without it.
        span = _when(found[0].until), _when(found[-1].until + step / 2)
        axes.axvspan(*span, color=_EPISODE, label=None if place else "episode", zorder=0)
    asked = [_when(each.cutoff) for each in requests if ends[0] - step <= each.cutoff <= ends[-1] + step]
    for place, time in enumerate(asked):
        axes.axvline(time, color=_REQUEST, linewidth=1.6, label=None if place else "request for a new model")
    for version, time in list(first.items())[1:]:
        axes.axvline(time, color=_VERSION, linestyle="--", linewidth=1)
        axes.annotate(f"version {version}", (time, 1), xycoords=("data", "axes fraction"), fontsize=9, color=_VERSION)


def _reaches(reports: Sequence[DriftReport]) -> float:
    return max((relative(number) or 0.0 for report in reports for number in report.statistics), default=0.0)


def _name(line: _Line, versions: set[int]) -> str:
    version, name, named = line
    of = f" of {printable(subject(name, named), 30)}" if subject(name, named) else ""
    return f"{name}{of}{f' (version {version})' if len(versions) > 1 else ''}"


def _when(moment: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(moment, dt.UTC)

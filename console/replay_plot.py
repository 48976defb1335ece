"""A replay as a picture: scores then and now, and what changes for which reason."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from console.reading import clock_time
from console.replay_compare import LOG_ODDS, SCORED, Comparison, Why, log_odds
from ecluse.errors import DataError

if TYPE_CHECKING:
    from console.replay_result import Replayed

_TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
_THEN, _NOW = "#b35806", "#7b3294"
_STRICTER, _MILDER, _OTHER = "#ca0020", "#0571b0", "#7f7f7f"


def draw(done: "Replayed", file: Path) -> None:
    """Write the picture of a replay, PNG.

    Raises:
        DataError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, champion = done.comparison, done.champion
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    plane, bars = figure.subplots(1, 2, width_ratios=(1.15, 1))
    share = found.changed / max(1, found.compared)
    figure.suptitle(
        f"{champion.name}: version {champion.version} on the events of {clock_time(done.wanted.since)} to "
        f"{clock_time(done.wanted.until)} UTC\n"
        f"{found.changed:,} of {found.compared:,} decisions change ({share:.2%})",
        fontsize=12,
    )
    _draw_plane(figure, plane, done)
    _draw_bars(bars, found)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=130)
    try:
        file.write_bytes(written.getvalue())
    except OSError as error:
        raise DataError(f"The plot {file} cannot be written: {error.strerror}.") from error


def _draw_plane(figure: Any, axes: Any, done: "Replayed") -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    found = done.comparison
    axes.set_title("Scores of the same events")
    axes.set_xlabel("score then (probability; axis in log-odds)")
    axes.set_ylabel("score now (probability; axis in log-odds)")
    ticks = log_odds(np.array(_TICKS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{tick:g}" for tick in _TICKS])
    axes.set_aspect("equal")
    extent = (-LOG_ODDS, LOG_ODDS, -LOG_ODDS, LOG_ODDS)
    counts = np.ma.masked_equal(found.plane.T, 0)
    # The palest tenth would not show on white.
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1, 256)))
    norm = LogNorm(1, max(2, int(found.plane.max())))
    image = axes.imshow(counts, origin="lower", extent=extent, norm=norm, cmap=colours, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="events in a square (logarithmic)", shrink=0.9)
    axes.plot(extent[:2], extent[:2], color="0.6", linewidth=0.8, zorder=0)
    _draw_limits(axes, done)
    occupied = np.flatnonzero(found.plane.sum(0) + found.plane.sum(1))
    if len(occupied):
        squares = found.plane.shape[0]
        low, high = (occupied[[0, -1]] + np.array([-4, 5])) / squares * 2 * LOG_ODDS - LOG_ODDS
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)


def _draw_limits(axes: Any, done: "Replayed") -> None:
    """The thresholds: of the version now, and of the arm that decided most of the past."""
    found = done.comparison
    lines = [(axes.axhline, "now", _NOW, done.champion.arm.thresholds)]
    if found.arms:
        arm, _ = found.arms.most_common(1)[0]
        others = f", {len(found.arms) - 1} more not drawn" if len(found.arms) > 1 else ""
        lines.append((axes.axvline, f"then (version {arm[0]}{others})", _THEN, found.past.known[arm]))
    for draw_line, when, colour, limits in lines:
        for name, value, style in (("review", limits.review, "--"), ("block", limits.block, "-")):
            if value <= 1:
                place = float(log_odds(np.array([value]))[0])
                draw_line(place, color=colour, linestyle=style, linewidth=1.3, label=f"{name} from {value:.3g}, {when}")
            else:
                said = "nobody" if math.isfinite(value) else "unknown"
                axes.plot([], [], color=colour, linestyle=style, linewidth=1.3, label=f"{name}: {said}, {when}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=9, ncols=2, frameon=False)


def _draw_bars(axes: Any, found: Comparison) -> None:
    totals, stricter, milder = found.by_reason(), found.by_reason(stricter=True), found.by_reason(stricter=False)
    reasons = list(reversed(Why))
    names = [why.value for why in reasons]
    axes.set_title("Changed decisions by reason")
    axes.set_xlabel("events")
    left = np.zeros(len(reasons))
    order = " < ".join(each.value for each in SCORED)
    for counts, colour, label in (
        ([stricter[why] for why in reasons], _STRICTER, f"stricter now ({order})"),
        ([milder[why] for why in reasons], _MILDER, "milder now"),
        ([totals[why] - stricter[why] - milder[why] for why in reasons], _OTHER, "to or from a dead letter"),
    ):
        if any(counts):
            axes.barh(names, counts, left=left, color=colour, label=label, height=0.5)
            left += counts
    if not found.changed:
        axes.barh(names, left)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 1])
        axes.text(0.5, 2, "no decision changes", ha="center", va="center", fontsize=12, color="0.4")
        return
    for i, total in enumerate(left):
        axes.annotate(f"{total:,.0f}", (total, i), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, left.max() * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=9, ncols=2, frameon=False)

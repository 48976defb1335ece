"""A size study as a picture: what candidates are worth, and how long they take, by their size."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecluse.errors import DataError

if TYPE_CHECKING:
    from retrain.study.report import Candidate, Study

_PICKED, _OTHER, _OUT = "#1b7837", "#4d4d4d", "#bdbdbd"
_BATCHES = (("1 event", "batch_1", "#0571b0"), ("1,000 events", "batch_1000", "#ca0020"))


def draw(done: "Study", file: Path) -> None:
    """Write the picture of a study, PNG.

    Raises:
        DataError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    quality, latency = figure.subplots(1, 2)
    picked = f"{done.picked} is picked" if done.picked else "none can be picked"
    rows = f"{done.rows:,} held-out rows, {done.positives:,} of them positive"
    figure.suptitle(f"{done.model}: {picked}; {rows}; a loss of {done.tolerance:g} is allowed")
    _draw_quality(quality, done)
    _draw_latency(latency, done)
    for axes in (quality, latency):
        axes.set_xscale("log")
        axes.set_xlabel("size on disk, KiB")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        if done.max_size_bytes is not None:
            axes.axvline(done.max_size_bytes / 2**10, color="black", linestyle=":", linewidth=1, label="max_size_bytes")
    quality.legend(loc="lower right", fontsize=9, frameon=False)
    latency.legend(loc="best", fontsize=9, frameon=False)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=130)
    try:
        file.write_bytes(written.getvalue())
    except OSError as error:
        raise DataError(f"The plot {file} cannot be written: {error.strerror}.") from error


def _measured(done: "Study") -> "list[tuple[Candidate, float]]":
    """Candidates with what they are worth, and their size in KiB; the smallest first."""
    found = [(each, each.size_bytes / 2**10) for each in done.candidates if each.average_precision and each.size_bytes]
    return sorted(found, key=lambda pair: pair[1])


def _draw_quality(axes: Any, done: "Study") -> None:
    axes.set_title("Average precision, with its interval of 95%")
    for each, size in _measured(done):
        if (found := each.average_precision) is None:
            continue
        colour = _PICKED if each.name == done.picked else _OUT if each.reason else _OTHER
        reach = [[found.value - found.low], [found.high - found.value]]
        axes.errorbar([size], [found.value], yerr=reach, fmt="o", color=colour, capsize=3)
        # Aslant, so that neighbours do not cover each other.
        axes.annotate(
            each.name, (size, found.high), xytext=(-3, 5), textcoords="offset points", rotation=55, color=colour
        )
    axes.margins(y=0.35)
    best = next((each.average_precision for each in done.candidates if each.name == done.best), None)
    if best is not None:
        label = f"what {done.best} has, and {done.tolerance:g} less"
        axes.axhspan(best.value - done.tolerance, best.value, color=_PICKED, alpha=0.15, linewidth=0, label=label)


def _draw_latency(axes: Any, done: "Study") -> None:
    axes.set_title("Latency with one thread: median to 99th percentile")
    axes.set_ylabel("ms")
    axes.set_yscale("log")
    for label, name, colour in _BATCHES:
        points = [(size, getattr(each.cost, name)) for each, size in _measured(done) if each.cost is not None]
        if points:
            sizes, found = zip(*points, strict=True)
            medians = [latency.p50_ms for latency in found]
            above = [latency.p99_ms - latency.p50_ms for latency in found]
            axes.errorbar(
                sizes, medians, yerr=[[0.0] * len(medians), above], fmt="o-", color=colour, capsize=3, label=label
            )

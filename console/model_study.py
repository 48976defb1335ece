"""`ecluse model study`: candidates from small to large, and the smallest that is good enough."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.model_train import FromOption, HoldoutOption, UntilOption, ended_in_order
from console.output import ConfigOption, JsonOption, fail, out, print_json, print_table, say, settings_of

if TYPE_CHECKING:
    from retrain.study.report import Candidate, Study

_WORTH = ("candidate", "average precision", "95% interval", "loss", "at most", "precision", "recall", "size KiB")
_COSTS = (
    "candidate",
    "size KiB",
    "memory MiB",
    "load ms",
    "1 event p50 µs",
    "p99 µs",
    "1,000 events p50 ms",
    "p99 ms",
    "events/s a core",
)


def study(
    file: Annotated[Path, typer.Argument(help="Labelled rows or a training set: .csv, .jsonl, .ndjson or .parquet.")],
    since: FromOption = None,
    until: UntilOption = None,
    holdout_since: HoldoutOption = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw quality and latency by size.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train several candidates, measure what each is worth and what it costs, and say which one to take. Publishes nothing."""
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{plot} must be a .png file in a folder that is there", param_hint="--plot")
    from retrain.study.parent import study_file
    from retrain.training import Window

    with ended_in_order():
        done = study_file(settings_of(config), file, Window(since, until, holdout_since), say)
    if as_json:
        print_json(done)
    else:
        _print(done)
    if plot is not None and any(each.average_precision for each in done.candidates):
        from console.model_study_plot import draw

        draw(done, plot)
    if done.picked is None:
        fail(done.why)


def _print(done: "Study") -> None:
    print_table(_WORTH, [_worth(each, done) for each in done.candidates])
    for each in done.candidates:
        if each.reason:
            out.print(f"{each.name} cannot be picked: {each.reason}", markup=False, soft_wrap=True)
    out.print()
    if costs := [_costs(each) for each in done.candidates if each.cost]:
        print_table(_COSTS, costs)
        out.print()
    units = "entities" if done.drawn == "entity" else "rows"
    facts = (
        f"Trained on {done.trained_rows:,} rows; measured on {done.rows:,} later ones, {done.positives:,} of them positive.",
        f"Intervals and bounds of 95% from {done.resamples:,} resamples of {done.units:,} {units} (seed {done.seed}).",
        *done.notes,
    )
    for fact in facts:
        out.print(fact, markup=False, soft_wrap=True)
    if done.picked:
        out.print(f"Picked: {done.why}", style="bold", markup=False, soft_wrap=True)


def _worth(each: "Candidate", done: "Study") -> list[object]:
    name = f"{each.name} *" if each.name == done.picked else each.name
    quality, loss = each.average_precision, each.loss
    if quality is None or each.precision is None or each.recall is None or each.size_bytes is None:
        return [name, *["-"] * (len(_WORTH) - 1)]
    return [
        name,
        round(quality.value, 4),
        f"{quality.low:.4f} to {quality.high:.4f}",
        round(loss.value, 4) if loss else "-",
        round(loss.upper, 4) if loss else "-",
        f"{each.precision:.1%}",
        f"{each.recall:.1%}",
        round(each.size_bytes / 2**10, 1),
    ]


def _costs(each: "Candidate") -> list[object]:
    cost = each.cost
    assert cost is not None and each.size_bytes is not None  # only what was measured is told
    return [
        each.name,
        round(each.size_bytes / 2**10, 1),
        round(cost.memory_bytes / 2**20, 1),
        round(cost.load_ms, 1),
        round(cost.batch_1.p50_ms * 1e3),
        round(cost.batch_1.p99_ms * 1e3),
        round(cost.batch_1000.p50_ms, 2),
        round(cost.batch_1000.p99_ms, 2),
        round(cost.events_per_second),
    ]

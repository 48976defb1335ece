"""`ecluse dataset`: training sets from the training store."""

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, out, print_json, progress_bar, settings_of
from console.reading import moment

if TYPE_CHECKING:
    from retrain.estimates import Estimate
    from retrain.manifests import SetManifest

app = typer.Typer(help="Training sets from the training store.", no_args_is_help=True)


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(moment(text), dt.UTC)


@app.callback()
def _dataset() -> None:
    """So that `build` is a verb of its own."""


@app.command()
def build(
    file: Annotated[Path, typer.Option("--out", metavar="FILE.parquet", help="The file to write.")],
    as_of: Annotated[
        dt.datetime | None,
        typer.Option(
            parser=_time,
            metavar="TIME",
            help="What became known later does not count (2026-03-01, or 2026-03-01T12:00:00Z, or 7d: so long ago).",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        dt.datetime | None,
        typer.Option(
            parser=_time, metavar="TIME", help="Take events from this time on, written so too.", show_default=False
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Build exactly the set of this manifest again.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a training set: what was known at a moment, with outcome and weight of each row, and its manifest beside it."""
    from retrain.manifests import SetManifest
    from retrain.trainingset import build as build_set
    from retrain.trainingset import rebuild

    if (as_of is None) == (manifest is None) or (manifest is not None and since is not None):
        raise typer.BadParameter("give either --as-of, and --since if you like, or --manifest alone")
    if file.suffix != ".parquet":
        raise typer.BadParameter("the file's name must end in .parquet", param_hint="--out")
    settings = settings_of(config)
    with progress_bar("Building the set") as progress:
        if manifest is not None:
            made = rebuild(settings, SetManifest.read(manifest), file, progress)
        else:
            assert as_of is not None  # one of the two is given
            made = build_set(settings, as_of, since, file, progress)
    if as_json:
        print_json({"file": str(file), "manifest": made})
    else:
        _print(made, file)


def _print(made: "SetManifest", file: Path) -> None:
    lines = _lines(made, file)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        out.print(f"{name:<{width}}  {text}", markup=False, soft_wrap=True)


def _lines(made: "SetManifest", file: Path) -> list[tuple[str, str]]:
    """The report, line by line."""
    counts, recipe = made.counts, made.recipe
    left_out = {
        "unreadable": counts.unreadable,
        "sent twice": counts.duplicates,
        "outside the window": counts.outside,
        "not mature": counts.immature,
        "without a prediction": counts.unscored,
        "blocked": counts.blocked,
        "without a label": counts.unlabelled,
        "labelled because of an alert": counts.selected,
    }
    window = f"{recipe.since:%Y-%m-%d %H:%M:%S}" if recipe.since else "the first event"
    return [
        (
            "set",
            f"{file}, {counts.rows:,} rows, {counts.positives:,} positive; {counts.bypassed:,} went past the model",
        ),
        (
            "as of",
            f"{recipe.as_of:%Y-%m-%d %H:%M:%S} UTC; events from {window} to {recipe.mature_by:%Y-%m-%d %H:%M:%S}",
        ),
        ("outcomes", f"{counts.rows - counts.silent:,} by label, {counts.silent:,} by silence"),
        ("events known", f"{counts.events:,}"),
        ("left out", "; ".join(f"{count:,} {why}" for why, count in left_out.items() if count) or "nothing"),
        (
            "not spoken for",
            f"{made.unspoken_share:.3%} of {made.population:,} decided events ({counts.unreachable:,}): no arm lets it through",
        ),
        *((name.replace("_", " "), _rate(rate)) for name, rate in made.rates.items()),
        ("scored again by", ", ".join(made.models) or "no version"),
        ("SHA-256", made.sha256),
    ]


def _rate(rate: "Estimate") -> str:
    if rate.value is None:
        return f"unknown: {rate.note}"
    note = f"; {rate.note}" if rate.note else ""
    if rate.low is None or rate.high is None:
        return f"{rate.value:.2%}{note}"
    return f"{rate.value:.2%}, 95% interval {rate.low:.2%} to {rate.high:.2%}, from {rate.rows:,} rows{note}"

"""`ecluse model`: train a model and make it the champion."""

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, say, settings_of

if TYPE_CHECKING:
    from ecluse.model.manifest import Manifest

app = typer.Typer(help="Models: train and release them.", no_args_is_help=True)

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="Labelled rows: .csv, .jsonl, .ndjson or .parquet.")],
    since: Annotated[
        dt.datetime | None, typer.Option(formats=_FORMATS, help="Take rows from this time on (UTC).")
    ] = None,
    until: Annotated[
        dt.datetime | None, typer.Option(formats=_FORMATS, help="Take rows before this time (UTC).")
    ] = None,
    holdout_since: Annotated[
        dt.datetime | None,
        typer.Option(
            formats=_FORMATS, help="Hold out the rows from this time on; the share model.holdout if not given."
        ),
    ] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the stream's model on a file, measure it on the latest rows, release it and make it the champion."""
    # OpenMP's threads would spin while they wait for each other: on busy cores that takes three times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from retrain.training import Window, train_and_publish

    settings = settings_of(config, servers)
    manifest, revision = train_and_publish(settings, file, Window(since, until, holdout_since), say)
    if as_json:
        print_json({"manifest": manifest, "route_revision": revision})
    else:
        _print_summary(manifest, revision)


def _print_summary(manifest: "Manifest", revision: int) -> None:
    from rich.table import Table

    metrics, training = manifest.metrics, manifest.training
    alerts = metrics["alert_share"]
    found = (
        f"{metrics['precision_at_review']:.1%} of them right, {metrics['recall_at_review']:.1%} of the positives found"
    )
    lines = {
        "model": f"{manifest.name}, version {manifest.version}, champion by route revision {revision}",
        "features": f"{len(manifest.features)}: {', '.join(feature.name for feature in manifest.features)}",
        "left out": "; ".join(f"{field}: {reason}" for field, reason in training["left_out"].items()) or "nothing",
        "trained on": f"{training['rows']:,} rows, {training['positives']:,} positive{_between(training['span'])}",
        "held out": f"{metrics['rows']:,.0f} later rows, {metrics['positives']:,.0f} positive"
        f"{_between(training['held_out_span'])}",
        "average precision": f"{metrics['average_precision']:.3f}",
        "ROC AUC": f"{metrics['roc_auc']:.3f}",
        "review from": f"{manifest.thresholds.review:.4f} ({alerts:.3%} of events alert{f'; {found}' if alerts else ''})",
        "block from": f"{manifest.thresholds.block:.4f} ({metrics['block_share']:.3%} of events)",
        "ONNX": f"differs from predict_proba by {manifest.onnx['max_difference']:.1e} at most",
        "script": f"{training['script']}, seed {training['seed']}",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in [*lines.items(), *(("note", note) for note in training["notes"])]:
        table.add_row(name, text)
    out.print(table, markup=False)


def _between(span: tuple[str, str] | None) -> str:
    return f", {span[0]} to {span[1]}" if span else ""

"""`ecluse model train`: train a model and make it the champion."""

import contextlib
import datetime as dt
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, say, settings_of

if TYPE_CHECKING:
    from ecluse.model.manifest import Manifest

#: How a time is written on the command line.
FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
FromOption = Annotated[
    dt.datetime | None,
    typer.Option(
        "--since",
        formats=FORMATS,
        metavar="TIME",
        help="Take rows from this time on (2026-03-01 or 2026-03-01T12:00:00Z; UTC without a zone).",
    ),
]
UntilOption = Annotated[
    dt.datetime | None,
    typer.Option("--until", formats=FORMATS, metavar="TIME", help="Take rows before this time (UTC)."),
]
HoldoutOption = Annotated[
    dt.datetime | None,
    typer.Option(
        "--holdout-since",
        formats=FORMATS,
        metavar="TIME",
        help="Hold out the rows from this time on, and measure on them; the share model.holdout if not given.",
    ),
]


def train(
    file: Annotated[Path, typer.Argument(help="Labelled rows: .csv, .jsonl, .ndjson or .parquet.")],
    since: FromOption = None,
    until: UntilOption = None,
    holdout_since: HoldoutOption = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the stream's model on a file, measure it on the latest rows, release it and make it the champion."""
    from retrain.training import Window, train_and_publish

    settings = settings_of(config, servers)
    with ended_in_order():
        manifest, revision = train_and_publish(settings, file, Window(since, until, holdout_since), say)
    if as_json:
        print_json({"manifest": manifest, "route_revision": revision})
    else:
        _print_summary(manifest, revision)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM leaves as Ctrl-C does: what was started is ended, and the draft removed."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_summary(manifest: "Manifest", revision: int | None) -> None:
    metrics, training = manifest.metrics, manifest.training
    alerts = metrics["alert_share"]
    found = (
        f"{metrics['precision_at_review']:.1%} of them right, {metrics['recall_at_review']:.1%} of the positives found"
    )
    lines = {
        "model": f"{manifest.name}, version {manifest.version}, {_role(revision)}",
        "features": f"{len(manifest.features)}: {', '.join(feature.name for feature in manifest.features)}",
        "left out": "; ".join(f"{field}: {reason}" for field, reason in training["left_out"].items()) or "nothing",
        "trained on": f"{training['rows']:,} rows, {training['positives']:,} positive{_between(training['span'])}",
        "held out": f"{metrics['rows']:,.0f} later rows, {metrics['positives']:,.0f} positive"
        f"{_between(training['held_out_span'])}",
        "average precision": f"{metrics['average_precision']:.3f}",
        "ROC AUC": f"{metrics['roc_auc']:.3f}",
        "review from": f"{manifest.thresholds.review:.4f} ({alerts:.3%} of events alert{f'; {found}' if alerts else ''})",
        "block from": f"{manifest.thresholds.block:.4f} ({metrics['block_share']:.3%} of events)",
        "form": form_of(manifest),
        "script": f"{training['script']}, seed {training['seed']}",
    }
    print_lines(lines, training["notes"])


def print_lines(lines: Mapping[str, str], notes: Sequence[str]) -> None:
    """What there is to know of a version, a line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in [*lines.items(), *(("note", note) for note in notes)]:
        table.add_row(name, Text(text))
    out.print(table)


def form_of(manifest: "Manifest") -> str:
    """What workers load, how far it lies from the estimator, and what it takes of their memory."""
    memory = f"takes {manifest.memory_bytes / 2**20:,.0f} MiB of a worker's memory"
    if "model.onnx" not in manifest.files:
        return f"joblib, {memory}"
    if not manifest.onnx:
        return f"ONNX, {memory}"
    return f"ONNX, differs from predict_proba by {manifest.onnx['max_difference']:.1e} at most, {memory}"


def _role(revision: int | None) -> str:
    if revision is None:
        return "released; a newer version is champion already"
    return f"champion by route revision {revision}"


def _between(span: tuple[str, str] | None) -> str:
    return f", {span[0]} to {span[1]}" if span else ""

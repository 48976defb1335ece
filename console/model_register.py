"""`ecluse model register`: release a model that was trained elsewhere."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.model_train import ended_in_order, form_of, print_lines
from console.output import ConfigOption, JsonOption, ServersOption, print_json, say, settings_of

if TYPE_CHECKING:
    from ecluse.model.manifest import Manifest


def register(
    file: Annotated[Path, typer.Argument(help="The model: a fitted scikit-learn estimator (.joblib), or .onnx.")],
    features: Annotated[
        Path, typer.Option(help="What its inputs are, in their order: a list `features` (.toml, .json).")
    ],
    samples: Annotated[
        Path, typer.Option(help="Rows of the stream's fields, synthetic or masked: .csv, .jsonl, .ndjson or .parquet.")
    ],
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Unpickle the .joblib file, which runs whatever code is in it.")
    ] = False,
    review: Annotated[
        float | None, typer.Option(min=0.0, help="Review events from this score on; by the policy if not given.")
    ] = None,
    block: Annotated[float | None, typer.Option(min=0.0, help="Block events from this score on.")] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model that was trained elsewhere, and release it. It becomes champion by `ecluse model promote` only."""
    from ecluse.contract.records import Thresholds
    from retrain.registering import Brought, register_and_publish

    if (review is None) != (block is None):
        raise typer.BadParameter("give both --review and --block, or neither")
    if not all(math.isfinite(each) for each in (review, block) if each is not None):
        raise typer.BadParameter("--review and --block are finite numbers")
    if review is not None and block is not None and not review <= block:
        raise typer.BadParameter("--review must not lie above --block")
    thresholds = None if review is None or block is None else Thresholds(review, block)
    settings = settings_of(config, servers)
    with ended_in_order():
        manifest = register_and_publish(
            settings, Brought(file, features, samples), thresholds, trust_pickle=trust_pickle, say=say
        )
    if as_json:
        print_json({"manifest": manifest})
    else:
        _print_summary(manifest)
    say(f"It is not champion yet: `ecluse model promote {manifest.version}` makes it so.")


def _print_summary(manifest: "Manifest") -> None:
    training, metrics = manifest.training, manifest.metrics
    lines = {
        "model": f"{manifest.name}, version {manifest.version}, released",
        "from": f"{training['registered']}, SHA-256 {training['sha256']}",
        "features": f"{len(manifest.features)}: {', '.join(feature.name for feature in manifest.features)}",
        "tried on": f"{training['rows']:,} rows of {training['samples']}",
    }
    if metrics:
        lines["average precision"] = f"{metrics['average_precision']:.3f}"
        lines["ROC AUC"] = f"{metrics['roc_auc']:.3f}"
    lines["review from"] = f"{manifest.thresholds.review:.4f}"
    lines["block from"] = f"{manifest.thresholds.block:.4f}"
    lines["form"] = form_of(manifest)
    print_lines(lines, training["notes"])

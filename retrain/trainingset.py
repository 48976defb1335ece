"""From the training store to a training set: what was known at a moment, with outcome and weight. Start reading here.

    what was known -> one row an event -> its prediction -> odds -> its label -> outcome and weight -> Parquet and manifest

Events are worked on in slices of their time, so that memory does not grow with their fields.
"""

import datetime as dt
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import polars as pl
from polars.exceptions import PolarsError

from ecluse.errors import DataError, cause
from ecluse.model.manifest import sha256_of
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from retrain.estimates import false_discovery_rate, false_positive_rate
from retrain.known import PLACE, Known, require_all
from retrain.manifests import Counts, Recipe, SetManifest, libraries, register
from retrain.rescoring import Rescorer
from retrain.setrows import Rows

Progress = Callable[[int, int], None]


def build(
    settings: Settings, as_of: dt.datetime, since: dt.datetime | None, out: Path, progress: Progress
) -> SetManifest:
    """Build the training set of a moment: a Parquet file and, beside it and in the store, its manifest.

    Args:
        settings: the stream's.
        as_of: what became known later does not count. Without a zone it is UTC.
        since: events before do not count; all do where None.
        out: the file; the manifest has its name and ends in .json.
        progress: told of the events that are done, and of all.

    Raises:
        DataError: there is nothing to build from, or the moment is still to come, or the file cannot be written.
        StoreError: the training store cannot be read.
        ModelError: a version that the odds need cannot be loaded, or fails.
    """
    recipe = Recipe.of(settings, as_of, since)
    if recipe.clock == "arrival" and recipe.as_of > dt.datetime.now(dt.UTC):
        raise DataError(f"{_clock(recipe.as_of)} UTC is still to come: nobody knows what will be known then.")
    return _build(settings, recipe, out, progress)


def rebuild(settings: Settings, wanted: SetManifest, out: Path, progress: Progress) -> SetManifest:
    """Build exactly the set of a manifest again; arguments and errors as of `build`.

    Raises:
        DataError: the training store is not what it was built from, or the bytes come out otherwise: `out` is not written.
    """
    if wanted.recipe.prefix != settings.names.prefix:
        raise DataError(
            f"The manifest is of the topics {wanted.recipe.prefix}*, and the stream's are {settings.names.prefix}*."
        )
    return _build(settings, wanted.recipe, out, progress, wanted)


def _build(
    settings: Settings, recipe: Recipe, out: Path, progress: Progress, wanted: SetManifest | None = None
) -> SetManifest:
    known = Known(TrainingStore(settings), recipe)
    extents = known.extents()
    if wanted is not None:
        require_all(wanted.recipe.read, extents)
    recipe = msgspec.structs.replace(recipe, read=extents)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".ecluse-set-") as folder:
            made = Path(folder) / "set.parquet"
            manifest = _written(known, recipe, Rescorer(settings, known.revisions), made, progress)
            if wanted is not None:
                _require_same(wanted, manifest)
            register(settings, manifest)  # first: what `store forget` does not know of must not be there
            made.replace(out)
        out.with_suffix(".json").write_bytes(manifest.encode())
    except (PolarsError, OSError) as error:
        raise DataError(f"{out} cannot be written: {cause(error)}.") from error
    return manifest


def _written(known: Known, recipe: Recipe, rescore: Rescorer, file: Path, progress: Progress) -> SetManifest:
    """Write the set, slice by slice, into files beside `file`, and then these into it; returns its manifest."""
    doubled = known.doubled()
    seconds = known.seconds(doubled)
    counts, mature = _counted(known, doubled, seconds)
    rows, parts, said, done = Rows(known, recipe, rescore, counts), [], [], 0
    for number, piece in enumerate(known.slices(seconds)):
        events = known.collect(known.events(piece)).join(doubled, on=PLACE, how="anti")
        made, told = rows(events, piece)
        parts.append(file.with_name(f"{number}.parquet"))
        made.write_parquet(parts[-1], compression="lz4")
        said.append(told)
        progress(done := done + events.height, mature)
    if not counts.rows:
        raise DataError(_nothing(recipe, counts))
    # Nothing left to defaults, for the bytes are promised.
    pl.scan_parquet(parts).sink_parquet(
        file, compression="zstd", compression_level=3, row_group_size=100_000, statistics=True, maintain_order=True
    )
    rates = pl.concat(said)
    columns = [rates[name].to_numpy() for name in ("positive", "would_block", "weight", "unit")]
    return SetManifest(
        recipe=recipe,
        sha256=sha256_of(file),
        columns=tuple(pl.read_parquet_schema(file)),
        counts=counts,
        population=counts.population,
        unspoken_share=counts.unreachable / counts.population,
        rates={
            "false_discovery_rate": false_discovery_rate(*columns),
            "false_positive_rate": false_positive_rate(*columns),
        },
        models=dict(sorted(rescore.used.items())),
        libraries=libraries(),
    )


def _counted(known: Known, doubled: pl.DataFrame, seconds: pl.DataFrame) -> tuple[Counts, int]:
    """What is known of the events before any of them is looked at, and how many are mature and in the window."""

    def total(*conditions: pl.Expr) -> int:
        return int(seconds.filter(*conditions)["len"].sum())

    outside, immature = pl.col("outside"), pl.col("immature")
    counts = Counts(
        unreadable=known.unreadable(),
        duplicates=doubled.height,
        outside=total(outside),
        immature=total(immature, ~outside),
    )
    counts.events = counts.unreadable + counts.duplicates + total()
    return counts, total(~immature, ~outside)


def _nothing(recipe: Recipe, counts: Counts) -> str:
    """Why there is no set, in a sentence."""
    moment = f"as of {_clock(recipe.as_of)} UTC"
    if not counts.events:
        return f"The training store holds no events {moment}: `ecluse store` writes what flows into it."
    if recipe.since is not None and recipe.since >= recipe.mature_by:
        return (
            f"No event is mature {moment} that is from {_clock(recipe.since)} UTC or later: outcomes count as known "
            f"{recipe.maturity_hours:g} h after an event (labels.maturity_hours), so for events until "
            f"{_clock(recipe.mature_by)} UTC."
        )
    if not counts.population + counts.unscored:
        return (
            f"None of {counts.events:,} events is mature {moment}: outcomes count as known {recipe.maturity_hours:g} h after "
            f"an event (labels.maturity_hours), so for events until {_clock(recipe.mature_by)} UTC. {counts.immature:,} are "
            f"too young, {counts.outside:,} outside the window, {counts.unreadable:,} unreadable."
        )
    return (
        f"No event has an outcome {moment}: of {counts.population + counts.unscored:,} mature ones {counts.blocked:,} were "
        f"blocked, {counts.unscored:,} have no prediction, {counts.unlabelled:,} have no label (labels.silence), and "
        f"{counts.selected:,} were labelled because of an alert."
    )


def _require_same(wanted: SetManifest, made: SetManifest) -> None:
    if made.sha256 == wanted.sha256:
        return
    changed = [name for name, version in made.libraries.items() if wanted.libraries.get(name) != version]
    why = f" Other versions than then: {', '.join(changed)}." if changed else ""
    raise DataError(
        f"The set comes out with other bytes (SHA-256 {made.sha256}, and the manifest says {wanted.sha256}): the training "
        f"store or the store of models is not what it was built from.{why}"
    )


def _clock(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"

"""The rows of a training set: what an event was, what was decided about it, what came of it, and what it weighs."""

import datetime as dt

import polars as pl

from ecluse.contract.records import BYPASS, Decision
from ecluse.contract.tables import column_of
from ecluse.errors import DataError
from ecluse.store.labels import resolved
from retrain.known import PLACE, Known, Slice
from retrain.manifests import Counts, Recipe
from retrain.rescoring import Rescorer

#: The origin of the outcome of an event of which nobody spoke.
SILENCE = "silence"
#: The columns of a set before and behind the event's fields and the label.
BEFORE = ("event_id", "entity", "event_time", "known_at")
BEHIND = (
    *("label_origin", "label_known_at", "arm", "propensity", "score", "decision", "version", "route_revision"),
    *("champion_score", "would_block", "weight", "unit", *PLACE),
)
_DECIDED = ("arm", "propensity", "score", "decision", "version", "route_revision")
#: Whether the outcome could be seen.
_SEEN = pl.col("decision") != Decision.BLOCK


class Rows:
    """Makes the rows of slices, and counts what is left out."""

    def __init__(self, known: Known, recipe: Recipe, rescore: Rescorer, counts: Counts) -> None:
        self._known, self._recipe, self._rescore, self._counts = known, recipe, rescore, counts

    def __call__(self, events: pl.DataFrame, piece: Slice) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of the events of a slice, each of them once: in the set's columns, and as the rates need them: `positive`,
        `would_block`, `weight`, and `unit` as a number.

        Raises:
            DataError, ModelError: as `Rescorer`.
            StoreError: the store cannot be read.
        """
        events = events.sort("event_time", *PLACE)
        decided = events.join(self._decisions(piece), on=PLACE, maintain_order="left")
        # Apart from our own columns, for a field may have any name.
        fields = decided.select(pl.col(column_of(name)).alias(name) for name in self._recipe.fields)
        told = self._rescore(decided, fields)
        ours = decided.select(*BEFORE, "day", *PLACE, *_DECIDED).hstack(told)
        rows = ours.join(self._labels(decided["event_id"]), on="event_id", how="left", maintain_order="left")
        kept = rows.select(self._kept()).to_series()
        self._counts.unscored += events.height - decided.height
        self._count(rows)
        rows, fields = rows.filter(kept).with_columns(*self._outcome()), fields.filter(kept)
        self._counts.rows += rows.height
        self._counts.positives += int(rows["value"].sum())
        self._counts.silent += int((rows["label_origin"] == SILENCE).sum())
        self._counts.bypassed += int((rows["arm"] == BYPASS).sum())
        said = rows.select("would_block", "weight", positive=pl.col("value") == 1, unit=pl.col("unit").hash())
        return self._in_columns(rows, fields), said

    def _decisions(self, piece: Slice) -> pl.DataFrame:
        """What was decided about each event; of what a crash doubled, the first."""
        rows = self._known.collect(self._known.predictions(piece).select("source_offset", *PLACE, *_DECIDED))
        first = rows.sort("offset").unique(["partition", "source_offset"], keep="first")
        return first.drop("offset").rename({"source_offset": "offset"})

    def _labels(self, ids: pl.Series) -> pl.DataFrame:
        """What the labels of these events come to, as of the moment."""
        theirs = self._known.labels().join(ids.to_frame().lazy(), on="event_id", how="semi")
        held = resolved(theirs, self._recipe.origins, self._recipe.as_of)
        renamed = held.select("event_id", "value", "alerted", label_origin="origin", label_known_at="known_at")
        return self._known.collect(renamed)

    def _kept(self) -> pl.Expr:
        """Which events make a row. Where silence says nothing, labels that came because of an alert are no random sample."""
        if self._recipe.silence == "negative":
            return _SEEN
        return _SEEN & pl.col("value").is_not_null() & ~pl.col("alerted").fill_null(False)

    def _count(self, rows: pl.DataFrame) -> None:
        labelled = pl.col("value").is_not_null()
        unknown = pl.lit(self._recipe.silence == "unknown")
        found = rows.select(
            blocked=(~_SEEN).sum(),
            blocked_labelled=(~_SEEN & labelled).sum(),
            unreachable=(pl.col("odds") <= 0).sum(),
            unlabelled=(_SEEN & ~labelled & unknown).sum(),
            selected=(_SEEN & labelled & unknown & pl.col("alerted")).sum(),
        )
        for name, count in found.row(0, named=True).items():
            setattr(self._counts, name, getattr(self._counts, name) + count)
        if odd := rows.filter(_SEEN, pl.col("odds") <= 0)["event_id"].head(1).to_list():
            raise DataError(
                f"Event {odd[0]!r:.200} was let through, which the route of its time could not do: the training store's "
                "predictions and routes do not fit each other."
            )

    def _outcome(self) -> list[pl.Expr]:
        """The outcome, where nobody spoke of the event too, and the weight."""
        maturity = dt.timedelta(hours=self._recipe.maturity_hours)
        by_day = pl.format("{} {}", "day", "entity")
        return [
            pl.col("value").fill_null(0),
            pl.col("label_origin").fill_null(SILENCE),
            pl.col("label_known_at").fill_null(pl.col("event_time") + maturity),
            (1.0 / pl.col("odds")).alias("weight"),
            # What was drawn at once: an arm for an entity, the bypass for its day too.
            pl.when("experiment").then("entity").otherwise(by_day).alias("unit"),
        ]

    def _in_columns(self, rows: pl.DataFrame, fields: pl.DataFrame) -> pl.DataFrame:
        before, behind = ([rows[name].alias(self._recipe.column(name)) for name in names] for names in (BEFORE, BEHIND))
        label = rows["value"].cast(pl.Int8).alias(self._recipe.label)
        if (positive := self._recipe.positive) is not None:  # as the file of whoever chose that name would say it
            label = label.cast(pl.String).replace_strict(
                {"1": positive, "0": f"not {positive}"}, return_dtype=pl.String
            )
        return pl.DataFrame([*before, *fields.get_columns(), label, *behind])

"""The tables as a training set reads them: what the training store holds that was known by a moment, and how much of it."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
from polars.exceptions import PanicException, PolarsError

from ecluse.contract.tables import LABELS, PREDICTIONS, REVISIONS, Table, events_table
from ecluse.contract.topics import Topics
from ecluse.errors import DataError, StoreError, cause
from ecluse.store.delta import TrainingStore
from retrain.manifests import Extent, Recipe

#: Where an event stands on its topic: rows are unique by it, and a set is ordered by it where times are the same.
PLACE = ("partition", "offset")
#: A column for ``<topic>/<partition>``.
_PLACE = "place"
#: About how many events are worked on at once; those of one second stay together.
SLICE_ROWS = 200_000


@dataclass(frozen=True)
class Slice:
    """Events from one time (included) to another (excluded)."""

    start: dt.datetime
    end: dt.datetime


class Known:
    """The tables of a store as they are now, by what a recipe lets in: known by its moment, of offsets below its ends.

    Args:
        store: the training store.
        recipe: where it says nothing of what is read, all that is there is.

    Raises:
        StoreError: the store cannot be read.
    """

    def __init__(self, store: TrainingStore, recipe: Recipe) -> None:
        self._url, self._recipe = store.url, recipe
        names = Topics(recipe.prefix)
        tables = [
            (events_table(recipe.fields), pl.lit(names.events)),
            (PREDICTIONS, pl.lit(names.predictions)),
            (LABELS, pl.format("{}labels.{}", pl.lit(recipe.prefix), pl.col("origin"))),
        ]
        #: How far each topic is read. Asked before the tables: these may have come further by then, and that is left out.
        self.ends: Mapping[str, int] = {place: extent.end for place, extent in recipe.read.items()} or _ends(
            store, [table for table, _ in tables]
        )
        self._tables = {table.name: self._within(store.scan(table), topic) for table, topic in tables}
        #: Every route and release that was ever written, by its revision: they tell the odds of events, not their outcome.
        self.revisions = self.collect(store.scan(REVISIONS))
        #: Of a table, the days of its files with the times of events in them.
        self._days: dict[str, pl.DataFrame] = {}

    def events(self, within: Slice | None = None) -> pl.LazyFrame:
        """The events that workers could read; with duplicates."""
        events = self._tables["events"] if within is None else self._between("events", within)
        return events.filter("readable")

    def predictions(self, within: Slice) -> pl.LazyFrame:
        """What was decided about them; at least once."""
        return self._between("predictions", within).filter(pl.col("source_offset").is_not_null())

    def labels(self) -> pl.LazyFrame:
        """What was said of events, corrections included."""
        return self._tables["labels"]

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Read rows into memory.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            return frame.collect(engine="streaming")
        except (PolarsError, PanicException, OSError) as error:  # a truncated file makes Polars panic
            raise StoreError(self._url, f"it cannot be read: {cause(error)}.") from error

    def extents(self) -> dict[str, Extent]:
        """How far each topic is read, and how many rows there are of it."""
        counted: dict[str, int] = {}
        for frame in self._tables.values():
            counted |= dict(self.collect(frame.group_by(_PLACE).len()).iter_rows())
        return {place: Extent(end, counted.get(place, 0)) for place, end in sorted(self.ends.items())}

    def unreadable(self) -> int:
        """How many events no worker could read."""
        return int(self.collect(self._tables["events"].filter(~pl.col("readable")).select(pl.len())).item())

    def doubled(self) -> pl.DataFrame:
        """The places of events that a producer sent again under the same id: `partition` and `offset` of all but the lowest."""
        ids = self.events().select("event_id", *PLACE, id_hash=pl.col("event_id").hash())
        # Hashes first, for they are small; then the ids themselves, of the few whose hash came again.
        again = self.collect(ids.group_by("id_hash").len().filter(pl.col("len") > 1).select("id_hash"))
        suspects = self.collect(ids.join(again.lazy(), on="id_hash", how="semi"))
        ordered = suspects.sort(PLACE)
        return ordered.filter(~pl.col("event_id").is_first_distinct()).select(PLACE)

    def seconds(self, doubled: pl.DataFrame) -> pl.DataFrame:
        """How many events there are of each second, without the doubled ones: `second`, `outside` the window, `immature`, and
        `len`; in time order. A second that lies on a limit has a row on either side."""
        recipe, time = self._recipe, pl.col("event_time")
        outside = pl.lit(False) if recipe.since is None else time < recipe.since
        single = self.events().join(doubled.lazy(), on=PLACE, how="anti")
        return self.collect(
            single.select(
                second=time.dt.truncate("1s"),
                outside=(outside | time.is_null()).fill_null(True),
                immature=(time > recipe.mature_by).fill_null(True),
            )
            .group_by("second", "outside", "immature")
            .len()
            .sort("second")
        )

    def slices(self, seconds: pl.DataFrame) -> list[Slice]:
        """The window in stretches of whole seconds, about `SLICE_ROWS` events each. They depend on the events alone."""
        counted = seconds.filter(~pl.col("outside"), ~pl.col("immature")).group_by("second", maintain_order=True).sum()
        stretches = (
            counted.with_columns(number=(pl.col("len").cum_sum() - pl.col("len")) // SLICE_ROWS)
            .group_by("number", maintain_order=True)
            .agg(start=pl.col("second").first(), end=pl.col("second").last() + pl.duration(seconds=1))
        )
        # The first and the last second may be there in part.
        least = self._recipe.since or dt.datetime.min.replace(tzinfo=dt.UTC)
        beyond = self._recipe.mature_by + dt.timedelta(microseconds=1)
        found = stretches.select("start", "end").iter_rows()
        return [Slice(max(start, least), min(end, beyond)) for start, end in found]

    def _between(self, table: str, within: Slice) -> pl.LazyFrame:
        """Rows by the time of their event. Files of days that hold no such times are passed over."""
        rows, time = self._tables[table], pl.col("event_time")
        if table not in self._days:
            self._days[table] = self.collect(rows.group_by("day").agg(first=time.min(), last=time.max()))
        days = self._days[table].filter(pl.col("first") < within.end, pl.col("last") >= within.start)["day"]
        return rows.filter(pl.col("day").is_in(days.to_list()), time >= within.start, time < within.end)

    def _within(self, frame: pl.LazyFrame, topic: pl.Expr) -> pl.LazyFrame:
        placed = frame.with_columns(pl.format("{}/{}", topic, pl.col("partition")).alias(_PLACE))
        end = pl.col(_PLACE).replace_strict(self.ends, default=None, return_dtype=pl.Int64) if self.ends else pl.lit(-1)
        return placed.filter(pl.col("known_at") <= self._recipe.as_of, pl.col("offset") < end)


def require_all(wanted: Mapping[str, Extent], there: Mapping[str, Extent]) -> None:
    """Hold what is there against what a set was built from.

    Raises:
        DataError: rows are gone, or came; it names of which topics.
    """
    changed = {
        place: extent.rows - there[place].rows for place, extent in wanted.items() if extent.rows != there[place].rows
    }
    if changed:
        told = "; ".join(
            f"{count:,} rows of {place} are gone" if count > 0 else f"{place} has {-count:,} rows more"
            for place, count in changed.items()
        )
        raise DataError(
            f"The set cannot be built again: the training store is not what it was built from ({told}). Rows go by "
            "`ecluse store forget`; a set that was kept as a file is the only one there is then."
        )


def _ends(store: TrainingStore, tables: list[Table]) -> dict[str, int]:
    return {place: end for table in tables for place, end in store.offsets(table).items() if "/" in place}

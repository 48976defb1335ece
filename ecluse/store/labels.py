"""What the labels of an event come to, where they were corrected, taken back, or contradict each other.

Within an origin the label that became known last holds; one whose value is null takes back what the origin said, and then the
next origin speaks. Between origins the first of `labels.origins` holds. Labels of origins that are not configured do not count.
"""

import datetime as dt
from collections.abc import Sequence

import polars as pl

_SAID = ("value", "known_at", "confidence", "alerted")


def resolved(labels: pl.LazyFrame, origins: Sequence[str], known_by: dt.datetime | None = None) -> pl.LazyFrame:
    """One row for each event that has a label: the one that holds.

    Args:
        labels: rows of the table `labels` (`ecluse.contract.tables.LABELS`).
        origins: by rank, the most trusted first: `labels.origins`.
        known_by: labels that became known later do not count; all count where None. Without a zone it is UTC.

    Returns:
        `event_id`, `value` (0 or 1), `origin`, `known_at`, `confidence`, and `alerted`: whether alerts alone led to it, for no
        origin speaks of the event without one; in no order.
    """
    held = by_origin(labels, origins, known_by)
    return held.group_by("event_id").agg(
        pl.col("value", "origin", "known_at", "confidence").min_by(rank(origins)), pl.col("alerted").all()
    )


def by_origin(labels: pl.LazyFrame, origins: Sequence[str], known_by: dt.datetime | None = None) -> pl.LazyFrame:
    """One row for each event and origin that has a label for it, which it did not take back; arguments as of `resolved`.

    Returns:
        `event_id`, `origin`, the `value`, `known_at`, `confidence` and `alerted` of its last label, and `first_known_at`: when
        it first had one, corrections aside.
    """
    if known_by is not None:
        limit = known_by if known_by.tzinfo else known_by.replace(tzinfo=dt.UTC)
        labels = labels.filter(pl.col("known_at") <= limit)
    # Labels of one event have one key and so one partition, where the offset is the order of arrival.
    arrival = pl.struct("known_at", "partition", "offset")
    return (
        labels.filter(pl.col("origin").is_in(list(origins)))
        .group_by("event_id", "origin")
        .agg(
            pl.col(*_SAID).max_by(arrival),
            first_known_at=pl.col("known_at").filter(pl.col("value").is_not_null()).min(),
        )
        .filter(pl.col("value").is_not_null())
    )


def rank(origins: Sequence[str]) -> pl.Expr:
    """The place of a row's `origin` among `origins`, from 0: the lowest holds."""
    return pl.col("origin").replace_strict(
        {origin: place for place, origin in enumerate(origins)}, return_dtype=pl.Int32
    )

"""Coverage: of the events of each day, how many have a label, how late it came, and how many can still come.

A *cohort* is the events of one day (UTC) by their own time, as the table `predictions` holds them: one row an event that was
decided. What can still come is told by the mature events, whose labels have all had their time: S(t) is the share of them that
had no label yet at the age t. An event without a label at the age a then gets one, before it is mature at M, with probability
(S(a) - S(M)) / S(a); the sum over a cohort's open events is what it still expects. (Without censoring, which mature events
do not have, that is the Kaplan-Meier estimate.) Ages are told apart to a 720th of the maturity.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PanicException, PolarsError

from ecluse.contract.records import BYPASS, Decision
from ecluse.contract.tables import LABELS, PREDICTIONS
from ecluse.errors import StoreError, cause
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.labels import by_origin, rank

#: Days that are shown where nothing else is asked for: at the usual maturity, half of them are mature.
DAYS = 60
_SLOTS = 720
#: Labels that are resolved at a time: some 200 MB.
_PART_LABELS = 500_000
_DAY = dt.timedelta(days=1)
_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Delays:
    """How late the labels of one origin came: seconds from the event to the origin's first label, corrections aside.

    `late` of the `labels` came after maturity, when silence had spoken already.
    """

    labels: int
    late: int
    median: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Group:
    """Events of one kind in a cohort. ``events = labelled + open + silent + unknown``.

    `labelled` have a label, `positives` of them one of 1. The rest is not mature yet (`open`), of which `expected` will get
    a label still; or it counts as negative by silence (`silent`); or nothing is known of it (`unknown`). Without mature events
    nobody knows what to expect: null. Nor is it said of blocked events, which nobody disputes.
    """

    events: int
    labelled: int
    positives: int
    open: int
    expected: float | None
    silent: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Cohort:
    """The events of a day (UTC). `bypassed` is part of `let_through`; `blocked` events never count by silence."""

    day: dt.date
    let_through: Group
    bypassed: Group
    blocked: Group
    origins: dict[str, Delays]


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the labels cover, as known at `as_of`. `origins` holds the delays of the labels of mature events; `ahead` counts the
    events whose own time lies after `as_of`, and which are in no cohort."""

    as_of: dt.datetime | None
    maturity_hours: float
    silence: str
    cohorts: tuple[Cohort, ...]
    origins: dict[str, Delays]
    ahead: int


def coverage(
    settings: Settings, store: TrainingStore, *, days: int = DAYS, as_of: dt.datetime | None = None
) -> Coverage:
    """Coverage of the newest `days` cohorts, from the store's tables; in memory that is bounded but for 16 bytes a label.

    Args:
        settings: its labels' origins, maturity and silence.
        store: where the tables are.
        days: how many days, that of `as_of` included.
        as_of: what became known later does not count; without a zone it is UTC. None is now, or, where the stream runs on its
            events' clock, when the newest event became known, but for those ahead of the moment at which they were scored by
            more than `monitor.max_ahead_hours`.

    Raises:
        StoreError: the tables cannot be read.
    """
    labels, maturity = settings.labels, dt.timedelta(hours=settings.labels.maturity_hours)
    try:
        now = _moment(settings, store, as_of)
        if now is None:
            return Coverage(None, labels.maturity_hours, labels.silence, (), {}, 0)
        # As many mature days as are shown tell of the delays.
        since = (now - maturity).replace(hour=0, minute=0, second=0, microsecond=0) - days * _DAY
        events = _events(store, now, since, maturity)
        # What was known a day before the first event is not about it; clocks may differ by less.
        known = store.scan(LABELS).filter(pl.col("day").is_between((since - _DAY).date(), now.date()))
        parts = _parts(events, known)
        counts = pl.concat(_counts(*part, labels.origins, now, maturity) for part in parts)
        delays = pl.concat(_delays(*part, labels.origins, now, maturity) for part in parts)
    except (PolarsError, PanicException, OSError) as error:  # a truncated file makes Polars panic
        raise StoreError(store.url, f"{cause(error)}.") from error
    expected = _expected(counts)
    ahead = int(counts.filter("ahead")["events"].sum())
    shown = now.date() - (days - 1) * _DAY
    by_day = counts.filter(~pl.col("ahead"), pl.col("cohort") >= shown).partition_by("cohort", as_dict=True)
    delays_by_day = delays.partition_by("cohort", as_dict=True)
    cohorts = tuple(
        _cohort(day, by_day[day,], delays_by_day.get((day,)), expected, silence=labels.silence == "negative")
        for (day,) in sorted(by_day)
    )
    mature = _delays_of(delays.filter("mature"))
    return Coverage(now, labels.maturity_hours, labels.silence, cohorts, mature, ahead)


def _moment(settings: Settings, store: TrainingStore, as_of: dt.datetime | None) -> dt.datetime | None:
    """The moment as of which things stand, in UTC; None where the stream's clock has not begun."""
    if as_of is not None:
        return as_of.astimezone(dt.UTC) if as_of.tzinfo else as_of.replace(tzinfo=dt.UTC)
    if settings.stream.clock == "arrival":
        return dt.datetime.now(dt.UTC)
    # One event of the far future would take the moment with it, and leave no event of before in sight.
    ahead = dt.timedelta(hours=settings.monitor.max_ahead_hours)
    there = store.scan(PREDICTIONS).filter(pl.col("known_at") <= pl.col("scored_at") + ahead)
    newest = there.select(pl.col("known_at").max()).collect(engine="streaming").item()
    return newest if isinstance(newest, dt.datetime) else None


def _events(store: TrainingStore, now: dt.datetime, since: dt.datetime, maturity: dt.timedelta) -> pl.LazyFrame:
    """The decided events from `since` on that were known at `now`."""
    time = pl.col("event_time")
    return (
        store.scan(PREDICTIONS)
        .filter(pl.col("day") <= now.date(), pl.col("known_at") <= now, time >= since)
        .select(
            "event_id",
            "event_time",
            cohort=time.dt.date(),
            ahead=time > now,
            mature=time <= now - maturity,
            blocked=pl.col("decision") == Decision.BLOCK.value,
            bypassed=pl.col("arm") == BYPASS,
        )
    )


def _parts(events: pl.LazyFrame, known: pl.LazyFrame) -> list[tuple[pl.LazyFrame, pl.LazyFrame]]:
    """Events and their labels by a hash of the id, so that one part's labels fit into memory, however many there are."""
    count = 1 + int(known.select(pl.len()).collect(engine="streaming").item()) // _PART_LABELS
    parts = [pl.col("event_id").hash() % count == part for part in range(count)]
    return [(events.filter(part), known.filter(part)) for part in parts] if count > 1 else [(events, known)]


def _counts(
    events: pl.LazyFrame, known: pl.LazyFrame, origins: Sequence[str], now: dt.datetime, maturity: dt.timedelta
) -> pl.DataFrame:
    """How many events of each cohort are of which kind; `slot` is the delay of a label, or the age of an event without one."""
    held = by_origin(known, origins, now).group_by("event_id")
    outcome = held.agg(pl.col("value").min_by(rank(origins)), pl.col("first_known_at").min())
    labelled = pl.col("value").is_not_null()
    waited = pl.when(labelled).then("first_known_at").otherwise(pl.lit(now)) - pl.col("event_time")
    slot = (waited.dt.total_microseconds() // max(1, maturity // dt.timedelta(microseconds=_SLOTS))).clip(0, _SLOTS)
    keys = ["cohort", "ahead", "mature", "blocked", "bypassed"]
    return (
        events.join(outcome, on="event_id", how="left")
        .group_by(*keys, labelled=labelled, slot=slot.cast(pl.Int32))
        .agg(events=pl.len(), positives=pl.col("value").sum())
        .collect(engine="streaming")
    )


def _delays(
    events: pl.LazyFrame, known: pl.LazyFrame, origins: Sequence[str], now: dt.datetime, maturity: dt.timedelta
) -> pl.DataFrame:
    """Of each label, whatever its rank: `cohort`, `mature`, `origin`, `delay` in seconds, and whether it came `late`."""
    waited = pl.col("first_known_at") - pl.col("event_time")
    return (
        by_origin(known, origins, now)
        .select("event_id", pl.col("origin").cast(pl.Enum(origins)), "first_known_at")
        .join(events.filter(~pl.col("ahead")), on="event_id")
        .select("cohort", "mature", "origin", delay=waited.dt.total_microseconds() / 1e6, late=waited > maturity)
        .collect(engine="streaming")
    )


def _delays_of(delays: pl.DataFrame) -> dict[str, Delays]:
    """The delays of each origin that has labels, in the order of rank."""
    delay = pl.col("delay")
    summary = delays.group_by("origin").agg(
        labels=pl.len(),
        late=pl.col("late").sum(),
        **{name: delay.quantile(q, interpolation="linear").round(3) for name, q in _QUANTILES.items()},
    )
    return {row.pop("origin"): Delays(**row) for row in summary.sort("origin").to_dicts()}


def _expected(counts: pl.DataFrame) -> NDArray[np.float64] | None:
    """For each slot of age, with what probability an event without a label still gets one; shape (_SLOTS + 1,)."""
    mature = counts.filter("mature", ~pl.col("blocked"), ~pl.col("ahead"))
    events = int(mature["events"].sum())
    if not events:
        return None
    came = mature.filter(pl.col("labelled"), pl.col("slot") < _SLOTS)
    arrivals = np.bincount(came["slot"].to_numpy(), weights=came["events"].to_numpy(), minlength=_SLOTS)
    without = 1 - np.concatenate(([0.0], np.cumsum(arrivals))) / events  # S at the beginning of each slot, and at M
    odds: NDArray[np.float64] = np.divide(without - without[-1], without, out=np.zeros(_SLOTS + 1), where=without > 0)
    return odds


def _cohort(
    day: dt.date,
    counts: pl.DataFrame,
    delays: pl.DataFrame | None,
    expected: NDArray[np.float64] | None,
    *,
    silence: bool,
) -> Cohort:
    blocked = pl.col("blocked")
    return Cohort(
        day,
        let_through=_group(counts.filter(~blocked), expected, silence=silence),
        bypassed=_group(counts.filter(~blocked, pl.col("bypassed")), expected, silence=silence),
        blocked=_group(counts.filter(blocked), None, silence=False),
        origins={} if delays is None else _delays_of(delays),
    )


def _group(counts: pl.DataFrame, expected: NDArray[np.float64] | None, *, silence: bool) -> Group:
    still_open = counts.filter(~pl.col("labelled"), ~pl.col("mature"))
    silent = int(counts.filter(~pl.col("labelled"), pl.col("mature"))["events"].sum())
    coming = None
    if expected is not None:
        coming = round(float(expected[still_open["slot"].to_numpy()] @ still_open["events"].to_numpy()), 1)
    return Group(
        events=int(counts["events"].sum()),
        labelled=int(counts.filter("labelled")["events"].sum()),
        positives=int(counts["positives"].sum()),
        open=int(still_open["events"].sum()),
        expected=coming,
        silent=silent if silence else 0,
        unknown=0 if silence else silent,
    )

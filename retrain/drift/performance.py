"""How well a version does, by the outcomes that have matured: precision, recall, average precision and calibration.

The rows are the events that a version decided itself, and those that went past the model while a route named the version. An
event x is among them with the odds

    pi(x) = b(x) + (1 - b(x)) * sum over the version's arms of share(arm) * [the version does not block x there],

where b(x) are those of the bypass (see `retrain.weights`), and 1/pi is its weight: sums over the rows speak for all events of
the time in which routes named the version, those of other arms included. Only what went past is scored again. Blocked events
with b(x) = 0 are seen never, and no row speaks for them: how many there are is told with the estimates.
"""

import datetime as dt
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse.contract.loop import Level, Statistic
from ecluse.contract.records import BYPASS, Arm, Decision, Moment, Route, Version
from ecluse.contract.tables import LABELS, PREDICTIONS, REVISIONS, Table, column_of, events_table
from ecluse.errors import DataError
from ecluse.loop_sections import Falling, MonitorSettings, Rising
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.labels import resolved
from retrain.drift.judge import judged
from retrain.estimates import Estimate, average_precision, calibration, precision, recall
from retrain.known import PLACE
from retrain.rescoring import Rescorer
from retrain.weights import Flags, Numbers, arm_shares, bypass_odds, seen_odds

logger = logging.getLogger(__name__)

#: With a larger share that no row speaks for, a number is left out: of the alerts, for precision; of the positives that the
#: scores say, for the others. What blocks hide are mostly positives that were found: without them recall and average precision
#: are lower than they are, while the other two remain true of what could be seen.
_UNSEEN = {"precision": 0.5, "recall": 0.1, "average_precision": 0.1, "calibration": 0.5}

#: Of more events than so many, a share of the entities is read, with all their events: memory does not grow with the stream.
MAX_EVENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Matured:
    """Rows whose outcome was seen: five arrays of shape (n,).

    `weights` are 1/pi, `units` what was drawn as one. `unseen_alerts` is the share of the alerts that no row speaks for,
    `unseen_expected` that of the positives that the scores say.
    """

    positive: Flags
    alerted: Flags
    scores: Numbers
    weights: Numbers
    units: NDArray[np.generic]
    unseen_alerts: float = 0.0
    unseen_expected: float = 0.0


def estimates(rows: Matured) -> dict[str, Estimate]:
    """The four numbers, by the names of their statistics."""
    alerts = (rows.positive, rows.alerted, rows.weights, rows.units)
    ranking = (rows.positive, rows.scores, rows.weights, rows.units)
    return {
        "precision": precision(*alerts),
        "recall": recall(*alerts),
        "average_precision": average_precision(*ranking),
        "calibration": calibration(*ranking),
    }


def outcomes(
    settings: Settings, version: Version, since: Moment, until: Moment, as_of: Moment
) -> tuple[Statistic, ...]:
    """What the outcomes of a version come to, with the levels that `settings.monitor` sets.

    A number whose thresholds are not set is told without them. One is left out, and the log says why, if no row speaks of it or
    too few do.

    Args:
        settings: the stream's; its training store is read.
        version: of the model `settings.model_name`.
        since: the time of the earliest event that counts.
        until: that of the latest; immature ones do not count, whatever it says.
        as_of: what became known later does not count.

    Raises:
        StoreError: the training store cannot be read.
        DataError, ModelError: what went past the model cannot be scored again (see `retrain.rescoring`).
    """
    rows = matured(settings, version, since, until, as_of)
    if rows is None:
        logger.info("Version %d has no event whose outcome has matured: its performance is not told.", version)
        return ()
    found, told = estimates(rows), []
    for name, estimate in found.items():
        share = rows.unseen_alerts if name == "precision" else rows.unseen_expected
        what = "alerts" if name == "precision" else "expected positives"
        if share > _UNSEEN[name]:
            why = f"{share:.0%} of its {what} were blocked, and none of their kind may go past the model"
        elif estimate.low is None:
            why = estimate.note
        else:
            told.append(_judged(name, estimate, settings.monitor))
            continue
        logger.warning("Version %d: %s is left out: %s.", version, name.replace("_", " "), why)
    return tuple(told)


def has_stored(settings: Settings, since: Moment, until: Moment) -> bool:
    """Whether the training store has come so far as to hold a prediction that became known in this time. One that has not may
    lack labels, and where silence means negative they would count.

    Raises:
        StoreError: the training store cannot be read.
    """
    store, first, last = TrainingStore(settings), _clock(since), _clock(until)
    with store.reading(PREDICTIONS):
        rows = store.scan(PREDICTIONS).filter(
            pl.col("day").is_between(first.date(), last.date()), pl.col("known_at").is_between(first, last)
        )
        return bool(rows.select("known_at").head(1).collect(engine="streaming").height)


def matured(settings: Settings, version: Version, since: Moment, until: Moment, as_of: Moment) -> Matured | None:
    """The rows of a version; arguments and errors as of `outcomes`. None: there are none."""
    known_by = _clock(as_of)
    last = min(_clock(until), known_by - dt.timedelta(hours=settings.labels.maturity_hours))
    reader = _Reader(settings, _clock(since), last, known_by)
    rescorer = Rescorer(settings, reader.revisions())
    rows = reader.scored(reader.decided(rescorer, version), rescorer, version)
    if not rows.height:
        return None
    routes = rows.partition_by("route_revision", maintain_order=True, as_dict=True).items()
    parts = [
        _by_route(rescorer.route(revision, part.height), settings.model_name, version, part)
        for (revision,), part in routes
    ]
    return _seen(pl.concat(parts), settings.labels.silence)


class _Reader:
    """The tables of a store, by the time of events (both ends included) and the moment by which it was known."""

    def __init__(self, settings: Settings, since: dt.datetime, until: dt.datetime, known_by: dt.datetime) -> None:
        self._settings, self._store, self._known_by = settings, TrainingStore(settings), known_by
        self._during = pl.col("event_time").is_between(since, until)
        # Nothing is known before it happened, but for clocks that go ahead: files of earlier days are passed over.
        earliest = since - dt.timedelta(hours=settings.monitor.max_ahead_hours)
        self._days = pl.col("day").is_between(earliest.date(), known_by.date())

    def revisions(self) -> pl.DataFrame:
        """All of the models topic: the odds of an event are told by its route."""
        return self._collect(REVISIONS, self._store.scan(REVISIONS))

    def decided(self, rescorer: Rescorer, version: Version) -> pl.DataFrame:
        """What the version decided, and what went past the model while a route named it, with what the labels say of it."""
        name = self._settings.model_name
        naming = [revision for revision, route in rescorer.routes.items() if _arms(route, name, version)]
        others = [revision for revision, route in rescorer.routes.items() if route.name != name]
        rows = self._known(PREDICTIONS).filter(self._during, pl.col("source_offset").is_not_null())
        events = int(self._collect(PREDICTIONS, rows.select(pl.len())).item())
        if (every := math.ceil(events / MAX_EVENTS)) > 1:
            rows = rows.filter(pl.col("entity").hash() % every == 0)
            logger.info(
                "Of %d events, those of one in %d entities are read: their outcomes stand for all.", events, every
            )
        labels = resolved(self._known(LABELS), self._settings.labels.origins, self._known_by)
        labelled = rows.join(labels.select("event_id", "value", "alerted"), on="event_id", how="left")
        found = self._collect(
            PREDICTIONS,
            labelled.select(
                *("day", "partition", "offset", "source_offset", "version", "arm", "propensity", "score"),
                *("route_revision", "value", "alerted"),
                past=pl.col("arm") == BYPASS,
                blocked=pl.col("decision") == Decision.BLOCK,
                event=pl.col("event_id").hash(),
                entity=pl.col("entity").hash(),
            ),
        )
        # Of what a crash doubled the first counts, and of what a producer sent again too.
        single = found.sort("partition", "offset").unique(["partition", "source_offset"], keep="first")
        first = single.sort("partition", "source_offset").unique("event", keep="first", maintain_order=True)
        ours, named = pl.col("version") == version, pl.col("route_revision").is_in(naming)
        kept = first.filter(ours | pl.col("past") & named, ~pl.col("route_revision").is_in(others))
        return kept.drop("offset", "event").rename({"source_offset": "offset"})

    def scored(self, decided: pl.DataFrame, rescorer: Rescorer, version: Version) -> pl.DataFrame:
        """The same with a score of the version for all, but for those that it fails on: these are left out."""
        past = decided.filter("past").drop("score")
        own = decided.filter(~pl.col("past"), pl.col("score").is_not_null())
        if not past.height:
            return own
        model = rescorer.model(self._settings.model_name, version)
        stored = self._settings.stored_fields
        needed = sorted({each.field for each in model.manifest.features}.intersection(stored))
        # Apart from our own columns, for a field may have any name.
        columns = {f"field {name}": pl.col(column_of(name)) for name in needed}
        table = events_table(stored)
        fields = self._known(table).filter(self._during).select(*PLACE, **columns)
        there = self._collect(table, fields.join(past.select(PLACE).lazy(), on=PLACE, how="semi").unique(PLACE))
        found = past.join(there, on=PLACE, how="inner", maintain_order="left")
        if lost := past.height - found.height:
            logger.warning("%d events that went past the model are not in the training store: left out.", lost)
        again = rescorer.again(model, found.select(pl.col(f"field {name}").alias(name) for name in needed))
        scored = found.select(past.columns).with_columns(score=again).filter(pl.col("score").is_not_nan())
        return pl.concat([own, scored.select(own.columns)])

    def _known(self, table: Table) -> pl.LazyFrame:
        return self._store.scan(table).filter(self._days, pl.col("known_at") <= self._known_by)

    def _collect(self, table: Table, frame: pl.LazyFrame) -> pl.DataFrame:
        with self._store.reading(table):
            return frame.collect(engine="streaming")


def _arms(route: Route, name: str, version: Version) -> Mapping[str, tuple[Arm, float]]:
    """The arms of a version, and their shares of what does not go past the model."""
    if route.name != name:
        return {}
    shares = arm_shares(route).tolist()
    return {arm.name: (arm, share) for arm, share in zip(route.arms, shares, strict=True) if arm.version == version}


def _by_route(route: Route, name: str, version: Version, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of one route with their `odds`, whether they `alert`, and their `unit`."""
    named = _arms(route, name, version)
    arms, shares = [arm for arm, _ in named.values()], np.array([share for _, share in named.values()])
    if unknown := set(rows["arm"].unique()) - {*named, BYPASS}:
        raise DataError(
            f"Events of version {version} are in the arm '{min(unknown)}', which their route does not give it."
        )
    share = rows["arm"].replace_strict([*named, BYPASS], [*shares, 1.0], return_dtype=pl.Float64).to_numpy()
    review = [arm.thresholds.review for arm in arms]
    threshold = rows["arm"].replace_strict([*named, BYPASS], [*review, review[0]], return_dtype=pl.Float64).to_numpy()
    scores = rows["score"].to_numpy()
    past = bypass_odds(rows["past"].to_numpy(), rows["propensity"].to_numpy(), share)
    blocks = scores[:, None] >= np.array([arm.thresholds.block for arm in arms])
    # An arm is drawn for an entity once, the bypass for its day.
    unit = pl.col("entity") if len(route.arms) > 1 else pl.struct("day", "entity").hash()
    return rows.with_columns(odds=seen_odds(past, shares, blocks), alert=scores >= threshold, unit=unit)


def _seen(rows: pl.DataFrame, silence: str) -> Matured | None:
    """The rows whose outcome is known, and what the others hide."""
    if rows.filter(~pl.col("blocked"), pl.col("odds") <= 0).height:
        raise DataError(
            "Events were let through which the route of their time could not do: the training store's predictions and routes "
            "do not fit each other."
        )
    own, labelled = rows.filter(~pl.col("past")), pl.col("value").is_not_null()
    # Where silence says nothing, labels that came because of an alert are no random sample.
    known = pl.lit(True) if silence == "negative" else labelled & ~pl.col("alerted").fill_null(False)
    seen = rows.filter(~pl.col("blocked"), known)
    if not seen.height:
        return None
    weight, hidden = 1.0 / own["propensity"].to_numpy(), own["odds"].to_numpy() <= 0
    return Matured(
        positive=(seen["value"].fill_null(0) == 1).to_numpy(),
        alerted=seen["alert"].to_numpy(),
        scores=seen["score"].to_numpy(),
        weights=1.0 / seen["odds"].to_numpy(),
        units=seen["unit"].to_numpy(),
        unseen_alerts=_share(weight * own["alert"].to_numpy(), hidden),
        unseen_expected=_share(weight * own["score"].to_numpy(), hidden),
    )


def _share(amounts: Numbers, among: Flags) -> float:
    total = float(amounts.sum())
    return float(amounts[among].sum()) / total if total else 0.0


def _judged(name: str, estimate: Estimate, settings: MonitorSettings) -> Statistic:
    """A number beside its thresholds: it has come as far as the whole of its interval has."""
    value, low, high = _known(estimate.value), _known(estimate.low), _known(estimate.high)
    if name == "calibration":
        value = furthest = max(low, 1.0 / high, 1.0)  # as `alerts` are told: as far as chance cannot explain it
    else:
        furthest = high
    limits: Falling | Rising | None = getattr(settings, name)
    if limits is None:
        return Statistic(name, value, None, None, Level.OK, None, low, high)
    return Statistic(name, value, limits.warn, limits.alarm, judged(name, furthest, limits).level, None, low, high)


def _known(number: float | None) -> float:
    assert number is not None, "an estimate without an interval is left out before"
    return number


def _clock(moment: Moment) -> dt.datetime:
    return dt.datetime.fromtimestamp(moment, dt.UTC)

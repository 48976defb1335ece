"""The training file as rows in time order with their truth, and the held-out slice: the latest in time, never shuffled."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse import tables
from ecluse.errors import DataError, ModelRefused, NothingToLearn
from ecluse.model.features import seconds_of
from ecluse.settings import Settings

#: The columns of a training set by which it is known, and of which a training takes the weight and the entity.
_OF_A_SET = ("weight", "entity", "unit", "label_origin")
_TRUTH = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


@dataclass(frozen=True)
class Rows:
    """Labelled rows in time order: the declared fields that the file has, the truth (0 or 1), and the times in seconds
    since 1970 (None without `stream.time_field`). `notes` says what was left out or assumed, a sentence each. `weights` are how
    many events each row stands for: 1 but in a training set. `entities` numbers whose the rows are, None where the file does
    not say; a row that lacks it is of nobody else's."""

    frame: pl.DataFrame
    labels: NDArray[np.int8]
    times: NDArray[np.float64] | None
    notes: tuple[str, ...]
    weights: NDArray[np.float64]
    entities: NDArray[np.int64] | None

    def part(self, part: slice) -> "Rows":
        """A stretch of the rows."""
        times = None if self.times is None else self.times[part]
        entities = None if self.entities is None else self.entities[part]
        return Rows(self.frame[part], self.labels[part], times, self.notes, self.weights[part], entities)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def span(self) -> tuple[str, str] | None:
        """The first and the last time, RFC 3339."""
        if self.times is None or np.isnan(self.times).all():
            return None
        first, last = float(np.nanmin(self.times)), float(np.nanmax(self.times))
        return _rfc3339(first), _rfc3339(last)


def read_rows(settings: Settings, file: Path, since: dt.datetime | None, until: dt.datetime | None) -> Rows:
    """Read a training file: rows from `since` (included) to `until` (excluded); times without a zone are UTC.

    Raises:
        DataError: the file cannot be read, lacks a column, or a limit is given where rows have no time.
        ModelRefused: the label is not a truth of two classes.
    """
    scanned = tables.scan(file, settings.stream.texts)
    present = tables.columns(scanned, file)
    label, time = settings.model.label, settings.stream.time_field
    if label not in present:
        raise DataError(f"{file} has no column '{label}', which model.label names.")
    weight, entity = _own_columns(settings, present)
    required = [name for name, field in settings.stream.fields.items() if field.required and name not in present]
    if required and weight is None:  # what a training set lacks did not reach the store
        raise DataError(f"{file} lacks the required fields {', '.join(required)} (stream.fields).")
    ours = [name for name in (weight, entity) if name]
    wanted = dict.fromkeys([*(name for name in settings.stream.fields if name in present), label, *ours])
    frame = tables.collect(scanned.select(list(wanted)), file)
    texts = [name for name in settings.stream.texts if name in present and not present[name].is_nested()]
    frame = frame.with_columns(tables.as_texts(frame[name]) for name in texts)

    times = seconds_of(frame[time]) if time in frame.columns else None
    if times is None and (since or until):
        raise DataError("A limit in time needs stream.time_field and its column in the file.")
    keep = np.ones(frame.height, dtype=bool)
    if times is not None:
        keep &= times >= epoch(since) if since else True
        keep &= times < epoch(until) if until else True
    notes = []
    labels = truth(frame[label].filter(pl.Series(keep)), settings.model.positive, label)
    if blanks := int((labels < 0).sum()):
        notes.append(f"{blanks:,} rows have no label and were left out.")
    kept = np.flatnonzero(keep)[labels >= 0]
    labels = labels[labels >= 0]
    if times is None:
        notes.append("There is no time_field: the rows are taken to be in time order as they stand.")
        order = np.arange(len(kept))
    else:
        # Rows without a time cannot be late: they come first, outside the held-out slice.
        order = np.argsort(np.nan_to_num(times[kept], nan=-np.inf), kind="stable")
        times = times[kept][order]
        if unknown := int(np.isnan(times).sum()):
            notes.append(f"{unknown:,} rows have no time and were put before all others.")
    frame = frame[kept[order]]
    weights = np.ones(len(order)) if weight is None else _weights(frame[weight], file)
    if weight is not None:
        notes.append(f"The rows are weighted: {len(order):,} of them stand for {weights.sum():,.0f} events.")
    entities = None if entity is None else _numbered(frame[entity])
    return Rows(frame, labels[order], times, tuple(notes), weights, entities)


def own_column(name: str, taken: Collection[str]) -> str:
    """A column of ours beside those of others: with an underscore behind it as long as one has its name."""
    while name in taken:
        name += "_"
    return name


def _own_columns(settings: Settings, present: Collection[str]) -> tuple[str | None, str | None]:
    """The columns of the weight and of whose a row is, None where the file does not say.

    A file with all columns by which a training set is known is one; any other's `weight` is none of ours.
    """
    taken = {*settings.stored_fields, settings.model.label}
    of_set = {name: own_column(name, taken) for name in _OF_A_SET}
    if set(of_set.values()) <= set(present):
        return of_set["weight"], of_set["entity"]
    key = settings.stream.key_field
    return None, key if key in present else None


def _weights(column: pl.Series, file: Path) -> NDArray[np.float64]:
    """The weights of a training set, shape (n,)."""
    weights = column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    if bad := int((~(np.isfinite(weights) & (weights > 0))).sum()):
        raise DataError(
            f"The column '{column.name}' of {file} holds no weight in {bad:,} rows: one is a number above 0."
        )
    return weights


def _numbered(names: pl.Series) -> NDArray[np.int64]:
    """A number for each name, shape (n,), and one of its own for each row without a name."""
    numbers = names.cast(pl.String).rank("dense").cast(pl.Int64)
    alone = int(numbers.max() or 0) + 1  # type: ignore[arg-type]
    return numbers.fill_null(pl.int_range(alone, alone + len(names), eager=True)).to_numpy()


def truth(column: pl.Series, positive: str | None, name: str) -> NDArray[np.int8]:
    """The truth, shape (n,): 1, 0, and -1 where the column is blank.

    Raises:
        ModelRefused: it is not one of two classes.
    """
    if column.dtype.is_float():
        column = column.fill_nan(None)
    texts = column.cast(pl.String).str.strip_chars().replace("", None)
    values = texts.drop_nulls().unique().sort().to_list()
    shown = ", ".join(f"'{value}'" for value in values[:5]) + ("…" if len(values) > 5 else "")
    if positive is not None:
        codes = {value: int(value in (positive, f"{positive}.0")) for value in values}
        if 1 not in codes.values():
            raise ModelRefused(f"No label in '{name}' is '{positive}' (model.positive); there are {shown or 'none'}.")
    else:
        codes = {value: _TRUTH.get(value.lower(), -1) for value in values}
        if len(values) > 2 and -1 in codes.values():
            raise ModelRefused(
                f"The label '{name}' has {len(values)} classes ({shown}). Écluse scores the probability of one: "
                "set model.positive to the class that should raise alerts; all others then count as 0."
            )
        if -1 in codes.values():
            raise ModelRefused(
                f"The label '{name}' is neither 0/1 nor true/false ({shown}): set model.positive to the one that means 1."
            )
    if len(set(codes.values())) < 2:
        raise NothingToLearn(
            f"The label '{name}' has one class only ({shown or 'it is blank throughout'}): nothing can be learnt from it."
        )
    known = texts.replace_strict(codes, default=-1, return_dtype=pl.Int8)
    return known.fill_null(-1).to_numpy().astype(np.int8)


def hold_out(rows: Rows, share: float, since: dt.datetime | None) -> tuple[Rows, Rows]:
    """Split into the rows to train on and the latest, held-out ones: a share, or all from `since` on (UTC without a zone).

    Raises:
        DataError: `since` is given and the rows have no time.
        ModelRefused: one of the parts lacks a class.
    """
    if since is not None:
        if rows.times is None:
            raise DataError("--holdout-since needs stream.time_field and its column in the file.")
        cut = int((~(rows.times >= epoch(since))).sum())
    else:
        cut = len(rows) - int(np.ceil(len(rows) * share))
        if rows.times is not None and 0 < cut < len(rows):
            # Rows of one moment stay together, so that the slice is truly later.
            cut = int((~(rows.times >= rows.times[cut])).sum()) or cut
    parts = rows.part(slice(cut)), rows.part(slice(cut, None))
    for part, what in zip(parts, ("rows to train on", "held-out rows"), strict=True):
        positives = int(part.labels.sum())
        if positives in (0, len(part)):
            raise NothingToLearn(
                f"The {len(part):,} {what} hold {positives:,} positive labels; each part needs both classes. "
                "Give more rows, or another model.holdout or --holdout-since."
            )
    return parts


def epoch(moment: dt.datetime) -> float:
    """Seconds since 1970; a moment without a zone is UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def _rfc3339(moment: float) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat().replace("+00:00", "Z")

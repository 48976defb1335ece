"""Features: data in the manifest, computed by the same code in training and in scoring.

Everything ends as float32, because ONNX computes in float32; training sees the same values.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from ecluse.contract.schema import NUMERIC, Event, EventSchema, FieldType, seconds
from ecluse.errors import DataError, ModelRefused

Transform = Literal["number", "log1p", "hour", "weekday", "category"]
Column = NDArray[np.float64] | list[Any]

_TAKES: dict[Transform, frozenset[FieldType]] = {
    "number": NUMERIC,
    "log1p": NUMERIC,
    "hour": frozenset({FieldType.TIME}),
    "weekday": frozenset({FieldType.TIME}),
    "category": frozenset({FieldType.TEXT}),
}
_LARGEST = float(np.finfo(np.float32).max)
_THURSDAY = 3  # 1970-01-01, where Monday is 0


class Feature(msgspec.Struct, frozen=True):
    """One input of the model: `transform` of the event's `field`.

    number: as it is (true is 1). log1p: sign(x) * log(1 + |x|). hour: 0 to 23, UTC. weekday: 0 (Monday) to 6, UTC.
    category: the text's position in `categories` (most frequent first), any other text ``len(categories)``.
    `missing` is the feature's value where the event has none; None: NaN, with which the model deals.
    """

    name: str
    field: str
    transform: Transform
    categories: tuple[str, ...] = ()
    missing: float | None = None


class FeatureSet:
    """The inputs of a model, in the order in which it gets them.

    Raises:
        ModelRefused: a feature needs a field that the stream does not declare, or one of a type that its transform cannot
            take, or two features share a name.
    """

    def __init__(self, features: Sequence[Feature], schema: EventSchema) -> None:
        self.features = tuple(features)
        self.names = tuple(feature.name for feature in self.features)
        _refuse_unfit(self.features, schema)
        plain = [i for i, feature in enumerate(self.features) if feature.transform in ("number", "log1p")]
        #: Position among the features, by kind: those that are a number already, and those made from a list of values.
        self._numbers = plain
        self._others = [i for i in range(len(self.features)) if i not in set(plain)]
        self._get_numbers = schema.getter(*(self.features[i].field for i in plain)) if plain else None
        self._get = {i: schema.getter(self.features[i].field) for i in self._others}
        self._transforms = [_transform(feature) for feature in self.features]

    def matrix(self, events: Sequence[Event]) -> NDArray[np.float32]:
        """The features of events that `EventSchema` decoded, shape (events, features).

        Raises:
            OverflowError: a whole number is larger than any float.
        """
        numbers = np.empty((len(events), len(self._numbers)))
        if self._get_numbers is not None:
            # None becomes NaN, true becomes 1.
            rows = np.array(list(map(self._get_numbers, events)), dtype=np.float64)
            numbers = rows.reshape(numbers.shape)
        others: dict[int, Column] = {}
        for i, get in self._get.items():
            values = list(map(get, events))
            others[i] = values if self.features[i].transform == "category" else _seconds(values)
        return self._assemble(numbers, others)

    def matrix_of_frame(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        """The features of a file's rows, shape (rows, features): what `matrix` gives for the events made of them.

        Raises:
            DataError: a column is missing or holds what the field's type cannot.
        """
        numbers = np.empty((frame.height, len(self._numbers)))
        for position, i in enumerate(self._numbers):
            numbers[:, position] = _floats(frame, self.features[i].field)
        others: dict[int, Column] = {}
        for i in self._others:
            feature = self.features[i]
            text = feature.transform == "category"
            others[i] = _strings(frame, feature.field) if text else seconds_of(_column(frame, feature.field))
        return self._assemble(numbers, others)

    def _assemble(self, numbers: NDArray[np.float64], others: Mapping[int, Column]) -> NDArray[np.float32]:
        if self._others:
            table = np.empty((len(numbers), len(self.features)))
            table[:, self._numbers] = numbers
        else:
            table = numbers
        for i, transform in enumerate(self._transforms):
            if transform is not None:
                # Contiguous, so that numpy takes the same code path for every caller and equal inputs give equal bits.
                table[:, i] = transform(others[i] if i in others else np.ascontiguousarray(table[:, i]))
        # What float32 cannot hold takes its largest value rather than infinity.
        return np.clip(table, -_LARGEST, _LARGEST).astype(np.float32)


def _refuse_unfit(features: Sequence[Feature], schema: EventSchema) -> None:
    problems = []
    for feature in features:
        field = schema.fields.get(feature.field)
        if field is None:
            problems.append(f"'{feature.name}' needs the field '{feature.field}', which the stream does not declare")
        elif field.type not in _TAKES[feature.transform]:
            problems.append(
                f"'{feature.name}' takes {feature.transform} of '{feature.field}', whose type is {field.type}"
            )
    names = [feature.name for feature in features]
    problems += [f"two features are called '{name}'" for name in sorted({n for n in names if names.count(n) > 1})]
    if not features:
        problems.append("a model needs at least one")
    if problems:
        raise ModelRefused(f"The model's features do not fit the stream: {'; '.join(problems)}.")


def _transform(feature: Feature) -> Callable[[Column], NDArray[np.float64]] | None:
    """The function that turns a column of inputs into the feature; None where there is nothing to do."""
    if feature.transform == "number" and feature.missing is None:
        return None
    codes = {category: float(code) for code, category in enumerate(feature.categories)}
    other = float(len(codes))

    def column(values: Column) -> NDArray[np.float64]:
        match feature.transform:
            case "number":
                result = np.array(values, dtype=np.float64)
            case "log1p":
                result = np.sign(values) * np.log1p(np.abs(values))
            case "hour":
                result = np.floor(_finite(values) / 3600) % 24
            case "weekday":
                result = (np.floor(_finite(values) / 86400) + _THURSDAY) % 7
            case "category":
                result = np.array([np.nan if v is None else codes.get(v, other) for v in values], dtype=np.float64)
        if feature.missing is not None:
            result[np.isnan(result)] = feature.missing
        return result

    return column


def _finite(values: Column) -> NDArray[np.float64]:
    """Times without those that are none: an infinite one has no hour."""
    times = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(times), times, np.nan)


def _column(frame: pl.DataFrame, field: str) -> pl.Series:
    if field not in frame.columns:
        raise DataError(f"The rows have no column '{field}', which a feature of the model needs.")
    return frame[field]


def _floats(frame: pl.DataFrame, field: str) -> NDArray[np.float64]:
    column = _column(frame, field)
    try:
        # Null becomes NaN, true becomes 1. No event carries infinity: its place is blank there, so it is here.
        numbers = column.cast(pl.Float64).to_numpy()
        return np.where(np.isfinite(numbers), numbers, np.nan)
    except PolarsError as error:
        raise DataError(f"The column '{field}' holds {column.dtype}, which is not a number.") from error


def _strings(frame: pl.DataFrame, field: str) -> list[str | None]:
    return _column(frame, field).cast(pl.String).to_list()


def seconds_of(column: pl.Series) -> NDArray[np.float64]:
    """A column of times as seconds since 1970-01-01 UTC, missing ones NaN, shape (n,).

    Takes what an event's `time` field takes: times and dates, RFC 3339 texts, seconds or milliseconds since 1970.

    Raises:
        DataError: a value is no time.
    """
    if column.dtype in (pl.Date, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64).to_numpy() / 1e6
    try:
        values = msgspec.convert(column.to_list(), list[dt.datetime | float | int | None])
    except msgspec.ValidationError as error:
        raise DataError(f"The column '{column.name}' holds what is no time: {error}.") from error
    return _seconds(values)


def _seconds(values: Sequence[dt.datetime | float | None]) -> NDArray[np.float64]:
    return np.array([seconds(value) for value in values], dtype=np.float64)

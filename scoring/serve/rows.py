"""What a request asks to be scored: raw events, rows of features, or features by their names.

A request is decoded before it waits; its features are computed when its batch knows the champion that scores it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecluse.bisect import by_halves
from ecluse.contract.schema import Event, EventSchema
from ecluse.errors import RecordError, RequestRefused
from ecluse.events import FiniteNumbers
from scoring.champion import Champion
from scoring.serve.protocol import InferRequest, numbers, tensors, texts

#: The two inputs with names of their own; any other is a feature.
EVENTS, FEATURES = "events", "features"
#: More inputs, or values in a row, no model takes: what is refused shall cost the event loop little.
MOST_FEATURES = 1_000
_LARGEST = float(np.finfo(np.float32).max)
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Events:
    """Events that the stream's schema decoded."""

    events: Sequence[Event]

    def __len__(self) -> int:
        return len(self.events)

    def matrix(self, champion: Champion) -> Matrix:
        """The champion's features of each, shape (events, features), by the code of training and of the stream.

        Raises:
            RequestRefused: those of an event cannot be computed.
        """
        blocks, errors = by_halves(champion.model.features.matrix, self.events)
        for row, error in errors.items():
            raise RequestRefused(f"Row {row}: its features cannot be computed ({type(error).__name__}).") from error
        return np.concatenate(blocks)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Rows of features in the champion's order, shape (rows, features); NaN where one is missing."""

    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    def matrix(self, champion: Champion) -> Matrix:
        """The rows as the model takes them. What is missing is filled as it is in events.

        Raises:
            RequestRefused: there are too many or too few features for this champion.
        """
        features = champion.model.features.features
        if self.values.shape[1] != len(features):
            raise RequestRefused(
                f"Input '{FEATURES}' has {self.values.shape[1]} features, and version {champion.version} takes "
                f"{len(features)}: {', '.join(feature.name for feature in features)}."
            )
        values = self.values
        missing = np.isnan(values)
        if missing.any():
            fill = np.array([np.nan if feature.missing is None else feature.missing for feature in features])
            values = np.where(missing, fill, values)
        return np.clip(values, -_LARGEST, _LARGEST).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Columns:
    """Features by name, each of shape (rows,)."""

    columns: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def matrix(self, champion: Champion) -> Matrix:
        """The rows as the model takes them.

        Raises:
            RequestRefused: a feature of this champion is missing, or one is not its own.
        """
        names = champion.model.features.names
        missing = [name for name in names if name not in self.columns]
        known = set(names)
        unknown = [name for name in self.columns if name not in known]
        if missing or unknown:
            wrong = "has no input" if missing else "takes no feature"
            raise RequestRefused(
                f"{'The request' if missing else f'Version {champion.version}'} {wrong} '{(missing or unknown)[0]}'. Send "
                f"'{FEATURES}', or '{EVENTS}', or one input for each feature of version {champion.version}: "
                f"{', '.join(names)}."
            )
        return Vectors(np.column_stack([self.columns[name] for name in names])).matrix(champion)


Rows = Events | Vectors | Columns


class RowReader:
    """Reads the rows of requests, by the stream's schema. `most` is how many one may have."""

    def __init__(self, schema: EventSchema, most: int) -> None:
        self._schema = schema
        self._finite = FiniteNumbers(schema)
        self._most = most

    def __call__(self, request: InferRequest, binary: memoryview) -> Rows:
        """The rows of a request.

        Raises:
            RequestRefused: an input is not as it must be, a row is no event, or there are too many.
        """
        names = [tensor.name for tensor in request.inputs]
        if len(names) > 1:
            for name in (EVENTS, FEATURES):
                if name in names:
                    raise RequestRefused(f"Beside the input '{name}' there can be no other.")
            if len(set(names)) < len(names):
                raise RequestRefused("Two inputs have the same name.")
        self._require_bounds(request)
        columns = {}
        for tensor, part in list(tensors(request, binary)):
            if tensor.name == EVENTS:
                _require_column(EVENTS, tensor.shape)
                return self._events(texts(tensor, part))
            values = numbers(tensor, part)
            _refuse_infinite(tensor.name, values)
            if tensor.name == FEATURES:
                if values.ndim != 2:
                    raise RequestRefused(f"Input '{FEATURES}' must have the shape [rows, features].")
                return Vectors(values)
            _require_column(tensor.name, tensor.shape)
            columns[tensor.name] = values.reshape(-1)
        if len({len(column) for column in columns.values()}) > 1:
            raise RequestRefused("The inputs have different numbers of rows.")
        return Columns(columns)

    def _require_bounds(self, request: InferRequest) -> None:
        if len(request.inputs) > MOST_FEATURES:
            raise RequestRefused(f"The request has {len(request.inputs):,} inputs: {MOST_FEATURES:,} are the most.")
        for tensor in request.inputs:
            rows = tensor.shape[0] if tensor.shape else 0
            if not 1 <= rows <= self._most:
                raise RequestRefused(
                    f"Input '{tensor.name}' has {rows} rows: a request has 1 to {self._most} (serve.request_rows)."
                )
            if max(tensor.shape[1:], default=0) > MOST_FEATURES:
                raise RequestRefused(
                    f"Input '{tensor.name}' has {tensor.shape[1]:,} features: {MOST_FEATURES:,} are the most."
                )

    def _events(self, values: Sequence[bytes]) -> Events:
        events = []
        for row, value in enumerate(values):
            try:
                events.append(self._schema.decode(value))
            except RecordError as error:
                raise RequestRefused(f"Row {row}: {error}") from error
        for row, unfit in self._finite.errors(events).items():
            raise RequestRefused(f"Row {row}: {unfit}")
        return Events(events)


def _require_column(name: str, shape: Sequence[int]) -> None:
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise RequestRefused(f"Input '{name}' must have the shape [rows] or [rows, 1].")


def _refuse_infinite(name: str, values: NDArray[np.float64]) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        raise RequestRefused(f"Row {int(np.argwhere(infinite)[0][0])}: input '{name}' holds an infinite number.")

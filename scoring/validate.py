"""What the decoder's types cannot say: an optional number may be NaN (missing), but not infinite."""

from collections.abc import Sequence

import numpy as np

from ecluse.contract.schema import Event, EventSchema, FieldType
from ecluse.errors import RecordError, Stage


class FiniteNumbers:
    """Finds infinite numbers in optional fields. In required ones the decoder refuses them, and NaN, by itself."""

    def __init__(self, schema: EventSchema) -> None:
        self._names = [
            name for name, field in schema.fields.items() if field.type is FieldType.NUMBER and not field.required
        ]
        self._get = schema.getter(*self._names) if self._names else None

    def errors(self, events: Sequence[Event]) -> dict[int, RecordError]:
        """The error of each event, by its position, that holds one; empty where all is well."""
        if self._get is None or not events:
            return {}
        numbers = np.array(list(map(self._get, events)), dtype=np.float64).reshape(len(events), -1)
        infinite = np.isinf(numbers)
        return {
            int(row): RecordError(
                Stage.VALIDATE,
                f"The event does not fit the stream's schema: "
                f"the number in field '{self._names[int(infinite[row].argmax())]}' is infinite.",
            )
            for row in np.flatnonzero(infinite.any(axis=1))
        }

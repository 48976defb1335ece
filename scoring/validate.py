"""What the decoder's types cannot say: numbers must be finite."""

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.schema import EventSchema
from ecluse.errors import RecordError, Stage


class FiniteNumbers:
    """Finds numbers that are not finite. NaN stands for a missing value, so it is allowed where a field is not required."""

    def __init__(self, schema: EventSchema) -> None:
        self._names = schema.number_fields
        self._required = np.array([schema.fields[name].required for name in self._names], dtype=bool)

    def errors(self, numbers: NDArray[np.float64]) -> dict[int, RecordError]:
        """The error of each row of numbers, shape (rows, number fields), that holds one; empty where all is well."""
        wrong = np.isinf(numbers) | (np.isnan(numbers) & self._required)
        if not wrong.any():
            return {}
        return {
            int(row): RecordError(
                Stage.VALIDATE,
                f"The event does not fit the stream's schema: the number in field "
                f"'{self._names[int(wrong[row].argmax())]}' is not finite.",
            )
            for row in np.flatnonzero(wrong.any(axis=1))
        }

"""Into which bin of a model's reference each value falls: how workers count, and how a past is counted again."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.loop import Counts
from ecluse.model.manifest import Histogram

Values = NDArray[np.float32] | NDArray[np.float64]

#: Beside a histogram's bins there is a cell for what lies below it, above it, and for what is missing.
_EXTRA = 3
#: An input with more edges is searched: comparing costs as much for all as for the one that has most.
_COMPARED = 32
#: So many comparisons at a time, which is a megabyte.
_AT_ONCE = 1 << 20


class Bins:
    """The cells of several inputs, one after the other: of each the one below, its bins, the one above, the one for missing.
    For one thread.

    Args:
        references: the inputs' histograms by name, in the order of the columns that are counted.
    """

    def __init__(self, references: Mapping[str, Histogram]) -> None:
        self.names = tuple(references)
        sizes = [len(histogram.edges) + 1 + _EXTRA for histogram in references.values()]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        #: How many cells there are in all.
        self.width = int(self._starts[-1])
        edges = [_edges(histogram) for histogram in references.values()]
        self._searched = [(i, mine) for i, mine in enumerate(edges) if len(mine) > _COMPARED]
        self._aboves = self._starts[:-1, None] + np.array([len(mine) for mine in edges], dtype=np.int64)[:, None]
        compared = {i: mine for i, mine in enumerate(edges) if len(mine) <= _COMPARED}
        # The k-th edge of each input, shape (k, inputs, 1). One that has no such edge has NaN, which no value reaches.
        self._compared = np.full((max(map(len, compared.values()), default=0), len(edges), 1), np.nan, dtype=np.float32)
        for i, mine in compared.items():
            self._compared[: len(mine), i, 0] = mine
        # Memory that is touched for the first time costs more than what is done in it: it is kept.
        self._holds = np.empty(max(_AT_ONCE, self._compared.size), dtype=np.bool_)

    def cells(self, *blocks: Values) -> NDArray[np.int64]:
        """The cell of each value, shape (n, inputs). The columns may come in blocks, side by side: (n, some) or (n,) each.

        A value is compared with every edge: the processor does that for many at a time and guesses nothing, which takes a
        quarter of the time that a search takes for values in no order.
        """
        columns = np.empty((len(self.names), len(blocks[0])), dtype=np.float32)
        np.concatenate([np.atleast_2d(block.T) for block in blocks], out=columns)
        cells = np.empty(columns.shape, dtype=np.int64)
        size = self._compared.size
        step = max(1, _AT_ONCE // max(1, size))
        for start in range(0, columns.shape[1], step):
            part = columns[:, start : start + step]
            holds = self._holds[: size * part.shape[1]].reshape(len(self._compared), *part.shape)
            np.less_equal(part, self._compared, out=holds)
            reached = holds.view(np.uint8).sum(axis=0, dtype=np.uint8)
            np.subtract(self._aboves, reached, out=cells[:, start : start + step])
        # NaN reaches no edge, as what lies above them all. The cell behind that one is that of the missing.
        cells += np.isnan(columns)
        for i, edges in self._searched:
            cells[i] -= len(edges) - np.searchsorted(edges, columns[i], side="left")
        return cells.T

    def totals(
        self, cells: NDArray[np.int64], groups: NDArray[np.int64] | None = None, count: int = 1
    ) -> NDArray[np.int64]:
        """How many values lie in each cell, shape (count, width): of all rows, or of the rows of each group, 0 to count - 1."""
        if groups is not None:
            cells = cells + (groups * self.width)[:, None]
        return np.bincount(cells.ravel(order="K"), minlength=count * self.width).reshape(count, self.width)

    def counts(self, totals: NDArray[np.int64]) -> dict[str, Counts]:
        """Totals, shape (width,), as they are sent: by input."""
        return {
            name: _counts(totals[start:end].tolist())
            for name, start, end in zip(self.names, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        }


def _edges(histogram: Histogram) -> NDArray[np.float32]:
    """All edges, with those at the reference's ends: what has none there reaches on without end."""
    low = -np.inf if histogram.low is None else np.nextafter(np.float32(histogram.low), np.float32(-np.inf))
    high = np.inf if histogram.high is None else histogram.high
    return np.array([low, *histogram.edges, high], dtype=np.float32)


def _counts(cells: Sequence[int]) -> Counts:
    below, *bins, above, missing = cells
    return Counts({i: count for i, count in enumerate(bins) if count}, missing, below, above)

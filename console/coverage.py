"""Which offsets of a partition are accounted for, in memory that does not grow with their number."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice


class Coverage:
    """A set of offsets as merged intervals: as many as there are holes, however many offsets there are."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """How many intervals there are."""
        return len(self._starts)

    def add(self, start: int, end: int) -> int:
        """Add the offsets from `start` to `end` (excluded); return how many of them were there already."""
        if start >= end:
            return 0
        # The intervals that overlap the new one or touch it become one with it.
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        met = list(zip(self._starts[first:last], self._ends[first:last], strict=True))
        if met:
            merged_start, merged_end = min(start, met[0][0]), max(end, met[-1][1])
        else:
            merged_start, merged_end = start, end
        self._starts[first:last] = [merged_start]
        self._ends[first:last] = [merged_end]
        return sum(max(0, min(end, old_end) - max(start, old_start)) for old_start, old_end in met)

    def holes(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The intervals from `start` to `end` (excluded) that are not in the set, in order."""
        at = start
        for covered_start, covered_end in zip(self._starts, self._ends, strict=True):
            if covered_start >= end:
                break
            if at < covered_start:
                yield at, covered_start
            at = max(at, covered_end)
        if at < end:
            yield at, end


class Tally:
    """Counts the outputs of the events from `first` to `end` (excluded) of one partition.

    Every offset in the range must be covered once: by an output, or by standing for no event (a transaction marker, an
    aborted or a compacted record). What is covered by nothing is missing; what an output covers again is doubled, and so
    is an output of an offset that stands for no event. So outputs = events - missing - expired + doubled.
    """

    def __init__(self, first: int, end: int) -> None:
        self.first = first
        self.end = max(first, end)
        self.events = self.end - first
        self.doubled = 0
        #: From here on every output must still be held; of an earlier event without one nothing can be said.
        self.provable = first
        self._coverage = Coverage()

    def no_events(self, start: int, end: int) -> None:
        """Note that no event stands from `start` to `end` (excluded)."""
        start, end = max(start, self.first), min(end, self.end)
        self.events -= max(0, end - start)
        self.doubled += self._coverage.add(start, end)

    def outputs(self, offsets: Iterable[int]) -> int:
        """Note outputs by the offsets of their events; return how many of them lie in the range."""
        counted = 0
        for start, end in runs(offsets):
            inside = max(start, self.first), min(end, self.end)
            counted += max(0, inside[1] - inside[0])
            self.doubled += self._coverage.add(*inside)
        return counted

    @property
    def missing(self) -> int:
        """How many events have no output, though it would still be held."""
        return self._uncovered(self.provable, self.end)

    @property
    def expired(self) -> int:
        """How many events have no output, and could have had one that is deleted by now."""
        return self._uncovered(self.first, min(self.provable, self.end))

    def _uncovered(self, start: int, end: int) -> int:
        return sum(hole_end - hole_start for hole_start, hole_end in self._coverage.holes(start, end))

    def sample_of_missing(self, count: int) -> tuple[int, ...]:
        """The first offsets that have no output, `count` at most."""
        holes = self._coverage.holes(self.provable, self.end)
        return tuple(islice((offset for start, end in holes for offset in range(start, end)), count))


def runs(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Split offsets, in the order in which they come, into runs of neighbours: first and last plus one."""
    start = end = None
    for offset in offsets:
        if offset != end:
            if start is not None and end is not None:
                yield start, end
            start = offset
        end = offset + 1
    if start is not None and end is not None:
        yield start, end

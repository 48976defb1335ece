"""What a replay was about, and what came of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from console.reading import Span, clock_time

if TYPE_CHECKING:
    from console.replay_compare import Comparison
    from scoring.champion import Champion


@dataclass(frozen=True, slots=True)
class Range:
    """Events that arrived between two times (seconds since 1970), as offsets of each partition.

    `cut` are partitions whose part of the range may have begun earlier than what is still held.
    """

    since: float
    until: float
    spans: dict[int, Span]
    cut: frozenset[int]

    @property
    def offsets(self) -> int:
        """Offsets in the range: as many as events, and those that hold none (transaction markers)."""
        return sum(end - start for start, end in self.spans.values())

    @property
    def words(self) -> str:
        """The times, for people."""
        return f"from {clock_time(self.since)} to {clock_time(self.until)} UTC"


@dataclass(slots=True)
class Replayed:
    """A replay: what scored, where to, what was compared, and about how many events of the range retention had deleted."""

    run: str
    champion: "Champion"
    topic: str
    wanted: Range
    comparison: "Comparison"
    gone: int = 0
    seconds: float = 0.0

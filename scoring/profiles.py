"""Profiles: what a worker tells the monitor of the values and the scores that it saw.

All rows of one call are put into the reference bins of the model's manifest at once. Each chunk gets a tally of its own,
because chunks of one call may be committed apart. The tallies of chunks that are committed together are added up, and sent with
that commit (the transport's seal): so every event is counted once, where the delivery is exactly-once.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.codecs import content_headers, encoder
from ecluse.contract.loop import Counts, Covered, Profile, WindowCounts
from ecluse.contract.records import BYPASS, Decision
from ecluse.events import Row
from ecluse.model.bins import Bins
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Output
from scoring.champion import Champion

#: The scores' name among the inputs': no input has it.
_SCORES = ""
#: Windows in one profile. There is one, or two; more where events' own times are all over the calendar.
_MOST_WINDOWS = 64
#: What a record takes beside its value, at most.
_BESIDE = 1024


class Batch(NamedTuple):
    """What became of the rows of one call, each list in the order of the chunks: `rows` were scored, with their inputs, shape
    (rows, features), scores and decisions (see `Champion.levels`), (rows,); `past` went past the model; `rejected` became dead
    letters. `arrived` is when the first two did, one after the other, in seconds since 1970."""

    rows: Sequence[Row]
    past: Sequence[Row]
    rejected: Sequence[Row]
    matrix: NDArray[np.float32]
    scores: NDArray[np.float64]
    levels: NDArray[np.int64]
    arrived: NDArray[np.float64]


class Part(NamedTuple):
    """Counts of one window: its start, which cells hold any (see `Reference`), and how many each."""

    window: float
    cells: NDArray[np.int64]
    counts: NDArray[np.int64]


class Reference:
    """Where one champion's events are counted: in the cells of its bins, and behind these in one for each decision of its arm,
    one for what went past the model, and one for dead letters. It does not hold the model, which may be large. `number`: how
    many served before it."""

    def __init__(self, champion: Champion, number: int) -> None:
        manifest = champion.model.manifest
        self.number = number
        inputs = {name: manifest.reference[name] for name in champion.model.features.names}
        self.model, self.version, self.sha256, self.arm = (
            champion.name,
            champion.version,
            champion.sha256,
            champion.arm.name,
        )
        self.decisions = [verdict.decision for verdict in champion.verdicts]
        self.bins = Bins(inputs | {_SCORES: manifest.score_reference})
        self.width = self.bins.width + len(self.decisions) + 2

    def totals(
        self, cells: NDArray[np.int64], levels: NDArray[np.int64], past: int, rejected: int
    ) -> NDArray[np.int64]:
        """How many each cell holds: of rows in cells of the bins, shape (rows, inputs + 1), and in decisions, (rows,)."""
        decided = np.bincount(levels, minlength=len(self.decisions))
        return np.concatenate([self.bins.totals(cells)[0], decided, [past, rejected]])

    def window_counts(self, part: Part) -> WindowCounts:
        """The counts of a window as they are sent."""
        totals = np.zeros(self.width, dtype=np.int64)
        totals[part.cells] = part.counts
        inputs = self.bins.counts(totals[: self.bins.width])
        scores = inputs.pop(_SCORES)
        *decided, past, rejected = totals[self.bins.width :].tolist()
        arms = {
            self.arm: {decision: count for decision, count in zip(self.decisions, decided, strict=True) if count},
            BYPASS: {Decision.ALLOW: past} if past else {},
        }
        return WindowCounts(
            window=part.window,
            inputs={name: counts for name, counts in inputs.items() if counts != Counts()},
            scores=scores,
            arms={arm: decisions for arm, decisions in arms.items() if decisions},
            rejected=rejected,
        )


class Tally(NamedTuple):
    """What was counted of one chunk, by which reference, and the time of its middle event."""

    reference: Reference
    parts: Sequence[Part]
    middle: float


class Profiles:
    """Counts what a worker's pipeline makes of chunks, and makes the profiles.

    Args:
        settings: the stream's.
        worker: this worker's name.
        telemetry: where it counts.
    """

    def __init__(self, settings: Settings, worker: str, telemetry: Telemetry) -> None:
        self._seconds = settings.monitor.window_hours * 3600
        self._by_arrival = settings.stream.clock == "arrival"
        self._topic, self._worker, self._telemetry = settings.names.profiles, worker, telemetry
        self._largest = settings.topics.largest_output - _BESIDE
        self._encode = encoder(settings.stream.encoding)
        self._headers = content_headers(settings.stream.encoding)
        self._served = 0
        #: By how many seconds a partition's latest events arrived after their own time.
        self._lags: dict[int, float] = {}

    # -- on the event loop ---------------------------------------------------------------------------------------------

    def serve(self, champion: Champion) -> None:
        """Count by this champion from the next call on."""
        self._reference = Reference(champion, self._served)
        self._served += 1

    def count(self, chunks: Sequence[Chunk], outputs: Sequence[list[Output]], batch: Batch) -> None:
        """Count what came of chunks, and give each its tally. A row belongs to the chunk whose outputs it writes to."""
        reference, numbers = self._reference, {id(out): i for i, out in enumerate(outputs)}
        cells, levels = reference.bins.cells(batch.matrix, batch.scores), batch.levels
        times = batch.arrived if self._by_arrival else np.array([row.time for row in (*batch.rows, *batch.past)])
        of_rows, of_past = np.split(times, [len(batch.rows)])
        late_rows, late_past = np.split(batch.arrived - times, [len(batch.rows)])
        rejected: list[list[Row]] = [[] for _ in chunks]
        for row in batch.rejected:
            rejected[numbers[id(row.outputs)]].append(row)
        slices = zip(_slices(batch.rows, numbers), _slices(batch.past, numbers), strict=True)
        for chunk, failed, (mine, gone) in zip(chunks, rejected, slices, strict=True):
            partition, lags = chunk.ledger.partition.partition, np.concatenate([late_rows[mine], late_past[gone]])
            if len(lags):
                self._lags[partition] = _middle(lags)
            lag = self._lags.get(partition, 0.0)
            chunk.tally = self._tally(reference, cells[mine], levels[mine], of_rows[mine], of_past[gone], failed, lag)

    def _tally(
        self,
        reference: Reference,
        cells: NDArray[np.int64],
        levels: NDArray[np.int64],
        of_rows: NDArray[np.float64],
        of_past: NDArray[np.float64],
        failed: Sequence[Row],
        lag: float,
    ) -> Tally:
        known = np.concatenate([of_rows, of_past])
        middle = _middle(known) if len(known) else None
        of_failed = np.array([self._time_of(row, middle, lag) for row in failed], dtype=np.float64)
        windows = np.floor(np.concatenate([known, of_failed]) / self._seconds)
        parts = []
        for window in _distinct(windows):
            scored, past, rejected = np.split(windows == window, [len(of_rows), len(known)])
            mine = slice(None) if scored.all() else scored
            totals = reference.totals(cells[mine], levels[mine], int(past.sum()), int(rejected.sum()))
            filled = np.flatnonzero(totals)
            parts.append(Part(window * self._seconds, filled, totals[filled]))
        return Tally(reference, parts, _middle(of_failed) if middle is None else middle)

    def _time_of(self, row: Row, middle: float | None, lag: float) -> float:
        """When a record that became a dead letter was, on the stream's clock. What is no event has no time of its own: it is as
        old as its partition's events before it were, so that a past that is published moves no clock to now."""
        if not self._by_arrival:
            if row.event is not None:
                return row.time
            if middle is not None:
                return middle
        return row.record.timestamp()[1] / 1e3 - lag

    # -- in the thread that commits --------------------------------------------------------------------------------------

    def seal(self, chunks: Sequence[Chunk]) -> list[Output]:
        """The profiles of chunks that are committed together, those of a partition in order: one a version that scored."""
        tallies: dict[Reference, dict[float, list[Part]]] = {}
        covers: dict[Reference, list[Covered]] = {}
        for chunk in chunks:
            if isinstance(tally := chunk.tally, Tally):
                windows = tallies.setdefault(tally.reference, {})
                for part in tally.parts:
                    windows.setdefault(part.window, []).append(part)
                _cover(covers.setdefault(tally.reference, []), chunk, tally.middle)
        # Who served first counted the first offsets of each partition.
        in_order = sorted(tallies, key=attrgetter("number"))
        outputs = [
            Output(self._topic, str(reference.version).encode(), value, self._headers)
            for reference in in_order
            for value in self._values(reference, _sums(tallies[reference], reference.width), covers[reference])
        ]
        self._telemetry.profiles.inc(len(outputs))
        return outputs

    def _values(self, reference: Reference, parts: Sequence[Part], covers: Sequence[Covered]) -> Iterator[bytes]:
        """One profile; as many as it takes for each to fit on the topic. Counts add up: any part of a profile is one too."""
        if len(parts) <= _MOST_WINDOWS:
            value = self._encode(self._profile(reference, parts, covers))
            if len(value) <= self._largest:
                yield value
                return
        for some, covered in _halves(parts, covers):
            yield from self._values(reference, some, covered)

    def _profile(self, reference: Reference, parts: Sequence[Part], covers: Sequence[Covered]) -> Profile:
        return Profile(
            model=reference.model,
            version=reference.version,
            manifest_sha256=reference.sha256,
            worker=self._worker,
            window_seconds=self._seconds,
            windows=[reference.window_counts(part) for part in parts],
            covers=list(covers),
        )


def _slices(rows: Sequence[Row], numbers: Mapping[int, int]) -> list[slice]:
    """Where the rows of each chunk stand among rows that are in the order of the chunks."""
    ends = [bisect_right(rows, i, key=lambda row: numbers[id(row.outputs)]) for i in range(len(numbers))]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _middle(times: NDArray[np.float64]) -> float:
    half = len(times) // 2
    return float(np.partition(times, half)[half])


def _distinct(windows: NDArray[np.float64]) -> list[float]:
    """The windows, in order. Mostly all are the same, and nothing is sorted."""
    return [float(windows[0])] if windows.min() == windows.max() else np.unique(windows).tolist()


def _sums(windows: Mapping[float, Sequence[Part]], width: int) -> list[Part]:
    """One part a window, in order."""
    sums = []
    for window, parts in sorted(windows.items()):
        totals = np.zeros(width, dtype=np.int64)
        for part in parts:
            totals[part.cells] += part.counts
        filled = np.flatnonzero(totals)
        sums.append(Part(window, filled, totals[filled]))
    return sums


def _cover(covers: list[Covered], chunk: Chunk, middle: float) -> None:
    """Cover a chunk's offsets too, in one range with those right before it."""
    if covers and covers[-1].partition == chunk.ledger.partition.partition and covers[-1].end == chunk.since:
        covers[-1].end, covers[-1].time = chunk.next_offset, middle
    else:
        covers.append(Covered(chunk.ledger.partition.partition, chunk.since, chunk.next_offset, middle))


def _halves(parts: Sequence[Part], covers: Sequence[Covered]) -> Iterator[tuple[Sequence[Part], Sequence[Covered]]]:
    """What is too large for one record, in two: by windows, a single window by its cells, and what has none by its offsets."""
    if len(parts) > 1:
        half = len(parts) // 2
        yield parts[:half], covers
        yield parts[half:], ()
    elif parts and len(parts[0].cells) > 1:
        window, cells, counts = parts[0]
        half = len(cells) // 2
        yield [Part(window, cells[:half], counts[:half])], covers
        yield [Part(window, cells[half:], counts[half:])], ()
    else:
        half = len(covers) // 2
        yield parts, covers[:half]
        yield (), covers[half:]

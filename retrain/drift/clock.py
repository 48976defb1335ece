"""The stream's clock, as the profiles tell it: how far every partition has come."""

import msgspec

from ecluse.contract.loop import Covered
from ecluse.contract.records import Moment

#: A partition stands at the middle of so many of its latest times; before there are three, it only holds back.
_TIMES, _LEAST = 5, 3
#: A partition of which nothing was told for so long, in seconds between the profiles' records, holds nothing back.
_ACTIVE_SECONDS = 60.0
#: A partition whose times pass so many times as quickly as the records that tell them, and this many seconds more, is read from
#: its past: a producer's wrong clock goes as quickly as any other.
_QUICKLY, _MARGIN_SECONDS = 2.0, 3600.0


class Partition(msgspec.Struct, gc=False):
    """How far one partition has come: its latest times, when each was told, when anything was, and the offset behind that."""

    end: int
    recorded: Moment
    times: list[Moment] = []
    told: list[Moment] = []

    @property
    def time(self) -> Moment:
        """The middle one of its latest times: one that is wrong moves nothing."""
        return sorted(self.times)[(len(self.times) - 1) // 2]

    @property
    def catches_up(self) -> bool:
        """Whether it may be on its way through its past: it comes nearer, or too little was told to say that it does not."""
        if len(self.times) < _LEAST or len(self.told) < len(self.times):
            return True
        passed = self.told[-1] - self.told[0]
        return self.times[-1] - self.times[0] > _QUICKLY * passed + _MARGIN_SECONDS


class Clock(msgspec.Struct):
    """The time of the stream: that of the partition that is furthest behind, of those that hold it back. It never goes back.

    Where a stream plays its past again, its events are late until they have come as far as it had been.
    """

    partitions: dict[int, Partition] = {}
    time: Moment | None = None
    front: Moment | None = None
    recorded: Moment = 0.0

    def advance(self, covers: list[Covered], recorded: Moment, *, max_ahead: float, max_behind: float) -> int:
        """Take what a profile covers; returns how many offsets before it no profile has covered.

        Args:
            covers: the partitions and how far each has come.
            recorded: the profile's own timestamp, in seconds: no event is later than that by more than `max_ahead`.
            max_ahead: in seconds.
            max_behind: by how many seconds a partition may lie behind the foremost one and still hold the clock back. One that
                catches up may lie behind by more.
        """
        self.recorded = max(self.recorded, recorded)
        skipped = sum(self._cover(cover, recorded, max_ahead) for cover in covers)
        active = [
            partition
            for partition in self.partitions.values()
            if partition.times and partition.recorded >= self.recorded - _ACTIVE_SECONDS
        ]
        if sure := [partition.time for partition in active if len(partition.times) >= _LEAST]:
            self.front = max(sure) if self.front is None else max(self.front, *sure)
            # One of which little was told moves the clock nowhere, but it holds it back as the others do.
            least = self.front - max_behind
            holding = [each.time for each in active if each.time >= least or each.catches_up]
            behind = min([self.front, *holding])
            self.time = behind if self.time is None else max(self.time, behind)
        return skipped

    def _cover(self, cover: Covered, recorded: Moment, max_ahead: float) -> int:
        partition = self.partitions.setdefault(cover.partition, Partition(cover.start, recorded))
        skipped = max(cover.start - partition.end, 0)
        partition.end = max(partition.end, cover.end)
        partition.recorded = max(partition.recorded, recorded)
        if 0 <= cover.time <= recorded + max_ahead:  # which no NaN is
            partition.times = [*partition.times, cover.time][-_TIMES:]
            partition.told = [*partition.told, recorded][-_TIMES:]
        return skipped

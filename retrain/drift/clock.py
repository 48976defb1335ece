"""The stream's clock, as the profiles tell it: how far every partition has come."""

import math

import msgspec

from ecluse.contract.loop import Covered
from ecluse.contract.records import Moment

#: A partition stands at the middle of so many of its latest times; before there are three, it only holds back.
_TIMES, _LEAST = 5, 3
#: A partition of which nothing was told for so long, in seconds between the profiles' records, holds nothing back.
_ACTIVE_SECONDS = 60.0


class Partition(msgspec.Struct, gc=False):
    """How far one partition has come: its latest times, when the last was told, and the offset behind the last one covered."""

    end: int
    recorded: Moment
    times: list[Moment] = []

    @property
    def time(self) -> Moment:
        """The middle one of its latest times: one that is wrong moves nothing."""
        return sorted(self.times)[(len(self.times) - 1) // 2]


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
            max_behind: by how many seconds a partition may lie behind the foremost one and still hold the clock back.
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
            holding = [time for time in (each.time for each in active) if self.front - max_behind <= time <= self.front]
            behind = min(holding, default=self.front)
            self.time = behind if self.time is None else max(self.time, behind)
        return skipped

    def reach(self, max_ahead: float) -> Moment:
        """The latest moment that an event may have: `max_ahead` seconds after the foremost partition."""
        front = self.front
        if front is None:  # too few times were told: as far as the least of them says
            front = min(
                (min(partition.times) for partition in self.partitions.values() if partition.times), default=None
            )
        return math.inf if front is None else front + max_ahead

    def _cover(self, cover: Covered, recorded: Moment, max_ahead: float) -> int:
        partition = self.partitions.setdefault(cover.partition, Partition(cover.start, recorded))
        skipped = max(cover.start - partition.end, 0)
        partition.end = max(partition.end, cover.end)
        partition.recorded = max(partition.recorded, recorded)
        if 0 <= cover.time <= recorded + max_ahead:  # which no NaN is
            partition.times = [*partition.times, cover.time][-_TIMES:]
        return skipped

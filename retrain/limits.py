"""How much time and memory a training may take, and who sees to it."""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ecluse.errors import ProcessFailed

#: How often it is looked, in seconds: what grows faster than this can tell meets the limit on its own data.
_LOOK_SECONDS = 0.25
#: Of what the machine has free; what takes it all is ended by the system, which does not choose well.
_SHARE = 0.9
#: A container's limit, what it uses, and what of that are files' pages which it gives up when asked, as cgroups tell them
#: (version 2, version 1).
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class Limits:
    """What a process and all that it starts may take: seconds by the clock on the wall, bytes of memory."""

    seconds: float
    memory_bytes: int

    @property
    def memory_told(self) -> str:
        """The limit on memory in words that follow "it"."""
        mib = self.memory_bytes / 2**20
        return f"may take {mib:,.0f} MiB of memory (trainer.memory_limit_mb; what the machine had free where that is not set)"


def free_memory() -> int:
    """What may be taken where no limit is set, in bytes: most of what the machine, or this container, has free."""
    free = psutil.virtual_memory().available
    for folder, limit, used, files in _GROUPS:
        try:
            told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(told.get(files, 0))
            free = min(free, int((folder / limit).read_text()) - taken)
        except (OSError, ValueError):  # there is no such group, or it has no limit
            continue
    return int(free * _SHARE)


class Watch:
    """Looks at a process and at what it started, again and again."""

    def __init__(self, pid: int, limits: Limits) -> None:
        self._process, self._limits = psutil.Process(pid), limits
        self._began = time.monotonic()
        self._next = self._began

    def look(self) -> None:
        """Look, if it is time to.

        Raises:
            ProcessFailed: it has taken more than it may.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK_SECONDS
        if now - self._began > self._limits.seconds:
            raise ProcessFailed(
                f"The training was not done within {self._limits.seconds / 60:g} minutes (trainer.time_limit_minutes): it was "
                "ended, with all that it had started. Nothing was published."
            )
        if (used := self._used()) > self._limits.memory_bytes:
            raise ProcessFailed(
                f"The training took {used / 2**20:,.0f} MiB of memory, and {self._limits.memory_told}: it was ended. "
                "Nothing was published."
            )

    def _used(self) -> int:
        """Bytes of memory of all of it. What processes share is counted once, where the system can tell."""
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return 0
        resident = sum(_memory(each, exact=False) for each in family)
        if resident <= self._limits.memory_bytes or len(family) == 1:
            return resident
        return sum(_memory(each, exact=True) for each in family)


def _memory(process: psutil.Process, *, exact: bool) -> int:
    """Resident bytes, or each process' share of them, which takes longer to tell; 0 where it has ended."""
    try:
        if exact:
            told = process.memory_full_info()
            return int(getattr(told, "pss", told.rss))
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0

"""Run a contestant as a process of its own and measure it from outside, all by the same rule."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.ground import ECLUSE, Ground

EXACTLY_ONCE, AT_LEAST_ONCE, BY_HAND = "worker, exactly once", "worker, at least once", "by hand"
#: A worker's guarantee is its setting `worker.delivery`.
WORKERS = {EXACTLY_ONCE: "exactly_once", AT_LEAST_ONCE: "at_least_once"}
#: The worker, exactly once, that does not count for the monitor.
UNCOUNTED = "worker, not counting"
OURS = (*WORKERS, UNCOUNTED)
CONTESTANTS = (*WORKERS, BY_HAND, "faust, one", "faust, take")
_LOOK_SECONDS = 0.02
#: A contestant that produces nothing new for so long has failed.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Run:
    """One contestant on one backlog."""

    events: int
    rate: float
    cpu_us: float
    peak_mib: float


@dataclass(frozen=True)
class Contestant:
    """A contestant's process, and the group under which it commits."""

    process: psutil.Popen
    group: str


@contextmanager
def contestant(ground: Ground, name: str, backlog: int) -> Iterator[Contestant]:
    """A contestant, started on `backlog` waiting events; stopped at the end."""
    # The worker's group is the stream's, wound back; the others get a new one.
    group = ground.settings.group if name in OURS else f"bench-{uuid.uuid4().hex[:8]}"
    config = str(ground.config)
    python = [sys.executable, "-m"]
    if name in WORKERS:
        command = [ECLUSE, "worker", "--config", config]
    elif name == UNCOUNTED:
        command = [*python, "benchmarks.uncounted", "worker", "--config", config]
    elif name == BY_HAND:
        command = [*python, "benchmarks.by_hand", config, group]
    else:
        style = name.removeprefix("faust, ")
        command = [*python, "benchmarks.plain_faust", config, group, style, str(ground.folder / group)]
    ground.start_at(group, backlog)
    environment = os.environ | ({"ECLUSE_WORKER__DELIVERY": WORKERS[name]} if name in WORKERS else {})
    log = ground.folder / "contestant.log"
    with log.open("w", encoding="utf-8") as out:
        root = Path(__file__).parent.parent
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=root, env=environment)
        try:
            yield Contestant(process, group)
        except TimeoutError as error:
            raise RuntimeError(f"{name}: {error}; it said:\n{log.read_text(encoding='utf-8')[-3000:]}") from error
        finally:
            try:
                if process.poll() is None:
                    process.terminate()
                process.wait(20)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(20)


@contextmanager
def counter(ground: Ground, name: str, group: str) -> Iterator[Callable[[], int]]:
    """Counts what a contestant has done.

    Of those that commit every 100 ms, what they have committed: the end of the predictions would count transaction markers
    and records of open transactions too. Plain Faust commits every few seconds and writes no transactions: the predictions.
    """
    if name in OURS or name == BY_HAND:
        with ground.counter(group) as count:
            yield count
    else:
        yield lambda: sum(ground.ends(ground.settings.names.predictions))


def backlog(ground: Ground, name: str, waiting: int, count: int) -> Run:
    """Work off `count` of `waiting` events.

    The clock runs from the look at which the first events are done to the one at which `count` are: starting, loading and
    joining stay outside. What was done at the first look is not counted.
    """
    with contestant(ground, name, waiting) as it, counter(ground, name, it.group) as total:
        before = total()
        start: tuple[int, float, float] | None = None
        peak, done, moved = 0, 0, time.monotonic()
        while True:
            now, told = time.monotonic(), total() - before
            moved = now if told > done else moved
            done = told
            with it.process.oneshot():
                times, peak = it.process.cpu_times(), max(peak, it.process.memory_info().rss)
            cpu = times.user + times.system
            if start is None and done:
                start = done, now, cpu
            if start is not None and done >= count:
                events = done - start[0]
                return Run(events, events / (now - start[1]), (cpu - start[2]) / events * 1e6, peak / 2**20)
            if now - moved > _PATIENCE or it.process.poll() is not None:
                raise TimeoutError(f"nothing more was done after {done} of {count}")
            time.sleep(_LOOK_SECONDS)

"""Run a contestant as a process of its own and measure it from outside, all by the same rule."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.ground import ECLUSE, Ground

CONTESTANTS = ("worker", "by hand", "faust, one", "faust, take")
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


@contextmanager
def contestant(ground: Ground, name: str, backlog: int) -> Iterator[psutil.Popen]:
    """The contestant's process, started on `backlog` waiting events; stopped at the end."""
    group = f"bench-{uuid.uuid4().hex[:8]}"
    config = str(ground.config)
    python = [sys.executable, "-m"]
    command = {
        "worker": [ECLUSE, "worker", "--config", config],
        "by hand": [*python, "benchmarks.by_hand", config, group],
        "faust, one": [*python, "benchmarks.plain_faust", config, group, "one", str(ground.folder / group)],
        "faust, take": [*python, "benchmarks.plain_faust", config, group, "take", str(ground.folder / group)],
    }[name]
    # The worker's group is the stream's, wound back; the others get a new one.
    ground.start_at(ground.settings.group if name == "worker" else group, backlog)
    log = ground.folder / "contestant.log"
    with log.open("w", encoding="utf-8") as out:
        root = Path(__file__).parent.parent
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=root)
        try:
            yield process
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


def backlog(ground: Ground, name: str, waiting: int, count: int) -> Run:
    """Work off `count` of `waiting` events.

    The clock runs from the look at which the first predictions are in the log to the one at which `count` are: starting,
    loading and joining stay outside. What was there at the first look is not counted.
    """
    topic = ground.settings.names.predictions
    before = sum(ground.ends(topic))
    with contestant(ground, name, waiting) as process:
        start: tuple[int, float, float] | None = None
        peak, done, moved = 0, 0, time.monotonic()
        while True:
            now, told = time.monotonic(), sum(ground.ends(topic)) - before
            moved = now if told > done else moved
            done = told
            with process.oneshot():
                times, peak = process.cpu_times(), max(peak, process.memory_info().rss)
            cpu = times.user + times.system
            if start is None and done:
                start = done, now, cpu
            if start is not None and done >= count:
                events = done - start[0]
                return Run(events, events / (now - start[1]), (cpu - start[2]) / events * 1e6, peak / 2**20)
            if now - moved > _PATIENCE or process.poll() is not None:
                raise TimeoutError(f"no prediction after {done} of {count}")
            time.sleep(_LOOK_SECONDS)

"""What `ecluse monitor` costs while a worker scores a little and a lot: it reads counts, and not events."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import psutil
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.ground import ECLUSE, Ground
from benchmarks.load import steady
from benchmarks.measure import EXACTLY_ONCE, contestant
from benchmarks.report import Figures
from ecluse import kafka

RATES = (1_000, 50_000)
#: Left out at the start, for groups to form and caches to fill.
SETTLE_SECONDS = 6.0
_LOOK_SECONDS = 0.25
_PATIENCE = 120.0


@dataclass(frozen=True)
class Watched:
    """One rate: what was asked for, what the worker took, and what the monitor did meanwhile."""

    asked: int
    rate: float
    profiles: float
    kib: float
    cpu_per_minute: float
    peak_mib: float


def monitor(there: Ground, seconds: float, say: Callable[[str], None]) -> list[Watched]:
    """Each rate in turn, `seconds` long, by one worker and a monitor of its own.

    Raises:
        TimeoutError: the worker or the monitor did not come up.
    """
    found = []
    with contestant(there, EXACTLY_ONCE, 0), there.counter(there.settings.group) as done:
        for rate in RATES:
            found.append(_at(there, rate, seconds, done))
            say(f"{rate:,} events/s: {found[-1]}")
    return found


def _at(there: Ground, rate: int, seconds: float, done: Callable[[], int]) -> Watched:
    before = done()
    with watching(there) as process, steady(there, rate):
        _wait("the monitor has its partition", lambda: "assigned partitions" in _log(there))
        _wait("the worker scores", lambda: done() > before)
        time.sleep(SETTLE_SECONDS)
        return _measured(there, process, rate, seconds, done)


def _measured(there: Ground, process: psutil.Popen, rate: int, seconds: float, done: Callable[[], int]) -> Watched:
    began, before, first, cpu, peak = time.monotonic(), done(), _end(there), _cpu(process), 0
    while time.monotonic() - began < seconds:
        peak = max(peak, process.memory_info().rss)
        time.sleep(_LOOK_SECONDS)
    taken, events, spent, last = time.monotonic() - began, done() - before, _cpu(process) - cpu, _end(there)
    if process.poll() is not None:
        raise RuntimeError(f"the monitor ended with {process.returncode}; it said:\n{_log(there)[-3000:]}")
    profiles, size = _profiles(there, first, last)
    return Watched(rate, events / taken, profiles / taken, size / taken / 1024, 60 * spent / taken, peak / 2**20)


@contextmanager
def watching(there: Ground) -> Iterator[psutil.Popen]:
    """A monitor, stopped at the end."""
    with (there.folder / "monitor.log").open("w", encoding="utf-8") as out:
        command = [ECLUSE, "monitor", "--config", str(there.config)]
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=there.folder)
        try:
            yield process
        finally:
            try:
                if process.poll() is None:
                    process.terminate()
                process.wait(20)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(20)


def _log(there: Ground) -> str:
    return (there.folder / "monitor.log").read_text(encoding="utf-8")


def _wait(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {_PATIENCE:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _cpu(process: psutil.Popen) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _end(there: Ground) -> int:
    with closing(Consumer(kafka.consumer_config(there.settings, "bench"))) as consumer:
        return int(consumer.get_watermark_offsets(TopicPartition(there.settings.names.profiles, 0), timeout=10)[1])


def _profiles(there: Ground, first: int, last: int) -> tuple[int, int]:
    """How many records the topic holds between two offsets, markers left out, and the bytes of their values."""
    count = size = 0
    config = kafka.consumer_config(there.settings, "bench") | {"isolation.level": "read_uncommitted"}
    with closing(Consumer(config | {"enable.partition.eof": True})) as consumer:
        consumer.assign([TopicPartition(there.settings.names.profiles, 0, first)])
        while True:
            for message in consumer.consume(2000, 1.0):
                if message.error() is not None or (message.offset() or 0) >= last:
                    return count, size
                count, size = count + 1, size + len(message)


def figures(found: list[Watched]) -> Figures:
    """Every figure under a column's name."""
    row: Figures = {}
    for one in found:
        name = f"at_{one.asked}"
        row |= {
            f"{name}_events_per_s": round(one.rate),
            f"{name}_profiles_per_s": round(one.profiles, 1),
            f"{name}_kib_per_s": round(one.kib, 1),
            f"{name}_cpu_s_per_minute": round(one.cpu_per_minute, 2),
            f"{name}_peak_mib": round(one.peak_mib),
        }
    return row


def show(found: list[Watched]) -> None:
    """Print the table."""
    table = Table(title="One monitor, while one worker scores")
    for column in ("events/s asked", "scored", "profiles/s", "KiB/s", "CPU seconds a minute", "peak MiB"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(
            f"{one.asked:,}",
            f"{one.rate:,.0f}",
            f"{one.profiles:.1f}",
            f"{one.kib:.1f}",
            f"{one.cpu_per_minute:.2f}",
            f"{one.peak_mib:.0f}",
        )
    Console(width=110).print(table)

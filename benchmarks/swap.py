"""Latency at a steady rate while the champion changes again and again, beside windows of the same run in which it does not."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, run
from benchmarks.latency import SETTLE_SECONDS, Latency, quantiles
from benchmarks.load import steady
from benchmarks.measure import EXACTLY_ONCE, contestant
from benchmarks.report import Figures
from console.audit import AuditReport, audit
from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.records import Prediction
from ecluse.model.registry import read_registry
from ecluse.model.routes import promote
from ecluse.settings import load

RATE = 2_000
#: From one promotion to the next, at least: each is a transaction of a new producer.
EVERY_SECONDS = 0.5
#: No promotion so shortly before the end of a window: its model would be loaded in the next.
LAST_SECONDS = 1.0
AIM_MS = 10.0
_PATIENCE = 60.0


@dataclass(frozen=True)
class Swaps:
    """What was seen: the latencies of each window without changes and with them, in turn, in seconds.

    `promoted` changes of the route were made, and `scored` of them made a prediction in these windows.
    """

    quiet: Sequence[Sequence[float]]
    swapping: Sequence[Sequence[float]]
    promoted: int
    scored: int
    audit: AuditReport

    @property
    def kinds(self) -> dict[str, Sequence[Sequence[float]]]:
        """The windows by what happened in them."""
        return {"quiet": self.quiet, "swapping": self.swapping}


def over_all(windows: Sequence[Sequence[float]]) -> Latency:
    """The quantiles of all events of these windows."""
    return quantiles([seconds for window in windows for seconds in window])


def middle_p999(windows: Sequence[Sequence[float]]) -> float:
    """The median of the windows' p99.9: one window that something else disturbed does not move it."""
    return median(quantiles(list(window)).p999 for window in windows)


def swap(ground: Ground, windows: int, seconds: float, say: Callable[[str], None]) -> Swaps:
    """Windows in turn, without and with changes between two versions; every event of a window counts.

    Raises:
        TimeoutError: predictions did not come.
        RuntimeError: the changes ended with an error, or the audit could not count to the end.
    """
    run(ground.folder, "model", "train", str(ground.folder / "training.parquet"))  # version 2
    settings, events = ground.settings, ground.settings.names.events
    with (
        kafka.reader(settings) as consumer,
        contestant(ground, EXACTLY_ONCE, ground.events) as worker,
        ground.counter(worker.group) as done,
    ):
        wait_until("what waits is scored", lambda: done() >= ground.events)
        ends = enumerate(ground.ends(settings.names.predictions))
        consumer.assign([TopicPartition(settings.names.predictions, partition, end) for partition, end in ends])
        start = time.time() + 2 * SETTLE_SECONDS
        with steady(ground, RATE), changes(ground.config, start, windows, seconds) as promoted:
            taken, revisions = watch(consumer, settings.topics.partitions, start, windows, seconds)
        wait_until("all is scored", lambda: done() >= sum(ground.ends(events)))
    report = audit(settings, everything=True)
    say(f"swap: {promoted.value} promotions, {len(revisions) - 1} of them scored; {report.verdict}")
    return Swaps(taken[::2], taken[1::2], promoted.value, len(revisions) - 1, report)


def watch(
    consumer: Consumer, partitions: int, start: float, windows: int, seconds: float
) -> tuple[list[list[float]], set[int]]:
    """The latencies of each window's events, by the stamp that an event's time field is, and the revisions that scored.

    Raises:
        TimeoutError: predictions did not come.
    """
    decode, end = Reader(Prediction), start + windows * seconds
    taken: list[list[float]] = [[] for _ in range(windows)]
    revisions: set[int] = set()
    past: set[int] = set()  # partitions whose predictions have gone past the windows
    while len(past) < partitions:
        message = consumer.poll(0.1)
        now = time.time()
        if now > end + _PATIENCE:
            raise TimeoutError(f"only {sum(map(len, taken))} predictions came")
        if message is None or message.error():
            continue
        prediction = decode(message.value() or b"")
        stamp = prediction.event_time
        if stamp >= end:
            past.add(message.partition() or 0)
        elif stamp >= start:
            taken[int((stamp - start) // seconds)].append(now - stamp)
            revisions.add(prediction.route_revision)
    return taken, revisions


@contextmanager
def changes(config: Path, start: float, windows: int, seconds: float) -> Iterator[Any]:
    """A process that changes the champion in every second window. The value counts the changes."""
    context = multiprocessing.get_context("spawn")
    count = context.Value("i", 0)
    process = context.Process(target=change, args=(config, start, windows, seconds, count), daemon=True)
    process.start()
    try:
        yield count
        process.join(_PATIENCE)
        if process.exitcode != 0:
            raise RuntimeError(f"the changes ended with {process.exitcode} after {count.value}")
    finally:
        process.kill()
        process.join()


def change(config: Path, start: float, windows: int, seconds: float, count: Any) -> None:
    """Make the earlier champion the champion again and again, in windows 1, 3, 5 …"""
    settings = load(config)
    routed = read_registry(settings).routes[settings.model_name]
    arms, revision = itertools.cycle((routed.route.history[0], routed.route.champion)), routed.revision
    for window in range(1, windows, 2):
        due = start + window * seconds
        while due <= start + (window + 1) * seconds - LAST_SECONDS:
            time.sleep(max(0.0, due - time.time()))
            revision = promote(settings, next(arms), revision)
            count.value += 1
            due = max(due + EVERY_SECONDS, time.time())


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition, or fail by its name."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {_PATIENCE:.0f} s")
        time.sleep(0.05)


def figures(found: Swaps) -> Figures:
    """What a row of results holds of it; latencies in milliseconds."""
    row: Figures = {
        "rate_per_s": RATE,
        "windows": len(found.quiet) + len(found.swapping),
        "promoted": found.promoted,
        "scored": found.scored,
    }
    for name, windows in found.kinds.items():
        latency = over_all(windows)
        row[f"{name}_events"] = sum(map(len, windows))
        for quantile, seconds in (("p50", latency.p50), ("p99", latency.p99), ("p999", latency.p999)):
            row[f"{name}_{quantile}_ms"] = round(seconds * 1e3, 2)
        row[f"{name}_p999_median_window_ms"] = round(middle_p999(windows) * 1e3, 2)
        row[f"{name}_longest_ms"] = round(max(max(window) for window in windows) * 1e3, 2)
    row["p999_beyond_ms"] = round(float(row["swapping_p999_ms"]) - float(row["quiet_p999_ms"]), 2)
    return row | {"events": found.audit.events, "missing": found.audit.missing, "doubled": found.audit.doubled}


def show(found: Swaps) -> None:
    """Print the table, and how it stands against the aim."""
    out, told = Console(width=110), figures(found)
    table = Table(title=f"End to end at {RATE:,} events/s, milliseconds, while the champion changes and while not")
    columns = {"events": "events", "p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}
    columns |= {"p99.9 of the median window": "p999_median_window_ms", "longest": "longest_ms"}
    for column in ("windows", *columns):
        table.add_column(column, justify="left" if column == "windows" else "right")
    for name, words in (("quiet", "without changes"), ("swapping", "with changes")):
        table.add_row(words, *(f"{told[f'{name}_{key}']:,}" for key in columns.values()))
    out.print(table)
    beyond = float(told["p999_beyond_ms"])
    out.print(
        f"{found.promoted} promotions, {found.scored} of them scored; p99.9 with changes is {beyond:+.1f} ms beyond that "
        f"without (aim: within {AIM_MS:.0f}, {'met' if beyond <= AIM_MS else 'NOT met'})."
    )
    out.print(f"{found.audit.verdict} Missing {found.audit.missing}, doubled {found.audit.doubled}.")

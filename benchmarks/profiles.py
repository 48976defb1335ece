"""What it costs to count for the monitor: a worker that counts beside one that does not, and the pipeline of each alone."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from faust.types import TP
from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground
from benchmarks.latency import Latency, latency
from benchmarks.measure import EXACTLY_ONCE, UNCOUNTED, Run, backlog
from benchmarks.report import Figures
from ecluse import kafka
from ecluse.model.registry import read_registry
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Ledger
from scoring.pipeline import Pipeline
from scoring.profiles import Profiles
from scoring.replaying import load_version

#: The clock stops before the backlog is worked off: see `benchmarks.__main__`.
MEASURED = 0.95
RATE = 1_000
SIDES = (UNCOUNTED, EXACTLY_ONCE)
#: Of the pipelines alone: events, in chunks of so many, of which so many are committed together, and how often.
EVENTS, CHUNK, SEALED, TURNS = 20_000, 2_000, 4, 20


@dataclass(frozen=True)
class Alone:
    """One thread's CPU time an event in microseconds, in turns, and the bytes of a profile."""

    without: list[float]
    counting: list[float]
    profile_bytes: int

    @property
    def ratio(self) -> float:
        """Of the pipeline that counts to the one that does not: the median of the turns."""
        return median(one / other for one, other in zip(self.counting, self.without, strict=True))


@dataclass(frozen=True)
class Cost:
    """All that was measured, by contestant."""

    rounds: dict[str, list[Run]]
    waits: dict[str, Latency]
    alone: Alone

    @property
    def ratios(self) -> tuple[float, float]:
        """Events a second, and CPU an event, with counting over those without: medians of the rounds' ratios."""
        pairs = list(zip(self.rounds[EXACTLY_ONCE], self.rounds[UNCOUNTED], strict=True))
        return median(one.rate / other.rate for one, other in pairs), median(
            one.cpu_us / other.cpu_us for one, other in pairs
        )


def cost(there: Ground, events: int, rounds: int, seconds: float, say: Callable[[str], None]) -> Cost:
    """Each side in turn; every second round begins with the other."""
    measured = alone(there)
    say(f"the pipeline alone: {median(measured.without):.2f} µs an event, counting {measured.ratio:.3f} of it")
    runs: dict[str, list[Run]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name in SIDES if number % 2 == 0 else reversed(SIDES):
            run = backlog(there, name, events, int(MEASURED * events))
            runs[name].append(run)
            say(f"round {number + 1}, {name}: {run.rate:,.0f} events/s, {run.cpu_us:.1f} µs CPU")
    waits = {}
    for name in SIDES:
        waits[name] = latency(there, name, RATE, seconds)
        say(f"latency of {name}: {waits[name]}")
    return Cost(runs, waits, measured)


def alone(there: Ground) -> Alone:
    """The path of a chunk and its seal, without transport, on the same events in turn."""
    settings = there.settings
    registry = read_registry(settings)
    version = registry.routes[settings.model_name].route.champion.version
    champion = load_version(settings, version, registry, lambda *_: None)
    profiles, records = Profiles(settings, "bench", Telemetry()), _records(there)
    sides = {False: Pipeline(settings, champion, "bench", Telemetry())}
    sides[True] = Pipeline(settings, champion, "bench", Telemetry(), profiles)
    taken: dict[bool, list[float]] = {False: [], True: []}
    size = 0
    for turn in range(TURNS + 1):
        for counts in (False, True) if turn % 2 else (True, False):
            ledger = Ledger(TP(settings.names.events, 0))
            chunks = [
                ledger.add(part, part[0].offset(), part[-1].offset() + 1, 0.0)
                for part in (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
            ]
            started = time.thread_time()
            size = max(size, _work(sides[counts], profiles, chunks))
            if turn:  # the first is to warm up
                taken[counts].append((time.thread_time() - started) / len(records) * 1e6)
    return Alone(taken[False], taken[True], size)


def _work(pipeline: Pipeline, profiles: Profiles, chunks: list[Chunk]) -> int:
    """Put chunks through, and seal them; the bytes of the largest profile."""
    size = 0
    for start in range(0, len(chunks), SEALED):
        part = chunks[start : start + SEALED]
        for chunk in part:
            pipeline([chunk])
        size = max([size, *(len(output.value or b"") for output in profiles.seal(part))])
    return size


def _records(there: Ground) -> list[Any]:
    """Events of partition 0, as a worker fetches them."""
    settings = there.settings
    with closing(Consumer(kafka.consumer_config(settings, "bench"))) as consumer:
        consumer.assign([TopicPartition(settings.names.events, 0, 0)])
        wanted = min(EVENTS, there.ends(settings.names.events)[0])
        found: list[Any] = []
        deadline = time.monotonic() + 60
        while len(found) < wanted:
            found += [message for message in consumer.consume(CHUNK, 0.1) if message.error() is None]
            if time.monotonic() > deadline:
                raise TimeoutError("the events could not be read within 60 s")
        return found[:wanted]


def figures(cost: Cost) -> Figures:
    """Every figure under a column's name."""
    row: Figures = {"rounds": len(cost.rounds[EXACTLY_ONCE])}
    for name, side in (("off", UNCOUNTED), ("on", EXACTLY_ONCE)):
        row[f"{name}_events_per_s"] = round(median(run.rate for run in cost.rounds[side]))
        row[f"{name}_cpu_us_per_event"] = round(median(run.cpu_us for run in cost.rounds[side]), 2)
        row[f"{name}_p50_ms"] = round(cost.waits[side].p50 * 1e3, 2)
        row[f"{name}_p99_ms"] = round(cost.waits[side].p99 * 1e3, 2)
    rate, cpu = cost.ratios
    row |= {"rate_ratio": round(rate, 3), "cpu_ratio": round(cpu, 3)}
    row["alone_off_cpu_us_per_event"] = round(median(cost.alone.without), 3)
    row["alone_on_cpu_us_per_event"] = round(median(cost.alone.counting), 3)
    return row | {"alone_cpu_ratio": round(cost.alone.ratio, 4), "profile_bytes": cost.alone.profile_bytes}


def show(cost: Cost) -> None:
    """Print the table and the ratios."""
    table = Table(title="Counting for the monitor: a worker, exactly once; medians of the rounds")
    for column in ("counts", "events/s", "lowest-highest", "CPU µs/event", f"p50 ms at {RATE:,}/s", "p99 ms"):
        table.add_column(column, justify="right")
    for name, runs in cost.rounds.items():
        rates, wait = [run.rate for run in runs], cost.waits[name]
        table.add_row(
            "no" if name == UNCOUNTED else "yes",
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
            f"{median(run.cpu_us for run in runs):.1f}",
            f"{wait.p50 * 1e3:.1f}",
            f"{wait.p99 * 1e3:.1f}",
        )
    out = Console(width=110)
    out.print(table)
    rate, cpu = cost.ratios
    out.print(f"Counting: {rate:.3f} of the events a second, {cpu:.3f} of the CPU an event, of those without.")
    alone = cost.alone
    out.print(
        f"The pipeline alone: {median(alone.without):.2f} µs an event, {median(alone.counting):.2f} where it counts "
        f"({alone.ratio:.3f}); a profile of {SEALED * CHUNK:,} events has {alone.profile_bytes:,} bytes."
    )

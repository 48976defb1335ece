"""The figures of a run: medians and ratios, a table for people, a CSV row for comparison over time."""

import csv
import datetime as dt
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import confluent_kafka
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.latency import Latency
from benchmarks.measure import AT_LEAST_ONCE, BY_HAND, CONTESTANTS, EXACTLY_ONCE, WORKERS, Run
from console.broker import KAFKA_VERSION

LIBRARIES = (
    "ecluse",
    "confluent-kafka",
    "faust-streaming",
    "aiokafka",
    "onnxruntime",
    "scikit-learn",
    "numpy",
    "msgspec",
)
Figures = dict[str, str | int | float]


@dataclass(frozen=True)
class Results:
    """All that one run measured: each contestant's rounds, the workers' peak memory by backlog, latencies."""

    rounds: Mapping[str, Sequence[Run]]
    memory: Mapping[str, Mapping[int, float]]
    latency: Mapping[str, Latency]
    rate: int


def ratio(results: Results, of: str, to: str) -> float:
    """How many times as fast: the median over the rounds, because what disturbs a round disturbs both."""
    pairs = zip(results.rounds[of], results.rounds[to], strict=True)
    return median(one.rate / other.rate for one, other in pairs)


def faster_faust(results: Results) -> str:
    """The faster of the plain Faust agents: what the workers are held against."""
    agents = [name for name in CONTESTANTS if name.startswith("faust")]
    return max(agents, key=lambda name: median(run.rate for run in results.rounds[name]))


def figures(results: Results) -> Figures:
    """Every figure under a column's name."""
    row: Figures = {}
    for name, runs in results.rounds.items():
        row[f"{column(name)}_events_per_s"] = round(median(run.rate for run in runs))
        row[f"{column(name)}_cpu_us_per_event"] = round(median(run.cpu_us for run in runs), 2)
        row[f"{column(name)}_peak_mib"] = round(max(run.peak_mib for run in runs))
    row["exactly_once_to_at_least_once"] = round(ratio(results, EXACTLY_ONCE, AT_LEAST_ONCE), 3)
    for name in WORKERS:
        row[f"{column(name)}_to_by_hand"] = round(ratio(results, name, BY_HAND), 3)
        row[f"{column(name)}_to_faust"] = round(ratio(results, name, faster_faust(results)), 2)
    for name, peaks in results.memory.items():
        for size, backlog in (("small", min(peaks)), ("large", max(peaks))):
            row[f"backlog_{size}"] = backlog
            row[f"{column(name)}_peak_mib_{size}"] = round(peaks[backlog])
    row["latency_rate_per_s"] = results.rate
    for name, latency in results.latency.items():
        for quantile, seconds in (("p50", latency.p50), ("p99", latency.p99), ("p999", latency.p999)):
            row[f"{column(name)}_{quantile}_ms"] = round(seconds * 1e3, 2)
    return row


def column(name: str) -> str:
    """A contestant's name as the beginning of a column's."""
    return name.replace(", ", "_").replace(" ", "_")


def surroundings() -> Figures:
    """When, on what machine, with which versions."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": _cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1m": round(psutil.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "librdkafka": confluent_kafka.libversion()[0],
        **{name: version(name) for name in LIBRARIES},
    }


def append(file: Path, row: Figures) -> None:
    """Append a row to a CSV file, which is begun with the columns' names.

    Raises:
        ValueError: the file's columns are others.
    """
    columns = list(row)
    if file.exists():
        with file.open(newline="", encoding="utf-8") as lines:
            there = next(csv.reader(lines), [])
        if there != columns:
            raise ValueError(f"{file} has other columns than this run: move it away to begin a new one.")
    begin = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        if begin:
            writer.writeheader()
        writer.writerow(row)


def show(results: Results) -> None:
    """Print the table and the ratios."""
    out = Console(width=110)
    table = Table(title="Working off a backlog: medians of the rounds")
    for column in ("", "events/s", "lowest-highest", "CPU µs/event", "peak MiB", "of the loop", "of plain Faust"):
        table.add_column(column, justify="left" if not column else "right")
    plain = faster_faust(results)
    for name, runs in results.rounds.items():
        rates = [run.rate for run in runs]
        table.add_row(
            name,
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
            f"{median(run.cpu_us for run in runs):.1f}",
            f"{max(run.peak_mib for run in runs):.0f}",
            f"{ratio(results, name, BY_HAND):.2f}",
            f"{ratio(results, name, plain):.1f}",
        )
    out.print(table)
    times = Table(title=f"End to end at {results.rate:,} events/s, milliseconds")
    for column in ("", "p50", "p99", "p99.9"):
        times.add_column(column, justify="left" if not column else "right")
    for name, latency in results.latency.items():
        times.add_row(name, *(f"{seconds * 1e3:.1f}" for seconds in (latency.p50, latency.p99, latency.p999)))
    out.print(times)
    for name, peaks in results.memory.items():
        for backlog, peak in sorted(peaks.items()):
            out.print(f"Memory of the {name}, with a backlog of {backlog:,}: {peak:.0f} MiB at most")
    both = ratio(results, EXACTLY_ONCE, AT_LEAST_ONCE)
    out.print(f"Exactly once runs at {both:.2f} of at least once (aim: 0.85 or more).")
    out.print(f"Plain Faust is '{plain}', the faster of the two. Ratios: median over the rounds.")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

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
from benchmarks.measure import CONTESTANTS, Run
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
    """All that one run measured: each contestant's rounds, the worker's peak memory by backlog, latencies."""

    rounds: Mapping[str, Sequence[Run]]
    memory: Mapping[int, float]
    latency: Mapping[str, Latency]
    rate: int


def ratio(results: Results, of: str, to: str) -> float:
    """How many times as fast: the median over the rounds, because what disturbs a round disturbs both."""
    pairs = zip(results.rounds[of], results.rounds[to], strict=True)
    return median(one.rate / other.rate for one, other in pairs)


def faster_faust(results: Results) -> str:
    """The faster of the plain Faust agents: what the worker is held against."""
    agents = [name for name in CONTESTANTS if name.startswith("faust")]
    return max(agents, key=lambda name: median(run.rate for run in results.rounds[name]))


def figures(results: Results) -> Figures:
    """Every figure under a column's name."""
    row: Figures = {}
    for name, runs in results.rounds.items():
        column = name.replace(", ", "_").replace(" ", "_")
        row[f"{column}_events_per_s"] = round(median(run.rate for run in runs))
        row[f"{column}_cpu_us_per_event"] = round(median(run.cpu_us for run in runs), 2)
        row[f"{column}_peak_mib"] = round(max(run.peak_mib for run in runs))
    row["worker_to_by_hand"] = round(ratio(results, "worker", "by hand"), 3)
    row["worker_to_faust"] = round(ratio(results, "worker", faster_faust(results)), 2)
    small, large = min(results.memory), max(results.memory)
    row |= {"backlog_small": small, "worker_peak_mib_small": round(results.memory[small])}
    row |= {"backlog_large": large, "worker_peak_mib_large": round(results.memory[large])}
    row["latency_rate_per_s"] = results.rate
    for name, latency in results.latency.items():
        for quantile, seconds in (("p50", latency.p50), ("p99", latency.p99), ("p999", latency.p999)):
            row[f"{name.replace(' ', '_')}_{quantile}_ms"] = round(seconds * 1e3, 2)
    return row


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


def show(results: Results, about: Figures) -> None:
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
            f"{ratio(results, name, 'by hand'):.2f}",
            f"{ratio(results, name, plain):.1f}",
        )
    out.print(table)
    times = Table(title=f"End to end at {results.rate:,} events/s, milliseconds")
    for column in ("", "p50", "p99", "p99.9"):
        times.add_column(column, justify="left" if not column else "right")
    for name, latency in results.latency.items():
        times.add_row(name, *(f"{seconds * 1e3:.1f}" for seconds in (latency.p50, latency.p99, latency.p999)))
    out.print(times)
    for backlog, peak in sorted(results.memory.items()):
        out.print(f"The worker's memory with a backlog of {backlog:,}: {peak:.0f} MiB at most")
    out.print(f"Plain Faust is '{plain}', the faster of the two. Ratios: median over the rounds.")
    out.print(", ".join(f"{name} {value}" for name, value in about.items()), highlight=False)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

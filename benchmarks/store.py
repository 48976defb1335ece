"""One sink: at a steady rate of all four topics together, and on a backlog of them; then the audit of its tables."""

import multiprocessing
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import psutil
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from benchmarks.ground import ECLUSE, Ground
from benchmarks.report import Figures
from console.audit_store import StoreReport, audit_store
from ecluse import kafka
from ecluse.contract.codecs import encoder
from ecluse.contract.records import BypassSample, Decision, Label, Prediction, Source
from ecluse.settings import load

#: Every so many events one goes past the model, and one has its label.
BYPASS_EVERY, LABEL_EVERY = 50, 200
RECORDS_PER_EVENT = 2 + 1 / BYPASS_EVERY + 1 / LABEL_EVERY
AIM = 20_000
#: How long a transaction of predictions and samples lasts: a worker's under a backlog.
TRANSACTION_SECONDS = 0.1
_LOOK_SECONDS = 0.25
_PATIENCE = 120.0


@dataclass(frozen=True)
class Run:
    """One run: records sent in `seconds`, and what the sink did meanwhile.

    `behind` is the most that it was behind, in records; `drained` how long after the load's end all was stored, in seconds (of
    a backlog: the whole time). Of the latter `store.commit_seconds` are the wait for a last, small commit.
    """

    name: str
    records: int
    seconds: float
    behind: int
    drained: float
    cpu_us: float
    peak_mib: float
    commits: int

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds


@dataclass(frozen=True)
class Stored:
    """All runs, and the audit of everything at the end."""

    runs: tuple[Run, ...]
    audit: StoreReport


def store(ground: Ground, seconds: float, backlog: int, say: Callable[[str], None]) -> Stored:
    """Two steady rates, `seconds` each, then a backlog of so many records.

    Raises:
        RuntimeError: the load or the sink ended with an error.
        TimeoutError: the sink did not store what was sent.
    """
    os.environ["ECLUSE_STORE__URL"] = str(ground.folder / "store")  # of the sink, the load and the audit
    runs = []
    with sink(ground) as it:
        it.wait_stored(ground.events)  # what `ecluse publish` left
        for name, rate in (
            (f"{AIM:,} records/s", AIM / RECORDS_PER_EVENT),
            (f"{AIM:,} events/s with their predictions", AIM),
        ):
            runs.append(steady(ground, it, name, rate, seconds))
            say(f"{name}: {runs[-1]}")
    sent = Flow(ground, 1e9)
    waiting = sent.wait_for(int(backlog / RECORDS_PER_EVENT))
    began = time.monotonic()
    with sink(ground) as it:
        runs.append(worked_off(it, waiting, began))
        say(f"backlog: {runs[-1]}")
    report = audit_store(load(ground.config), everything=True)
    say(report.verdict)
    return Stored(tuple(runs), report)


class Sink:
    """A running sink, watched from outside."""

    def __init__(self, process: psutil.Popen, port: int) -> None:
        self.process, self._port = process, port
        self.peak = 0.0

    def look(self) -> tuple[int, int]:
        """Rows stored and commits made so far; notes the memory too."""
        self.peak = max(self.peak, self.process.memory_info().rss / 2**20)
        if self.process.poll() is not None:
            raise RuntimeError(f"the sink ended with {self.process.returncode}")
        try:
            with closing(urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5)) as answer:
                page = answer.read().decode()
        except OSError:  # it does not listen yet
            return 0, 0
        of = {name: re.findall(rf"^ecluse_store_{name}_total{{.*}} (\S+)$", page, re.MULTILINE) for name in _COUNTS}
        rows, commits = (int(sum(map(float, of[name]))) for name in _COUNTS)
        return rows, commits

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def wait_stored(self, rows: int) -> None:
        """Wait until so many rows are stored."""
        end = time.monotonic() + _PATIENCE
        while self.look()[0] < rows:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.look()[0]} of {rows} rows are stored")
            time.sleep(_LOOK_SECONDS)


_COUNTS = ("rows", "commits")


@contextmanager
def sink(ground: Ground) -> Iterator[Sink]:
    """A sink for as long as the context lasts."""
    port = 21_000 + os.getpid() % 20_000
    environment = os.environ | {"ECLUSE_STORE__METRICS_PORT": str(port)}
    with (ground.folder / "sink.log").open("w", encoding="utf-8") as out:
        command = [ECLUSE, "store", "--config", str(ground.config)]
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            yield Sink(process, port)
        finally:
            process.terminate()
            process.wait(60)


def steady(ground: Ground, it: Sink, name: str, rate: float, seconds: float) -> Run:
    """A load at a rate of events, watched to the end."""
    rows, commits = it.look()
    cpu, began, behind = it.cpu(), time.monotonic(), 0
    it.peak = 0.0
    flow = Flow(ground, rate)
    try:
        while time.monotonic() < began + seconds:
            time.sleep(_LOOK_SECONDS)
            sent = flow.sent  # first: what is stored later was sent by then
            behind = max(behind, sent - (it.look()[0] - rows))
    finally:
        records = flow.end()
    ended = time.monotonic()
    it.wait_stored(rows + records)
    now, used = it.look()[1], it.cpu() - cpu
    return Run(
        name,
        records,
        ended - began,
        behind,
        time.monotonic() - ended,
        used / records * 1e6,
        it.peak,
        now - commits,
    )


def worked_off(it: Sink, waiting: int, began: float) -> Run:
    """A backlog, from the look at which the first rows are stored to the one at which all are."""
    while not (first := it.look()[0]):
        time.sleep(_LOOK_SECONDS / 5)
    start, cpu = time.monotonic(), it.cpu()
    it.wait_stored(int(0.95 * waiting))
    rows, seconds, used = it.look()[0] - first, time.monotonic() - start, it.cpu() - cpu
    it.wait_stored(waiting)
    drained = time.monotonic() - began
    return Run("backlog", rows, seconds, waiting, drained, used / rows * 1e6, it.peak, it.look()[1])


class Flow:
    """A process that writes events, each with its prediction, samples and labels, at a rate of events a second."""

    def __init__(self, ground: Ground, rate: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop, self._sent = context.Event(), context.Value("q", 0)
        arguments = (ground.config, ground.folder / "events.parquet", rate, self._stop, self._sent)
        self._process = context.Process(target=write, args=arguments, daemon=True)
        self._process.start()

    @property
    def sent(self) -> int:
        """Records that the broker has."""
        return int(self._sent.value)

    def wait_for(self, events: int) -> int:
        """Wait until so many events are there, then end; the records that are there."""
        while self.sent < events * RECORDS_PER_EVENT and self._process.is_alive():
            time.sleep(_LOOK_SECONDS)
        return self.end()

    def end(self) -> int:
        """End it, when the broker has all; how many records that is."""
        self._stop.set()
        self._process.join(_PATIENCE)
        if self._process.exitcode != 0:
            self._process.kill()
            raise RuntimeError("the load did not end well: the broker may not have all records")
        return self.sent


def write(config: Path, file: Path, rate: float, stop: Event, sent: Any) -> None:
    """Write in turns of a transaction, in turn over the partitions, until told to stop."""
    settings = load(config)
    names, partitions = settings.names, settings.topics.partitions
    rows = [
        {name: value for name, value in row.items() if name in settings.stream.fields}
        for row in pl.read_parquet(file, n_rows=5_000).to_dicts()
    ]
    values = [msgspec.json.encode(row) for row in rows]
    queue = {"queue.buffering.max.messages": 2_000_000, "queue.buffering.max.kbytes": 1 << 20}
    inputs = Producer(kafka.producer_config(settings) | queue)
    outputs = Producer(kafka.transactional_config(settings, f"{settings.group}-load-{os.getpid()}", 60) | queue)
    outputs.init_transactions(30)
    encode, label = encoder("msgpack"), msgspec.json.Encoder().encode
    number, began = 0, time.monotonic()
    while not stop.is_set():
        time.sleep(max(0.0, (number / rate) - (time.monotonic() - began)))
        outputs.begin_transaction()
        end = time.monotonic() + TRANSACTION_SECONDS
        records = 0
        while time.monotonic() < end and number <= (time.monotonic() - began) * rate:
            partition, event_id = number % partitions, f"e-{os.getpid()}-{number}"
            i = number % len(rows)
            key = f"c-{i}".encode()
            inputs.produce(names.events, values[i], key, partition)
            source = Source(names.events, partition, number // partitions)
            prediction = Prediction(
                event_id,
                f"c-{i}",
                time.time(),
                time.time(),
                "m",
                1,
                "champion",
                1.0,
                0.1,
                Decision.ALLOW,
                0.5,
                1,
                source,
            )
            outputs.produce(names.predictions, encode(prediction), key, partition)
            records += 2
            if number % BYPASS_EVERY == 0:
                sample = BypassSample(event_id, f"c-{i}", time.time(), 0.02, 1, 2, source, _plain(rows[i]))
                outputs.produce(names.bypass, encode(sample), key, partition)
                records += 1
            if number % LABEL_EVERY == 0:
                said = label(Label(event_id, 1))
                inputs.produce(names.labels(settings.labels.origins[0]), said, event_id.encode(), partition)
                records += 1
            number += 1
        inputs.poll(0)
        outputs.commit_transaction(60)
        if inputs.flush(60):
            raise RuntimeError("the broker did not take all events")
        sent.value += records


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value) for name, value in row.items()
    }


def figures(found: Stored) -> Figures:
    """What a row of results holds of it."""
    row: Figures = {name: version(name) for name in ("deltalake", "polars")}
    for key, run in zip(("records", "events", "backlog"), found.runs, strict=True):
        row |= {
            f"{key}_records": run.records,
            f"{key}_per_s": round(run.rate),
            f"{key}_behind": run.behind,
            f"{key}_drained_s": round(run.drained, 1),
            f"{key}_cpu_us": round(run.cpu_us, 1),
            f"{key}_peak_mib": round(run.peak_mib),
            f"{key}_commits": run.commits,
        }
    return row | {name: found.audit.total(name) for name in ("records", "missing", "doubled", "stray")}


def show(found: Stored) -> None:
    """Print the table."""
    out = Console(width=120)
    table = Table(title="One sink, all four topics together")
    for column in ("", "records", "records/s", "behind, most", "drained, s", "CPU µs/record", "peak MiB", "commits"):
        table.add_column(column, justify="left" if not column else "right")
    for run in found.runs:
        table.add_row(
            run.name,
            f"{run.records:,}",
            f"{run.rate:,.0f}",
            f"{run.behind:,}",
            f"{run.drained:.1f}",
            f"{run.cpu_us:.1f}",
            f"{run.peak_mib:.0f}",
            f"{run.commits:,}",
        )
    out.print(table)
    out.print(found.audit.verdict)

"""A training set from two million events: how long it takes, and how much memory."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecluse.contract.records import BYPASS
from ecluse.contract.tables import LABELS, PREDICTIONS, Table, events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from retrain.manifests import SetManifest
from tests.cli import config_file
from tests.conftest import MakeSettings
from tests.stores import ROUTE, START, fill, revision, route
from tests.study.tables import show
from tests.unit import artefacts

SEED, DAYS, PARTITIONS = 20260105, 20, 16
ENTITIES, SHARE, BLOCKED = 50_000, 0.02, 0.01
#: The share of events that a label calls positive, of those that the model would let through and of those that it would block.
LABELLED = (0.02, 0.6)
#: The aim on two cores is a minute; a machine that others use has more time, and tests do not judge it.
SECONDS = 600
#: More than this for a million events more, and memory would not be bounded by a slice.
GROWTH_MIB = 250.0


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_mib: float


@pytest.mark.study
@pytest.mark.timeout(1800)
def test_two_million_events_make_a_set_in_bounded_memory(make_settings: MakeSettings, tmp_path: Path) -> None:
    runs: dict[int, Run] = {}
    for events in (1_000_000, 2_000_000):
        folder = tmp_path / str(events)
        settings = make_settings(
            labels={"maturity_hours": 24.0}, store={"url": str(folder / "store")}, topics={"partitions": PARTITIONS}
        )
        flow(settings, events)
        out = folder / "set.parquet"
        runs[events] = run(settings, "--as-of", "2026-01-26", "--out", str(out))
        counts = SetManifest.read(out.with_suffix(".json")).counts
        assert counts.events == events
        assert counts.rows + counts.blocked == counts.population == events
        assert pl.scan_parquet(out).select(pl.len()).collect().item() == counts.rows
    manifest, second = str(out.with_suffix(".json")), str(folder / "again.parquet")
    again = run(settings, "--manifest", manifest, "--out", second, threads=1)  # the bytes do not depend on them
    assert (folder / "again.parquet").read_bytes() == out.read_bytes()
    told = {f"{events:,} events": one for events, one in runs.items()} | {"built again, by one thread": again}
    show(
        f"ecluse dataset build on {len(os.sched_getaffinity(0))} cores; seed {SEED}",
        {
            "": list(told),
            "seconds": [f"{one.seconds:.1f}" for one in told.values()],
            "peak MiB": [f"{one.peak_mib:,.0f}" for one in told.values()],
        },
    )
    assert runs[2_000_000].peak_mib - runs[1_000_000].peak_mib < GROWTH_MIB


def run(settings: Settings, *args: str, threads: int | None = None) -> Run:
    """Build in a process of its own, by as many threads as there are cores if nothing else is said."""
    env = os.environ | ({} if threads is None else {"POLARS_MAX_THREADS": str(threads)})
    began = time.monotonic()
    command = [sys.executable, "-m", "console", "dataset", "build", *args, "--config", str(config_file(settings))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Run(time.monotonic() - began, used.ru_maxrss / 1024)


def flow(settings: Settings, count: int) -> None:
    """Fill the training store as the sink would: a commit a few hours, a folder a day."""
    fill(settings, revisions=[revision(0, artefacts.store(settings)), revision(ROUTE, route(settings))])
    random, batches = np.random.default_rng(SEED), DAYS * 4
    each = count // batches
    offsets = np.zeros(PARTITIONS, dtype=np.int64)
    labelled = 0
    store = TrainingStore(settings)
    for batch in range(batches):
        events = batch_of(settings, random, batch, each, offsets)
        append(store, settings.names.events, events_table(settings.stream.fields), events)
        append(store, settings.names.predictions, PREDICTIONS, decided(events, random))
        few = events.filter(
            pl.Series(random.random(each)) < pl.when(pl.col("amount") > 20).then(LABELLED[1]).otherwise(LABELLED[0])
        )
        append(store, settings.names.labels("chargeback"), LABELS, said(few, labelled))
        labelled += few.height


def batch_of(
    settings: Settings, random: np.random.Generator, batch: int, count: int, offsets: np.ndarray
) -> pl.DataFrame:
    hours = 24 * DAYS / (DAYS * 4)
    seconds = np.sort(random.uniform(batch * hours * 3600, (batch + 1) * hours * 3600, count))
    time = pl.Series((START.timestamp() * 1e6 + seconds * 1e6).astype(np.int64)).cast(pl.Datetime("us", "UTC"))
    partition = random.integers(0, PARTITIONS, count)
    offset = np.empty(count, dtype=np.int64)
    for p in range(PARTITIONS):
        here = partition == p
        offset[here] = offsets[p] + np.arange(here.sum())
        offsets[p] += here.sum()
    amounts = np.where(random.random(count) < BLOCKED, random.uniform(21, 40, count), random.uniform(1, 15, count))
    frame = pl.DataFrame(
        {
            "event_time": time,
            "known_at": time,
            "day": time.dt.date(),
            "partition": partition,
            "offset": offset,
            "readable": True,
            "transaction_id": [f"tx-{batch:03d}-{number:08d}" for number in range(count)],
            "time": time,
            "customer_id": [f"customer-{number}" for number in random.integers(0, ENTITIES, count)],
            "amount": amounts,
            "terminal_risk_30d": random.random(count),
            "night": random.integers(0, 2, count),
        }
    )
    table = polars_schema(events_table(settings.stream.fields))
    frame = frame.with_columns(event_id="transaction_id", entity="customer_id", extra=pl.lit(None, pl.String))
    return frame.select(table.names()).cast(table)


def decided(events: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    past = pl.Series(random.random(events.height) < SHARE)
    score = pl.when(past).then(None).otherwise(1 / (1 + (-(pl.col("amount") - 20) / 2).exp()))
    blocks = (pl.col("amount") > 20) & ~past
    return events.select(
        *("event_id", "entity", "event_time", "known_at", "day", "partition", "offset"),
        source_offset="offset",
        scored_at="known_at",
        model=pl.lit("m"),
        version=1,
        arm=pl.when(past).then(pl.lit(BYPASS)).otherwise(pl.lit("champion")),
        propensity=pl.when(past).then(SHARE).otherwise(1 - SHARE),
        score=score,
        decision=pl.when(blocks).then(pl.lit("block")).otherwise(pl.lit("allow")),
        threshold=0.5,
        route_revision=ROUTE,
        switch_revision=2,
    ).cast(polars_schema(PREDICTIONS))


def said(events: pl.DataFrame, first: int) -> pl.DataFrame:
    return events.select(
        "event_id",
        pl.lit("chargeback").alias("origin"),
        pl.col("known_at") + pl.duration(hours=12),
        (pl.col("known_at") + pl.duration(hours=12)).dt.date().alias("day"),
        pl.lit(0).alias("partition"),
        pl.int_range(first, first + events.height, eager=True).alias("offset"),
        pl.lit(1).alias("value"),
        pl.lit("").alias("labeler"),
        pl.lit(1.0).alias("confidence"),
        pl.lit(False).alias("alerted"),
    ).cast(polars_schema(LABELS))


def append(store: TrainingStore, topic: str, table: Table, rows: pl.DataFrame) -> None:
    before = store.offsets(table)
    ends = rows.group_by("partition").agg(pl.col("offset").max() + 1).sort("partition").iter_rows()
    store.append(table, rows, {f"{topic}/{p}": (before.get(f"{topic}/{p}"), end) for p, end in ends})

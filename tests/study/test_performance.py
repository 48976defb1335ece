"""What it costs to ask the training store how well a version does: of a week of 100,000 events a day, with a short and a long
history behind it."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecluse.contract.tables import LABELS, PREDICTIONS, events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from tests.cli import config_file
from tests.conftest import MakeSettings
from tests.stores import ROUTE, START, fill, revision, route
from tests.study.tables import show
from tests.study.test_training_set import LABELLED, PARTITIONS, SEED, append, batch_of, decided, said
from tests.unit import artefacts

A_DAY, MATURITY, SPAN = 100_000, 7, 7
#: Days in the store: those of the span, those that are not mature yet, and what was before.
HISTORIES = (SPAN + MATURITY, 60)
#: More than this for the longer history, and memory would grow with it.
GROWTH_MIB = 100.0
ASK = """
import sys
from pathlib import Path
from ecluse.settings import load
from retrain.drift.performance import outcomes
as_of, day = float(sys.argv[2]), 86_400.0
until = as_of - float(sys.argv[3]) * day
for each in outcomes(load(Path(sys.argv[1])), 1, until - float(sys.argv[4]) * day, until, as_of):
    print(each.name, round(each.value, 4), round(each.low, 4), round(each.high, 4))
"""


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_mib: float


@pytest.mark.study
@pytest.mark.timeout(1800)
def test_a_week_of_outcomes_costs_the_same_whatever_the_history(make_settings: MakeSettings, tmp_path: Path) -> None:
    runs = {}
    for days in HISTORIES:
        settings = make_settings(
            labels={"maturity_hours": 24.0 * MATURITY},
            store={"url": str(tmp_path / str(days))},
            topics={"partitions": PARTITIONS},
        )
        flow(settings, days)
        runs[days] = run(settings, days)
    show(
        f"outcomes of {SPAN} days of {A_DAY:,} events on {len(os.sched_getaffinity(0))} cores; seed {SEED}",
        {
            "days in the store": [str(days) for days in runs],
            "seconds": [f"{one.seconds:.1f}" for one in runs.values()],
            "peak MiB": [f"{one.peak_mib:,.0f}" for one in runs.values()],
        },
    )
    short, long = (runs[days] for days in HISTORIES)
    assert long.peak_mib - short.peak_mib < GROWTH_MIB


def run(settings: Settings, days: int) -> Run:
    """Ask in a process of its own."""
    began, as_of = time.monotonic(), START.timestamp() + days * 86_400
    arguments = [str(config_file(settings)), *(str(each) for each in (as_of, MATURITY, SPAN))]
    process = subprocess.Popen([sys.executable, "-c", ASK, *arguments])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Run(time.monotonic() - began, used.ru_maxrss / 1024)


def flow(settings: Settings, days: int) -> None:
    """Fill the training store as the sink would: a commit a few hours, a folder a day."""
    fill(settings, revisions=[revision(0, artefacts.store(settings)), revision(ROUTE, route(settings))])
    random, store, labelled = np.random.default_rng(SEED), TrainingStore(settings), 0
    offsets = np.zeros(PARTITIONS, dtype=np.int64)
    for batch in range(days * 4):
        events = batch_of(settings, random, batch, A_DAY // 4, offsets)
        append(store, settings.names.events, events_table(settings.stream.fields), events)
        append(store, settings.names.predictions, PREDICTIONS, decided(events, random))
        odds = pl.when(pl.col("amount") > 20).then(LABELLED[1]).otherwise(LABELLED[0])
        few = events.filter(pl.Series(random.random(events.height)) < odds)
        append(store, settings.names.labels("chargeback"), LABELS, said(few, labelled))
        labelled += few.height

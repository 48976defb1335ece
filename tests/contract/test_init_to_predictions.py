"""Labelled tables of any kind go from `ecluse init` to predictions with no edit of what it writes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecluse.contract.records import Alert, Decision, Prediction
from ecluse.settings import Settings, load
from tests.workers import ECLUSE, audited, records, scored, wait_until, worker

ROWS = 1500
Table = Callable[[np.random.Generator, Path], Path]


def loans(random: np.random.Generator, folder: Path) -> Path:
    """A CSV without key or time: text columns, blanks, booleans, and a label in words."""
    income = random.gamma(3.0, 900.0, ROWS).round(0)
    purpose = random.choice(["car", "house", "holiday"], ROWS, p=[0.5, 0.4, 0.1])
    odds = 3 - income / 1000 + 2.0 * (purpose == "holiday")
    bad = random.random(ROWS) < 1 / (1 + np.exp(-odds))
    frame = pl.DataFrame(
        {
            "Monthly income": [None if random.random() < 0.1 else value for value in income],
            "purpose": [None if random.random() < 0.05 else str(value) for value in purpose],
            "owns home": random.random(ROWS) < 0.4,
            "outcome": np.where(bad, "default", "paid"),
        }
    )
    frame.write_csv(path := folder / "loans.csv")
    return path


def pumps(random: np.random.Generator, folder: Path) -> Path:
    """JSON lines with an id, times as text, and fields that are not always there."""
    heat = random.normal(60, 12, ROWS)
    fails = random.random(ROWS) < 1 / (1 + np.exp(-(heat - 80) / 4))
    start = np.datetime64("2026-02-01T00:00:00")
    rows = []
    for i in range(ROWS):
        row = {
            "reading_id": f"r-{i:05d}",
            "time": f"{start + np.timedelta64(i * 97, 's')}Z",
            "pump": f"p-{i % 23}",
            "heat": round(float(heat[i]), 2),
            "failure": bool(fails[i]),
        }
        if random.random() < 0.8:
            row["pressure"] = round(float(random.normal(4, 1)), 3)
        rows.append(row)
    pl.DataFrame(rows).write_ndjson(path := folder / "pump-readings.jsonl")
    return path


def logins(random: np.random.Generator, folder: Path) -> Path:
    """Parquet with a key and a time, integers, and a column that leaks the label."""
    attempts = random.poisson(1.5, ROWS)
    foreign = random.random(ROWS) < 0.2
    taken = random.random(ROWS) < 1 / (1 + np.exp(-(attempts - 5 + 3 * foreign)))
    frame = pl.DataFrame(
        {
            "account_id": [f"a-{i}" for i in random.integers(0, 200, ROWS)],
            "timestamp": pl.Series([1_760_000_000_000 + i * 60_000 for i in range(ROWS)]).cast(
                pl.Datetime("ms", "UTC")
            ),
            "attempts": attempts,
            "foreign": foreign,
            "device": random.choice(["phone", "laptop", "tablet"], ROWS),
            "takeover_kind": np.where(taken, random.integers(1, 4, ROWS), 0),
            "label": taken.astype(int),
        }
    )
    frame.write_parquet(path := folder / "logins.parquet")
    return path


def run(folder: Path, servers: str, *args: str) -> str:
    """A command as a user types it, in a folder of its own."""
    done = subprocess.run(
        [ECLUSE, *args],
        cwd=folder,
        env={"KAFKA_BOOTSTRAP_SERVERS": servers, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("table", [loans, pumps, logins], ids=lambda table: table.__name__)
def test_a_labelled_table_goes_from_init_to_predictions_with_no_edit(
    table: Table, servers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = table(np.random.default_rng(20260201), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    said = run(tmp_path, servers, "init", file.name)
    if table is logins:
        assert "takeover_kind" in said
        assert "LEAKS" in (tmp_path / "ecluse.toml").read_text()
    run(tmp_path, servers, "topics", "create")
    run(tmp_path, servers, "model", "train", file.name)
    run(tmp_path, servers, "publish", file.name)
    settings: Settings = load(tmp_path / "ecluse.toml")
    with worker(settings):
        wait_until("all are scored", scored(settings, ROWS))
    report = audited(settings)
    assert (report.events, report.predictions, report.missing, report.dead_letters) == (ROWS, ROWS, 0, 0)
    decisions = {p.decision for p in records(settings, settings.names.predictions, Prediction)}
    alerts = records(settings, settings.names.alerts, Alert)
    assert decisions > {Decision.ALLOW}
    assert any(alert.reasons not in ("skipped", []) for alert in alerts)


def test_three_classes_are_refused_with_a_sentence(tmp_path: Path) -> None:
    pl.DataFrame({"petal": [1.0, 2.0, 3.0] * 50, "class": ["a", "b", "c"] * 50}).write_csv(tmp_path / "flowers.csv")
    done = subprocess.run([ECLUSE, "init", "flowers.csv"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "3 different values" in done.stderr
    assert not (tmp_path / "ecluse.toml").exists()

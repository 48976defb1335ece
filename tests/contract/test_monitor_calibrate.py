"""`ecluse monitor calibrate`: from a file and the champion to lines for the configuration."""

import datetime as dt
import tomllib
from pathlib import Path
from typing import Any

import polars as pl

from ecluse.settings import Settings
from tests.cli import ecluse, json_of
from tests.workers import labelled_rows, release_trained

DAYS, A_DAY = 42, 500


def steady(folder: Path) -> Path:
    """Six weeks of events that the champion has not seen."""
    first, every = dt.datetime(2026, 3, 2, tzinfo=dt.UTC), dt.timedelta(days=1) / A_DAY
    rows = labelled_rows(DAYS * A_DAY, seed=12).drop("fraud")
    times = pl.Series([first + i * every for i in range(rows.height)])
    file = folder / "steady.csv"
    rows.with_columns(time=times.dt.to_string("iso:strict")).write_csv(file)
    return file


def test_lines_for_the_configuration_come_of_a_steady_past(stream: Settings, tmp_path: Path) -> None:
    release_trained(stream)
    arguments = ("monitor", "calibrate", str(steady(tmp_path)), "--resamples", "50")
    result = ecluse(stream, *arguments, "--days", "14")
    assert result.exit_code == 0, result.output
    section: dict[str, Any] = tomllib.loads(result.stdout.partition("\n\n")[2].partition("\n\n")[0])["monitor"]
    Settings(stream=stream.stream, monitor=section)
    assert 0 < section["psi"]["warn"] <= section["psi"]["alarm"] < 0.1
    assert section["missing"] == {"warn": 0.02, "alarm": 0.1}
    assert "seed 20180401" in result.stdout

    told = json_of(ecluse(stream, *arguments, "--days", "14", "--json"))
    assert told["limits"]["psi"] == section["psi"]  # type: ignore[index] # the same draw
    assert told["windows"] == DAYS
    assert told["rate"]["bound"] <= 1  # type: ignore[index]

    refused = ecluse(stream, *arguments, "--days", "15")
    assert refused.exit_code == 1
    assert "it takes a past of 45 days" in str(refused.exception)

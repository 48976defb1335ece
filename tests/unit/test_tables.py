"""Files of rows: what a column is read as, and limits in time."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from ecluse.errors import DataError
from ecluse.tables import between, scan

NOON = dt.datetime(2026, 3, 1, 12)


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Paris"])
def test_limits_are_utc_whatever_zone_the_column_has(zone: str | None) -> None:
    times = pl.Series("at", [NOON + dt.timedelta(hours=hour) for hour in range(4)]).dt.replace_time_zone("UTC")
    times = times.dt.replace_time_zone(None) if zone is None else times.dt.convert_time_zone(zone)
    frame = pl.LazyFrame({"at": times, "hour": range(4)})
    kept = between(frame, "at", NOON + dt.timedelta(hours=1), NOON.replace(tzinfo=dt.UTC) + dt.timedelta(hours=3))
    assert kept.collect()["hour"].to_list() == [1, 2]


def test_a_limit_on_a_column_without_times_is_refused_with_a_sentence() -> None:
    with pytest.raises(DataError, match="holds String"):
        between(pl.LazyFrame({"at": ["noon"]}), "at", NOON, None)
    with pytest.raises(DataError, match="time_field, which is not set"):
        between(pl.LazyFrame({"at": [NOON]}), None, NOON, None)


def test_digits_behind_a_zero_stay_text_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("zip,count,share\n02134,10,0.5\n10001,0,0\n", encoding="utf-8")
    rows = scan(tmp_path / "a.csv").collect()
    assert rows["zip"].to_list() == ["02134", "10001"]
    assert rows["count"].to_list() == [10, 0] and rows["share"].to_list() == [0.5, 0.0]


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n", encoding="utf-8")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        scan(tmp_path / "a.csv")

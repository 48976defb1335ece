"""Limits in time on files whose times have a zone, none, or are no times."""

import datetime as dt

import polars as pl
import pytest

from ecluse.errors import DataError
from ecluse.tables import between

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

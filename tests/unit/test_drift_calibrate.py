"""Calibration: a past counted as workers count, drawn in other orders, and thresholds that keep what they promise."""

import datetime as dt
import math
from functools import cache

import msgspec
import numpy as np
import polars as pl
import pytest

from ecluse.contract.loop import Counts, WindowCounts
from ecluse.contract.records import Decision
from ecluse.errors import DataError
from ecluse.loop_sections import MonitorSettings, Rising
from ecluse.model.manifest import Histogram
from ingest.generator import DAY, START, generate
from retrain.drift.calibrate import Calibration, bound, calibrate
from retrain.drift.past import Past, count_past, judged, seen_until
from retrain.drift.resampling import drawn, windows_a_block
from retrain.drift.windows import Reference
from tests.study.drifting import days, settings_of, trained

FLAT = Histogram(edges=(1.0, 2.0, 3.0), counts=(5000,) * 4, missing=0, median=2.0, low=0.0, high=4.0)
REFERENCE = Reference({"amount": FLAT, "hour": FLAT}, FLAT, alert_share=0.01)
SETTINGS = MonitorSettings()


@cache
def past(number: int, seed: int, *, slope: float = 0.0) -> Past:
    """Days of 2,000 events, of which `hour` is higher at weekends; `amount` rises by `slope` a day."""
    random = np.random.default_rng(seed)

    def counts(lean: float) -> Counts:
        odds = np.array([0.25 - lean, 0.25, 0.25, 0.25 + lean])
        return Counts(dict(enumerate(random.multinomial(2000, odds).tolist())))

    windows = [
        WindowCounts(
            window=day * DAY,
            inputs={"amount": counts(slope * i), "hour": counts(0.1 if day % 7 >= 5 else -0.04)},
            scores=counts(0.0),
            arms={"champion": {Decision.ALLOW: 1980, Decision.REVIEW: 20}},
        )
        for i, day in enumerate(range(20_000, 20_000 + number))
    ]
    return Past(tuple(windows), DAY, 2000 * number)


@cache
def calibrated_to(number: int) -> Calibration:
    return calibrated(past(90, 1), number)


def calibrated(made: Past, number: int) -> Calibration:
    return calibrate(SETTINGS, REFERENCE, made, number, resamples=50, seed=1)


def test_a_third_of_the_past_is_the_most_that_it_promises() -> None:
    """No alarm in D days bounds one in D / 3."""
    assert bound(0) == pytest.approx(-math.log(0.05))
    found = calibrated_to(30)
    assert found.rate.expected == 0.0
    assert 0.99 < found.rate.bound <= 1.0
    with pytest.raises(DataError, match=r"for 31 days it takes a past of 93 days"):
        calibrated_to(31)


def test_a_past_of_few_weeks_is_refused() -> None:
    with pytest.raises(DataError, match="it takes 28 days"):
        calibrated(past(27, 1), 5)


def test_what_it_proposes_holds_on_other_days_and_is_as_low_as_it_may_be() -> None:
    found = calibrated_to(30)
    proposed = SETTINGS.model_copy(update=found.limits)
    later = [report for closed in judged(proposed, REFERENCE, past(600, 2).windows) for report in closed.reports]
    # One in 30 days at most: of a Poisson mean of 20, no more than 30 come in 99 of 100 cases.
    assert len({report.episode for report in later if report.episode}) <= 30
    index = max(each.value for each in found.largest if each.name == "psi")
    assert index < found.limits["psi"].alarm < 0.02 < SETTINGS.psi.alarm
    assert found.limits["psi"].warn <= found.limits["psi"].alarm
    assert found.limits["missing"] == SETTINGS.missing
    assert "psi" not in found.kept


def test_more_false_alarms_may_come_with_lower_thresholds() -> None:
    seldom, often = (calibrated_to(number) for number in (30, 10))
    assert often.limits["psi"].alarm <= seldom.limits["psi"].alarm
    assert often.rate.bound <= 1.0


def test_numbers_of_the_business_are_raised_where_a_steady_past_asks_for_it() -> None:
    made = past(90, 1)
    absent = [
        msgspec.structs.replace(each, inputs=each.inputs | {"amount": Counts(each.inputs["amount"].bins, missing=600)})
        if i % 14 == 3
        else each
        for i, each in enumerate(made.windows)
    ]
    found = calibrated(Past(tuple(absent), DAY, made.rows), 18)
    assert found.before.bound > 1
    assert found.limits["missing"].alarm > SETTINGS.missing.alarm
    assert found.rate.bound <= 1


def test_a_past_that_is_not_steady_is_told_by_its_input() -> None:
    assert calibrated_to(30).trends == []
    assert [trend.input for trend in calibrated(past(90, 1, slope=0.002), 30).trends] == ["amount"]


def test_weeks_are_drawn_whole_and_keep_their_days() -> None:
    made = past(90, 1)
    order = drawn(made, windows_a_block(SETTINGS), np.random.default_rng(3))
    source = {id(each.inputs): round(each.window / DAY) for each in made.windows}
    pairs = [(round(each.window / DAY), source[id(each.inputs)]) for each in order]
    assert len(pairs) == 90
    assert all(now % 7 == then % 7 for now, then in pairs)
    assert all(now - then == pairs[i - i % 7][0] - pairs[i - i % 7][1] for i, (now, then) in enumerate(pairs))
    assert pairs != [(now, now) for now, _ in pairs]


@pytest.mark.parametrize(
    ("hours", "span", "windows"), [(24, 7, 7), (1, 24, 168), (24, 10, 14), (168, 2, 2), (12, 3, 14)]
)
def test_a_block_is_whole_weeks_that_hold_a_span(hours: float, span: int, windows: int) -> None:
    assert windows_a_block(MonitorSettings(window_hours=hours, span_windows=span)) == windows


def test_a_file_is_counted_window_by_window_in_batches_of_any_size() -> None:
    rows = generate(5, 6, customers=300, terminals=600)
    settings = settings_of(rows)
    model = trained(settings, days(rows, 0, 4), seed=1)
    limits = model.manifest.thresholds
    later = days(rows, 3.5, 6)
    whole = count_past(settings, model, limits, [later])
    assert whole == count_past(settings, model, limits, later.sample(fraction=1, shuffle=True, seed=1).iter_slices(97))
    assert [each.window for each in whole.windows] == [(START + dt.timedelta(days=day)).timestamp() for day in (4, 5)]
    assert whole.cut == days(rows, 3.5, 4).height
    assert whole.rows == days(rows, 4, 6).height
    first = days(rows, 4, 5)
    counted = whole.windows[0].inputs["amount"]
    assert sum(counted.bins.values()) + counted.below + counted.above == first.height
    assert counted.above == first.filter(pl.col("amount") > model.manifest.reference["amount"].high).height
    scores = model.score(model.features.matrix_of_frame(first))
    assert whole.windows[0].arms["champion"][Decision.ALLOW] == int((scores < limits.review).sum())


def test_rows_without_a_time_or_a_required_field_are_told_apart() -> None:
    rows = generate(5, 6, customers=300, terminals=600)
    settings = settings_of(rows)
    model = trained(settings, days(rows, 0, 4), seed=1)
    required = settings.stream.fields | {"amount": {"type": "number"}}
    settings = settings.model_copy(
        update={"stream": settings.stream.model_validate({"name": "s", "fields": required, "time_field": "time"})}
    )
    number = pl.int_range(pl.len())
    broken = days(rows, 4, 6).with_columns(
        amount=pl.when(number % 10 != 1).then("amount"), time=pl.when(number % 10 != 2).then("time")
    )
    found = count_past(settings, model, model.manifest.thresholds, [broken])
    assert found.untimed == broken["time"].null_count()
    assert sum(each.rejected for each in found.windows) == broken["amount"].null_count()


def test_what_a_version_has_seen_is_left_out() -> None:
    made = past(90, 1)
    rows = generate(5, 4, customers=300, terminals=600)
    manifest = trained(settings_of(rows), rows, seed=1).manifest
    assert made.after(seen_until(manifest)) == made
    spans = {"span": None, "held_out_span": ("2024-09-01T00:00:00Z", "2024-10-14T11:00:00Z")}
    seen = msgspec.structs.replace(manifest, training=spans)
    assert made.after(seen_until(seen)).windows[0].window == 20_011 * DAY
    assert made.after(seen_until(seen)).rows == 79 * 2000


def test_limits_are_those_of_the_settings() -> None:
    found = calibrated_to(30)
    assert set(found.limits) == {"psi", "missing", "out_of_range", "rejected", "alerts"}
    assert all(isinstance(getattr(SETTINGS, name), Rising) for name in found.limits)

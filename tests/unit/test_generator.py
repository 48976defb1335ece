"""The generated card transactions: the same from the same seed, and what they are said to be."""

import datetime as dt
from collections.abc import Iterator
from math import sqrt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score

from ingest.generator import DAY, START, Drift, DriftKind, Ints, _sums, generate

SEED = 20240101
INPUTS = ["amount", "night", "weekend"] + [
    f"{name}_{days}d"
    for name in ("customer_count", "customer_mean_amount", "terminal_count", "terminal_risk")
    for days in (1, 7, 30)
]
DRIFT_DAY = 10.5


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return generate(SEED, 30, customers=2_000, terminals=4_000)


def digest(frame: pl.DataFrame) -> bytes:
    return b"".join(frame[name].to_physical().to_numpy().tobytes() for name in frame.columns)


def drifted(kind: DriftKind) -> Iterator[pl.DataFrame]:
    """The rows before and from the drift's moment on, of a set with it."""
    moment = START + dt.timedelta(days=DRIFT_DAY)
    rows = generate(SEED, 30, customers=2_000, terminals=4_000, drift=Drift(kind, DRIFT_DAY))
    yield rows.filter(pl.col("time") < moment)
    yield rows.filter(pl.col("time") >= moment)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    one, again, other = (generate(seed, 3, customers=200, terminals=400) for seed in (1, 1, 2))
    assert digest(one) == digest(again)
    assert digest(one) != digest(other)


def test_rows_come_in_time_order_with_rising_ids_from_the_first_day(frame: pl.DataFrame) -> None:
    assert frame["time"].is_sorted()
    assert frame["transaction_id"].to_list() == list(range(frame.height))
    assert START <= frame["time"][0] < START + dt.timedelta(hours=2)
    assert frame["time"][-1] < START + dt.timedelta(days=30)


def test_there_is_a_row_for_each_customers_rate_and_day(frame: pl.DataFrame) -> None:
    # Poisson counts with uniform rates: five standard deviations of the sum over 2,000 customers and 30 days.
    expected = 30 * 2_000 * 1.92
    deviation = sqrt(expected + 2_000 * 30**2 * (2 * 1.92) ** 2 / 12)
    assert abs(frame.height - expected) < 5 * deviation


def test_the_share_of_fraud_is_as_stated(frame: pl.DataFrame) -> None:
    # 0.50% of terminals and 0.84% of customers (a third of their rows) are compromised at a time, and about 0.05% of
    # amounts are large. Rows of one terminal or customer go together, so the bound is that of some 20 rows each.
    share = frame["fraud"].mean()
    assert isinstance(share, float)
    expected = 1.8e-4 * 28 + 6e-4 * 14 / 3 + 5e-4
    assert abs(share - expected) < 5 * sqrt(expected * 20 / frame.height)


def test_each_kind_of_fraud_is_what_it_is_called(frame: pl.DataFrame) -> None:
    kinds = frame.group_by("fraud_scenario").agg(
        pl.len(), pl.col("amount").min(), pl.col("amount").mean().alias("mean")
    )
    of = {row["fraud_scenario"]: row for row in kinds.to_dicts()}
    assert set(of) == {0, 1, 2, 3}
    assert of[1]["amount"] > 220
    assert frame.filter(pl.col("amount") > 220)["fraud"].min() == 1
    assert of[3]["mean"] > 3 * of[0]["mean"]
    assert abs(of[2]["mean"] - of[0]["mean"]) < 20
    assert (frame["fraud"] == (frame["fraud_scenario"] > 0)).all()


def test_every_transaction_on_a_compromised_terminal_is_fraud_for_its_days(frame: pl.DataFrame) -> None:
    spans = (
        frame.filter(pl.col("fraud_scenario") == 2)
        .group_by("terminal_id")
        .agg(pl.col("time").min().alias("first"), pl.col("time").max().alias("last"))
    )
    assert (spans["last"] - spans["first"]).max() <= dt.timedelta(days=28)  # type: ignore[operator]
    within = frame.join(spans, on="terminal_id").filter(pl.col("time").is_between("first", "last"))
    assert within["fraud"].min() == 1


def test_labels_become_known_about_seven_days_later(frame: pl.DataFrame) -> None:
    delay = (frame["label_known_at"] - frame["time"]).dt.total_seconds() / DAY
    assert 2 < delay.min() < 6  # type: ignore[operator]
    assert 8 < delay.max() < 16  # type: ignore[operator]
    assert delay.mean() == pytest.approx(7, abs=0.05)


def test_windows_are_full_from_the_first_day(frame: pl.DataFrame) -> None:
    first, last = (
        frame.filter((pl.col("time") - START).dt.total_days() == day)[
            ["customer_count_30d", "terminal_count_30d"]
        ].mean()
        for day in (0, 29)
    )
    for name in first.columns:
        assert first[name][0] == pytest.approx(last[name][0], rel=0.05)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 40 * DAY), st.integers(0, 3), st.integers(1, 10_000)), min_size=1, max_size=40),
    st.sampled_from([0, 7]),
    st.sampled_from([1, 7, 30]),
)
def test_windows_equal_a_slow_count(rows: list[tuple[int, int, int]], delay: int, days: int) -> None:
    rows.sort(key=lambda row: row[0])
    seconds, who, values = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    count, total = _sums(who, seconds, values, delay, days)
    for i in range(len(rows)):
        seen = _in_window(seconds, who, i, delay, days)
        assert (count[i], total[i]) == (len(seen), sum(int(values[j]) for j in seen))


def _in_window(seconds: Ints, who: Ints, i: int, delay: int, days: int) -> list[int]:
    """By the definition: rows of the same one in (t - delay - days, t - delay]; with no delay, none after the row itself."""
    end = seconds[i] - delay * DAY
    return [
        j for j in range(len(seconds) if delay else i + 1) if who[j] == who[i] and end - days * DAY < seconds[j] <= end
    ]


def test_window_columns_equal_those_counted_row_by_row() -> None:
    frame = generate(SEED, 45, customers=15, terminals=4)
    late = frame.filter((pl.col("time") - START).dt.total_days() >= 38)
    for row in late.to_dicts()[::7]:
        for days in (1, 7, 30):
            since = pl.col("time") > row["time"] - dt.timedelta(days=days)
            mine = frame.filter(
                (pl.col("customer_id") == row["customer_id"])
                & since
                & (pl.col("transaction_id") <= row["transaction_id"])
            )
            assert row[f"customer_count_{days}d"] == mine.height
            assert row[f"customer_mean_amount_{days}d"] == pytest.approx(mine["amount"].mean(), abs=0.006)
            end = row["time"] - dt.timedelta(days=7)
            there = frame.filter(
                (pl.col("terminal_id") == row["terminal_id"])
                & pl.col("time").is_between(end - dt.timedelta(days=days), end, closed="right")
            )
            assert row[f"terminal_count_{days}d"] == there.height
            assert row[f"terminal_risk_{days}d"] == pytest.approx(there["fraud"].mean() or 0.0, abs=6e-5)


def test_a_model_finds_the_fraud_with_all_inputs_and_not_with_three(frame: pl.DataFrame) -> None:
    day = (frame["time"] - START).dt.total_days().to_numpy()
    train, later = frame.filter(day < 20), frame.filter(day >= 23)

    def quality(inputs: list[str]) -> float:
        model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.06, random_state=0)
        model.fit(train.select(inputs).to_numpy(), train["fraud"].to_numpy())
        scores = model.predict_proba(later.select(inputs).to_numpy())[:, 1]
        return float(average_precision_score(later["fraud"].to_numpy(), scores))

    assert 0.55 < quality(INPUTS) < 0.85
    assert quality(INPUTS[:3]) < 0.3


@pytest.mark.parametrize("kind", list(DriftKind))
def test_a_drift_changes_nothing_before_its_moment(frame: pl.DataFrame, kind: DriftKind) -> None:
    before, _ = drifted(kind)
    assert before.equals(frame.head(before.height))


def test_amounts_rise_by_three_tenths_at_once_or_over_two_weeks(frame: pl.DataFrame) -> None:
    for kind, first_day in ((DriftKind.AMOUNTS_UP, 1.3), (DriftKind.RAMP_UP, 1.01)):
        _, after = drifted(kind)
        usual = frame.tail(after.height)
        ratio = after["amount"] / usual["amount"]
        at_first = (after["time"] - START).dt.total_seconds() < (DRIFT_DAY + 1) * DAY
        assert ratio.filter(at_first).mean() == pytest.approx(first_day, abs=0.01)
        assert ratio.tail(1_000).mean() == pytest.approx(1.3, abs=0.001)
        assert after["fraud"].equals(usual["fraud"])


def test_a_new_kind_of_fraud_has_small_amounts(frame: pl.DataFrame) -> None:
    _, after = drifted(DriftKind.NEW_FRAUD)
    new = after.filter(pl.col("fraud_scenario") == 4)
    assert abs(new.height - 0.004 * after.height) < 5 * sqrt(0.004 * after.height)
    assert new["amount"].max() <= 3.0  # type: ignore[operator]
    assert new["fraud"].min() == 1


def test_an_input_goes_null(frame: pl.DataFrame) -> None:
    before, after = drifted(DriftKind.INPUT_NULL)
    assert before["terminal_risk_7d"].null_count() == 0
    assert after["terminal_risk_7d"].null_count() == after.height
    assert after.drop("terminal_risk_7d").equals(frame.tail(after.height).drop("terminal_risk_7d"))


def test_counts_that_are_not_positive_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        generate(1, 0)

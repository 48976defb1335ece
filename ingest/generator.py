"""A seeded generator of card transactions with fraud, for the demonstration, the tests and the benchmarks.

Each customer has a spending level, a rate and terminals of its own. Fraud is of three kinds: an amount over 220; a terminal
that is compromised for 28 days, on which every transaction is fraud; a customer who is compromised for 14 days, of whose
transactions a third are fraud, at five times the amount. The family of data is that of the Fraud Detection Handbook
(Le Borgne, Siblini, Lebichot, Bontempi, 2022, chapter 3); the code and the distributions are Écluse's own.
"""

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import polars as pl

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Random = np.random.Generator

#: The first day of every generated set; a Monday.
START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
DAY = 86_400
WINDOWS = (1, 7, 30)  # days
LABEL_DELAY = 7  # days
#: Days before the first that are generated and left out, so that every window is full from the start.
_WARM_UP = max(WINDOWS) + LABEL_DELAY
_TERMINALS_EACH = 60
_LARGE_CENTS = 220_00
_TERMINAL_DAYS, _TERMINALS_A_DAY = 28, 1.8e-4
_CUSTOMER_DAYS, _CUSTOMERS_A_DAY, _CUSTOMER_SHARE, _CUSTOMER_FACTOR = 14, 6e-4, 1 / 3, 5
#: Of the kind of fraud that a drift brings: stolen numbers are tried with small amounts, at any terminal.
_TRIAL_SHARE, _TRIAL_CENTS = 0.004, 3_00


class DriftKind(StrEnum):
    """What changes: amounts rise by 30%, at once or over two weeks; a fourth kind of fraud; `terminal_risk_7d` goes null."""

    AMOUNTS_UP = "amounts-up"
    RAMP_UP = "ramp-up"
    NEW_FRAUD = "new-fraud"
    INPUT_NULL = "input-null"


@dataclass(frozen=True, slots=True)
class Drift:
    """A change of the data from `day` on (0 is the first; fractions are allowed)."""

    kind: DriftKind
    day: float


@dataclass(frozen=True, slots=True)
class _Transactions:
    """In time order; `seconds` count from the first day of the warm-up."""

    seconds: Ints
    customer: Ints
    terminal: Ints
    cents: Ints
    kind: Ints  # 0: legitimate


def generate(
    seed: int,
    days: int,
    *,
    customers: int = 5_000,
    terminals: int = 10_000,
    per_day: float = 1.92,
    drift: Drift | None = None,
) -> pl.DataFrame:
    """Transactions in time order; the same arguments give the same rows, byte for byte.

    About ``days * customers * per_day`` rows, 0.8% of them fraud. Two terminals a customer or more keep that share.
    ``label_known_at`` is when the truth of a row becomes known, about 7 days later: it, ``fraud`` and ``fraud_scenario`` are
    for labels and must never be an event's fields.

    Args:
        seed: of every random number.
        days: from `START` on.
        customers: how many, numbered from 0.
        terminals: how many, numbered from 0.
        per_day: transactions of a customer a day, on average.
        drift: a change that sets in at a given moment.

    Raises:
        ValueError: a count is not positive.
    """
    if min(days, customers, terminals) < 1 or per_day <= 0:
        raise ValueError("days, customers, terminals and per_day must be positive")
    random = np.random.default_rng(seed)
    rows = _transactions(random, days + _WARM_UP, customers, terminals, per_day)
    rows = _with_fraud(random, rows, days, customers, terminals)
    known = rows.seconds + (DAY * LABEL_DELAY * random.gamma(50, 1 / 50, rows.seconds.size)).astype(np.int64)
    if drift is not None:
        rows = _drifted(random, rows, drift)
    columns = _columns(rows) | _windows(rows) | {"label_known_at": _moments(known)}
    frame = pl.DataFrame(columns)[int(np.searchsorted(rows.seconds, _WARM_UP * DAY)) :]
    if drift is not None and drift.kind is DriftKind.INPUT_NULL:
        gone = pl.col("time") >= START + dt.timedelta(days=drift.day)
        frame = frame.with_columns(pl.when(~gone).then(pl.col("terminal_risk_7d")).alias("terminal_risk_7d"))
    return frame.insert_column(0, pl.Series("transaction_id", np.arange(frame.height)))


def _transactions(random: Random, days: int, customers: int, terminals: int, per_day: float) -> _Transactions:
    mean_cents = random.uniform(5_00, 100_00, customers)
    rates = random.uniform(0, 2 * per_day, customers)
    own = random.integers(terminals, size=(customers, _TERMINALS_EACH))
    counts = random.poisson(rates, (days, customers))
    customer = np.tile(np.arange(customers), days).repeat(counts.ravel())
    day = np.arange(days).repeat(counts.sum(axis=1))
    # Most at noon, few at night: 17% before seven in the morning.
    seconds = day * DAY + (DAY * random.beta(2.5, 2.5, day.size)).astype(np.int64)
    order = np.argsort(seconds, kind="stable")
    customer = customer[order]
    cents = np.rint(mean_cents[customer] * random.gamma(7, 1 / 7, customer.size)).astype(np.int64)
    terminal = own[customer, random.integers(_TERMINALS_EACH, size=customer.size)]
    return _Transactions(seconds[order], customer, terminal, np.maximum(cents, 1), np.zeros(customer.size, np.int64))


def _with_fraud(random: Random, rows: _Transactions, days: int, customers: int, terminals: int) -> _Transactions:
    kind = np.where(rows.cents > _LARGE_CENTS, 1, 0)
    on_terminal = _compromised(random, rows.seconds, rows.terminal, terminals, _TERMINALS_A_DAY, _TERMINAL_DAYS, days)
    of_customer = _compromised(random, rows.seconds, rows.customer, customers, _CUSTOMERS_A_DAY, _CUSTOMER_DAYS, days)
    of_customer &= random.random(kind.size) < _CUSTOMER_SHARE
    kind[on_terminal] = 2
    kind[of_customer] = 3
    cents = np.where(of_customer, rows.cents * _CUSTOMER_FACTOR, rows.cents)
    return _Transactions(rows.seconds, rows.customer, rows.terminal, cents, kind)


def _compromised(
    random: Random, seconds: Ints, who: Ints, population: int, a_day: float, lasting: int, days: int
) -> Bools:
    """Which rows fall into the time in which their terminal or customer is compromised.

    Each is compromised once, for `lasting` days; the starts are evenly spaced, so that small populations have their share.
    """
    first = -_WARM_UP - lasting
    starts = np.arange(first + random.random() / (population * a_day), days, 1 / (population * a_day))[:population]
    start = np.full(population, np.inf)
    start[random.permutation(population)[: starts.size]] = starts + _WARM_UP
    since = seconds / DAY - start[who]
    within: Bools = (since >= 0) & (since < lasting)
    return within


def _drifted(random: Random, rows: _Transactions, drift: Drift) -> _Transactions:
    """Amounts and fraud after `drift`; a row that was fraud stays so."""
    since = rows.seconds / DAY - _WARM_UP - drift.day
    cents, kind = rows.cents, rows.kind
    match drift.kind:
        case DriftKind.AMOUNTS_UP:
            cents = np.where(since >= 0, np.rint(cents * 1.3).astype(np.int64), cents)
        case DriftKind.RAMP_UP:
            cents = np.rint(cents * (1 + 0.3 * np.clip(since / 14, 0, 1))).astype(np.int64)
        case DriftKind.NEW_FRAUD:
            tried = (since >= 0) & (kind == 0) & (random.random(kind.size) < _TRIAL_SHARE)
            kind = np.where(tried, 4, kind)
            cents = np.where(tried, 1 + cents % _TRIAL_CENTS, cents)
    return _Transactions(rows.seconds, rows.customer, rows.terminal, cents, kind)


def _columns(rows: _Transactions) -> dict[str, Any]:
    day, second = np.divmod(rows.seconds, DAY)
    weekday = (START.weekday() - _WARM_UP + day) % 7
    return {
        "time": _moments(rows.seconds),
        "customer_id": rows.customer,
        "terminal_id": rows.terminal,
        "amount": rows.cents / 100,
        "night": (second < 7 * 3600).astype(np.int64),
        "weekend": (weekday >= 5).astype(np.int64),
        "fraud": (rows.kind > 0).astype(np.int64),
        "fraud_scenario": rows.kind,
    }


def _moments(seconds: Ints) -> pl.Series:
    origin = int(START.timestamp()) - _WARM_UP * DAY
    return pl.Series((seconds + origin) * 1_000_000).cast(pl.Datetime("us", "UTC"))


def _windows(rows: _Transactions) -> dict[str, Any]:
    """What is known of a transaction's customer up to it, and of its terminal up to `LABEL_DELAY` days before it."""
    columns: dict[str, Any] = {}
    for days in WINDOWS:
        count, cents = _sums(rows.customer, rows.seconds, rows.cents, 0, days)
        columns[f"customer_count_{days}d"] = count
        columns[f"customer_mean_amount_{days}d"] = np.round(cents / count / 100, 2)
    for days in WINDOWS:
        count, frauds = _sums(rows.terminal, rows.seconds, (rows.kind > 0).astype(np.int64), LABEL_DELAY, days)
        columns[f"terminal_count_{days}d"] = count
        columns[f"terminal_risk_{days}d"] = np.round(frauds / np.maximum(count, 1), 4)
    return columns


def _sums(who: Ints, seconds: Ints, values: Ints, delay: int, days: int) -> tuple[Ints, Ints]:
    """Count and sum over the rows of the same `who` in (t - delay - days, t - delay], up to the row itself."""
    order = np.argsort(who, kind="stable")  # rows come in time order, and keep it within each
    # One rising number for who and when: entities lie further apart than any window reaches back.
    apart = int(seconds[-1]) + (delay + days) * DAY + 1 if seconds.size else 1
    places = who[order] * apart + seconds[order]
    low = np.searchsorted(places, places - (delay + days) * DAY, side="right")
    high = np.searchsorted(places, places - delay * DAY, side="right") if delay else np.arange(1, places.size + 1)
    total = np.concatenate(([0], np.cumsum(values[order])))
    count, sums = np.empty_like(order), np.empty_like(order)
    count[order], sums[order] = high - low, total[high] - total[low]
    return count, sums

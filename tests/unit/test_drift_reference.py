"""What a version is held against speaks for the events that it meets, and not for the rows that were let through."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecluse.contract.loop import Level, Statistic
from ecluse.loop_sections import MonitorSettings
from ecluse.model.bins import Bins
from ecluse.model.features import Feature
from ecluse.model.manifest import Manifest, histogram
from ecluse.sections import ThresholdSettings
from retrain import drafting
from retrain.drift import judge
from retrain.drift.windows import Reference, Window
from retrain.fitting import train
from retrain.process import Train, for_child
from retrain.thresholds import choose_thresholds
from tests.conftest import MakeSettings

SHOP = Feature("shop", "shop", "category", ("book", "crypto"))
#: Of events in the shop that the champion blocks, and of these that go past it.
CRYPTO, PAST = 0.1, 0.02


def week(rng: np.random.Generator, events: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """The shop, the score and the truth of events: what the crypto shop sells is mostly fraud."""
    crypto = rng.random(events) < CRYPTO
    odds = np.where(crypto, 0.5, 0.002)
    return crypto.astype(np.float32), odds * rng.uniform(0.8, 1.2, events), (rng.random(events) < odds).astype(np.int8)


def judged(seed: int, weighted: bool) -> list[Statistic]:
    """What is said of a steady week, after a training on a set of events of which the champion blocked the crypto shop's."""
    rng = np.random.default_rng(seed)
    shop, score, label = week(rng, 40_000)
    blocked, past = score >= 0.3, rng.random(len(score)) < PAST
    shop, score, label, weights = (
        each[~blocked | past] for each in (shop, score, label, np.where(blocked, 1 / PAST, 1.0))
    )
    policy = ThresholdSettings(alert_budget=CRYPTO * 1.1, block_budget=CRYPTO)
    thresholds = choose_thresholds(score, label, policy, weights)
    metrics = drafting.measure(score, label, thresholds, weights)
    own = weights if weighted else None
    inputs = drafting.Reference.of([SHOP], shop[:, None], own).histograms
    reference = Reference(inputs, histogram(score, None, own), metrics["alert_share"], metrics["alert_rows"])

    shop, score, _ = week(rng, 20_000)
    bins = Bins(reference.histograms)
    cells = bins.totals(bins.cells(shop, score))[0]
    span = Window(cells, len(shop), len(shop), alerts=int((score >= thresholds.review).sum()))
    settings = MonitorSettings()
    return [
        told for way in (judge.of_window, judge.of_alerts, judge.of_span) for told in way(span, reference, settings)
    ]


def test_a_version_of_a_set_whose_events_were_blocked_does_not_drift_the_day_it_is_released() -> None:
    told = [each for seed in range(30) for each in judged(seed, weighted=True)]
    assert {each.level for each in told} == {Level.OK}
    # Chance: the bypass drew 80 of the blocked events more or less, and each stands for 50.
    assert max(each.value for each in told if each.name == "psi") < 0.05
    assert sum(each.value > 1 for each in told if each.name == "alerts") <= 1
    # Rows that count once each speak for what was let through: with them it alarms each time.
    assert all(judge.worst(judged(seed, weighted=False)) is Level.ALARM for seed in range(5))


@pytest.mark.parametrize(("rows", "judged"), [(60, False), (199, False), (200, True), (1000, True)])
def test_a_reference_of_so_few_rows_that_it_alone_would_alarm_is_none(rows: int, judged: bool) -> None:
    """Of 1,500 references of 60 rows, 17 in a thousand lie so far off that each span alarms, of each input; of 200, none."""
    rng, settings = np.random.default_rng(rows), MonitorSettings()
    for _ in range(100):
        reference = Reference({}, histogram(rng.random(rows)), None)
        bins = Bins(reference.histograms)
        cells = bins.totals(bins.cells(rng.random(5000)[:, None]))[0]
        told = list(judge.of_span(Window(cells, 5000, 5000), reference, settings))
        assert bool(told) is judged
        assert all(each.level is not Level.ALARM for each in told)


def test_counts_of_weighted_rows_have_the_shares_of_the_events_and_the_sum_of_as_many_equal_rows() -> None:
    values, weights = np.array([0.0] * 900 + [1.0] * 90 + [np.nan] * 10), np.array([1.0] * 900 + [10.0] * 100)
    counted = histogram(values, None, weights)
    told = 1900**2 / (900 + 100 * 100)
    assert [*counted.counts, counted.missing] == pytest.approx(np.array([900, 900, 100]) / 1900 * told, abs=0.5)
    assert histogram(values, None, np.full(1000, 7.0)) == histogram(values)
    rare = histogram(np.array([0.0] * 10 + [1.0] * 10 + [np.nan]), None, np.array([100.0] * 10 + [0.001] * 11))
    assert (*rare.counts, rare.missing) == (10, 1, 1)  # what rows hold is never nothing


def test_a_manifest_of_a_training_set_holds_the_histograms_of_its_events(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    rows, crypto = 400, np.arange(400) % 10 == 0
    file, draft = tmp_path / "set.parquet", tmp_path / "draft"
    draft.mkdir()
    fraud = crypto | (np.arange(rows) % 37 == 0)
    columns = {"shop": np.where(crypto, "crypto", "book"), "amount": np.arange(rows) % 97 * 1.0, "fraud": fraud * 1}
    of_a_set = {"weight": np.where(crypto, 20.0, 1.0), "entity": ["a"] * rows, "unit": ["a"] * rows}
    pl.DataFrame(columns | of_a_set | {"label_origin": ["silence"] * rows}).write_parquet(file)
    roles = {"id_field": None, "time_field": None, "key_field": None}
    settings = make_settings(stream=roles | {"fields": {"shop": "text", "amount": "number"}})

    train(settings, Train(for_child(settings), str(draft), str(file)), lambda _: None)

    made = Manifest.decode((draft / "manifest.json").read_bytes())
    share = 40 * 20 / (40 * 20 + 360)
    shops = made.reference["shop"].counts
    assert shops[1] / sum(shops) == pytest.approx(share, abs=0.02)  # the rarer shop has the second code
    scores = made.score_reference.counts
    assert sum(scores) < 0.2 * rows  # as many as 80 held-out rows of unlike weights tell
    assert scores[0] / sum(scores) < 0.5  # and not nine tenths

"""The whole path on real transactions, where the setting CARD_TRANSACTIONS names the file. Only these tests may be skipped."""

import datetime as dt
import os
from pathlib import Path

import joblib
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score

from ecluse import cluster
from ecluse.contract.records import Prediction
from ecluse.model.features import FeatureSet
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.training import Window, train_and_publish
from tests.cli import ecluse
from tests.conftest import MakeSettings
from tests.workers import audited, records, scored, wait_until, worker

FILE = Path(os.environ.get("CARD_TRANSACTIONS", ""))
WINDOWS = [
    f"{who}_{what}_{days}d"
    for who, whats in (("customer", ("count", "mean_amount")), ("terminal", ("count", "risk")))
    for what in whats
    for days in (1, 7, 30)
]
FIRST_DAY = dt.datetime(2018, 4, 1, tzinfo=dt.UTC)


def day(number: int) -> dt.datetime:
    return FIRST_DAY + dt.timedelta(days=number)


@pytest.mark.skipif(not FILE.is_file(), reason="CARD_TRANSACTIONS names no file")
@pytest.mark.timeout(600)
def test_scores_read_from_the_topic_are_the_models_own_and_precise_and_a_batch_gives_the_same(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    fields = {"transaction_id": "integer", "time": "time", "amount": "number", "night": "integer", "weekend": "integer"}
    settings = make_settings(servers, stream={"fields": fields | dict.fromkeys(WINDOWS, "number")})
    cluster.create_topics(settings)
    manifest, _ = train_and_publish(settings, FILE, Window(day(50), day(77), day(70)))

    rows = pl.scan_parquet(FILE).filter(pl.col("time") >= day(77).replace(tzinfo=None)).collect()
    published = ecluse(settings, "publish", str(FILE), "--since", day(77).isoformat())
    assert published.exit_code == 0, published.output
    with worker(settings):
        wait_until("all are scored", scored(settings, rows.height), deadline=120)

    report = audited(settings)
    assert (report.events, report.missing, report.doubled, report.dead_letters) == (rows.height, 0, 0, 0)
    made = {p.event_id: p.score for p in records(settings, settings.names.predictions, Prediction)}
    scores = np.array([made[str(number)] for number in rows["transaction_id"]])
    assert average_precision_score(rows["fraud"].to_numpy(), scores) >= 0.70
    assert np.abs(scores - _own_scores(settings, manifest.version, rows)).max() <= 1e-5

    rows.write_parquet(file := tmp_path / "rows.parquet")
    batch = ecluse(settings, "score", str(file), "--out", str(out := tmp_path / "scores.csv"))
    assert batch.exit_code == 0, batch.output
    in_batch = pl.read_csv(out)
    assert in_batch["transaction_id"].equals(rows["transaction_id"])
    assert np.abs(in_batch["score"].to_numpy() - scores).max() <= 1e-6


def _own_scores(settings: Settings, version: int, rows: pl.DataFrame) -> np.ndarray:
    """What the estimator itself says: this test trusts the artefact that it has just made."""
    manifest = ModelStore.of(settings).manifest(settings.model_name, version)
    estimator = joblib.load(Path(settings.model.store) / settings.model_name / str(version) / "model.joblib")
    matrix = FeatureSet(manifest.features, settings.stream.schema_of_events()).matrix_of_frame(rows)
    return estimator.predict_proba(matrix)[:, 1]

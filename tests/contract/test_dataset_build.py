"""A training set of what really flowed: worker, bypass, labels and sink on a real broker, then `ecluse dataset build`."""

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from ecluse import cluster
from ecluse.contract.records import BYPASS
from ecluse.secrets import make_secret
from ecluse.settings import Settings
from retrain.manifests import SetManifest
from tests.artefacts import publish_small
from tests.cli import ecluse
from tests.conftest import MakeSettings
from tests.sinks import sink, wait_stored
from tests.workers import events, json_values, scored, send, wait_until, worker

EVENTS, SHARE, BLOCK = 400, 0.5, 0.9


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    make_secret(tmp_path / "bypass.key")
    made = make_settings(
        servers,
        bypass={"secret_file": tmp_path / "bypass.key", "max_share": SHARE},
        labels={"maturity_hours": 0.0},
        store={"url": str(tmp_path / "store"), "commit_seconds": 0.3},
    )
    cluster.create_topics(made)
    publish_small(made, block=BLOCK)
    return made


def test_a_set_of_what_flowed_has_the_outcome_and_weight_of_what_was_let_through(
    settings: Settings, tmp_path: Path
) -> None:
    assert ecluse(settings, "bypass", "set", str(SHARE)).exit_code == 0
    happened = [one | {"transaction_id": f"tx-{i}", "amount": float(i)} for i, one in enumerate(events(EVENTS))]
    with worker(settings), sink(settings):
        send(settings, json_values([one | {"time": None} for one in happened]))
        wait_until("all is scored", scored(settings, EVENTS))
        for i in (0, 1, 399):
            assert ecluse(settings, "label", f"tx-{i}", "1").exit_code == 0
        wait_stored(settings, {"events": EVENTS, "predictions": EVENTS, "labels": 3})

    out = tmp_path / "set.parquet"
    now = dt.datetime.now(dt.UTC)
    built = ecluse(settings, "dataset", "build", "--as-of", now.isoformat(timespec="microseconds"), "--out", str(out))
    assert built.exit_code == 0, built.output
    manifest = SetManifest.read(out.with_suffix(".json"))
    counts = manifest.counts
    rows = pl.read_parquet(out)
    past = rows.filter(arm=BYPASS)
    assert counts.events == manifest.population == counts.rows + counts.blocked == EVENTS
    assert counts.bypassed == past.height > 0
    assert set(rows.filter("would_block")["arm"]) == {BYPASS}
    assert set(rows.filter("would_block")["weight"]) == {1 / SHARE}
    assert rows.filter(~pl.col("would_block"))["weight"].to_list() == pytest.approx(
        [1.0] * (rows.height - past.filter("would_block").height)
    )
    assert rows.filter("would_block")["amount"].min() > rows.filter(~pl.col("would_block"))["amount"].max()  # type: ignore[operator]
    assert rows.filter(pl.col("event_id").is_in(["tx-0", "tx-1"]))["fraud"].to_list() == [1, 1]
    assert rows["fraud"].sum() == 2 + ("tx-399" in past["event_id"])

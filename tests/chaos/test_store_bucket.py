"""`ecluse store` writes into a bucket, on a server that speaks S3."""

import signal
from pathlib import Path

import pytest

from console.audit_store import audit_store
from ecluse import cluster
from tests.buckets import bucket
from tests.chaos.conftest import Variant
from tests.conftest import MakeSettings
from tests.sinks import Records, counts, sink, wait_stored
from tests.workers import wait_until


@pytest.mark.chaos(seconds=20)
def test_two_sinks_of_which_one_is_killed_write_every_record_into_a_bucket_once(
    variant: Variant, servers: str, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with bucket(monkeypatch) as (url, puts):
        settings = make_settings(servers, store={"url": url, "commit_seconds": 0.5, "commit_rows": 1000})
        cluster.create_topics(settings)
        records = Records(settings)
        records.send(2000, labels=20)
        with sink(settings) as first, sink(settings) as second:
            wait_until("some of it is stored", lambda: sum(counts(settings).values()) > 0)
            second.stop(signal.SIGKILL)
            records.send(2000)
            wait_stored(settings, {"events": 4000, "predictions": 4000, "bypass": 400, "labels": 20})
            assert first.stop() == 0
        report = audit_store(settings, everything=True)
        assert report.holds, report.verdict
        assert report.total("records") == 8420
        commits = [condition for path, condition in puts if path.endswith(".json") and "_delta_log" in path]
        assert len(commits) > 8 and set(commits) == {"*"}
        assert list(tmp_path.glob("**/*.parquet")) == []

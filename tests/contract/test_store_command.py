"""`ecluse store` on a real broker: what is in the tables, whatever befalls the sink, and what it refuses."""

import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from confluent_kafka import TopicPartition

from console.audit_store import StoreReport, audit_store
from ecluse import cluster, kafka
from ecluse.contract.headers import read_error_headers
from ecluse.contract.tables import events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from tests.buckets import bucket
from tests.cli import ecluse, json_of, produce
from tests.conftest import FIELDS, MakeSettings
from tests.sinks import Records, json, rows_of, sink, wait_stored
from tests.workers import DEADLINE, read_all, wait_until

DOCS = Path(__file__).parents[2] / "docs" / "store.md"


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A fresh stream whose store commits soon."""
    made = make_settings(
        servers,
        store={"url": str(tmp_path / "store"), "commit_seconds": 0.3, "commit_rows": 2000},
        worker={"slot": "a", "static_member": True},  # who follows a killed sink in its slot has its partitions at once
    )
    cluster.create_topics(made)
    return made


def changed(settings: Settings, **sections: Mapping[str, Any]) -> Settings:
    """The same stream with other settings."""
    given = settings.model_dump(exclude_unset=True)
    return Settings(**{name: given.get(name, {}) | dict(sections.get(name, {})) for name in {*given, *sections}})


def whole(settings: Settings) -> StoreReport:
    """The audit to the end of the topics, which must hold."""
    report = audit_store(settings, everything=True)
    assert report.holds, report.verdict
    return report


def test_every_record_is_in_its_table_once_though_the_sink_is_killed_and_its_place_in_the_group_forgotten(
    settings: Settings,
) -> None:
    records = Records(settings)
    records.send(3000, labels=30)
    with sink(settings, ready=False) as killed:
        wait_until("it has stored some", lambda: rows_of(settings, "events").height > 0)
        records.send(6000)
        killed.stop(signal.SIGKILL)
    # The group's offsets say something else: they tell the lag, and nobody reads from them.
    names = settings.names
    with sink(settings) as running:
        wait_stored(settings, {"events": 9000, "predictions": 9000, "bypass": 900, "labels": 30})
        told = running.get("/metrics")[1]
        assert running.stop() == 0
    assert whole(settings).total("records") == 9000 + 9000 + 900 + 30
    assert rows_of(settings, "events").select("partition", "offset").is_unique().all()

    audited = ecluse(settings, "audit", "--store", "--json")
    assert audited.exit_code == 0, audited.output
    tables = json_of(audited)["store"]
    assert isinstance(tables, dict)
    assert (tables["records"], tables["missing"], tables["doubled"], tables["waiting"]) == (18_930, 0, 0, 0)
    said = ecluse(settings, "audit", "--store").stdout
    assert "Each of 18,930 records is accounted for in the training store once." in said
    assert names.predictions in said

    described = set(re.findall(r"ecluse_[a-z_]+[a-z]", DOCS.read_text(encoding="utf-8")))
    metrics = set(re.findall(r"^# HELP (ecluse_[a-z_]+)", told, flags=re.MULTILINE))
    assert {name for name in metrics if not name.endswith("_created")} == described


def test_the_audit_tells_of_rows_that_are_missing_doubled_or_of_no_record(settings: Settings) -> None:
    records = Records(settings)
    records.send(400)
    with sink(settings):
        wait_stored(settings, {"events": 400, "predictions": 400, "bypass": 40})
    store, table = TrainingStore(settings), events_table(settings.stream.fields)
    rows = rows_of(settings, "events")
    assert store.delete(table, "partition = 1 AND offset IN (3, 57)") == 2
    place = f"{settings.names.events}/2"
    again = rows.filter(partition=2).sort("offset").head(5)
    store.append(table, again, {place: (100, 101)})  # offset 100 has no record
    store.append(table, again.head(1).with_columns(offset=pl.lit(100, pl.Int64)), {place: (101, 102)})

    result = ecluse(settings, "audit", "--store", "--all")

    assert result.exit_code == 1
    assert "misses offsets 3, 57 of" in result.stdout
    report = audit_store(settings)
    assert [report.total(name) for name in ("missing", "doubled", "stray")] == [2, 5, 0]
    records.send(8)
    assert audit_store(settings, everything=True).total("missing") == 2 + 7 + 8 + 1  # the stray one is none any more


def test_a_label_that_is_none_becomes_a_dead_letter_and_the_others_are_stored(settings: Settings) -> None:
    names = settings.names
    good, bad = json({"event_id": "card-1", "value": 1}), json({"event_id": "card-1", "value": 7})
    produce(settings, names.labels("analyst"), [(2, good, ()), (2, bad, (("x", b"1"),)), (2, b"{", ()), (2, good, ())])
    with sink(settings) as running:
        wait_stored(settings, {"labels": 2})
        rejected = f'ecluse_store_rejected_labels_total{{topic="{names.labels("analyst")}"}} 2.0'
        wait_until("the rejected ones are counted", lambda: rejected in running.get("/metrics")[1])
        assert running.stop() == 0
    letters = read_all(settings, names.dead_letters)
    assert [(letter.partition(), letter.value()) for letter in letters] == [(2, bad), (2, b"{")]
    headers = letters[0].headers() or []
    assert ("x", b"1") in headers
    said = read_error_headers([(name, bytes(content or b"")) for name, content in headers])
    assert (said["topic"], said["partition"], said["offset"]) == (names.labels("analyst"), "2", "1")
    assert (said["stage"], said["connector.name"]) == ("label", f"{names.prefix}store")
    assert "The record is no label" in said["exception.message"]
    report = whole(settings)
    assert (report.total("records"), report.total("rows"), report.total("rejected")) == (4, 2, 2)


def test_a_field_that_is_declared_later_is_a_column_from_then_on(settings: Settings) -> None:
    records = Records(settings)
    records.send(40)
    with sink(settings):
        wait_stored(settings, {"events": 40})
    wider = changed(settings, stream={"fields": FIELDS | {"more": {"type": "integer", "required": False}}})
    records.send(40)
    with sink(wider):
        wait_stored(wider, {"events": 80})
    rows = rows_of(wider, "events").sort("offset", "partition")
    assert rows["more"].to_list() == [None] * 40 + list(range(40, 80))
    assert rows["extra"].to_list() == [f'{{"more":{number}}}' for number in range(40)] + [None] * 40


@pytest.mark.parametrize("fault", ["unwritable", "full disk"])
def test_a_store_that_cannot_be_written_stops_the_sink_with_a_sentence_and_the_next_one_catches_up(
    settings: Settings, fault: str
) -> None:
    records, folder = Records(settings), Path(settings.store.url)
    records.send(200)
    no_disk = 'ulimit -f 16; exec "$@"' if fault == "full disk" else ""  # files of 8 KiB at most: the log's first lines
    with sink(settings, ready=False, shell=no_disk) as stopped:
        if fault != "full disk":
            wait_stored(settings, {"events": 200, "predictions": 200})
        mend = broken(folder, fault)
        records.send(2000)
        assert stopped.process.wait(DEADLINE) == 1, stopped.text
        assert "training store at" in " ".join(stopped.text.split()), stopped.text
    mend()
    assert audit_store(settings).holds
    with sink(settings):
        wait_stored(settings, {"events": 2200, "predictions": 2200, "bypass": 220})
    whole(settings)


def broken(folder: Path, fault: str) -> Callable[[], object]:
    """Break a store under a running sink; what is returned mends it."""
    away = folder.with_name("away")
    if fault == "unwritable":
        folder.rename(away)
        folder.write_text("a file stands where the folder was")
        return lambda: (folder.unlink(), away.rename(folder))
    return lambda: None


def test_records_that_retention_deleted_before_they_were_stored_stop_the_sink_until_told_to_go_on_behind_them(
    settings: Settings,
) -> None:
    names, table = settings.names, events_table(settings.stream.fields)
    Records(settings).send(160)
    none = pl.DataFrame(schema=polars_schema(table))
    TrainingStore(settings).append(table, none, {f"{names.events}/1": (None, 20)})  # as if it had stored so many
    admin = kafka.admin(settings)
    for future in admin.delete_records([TopicPartition(names.events, 1, 30)]).values():
        future.result(DEADLINE)
    with sink(settings, ready=False) as stopped:
        assert stopped.process.wait(DEADLINE) == 1
        said = " ".join(stopped.text.split())
        assert f"Partition 1 of {names.events} is to be read on from offset 20" in said
        assert "deleted all before 30" in said
        assert "--skip-lost" in said
    assert audit_store(settings).total("missing") == 10
    with sink(settings, "--skip-lost") as running:
        wait_stored(settings, {"events": 130, "predictions": 160, "bypass": 16})
        assert "10 offsets" in " ".join(running.text.split())
    whole(settings)


def test_two_sinks_share_the_topics_and_a_bucket(
    servers: str, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket(monkeypatch) as (url, puts):
        settings = make_settings(servers, store={"url": url, "commit_seconds": 0.3, "commit_rows": 500})
        cluster.create_topics(settings)
        records = Records(settings)
        with sink(settings) as one, sink(settings) as two:
            for _ in range(5):
                records.send(400, labels=4)
            wait_stored(settings, {"events": 2000, "predictions": 2000, "bypass": 200, "labels": 20})
            assert all("ecluse_store_commits_total{" in each.get("/metrics")[1] for each in (one, two))
            assert [each.stop() for each in (one, two)] == [0, 0]
        assert whole(settings).total("rows") == 4220
        commits = [condition for path, condition in puts if re.search(r"_delta_log/\d+\.json$", path)]
        assert len(commits) > 8
        assert set(commits) == {"*"}, "a commit that did not ask whether it is the first of its version"

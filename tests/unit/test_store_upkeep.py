"""Compaction, vacuum, deletion and purge: what readers and writers of the same table notice of them."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import polars as pl
import pytest
from deltalake import DeltaTable, TableFeatures
from deltalake.exceptions import CommitFailedError

import ecluse.store.compaction
from ecluse.contract.tables import PREDICTIONS
from ecluse.errors import StoreConflict, StoreError
from ecluse.store.delta import TrainingStore

from .stores import app, data_files, fill, log_files, open_store, places, rows
from .test_store_append import table_of

LONG_AGO = time.time() - 100 * 3600


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    return open_store(tmp_path / "store", compact_files=2, retention_hours=30)


def delta(store: TrainingStore, version: int | None = None) -> DeltaTable:
    return DeltaTable(store.location(PREDICTIONS), version)


def age(files: list[Path]) -> None:
    for file in files:
        os.utime(file, (LONG_AGO, LONG_AGO))


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something once, when the next compaction has written its file and has not committed yet."""
    write = ecluse.store.compaction._write

    def written(*args: object) -> object:
        action = write(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(ecluse.store.compaction, "_write", write)
        act()
        return action

    monkeypatch.setattr(ecluse.store.compaction, "_write", written)


def test_compaction_puts_the_files_of_a_crowded_day_together(store: TrainingStore) -> None:
    fill(store, 5)
    store.append(PREDICTIONS, rows(1, 0, 3, days=1), {app(1): (None, 3)})
    before, offsets = places(store), store.offsets(PREDICTIONS)
    assert store.compact(PREDICTIONS) == 5
    assert (places(store), store.offsets(PREDICTIONS)) == (before, offsets)
    assert len(delta(store).file_uris()) == 2
    assert store.compact(PREDICTIONS) == 0


def test_a_compacted_file_has_the_bounds_of_its_rows_in_the_log(store: TrainingStore) -> None:
    fill(store, 3)
    store.compact(PREDICTIONS)
    [file] = pl.DataFrame(delta(store).get_add_actions(flatten=True)).to_dicts()
    assert (file["num_records"], file["min.offset"], file["max.offset"], file["max.partition"]) == (30, 0, 29, 0)
    assert (
        file["min.known_at"] == file["max.known_at"] == store.scan(PREDICTIONS).select("known_at").collect().item(0, 0)
    )
    assert file["null_count.source_offset"] == 30
    assert store.scan(PREDICTIONS).filter(pl.col("offset") > 27).collect().height == 2


def test_large_files_and_days_with_few_files_are_left_alone(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 2)
    assert store.compact(PREDICTIONS) == 0
    monkeypatch.setattr(ecluse.store.compaction, "_FILE_BYTES", 2 * data_files(store)[0].stat().st_size)
    fill(store, 3)
    assert store.compact(PREDICTIONS) == 0


def test_files_go_together_up_to_the_size_aimed_at(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 8)
    size = max(file.stat().st_size for file in data_files(store))
    monkeypatch.setattr(ecluse.store.compaction, "_FILE_BYTES", 4 * size)
    before = places(store)
    assert store.compact(PREDICTIONS) > 5
    assert 2 <= len(delta(store).file_uris()) <= 3
    assert places(store) == before


def test_files_from_before_a_new_column_are_compacted_with_those_after(store: TrainingStore) -> None:
    before, after = table_of(), table_of(b="number")  # type: ignore[arg-type]
    for start in (0, 1):
        store.append(before, rows(0, start, start + 1, before), {app(0): (start or None, start + 1)})
    store.append(after, rows(0, 2, 3, after, values={"b": 0.5}), {app(0): (2, 3)})
    assert store.compact(after) == 3
    assert store.scan(after).sort("offset").collect()["b"].to_list() == [None, None, 0.5]


@pytest.mark.parametrize(
    ("act", "done", "rows_left"),
    [
        (lambda store: fill(store, 1), 5, 60),
        (lambda store: store.compact(PREDICTIONS), 0, 50),
        (lambda store: store.delete(PREDICTIONS, "offset = 7"), 0, 49),
        (lambda store: (store.compact(PREDICTIONS), store.delete(PREDICTIONS, "offset = 7")), 0, 49),
        (lambda store: store.vacuum(PREDICTIONS), 5, 50),
    ],
    ids=["append", "compaction", "deletion", "compaction and deletion", "vacuum"],
)
def test_a_compaction_that_others_come_before_doubles_no_row_and_brings_none_back(
    store: TrainingStore,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[TrainingStore], object],
    done: int,
    rows_left: int,
) -> None:
    fill(store, 5)
    meanwhile(monkeypatch, lambda: act(store))
    assert store.compact(PREDICTIONS) == done
    left = places(store)
    assert len(left) == len(set(left)) == rows_left


def test_files_that_another_compaction_replaced_between_the_look_and_the_writing_are_left(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 5)
    replace = ecluse.store.delta.replace

    def late(*args: object) -> bool:
        monkeypatch.setattr(ecluse.store.delta, "replace", replace)
        store.compact(PREDICTIONS)
        return replace(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(ecluse.store.delta, "replace", late)
    assert store.compact(PREDICTIONS) == 0
    assert len(places(store)) == 50


def test_a_compaction_whose_answer_got_lost_keeps_its_file(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 5)
    commit = DeltaTable.create_write_transaction

    def lost(*args: object, **kwargs: object) -> None:
        commit(*args, **kwargs)  # type: ignore[arg-type]
        raise CommitFailedError("a version of that number exists")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    assert store.compact(PREDICTIONS) == 5
    assert len(places(store)) == 50


def test_a_deletion_begins_anew_where_a_compaction_came_before(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 5)
    delete = DeltaTable.delete

    def late(stale: DeltaTable, *args: object, **kwargs: object) -> dict[str, object]:
        monkeypatch.setattr(DeltaTable, "delete", delete)
        store.compact(PREDICTIONS)
        store.delete(PREDICTIONS, "offset = 1")
        return delete(stale, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaTable, "delete", late)
    assert store.delete(PREDICTIONS, "offset in (1, 7, 33)") == 2
    assert places(store) == [(0, offset) for offset in range(50) if offset not in (1, 7, 33)]


def test_appends_deletions_compactions_and_vacuums_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    def opened() -> TrainingStore:
        return open_store(tmp_path / "store", compact_files=2, retention_hours=1)

    fill(opened(), 1, partition=9)
    done, failures = Event(), []

    def told(act: Callable[[TrainingStore], object]) -> None:
        store = opened()
        try:
            while not done.is_set():
                act(store)
        except Exception as error:
            failures.append(error)

    def sink(store: TrainingStore, partition: int) -> None:
        name = app(partition)
        while (start := store.offsets(PREDICTIONS).get(name) or 0) < 150:
            try:
                store.append(PREDICTIONS, rows(partition, start, start + 10), {name: (start or None, start + 10)})
            except StoreConflict:
                continue

    upkeep = [
        Thread(target=told, args=(act,))
        for act in (lambda s: s.compact(PREDICTIONS), lambda s: s.compact(PREDICTIONS), lambda s: s.vacuum(PREDICTIONS))
    ]
    sinks = [Thread(target=sink, args=(opened(), partition)) for partition in (0, 0, 1)]
    for thread in [*upkeep, *sinks]:
        thread.start()
    assert sum(opened().delete(PREDICTIONS, f"partition = 9 and offset = {offset}") for offset in range(5)) == 5
    for thread in sinks:
        thread.join(timeout=60)
    done.set()
    for thread in upkeep:
        thread.join(timeout=60)
    assert failures == []
    expected = [(part, offset) for part in (0, 1) for offset in range(150)] + [(9, offset) for offset in range(5, 10)]
    assert places(opened()) == expected


def test_who_reads_an_older_version_goes_on_within_the_retention(store: TrainingStore) -> None:
    fill(store, 5)
    age(data_files(store))
    older = store.scan(PREDICTIONS)
    store.compact(PREDICTIONS)
    store.delete(PREDICTIONS, "offset = 3")
    assert store.vacuum(PREDICTIONS) == 0
    assert older.collect().height == 50


def test_a_purge_leaves_only_the_files_of_the_newest_version(store: TrainingStore) -> None:
    fill(store, 5)
    older = store.scan(PREDICTIONS)
    store.compact(PREDICTIONS)
    assert store.delete(PREDICTIONS, "offset = 3") == 1
    assert store.purge(PREDICTIONS) == 6
    assert [str(file) for file in data_files(store)] == delta(store).file_uris()
    assert len(places(store)) == 49
    with pytest.raises(StoreError), store.reading(PREDICTIONS):
        older.collect()


def test_files_that_no_commit_names_go_when_they_are_older_than_any_commit_under_way(store: TrainingStore) -> None:
    fill(store, 1)
    young, old = (data_files(store)[0].with_name(f"{name}.parquet") for name in ("young", "old"))
    for file in (young, old):
        file.write_bytes(b"of a commit under way, or of a crash")
    age([old])
    assert store.purge(PREDICTIONS) == 0
    assert store.vacuum(PREDICTIONS) == 1
    assert (young.exists(), old.exists()) == (True, False)


def test_a_vacuum_that_finds_nothing_commits_nothing(store: TrainingStore) -> None:
    fill(store, 3)
    before = delta(store).version()
    store.vacuum(PREDICTIONS)
    assert delta(store).version() == before


def test_offsets_outlive_checkpoints_and_the_cleaning_of_the_log(store: TrainingStore) -> None:
    fill(store, 1, partition=7)
    fill(store, 12)
    age(log_files(store))
    fill(store, 10)
    names = [file.name for file in log_files(store)]
    assert f"{0:020d}.json" not in names  # or the test shows nothing
    assert store.offsets(PREDICTIONS) == {app(0): 220, app(7): 10}
    assert all(delta(store).transaction_version(name) == end for name, end in store.offsets(PREDICTIONS).items())
    fill(store, 1, partition=7)
    assert len(places(store)) == 240


def test_the_stated_retention_is_that_of_the_log_and_follows_the_settings(store: TrainingStore) -> None:
    fill(store, 1)
    assert delta(store).metadata().configuration["delta.logRetentionDuration"] == "interval 30 hours"
    open_store(store.url, retention_hours=50).vacuum(PREDICTIONS)
    assert delta(store).metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 50 hours"


def test_the_log_keeps_nothing_of_a_row_but_its_place_and_time(store: TrainingStore) -> None:
    values = {"entity": "card-4711", "event_id": "tx-4711", "score": 0.4711}
    store.append(PREDICTIONS, rows(0, 0, 3, values=values), {app(0): (None, 3)})
    fill(store, 12)  # a checkpoint
    store.compact(PREDICTIONS)
    assert store.delete(PREDICTIONS, "partition = 0 and offset < 3") == 3
    store.purge(PREDICTIONS)
    checkpoints = [file for file in log_files(store) if file.suffix == ".parquet"]
    log = "".join(file.read_text() for file in log_files(store) if file.suffix == ".json")
    log += "".join(json.dumps(pl.read_parquet(file).to_dicts(), default=str) for file in checkpoints)
    assert checkpoints and "minValues" in log and "4711" not in log
    kept = pl.concat([pl.read_parquet(file) for file in data_files(store)], how="diagonal")
    assert kept.filter(pl.col("entity") == "card-4711").is_empty() and kept.height == 120


def test_a_table_whose_rows_another_writer_marked_as_deleted_is_not_compacted(store: TrainingStore) -> None:
    fill(store, 5)
    delta(store).alter.add_feature([TableFeatures.DeletionVectors], allow_protocol_versions_increase=True)
    assert store.compact(PREDICTIONS) == 0

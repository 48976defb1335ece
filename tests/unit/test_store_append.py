"""Rows and offsets come into a table of the training store together, once."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Thread

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from obstore.store import ObjectStore

import ecluse.store.delta
from ecluse.contract.tables import LABELS, PREDICTIONS, Kind, Table
from ecluse.errors import StoreConflict, StoreError
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema

from .stores import app, data_files, fill, open_store, places, rows


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    return open_store(tmp_path / "store")


def between(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something once, when the next append has looked at its table and written its files, and has not committed yet."""
    write = ecluse.store.delta.write

    def written(*args: object) -> object:
        actions = write(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(ecluse.store.delta, "write", write)
        act()
        return actions

    monkeypatch.setattr(ecluse.store.delta, "write", written)


def test_a_table_that_is_not_there_has_no_rows_and_no_offsets(store: TrainingStore) -> None:
    assert store.scan(PREDICTIONS).collect().schema == polars_schema(PREDICTIONS)
    assert store.scan(PREDICTIONS).collect().is_empty()
    assert store.offsets(PREDICTIONS) == {}
    assert (store.delete(PREDICTIONS, "true"), store.compact(PREDICTIONS), store.vacuum(PREDICTIONS)) == (0, 0, 0)


def test_rows_and_offsets_are_there_after_an_append(store: TrainingStore) -> None:
    store.append(PREDICTIONS, rows(0, 40, 50), {app(0): (None, 52)})  # the topic holds nothing before 40 any more
    store.append(PREDICTIONS, rows(0, 52, 60), {app(0): (52, 60)})
    assert store.offsets(PREDICTIONS) == {app(0): 60}
    assert places(store) == [(0, offset) for offset in [*range(40, 50), *range(52, 60)]]
    assert store.offsets(LABELS) == {}


def test_each_kind_of_column_comes_back_as_it_was(store: TrainingStore) -> None:
    values: dict[str, object] = {
        "event_id": "Łódź 1",
        "propensity": 0.1 + 0.2,
        "version": 2**62,
        "threshold": float("nan"),
    }
    written = rows(0, 0, 3, values=values)
    store.append(PREDICTIONS, written, {app(0): (None, 3)})
    assert store.scan(PREDICTIONS).collect().equals(written)


@pytest.mark.parametrize(
    "known", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)]
)
def test_the_first_and_the_last_time_that_there_is_can_be_found(store: TrainingStore, known: datetime) -> None:
    for start in (0, 1, 2):
        written = rows(0, start, start + 1, values={"known_at": known, "day": known.date()})
        store.append(PREDICTIONS, written, {app(0): (start or None, start + 1)})
    asked = store.scan(PREDICTIONS).filter(pl.col("known_at") == known, pl.col("day") == known.date())
    assert asked.collect().height == 3
    assert store.delete(PREDICTIONS, f"known_at = '{known.isoformat()}' and offset = 1") == 1
    assert asked.collect().height == 3
    assert places(store) == [(0, 0), (0, 2)]


def test_an_advance_needs_no_rows(store: TrainingStore) -> None:
    nothing = rows(0, 0, 0)
    store.append(PREDICTIONS, nothing, {app(0): (None, 7), app(1): (None, 3)})
    store.append(PREDICTIONS, nothing, {app(0): (7, 9)})
    assert store.offsets(PREDICTIONS) == {app(0): 9, app(1): 3}
    assert data_files(store) == []
    fill(store, 1)
    assert len(places(store)) == 10


def test_rows_without_an_advance_are_refused(store: TrainingStore) -> None:
    with pytest.raises(ValueError, match="twice"):
        store.append(PREDICTIONS, rows(0, 0, 1), {})


def test_a_batch_of_several_days_and_partitions_is_one_version(store: TrainingStore) -> None:
    batch = pl.concat([rows(0, 0, 5), rows(1, 0, 5, days=1), rows(1, 5, 8)])
    store.append(PREDICTIONS, batch, {app(0): (None, 5), app(1): (None, 8)})
    before = DeltaTable(store.location(PREDICTIONS)).version()
    store.append(PREDICTIONS, rows(0, 5, 6, days=2), {app(0): (5, 6)})
    assert DeltaTable(store.location(PREDICTIONS)).version() == before + 1
    assert len(places(store)) == 14
    assert store.scan(PREDICTIONS).select("day").unique().collect().height == 3


@pytest.mark.parametrize("start", [None, 0, 5, 11])
def test_a_batch_that_begins_elsewhere_is_refused_whole(store: TrainingStore, start: int | None) -> None:
    fill(store, 1)
    with pytest.raises(StoreConflict, match="another writer was there before"):
        store.append(PREDICTIONS, pl.concat([rows(0, 0, 9), rows(1, 0, 9)]), {app(1): (None, 9), app(0): (start, 20)})
    assert places(store) == [(0, offset) for offset in range(10)]
    assert store.offsets(PREDICTIONS) == {app(0): 10}
    assert len(data_files(store)) == 1


def test_a_start_where_nothing_was_ever_written_is_refused(store: TrainingStore) -> None:
    with pytest.raises(StoreConflict, match="never written"):
        store.append(PREDICTIONS, rows(0, 5, 9), {app(0): (5, 9)})
    assert not Path(store.location(PREDICTIONS)).exists()


def test_delta_alone_would_take_a_batch_again_so_the_check_before_is_needed(store: TrainingStore) -> None:
    """delta-rs#2580: an application's version is refused when two commits race, and not when it comes again later."""
    fill(store, 2)
    delta = DeltaTable(store.location(PREDICTIONS))
    again = CommitProperties(app_transactions=[Transaction(app(0), 20)], max_commit_retries=0)
    delta.create_write_transaction([], "append", delta.schema(), partition_by=["day"], commit_properties=again)
    assert DeltaTable(store.location(PREDICTIONS)).version() == delta.version() + 1
    with pytest.raises(StoreConflict):
        store.append(PREDICTIONS, rows(0, 10, 20), {app(0): (10, 20)})
    assert places(store) == [(0, offset) for offset in range(20)]


def test_an_append_goes_on_where_others_committed_what_is_not_its_own(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 1)
    between(monkeypatch, lambda: fill(store, 1, partition=1))
    fill(store, 1)
    assert store.offsets(PREDICTIONS) == {app(0): 20, app(1): 10}
    assert len(places(store)) == len(set(places(store))) == 30
    assert len(data_files(store)) == 3  # nothing was written twice


def test_of_two_writers_of_a_partition_the_second_is_refused_and_leaves_nothing(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 1)
    between(monkeypatch, lambda: fill(store, 1, size=3))
    with pytest.raises(StoreConflict, match="come to 13"):
        fill(store, 1)
    assert places(store) == [(0, offset) for offset in range(13)]
    assert len(data_files(store)) == 2


def test_two_writers_may_make_the_table_at_once(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    create = DeltaTable.create

    def late(*args: object, **kwargs: object) -> DeltaTable:
        monkeypatch.setattr(DeltaTable, "create", create)
        fill(store, 1, size=4)
        return create(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(DeltaTable, "create", late)
    with pytest.raises(StoreConflict, match="come to 4"):
        fill(store, 1)
    assert places(store) == [(0, offset) for offset in range(4)]


def test_many_writers_begin_at_the_same_moment(tmp_path: Path) -> None:
    writers = 6
    barrier, refused = Barrier(writers), []

    def begin(writer: int) -> None:
        store = open_store(tmp_path / "store")
        barrier.wait(timeout=20)
        try:
            store.append(PREDICTIONS, rows(writer % 3, 0, 10), {app(writer % 3): (None, 10)})
        except StoreConflict:
            refused.append(writer)

    threads = [Thread(target=begin, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(refused) == 3
    assert places(open_store(tmp_path / "store")) == [(part, offset) for part in range(3) for offset in range(10)]


def test_a_commit_whose_answer_got_lost_is_not_made_twice(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store's client sends a request again when its answer is lost, and is told then that the file exists."""
    fill(store, 1)
    commit = DeltaTable.create_write_transaction

    def lost(*args: object, **kwargs: object) -> None:
        commit(*args, **kwargs)  # type: ignore[arg-type]
        raise CommitFailedError("a version of that number exists")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    with pytest.raises(StoreConflict, match="come to 20"):
        fill(store, 1)
    assert store.offsets(PREDICTIONS) == {app(0): 20}
    assert places(store) == [(0, offset) for offset in range(20)]


def test_who_always_comes_too_late_is_told_in_the_end(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, 1)
    monkeypatch.setattr("ecluse.store.delta.time.sleep", lambda _: None)

    def refused(delta: DeltaTable, *args: object, **kwargs: object) -> None:
        delta.alter.set_table_properties({"delta.appendOnly": "false"})  # another version, by somebody else
        raise CommitFailedError("no")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", refused)
    with pytest.raises(StoreConflict, match="10 times in a row"):
        fill(store, 1)
    assert len(data_files(store)) == 1


def test_a_commit_that_is_refused_though_nobody_came_before_is_told_with_the_reason(store: TrainingStore) -> None:
    """As of a table to which another program has given a feature that our writer does not know."""
    fill(store, 1)
    folder = Path(store.url) / PREDICTIONS.name / "_delta_log"
    protocol = {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["rowTracking", "domainMetadata"]}
    newest = max(int(path.stem) for path in folder.glob("*.json"))
    (folder / f"{newest + 1:020}.json").write_text(json.dumps({"protocol": protocol}))
    with pytest.raises(StoreError, match="table features") as failed:
        fill(store, 1)
    assert not isinstance(failed.value, StoreConflict)


def table_of(**columns: Kind) -> Table:
    """A small table called predictions."""
    places = {"known_at": Kind.TIME, "day": Kind.DAY, "partition": Kind.INTEGER, "offset": Kind.INTEGER}
    return Table(PREDICTIONS.name, {**places, **columns})


def test_a_new_column_is_added_and_an_old_one_stays_null(store: TrainingStore) -> None:
    before, after = table_of(a=Kind.TEXT), table_of(b=Kind.NUMBER)
    store.append(before, rows(0, 0, 2, before, values={"a": "x"}), {app(0): (None, 2)})
    store.append(after, rows(0, 2, 4, after, values={"b": 1.5}), {app(0): (2, 4)})
    assert store.scan(after).sort("offset").collect()["b"].to_list() == [None, None, 1.5, 1.5]
    assert store.scan(before).sort("offset").collect()["a"].to_list() == ["x", "x", None, None]
    assert places(store, after) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_a_column_that_a_table_does_not_have_yet_is_null(store: TrainingStore) -> None:
    before, after = table_of(), table_of(b=Kind.NUMBER)
    store.append(before, rows(0, 0, 2, before), {app(0): (None, 2)})
    assert store.scan(after).filter(pl.col("b").is_null()).select("b", "offset").collect().height == 2


def test_a_column_may_come_while_another_writer_appends(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = table_of(), table_of(b=Kind.NUMBER)
    store.append(before, rows(0, 0, 2, before), {app(0): (None, 2)})
    between(monkeypatch, lambda: store.append(after, rows(1, 0, 2, after), {app(1): (None, 2)}))
    store.append(before, rows(0, 2, 4, before), {app(0): (2, 4)})
    assert len(places(store, after)) == 6


@pytest.mark.parametrize(
    ("after", "sentence"),
    [(table_of(a=Kind.NUMBER), "'a' has the type string"), (table_of(A=Kind.TEXT), "capitals only")],
)
def test_a_changed_column_is_refused_before_anything_is_written(
    store: TrainingStore, after: Table, sentence: str
) -> None:
    before = table_of(a=Kind.TEXT)
    store.append(before, rows(0, 0, 2, before), {app(0): (None, 2)})
    with pytest.raises(StoreError, match=sentence):
        store.append(after, rows(0, 2, 4, after), {app(0): (2, 4)})
    with pytest.raises(StoreError, match=sentence):
        store.scan(after)
    assert (len(places(store, before)), len(data_files(store)), store.offsets(before)) == (2, 1, {app(0): 2})


def test_a_store_without_conditional_writes_is_refused(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put = ecluse.store.delta.obstore.put

    def overwriting(store: ObjectStore, name: str, data: bytes, *, mode: str) -> object:
        return put(store, name, data)

    monkeypatch.setattr("ecluse.store.delta.obstore.put", overwriting)
    with pytest.raises(StoreError, match="conditional writes"):
        fill(store, 1)
    assert not any(Path(store.url).iterdir())


def test_files_are_on_the_disk_before_a_commit_names_them(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    between(monkeypatch, lambda: synced.append(Path("commit")))
    fill(store, 1)
    [file] = data_files(store)
    assert synced == [file, file.parent, Path("commit")]

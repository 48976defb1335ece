"""A store that cannot be used says so in a sentence, and is never left with half a write."""

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

import ecluse.store.delta
import ecluse.store.place
from console.audit_store import _Rows
from ecluse.contract.tables import PREDICTIONS
from ecluse.errors import StoreError
from ecluse.store.delta import TrainingStore

from .stores import app, data_files, fill, log_files, open_store, places, rows


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    store = open_store(tmp_path / "store", compact_files=2)
    fill(store, 3)
    return store


@pytest.fixture
def nobody(store: TrainingStore) -> Iterator[None]:
    """A user who may read the store and not write it."""
    if os.geteuid() == 0:
        temporary = Path(tempfile.gettempdir())
        for folder in [Path(store.url), *Path(store.url).parents]:
            if temporary in folder.parents:
                folder.chmod(0o755)
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        folders = [path for path in Path(store.url).rglob("*") if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        yield
        for folder in folders:
            folder.chmod(0o755)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: how a full disk looks to who writes. (Python ignores the signal of that.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("url", ["", "ftp://host/x", "s3:/bucket", "s3://", "http://host/x", "az://container/x"])
def test_a_url_that_makes_no_sense_is_refused_by_name(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        open_store(url)
    assert str(refused.value).startswith(f"The training store at {url}: ")
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("name", ["with a space", "naïve", "day=1", "100%"])
def test_a_folder_of_any_name_works_or_is_refused(tmp_path: Path, name: str) -> None:
    if {"%", "="} & set(name):
        with pytest.raises(StoreError, match="must not hold"):
            open_store(tmp_path / name)
        return
    store = open_store(tmp_path / name, compact_files=2)
    fill(store, 3)
    assert store.compact(PREDICTIONS) == 3
    assert len(places(store)) == 30


def test_a_store_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url in ("file", "file/store"):
        with pytest.raises(StoreError, match=r"file.*: .*\(os error"):
            open_store(tmp_path / url)


@pytest.mark.usefixtures("nobody")
def test_a_store_that_cannot_be_written_can_be_read(store: TrainingStore) -> None:
    store = open_store(store.url, compact_files=2)
    for write in (
        lambda: fill(store, 1),
        lambda: store.compact(PREDICTIONS),
        lambda: store.delete(PREDICTIONS, "true"),
    ):
        with pytest.raises(StoreError, match="Permission denied"):
            write()
    assert len(places(store)) == 30
    assert len(data_files(store)) == 3


@pytest.mark.parametrize("size", [0, 1000], ids=["full", "nearly full"])
def test_a_full_disk_stops_an_append_whole_and_it_goes_on_afterwards(store: TrainingStore, size: int) -> None:
    before = [*data_files(store), *log_files(store)]
    with files_of_at_most(size), pytest.raises(StoreError, match="os error"):
        fill(store, 1, size=500)
    assert [*data_files(store), *log_files(store)] == before
    fill(store, 1, size=500)
    assert places(store) == [(0, offset) for offset in range(530)]


def test_a_disk_that_is_full_before_the_commit_leaves_the_table_as_it_was(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files_of_at_most(10**9), monkeypatch.context() as patched:
        commit = ecluse.store.delta._commit

        def full(*args: object) -> bool:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            return commit(*args)  # type: ignore[arg-type]

        patched.setattr(ecluse.store.delta, "_commit", full)
        with pytest.raises(StoreError, match="os error"):
            fill(store, 1)
    assert (store.offsets(PREDICTIONS), len(places(store))) == ({app(0): 30}, 30)
    fill(store, 1)
    assert places(store) == [(0, offset) for offset in range(40)]


def test_a_full_disk_stops_upkeep_and_changes_nothing(store: TrainingStore) -> None:
    before = data_files(store)
    for task in (lambda: store.compact(PREDICTIONS), lambda: store.delete(PREDICTIONS, "offset = 1")):
        with files_of_at_most(1000), pytest.raises(StoreError, match="os error"):
            task()
        assert len(places(store)) == 30
        assert set(data_files(store)) >= set(before)
    assert store.compact(PREDICTIONS) == 3


def commit(store: TrainingStore, version: int) -> Path:
    return log_files(store)[0].with_name(f"{version:020d}.json")


def checkpoint(store: TrainingStore) -> Path:
    DeltaTable(store.location(PREDICTIONS)).create_checkpoint()
    return next(file for file in log_files(store) if file.name.endswith(".checkpoint.parquet"))


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda store: commit(store, 3).write_text('{"add": oops'),
        lambda store: os.truncate(commit(store, 2), 200),
        lambda store: commit(store, 1).unlink(),
        lambda store: commit(store, 0).unlink(),
        lambda store: checkpoint(store).unlink(),
        lambda store: checkpoint(store).write_text("oops"),
        lambda store: (
            commit(store, 0).write_text('{"commitInfo":{}}\n') and [commit(store, n).unlink() for n in (1, 2, 3)]
        ),
    ],
    ids=[
        "a mangled commit",
        "half a commit",
        "a lost commit",
        "a lost beginning",
        "a lost checkpoint",
        "a mangled checkpoint",
        "no table",
    ],
)
def test_a_corrupt_log_stops_every_write_with_a_sentence(
    store: TrainingStore, corrupt: Callable[[TrainingStore], object]
) -> None:
    corrupt(store)
    before = [*data_files(store), *log_files(store)]
    tasks: list[Callable[[], object]] = [
        lambda: fill(store, 1),
        lambda: store.scan(PREDICTIONS),
        lambda: store.compact(PREDICTIONS),
        lambda: store.delete(PREDICTIONS, "true"),
        lambda: store.vacuum(PREDICTIONS),
        lambda: store.purge(PREDICTIONS),
    ]
    for task in tasks:
        with pytest.raises(StoreError) as told:
            task()
        assert str(told.value).startswith(f"The training store at {store.location(PREDICTIONS)}: ")
        assert len(str(told.value)) < 500
    assert [*data_files(store), *log_files(store)] == before


@pytest.mark.parametrize("corrupt", [Path.unlink, lambda file: os.truncate(file, 100)], ids=["missing", "cut off"])
def test_a_data_file_that_is_missing_or_cut_off_stops_readers_and_compaction(
    store: TrainingStore, corrupt: Callable[[Path], object]
) -> None:
    corrupt(data_files(store)[1])
    with pytest.raises(StoreError), store.reading(PREDICTIONS):
        store.scan(PREDICTIONS).collect()
    with pytest.raises(StoreError):
        store.compact(PREDICTIONS)
    assert len(data_files(store)) == (2 if corrupt is Path.unlink else 3)


def test_a_table_that_was_removed_is_not_taken_for_one_that_goes_on(store: TrainingStore) -> None:
    shutil.rmtree(store.location(PREDICTIONS))
    assert store.offsets(PREDICTIONS) == {}
    with pytest.raises(StoreError, match="never written"):
        store.append(PREDICTIONS, rows(0, 30, 40), {app(0): (30, 40)})


def test_a_listing_that_passed_over_a_commit_is_repeated(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is not listed at one moment: of two commits that are made meanwhile, the later one may be listed alone."""
    opened = ecluse.store.place._Delta
    failures = [DeltaError("Expected contiguous commit files, but found gap")] * 2

    def gap(*args: object) -> DeltaTable:
        if failures:
            raise failures.pop()
        return opened(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(ecluse.store.place, "_Delta", gap)
    fill(store, 1)
    assert (failures, len(places(store))) == ([], 40)


def test_an_audit_of_a_table_whose_data_is_gone_ends_with_a_sentence(store: TrainingStore) -> None:
    audited = _Rows(store, PREDICTIONS, None)
    assert audited.within(0, (0, 100)).tolist() == list(range(30))
    data_files(store)[0].unlink()
    with pytest.raises(StoreError, match="predictions"):
        audited.within(0, (0, 100))

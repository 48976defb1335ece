"""What is read of a table's log: all that matters, whatever its listing shows, and no more of it as it grows."""

from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import LocalStore

from ecluse.contract.tables import PREDICTIONS
from ecluse.errors import StoreError
from ecluse.store.delta import TrainingStore
from ecluse.store.log import Log

from .stores import app, fill, log_files, open_store


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    store = open_store(tmp_path / "store")
    fill(store, 42)
    return store


def listed(store: TrainingStore) -> Log:
    log = Log.of(LocalStore(Path(store.url)), PREDICTIONS.name)
    assert log is not None
    return log


def test_a_log_is_listed_from_its_newest_checkpoint_on(store: TrainingStore) -> None:
    log = listed(store)
    assert len(log_files(store)) > 43
    assert len(log.commits) <= 20
    assert log.version == 42
    assert store.offsets(PREDICTIONS) == {app(0): 420}


def test_where_the_named_checkpoint_is_not_there_the_commits_tell(store: TrainingStore) -> None:
    for file in log_files(store):
        if "checkpoint." in file.name:
            file.unlink()
    assert len(listed(store).commits) == 43
    assert store.offsets(PREDICTIONS) == {app(0): 420}


def test_a_commit_that_a_listing_passed_over_is_looked_for_before_it_is_called_missing(
    store: TrainingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = obstore.list, []

    class Listing:
        def __init__(self, entries: list[Any]) -> None:
            self.entries = entries

        def collect(self) -> list[Any]:
            return self.entries

    def passing_over(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        entries = real(*args, **kwargs).collect()
        return Listing([entry for entry in entries if len(calls) > 1 or f"{41:020}.json" not in entry["path"]])

    monkeypatch.setattr(obstore, "list", passing_over)
    assert store.offsets(PREDICTIONS) == {app(0): 420}
    assert len(calls) == 2

    monkeypatch.setattr(obstore, "list", real)
    next(file for file in log_files(store) if file.name == f"{41:020}.json").unlink()
    with pytest.raises(StoreError, match="the commit 41 is missing from its log"):
        store.offsets(PREDICTIONS)

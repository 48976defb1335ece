"""`ecluse store forget`: nothing of an entity is left in the store, and nothing of it comes back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from ecluse import cluster, kafka
from ecluse.contract.records import BypassSample, Decision, Label, Prediction, Source
from ecluse.contract.tables import FORGOTTEN, LABELS, PREDICTIONS, Table
from ecluse.errors import SettingsError, StoreConflict
from ecluse.secrets import make_secret
from ecluse.sections import LabelSettings
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ingest.forget import Entity, training_sets
from ingest.forgotten import Forgotten
from ingest.rows import BypassRows, EventRows, LabelRows, PredictionRows
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.sinks import rows_of, sink, wait_stored
from tests.unit.test_pipeline import FakeRecord
from tests.workers import DEADLINE

WHO = "card-4711"
OTHER = "card-0815"
#: Where the events of both end, in their one partition, at the request.
ENDS = {0: 20}


class Filled:
    """A store with the rows of two entities, ten events each, as the sink would have written them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = TrainingStore(settings)
        self.events, self.bypass = EventRows(settings), BypassRows(settings)
        self.predictions, self.labels = PredictionRows(settings), LabelRows(settings, "chargeback")
        self.sink = Forgotten(settings, self.store)
        self.next: dict[str, int] = {}
        for start in (0, 10):
            self.put(self.events, self.events.table, range(start, start + 10), _event)
            self.put(self.predictions, PREDICTIONS, range(start, start + 10), _prediction)
        self.put(self.bypass, self.bypass.table, range(4), _sample)
        self.put(self.labels, LABELS, range(20), _label)

    def put(
        self, rows: Any, table: Table, numbers: Any, value: Callable[[int], bytes], start: int | None = None
    ) -> int:
        """Append the records that these events give; returns how many rows they gave."""
        at = self.next.get(table.name) if start is None else start
        key = (lambda i: f"tx-{i:04d}") if table is LABELS else _whose
        records = [FakeRecord((at or 0) + j, value(i), key(i).encode()) for j, i in enumerate(numbers)]
        made = rows(0, records)
        frame = made[0] if isinstance(made, tuple) else made
        end = (at or 0) + len(records)
        self.next[table.name] = end
        return self.sink.append(table, frame, {f"{table.name}/0": (at, end)}).height

    def forget(self, key: str = WHO, ends: dict[int, int] = ENDS) -> Any:
        """As the command does, with a store of its own."""
        return Entity(self.settings, TrainingStore(self.settings), key).forget(ends, lambda done, of: None)

    def rows_of(self, table: Table, *places: int) -> int:
        """How many rows a table has; at these offsets, where some are named."""
        rows = self.store.scan(table).collect()
        return rows.filter(pl.col("offset").is_in(places)).height if places else rows.height

    @property
    def tables(self) -> list[Table]:
        return [self.events.table, PREDICTIONS, self.bypass.table, LABELS]


def _whose(i: int) -> str:
    return WHO if i % 2 else OTHER


def _said(i: int) -> dict[str, Any]:
    note = f"secret of {_whose(i)}"
    return {
        "transaction_id": f"tx-{i:04d}",
        "customer_id": _whose(i),
        "amount": 1.5,
        "terminal_risk_30d": 0.1,
        "night": 0,
        "note": note,
    }


def _event(i: int) -> bytes:
    return msgspec.json.encode(_said(i))


def _prediction(i: int) -> bytes:
    source = Source("events", 0, i)
    scores = ("m", 1, "champion", 1.0, 0.5, Decision.ALLOW, 0.9, 3)
    return msgspec.msgpack.encode(Prediction(f"tx-{i:04d}", _whose(i), 1.7e9, 1.7e9, *scores, source))


def _sample(i: int) -> bytes:
    return msgspec.msgpack.encode(
        BypassSample(f"tx-{i:04d}", _whose(i), 1.7e9, 0.1, 3, 4, Source("events", 0, i), _said(i))
    )


def _label(i: int) -> bytes:
    return msgspec.json.encode(Label(f"tx-{i:04d}", 1, labeler="lee"))


def holding(folder: Path, text: str) -> list[Path]:
    """The files in which a text stands: as bytes, or in a column of a Parquet file."""

    def holds(file: Path) -> bool:
        if text.encode() in file.read_bytes():
            return True
        if file.suffix != ".parquet":
            return False
        rows = pl.read_parquet(file, hive_partitioning=False)
        return text in str(rows.rows())

    return [file for file in folder.rglob("*") if file.is_file() and holds(file)]


@pytest.fixture
def make_filled(make_settings: MakeSettings, tmp_path: Path) -> Callable[..., Filled]:
    def make(**store: Any) -> Filled:
        key = tmp_path / "hash.key"
        make_secret(key)
        folder = tmp_path / "store"
        return Filled(make_settings(store={"url": str(folder), "hash_key_file": key} | store))

    return make


@pytest.fixture
def filled(make_filled: Callable[..., Filled]) -> Filled:
    return make_filled()


def test_nothing_of_the_entity_is_left_in_any_file_and_others_lose_nothing(filled: Filled, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    assert len(holding(folder, WHO)) >= 5
    assert len(holding(folder, "tx-0003")) >= 4
    deleted = filled.forget()
    assert deleted.rows == {"events": 10, "predictions": 10, "bypass": 2, "labels": 10}
    assert holding(folder, WHO) == []
    assert [file for i in range(1, 20, 2) for file in holding(folder, f"tx-{i:04d}")] == []
    assert [filled.rows_of(table) for table in filled.tables] == [10, 10, 2, 10]
    assert set(filled.store.scan(LABELS).collect()["event_id"]) == {f"tx-{i:04d}" for i in range(0, 20, 2)}
    assert len(holding(folder, OTHER)) == 3


def test_files_that_compaction_replaced_go_too(make_filled: Callable[..., Filled], tmp_path: Path) -> None:
    filled = make_filled(compact_files=2)
    filled.put(filled.events, filled.events.table, range(20, 30), _event)
    filled.put(filled.labels, LABELS, range(20, 30), _label)
    filled.put(filled.labels, LABELS, range(30, 32), _label)
    assert filled.store.compact(filled.events.table) == 3
    assert filled.store.compact(LABELS) == 3
    assert filled.forget(ends={0: 30}).rows["events"] == 15
    assert [holding(tmp_path / "store", text) for text in (WHO, "tx-0003", "tx-0021")] == [[], [], []]


def test_the_places_of_the_deleted_rows_are_kept_once_for_the_audit(filled: Filled) -> None:
    for _ in range(2):
        filled.forget()
    rows = filled.store.scan(FORGOTTEN).filter(pl.col("kind") == "row").collect()
    assert rows["hash"].null_count() == rows.height
    for name, places in {"events": range(1, 20, 2), "predictions": range(1, 20, 2), "bypass": (1, 3)}.items():
        of_table = rows.filter(pl.col("table_name") == name)
        assert sorted(of_table["offset"]) == list(places)
        assert of_table["origin"].null_count() == of_table.height
    labels = rows.filter(pl.col("table_name") == "labels")
    assert sorted(labels["offset"]) == list(range(1, 20, 2))
    assert set(labels["origin"]) == {"chargeback"}


def test_what_comes_late_of_forgotten_events_is_dropped_and_its_place_kept(filled: Filled) -> None:
    filled.forget()
    assert filled.put(filled.labels, LABELS, [1, 2, 3], _label) == 1
    assert filled.put(filled.predictions, PREDICTIONS, [3, 4], _prediction) == 1
    assert filled.put(filled.bypass, filled.bypass.table, [5, 6], _sample) == 1
    noted = filled.store.scan(FORGOTTEN).filter(pl.col("kind") == "row", pl.col("offset") >= 20).collect()
    assert sorted(noted.select("table_name", "offset").rows()) == [("labels", 20), ("labels", 22), ("predictions", 20)]
    assert filled.rows_of(LABELS, 20, 21, 22) == 1


def test_events_after_the_request_are_a_new_beginning(filled: Filled) -> None:
    filled.forget()
    assert filled.put(filled.events, filled.events.table, [21, 23], _event) == 2
    assert filled.put(filled.labels, LABELS, [21], _label) == 1
    assert filled.put(filled.predictions, PREDICTIONS, [21], _prediction) == 1


def test_a_store_that_is_built_anew_from_the_topics_takes_back_nothing_that_was_forgotten(
    filled: Filled, tmp_path: Path
) -> None:
    filled.forget()
    for table in filled.tables:
        shutil.rmtree(tmp_path / "store" / table.name)
    filled.next.clear()
    filled.sink = Forgotten(filled.settings, filled.store)
    again = [(filled.labels, LABELS, _label), (filled.events, filled.events.table, _event)]
    again.append((filled.predictions, PREDICTIONS, _prediction))
    assert [filled.put(rows, table, range(20), value) for rows, table, value in again] == [10, 10, 10]


def test_an_event_that_the_sink_had_not_read_yet_is_dropped_with_the_labels_that_were_there_before(
    filled: Filled,
) -> None:
    """The label came first, and the store did not know whose it was."""
    assert filled.put(filled.labels, LABELS, [25, 26], _label) == 2
    filled.forget(ends={0: 30})
    assert filled.rows_of(LABELS, 20, 21) == 2
    assert filled.put(filled.events, filled.events.table, range(20, 28), _event) == 4
    assert filled.rows_of(LABELS, 20, 21) == 1
    assert filled.put(filled.labels, LABELS, [25], _label) == 0


def test_an_unknown_entity_is_kept_from_coming(filled: Filled) -> None:
    assert sum(filled.forget("card-unknown").rows.values()) == 0
    record = FakeRecord(5, _event(99), b"card-unknown")
    frame = filled.events(0, [record])
    assert filled.sink.append(filled.events.table, frame, {"again/0": (None, 6)}).is_empty()
    assert [filled.rows_of(table) for table in filled.tables] == [20, 20, 4, 20]


class Stopped(BaseException):
    """Somebody pulled the plug."""


CALLS = ("append", "delete", "purge")


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Have the store stop before its `number`-th call that changes it."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(TrainingStore, name)

        def stopping(self: TrainingStore, *args: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise Stopped
            return real(self, *args)

        monkeypatch.setattr(TrainingStore, name, stopping)

    for name in CALLS:
        wrap(name)
    return calls


def test_whenever_it_is_stopped_doing_it_again_finishes_it(filled: Filled, tmp_path: Path) -> None:
    """One run over all steps: each attempt gets a step farther than the one before."""
    number = 1
    while True:
        with pytest.MonkeyPatch.context() as patch:
            calls = stop_at(patch, number)
            try:
                filled.forget()
                break
            except Stopped:
                number += 1
    assert number > 10, calls
    assert holding(tmp_path / "store", WHO) == []
    assert holding(tmp_path / "store", "tx-0003") == []
    assert [filled.rows_of(table) for table in filled.tables] == [10, 10, 2, 10]


KILLED = """
import os, signal, sys
from pathlib import Path
import msgspec
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ingest.forget import Entity
settings = Settings(**msgspec.json.decode(Path(sys.argv[1]).read_bytes()))
real = TrainingStore.delete
def delete(self, table, predicate):
    if table.name == "predictions":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, table, predicate)
TrainingStore.delete = delete
Entity(settings, TrainingStore(settings), "card-4711").forget({0: 20}, lambda done, of: None)
"""


def test_killed_in_the_middle_it_is_finished_by_the_next_run(filled: Filled, tmp_path: Path) -> None:
    config = tmp_path / "settings.json"
    config.write_text(filled.settings.model_dump_json())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(config)], env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    assert killed.returncode == -signal.SIGKILL
    assert filled.rows_of(LABELS) == 10
    assert filled.rows_of(filled.events.table) == 20
    filled.forget()
    assert holding(tmp_path / "store", WHO) == []
    assert holding(tmp_path / "store", "tx-0003") == []


def test_whatever_a_sink_appends_meanwhile_nothing_of_the_entity_stays(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every step a sink appends an event of the entity, its prediction and its label, each from before the request."""
    sink = Forgotten(filled.settings, TrainingStore(filled.settings))
    refused, taken = [], []
    inside = False

    def interfere() -> None:
        for rows, table, value in (
            (filled.events, filled.events.table, _event),
            (filled.predictions, PREDICTIONS, _prediction),
            (filled.labels, LABELS, _label),
        ):
            at = filled.next[table.name]
            made = rows(0, [FakeRecord(at, value(at), (f"tx-{at:04d}" if table is LABELS else WHO).encode())])
            frame = made[0] if isinstance(made, tuple) else made
            try:
                kept = sink.append(table, frame, {f"{table.name}/0": (at, at + 1)})
            except StoreConflict:
                refused.append(table.name)
            else:
                filled.next[table.name] += 1
                taken.append(kept.height)

    for name in CALLS:
        real = getattr(TrainingStore, name)

        def step(self: TrainingStore, *args: Any, real: Any = real) -> Any:
            nonlocal inside
            if not inside and len(taken) < 24:
                inside = True
                interfere()
                inside = False
            return real(self, *args)

        monkeypatch.setattr(TrainingStore, name, step)
    filled.forget(ends={0: 1000})
    monkeypatch.undo()
    assert sum(taken) > 3
    assert 0 in taken
    assert holding(tmp_path / "store", WHO) == []
    left = filled.store.scan(LABELS).collect()
    assert left.filter(pl.col("offset") < 20).height == 10
    events = filled.store.scan(filled.events.table).collect()
    assert set(events["entity"]) == {OTHER}


def test_a_sink_that_looked_before_the_request_and_appends_after_it_is_refused(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingStore.append

    def late(self: TrainingStore, *args: Any) -> None:
        monkeypatch.undo()
        filled.forget()
        real(self, *args)

    monkeypatch.setattr(TrainingStore, "append", late)
    with pytest.raises(StoreConflict):
        filled.put(filled.events, filled.events.table, [21, 23], _event)
    assert filled.put(filled.events, filled.events.table, [21, 23], _event, start=20) == 2


def test_of_hashed_keys_and_ids_the_real_key_is_asked_for(make_filled: Callable[..., Filled], tmp_path: Path) -> None:
    filled = make_filled(hash=("customer_id", "transaction_id"), drop=("note",))
    assert holding(tmp_path / "store", WHO) == []
    assert filled.forget().rows == {"events": 10, "predictions": 10, "bypass": 2, "labels": 10}
    assert filled.put(filled.labels, LABELS, [1, 2], _label) == 1
    assert [filled.rows_of(table) for table in filled.tables] == [10, 10, 2, 11]


def test_another_key_than_that_of_the_stores_hashes_is_refused(filled: Filled, tmp_path: Path) -> None:
    filled.forget()
    make_secret(tmp_path / "other.key")
    for file, said in ((tmp_path / "other.key", "another key"), (None, "is not set")):
        store = filled.settings.store.model_copy(update={"hash_key_file": file})
        settings = filled.settings.model_copy(update={"store": store})
        sink = Forgotten(settings, filled.store)
        with pytest.raises(SettingsError, match=said):
            sink.append(LABELS, filled.labels(0, [])[0], {"labels/0": (20, 21)})


def test_it_names_the_training_sets_whose_time_reaches_over_the_entitys_events(filled: Filled, tmp_path: Path) -> None:
    found = Entity(filled.settings, filled.store, WHO).find()
    assert found.first is not None
    windows = {
        "all": {"as_of": "2030-01-01T00:00:00Z", "since": None, "maturity_hours": 1.0},
        "before": {"as_of": "2023-11-14T22:14:00Z", "since": None, "maturity_hours": 1.0},
        "after": {"as_of": "2030-01-01T00:00:00Z", "since": "2029-01-01T00:00:00Z", "maturity_hours": 1.0},
    }
    for name, recipe in windows.items():
        file = tmp_path / "store" / "datasets" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"recipe": recipe, "sha256": name}))
    assert [one.sha256 for one in training_sets(filled.settings, found)] == ["all"]


def test_the_command_forgets_while_a_sink_runs_and_the_audit_accounts_for_it(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    make_secret(tmp_path / "hash.key")
    store = {"url": str(tmp_path / "store"), "hash_key_file": tmp_path / "hash.key", "commit_seconds": 0.2}
    settings = make_settings(servers, store=store, topics={"partitions": 1})
    cluster.create_topics(settings)
    cluster.create_topics(settings.model_copy(update={"labels": LabelSettings(origins=("retired",))}))
    events, labels = settings.names.events, settings.names.labels("chargeback")
    producer = kafka.producer(settings)

    def send(topic: str, numbers: range, value: Callable[[int], bytes]) -> None:
        for i in numbers:
            producer.produce(topic, value(i), f"tx-{i:04d}" if topic == labels else _whose(i))
        assert producer.flush(DEADLINE) == 0

    send(events, range(10), _event)
    send(labels, range(6), _label)
    with sink(settings):
        wait_stored(settings, {"events": 10, "labels": 6})
        refused = ecluse(settings, "store", "forget", "--key", WHO)
        assert refused.exit_code == 1
        assert "5 in events" in refused.stderr
        assert rows_of(settings, "events").height == 10

        forgotten = ecluse(settings, "store", "forget", "--key", WHO, "--yes", "--json")
        assert forgotten.exit_code == 0, forgotten.stderr
        told = json_of(forgotten)
        assert told["deleted"] == {"events": 5, "predictions": 0, "bypass": 0, "labels": 3}
        topics = [topic["name"] for topic in told["out_of_reach"]["topics"] if topic["until"]]  # type: ignore[index]
        assert {events, labels, settings.names.labels("retired"), settings.names.dead_letters} <= set(topics)
        assert WHO not in forgotten.stdout

        send(labels, range(6, 10), _label)
        send(events, range(10, 12), _event)
        wait_stored(settings, {"events": 7, "labels": 5})
    assert set(rows_of(settings, "labels")["event_id"]) == {f"tx-{i:04d}" for i in range(0, 10, 2)}
    for i in range(1, 10, 2):
        assert holding(tmp_path / "store", f"tx-{i:04d}") == []
    audited = json_of(ecluse(settings, "audit", "--store", "--all", "--json"))
    assert {name: audited["store"][name] for name in ("missing", "doubled", "forgotten")} == {  # type: ignore[index]
        "missing": 0,
        "doubled": 0,
        "forgotten": 10,
    }

    again = ecluse(settings, "store", "forget", "--key", "nobody", "--yes")
    assert again.exit_code == 0
    assert "has nothing of this entity" in again.stdout

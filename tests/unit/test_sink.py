"""The sink without a broker: what it hands to the tables, and what it does when another came before."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import polars as pl
import pytest
from deltalake import DeltaTable
from faust.types import TP

from ecluse import kafka
from ecluse.contract.records import Source
from ecluse.contract.tables import FORGOTTEN, events_table
from ecluse.errors import RecordError, Stage, StoreError
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from ecluse.transport.ledger import Chunk, Ledger
from ingest import sink as sinking
from ingest.sink import Sink
from ingest.sink_telemetry import SinkTelemetry
from tests.conftest import MakeSettings

EVENT = b'{"amount": 1.5, "terminal_risk_30d": 0.1, "night": 0}'


class Fetched:
    """An event at an offset."""

    def __init__(self, offset: int, value: bytes = EVENT, key: bytes = b"c-1") -> None:
        self._offset, self._value, self._key = offset, value, key

    def __len__(self) -> int:
        return len(self._value)

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_772_000_000_000


class FakeOwner:
    """Holds partitions as the owning thread does, with nobody who fetches."""

    def __init__(self, settings: Settings) -> None:
        self.place = TP(settings.names.events, 0)
        self.ledgers: dict[TP, Ledger] = {}
        self.back: list[Chunk] = []
        self.again: list[set[TP]] = []
        self.progress = SimpleNamespace(lag={})

    def assign(self, starts: Callable[[Collection[TP]], Any]) -> None:
        """The partition comes; it is read from where the table stands."""
        self.ledgers[self.place] = Ledger(self.place, starts([self.place]).get(self.place, -1))

    def chunk(self, start: int, end: int, value: bytes = EVENT, key: bytes = b"c-1") -> Chunk:
        """The next chunk."""
        records = [Fetched(offset, value, key) for offset in range(start, end)]
        return self.ledgers[self.place].add(cast(Any, records), start, end, 0.0)

    def live(self, chunk: Chunk) -> bool:
        return self.ledgers.get(self.place) is chunk.ledger

    def done(self, chunk: Chunk, outputs: Any) -> None:
        self.back.append(chunk)
        if self.live(chunk):
            chunk.outputs = outputs
            for produced in chunk.ledger.take_scored():
                chunk.ledger.confirm(produced)

    def read_again(self, partitions: set[TP]) -> None:
        self.again.append(partitions)


class Running:
    """A sink that runs from the first wait on, and the owner of its partitions."""

    def __init__(self, settings: Settings) -> None:
        self.owner = FakeOwner(settings)
        self.telemetry = SinkTelemetry()
        self.sink = Sink(settings, self.telemetry, lambda: cast(Any, self.owner))
        self.owner.assign(self.sink.starts)
        self._run: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.cancel()
            with contextlib.suppress(asyncio.CancelledError, StoreError):
                await self._run
        self.sink.__exit__(None, None, None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let it run until something holds; it goes on."""
        self._run = self._run or asyncio.ensure_future(self.sink.run())
        async with asyncio.timeout(30):
            while not condition():
                if self._run.done():
                    self._run.result()
                await asyncio.sleep(0.01)


@pytest.fixture
def settings(make_settings: MakeSettings, tmp_path: Path) -> Settings:
    return make_settings(store={"url": str(tmp_path / "store"), "commit_seconds": 0.05, "commit_rows": 1000})


@pytest.fixture
async def made(settings: Settings) -> AsyncIterator[Callable[[], Running]]:
    """Makes sinks, which end with the test."""
    running: list[Running] = []

    def make() -> Running:
        running.append(Running(settings))
        return running[-1]

    yield make
    for one in running:
        await one.__aexit__()


def rows(settings: Settings) -> list[int]:
    frame = TrainingStore(settings).scan(events_table(settings.stream.fields)).select("offset").collect()
    return sorted(frame["offset"].to_list())


def stands(settings: Settings) -> dict[str, int]:
    return TrainingStore(settings).offsets(events_table(settings.stream.fields))


async def test_a_zombie_writes_nothing_that_its_successor_has_written_and_reads_again(
    settings: Settings, made: Callable[[], Running], caplog: pytest.LogCaptureFixture
) -> None:
    zombie, successor = made(), made()
    late = zombie.owner.chunk(0, 10)
    zombie.sink.take_in([late])
    successor.sink.take_in([successor.owner.chunk(0, 20)])
    await successor.until(lambda: len(successor.owner.back) == 1)

    with caplog.at_level(logging.WARNING):
        await zombie.until(lambda: bool(zombie.owner.again))

    assert rows(settings) == list(range(20))
    assert "has come to 20" in caplog.text
    assert zombie.owner.again == [{zombie.owner.place}]
    assert zombie.owner.back == [late]
    # Until its owner begins anew, what still comes of the old time is given back and stored by nobody.
    more = zombie.owner.chunk(10, 12)
    zombie.sink.take_in([more])
    assert zombie.owner.back == [late, more]
    zombie.owner.assign(zombie.sink.starts)
    zombie.sink.take_in([zombie.owner.chunk(20, 22)])
    await zombie.until(lambda: len(zombie.owner.back) == 3)
    assert rows(settings) == list(range(22))


async def test_what_is_in_hand_of_a_partition_that_went_is_dropped_and_given_back(
    settings: Settings, made: Callable[[], Running]
) -> None:
    running = made()
    running.sink.take_in([gone := running.owner.chunk(0, 10)])
    running.owner.assign(running.sink.starts)  # it went and came back: from the beginning
    running.sink.take_in([again := running.owner.chunk(0, 12)])
    await running.until(lambda: len(running.owner.back) == 2)
    assert running.owner.back == [gone, again]
    assert rows(settings) == list(range(12))


async def test_a_chunk_that_is_missing_stops_the_sink(made: Callable[[], Running]) -> None:
    running = made()
    running.owner.chunk(0, 10)  # never comes
    with pytest.raises(RuntimeError, match="chunk 1 came where 0 is the next"):
        running.sink.take_in([running.owner.chunk(10, 20)])


async def test_a_table_is_due_by_bytes_before_its_rows_or_seconds(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(store={"url": str(tmp_path / "store"), "commit_seconds": 3600, "commit_rows": 1_000_000})
    monkeypatch.setattr(sinking, "COMMIT_BYTES", 10_000)
    async with Running(settings) as running:
        large = b'{"amount": 1.5, "terminal_risk_30d": 0.1, "night": 0, "note": "%s"}' % (b"x" * 5000)
        running.sink.take_in([running.owner.chunk(0, 1, large)])
        running.sink.take_in([running.owner.chunk(1, 2, large)])
        await running.until(lambda: len(running.owner.back) == 2)
        running.sink.take_in([running.owner.chunk(2, 3, key=b"k" * 10_000)])
        await running.until(lambda: len(running.owner.back) == 3)
    assert rows(settings) == [0, 1, 2]


async def test_markers_behind_the_last_record_are_passed_with_the_next_commit_or_after_a_quiet_time(
    settings: Settings, made: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = made()
    ledger = running.owner.ledgers[running.owner.place]
    place = f"{running.owner.place.topic}/0"
    running.sink.take_in([running.owner.chunk(0, 10)])
    ledger.reached_end(11)
    await running.until(lambda: stands(settings).get(place) == 11)
    running.sink.take_in([running.owner.chunk(11, 12)])
    await running.until(lambda: stands(settings).get(place) == 12)
    ledger.reached_end(13)
    monkeypatch.setattr(sinking, "GAP_SECONDS", 0.1)
    await running.until(lambda: stands(settings).get(place) == 13)
    assert rows(settings) == [*range(10), 11]


async def test_a_corrupt_table_stops_the_sink_which_keeps_what_it_has_for_the_next(
    settings: Settings, made: Callable[[], Running]
) -> None:
    running = made()
    running.sink.take_in([running.owner.chunk(0, 10)])
    await running.until(lambda: len(running.owner.back) == 1)
    log = Path(settings.store.url) / "events" / "_delta_log" / f"{0:020}.json"
    was = log.read_bytes()
    log.write_bytes(was[: len(was) // 2])
    running.sink.take_in([running.owner.chunk(10, 20)])
    with pytest.raises(StoreError, match=r"The training store at .*/store/events"):
        await running.until(lambda: len(running.owner.back) == 2)
    assert len(running.owner.back) == 1
    log.write_bytes(was)
    assert rows(settings) == list(range(10))


async def test_maintenance_that_fails_is_told_and_stops_nothing(
    settings: Settings, made: Callable[[], Running], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinking, "CARE_SECONDS", 0.0)
    running = made()
    running.sink.take_in([running.owner.chunk(0, 10)])
    await running.until(lambda: len(running.owner.back) == 1)
    log = Path(settings.store.url) / "events" / "_delta_log" / f"{0:020}.json"
    was = log.read_bytes()
    log.write_bytes(b"{")
    await running.until(lambda: "Maintenance of events failed" in caplog.text)
    log.write_bytes(was)
    running.sink.take_in([running.owner.chunk(10, 20)])
    await running.until(lambda: len(running.owner.back) == 2)
    assert rows(settings) == list(range(20))


async def test_what_was_forgotten_is_put_together_too(
    settings: Settings, made: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinking, "CARE_SECONDS", 0.0)
    store = TrainingStore(settings)
    no_rows = pl.DataFrame(schema=polars_schema(FORGOTTEN))
    known = no_rows.vstack(no_rows.clear(1).with_columns(day=pl.date(2026, 5, 4)))
    for number in range(settings.store.compact_files + 1):
        store.append(FORGOTTEN, known, {"test": (number or None, number + 1)})
    await made().until(lambda: len(pl.DataFrame(DeltaTable(store.location(FORGOTTEN)).get_add_actions())) == 1)


def test_more_dead_letters_than_a_producer_queues_are_sent_all(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Producer:
        """Takes 100 records at a time."""

        def __init__(self) -> None:
            self.queued, self.sent = 0, 0

        def produce(self, *args: Any, **kwargs: Any) -> None:
            if self.queued == 100:
                raise BufferError
            self.queued += 1

        def poll(self, wait: float) -> None: ...

        def flush(self, wait: float) -> int:
            self.sent, self.queued = self.sent + self.queued, 0
            return 0

    producer = Producer()
    monkeypatch.setattr(kafka, "producer", lambda _: producer)
    monkeypatch.setattr(sinking, "LETTERS", 60)
    error = RecordError(Stage.LABEL, "The record is no label.")
    letters = [(cast(Any, Fetched(at)), Source("labels", 0, at), error) for at in range(250)]
    sinking._Letters(settings).send(letters)
    assert producer.sent == 250

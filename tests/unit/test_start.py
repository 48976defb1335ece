"""Where the owning thread reads from when the app says it, and how it reads again."""

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, TopicPartition
from faust.types import TP

from ecluse.errors import BrokerError, StoreError
from ecluse.transport.hand import Hand, Limits
from ecluse.transport.ledger import Chunk, Ledger
from ecluse.transport.owner import Owner, OwnerConfig

ZERO, ONE = TP("events", 0), TP("events", 1)


class Fetched:
    """A record at an offset of partition 0, or an error."""

    def __init__(self, offset: int, error: int | None = None) -> None:
        self._offset, self._error = offset, error

    def __len__(self) -> int:
        return 60

    def key(self) -> bytes:
        return b"k" * 20

    def headers(self) -> list[tuple[str, bytes | None]]:
        return [("trace", b"x" * 15), ("", None)]

    def topic(self) -> str:
        return "events"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return None if self._error is None else KafkaError(self._error)

    def timestamp(self) -> tuple[int, int]:
        return 1, 0


class FakeConsumer:
    """Notes what it is told to read, and gives what was laid into it."""

    def __init__(self) -> None:
        self.assigned: dict[int, int] = {}
        self.sought: dict[int, int] = {}
        self.records: list[Fetched] = []
        self.held = 0, 1000

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.assigned |= {place.partition: place.offset for place in places}

    def seek(self, place: TopicPartition) -> None:
        self.sought[place.partition] = place.offset

    def resume(self, places: Any) -> None: ...

    def poll(self, wait: float) -> Fetched | None:
        return self.records.pop(0) if self.records else None

    def consume(self, count: int, wait: float) -> list[Fetched]:
        return [self.records.pop(0) for _ in range(min(count, len(self.records)))]

    def get_watermark_offsets(self, place: Any, **how: Any) -> tuple[int, int]:
        return self.held

    def offsets_for_times(self, places: Any, timeout: float) -> None: ...

    def committed(self, *asked: Any, **how: Any) -> None:
        raise AssertionError("an offset of the group was asked for")


class App:
    """An owner that does not run, and its app's own offsets."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.knows: dict[TP, int] = {}
        self.delivered: list[Chunk] = []
        self.consumer = FakeConsumer()
        config = OwnerConfig((), {"group.id": "g"}, {}, 1.0, start=self.starts, limits=limits or Limits(chunks=None))
        self.owner = Owner(config, self.delivered.append, lambda _: None, lambda _: None)
        nothing = SimpleNamespace(
            full=lambda: False,
            ready=lambda: None,
            produce_scored=lambda _: None,
            serve=lambda wait=0.0: None,
            commit_when_due=lambda *_, **__: (),
            aborted=0,
        )
        self.owner._delivery, self.owner._consumer = cast(Any, nothing), cast(Any, self.consumer)

    def starts(self, partitions: Collection[TP]) -> Mapping[TP, int]:
        return {partition: self.knows[partition] for partition in partitions if partition in self.knows}

    def assign(self, *partitions: TP) -> None:
        self.owner._on_assign(cast(Any, self.consumer), [TopicPartition(*partition) for partition in partitions])


def test_partitions_are_read_from_where_the_app_says_and_else_from_the_first_record() -> None:
    app = App()
    app.knows = {ONE: 42}
    app.assign(ZERO, ONE)
    assert app.consumer.assigned == {0: OFFSET_BEGINNING, 1: 42}
    assert {place: ledger.start for place, ledger in app.owner.ledgers.items()} == {ZERO: None, ONE: 42}
    assert (app.owner.ledgers[ONE].position, app.owner.ledgers[ONE].committed) == (42, 42)


def test_an_app_that_cannot_say_ends_the_thread() -> None:
    def fail(partitions: Collection[TP]) -> Mapping[TP, int]:
        raise StoreError("s3://x", "it is gone.")

    app = App()
    app.starts = fail  # type: ignore[method-assign]
    app.owner._config = OwnerConfig((), {}, {}, 1.0, start=fail)
    with pytest.raises(StoreError):
        app.assign(ZERO)


def test_partitions_that_are_read_again_begin_anew_and_what_was_in_hand_of_them_is_not_live() -> None:
    app = App()
    app.knows = {ZERO: 10, ONE: 20}
    app.assign(ZERO, ONE)
    app.consumer.records = [Fetched(10), Fetched(11)]
    app.owner._turn()
    (chunk,) = app.delivered
    assert (chunk.offset, chunk.next_offset, chunk.number) == (10, 12, 0)
    other = app.owner.ledgers[ONE]
    app.knows[ZERO] = 11  # another writer came to there
    app.owner.read_again({ZERO, TP("events", 7)})
    app.owner.done(chunk, ())
    app.consumer.records = [Fetched(12)]
    app.owner._produce_scored(0.0)
    assert not app.owner.live(chunk)
    app.owner._fetch(0.0)
    assert len(app.delivered) == 1, "what comes before the seek does not count"
    app.consumer.records = [Fetched(11), Fetched(12)]
    app.owner._turn()
    assert app.consumer.sought == {0: 11}
    assert app.owner.ledgers[ONE] is other
    again = app.delivered[1]
    assert (again.offset, again.next_offset, again.number, again.ledger.start) == (11, 13, 0, 11)
    assert len(app.owner._hand) == 1


@pytest.mark.parametrize(
    ("held", "said"), [((30, 90), "deleted all before 30"), ((0, 5), "ends at 5: it is not the topic")]
)
def test_an_offset_that_the_topic_does_not_hold_ends_the_thread_and_says_what_is_lost(
    held: tuple[int, int], said: str
) -> None:
    app = App()
    app.knows = {ZERO: 10}
    app.assign(ZERO)
    app.consumer.held = held
    app.consumer.records = [Fetched(0, KafkaError._AUTO_OFFSET_RESET)]
    with pytest.raises(BrokerError, match=said) as told:
        app.owner._fetch(0.0)
    assert "Partition 0 of events is to be read on from offset 10" in str(told.value)


@pytest.mark.parametrize("limits", [Limits(chunks=3), Limits(chunks=None, records=6), Limits(chunks=None, bytes=600)])
def test_nothing_is_fetched_while_the_hand_is_full_by_chunks_records_or_bytes(limits: Limits) -> None:
    hand, ledger = Hand(limits), Ledger(ZERO)
    chunks = []
    for start in range(0, 6, 2):
        assert hand.has_room
        chunks.append(ledger.add(cast(Any, [Fetched(start), Fetched(start + 1)]), start, start + 2, 0.0))
        hand.add(chunks[-1])
    assert not hand.has_room
    hand.discard(chunks[0])
    hand.discard(chunks[0])
    assert hand.has_room
    assert len(hand) == 2

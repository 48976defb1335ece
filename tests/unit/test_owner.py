"""How the owning thread sizes chunks, and that reading a partition again costs the others nothing."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from ecluse.transport.fetching import CHUNK_BYTES, split
from ecluse.transport.hand import CHUNK_RECORDS, CHUNK_SECONDS
from ecluse.transport.ledger import Chunk, Record
from ecluse.transport.owner import Owner, OwnerConfig


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), max_size=30), st.integers(1, 10))
def test_runs_keep_order_and_bounds(sizes: list[int], most: int) -> None:
    class Fake:
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    records = [cast(Record, Fake(size)) for size in sizes]
    runs = split(records, most)
    assert [record for run in runs for record in run] == records
    assert all(len(run) <= most for run in runs)
    assert all(len(run) == 1 or sum(map(len, run)) <= CHUNK_BYTES for run in runs)


@pytest.mark.parametrize(
    ("per_record", "expected"), [(1e-6, CHUNK_RECORDS), (1e-3, int(CHUNK_SECONDS / 1e-3)), (0.5, 1)]
)
def test_chunks_come_to_hold_about_the_work_that_may_hold_the_loop(per_record: float, expected: int) -> None:
    owner = Owner(OwnerConfig((), {}, {}, 1.0), print, print, print)
    for _ in range(60):
        records = owner.chunk_records
        owner.pace(records * per_record, records)
    assert owner.chunk_records == pytest.approx(expected, rel=0.25)


def test_a_quick_small_chunk_says_nothing_of_large_ones() -> None:
    owner = Owner(OwnerConfig((), {}, {}, 1.0), print, print, print)
    before = owner.chunk_records
    owner.pace(0.001, 1)
    assert owner.chunk_records == before


AGAIN, BESIDE = TP("again", 0), TP("beside", 0)


class FakeConsumer:
    """Holds records of two partitions, and refuses the first `refusals` seeks."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.ends = {AGAIN: 5, BESIDE: 0}
        self.positions: dict[TP, int] = {}

    def consume(self, count: int, wait: float) -> list[Any]:
        found = [(place, at) for place, start in self.positions.items() for at in range(start, self.ends[place])]
        self.positions |= {place: at + 1 for place, at in found[:count]}
        return [_message(place, at) for place, at in found[:count]]

    def poll(self, wait: float) -> Any:
        return next(iter(self.consume(1, wait)), None)

    def seek(self, place: TopicPartition) -> None:
        if self.refusals:
            self.refusals -= 1
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.incremental_assign([place])

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self.positions |= {TP(place.topic, place.partition): place.offset for place in places}

    def get_watermark_offsets(self, place: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, self.ends[TP(place.topic, place.partition)]

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None  # what else it is asked to do changes nothing here


def _message(place: TP, at: int) -> Any:
    class Message(SimpleNamespace):
        def __len__(self) -> int:
            return 1

    said = {"topic": place.topic, "partition": place.partition, "offset": at, "error": None, "timestamp": (1, 0)}
    return Message(**{name: lambda value=value: value for name, value in said.items()})


@pytest.mark.parametrize("refusals", [0, 1])
def test_what_is_fetched_while_a_partition_is_to_be_read_again_is_lost_to_no_other(refusals: int) -> None:
    chunks: list[Chunk] = []
    config = OwnerConfig((), {"group.id": "g"}, {}, 1.0, start=lambda places: dict.fromkeys(places, 0))
    owner = Owner(config, chunks.append, lambda _: None, print)
    consumer = FakeConsumer(refusals)
    delivery = SimpleNamespace(aborted=0, full=lambda: False, commit_when_due=lambda *_, busy: ())
    delivery.ready = delivery.serve = delivery.produce_scored = lambda *_: None
    owner._consumer, owner._delivery = cast(Any, consumer), cast(Any, delivery)
    owner._on_assign(cast(Any, consumer), [TopicPartition(*AGAIN), TopicPartition(*BESIDE)])
    owner._turn()
    assert [(chunk.ledger.partition, chunk.offset, chunk.next_offset) for chunk in chunks] == [(AGAIN, 0, 5)]

    consumer.ends[BESIDE] = 7
    owner.read_again({AGAIN})
    owner.done(chunks[0], ())
    for _ in range(5):
        owner._turn()

    live = [(chunk.ledger.partition, chunk.offset, chunk.next_offset) for chunk in chunks if owner.live(chunk)]
    assert sorted(live) == [(AGAIN, 0, 5), (BESIDE, 0, 7)]

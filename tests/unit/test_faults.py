"""What the owning thread and the pipeline do when things go wrong, without a broker."""

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.types import TP

from ecluse.contract.headers import ERROR_PREFIX
from ecluse.contract.records import Source
from ecluse.deadletters import DeadLetters
from ecluse.errors import RecordError, Stage
from ecluse.health import STILL_SECONDS
from ecluse.transport.brake import UNCONFIRMED_EVENTS
from ecluse.transport.ledger import Chunk, Ledger
from ecluse.transport.owner import Owner, OwnerConfig
from ecluse.transport.transactions import ExactlyOnce
from scoring.health import Health
from tests.unit.test_pipeline import FakeRecord

PLACE = TP("events", 0)


class Fetched(FakeRecord):
    """A record that knows its partition."""

    def error(self) -> None: ...

    def topic(self) -> str:
        return PLACE.topic

    def partition(self) -> int:
        return PLACE.partition


class FakeConsumer:
    """Hands out what the test says; `meanwhile` happens inside `consume`, as rebalances do."""

    def __init__(self, first: Fetched | None, rest: list[Fetched], meanwhile: Any = lambda: None) -> None:
        self.first, self.rest, self.meanwhile, self.polls = first, rest, meanwhile, 0
        self.high = 0
        self.paused: set[int] = set()

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused |= {place.partition for place in places}

    def resume(self, places: list[TopicPartition]) -> None:
        self.paused -= {place.partition for place in places}

    def offsets_for_times(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return places

    def poll(self, wait: float) -> Fetched | None:
        self.polls += 1
        return self.first

    def consume(self, count: int, wait: float) -> list[Fetched]:
        self.meanwhile()
        return self.rest

    def get_watermark_offsets(self, place: Any, cached: bool) -> tuple[int, int]:
        return 0, self.high


def owner_of(consumer: FakeConsumer, *, full: bool = False) -> tuple[Owner, list[Chunk]]:
    """An owner that holds the partition; it does not run."""
    delivered: list[Chunk] = []
    owner = Owner(OwnerConfig((), {}, {}, 1.0), delivered.append, lambda _: None, lambda _: None)
    nothing = SimpleNamespace(
        full=lambda: full,
        produce_scored=lambda _: None,
        serve=lambda wait=0.0: None,
        commit_when_due=lambda *_, **__: (),
        give_up=lambda: None,
        aborted=0,
    )
    owner._delivery, owner._consumer = cast(Any, nothing), cast(Any, consumer)
    owner.ledgers = {PLACE: Ledger(PLACE)}
    return owner, delivered


def test_a_record_fetched_before_the_partition_went_and_came_back_does_not_hide_those_before_it() -> None:
    def moved() -> None:
        owner.ledgers[PLACE] = Ledger(PLACE)

    owner, delivered = owner_of(FakeConsumer(Fetched(100, b"x"), [Fetched(90, b"x"), Fetched(91, b"x")], moved))
    owner._fetch(0.0)
    assert [record.offset() for chunk in delivered for record in chunk.records] == [90, 91]


def test_records_that_all_come_again_are_dropped_and_the_thread_goes_on() -> None:
    owner, delivered = owner_of(FakeConsumer(Fetched(3, b"x"), [Fetched(4, b"x")]))
    owner.ledgers[PLACE].add([], 0, 10, 0.0)
    owner._fetch(0.0)
    assert delivered == []
    assert owner.ledgers[PLACE].position == 10


@pytest.mark.parametrize("full", [True, False])
def test_nothing_is_fetched_while_the_producer_has_no_room(full: bool) -> None:
    consumer = FakeConsumer(None, [])
    owner, _ = owner_of(consumer, full=full)
    owner._turn()
    assert consumer.polls == (0 if full else 1)


def test_a_partition_whose_confirmations_hang_is_paused_until_they_come_and_the_others_go_on() -> None:
    consumer = FakeConsumer(None, [])
    owner, _ = owner_of(consumer)
    owner.ledgers |= {TP("events", number): Ledger(TP("events", number)) for number in range(1, 8)}
    chunk = owner.ledgers[PLACE].add([], 0, UNCONFIRMED_EVENTS // 8 + 1, 0.0)
    chunk.outputs = ()
    (produced,) = owner.ledgers[PLACE].take_scored()
    owner._turn()
    assert (consumer.paused, consumer.polls) == ({PLACE.partition}, 1)
    owner.ledgers[PLACE].confirm(produced)
    owner._turn()
    assert (consumer.paused, consumer.polls) == (set(), 2)


@pytest.mark.parametrize(
    ("code", "ends"), [(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, True), (KafkaError._TIMED_OUT, False)]
)
def test_a_rewind_that_the_broker_refuses_for_good_ends_the_worker_and_another_is_tried_again(
    code: int, ends: bool
) -> None:
    def ready() -> None:
        raise KafkaException(KafkaError(code))

    consumer = FakeConsumer(None, [])
    owner, _ = owner_of(consumer)
    owner._delivery.ready = ready  # type: ignore[method-assign]
    owner._rewind_due = True
    with pytest.raises(KafkaException) if ends else nullcontext():
        owner._turn()
    assert (owner._rewind_due, consumer.polls) == (True, 0 if ends else 1)


def test_a_chunk_that_is_scored_while_the_owner_waits_for_the_broker_does_not_make_the_worker_look_stuck() -> None:
    owner, _ = owner_of(FakeConsumer(None, []))
    health = Health("w-1", 60.0)
    health.pipeline, health.progress = cast(Any, "scores"), owner.progress
    chunk = owner.ledgers[PLACE].add([], 0, 1, time.monotonic() - 100)
    owner._look()
    assert health.live() != []
    chunk.outputs = ()
    owner.progress.beat -= 5  # a call that took so long
    owner._beat()
    assert health.live() == []


def test_a_fence_that_shows_in_the_producers_poll_ends_that_producer_and_not_the_worker() -> None:
    class Fenced:
        def __len__(self) -> int:
            return 0

        def poll(self, wait: float) -> None:
            raise KafkaException(KafkaError(KafkaError._FENCED, "fenced", fatal=True))

        def purge(self) -> None: ...

    owner, _ = owner_of(FakeConsumer(None, []))
    delivery = ExactlyOnce({"transactional.id": "g-0", "transaction.timeout.ms": 1000}, 0.1, lambda: None)
    delivery._producer = cast(Any, Fenced())
    owner._delivery = delivery
    owner.ledgers[PLACE].committed = 5
    owner._turn()
    assert (owner._rewind_due, delivery._producer, delivery.aborted) == (True, None, 1)
    assert owner.ledgers[PLACE].committed is None, "the outcome is not known: the broker is asked"


def test_an_event_after_a_long_quiet_time_does_not_make_a_worker_unready() -> None:
    consumer = FakeConsumer(None, [])
    owner, _ = owner_of(consumer)
    health = Health("w-1", 60.0)
    health.pipeline, health.progress = cast(Any, "scores"), owner.progress
    owner.ledgers[PLACE].committed = 0
    owner.progress.assigned = True
    owner.progress.committed_at = owner.progress.moved_at = time.monotonic() - 2 * STILL_SECONDS
    assert health.ready() != []
    owner._look()
    consumer.high = 1
    owner._look()
    assert owner.progress.lag[PLACE] == 1
    assert health.ready() == []


def test_commits_that_the_broker_refuses_make_a_worker_unready_though_all_is_confirmed() -> None:
    consumer = FakeConsumer(None, [])
    owner, _ = owner_of(consumer)
    health = Health("w-1", 60.0)
    health.pipeline, health.progress = cast(Any, "scores"), owner.progress
    ledger = owner.ledgers[PLACE]
    chunk = ledger.add([], 0, 1, 0.0)
    chunk.outputs = ()
    ledger.confirm(next(ledger.take_scored()))
    consumer.high = 1
    owner.progress.assigned = True
    owner.progress.moved_at = time.monotonic() - 2 * STILL_SECONDS
    owner._look()
    assert owner.progress.lag[PLACE] == 0
    assert health.ready() != []


def test_a_worker_that_the_group_took_for_dead_is_not_ready_until_it_has_partitions_again() -> None:
    owner, _ = owner_of(FakeConsumer(None, []))
    health = Health("w-1", 60.0)
    health.pipeline, health.progress = cast(Any, "scores"), owner.progress
    owner.progress.assigned = True
    assert health.ready() == []
    owner._on_lost(cast(Any, None), [TopicPartition(*PLACE)])
    assert health.ready() != []


@pytest.mark.parametrize("value", [b"{}", None, b"v" * 20_000])
@pytest.mark.parametrize(
    ("key", "headers"),
    [(b"k" * 20_000, [("trace", b"1")]), (b"k", [("h" * 20_000, b"1")]), (b"k", [("h", b"1" * 20_000)])],
)
def test_a_key_or_header_that_fits_no_topic_still_gives_a_dead_letter(
    value: bytes | None, key: bytes, headers: list[tuple[str, bytes | None]]
) -> None:
    record = FakeRecord(7, value, key, headers)
    letter = DeadLetters("letters", "app", "w-1", 10_000)(
        record, Source("events", 0, 7), RecordError(Stage.VALIDATE, "The event's id or key is too long.")
    )
    found = dict(letter.headers or [])
    assert found[ERROR_PREFIX + "offset"] == b"7"
    assert ("ecluse-original-sha256" in found) == (value is not None)
    size = len(letter.key or b"") + len(letter.value or b"")
    assert size + sum(len(name) + len(content or b"") for name, content in letter.headers or []) < 10_000

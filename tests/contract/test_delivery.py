"""What a delivery report proves, and what becomes of chunks when the broker refuses or is away."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic
from faust.types import TP

from console import broker as dev_broker
from ecluse import cluster, kafka
from ecluse.errors import DeliveryError
from ecluse.settings import Settings
from ecluse.transport.delivery import AtLeastOnce
from ecluse.transport.ledger import Chunk, Ledger, Output
from tests.conftest import MakeSettings
from tests.workers import read_all, wait_until


@pytest.fixture
def own_broker() -> Iterator[dev_broker.RunningBroker]:
    """A broker that the test may kill."""
    with tempfile.TemporaryDirectory(prefix="ecluse-broker-") as folder:
        try:
            yield dev_broker.start(Path(folder), port=0)
        finally:
            dev_broker.stop(Path(folder))


def scored_chunk(ledger: Ledger, offset: int, outputs: list[Output]) -> Chunk:
    """A chunk of one record, with what came of it."""
    chunk = ledger.add([], offset, offset + 1, time.monotonic())
    chunk.outputs = outputs
    return chunk


def test_the_last_report_is_never_good_when_an_earlier_record_was_refused(
    servers: str, make_settings: MakeSettings
) -> None:
    """The proof that one report vouches for all before it: the broker refuses a record in the middle, again and again."""
    settings = make_settings(servers)
    narrow = NewTopic(settings.names.predictions, 1, 1, config={"max.message.bytes": "20000"})
    client = kafka.admin(settings)
    for future in client.create_topics([narrow]).values():
        future.result(10)
    small, large = b"s" * 100, bytes(range(256)) * 400
    for round_number in range(5):
        # Small batches, so that the refused record and those behind it travel in several requests at once.
        config = kafka.producer_config(settings) | {"batch.num.messages": 3, "linger.ms": 0, "compression.type": "none"}
        delivery = AtLeastOnce(config, 0.1, lambda: None)
        ledger = Ledger(TP("events", 0))
        values = [small] * 20
        values[round_number * 4] = large
        first = scored_chunk(ledger, 0, [Output(settings.names.predictions, None, value, None) for value in values])
        second = scored_chunk(ledger, 1, [Output(settings.names.predictions, None, small, None)])
        with pytest.raises((DeliveryError, KafkaException)):
            delivery.produce_scored(ledger)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                delivery.serve(0.05)
        assert (first.confirmed, second.confirmed, ledger.committable) == (False, False, None)


def test_records_wait_while_the_broker_is_away_and_arrive_once_when_it_is_back(
    own_broker: dev_broker.RunningBroker, make_settings: MakeSettings
) -> None:
    settings = make_settings(own_broker.servers)
    cluster.create_topics(settings)
    delivery = AtLeastOnce(kafka.producer_config(settings), 0.1, lambda: None)
    ledger = Ledger(TP(settings.names.events, 1))
    chunks = []

    def produce(count: int) -> None:
        for _ in range(count):
            offset = len(chunks)
            value = str(offset).encode()
            chunks.append(scored_chunk(ledger, offset, [Output(settings.names.predictions, None, value, None)]))
        delivery.produce_scored(ledger)

    produce(500)
    delivery.serve(0.05)
    process = own_broker.process()
    assert process is not None
    process.kill()
    psutil.wait_procs([process], timeout=20)
    confirmed_before = ledger.committable or 0
    produce(500)
    for _ in range(20):
        delivery.serve(0.05)
    assert not chunks[-1].confirmed
    dev_broker.start(Path(own_broker.data), own_broker.port)

    def all_confirmed() -> bool:
        delivery.serve(0.1)
        return ledger.committable == 1000

    wait_until("all are confirmed", all_confirmed)
    assert confirmed_before <= 500
    assert [int(message.value() or b"") for message in read_all(settings, settings.names.predictions)] == list(
        range(1000)
    )


def test_a_failed_commit_is_made_again_with_the_next(servers: str, stream: Settings) -> None:
    delivery = AtLeastOnce(kafka.producer_config(stream), 0.1, lambda: None)
    ledger = Ledger(TP(stream.names.events, 2))
    chunk = scored_chunk(ledger, 0, [])
    delivery.produce_scored(ledger)
    assert chunk.confirmed

    class Refusing:
        def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))

    delivery.finish(cast(Consumer, Refusing()), [ledger], [ledger], 1.0)
    assert ledger.to_commit == 1
    with closing(Consumer(kafka.consumer_config(stream, stream.group))) as consumer:
        delivery.finish(consumer, [ledger], [ledger], 1.0)
    assert cluster.committed_offsets(stream)[2] == 1

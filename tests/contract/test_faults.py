"""Faults that a worker meets on a real broker, and what must not come of them."""

from contextlib import closing
from pathlib import Path

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from ecluse import cluster, kafka
from ecluse.contract.headers import read_error_headers
from ecluse.settings import Settings
from ecluse.transport.ledger import Chunk
from ecluse.transport.owner import Owner, OwnerConfig
from tests.cli import produce
from tests.workers import audited, events, json_values, read_all, scored, send, train_champion, wait_until, worker


def test_a_paused_partition_that_goes_and_comes_back_is_read_again(stream: Settings) -> None:
    """librdkafka keeps a partition paused when it is revoked and assigned again."""
    chunks: list[Chunk] = []
    errors: list[BaseException] = []
    group = {"partition.assignment.strategy": "cooperative-sticky", "heartbeat.interval.ms": 200}
    consumer = kafka.consumer_config(stream, stream.group) | group
    for partition in range(4):
        send(stream, [b"x"] * 600, partition)
    owner = Owner(
        OwnerConfig([stream.names.events], consumer, kafka.producer_config(stream), 0.1),
        chunks.append,
        lambda _: None,
        errors.append,
    )

    def give_back() -> bool:
        while chunks:
            owner.done(chunks.pop(), ())
        return True

    owner.start()
    try:
        wait_until("all partitions are paused, because nothing is given back", lambda: len(owner._brake.paused) == 4)
        with closing(Consumer(consumer)) as other:
            other.subscribe([stream.names.events])

            def moved() -> bool:
                other.poll(0.05)
                return len(owner.ledgers) == 2 and len(other.assignment()) == 2

            wait_until("two partitions move to another worker", moved)
            wait_until("the others go on", lambda: give_back() and not owner._brake.paused)
        wait_until("they come back", lambda: give_back() and len(owner.ledgers) == 4)
        wait_until("all is read", lambda: give_back() and scored(stream, 2400)(), 20.0)
    finally:
        owner.close()
        owner.join(30)
    assert errors == []


def test_an_event_whose_key_compression_brought_past_the_limit_does_not_stop_the_partition(
    stream: Settings, tmp_path: Path
) -> None:
    train_champion(stream, tmp_path)
    config = {"compression.type": "lz4", "message.max.bytes": 20_000_000}
    producer = Producer(kafka.client_config(stream.kafka) | config)
    producer.produce(stream.names.events, b"{}", key=b"k" * 6_000_000, partition=0)
    producer.produce(stream.names.events, b"{}", headers={"h": b"1" * 6_000_000}, partition=0)
    producer.produce(stream.names.events, b"{}", key=b"k", partition=0)
    assert producer.flush(30) == 0
    with worker(stream):
        wait_until("all are scored", scored(stream, 3))
    report = audited(stream)
    assert (report.dead_letters, report.missing, report.doubled) == (3, 0, 0)
    letters = read_all(stream, stream.names.dead_letters)
    assert [read_error_headers(letter.headers() or [])["offset"] for letter in letters] == ["0", "1", "2"]
    assert cluster.committed_offsets(stream)[0] == 3


def test_the_markers_of_a_transactional_producer_leave_no_lag_behind(stream: Settings, tmp_path: Path) -> None:
    train_champion(stream, tmp_path)
    produce(
        stream, stream.names.events, [(1, value, ()) for value in json_values(events(50))], transactional_id="shop-1"
    )
    with worker(stream) as running:
        wait_until("the marker is passed", scored(stream, 51))
        lag = f'ecluse_consumer_lag{{partition="1",topic="{stream.names.events}"}} 0.0'
        wait_until("no lag is told", lambda: lag in running.get("/metrics")[1])
        assert running.get("/health/ready")[0] == 200
    assert (audited(stream).predictions, audited(stream).missing) == (50, 0)


def test_a_refused_output_stops_the_worker_with_a_sentence_and_nothing_committed(
    stream: Settings, tmp_path: Path
) -> None:
    train_champion(stream, tmp_path)
    with worker(stream) as running:
        entry = ConfigEntry("max.message.bytes", "100", incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, stream.names.predictions, incremental_configs=[entry])
        client = kafka.admin(stream)
        for future in client.incremental_alter_configs([resource]).values():
            future.result(10)
        send(stream, json_values(events(100)))
        assert running.process.wait(60) == 1
        assert "Kafka:" in running.text or "was not delivered" in running.text
    assert set(cluster.committed_offsets(stream).values()) == {0}


def test_sigterm_before_there_is_a_model_ends_the_worker_in_order(stream: Settings) -> None:
    with worker(stream, ready=False) as waiting:
        wait_until("it waits", lambda: "It is waited for" in waiting.text)
        assert waiting.stop() == 0

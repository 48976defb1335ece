"""Topics and the group's offsets on a real broker."""

from contextlib import closing

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from ecluse import cluster, kafka
from ecluse.errors import BrokerUnreachable, TopicsWrong
from ecluse.settings import Settings
from tests.cli import commit, produce
from tests.conftest import MakeSettings
from tests.workers import wait_until


def test_created_topics_are_as_the_stream_needs_them(stream: Settings) -> None:
    assert cluster.check_topics(stream) == []
    assert cluster.create_topics(stream) == []


def test_creating_topics_seeds_the_offsets_of_every_partition(stream: Settings) -> None:
    assert cluster.committed_offsets(stream) == {0: 0, 1: 0, 2: 0, 3: 0}


def test_a_topic_with_another_partition_count_is_refused_with_a_sentence(
    servers: str, make_settings: MakeSettings
) -> None:
    settings = make_settings(servers)
    client = kafka.admin(settings)
    for future in client.create_topics([NewTopic(settings.names.events, 3, 1)]).values():
        future.result(10)
    with pytest.raises(TopicsWrong, match="has 3 partitions where 4 are set"):
        cluster.create_topics(settings)


def test_a_broker_that_is_not_there_is_named(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "PATIENCE", 0.5)
    with pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1"):
        cluster.check_topics(make_settings())


def test_the_backlog_is_what_is_committed_on_the_topic_and_not_by_the_group(stream: Settings) -> None:
    events = stream.names.events
    with cluster.LagReader(stream) as reader:
        assert reader.look() == cluster.Backlog(done=0, end=0)
        produce(stream, events, [(partition, b"{}", ()) for partition in (0, 0, 0, 2)])
        assert reader.look() == cluster.Backlog(done=0, end=4)
        commit(stream, {0: 2})
        assert reader.look() == cluster.Backlog(done=2, end=4)
        producer = Producer({"bootstrap.servers": stream.kafka.bootstrap_servers, "transactional.id": events})
        producer.init_transactions(10)
        producer.begin_transaction()
        producer.produce(events, b"{}", partition=1)
        assert producer.flush(10) == 0
        assert reader.look().end == 4, "an open transaction's records are not there yet"
        producer.abort_transaction(10)


def test_the_backlog_is_told_while_a_transaction_that_moves_the_offsets_is_open(stream: Settings) -> None:
    events = stream.names.events
    produce(stream, events, [(0, b"{}", ())] * 3)
    producer = Producer({"bootstrap.servers": stream.kafka.bootstrap_servers, "transactional.id": events})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(stream.names.predictions, b"{}", partition=0)
    with closing(Consumer(kafka.consumer_config(stream, stream.group))) as consumer:
        metadata = consumer.consumer_group_metadata()
    producer.send_offsets_to_transaction([TopicPartition(events, 0, 3)], metadata, 10)
    with cluster.LagReader(stream) as reader:
        assert reader.look() == cluster.Backlog(done=0, end=3)
        producer.commit_transaction(10)
        wait_until("the commit shows", lambda: reader.look() == cluster.Backlog(done=3, end=3))


def test_a_look_at_a_broker_that_is_away_ends_soon_with_a_sentence(make_settings: MakeSettings) -> None:
    with cluster.LagReader(make_settings()) as reader, pytest.raises(BrokerUnreachable, match=r"127\.0\.0\.1:1"):
        reader.look()

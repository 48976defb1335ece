"""Topics and the group's offsets on a real broker."""

import pytest
from confluent_kafka.admin import NewTopic

from ecluse import cluster, kafka
from ecluse.errors import BrokerUnreachable, TopicsWrong
from ecluse.settings import Settings
from tests.conftest import MakeSettings


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

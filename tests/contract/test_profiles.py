"""What workers count of real events, on a real broker: each event once, whoever scored it."""

import msgspec
import pytest

from ecluse import cluster, kafka
from ecluse.contract.loop import Profile
from ecluse.errors import TopicsWrong
from ecluse.settings import Settings
from tests.conftest import MakeSettings
from tests.counted import require_counted_once
from tests.workers import events, records, release_trained, scored, send, wait_until, worker


def bodies(rows: int) -> list[bytes]:
    return [msgspec.json.encode(event) for event in events(rows)]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_each_event_is_counted_once(servers: str, make_settings: MakeSettings, delivery: str) -> None:
    """Of workers that come, go and are killed: tests/chaos, where every case of exactly-once counts the profiles too."""
    settings = make_settings(servers, worker={"delivery": delivery})
    cluster.create_topics(settings)
    release_trained(settings)
    with worker(settings) as only:
        send(settings, [*bodies(2000), b"{", b"no event"])
        wait_until("a profile is told", lambda: bool(records(settings, settings.names.profiles, Profile)))
        send(settings, bodies(500))
        wait_until("all is scored", scored(settings, 2502))
        assert only.stop() == 0
    profiles = require_counted_once(settings)
    assert {(profile.model, profile.version) for profile in profiles} == {(settings.model_name, 1)}
    assert sum(window.rejected for profile in profiles for window in profile.windows) == 2


def test_without_its_topic_a_worker_does_not_start(servers: str, stream: Settings) -> None:
    admin = kafka.admin(stream)
    admin.delete_topics([stream.names.profiles])[stream.names.profiles].result(30)
    wait_until("the topic is gone", lambda: stream.names.profiles not in kafka.partition_counts(stream))
    with pytest.raises(
        TopicsWrong, match=f"The topic {stream.names.profiles} is missing: `ecluse topics create` makes it"
    ):
        cluster.require_topics(stream)

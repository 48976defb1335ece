"""Who trains: one of all trainers, and the others know that it is not they."""

import pytest

from ecluse import cluster
from retrain.trainer.election import Election
from retrain.trainer.telemetry import TrainerHealth
from tests.conftest import MakeSettings
from tests.workers import wait_until


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_one_of_two_is_elected_the_other_knows_and_follows(
    servers: str, make_settings: MakeSettings, protocol: str
) -> None:
    settings = make_settings(servers, worker={"group_protocol": protocol, "session_timeout_seconds": 1.0})
    cluster.create_topics(settings)
    with Election(settings) as second:
        with Election(settings) as first:
            wait_until("one is elected", lambda: {first.elected, second.elected} == {True, False})
        wait_until("who is left is", lambda: second.elected is True)


def test_a_trainer_that_waits_for_a_broker_before_it_follows_anything_is_live(make_settings: MakeSettings) -> None:
    health = TrainerHealth(Election(make_settings()))
    assert health.live() == []
    assert health.ready() == ["nobody is elected yet"]

"""Where the monitor stands, read back on a real broker: whatever another one may still commit is waited for."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import closing

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from ecluse import kafka
from ecluse.errors import DataError
from ecluse.settings import Settings
from retrain.drift import state as standing
from retrain.drift.state import MonitorState, group_of, read_state, restore
from tests.workers import DEADLINE


def state(settings: Settings, profiles: int) -> MonitorState:
    return MonitorState(
        model=settings.model_name, profiles=profiles, stream_time=None, written_at=0.0, fold=b"x" * profiles
    )


class Another:
    """Another monitor's producer, in a transaction."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.producer = Producer(kafka.transactional_config(settings, f"{group_of(settings)}-test", DEADLINE))
        self.producer.init_transactions(DEADLINE)

    def begin(self, profiles: int) -> None:
        """Write a state."""
        self.producer.begin_transaction()
        self.write(profiles)

    def write(self, profiles: int) -> None:
        made = state(self._settings, profiles)
        self.producer.produce(self._settings.names.drift, msgspec.msgpack.encode(made), made.key.encode(), 0)
        assert self.producer.flush(DEADLINE) == 0

    def send_offsets(self, profiles: int) -> None:
        """From here on its commit cannot be fenced by the group any more."""
        places = [TopicPartition(self._settings.names.profiles, 0, profiles)]
        with closing(Consumer(kafka.consumer_config(self._settings, group_of(self._settings)))) as member:
            self.producer.send_offsets_to_transaction(places, member.consumer_group_metadata(), DEADLINE)


@pytest.fixture
def another(stream: Settings) -> Another:
    """A monitor that has committed a state, of 3 profiles."""
    made = Another(stream)
    made.begin(3)
    made.send_offsets(3)
    made.producer.commit_transaction(DEADLINE)
    return made


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def still_waits(answer: Future[MonitorState | None]) -> bool:
    try:
        answer.result(1.0)
    except NotYet:
        return True
    return False


def test_without_a_state_there_is_none(stream: Settings) -> None:
    assert restore(stream, DEADLINE) is None
    assert read_state(stream) is None


@pytest.mark.parametrize(("commits", "stands_at"), [(True, 5), (False, 3)])
def test_a_commit_that_is_under_way_is_waited_for(
    stream: Settings, another: Another, thread: ThreadPoolExecutor, commits: bool, stands_at: int
) -> None:
    another.begin(5)
    another.send_offsets(5)
    answer = thread.submit(restore, stream, DEADLINE)
    assert still_waits(answer)
    now = read_state(stream)
    assert now is not None
    assert now.profiles == 3
    if commits:
        another.producer.commit_transaction(DEADLINE)
    else:
        another.producer.abort_transaction(DEADLINE)
    found = answer.result(DEADLINE)
    assert found is not None
    assert found.profiles == stands_at


def test_a_transaction_that_stays_open_is_not_waited_for_without_end(stream: Settings, another: Another) -> None:
    another.begin(5)
    with pytest.raises(KafkaException, match="could not be read to its end"):
        restore(stream, 2.0)
    another.producer.abort_transaction(DEADLINE)


def test_a_state_is_found_behind_any_number_of_other_records_and_the_newest_counts(
    stream: Settings, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "REACH", 2)
    another.begin(7)
    another.write(9)
    for number in range(200):
        another.producer.produce(stream.names.drift, b"{}", f"report/{stream.model_name}/1/{number}".encode(), 0)
    another.producer.produce(stream.names.drift, b"{}", b"state/another-model", 0)
    another.producer.commit_transaction(DEADLINE)
    found = restore(stream, DEADLINE)
    assert found == state(stream, 9)


def test_a_state_that_cannot_be_read_is_told_and_one_that_is_taken_back_is_none(
    stream: Settings, another: Another
) -> None:
    key = f"state/{stream.model_name}".encode()
    for value in (b"no state", None):
        another.producer.begin_transaction()
        another.producer.produce(stream.names.drift, value, key, 0)
        another.producer.commit_transaction(DEADLINE)
        if value is not None:
            with pytest.raises(DataError, match=r"The monitor's state .* cannot be read"):
                restore(stream, DEADLINE)
    assert restore(stream, DEADLINE) is None

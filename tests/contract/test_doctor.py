"""`ecluse doctor`: each fault is found, named, and comes with what to do about it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from ecluse import kafka
from ecluse.settings import Settings
from tests.cli import commit, ecluse, json_of, produce
from tests.conftest import MakeSettings
from tests.workers import train_champion

EVENT = b'{"amount": 1.5, "terminal_risk_30d": 0.1, "night": 0}'


def checks(settings: Settings | None, *args: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and each check by its name."""
    result = ecluse(settings, "doctor", "--json", *args)
    found: Any = json_of(result)["checks"]
    return result.exit_code, {check["name"]: check for check in found}


def test_a_stream_that_is_ready_is_well(stream: Settings, tmp_path: Path) -> None:
    train_champion(stream, tmp_path)
    result = ecluse(stream, "doctor")
    assert result.exit_code == 0, result.output
    assert "Nothing is wrong." in result.stdout
    assert "version 1" in result.stdout and "loads and scores" in result.stdout
    code, found = checks(stream)
    assert code == 0
    assert list(found) == ["configuration", "broker", "topics", "offsets", "workers", "model"]


def test_a_model_that_is_not_in_the_store_is_a_fault(stream: Settings, tmp_path: Path) -> None:
    train_champion(stream, tmp_path)
    elsewhere = stream.model_copy(
        update={"model": stream.model.model_copy(update={"store": str(tmp_path / "x" / "s")})}
    )
    (tmp_path / "x").mkdir()
    code, found = checks(elsewhere)
    assert code == 1
    assert not found["model"]["ok"]
    assert str(tmp_path / "x" / "s") in found["model"]["advice"]


def test_a_model_that_workers_would_refuse_is_a_fault_with_what_to_do(stream: Settings, tmp_path: Path) -> None:
    train_champion(stream, tmp_path)
    (Path(stream.model.store) / stream.model_name / "1" / "model.sig").unlink()
    _, found = checks(stream)
    assert not found["model"]["ok"] and "is not signed" in found["model"]["seen"]
    assert "ecluse model sign 1" in found["model"]["advice"]
    production = stream.model_copy(update={"model": stream.model.model_copy(update={"production": True})})
    _, found = checks(production)
    assert "is a development key" in found["model"]["seen"] and "[model]" in found["model"]["advice"]


def test_a_stream_without_a_model_is_told_to_train_one(stream: Settings) -> None:
    code, found = checks(stream)
    assert (code, found["model"]["ok"]) == (1, False)
    assert "ecluse model train" in found["model"]["advice"]


def test_waiting_events_without_a_worker_are_a_fault_with_the_lag(stream: Settings) -> None:
    produce(stream, stream.names.events, [(0, EVENT, ())] * 3 + [(1, EVENT, ())] * 9)
    commit(stream, {1: 2})
    _, found = checks(stream)
    assert found["workers"] == {
        "name": "workers",
        "ok": False,
        "seen": "0 workers, 10 events wait (most in partition 1: 7)",
        "advice": "`ecluse worker` starts one.",
    }


def test_a_member_of_the_group_counts_as_worker(stream: Settings) -> None:
    produce(stream, stream.names.events, [(0, EVENT, ())] * 3)
    with closing(Consumer(kafka.consumer_config(stream, stream.group))) as member:
        member.subscribe([stream.names.events])
        assert member.poll(20) is not None
        _, found = checks(stream)
    assert (found["workers"]["ok"], found["workers"]["seen"][:9]) == (True, "1 workers")


def test_events_deleted_before_they_were_scored_are_counted(stream: Settings) -> None:
    produce(stream, stream.names.events, [(2, EVENT, ())] * 10)
    client = AdminClient({"bootstrap.servers": stream.kafka.bootstrap_servers})
    for future in client.delete_records([TopicPartition(stream.names.events, 2, 6)]).values():
        future.result(10)
    _, found = checks(stream)
    assert not found["offsets"]["ok"]
    assert "6 events in 1 partitions were deleted before they were scored" in found["offsets"]["seen"]


def test_offsets_beyond_the_end_are_a_fault(stream: Settings) -> None:
    commit(stream, {3: 50})
    _, found = checks(stream)
    assert not found["offsets"]["ok"]
    assert "beyond the end of partitions 3" in found["offsets"]["seen"]


def test_missing_topics_are_a_fault_with_the_command_that_makes_them(servers: str, make_settings: MakeSettings) -> None:
    code, found = checks(make_settings(servers))
    assert code == 1
    assert list(found) == ["configuration", "broker", "topics"]
    assert "ecluse topics create" in found["topics"]["advice"]


def test_a_broker_that_is_away_ends_the_examination(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "PATIENCE", 0.5)
    code, found = checks(make_settings())
    assert code == 1
    assert list(found) == ["configuration", "broker"]
    assert "127.0.0.1:1" in found["broker"]["seen"] and "ecluse broker start" in found["broker"]["seen"]


def test_a_missing_configuration_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = checks(None)
    assert code == 1
    assert "There is no configuration at ecluse.toml" in found["configuration"]["seen"]

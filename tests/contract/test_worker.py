"""A worker at its topics: events in, predictions, alerts and dead letters out, on a real broker."""

import base64
import json
import re
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from ecluse import cluster, kafka
from ecluse.contract.headers import ERROR_PREFIX, read_error_headers
from ecluse.contract.records import Alert, Decision, Prediction
from ecluse.settings import Settings
from tests.conftest import MakeSettings
from tests.workers import (
    audited,
    events,
    json_values,
    read_all,
    records,
    scored,
    send,
    train_champion,
    wait_until,
    worker,
)


@pytest.fixture
def trained(stream: Settings, tmp_path: Path) -> Settings:
    """A stream with a champion."""
    train_champion(stream, tmp_path)
    return stream


def plain_producer(settings: Settings) -> Producer:
    return Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})


def test_events_of_a_plain_producer_and_cloudevents_in_both_modes_are_scored(trained: Settings) -> None:
    plain, binary, structured, packed = events(4)
    producer = plain_producer(trained)
    topic = trained.names.events
    producer.produce(topic, json.dumps(plain), partition=0)
    producer.produce(
        topic,
        json.dumps(binary),
        key="c-binary",
        partition=0,
        headers={
            "content-type": "application/json",
            "ce_specversion": "1.0",
            "ce_id": "binary-1",
            "ce_source": "/shop",
            "ce_type": "card.payment",
            "ce_time": "2026-03-01T12:00:00Z",
        },
    )
    wrapped = {
        "specversion": "1.0",
        "id": "structured-1",
        "source": "/shop",
        "type": "card.payment",
        "data": structured,
    }
    producer.produce(
        topic, json.dumps(wrapped), partition=0, headers={"content-type": "application/cloudevents+json; charset=UTF-8"}
    )
    producer.produce(topic, msgspec.msgpack.encode(packed), key=b"\xff\xfe", partition=0)
    assert producer.flush(30) == 0
    with worker(trained):
        wait_until("four events are scored", scored(trained, 4))
    one, two, three, four = records(trained, trained.names.predictions, Prediction)
    assert (one.event_id, one.entity) == (plain["transaction_id"], plain["transaction_id"])
    assert (two.event_id, two.entity, two.event_time) == ("binary-1", "c-binary", 1772366400.0)
    assert (three.event_id, three.event_time > 1.7e9) == ("structured-1", True)
    assert four.entity == base64.urlsafe_b64encode(b"\xff\xfe").decode()
    assert [p.source.offset for p in (one, two, three, four)] == [0, 1, 2, 3]
    assert {(p.model, p.version, p.arm, p.propensity) for p in (one, two, three, four)} == {
        (trained.model_name, 1, "champion", 1.0)
    }


def broken_values() -> list[bytes]:
    """Fifty of each of ten kinds of event that cannot be scored."""
    good = events(1)[0]
    kinds = [
        b"",
        b"not json at all",
        b"[1, 2, 3]",
        json.dumps(good).encode()[:-7],
        b'{"transaction_id": "\xff\xfe", "amount": 1.0, "terminal_risk_30d": 0.0, "night": 0}',
        json.dumps(good | {"amount": "12.50"}).encode(),
        json.dumps({name: value for name, value in good.items() if name != "amount"}).encode(),
        msgspec.msgpack.encode(good | {"amount": float("nan")}),
        msgspec.msgpack.encode(good | {"terminal_risk_30d": float("inf")}),
        json.dumps(good | {"night": None}).encode(),
    ]
    return [kind for kind in kinds for _ in range(50)]


def test_of_ten_thousand_events_the_five_hundred_broken_ones_become_dead_letters(trained: Settings) -> None:
    good, broken = json_values(events(9_500)), broken_values()
    values = [*good]
    for i, value in enumerate(broken):
        values.insert(i * 20, value)
    send(trained, values)
    with worker(trained):
        wait_until("all are scored", scored(trained, 10_000))
    report = audited(trained)
    assert (report.predictions, report.dead_letters, report.missing, report.doubled) == (9_500, 500, 0, 0)
    letters = read_all(trained, trained.names.dead_letters)
    errors = [read_error_headers(letter.headers() or []) for letter in letters]
    assert sorted({error["stage"] for error in errors}) == ["decode", "validate"]
    assert len({error["exception.message"] for error in errors}) == 10
    assert all(error["topic"] == trained.names.events and error["connector.name"] == trained.group for error in errors)
    assert sorted(letter.value() or b"" for letter in letters) == sorted(broken)


def test_two_megabytes_of_nothing_and_a_lying_header_are_dead_letters_as_they_were(trained: Settings) -> None:
    producer = kafka.producer(trained)
    nothing = b" " * 2_000_000
    producer.produce(
        trained.names.events, nothing, partition=1, headers={f"{ERROR_PREFIX}topic": b"a-lie", "trace": b"t-1"}
    )
    producer.produce(trained.names.events, json_values(events(1))[0], partition=1)
    producer.produce(trained.names.events, None, partition=1)
    assert producer.flush(30) == 0
    with worker(trained):
        wait_until("all are scored", scored(trained, 3))
    first, second = read_all(trained, trained.names.dead_letters)
    assert first.value() == nothing
    assert dict(first.headers() or [])["trace"] == b"t-1"
    assert [name for name, _ in first.headers() or []].count(f"{ERROR_PREFIX}topic") == 1
    assert read_error_headers(first.headers() or [])["topic"] == trained.names.events
    assert (second.value(), read_error_headers(second.headers() or [])["offset"]) == (None, "2")
    assert len(records(trained, trained.names.predictions, Prediction)) == 1


def test_an_alert_tells_which_inputs_moved_the_score_and_shows_only_allowed_fields(trained: Settings) -> None:
    calm = {
        "transaction_id": "calm",
        "amount": 30.0,
        "terminal_risk_30d": 0.0,
        "night": 0,
        "customer_id": "secret-name",
    }
    wild = calm | {"transaction_id": "wild", "amount": 900.0}
    send(trained, json_values([calm, wild]), partition=2, key=b"c-9")
    with worker(trained):
        wait_until("both are scored", scored(trained, 2))
    calm_one, wild_one = records(trained, trained.names.predictions, Prediction)
    assert (calm_one.decision, wild_one.decision != Decision.ALLOW) == (Decision.ALLOW, True)
    (alert,) = records(trained, trained.names.alerts, Alert)
    assert (alert.event_id, alert.entity, alert.score, alert.source) == ("wild", "c-9", wild_one.score, wild_one.source)
    assert alert.reasons != "skipped"
    strongest = alert.reasons[0]
    assert (strongest.feature, strongest.value) == ("amount", 900.0)
    assert isinstance(strongest.usual, float)
    assert 30 < strongest.usual < 120
    assert strongest.effect > 0.3
    assert alert.fields == {"amount": 900.0, "terminal_risk_30d": 0.0, "night": 0}


def test_json_records_say_so_in_their_header(servers: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(servers, stream={"encoding": "json"})
    cluster.create_topics(settings)
    train_champion(settings, tmp_path)
    send(settings, json_values(events(3)), partition=0)
    with worker(settings):
        wait_until("all are scored", scored(settings, 3))
    for message in read_all(settings, settings.names.predictions):
        assert dict(message.headers() or []) == {"content-type": b"application/json"}
        assert json.loads(message.value() or b"")["source"]["topic"] == settings.names.events


def test_a_worker_without_a_champion_waits_outside_the_group_and_says_so(stream: Settings, tmp_path: Path) -> None:
    with worker(stream, ready=False) as waiting:
        wait_until("it says so", lambda: "No model scores stream" in waiting.text)
        assert waiting.get("/health/live")[0] == 200
        status, body = waiting.get("/health/ready")
        assert (status, "not warm" in body) == (503, True)
        train_champion(stream, tmp_path)
        waiting.wait_ready()
        send(stream, json_values(events(10)))
        wait_until("all are scored", scored(stream, 10))


def test_metrics_speak_of_predictions_dead_letters_lag_and_the_model(trained: Settings) -> None:
    send(trained, [*json_values(events(50)), b"broken"])
    with worker(trained) as running:
        wait_until("all are scored", scored(trained, 51))
        lag = 'ecluse_consumer_lag{partition="%d",topic="' + trained.names.events + '"} 0.0'
        wait_until(
            "no lag is told", lambda: all(lag % partition in running.get("/metrics")[1] for partition in range(4))
        )
        status, page = running.get("/metrics")
        assert running.get("/nothing")[0] == 404
    assert status == 200
    model = f'model="{trained.model_name}"'
    made = [
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("ecluse_predictions_total{") and model in line
    ]
    assert sum(made) == 50
    for outcome, count in (("prediction", 50), ("dead_letter", 1)):
        assert f'ecluse_events_total{{outcome="{outcome}",topic="{trained.names.events}"}} {count}.0' in page
    assert 'ecluse_dead_letters_total{stage="decode"} 1.0' in page
    assert "ecluse_event_to_prediction_seconds_count 50.0" in page
    assert f"ecluse_model_info{{{model}" in page
    assert "process_resident_memory_bytes" in page
    described = set(
        re.findall(
            r"ecluse_[a-z_]+[a-z]", (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
        )
    )
    told = set(re.findall(r"^# HELP (ecluse_[a-z_]+)", page, flags=re.MULTILINE))
    assert described == told - {name for name in told if name.endswith("_created")}


def test_a_worker_refuses_topics_whose_partition_counts_differ(trained: Settings, make_settings: MakeSettings) -> None:
    wrong = trained.model_copy(update={"topics": trained.topics.model_copy(update={"partitions": 8})})
    with worker(wrong, ready=False) as refused:
        assert refused.process.wait(60) == 1
        assert "has 4 partitions where 8 are set" in " ".join(refused.text.split())


def test_a_group_without_offsets_stops_with_a_sentence_until_told_where_to_start(
    servers: str, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(servers)
    monkeypatch.setattr(cluster, "seed_offsets", lambda *_: [])
    cluster.create_topics(settings)
    monkeypatch.undo()
    train_champion(settings, tmp_path)
    send(settings, json_values(events(5)))
    with worker(settings, ready=False) as lost:
        assert lost.process.wait(60) == 1
        assert "--from earliest or --from latest" in lost.text
    with worker(settings, "--from", "earliest"):
        wait_until("all are scored", scored(settings, 5))


def test_an_artefact_changed_after_its_release_is_not_served(trained: Settings) -> None:
    onnx = next(Path(trained.model.store).glob("*/1/model.onnx"))
    data = bytearray(onnx.read_bytes())
    data[100] ^= 1
    onnx.write_bytes(data)
    with worker(trained, ready=False) as refused:
        wait_until("it says why", lambda: "model.onnx" in refused.model.get("degraded", ""))
        assert "the worker waits outside the group" in refused.text
        assert refused.model["version"] is None

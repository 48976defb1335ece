"""`ecluse dlq replay` on a real broker: events come back as they were, in their order, and none for ever."""

import random
import signal
import subprocess
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from confluent_kafka import Message, Producer
from hypothesis import given
from hypothesis import strategies as st

from console import dlq_replay
from ecluse import cluster
from ecluse.contract.headers import ERROR_PREFIX, Headers
from ecluse.contract.records import Prediction, Source
from ecluse.contract.schema import Field, FieldType
from ecluse.deadletters import DeadLetters
from ecluse.errors import BrokerError, DataError, DeliveryError, RecordError, Stage
from ecluse.settings import Settings
from tests.cli import config_file, dead_letter, ecluse, json_of, produce
from tests.conftest import MakeSettings
from tests.unit.test_pipeline import FakeRecord
from tests.workers import (
    DEADLINE,
    ECLUSE,
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

CLOUD_EVENT: Headers = [
    ("content-type", b"application/json"),
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-8"),
    ("ce_source", b"/shop"),
    ("ce_type", b"card.payment"),
]


def put(settings: Settings, letters: Iterable[tuple[int, bytes | None, Headers]]) -> None:
    produce(settings, settings.names.dead_letters, letters)


def replay(settings: Settings, *args: str) -> Result:
    return ecluse(settings, "dlq", "replay", *args)


def replayed(settings: Settings) -> list[Message]:
    return sorted(read_all(settings, settings.names.events), key=lambda event: (event.partition(), event.offset()))


def headers(event: Message) -> Any:
    return event.headers()


def test_events_come_back_byte_for_byte_to_their_partition(stream: Settings) -> None:
    own: Headers = [
        ("trace", b"1"),
        *CLOUD_EVENT,
        ("trace", b"\xff"),
        ("nothing", None),
        ("empty", b""),
        ("trace", b"1"),
    ]
    keys, values = (None, b"", b"c-1", b"\xff\xfe"), (None, b"", b'{"amount": "?"}', bytes(range(256)))
    originals = [(key, value, headers) for key in keys for value in values for headers in (own, [])]
    producer = Producer({"bootstrap.servers": stream.kafka.bootstrap_servers})
    for n, (key, value, of_its_own) in enumerate(originals):
        partition, _, both = dead_letter(stream, 2, n, value, headers=of_its_own)
        producer.produce(stream.names.dead_letters, value, key, partition, headers=list(both))
    assert producer.flush(DEADLINE) == 0
    result = replay(stream, "--all")
    found = replayed(stream)

    assert result.exit_code == 0, result.output
    assert result.stdout == f"32 of 32 dead letters sent to {stream.names.events}.\n"
    assert {event.partition() for event in found} == {2}
    assert [(event.key(), event.value(), headers(event)[:-2]) for event in found] == originals
    assert [headers(event)[-2:] for event in found] == [
        [("ecluse-attempts", b"1"), ("ecluse-replayed-from", f"{stream.names.events}-2-{n}".encode())]
        for n in range(32)
    ]


def test_events_come_back_once_each_in_the_order_in_which_they_stood(stream: Settings) -> None:
    random.seed(4)
    offsets = [random.sample(range(40), 40) + random.choices(range(40), k=20) for _ in range(4)]
    letters = [dead_letter(stream, p, offset, b"%d" % offset) for p in range(4) for offset in offsets[p]]
    put(stream, letters)
    produce(stream, stream.names.dead_letters, [dead_letter(stream, 0, 99)], "t-1", abort=True)
    outcome = json_of(replay(stream, "--all", "--json"))
    assert (outcome["chosen"], outcome["replayed"], outcome["repeated"], outcome["refused"]) == (240, 160, 80, 0)
    assert [(event.partition(), event.value()) for event in replayed(stream)] == [
        (partition, b"%d" % offset) for partition in range(4) for offset in range(40)
    ]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5_000)), unique=True))
def test_what_is_read_in_one_go_ascends_in_one_partition_and_nothing_is_left_out(places: list[tuple[int, int]]) -> None:
    runs = list(dlq_replay._runs(places))
    assert [(partition, offset) for partition, run in runs for offset in run] == places
    assert all(0 < after - before <= dlq_replay._REACH for _, run in runs for before, after in pairwise(run))


def test_places_a_stage_or_a_time_choose(stream: Settings) -> None:
    stages = [Stage.DECODE, Stage.SCORE] * 3
    put(stream, [dead_letter(stream, 1, n, b"%d" % n, stage=stage) for n, stage in enumerate(stages)])
    assert replay(stream, "1-4", "1-0", "1-4").exit_code == 0
    assert replay(stream, "--stage", "score", "--since", "1h").exit_code == 0
    assert json_of(replay(stream, "--since", "2100-01-01", "--json"))["chosen"] == 0
    assert [event.value() for event in replayed(stream)] == [b"0", b"4", b"1", b"3", b"5"]


@pytest.mark.parametrize(
    "args",
    [(), ("--dry-run",), ("--max-attempts", "9"), ("0-0", "--all"), ("--all", "--stage", "score"), ("0",), ("a-1",)],
)
def test_nothing_chosen_or_chosen_in_two_ways_is_wrong_use(make_settings: MakeSettings, args: tuple[str, ...]) -> None:
    assert replay(make_settings(), *args).exit_code == 2


def test_where_one_of_the_places_holds_none_nothing_is_sent(stream: Settings) -> None:
    put(stream, [dead_letter(stream, 0, 1)])
    produce(stream, stream.names.dead_letters, [dead_letter(stream, 0, 2)], "t-1", abort=True)
    for place in ("0-1", "0-999", "7-0"):
        result = replay(stream, "0-0", place)
        assert isinstance(result.exception, DataError)
        assert f"no dead letter at {place}" in str(result.exception)
    assert replayed(stream) == []


def with_error_header(
    letter: tuple[int, bytes | None, Headers], name: str, content: bytes | None
) -> tuple[int, bytes | None, Headers]:
    """A dead letter with another error header, or without it."""
    partition, value, found = letter
    rest = [header for header in found if header[0] != ERROR_PREFIX + name]
    return partition, value, [*rest, *([(ERROR_PREFIX + name, content)] if content is not None else [])]


def test_what_must_not_go_back_is_refused_with_the_reason_and_the_rest_is_sent(stream: Settings) -> None:
    good = dead_letter(stream, 0, 1, b"good", headers=[("ecluse-attempts", b"2")])
    faults = {
        "replayed 3 times": dead_letter(stream, 0, 2, headers=[("ecluse-attempts", b"3")]),
        "header ecluse-attempts is no number": dead_letter(stream, 0, 3, headers=[("ecluse-attempts", b"-1")]),
        "too large to be kept whole": dead_letter(stream, 0, 4, headers=[("ecluse-original-bytes", b"9")]),
        "no event of this stream": with_error_header(good, "topic", stream.names.models.encode()),
        "has no partition 4": with_error_header(good, "partition", b"4"),
        "do not say which event": with_error_header(good, "topic", None),
        "error headers do not": with_error_header(good, "partition", None),
        "headers do not say": with_error_header(good, "offset", "٣".encode()),
        "not say which": with_error_header(good, "offset", b"9" * 5_000),
        "which event it was": (0, b"", []),
    }
    put(stream, [*faults.values(), good])
    dry = replay(stream, "--all", "--dry-run")
    assert (dry.exit_code, replayed(stream)) == (1, [])
    assert dry.stdout.endswith(f"1 of 11 dead letters would be sent to {stream.names.events}, 10 refused.\n")
    result = replay(stream, "--all", "--json")
    assert result.exit_code == 1
    outcome: Any = json_of(result)
    assert (outcome["replayed"], outcome["refused"]) == (1, 10)
    for number, (reason, refused) in enumerate(zip(faults, outcome["refused_letters"], strict=True)):
        assert refused["place"] == f"0-{number}"
        assert reason in refused["reason"] and reason in " ".join(dry.stdout.split())
    (event,) = replayed(stream)
    assert (event.value(), dict(headers(event))["ecluse-attempts"]) == (b"good", b"3")


@pytest.mark.parametrize("value", [None, b"", b"v" * 20_000])
def test_a_dead_letter_that_a_worker_had_to_cut_is_refused(stream: Settings, value: bytes | None) -> None:
    cut = DeadLetters(stream.names.dead_letters, "app", "w-1", 10_000)
    record = FakeRecord(7, value, b"k" * 20_000, [("trace", b"1")])
    letter = cut(record, Source(stream.names.events, 0, 7), RecordError(Stage.VALIDATE, "The event's key is too long."))
    put(stream, [(0, letter.value, letter.headers)])
    assert "too large to be kept whole" in " ".join(replay(stream, "0-0").stdout.split())
    assert replayed(stream) == []


def test_an_event_that_the_broker_does_not_take_does_not_stop_the_others(
    make_settings: MakeSettings, servers: str
) -> None:
    settings = make_settings(servers, topics={"max_message_bytes": 20_000})
    cluster.create_topics(settings)
    large = random.Random(4).randbytes(19_990)
    put(settings, [dead_letter(settings, 0, n, large if n == 50 else b"%d" % n) for n in range(100)])
    result = replay(settings, "--all", "--json")
    outcome: Any = json_of(result)
    assert (result.exit_code, outcome["replayed"]) == (1, 99)
    (refused,) = outcome["refused_letters"]
    assert refused["place"] == "0-50" and "The broker refused it" in refused["reason"]
    assert [event.value() for event in replayed(settings)] == [b"%d" % n for n in range(100) if n != 50]


def test_a_broker_that_does_not_confirm_ends_it_and_says_how_far_it_came(
    stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(stream, [dead_letter(stream, 0, n) for n in range(3)])
    whole = dlq_replay.kafka.producer_config
    nowhere = {"bootstrap.servers": "127.0.0.1:1"}
    monkeypatch.setattr(dlq_replay.kafka, "producer_config", lambda settings: whole(settings) | nowhere)
    monkeypatch.setattr(dlq_replay, "_PATIENCE", 1)
    result = replay(stream, "--all")
    assert isinstance(result.exception, DeliveryError)
    assert stream.names.events in str(result.exception)
    assert "Stopped: 0 of 3 dead letters are sent and confirmed" in result.stderr
    assert result.stdout == ""


def test_ctrl_c_says_how_many_are_sent_and_they_are(stream: Settings) -> None:
    """In a process of its own: the signal must not be lost inside a delivery report."""
    put(stream, [dead_letter(stream, 0, n, b"%d" % n) for n in range(50_000)])
    command = [ECLUSE, "dlq", "replay", "--all", "--config", str(config_file(stream))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until("some are sent", lambda: sum(cluster.end_offsets(stream, stream.names.events).values()) > 0)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    found = [event.value() for event in replayed(stream)]
    assert process.returncode == 130, said
    assert said == f"Stopped: {len(found):,} of 50,000 dead letters are sent and confirmed.\n"
    assert found == [b"%d" % n for n in range(len(found))]


def test_without_its_topic_nothing_is_sent(make_settings: MakeSettings, servers: str) -> None:
    assert isinstance(replay(make_settings(servers), "--all").exception, BrokerError)


def with_channel(settings: Settings, *, required: bool) -> Settings:
    """The stream with one more field."""
    fields = dict(settings.stream.fields) | {"channel": Field(FieldType.TEXT, required)}
    return settings.model_copy(update={"stream": settings.stream.model_copy(update={"fields": fields})})


def test_when_the_cause_is_gone_replayed_events_are_scored_and_the_audit_is_clean(
    stream: Settings, tmp_path: Path
) -> None:
    train_champion(stream, tmp_path)
    strict, wide = with_channel(stream, required=True), with_channel(stream, required=False)
    found = events(300)
    send(stream, json_values([event | ({} if n % 3 else {"channel": "web"}) for n, event in enumerate(found)]))
    with worker(strict) as running:
        wait_until("the events are scored", scored(strict, 300))
        assert running.stop() == 0
    assert len(read_all(stream, stream.names.dead_letters)) == 200
    assert replay(wide, "--stage", "validate").exit_code == 0
    with worker(wide):
        wait_until("the replayed events are scored", scored(wide, 500))
    report = audited(stream)
    assert (report.events, report.predictions, report.dead_letters) == (500, 300, 200)
    assert (report.missing, report.doubled, report.stray) == (0, 0, 0)
    predictions = records(stream, stream.names.predictions, Prediction)
    assert {prediction.event_id for prediction in predictions} == {event["transaction_id"] for event in found}


def test_an_event_that_fails_each_time_is_sent_as_often_as_allowed_and_once_a_call(
    stream: Settings, tmp_path: Path
) -> None:
    train_champion(stream, tmp_path)
    send(stream, [b"broken"], 0)

    def letters(count: int) -> None:
        wait_until(f"{count} are dead", lambda: len(read_all(stream, stream.names.dead_letters)) == count)

    with worker(stream):
        letters(1)
        assert replay(stream, "--all").exit_code == 0
        letters(2)
        second = json_of(replay(stream, "--all", "--json"))
        assert (second["chosen"], second["superseded"], second["replayed"]) == (2, 1, 1)
        letters(3)
        third = replay(stream, "--all", "--max-attempts", "2", "--json")
        assert third.exit_code == 1
        outcome: Any = json_of(third)
        assert (outcome["superseded"], outcome["replayed"], outcome["refused"]) == (2, 0, 1)
        assert "replayed 2 times" in outcome["refused_letters"][0]["reason"]
    assert len(replayed(stream)) == 3
    listed: Any = json_of(ecluse(stream, "dlq", "list", "--json"))["dead_letters"]
    assert [letter["attempts"] for letter in listed] == [0, 1, 2]
    assert "attempts: 2" in ecluse(stream, "dlq", "show", listed[-1]["place"]).stdout
    assert audited(stream).missing == 0

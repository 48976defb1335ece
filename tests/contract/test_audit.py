"""The audit on a real broker: what it proves, and what it must not overlook."""

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from console.audit import AuditReport, audit
from ecluse.errors import TopicsWrong
from ecluse.settings import Settings
from tests.cli import commit, dead_letter, ecluse, json_of, prediction, produce
from tests.conftest import MakeSettings

EVENT = b'{"amount": 1.5, "terminal_risk_30d": 0.1, "night": 0}'


def put_events(settings: Settings, counts: dict[int, int]) -> None:
    produce(settings, settings.names.events, ((p, EVENT, ()) for p, count in counts.items() for _ in range(count)))


def put_predictions(settings: Settings, partition: int, offsets: list[int]) -> None:
    values = ((partition, prediction(settings, partition, offset), ()) for offset in offsets)
    produce(settings, settings.names.predictions, values)


def put_dead_letters(settings: Settings, partition: int, offsets: list[int]) -> None:
    produce(settings, settings.names.dead_letters, (dead_letter(settings, partition, offset) for offset in offsets))


def totals(report: AuditReport) -> tuple[int, int, int, int, int, int]:
    return report.events, report.predictions, report.dead_letters, report.missing, report.doubled, report.waiting


def test_events_with_one_output_each_are_complete(stream: Settings) -> None:
    put_events(stream, {0: 1_000, 1: 10, 2: 1})
    dead = list(range(0, 1_000, 7))
    put_predictions(stream, 0, sorted(set(range(1_000)) - set(dead)))
    put_dead_letters(stream, 0, dead)
    put_predictions(stream, 1, list(range(9, -1, -1)))
    put_predictions(stream, 2, [0])
    commit(stream, {0: 1_000, 1: 10, 2: 1})

    result = ecluse(stream, "audit")

    assert result.exit_code == 0, result.output
    assert "Nothing is missing: each of 1,011 events has exactly one prediction or dead letter." in result.stdout
    assert totals(audit(stream)) == (1_011, 868, 143, 0, 0, 0)


def test_missing_events_are_named_and_fail(stream: Settings) -> None:
    put_events(stream, {1: 100})
    put_predictions(stream, 1, [offset for offset in range(100) if offset not in (3, 57)])
    commit(stream, {1: 100})

    result = ecluse(stream, "audit")

    assert result.exit_code == 1
    assert "partition 1 misses offsets 3, 57" in result.stdout
    assert "2 of 100 events are missing" in result.stdout


def test_doubled_outputs_are_said_and_fail_only_a_strict_audit(stream: Settings) -> None:
    put_events(stream, {0: 50})
    put_predictions(stream, 0, [*range(50), *range(10, 20)])
    put_dead_letters(stream, 0, [3])
    commit(stream, {0: 50})

    assert totals(audit(stream)) == (50, 60, 1, 0, 11, 0)
    loose = ecluse(stream, "audit")
    assert loose.exit_code == 0
    assert "11 outputs are repetitions" in loose.stdout
    assert ecluse(stream, "audit", "--strict").exit_code == 1


def test_events_beyond_the_committed_offset_wait_and_are_missing_only_with_all(stream: Settings) -> None:
    put_events(stream, {0: 30, 3: 5})
    put_predictions(stream, 0, list(range(22)))  # two were scored and not yet committed
    commit(stream, {0: 20})

    waiting = json_of(ecluse(stream, "audit", "--json"))
    everything = ecluse(stream, "audit", "--all", "--json")

    assert (waiting["events"], waiting["missing"], waiting["waiting"]) == (20, 0, 15)
    assert everything.exit_code == 1
    found = json_of(everything)
    assert (found["events"], found["missing"], found["waiting"]) == (35, 13, 0)


def test_transaction_markers_and_aborted_events_are_no_events(stream: Settings) -> None:
    events, predictions = stream.names.events, stream.names.predictions
    produce(stream, events, [(0, EVENT, ())] * 3, "a")  # offsets 0-2, marker at 3
    produce(stream, events, [(0, EVENT, ())] * 2, "a", abort=True)  # 4-5, marker at 6
    produce(stream, events, [(0, EVENT, ())] * 4, "a")  # 7-10, marker at 11
    commit(stream, {0: 12})
    scored = [(0, prediction(stream, 0, offset), ()) for offset in (0, 1, 2, 7, 8, 10)]
    produce(stream, predictions, scored, "b")
    produce(stream, predictions, [(0, prediction(stream, 0, 9), ())], "b", abort=True)

    report = audit(stream)

    assert totals(report) == (7, 6, 0, 1, 0, 0)
    assert report.partitions[0].missing_offsets == (9,)


def test_an_open_transaction_hides_nothing_that_was_committed_before(stream: Settings) -> None:
    put_events(stream, {0: 3})
    put_predictions(stream, 0, [0, 1, 2])
    commit(stream, {0: 3})
    hanging = Producer({"bootstrap.servers": stream.kafka.bootstrap_servers, "transactional.id": "hanging"})
    hanging.init_transactions(10)
    hanging.begin_transaction()
    hanging.produce(stream.names.predictions, prediction(stream, 0, 2), partition=0)
    hanging.flush(10)
    try:
        assert totals(audit(stream)) == (3, 3, 0, 0, 0, 0)
    finally:
        hanging.abort_transaction(10)


def test_events_deleted_before_they_were_scored_are_missing(stream: Settings) -> None:
    put_events(stream, {0: 10})
    put_predictions(stream, 0, [0, 1, 4, 5, 6])
    commit(stream, {0: 2})
    client = AdminClient({"bootstrap.servers": stream.kafka.bootstrap_servers})
    for future in client.delete_records([TopicPartition(stream.names.events, 0, 6)]).values():
        future.result(10)

    report = audit(stream)

    assert report.partitions[0].missing_offsets == (2, 3)
    assert (report.events, report.missing, report.waiting) == (4, 2, 4)


def test_outputs_that_name_no_event_of_the_partition_cover_nothing(stream: Settings) -> None:
    put_events(stream, {0: 2, 1: 2})
    stray = [(0, prediction(stream, 1, 0), ()), (0, b"no prediction", ()), (0, None, ())]
    produce(stream, stream.names.predictions, stray)
    produce(stream, stream.names.dead_letters, [(1, b"plain", ()), (1, b"", [("__connect.errors.offset", b"x")])])
    commit(stream, {0: 2, 1: 2})

    report = audit(stream)

    assert (report.events, report.missing, report.stray) == (4, 4, 5)


def test_both_encodings_are_read(stream: Settings) -> None:
    put_events(stream, {0: 2})
    both = [(0, prediction(stream, 0, 0, "json"), ()), (0, prediction(stream, 0, 1, "msgpack"), ())]
    produce(stream, stream.names.predictions, both)
    commit(stream, {0: 2})
    assert totals(audit(stream)) == (2, 2, 0, 0, 0, 0)


def test_since_leaves_out_older_events(stream: Settings) -> None:
    put_events(stream, {0: 5})
    commit(stream, {0: 5})
    assert ecluse(stream, "audit", "--since", "1h").exit_code == 1
    future = ecluse(stream, "audit", "--since", "2999-01-01")
    assert future.exit_code == 0
    assert "There was no event to audit." in future.stdout
    assert ecluse(stream, "audit", "--since", "yesterday").exit_code == 2


def test_a_stream_without_topics_is_refused(servers: str, make_settings: MakeSettings) -> None:
    with pytest.raises(TopicsWrong, match="ecluse topics create"):
        audit(make_settings(servers))


def test_events_whose_outputs_retention_may_have_deleted_are_expired_and_not_missing(stream: Settings) -> None:
    produce(stream, stream.names.events, [(0, b"{}", ()) for _ in range(10)])
    outputs = [(0, prediction(stream, 0, offset), ()) for offset in range(10) if offset != 7]
    produce(stream, stream.names.predictions, outputs)
    commit(stream, {0: 10, 1: 0, 2: 0, 3: 0})
    client = AdminClient({"bootstrap.servers": stream.kafka.bootstrap_servers})
    for future in client.delete_records([TopicPartition(stream.names.predictions, 0, 4)]).values():
        future.result(10)
    report = audit(stream)
    assert (report.events, report.predictions, report.expired, report.missing) == (10, 5, 4, 1)
    assert report.partitions[0].missing_offsets == (7,)
    assert "4 events are older than the outputs that are still held" in report.verdict

"""Labels at their topics, on a real broker: what `ecluse label` and `ecluse labels publish` write is what any client may."""

import datetime as dt
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message, Producer

from console.reading import reader, records, spans
from ecluse import cluster
from ecluse.contract.codecs import Reader
from ecluse.contract.records import Label
from ecluse.errors import DataError, TopicsWrong
from ecluse.settings import Settings
from ingest import generate
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.contract.test_publisher import read_events


def held(settings: Settings, origin: str = "analyst") -> list[Message]:
    """Everything that the topic of an origin holds, in order within a partition."""
    topic = settings.names.labels(origin)
    with closing(reader(settings)) as consumer:
        return list(records(settings, consumer, topic, spans(settings, consumer, topic)))


def read(message: Message) -> Label:
    return Reader(Label)(message.value() or b"")


def test_a_label_stands_on_its_origins_topic_as_json_under_the_events_id(stream: Settings) -> None:
    result = ecluse(
        stream, "label", "tx-1", "fraud", "--because-of-alert", "--confidence", "0.9", "--labeler", "u-7",
        "--known-at", "2026-03-01T12:00:00Z",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == "tx-1: positive (analyst, known at 2026-03-01 12:00:00 UTC).\n"
    (message,) = held(stream)
    assert message.key() == b"tx-1"
    assert message.headers() == [("content-type", b"application/json")]
    assert msgspec.json.decode(message.value() or b"") == {
        "event_id": "tx-1",
        "value": 1,
        "known_at": dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC).timestamp(),
        "labeler": "u-7",
        "confidence": 0.9,
        "alerted": True,
    }
    assert held(stream, "chargeback") == []


def test_a_correction_and_a_label_taken_back_follow_the_first_in_its_partition(stream: Settings) -> None:
    for value in ("1", "legit", "none"):
        report = json_of(ecluse(stream, "label", "tx-1", value, "--origin", "chargeback", "--json"))
        assert report["topic"] == stream.names.labels("chargeback")
    found = held(stream, "chargeback")
    assert [read(message).value for message in found] == [1, 0, None]
    assert len({message.partition() for message in found}) == 1


def test_the_training_files_word_is_a_value_too(servers: str, make_settings: MakeSettings) -> None:
    settings = make_settings(servers, model={"positive": "stolen"})
    cluster.create_topics(settings)
    assert ecluse(settings, "label", "tx-1", "stolen").exit_code == 0
    assert read(held(settings)[0]).value == 1


@pytest.mark.parametrize(
    ("origins", "asked", "chosen"),
    [
        (("chargeback", "analyst"), (), "analyst"),
        (("disputes",), (), "disputes"),
        (("disputes", "police"), ("--origin", "police"), "police"),
    ],
)
def test_the_origin_is_the_one_asked_for_else_analyst_else_the_only_one(
    servers: str, make_settings: MakeSettings, origins: tuple[str, ...], asked: tuple[str, ...], chosen: str
) -> None:
    settings = make_settings(servers, labels={"origins": origins})
    cluster.create_topics(settings)
    assert json_of(ecluse(settings, "label", "tx-1", "1", *asked, "--json"))["origin"] == chosen
    assert len(held(settings, chosen)) == 1


def test_wrong_use_is_told_before_a_broker_is_asked(make_settings: MakeSettings) -> None:
    two = make_settings(labels={"origins": ("disputes", "police")})
    unknown = ecluse(two, "label", "tx-1", "1", "--origin", "analyst")
    unnamed = ecluse(two, "label", "tx-1", "1")
    dateless = ecluse(make_settings(stream={"clock": "event"}), "label", "tx-1", "1")
    assert [result.exit_code for result in (unknown, unnamed, dateless)] == [2, 2, 2]
    assert "there is no origin 'analyst': labels.origins has disputes, police" in flat(unknown.stderr)
    assert "name the origin: labels.origins has disputes, police" in flat(unnamed.stderr)
    assert "say when it became known" in flat(dateless.stderr)


def flat(text: str) -> str:
    """The words in a box of the terminal."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "reason"), [(("tx-1", "maybe"), "'maybe' is no label"), (("", "1"), "EVENT_ID: it is empty")]
)
def test_what_is_no_label_is_a_wrong_use_and_says_so(
    make_settings: MakeSettings, arguments: tuple[str, str], reason: str
) -> None:
    result = ecluse(make_settings(), "label", *arguments)
    assert result.exit_code == 2
    assert reason in flat(result.stderr)


def test_an_id_that_no_event_can_have_is_refused(make_settings: MakeSettings) -> None:
    result = ecluse(make_settings(), "label", "x" * 5000, "1")
    assert isinstance(result.exception, DataError)
    assert "event_id: expected" in str(result.exception)


@pytest.mark.parametrize("arguments", [("tx-\udcff", "1"), ("tx-1", "1", "--labeler", "\udce9")])
def test_words_whose_bytes_are_not_utf_8_are_refused(make_settings: MakeSettings, arguments: tuple[str, ...]) -> None:
    result = ecluse(make_settings(), "label", *arguments)
    assert (type(result.exception), str(result.exception)) == (DataError, "What it says is not UTF-8.")
    forgotten = ecluse(make_settings(), "store", "forget", "--key", "\udcff")
    assert forgotten.exit_code == 2
    assert "its bytes are not UTF-8" in flat(forgotten.stderr)


def test_without_the_topic_a_label_is_refused(servers: str, make_settings: MakeSettings) -> None:
    result = ecluse(make_settings(servers), "label", "tx-1", "1")
    assert isinstance(result.exception, TopicsWrong)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_file_that_was_published_as_events_serves_for_the_labels(
    stream: Settings, tmp_path: Path, ending: str
) -> None:
    rows = generate(5, 2, customers=50, terminals=100).head(150)
    file = tmp_path / f"payments.{ending}"
    {"csv": rows.write_csv, "jsonl": rows.write_ndjson, "parquet": rows.write_parquet}[ending](file)
    assert ecluse(stream, "publish", str(file)).exit_code == 0
    events = {msgspec.json.decode(message.value() or b"")["transaction_id"] for message in read_events(stream)}
    report = json_of(ecluse(stream, "labels", "publish", str(file), "--origin", "chargeback", "--json"))
    assert report["published"] == rows.height
    assert report["columns"] == {"event_id": "transaction_id", "value": "fraud", "known_at": "label_known_at"}
    found = {label.event_id: label for label in map(read, held(stream, "chargeback"))}
    assert found.keys() == events
    assert len(events) == rows.height
    for row in rows.to_dicts():
        label = found[str(row["transaction_id"])]
        assert (label.value, label.known_at) == (row["fraud"], row["label_known_at"].timestamp())


def test_of_a_file_with_bad_rows_nothing_is_published_and_each_is_named(stream: Settings, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"event_id": f"e-{n}", "value": n % 2, "when": "2026-03-01T12:00:00Z"} for n in range(12_000)
    ]
    rows[4] |= {"value": "perhaps"}
    rows[11_003] |= {"event_id": None}
    rows[11_500] |= {"when": "soon"}
    file = tmp_path / "cases.jsonl"
    file.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    result = ecluse(stream, "labels", "publish", str(file), "--origin", "analyst", "--known-at", "when")
    assert isinstance(result.exception, DataError)
    assert str(result.exception).splitlines() == [
        f"3 of the 12,000 rows of {file} are no labels; nothing was published.",
        "Row 5: the value 'perhaps' is neither 0/1 nor true/false; model.positive can say what means 1.",
        "Row 11,004: the event's id ('event_id') is blank.",
        "Row 11,501: 'when' is no time: 'soon'.",
    ]
    assert held(stream) == []


def test_named_columns_say_who_how_sure_and_why_and_blank_values_are_left_out(stream: Settings, tmp_path: Path) -> None:
    file = tmp_path / "cases.csv"
    file.write_text("case,outcome,who,sure,because\n0017,1,u-1,0.75,true\n0018,,u-1,,\n0019,0,,,\n")
    report = json_of(
        ecluse(
            stream, "labels", "publish", str(file), "--origin", "analyst", "--event-id", "case", "--value", "outcome",
            "--labeler", "who", "--confidence", "sure", "--alerted", "because", "--json",
        )
    )  # fmt: skip
    assert (report["published"], report["left_out"]) == (2, 1)
    found = sorted(map(read, held(stream)), key=lambda label: label.event_id)
    assert found == [Label("0017", 1, None, "u-1", 0.75, True), Label("0019", 0)]


def test_a_back_office_needs_no_library_of_ours(stream: Settings) -> None:
    producer = Producer({"bootstrap.servers": stream.kafka.bootstrap_servers})
    producer.produce(stream.names.labels("chargeback"), b'{"event_id": "tx-1", "value": true, "case": 12}', key=b"tx-1")
    assert producer.flush(10) == 0
    (message,) = held(stream, "chargeback")
    assert read(message) == Label("tx-1", True)

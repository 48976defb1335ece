"""`ecluse drift` and `ecluse retrain`: what people are shown of reports and requests, and asking themselves."""

import time
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from ecluse import cluster, kafka
from ecluse.contract.loop import DriftReport, Level, Run, RunState, Statistic
from ecluse.settings import Settings
from retrain.drift.state import MonitorState
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.profiles import requests
from tests.workers import DEADLINE, json_values, send

DAY = 86_400.0
START = 1_767_571_200.0
PSI = Statistic("psi", 0.31, 0.1, 0.25, Level.ALARM, "amount")
RECALL = Statistic("recall", 0.65, 0.7, 0.6, Level.WARN, None, 0.5, 0.8)
CALM = [Statistic("missing", 0.001, 0.02, 0.1, Level.OK, f"field_{i}") for i in range(9)]


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings) -> Settings:
    """A stream on its events' clock, which no monitor has watched."""
    made = make_settings(servers, stream={"clock": "event"})
    cluster.create_topics(made)
    return made


def plain(value: object) -> object:
    """A value as JSON gives it back."""
    return msgspec.json.decode(msgspec.json.encode(value))


def write(settings: Settings, topic: str, *records: DriftReport | MonitorState | Run) -> None:
    """Put records on a topic under their keys, as the monitor or the trainer would."""
    producer: Producer = kafka.producer(settings)
    for record in records:
        producer.produce(topic, msgspec.msgpack.encode(record), record.key.encode(), 0)
    assert producer.flush(DEADLINE) == 0


def report(
    settings: Settings, day: int, *numbers: Statistic, episode: str | None = None, version: int = 1
) -> DriftReport:
    """The report of a day."""
    worst = next(
        (level for level in (Level.ALARM, Level.WARN) if any(each.level is level for each in numbers)), Level.OK
    )
    until = START + day * DAY
    return DriftReport(
        model=settings.model_name,
        version=version,
        since=until - 7 * DAY,
        until=until,
        events=70_000,
        level=worst,
        statistics=(*numbers, *CALM),
        episode=episode,
        late=3,
    )


def test_without_a_report_status_says_what_is_missing(settings: Settings) -> None:
    nothing = ecluse(settings, "drift", "status")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "There is no report on" in nothing.stderr
    assert json_of(ecluse(settings, "drift", "status", "--json"))["report"] is None
    assert ecluse(settings, "drift", "history").exit_code == 0
    state = MonitorState(model=settings.model_name, profiles=0, stream_time=START, written_at=0.0, fold=b"")
    write(settings, settings.names.drift, state)
    assert "The stream has come to 2026-01-05 00:00:00 UTC" in ecluse(settings, "drift", "status").stderr
    producer = kafka.producer(settings)
    producer.produce(settings.names.profiles, b"{}", b"1", 0)
    assert producer.flush(DEADLINE) == 0
    assert "is `ecluse monitor` running?" in ecluse(settings, "drift", "status").stderr


def test_status_shows_the_newest_report_the_worst_first_and_what_became_of_the_request(settings: Settings) -> None:
    asked = ecluse(settings, "retrain", "request", "--reason", "new terminals", "--as-of", "2026-01-20T00:00:00Z")
    assert asked.exit_code == 0, asked.output
    (request,) = requests(settings)
    episode = f"drift-1-{START + 9 * DAY:.0f}"
    later = report(settings, 9, PSI, RECALL, episode=episode)
    write(settings, settings.names.drift, report(settings, 8, RECALL), later)

    shown = ecluse(settings, "drift", "status")

    assert shown.exit_code == 0, shown.output
    assert (
        f"Version 1 of {settings.model_name}, 2026-01-07 00:00:00 to 2026-01-14 00:00:00 UTC, 70,000 events: ALARM"
        in shown.stdout
    )
    assert f"Episode {episode} is open." in shown.stdout
    assert f"The request {request.id} waits for `ecluse trainer`." in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["psi", "amount", "0.31", "0.1", "0.25", "alarm"] in lines
    assert ["recall", "0.65", "0.5", "to", "0.8", "0.7", "0.6", "warn"] in lines
    assert "4 more numbers are well" in shown.stderr
    assert "Not judged since the report before: 3 late" in shown.stderr
    told = json_of(ecluse(settings, "drift", "status", "--json"))
    assert told["report"] == plain(later)
    assert told["requests"][0]["state"] == "open"  # type: ignore[index]

    times = {"started_at": START, "ended_at": START + 60, "trainer": "t-1"}
    run = Run(name=settings.model_name, request=request.id, state=RunState.FAILED, reason="The script raised.", **times)
    write(settings, settings.names.models, run)
    assert request.id not in ecluse(settings, "drift", "status").stdout  # it is done with, and not of this episode
    lines = ecluse(settings, "retrain", "list").stdout
    assert "failed" in lines
    assert "The script raised." in lines


def test_history_shows_every_report_and_draws_them(settings: Settings, tmp_path: Path) -> None:
    change = Statistic("change", 0.2, None, None, Level.ALARM, "amount")
    found = [
        report(settings, day, *([PSI, change] if day > 4 else [RECALL]), episode="drift-1-5" if day > 4 else None)
        for day in range(9)
    ]
    write(settings, settings.names.drift, *found, report(settings, 9, version=2), found[3])
    ecluse(settings, "retrain", "request", "--as-of", "2026-01-10T00:00:00Z")
    plot = tmp_path / "drift.png"

    shown = ecluse(settings, "drift", "history", "--plot", str(plot))

    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("drift-1-5") == 4
    assert shown.stdout.count("psi of amount 0.31") == 4
    assert plot.read_bytes().startswith(b"\x89PNG")
    everything = json_of(ecluse(settings, "drift", "history", "--json"))["reports"]
    assert everything == plain([*found, report(settings, 9, version=2)])
    late = json_of(ecluse(settings, "drift", "history", "--json", "--since", "2026-01-12"))["reports"]
    assert late == plain([*found[7:], report(settings, 9, version=2)])
    for wrong in ("drift.pdf", "no/such/folder/drift.png"):
        assert ecluse(settings, "drift", "history", "--plot", wrong).exit_code == 2


def test_a_persons_request_has_the_streams_time_as_its_cutoff(settings: Settings) -> None:
    nobody = ecluse(settings, "retrain", "request")
    assert "there is no event yet" in str(nobody.exception)
    events = [
        {"transaction_id": f"t-{i}", "time": START + i, "amount": 1.0, "terminal_risk_30d": 0.0, "night": 0}
        for i in range(9)
    ]
    send(settings, json_values(events), partition=2)

    first = ecluse(settings, "retrain", "request")
    state = MonitorState(model=settings.model_name, profiles=0, stream_time=START + DAY, written_at=0.0, fold=b"")
    write(settings, settings.names.drift, state)
    second = ecluse(settings, "retrain", "request", "--reason", "as agreed", "--json")

    found = requests(settings)
    assert first.stdout.strip() == found[0].id
    assert json_of(second)["request"] == plain(found[1])
    assert [request.cutoff for request in found] == [START + 6, START + DAY]
    assert [request.reason for request in found] == ["a person asked", "as agreed"]
    assert abs(found[0].created_at - time.time()) < 3600
    listed = json_of(ecluse(settings, "retrain", "list", "--json"))["requests"]
    assert [each["id"] for each in listed] == [request.id for request in found]  # type: ignore[attr-defined]


def test_on_the_clock_of_arrivals_a_cutoff_cannot_lie_in_the_future(stream: Settings) -> None:
    assert ecluse(stream, "retrain", "request", "--as-of", "2999-01-01").exit_code == 2
    assert ecluse(stream, "retrain", "request").exit_code == 0
    (request,) = requests(stream)
    assert abs(request.cutoff - time.time()) < 3600

"""The bypass at the topics: who goes past the model, the sample of each, and the switch that workers follow."""

import json
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Message

from ecluse import cluster
from ecluse.contract.arms import Draw, Eligibility, day_of
from ecluse.contract.codecs import Reader
from ecluse.contract.records import BYPASS, BypassSample, Decision, Prediction, Switch
from ecluse.model.registry import Switched, read_registry
from ecluse.secrets import make_secret
from ecluse.settings import Settings
from tests.artefacts import publish_small
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.workers import (
    WorkerProcess,
    audited,
    events,
    json_values,
    read_all,
    records,
    scored,
    send,
    wait_until,
    worker,
)

LIMIT = 150.0


@pytest.fixture
def stream(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream with a champion, whose settings allow that half of the amounts up to `LIMIT` goes past."""
    secret = tmp_path / "bypass.key"
    make_secret(secret)
    settings = make_settings(
        servers,
        bypass={"secret_file": secret, "max_share": 0.5, "amount_field": "amount", "max_amount": LIMIT},
        worker={"session_timeout_seconds": 6},
    )
    cluster.create_topics(settings)
    publish_small(settings)
    return settings


def switched(settings: Settings) -> Switched:
    return read_registry(settings).switches[settings.model_name]


def obeyed(workers: list[WorkerProcess], revision: int) -> None:
    wait_until(
        f"all obey switch revision {revision}",
        lambda: all(each.model.get("switch_revision") == revision for each in workers),
    )


def revision_of(settings: Settings, *args: str) -> int:
    """Change the bypass by the command, and give its revision."""
    revision = json_of(ecluse(settings, "bypass", *args, "--json"))["revision"]
    assert isinstance(revision, int)
    return revision


def goes(settings: Settings, event: Message, switch: Switch) -> tuple[bool, float]:
    """Whether an event goes past by a switch, as who has the secret can tell, and the probability of where it is."""
    assert settings.bypass.secret_file is not None
    draw = Draw(settings.bypass.secret_file.read_bytes(), settings.stream.name)
    schema = settings.stream.schema_of_events()
    key = event.key()
    if not Eligibility(switch, schema)(key, schema.decode(event.value())):
        return False, 1.0
    past = draw(key or b"", day_of(event.timestamp()[1] / 1e3)) < switch.share
    return past, switch.share if past else 1 - switch.share


def test_a_switch_takes_effect_on_all_workers_and_each_event_has_the_arm_that_the_draw_says(stream: Settings) -> None:
    rows = json_values(events(300))
    switches: dict[int, Switch] = {}
    with worker(stream, "--from", "earliest") as first, worker(stream) as second:
        send(stream, rows)
        wait_until("all is scored", scored(stream, 300))
        for number, share in enumerate(("30%", "0.4"), start=1):
            revision = revision_of(stream, "set", share)
            switches[revision] = switched(stream).switch
            obeyed([first, second], revision)
            send(stream, rows)
            wait_until("all is scored", scored(stream, 300 * (1 + number)))
        assert first.get("/health/ready")[0] == 200
        # Partitions move to a third worker, and on from one that is killed: nobody draws otherwise.
        with worker(stream) as third:
            second.process.kill()
            send(stream, rows)
            wait_until("all is scored", scored(stream, 1200))
            off = revision_of(stream, "off")
            switches[off] = switched(stream).switch
            obeyed([first, third], off)
            send(stream, rows)
            wait_until("all is scored", scored(stream, 1500))
            assert "ecluse_bypass_share 0.0" in first.get("/metrics")[1]
            assert (first.stop(), third.stop()) == (0, 0), first.text + third.text
    report = audited(stream)
    assert (report.events, report.missing, report.doubled, report.dead_letters) == (1500, 0, 0, 0)
    require_arms(stream, switches)


def require_arms(settings: Settings, switches: dict[int, Switch]) -> None:
    """Each event's arm is the one that the draw says under its revision; each that went past has one sample, as it was sent."""
    sent = {(m.partition(), m.offset()): m for m in read_all(settings, settings.names.events)}
    found = Counter[tuple[int, str]]()
    past: dict[tuple[int, int], Prediction] = {}
    last: dict[int, int] = {}
    for message in read_all(settings, settings.names.predictions):
        made = Reader(Prediction)(message.value() or b"")
        event = sent[message.partition() or 0, made.source.offset]
        assert made.source.offset > last.get(made.source.partition, -1), "in the order of the events"
        last[made.source.partition] = made.source.offset
        switch = switches.get(made.switch_revision)
        expected = (False, 1.0) if switch is None or not switch.share else goes(settings, event, switch)
        assert (made.arm == BYPASS, made.propensity) == expected
        assert (made.score is None) == expected[0]
        found[made.switch_revision, made.arm] += 1
        if expected[0]:
            assert (made.decision, made.threshold, made.version) == (Decision.ALLOW, 0.5, 1)
            past[made.source.partition, made.source.offset] = made
    assert all(found[revision, BYPASS] for revision, switch in switches.items() if switch.share), found
    assert {revision for revision, _ in found} == {-1, *switches}
    samples = read_all(settings, settings.names.bypass)
    assert len(samples) == len(past)
    for message in samples:
        sample = Reader(BypassSample)(message.value() or b"")
        made = past.pop((message.partition() or 0, sample.source.offset))
        event = sent[message.partition() or 0, sample.source.offset]
        assert (sample.event, message.key()) == (json.loads(event.value() or b""), event.key())
        assert (sample.event_id, sample.entity, sample.event_time) == (made.event_id, made.entity, made.event_time)
        assert (sample.propensity, sample.switch_revision) == (made.propensity, made.switch_revision)
        assert (sample.route_revision, sample.source) == (made.route_revision, made.source)
    assert not past


def test_a_client_that_tries_again_with_other_ids_gains_nothing(stream: Settings) -> None:
    revision_of(stream, "set", "0.5")
    (row,) = events(1)
    values = [json.dumps(row | {"transaction_id": f"retry-{i}", "amount": 10.0 + i}).encode() for i in range(40)]
    for partition, key in enumerate((b"card-1", b"card-2", b"card-3", b"card-4")):
        send(stream, values, partition, key)
    with worker(stream, "--from", "earliest") as running:
        wait_until("all is scored", scored(stream, 160))
        assert running.stop() == 0, running.text
    arms = {(made.entity, made.arm) for made in records(stream, stream.names.predictions, Prediction)}
    assert len(arms) == 4, "an entity has one arm a day, however often it comes"


def test_a_worker_whose_settings_do_not_allow_the_switch_lets_nobody_past_says_so_and_scores(
    stream: Settings, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    make_secret(other)
    theirs = stream.model_copy(update={"bypass": stream.bypass.model_copy(update={"secret_file": other})})
    revision_of(stream, "set", "0.5")
    send(stream, json_values(events(60)))
    with worker(theirs, "--from", "earliest", ready=False) as running:
        wait_until("all is scored", scored(stream, 60))
        assert "another secret than the one that the switch was set with" in running.model["degraded"]
        assert (running.model["switch_revision"], running.model["bypass_share"]) == (-1, 0.0)
        assert running.get("/health/ready")[0] == 503
        assert "ecluse_model_degraded 1.0" in running.get("/metrics")[1]
        status = ecluse(stream, "bypass", "status", "--json")
        assert (status.exit_code, json_of(status)["ok"]) == (1, False)
        off = revision_of(stream, "off")
        obeyed([running], off)
        assert (running.model["degraded"], running.get("/health/ready")[0]) == ("", 200)
        assert running.stop() == 0, running.text
    made = records(stream, stream.names.predictions, Prediction)
    assert {(each.arm, each.propensity, each.switch_revision) for each in made} == {("champion", 1.0, -1)}
    assert read_all(stream, stream.names.bypass) == []


def at(settings: Settings, day: int, count: int, amount: float) -> list[bytes]:
    """Events of one day by their own time, each of another customer."""
    del settings
    rows = events(count)
    return [
        json.dumps(row | {"time": f"2026-03-{day:02}T10:{i // 60 % 60:02}:{i % 60:02}Z", "amount": amount}).encode()
        for i, row in enumerate(rows)
    ]


def test_the_budget_of_a_day_ends_the_bypass_and_the_next_day_begins_it_again(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    secret = tmp_path / "bypass.key"
    make_secret(secret)
    settings = make_settings(
        servers,
        stream={"clock": "event"},
        bypass={
            "secret_file": secret,
            "max_share": 0.5,
            "amount_field": "amount",
            "budget": 1000.0,
            "control_seconds": 0.2,
        },
    )
    cluster.create_topics(settings)
    publish_small(settings)
    wanted = revision_of(settings, "set", "50%")
    with worker(settings, "--from", "earliest") as running, worker(settings) as other:
        obeyed([running, other], wanted)
        count = 280

        def spending() -> bool:
            nonlocal count
            send(settings, at(settings, 1, 20, 20.0))
            count += 20
            return switched(settings).switch.share == 0.0

        send(
            settings, at(settings, 1, count, 20.0)
        )  # half of it is 2,800; of less at once the controller lowers the share first
        wait_until("the budget ends it", spending)
        ended = switched(settings)
        assert ended.switch.wanted == 0.5
        obeyed([running, other], ended.revision)
        # A person sets it all the same, and the controller ends it once more.
        again = revision_of(settings, "set", "50%")
        assert again > ended.revision
        wait_until("the budget ends it again", lambda: switched(settings).revision > again)
        assert switched(settings).switch.share == 0.0
        obeyed([running, other], switched(settings).revision)

        def next_day() -> bool:
            nonlocal count
            send(settings, at(settings, 2, 20, 0.01))
            count += 20
            return switched(settings).switch.share == 0.5

        wait_until("the next day begins as wanted", next_day)
        wait_until("all is scored", scored(settings, count))
        status = json_of(ecluse(settings, "bypass", "status", "--json"))
        assert (running.stop(), other.stop()) == (0, 0), running.text + other.text
    (last, first) = status["days"][-2:] if len(status["days"]) > 1 else ({}, status["days"][0])  # type: ignore[index, arg-type]
    assert first["day"] == "2026-03-01"
    assert first["amount"] > 1000 and first["over"] == first["amount"] - 1000
    assert last == {} or last["day"] == "2026-03-02"
    assert "of the day's budget of 1000 is spent" in running.text + other.text
    report = audited(settings)
    assert (report.events, report.missing, report.doubled) == (count, 0, 0)

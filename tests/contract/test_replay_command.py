"""`ecluse replay` on a real broker: a past range scored again beside the stream, and every number recounted here."""

import datetime as dt
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from ecluse import cluster, kafka
from ecluse.contract.codecs import Reader, encoder
from ecluse.contract.headers import dead_letter_headers
from ecluse.contract.records import Decision, Prediction, Source, Thresholds
from ecluse.errors import RecordError, Stage
from ecluse.model.artefact import load_model
from ecluse.settings import Settings
from tests.cli import commit, ecluse, json_of, produce
from tests.conftest import MakeSettings
from tests.workers import (
    audited,
    events,
    json_values,
    read_all,
    records,
    release_trained,
    scored,
    send,
    train_champion,
    wait_until,
    worker,
)

DAY = 86_400.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def trained(stream: Settings, tmp_path: Path) -> Settings:
    """A stream with a champion, version 1."""
    train_champion(stream, tmp_path)
    return stream


def replay(settings: Settings, *args: str, model: int = 1) -> Result:
    """The last hour, where the arguments do not say otherwise."""
    span = () if "--from" in args else ("--from", "1h", "--to", "0s")
    return ecluse(settings, "replay", *span, "--model", str(model), *args)


def found(settings: Settings, *args: str, model: int = 1) -> dict[str, Any]:
    result = replay(settings, *args, "--json", model=model)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return json_of(result)


def iso(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def decided(score: float, limits: Thresholds) -> str:
    return "block" if score >= limits.block else "review" if score >= limits.review else "allow"


def scores_by_source(settings: Settings, version: int) -> tuple[dict[tuple[int, int], float], Thresholds]:
    """What a version gives each event on the topic that it can read, and its thresholds; without replay's own code."""
    model = load_model(settings, version, None)
    schema = settings.stream.schema_of_events()
    found = {}
    for message in read_all(settings, settings.names.events):
        try:
            found[message.partition() or 0, message.offset() or 0] = schema.decode(message.value() or b"")
        except RecordError:
            continue
    scores = model.score(model.features.matrix(list(found.values())))
    return dict(zip(found, scores.tolist(), strict=True)), model.manifest.thresholds


def expected_changes(
    old: dict[tuple[int, int], float], before: Thresholds, new: dict[tuple[int, int], float], after: Thresholds
) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    for place, score in new.items():
        then, now, between = decided(old[place], before), decided(score, after), decided(score, before)
        pairs[then, now] += 1
        if then != now:
            reasons["score" if between == now else "threshold" if between == then else "both"] += 1
    return pairs, reasons


def test_decisions_of_a_worker_are_held_against_those_of_another_version(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    budgets = {"alert_budget": 0.08, "block_budget": 0.01}
    settings = make_settings(servers, thresholds=budgets)
    cluster.create_topics(settings)
    train_champion(settings, tmp_path)
    # In transactions, so that the offsets of events have gaps too.
    values = json_values(events(3_000))
    for turn in range(3):
        part = values[turn * 1_000 : (turn + 1) * 1_000]
        places = [(i % 4, value, ()) for i, value in enumerate(part)]
        produce(settings, settings.names.events, [*places, (0, b"broken", ())], f"{settings.group}-{turn}")
        produce(settings, settings.names.events, places[:40], f"{settings.group}-aborts-{turn}", abort=True)
    with worker(settings):
        # Offsets count aborted events and markers too: only the audit knows when all are scored.
        wait_until("all are scored", lambda: audited(settings).missing == 0)
    wider = settings.thresholds.model_copy(update={"alert_budget": 0.2})
    release_trained(settings.model_copy(update={"thresholds": wider}), 2_000, seed=99)
    untouched = (settings.names.predictions, settings.names.alerts, settings.names.dead_letters, settings.names.events)
    before = [cluster.end_offsets(settings, topic) for topic in untouched]
    committed = cluster.committed_offsets(settings)
    assert "as they must be" in ecluse(settings, "topics", "check").stdout

    result = found(settings, "--plot", str(tmp_path / "plot.png"), model=2)

    old, old_limits = scores_by_source(settings, 1)
    new, new_limits = scores_by_source(settings, 2)
    pairs, reasons = expected_changes(old, old_limits, new, new_limits)
    pairs["dead letter", "dead letter"] = 3
    assert {(row["then"], row["now"]): row["events"] for row in result["decisions"]} == pairs
    assert {name: row["events"] for name, row in result["reasons"].items() if row["events"]} == reasons
    assert len(reasons) >= 2, "the versions are too much alike to mean anything"
    changed = sum(count for (then, now), count in pairs.items() if then != now)
    assert (result["events"], result["compared"], result["changed"]) == (3_003, 3_003, changed)
    assert (result["waiting"], result["not_found"], result["cut_partitions"]) == (0, 0, [])
    differences = np.array([abs(new[place] - old[place]) for place in new])
    assert result["scores"]["compared"] == 3_000
    assert result["scores"]["mean_difference"] == pytest.approx(differences.mean())
    assert result["scores"]["max_difference"] == pytest.approx(differences.max())
    alerting = result["newly_alerting"]
    assert alerting["events"] == pairs["allow", "review"] + pairs["allow", "block"] > 0
    assert sum(row["events"] for row in alerting["by_first_reason"]) == alerting["events"]
    assert {row["feature"] for row in alerting["by_first_reason"]} & {"amount", "terminal_risk_30d"}
    (past,) = result["past_thresholds"]
    assert (past["version"], past["review"], past["block"]) == (1, old_limits.review, old_limits.block)
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)

    check_side_topic(settings, result["run"], new)
    assert [cluster.end_offsets(settings, topic) for topic in untouched] == before
    assert cluster.committed_offsets(settings) == committed
    assert "as they must be" in ecluse(settings, "topics", "check").stdout

    same = found(settings, model=1)
    assert (same["compared"], same["changed"], same["scores"]["max_difference"]) == (3_003, 0, 0.0)
    said = " ".join(replay(settings, model=2).stdout.split())
    assert f"{changed:,} of 3,003 decisions change" in said
    assert f"allow {pairs['allow', 'allow']:,} {pairs['allow', 'review']:,}" in said


def check_side_topic(settings: Settings, run: str, scores: dict[tuple[int, int], float]) -> None:
    """Every event that version 2 can score has one prediction of the run, on its own partition, and nothing else is there."""
    replayed = read_all(settings, settings.names.replays)
    assert {dict(message.headers() or [])["ecluse-replay-run"].decode() for message in replayed} == {run}
    made = [Reader(Prediction)(message.value() or b"") for message in replayed]
    assert [each.source.partition for each in made] == [message.partition() for message in replayed]
    assert {(each.source.partition, each.source.offset): each.score for each in made} == pytest.approx(scores, abs=1e-6)
    assert len(made) == len(scores)
    assert {(each.version, each.arm, each.route_revision) for each in made} == {(2, "replay", -1)}


def test_a_range_holds_what_arrived_from_its_start_to_before_its_end(trained: Settings) -> None:
    noon = (
        time.time() // 3_600 * 3_600 - 5 * 3_600
    )  # some hours ago: what is older than its retention, the broker deletes
    producer = Producer({"bootstrap.servers": trained.kafka.bootstrap_servers})
    for i, value in enumerate(json_values(events(300))):
        when = noon + (i // 100) * 3_600
        producer.produce(trained.names.events, value, partition=i % 3, timestamp=int(when * 1e3))
    assert producer.flush(30) == 0

    start = dt.datetime.fromtimestamp(noon + 3_600, dt.UTC)
    end = (start + dt.timedelta(hours=1)).astimezone(dt.timezone(dt.timedelta(hours=1)))
    result = found(trained, "--from", f"{start:%Y-%m-%dT%H:%M}", "--to", end.isoformat())

    assert (result["from"], result["to"]) == (noon + 3_600, noon + 7_200)
    assert (result["events"], result["waiting"], result["compared"]) == (100, 100, 0)
    by_partition = Counter(each.source.partition for each in records(trained, trained.names.replays, Prediction))
    assert sum(by_partition.values()) == 100
    assert set(by_partition) == {0, 1, 2}
    said = replay(trained, "--from", iso(noon + 7_200), "--to", iso(noon + 7_201)).stdout
    assert "none of these events has a decision of the past" in said
    assert "the workers have not come so far: 100." in said


def past(settings: Settings, offset: int, score: float, decision: Decision, threshold: float) -> Any:
    """A prediction of the past for the event at an offset of partition 0, to produce."""
    source = Source(settings.names.events, 0, offset)
    made = Prediction(
        "e", "c", 1.0, 1.0, settings.model_name, 9, "champion", 1.0, score, decision, threshold, 77, source
    )
    return 0, encoder("msgpack")(made), ()


def test_the_first_of_doubled_predictions_counts_and_dead_letters_are_told_apart(trained: Settings) -> None:
    calm = json.dumps({"amount": 30.0, "terminal_risk_30d": 0.0, "night": 0}).encode()
    wild = json.dumps({"amount": 900.0, "terminal_risk_30d": 0.9, "night": 0}).encode()
    send(trained, [calm, wild, calm, b"broken", b"broken", calm, calm, calm], partition=0)
    # 5 was passed over, 6 and 7 wait.
    commit(trained, {0: 6})
    allow, block = Decision.ALLOW, Decision.BLOCK
    produce(
        trained,
        trained.names.predictions,
        [
            past(trained, 0, 0.95, block, 0.55),
            past(trained, 1, 0.2, allow, 0.5),
            past(trained, 0, 0.1, allow, 0.5),
            past(trained, 1, 0.99, block, 0.55),
            past(trained, 3, 0.1, allow, 0.5),
            (0, b"no prediction", ()),
        ],
    )
    error = RecordError(Stage.DECODE, "because")
    letters = [
        (0, b"x", dead_letter_headers((), Source(trained.names.events, 0, offset), error, app="a", worker="w"))
        for offset in (2, 4)
    ]
    produce(trained, trained.names.dead_letters, letters)

    result = found(trained)

    assert {(row["then"], row["now"]): row["events"] for row in result["decisions"]} == {
        ("block", "allow"): 1,
        ("allow", "block"): 1,
        ("dead letter", "allow"): 1,
        ("allow", "dead letter"): 1,
        ("dead letter", "dead letter"): 1,
    }
    reasons = {name: row["events"] for name, row in result["reasons"].items()}
    assert reasons == {"score": 2, "threshold": 0, "both": 0, "newly scored": 1, "no longer scored": 1}
    assert result["reasons"]["score"] == {"events": 2, "stricter": 1, "milder": 1}
    assert (result["events"], result["compared"], result["not_found"], result["waiting"]) == (8, 5, 1, 2)
    # Version 9 was never released: its thresholds are what its predictions say.
    assert result["past_thresholds"] == [
        {"version": 9, "route_revision": 77, "events": 3, "review": 0.5, "block": 0.55}
    ]
    said = " ".join(replay(trained).stdout.split())
    assert "neither a prediction nor a dead letter was found: 1." in said
    assert "was a dead letter" in said
    assert "becomes a dead letter" in said


def test_events_that_retention_took_are_counted_where_their_predictions_are_left(trained: Settings) -> None:
    send(trained, json_values(events(50)), partition=0)
    with worker(trained):
        wait_until("all are scored", scored(trained, 50))
    admin = kafka.admin(trained)
    for future in admin.delete_records([TopicPartition(trained.names.events, 0, 20)]).values():
        future.result(10)
    result = found(trained)
    assert (result["events"], result["compared"], result["changed"]) == (30, 30, 0)
    assert (result["deleted_about"], result["cut_partitions"]) == (20, [0])
    assert "that may belong to the range: about 20" in " ".join(replay(trained).stdout.split())
    for future in admin.delete_records([TopicPartition(trained.names.events, 0, 50)]).values():
        future.result(10)
    assert "earlier ones are deleted" in str(replay(trained).exception)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--from", "1h", "--to", "2h"), "must lie before --to"),
        (("--from", "1h", "--to", "2999-01-01"), "lies in the future"),
        (("--from", "yesterday", "--to", "1h"), "neither a time"),
        (("--from", "2h", "--to", "1h", "--plot", "here.pdf"), "must be a .png file"),
        (("--from", "2h", "--to", "1h", "--plot", "no/such/folder/here.png"), "in a folder that is there"),
    ],
)
def test_a_wrong_use_is_told_before_anything_is_asked(
    make_settings: MakeSettings, args: tuple[str, ...], sentence: str
) -> None:
    result = replay(make_settings(), *args)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.replace("│", " ").split())


def test_what_cannot_be_replayed_is_refused_with_a_sentence(trained: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    send(trained, json_values(events(5)), partition=0)
    error = replay(trained, model=7).exception
    assert str(error) == f"Version 7 of model {trained.model_name} was never released; released are 1."
    assert "There is no event of" in str(replay(trained, "--from", "2h", "--to", "1h").exception)
    assert trained.names.replays not in kafka.partition_counts(trained)
    other = trained.model_copy(update={"stream": trained.stream.model_copy(update={"name": "no-such-stream"})})
    assert "is missing: `ecluse topics create` makes it" in str(replay(other).exception)

    small = NewTopic(trained.names.replays, 4, 1, config={"max.message.bytes": "100"})
    admin = kafka.admin(trained)
    admin.create_topics([small])[small.topic].result(10)
    wait_until("it is there", lambda: small.topic in kafka.partition_counts(trained))
    assert "has max.message.bytes=100; it must be" in str(replay(trained).exception)
    with monkeypatch.context() as unchecked:
        unchecked.setattr(cluster, "require_replays", lambda _: None)
        result = replay(trained, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert str(result.exception) == (f"A record for {small.topic} was not delivered: Broker: Message size too large.")
    admin.delete_topics([small.topic])[small.topic].result(10)
    wait_until("it is gone", lambda: small.topic not in kafka.partition_counts(trained))

    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("ecluse.model.runtime.Model.score", fail)
    monkeypatch.setattr("ecluse.model.runtime.Model.compare", lambda *_: 0.0)
    monkeypatch.setattr("ecluse.model.runtime.Model.warm", lambda *_: None)
    assert "fails on its own usual values: out of order" in str(replay(trained).exception)

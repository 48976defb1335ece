"""What `ecluse demo` tells of the events, and what it says of the training set that comes of them."""

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from console.audit import AuditReport, PartitionAudit
from console.audit_store import PartitionOfTable, StoreReport
from console.demo_data import ORIGIN, Scene, generated, prepare
from console.demo_end import Outcome, profiles_line, set_lines
from console.demo_labels import BackOffice
from console.demo_store import turn_on
from console.demo_watch import Prediction, Watch
from ecluse.contract.records import Decision, Label
from ecluse.settings import Settings
from ingest import generate
from ingest.labels import HEADERS
from retrain.estimates import Estimate
from retrain.manifests import Counts, Recipe, SetManifest
from tests.conftest import MakeSettings

MATURITY = dt.timedelta(days=14)
LAST = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)


class Stage:
    """Runs nothing, and remembers what it was to run."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []

    def run(self, seconds: float, name: str, *args: str) -> str:
        del seconds, name
        self.ran.append(args)
        return ""


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(
        stream={"fields": {"transaction_id": "integer", "amount": "number"}, "time_field": None, "clock": "event"},
        labels={"origins": (ORIGIN,)},
    )


@pytest.fixture
def watch(settings: Settings) -> Watch:
    """Of a stream that blocked two events."""
    watch = Watch(settings, (), None)  # type: ignore[arg-type]
    watch.blocked, watch.last_event = 2, LAST.timestamp()
    return watch


class Producer:
    """Sends nothing, and remembers what it was to send."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Label]] = []

    def produce(self, topic: str, value: bytes, key: str, headers: Any) -> None:
        label = msgspec.json.decode(value, type=Label)
        assert (key, headers) == (label.event_id, HEADERS)
        self.sent.append((topic, label))


def labels_of(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, **columns: Any
) -> dict[str, dt.datetime]:
    """When which of six events, of which the second and the fifth are blocked, is told to have been positive."""
    rows = pl.DataFrame({"transaction_id": range(1, 7), "fraud": [1, 1, 0, 1, 0, None]} | columns)
    parts = tuple(folder / f"{part}.parquet" for part in range(3))
    for i, part in enumerate(parts):
        rows[2 * i : 2 * i + 2].write_parquet(part)
    producer = Producer()
    monkeypatch.setattr("ecluse.kafka.producer", lambda _: producer)
    scene = Scene({}, Path(), None, parts, 6, 6, (), (), maturity=MATURITY)
    office = BackOffice(scene, settings)
    for number in (*range(1, 7), 1):
        decision = Decision.BLOCK if number in (2, 5) else Decision.ALLOW
        office.hear(Prediction(str(number), LAST.timestamp(), 1, 0.0, "champion", decision))
    assert office.told == len(producer.sent)
    assert all(topic == settings.names.labels(ORIGIN) and label.value == 1 for topic, label in producer.sent)
    return {label.event_id: dt.datetime.fromtimestamp(label.known_at or 0.0, dt.UTC) for _, label in producer.sent}


def test_only_what_was_let_through_and_positive_gets_a_label_once(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [LAST + dt.timedelta(days=i) for i in range(6)]
    labels = labels_of(tmp_path, settings, monkeypatch, label_known_at=known)
    assert labels == {"1": known[0], "4": known[3]}


def test_times_without_a_zone_are_utc_and_none_is_later_than_the_maturity(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [(LAST + dt.timedelta(days=5 * i)).replace(tzinfo=None) for i in range(6)]
    labels = labels_of(tmp_path, settings, monkeypatch, known_at=known)
    assert labels == {"1": LAST, "4": LAST + MATURITY}


@pytest.mark.parametrize("columns", [{}, {"label_known_at": ["yesterday"] * 6}])
def test_where_a_file_does_not_say_when_its_labels_became_known_they_are_so_before_the_maturity(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[str]]
) -> None:
    labels = labels_of(tmp_path, settings, monkeypatch, **columns)
    assert labels == {"1": LAST + MATURITY / 2, "4": LAST + MATURITY / 2}


def test_without_an_entity_to_draw_by_nothing_goes_past_and_it_says_so(make_settings: MakeSettings) -> None:
    stage = Stage()
    said = turn_on(stage, make_settings(stream={"key_field": None}))  # type: ignore[arg-type]
    assert (said.split(":")[0], stage.ran) == ("off", [])


def test_rows_without_an_id_are_numbered_by_a_column_that_the_file_has_not(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    odd = pl.DataFrame(
        {"event_number": [i % 7 + 0.5 for i in range(1_200)], "fraud": [i % 11 == 0 for i in range(1_200)]}
    )
    odd.write_csv(file)
    scene = prepare(file, tmp_path, 300)
    stream = scene.config["stream"]
    assert (scene.numbered, stream["id_field"], stream["fields"]["event_number_"]) == (True, "event_number_", "integer")
    numbers = pl.concat([pl.read_parquet(part) for part in scene.parts])["event_number_"]
    assert numbers.is_unique().all()
    assert (scene.maturity, scene.drifts) == (dt.timedelta(), False)


def test_a_stream_thinner_than_its_file_spans_the_same_time_and_has_whole_customers(tmp_path: Path) -> None:
    file = tmp_path / "payments.parquet"
    generate(5, 30, customers=300, terminals=600).write_parquet(file)
    scene = prepare(file, tmp_path, 2_000)
    rows = pl.concat([pl.read_parquet(part) for part in scene.parts])
    assert scene.events == rows.height == 2_000
    assert (rows["time"].is_sorted(), rows["time"].dt.date().n_unique()) == (True, 10)
    there = pl.read_parquet(file).filter(pl.col("time") >= rows["time"][0].replace(hour=0, minute=0, second=0))
    sizes = rows.group_by("customer_id").len().join(there.group_by("customer_id").len(), on="customer_id")
    assert (sizes["len_right"] - sizes["len"]).sum() <= sizes["len_right"].max() + len(scene.samples)
    first, second, last = (pl.read_parquet(part)["time"] for part in scene.parts)
    assert scene.maturity == dt.timedelta(days=2.5)
    assert last[0] - first[-1] >= scene.maturity
    assert second[-1] <= last[0]


def test_the_data_that_are_made_rise_in_amount_after_what_is_mature_at_the_alarm(tmp_path: Path) -> None:
    file, day = generated(tmp_path, 7_000)
    scene = prepare(file, tmp_path, 7_000, day)
    first, second, last = (pl.read_parquet(part)["amount"].mean() for part in scene.parts)
    assert isinstance(first, float) and isinstance(second, float) and isinstance(last, float)
    assert (scene.drifts, scene.maturity) == (True, dt.timedelta(days=9))
    assert min(second, last) > 1.15 * first
    assert not prepare(file, tmp_path, 6_000, day).drifts, "a week that cannot be judged"


def made(**counted: int) -> SetManifest:
    """A set of 90 rows, 8 of which went past the model."""
    recipe = Recipe(
        prefix="t.", as_of=LAST + MATURITY, since=None, clock="event", maturity_hours=MATURITY / dt.timedelta(hours=1),
        silence="negative", origins=(ORIGIN,), fields={}, label="fraud", positive=None,
    )  # fmt: skip
    counts = Counts(rows=90, positives=7, bypassed=8, blocked=10, **counted)
    return SetManifest(
        recipe=recipe, sha256="", columns=(), counts=counts, population=100, unspoken_share=counts.unreachable / 100,
        rates={"false_discovery_rate": Estimate(0.25, 0.01, 0.8, 4, 4)}, models={}, libraries={},
    )  # fmt: skip


def test_what_the_set_holds_and_does_not_speak_for_is_said_in_sentences() -> None:
    holds, rate, speaks = set_lines(made())
    assert "90 rows, 7 positive; 8 went past the model. As of 2024-02-14, 14 days after the last event." in holds
    assert rate.startswith("Of what the model blocks, 25% is legitimate (95% interval 1% to 80%), by the 4 events")
    assert speaks.startswith("It speaks for all events: each of the 10 blocked ones could have gone past")
    *_, lacks = set_lines(made(unreachable=3))
    assert lacks.startswith("It does not speak for 3.00% of the events: 3 of the 10 blocked ones")


def test_a_rate_of_which_nothing_is_known_is_said_to_be_unknown() -> None:
    unknown = msgspec.structs.replace(made(), rates={"false_discovery_rate": Estimate(None, None, None, 0, 0, "")})
    assert "is unknown" in list(set_lines(unknown))[1]


@pytest.mark.parametrize("counted", [0, 1])
def test_the_demonstration_fails_where_the_profiles_do_not_count_what_was_scored(watch: Watch, counted: int) -> None:
    watch.loop.counted = counted
    assert outcome(watch).holds == (not counted)
    assert ("but there are 0" in profiles_line(watch.loop, 0)) == bool(counted)


@pytest.mark.parametrize("wrong", ["", "missing", "doubled", "waiting"])
@pytest.mark.parametrize("where", ["topics", "tables"])
def test_the_demonstration_fails_where_anything_is_missing_or_doubled_on_the_topics_or_in_the_tables(
    watch: Watch, where: str, wrong: str
) -> None:
    assert outcome(watch, where, wrong).holds == (not wrong)


def outcome(watch: Watch, where: str = "topics", wrong: str = "") -> Outcome:
    """Of a stream without events, where there is one of what is wrong."""
    of_topic = dict.fromkeys(PartitionAudit.__dataclass_fields__, 0) | {"missing_offsets": ()}
    of_table = dict.fromkeys(PartitionOfTable.__dataclass_fields__, 0) | {
        "missing_offsets": (),
        "topic": "",
        "table": "",
    }
    if wrong:
        (of_topic if where == "topics" else of_table)[wrong] = 1
    topics = AuditReport("t", (PartitionAudit(**of_topic),), 0.0)  # type: ignore[arg-type]
    tables = StoreReport("u", (PartitionOfTable(**of_table),), 0.0)  # type: ignore[arg-type]
    return Outcome(topics, tables, made(), watch)

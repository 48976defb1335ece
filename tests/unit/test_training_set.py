"""`ecluse dataset build`: what was known at a moment, with outcome and weight, and the same bytes again."""

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from ecluse.contract.records import Arm, Thresholds
from ecluse.contract.tables import LABELS, PREDICTIONS, events_table
from ecluse.errors import DataError, ModelError, StoreError
from ecluse.model.manifest import MANIFEST, Manifest
from ecluse.model.runtime import Model
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from retrain import process
from retrain.manifests import SetManifest
from retrain.trainingset import build, rebuild
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.stores import ROUTE, at, event, fill, label, past, prediction, revision, route
from tests.unit import artefacts

SHARE = 0.25
#: The scores that version 1 gives amounts: over one half from 20 on.
LOW, HIGH = 5.0, 38.0
DAY = 24.0


def made(settings: Settings, folder: Path, hours: float = 10 * DAY, since: dt.datetime | None = None) -> pl.DataFrame:
    """The set as of so many hours, ordered as it is."""
    build(settings, at(hours), since, folder / "set.parquet", lambda *_: None)
    return pl.read_parquet(folder / "set.parquet")


def manifest(folder: Path) -> SetManifest:
    return SetManifest.read(folder / "set.json")


@pytest.fixture
def settings(make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream whose outcomes are mature after a day, with version 1 as champion in its training store."""
    settings = make_settings(
        labels={"maturity_hours": DAY, "origins": ("chargeback", "analyst")}, store={"url": str(tmp_path / "store")}
    )
    release = artefacts.store(settings)
    fill(settings, revisions=[revision(0, release), revision(ROUTE, route(settings))])
    return settings


def test_an_event_has_its_fields_its_label_and_weight_one_where_nothing_was_hidden(
    settings: Settings, tmp_path: Path
) -> None:
    first, second = event(0, 0, 1.0, amount=12.5, entity="card-7"), event(1, 0, 0.5)
    fill(settings, [first, second], [prediction(first), prediction(second)], [label("e-0-0", 1, 3.0, 0)])
    rows = made(settings, tmp_path).rows(named=True)
    assert [row["event_id"] for row in rows] == ["e-1-0", "e-0-0"], "in the order of their time"
    assert rows[1] == {
        "event_id": "e-0-0",
        "entity": "card-7",
        "event_time": at(1.0),
        "known_at": at(1.0),
        "transaction_id": None,
        "time": at(1.0),
        "customer_id": None,
        "amount": 12.5,
        "terminal_risk_30d": 0.0,
        "night": 0,
        "fraud": 1,
        "label_origin": "chargeback",
        "label_known_at": at(3.0),
        "arm": "champion",
        "propensity": 1.0,
        "score": 0.1,
        "decision": "allow",
        "version": 1,
        "route_revision": ROUTE,
        "champion_score": 0.1,
        "would_block": False,
        "weight": 1.0,
        "unit": "2026-01-05 card-7",
        "partition": 0,
        "offset": 0,
    }
    silent = rows[0]
    assert (silent["fraud"], silent["label_origin"], silent["label_known_at"]) == (0, "silence", at(0.5 + DAY))


def test_a_truncated_file_of_the_store_is_told_and_leaves_no_set(settings: Settings, tmp_path: Path) -> None:
    only = event(0, 0, 1.0)
    fill(settings, [only], [prediction(only)], [])
    (file,) = (Path(settings.store.url) / "events").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(StoreError, match="cannot be read"):
        made(settings, tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_what_went_past_the_model_stands_for_what_it_would_have_blocked(settings: Settings, tmp_path: Path) -> None:
    low, high, blocked, ineligible = (
        event(0, 0, 1.0, amount=LOW),
        event(0, 1, 2.0, amount=HIGH),
        event(0, 2, 3.0, amount=HIGH),
        event(0, 3, 4.0, amount=HIGH),
    )
    decided = [
        past(low, SHARE),
        past(high, SHARE),
        prediction(blocked, decision="block", score=0.9, propensity=1 - SHARE),
        prediction(ineligible, decision="block", score=0.9, propensity=1.0),
    ]
    fill(settings, [low, high, blocked, ineligible], decided, [label("e-0-2", 1, 5.0, 0)])
    rows = made(settings, tmp_path)
    assert rows["event_id"].to_list() == ["e-0-0", "e-0-1"]
    assert rows["weight"].to_list() == [1.0, 1 / SHARE]
    assert rows["would_block"].to_list() == [False, True]
    own = artefacts.ESTIMATOR.predict_proba(np.array([[LOW], [HIGH]], dtype=np.float32))[:, 1]
    assert np.abs(rows["champion_score"].to_numpy() - own).max() < 1e-6
    counts = manifest(tmp_path).counts
    assert (counts.blocked, counts.blocked_labelled, counts.unreachable, counts.bypassed) == (2, 1, 1, 2)
    assert manifest(tmp_path).unspoken_share == 1 / 4
    assert list(manifest(tmp_path).models) == [f"{settings.model_name}/1"]


def test_in_an_experiment_an_event_weighs_by_all_arms_that_would_have_let_it_through(
    settings: Settings, tmp_path: Path
) -> None:
    lenient = Arm("challenger", 2, Thresholds(0.5, 2.0), share=0.4)
    second = artefacts.store(settings, 2)
    fill(settings, revisions=[revision(2, second), revision(3, route(settings, 0.5, lenient))])
    by_both, by_one, hidden, beside = (event(0, i, 1.0 + i, amount=(LOW, HIGH, HIGH, HIGH)[i]) for i in range(4))
    through = {"arm": "challenger", "version": 2, "propensity": (1 - SHARE) * 0.4, "route_revision": 3}
    decided = [
        prediction(by_both, propensity=(1 - SHARE) * 0.6, route_revision=3),
        prediction(by_one, **through, score=0.9),
        prediction(hidden, decision="block", score=0.9, propensity=(1 - SHARE) * 0.6, route_revision=3),
        past(beside, SHARE, route_revision=3),
    ]
    fill(settings, [by_both, by_one, hidden, beside], decided)
    rows = made(settings, tmp_path)
    odds = SHARE + (1 - SHARE) * 0.4
    assert rows["event_id"].to_list() == ["e-0-0", "e-0-1", "e-0-3"]
    assert rows["weight"].to_list() == pytest.approx([1.0, 1 / odds, 1 / odds])
    assert rows["would_block"].to_list() == [False, True, True]
    assert set(rows["unit"]) == {"card-1"}, "an arm is drawn for an entity, once for all days"
    assert manifest(tmp_path).counts.unreachable == 0


def test_where_silence_says_nothing_only_labels_that_no_alert_brought_make_rows(
    settings: Settings, tmp_path: Path
) -> None:
    unknown = settings.model_copy(update={"labels": settings.labels.model_copy(update={"silence": "unknown"})})
    events = [event(0, i, 1.0) for i in range(3)]
    said = [label("e-0-0", 0, 5.0, 0), label("e-0-1", 1, 5.0, 1, alerted=True)]
    fill(settings, events, [prediction(one) for one in events], said)
    assert made(unknown, tmp_path)["event_id"].to_list() == ["e-0-0"]
    counts = manifest(tmp_path).counts
    assert (counts.unlabelled, counts.selected, counts.rows, counts.blocked) == (1, 1, 1, 0)
    assert made(settings, tmp_path)["fraud"].to_list() == [0, 1, 0]


def test_a_label_that_came_by_itself_makes_a_row_whatever_an_alert_brought_beside_it(
    settings: Settings, tmp_path: Path
) -> None:
    """Else labels of the same kind would count where the model raised no alert, and not where it did."""
    changes = {"silence": "unknown", "origins": ("analyst", "chargeback")}
    unknown = settings.model_copy(update={"labels": settings.labels.model_copy(update=changes)})
    first, second = event(0, 0, 1.0), event(0, 1, 1.0)
    said = [label(one["event_id"], 1, 5.0, one["offset"]) for one in (first, second)]
    said += [label("e-0-0", 1, 2.0, 0, origin="analyst", alerted=True)]
    fill(settings, [first, second], [prediction(first), prediction(second)], said)
    rows = made(unknown, tmp_path)
    assert rows.select("event_id", "label_origin").rows() == [("e-0-0", "analyst"), ("e-0-1", "chargeback")]
    assert manifest(tmp_path).counts.selected == 0


def test_each_event_is_there_once_however_often_it_was_sent_or_decided(settings: Settings, tmp_path: Path) -> None:
    sent, again = event(0, 5, 3.0, event_id="x", amount=1.0), event(1, 0, 1.0, event_id="x", amount=2.0)
    decided = [prediction(again), prediction(sent, offset=9, score=0.3), prediction(sent, offset=7, score=0.2)]
    fill(settings, [sent, again, event(1, 1, 1.0, readable=False)], decided)
    rows = made(settings, tmp_path)
    assert rows.select("partition", "offset", "amount", "score").rows() == [(0, 5, 1.0, 0.2)]
    counts = manifest(tmp_path).counts
    assert (counts.events, counts.duplicates, counts.unreadable, counts.rows) == (3, 1, 1, 1)


def test_only_mature_events_of_the_window_count(settings: Settings, tmp_path: Path) -> None:
    events = [event(0, i, hours) for i, hours in enumerate((1.0, 2.0, 3.0, 3.001))]
    fill(settings, events, [prediction(one) for one in events[1:]])
    rows = made(settings, tmp_path, 3.0 + DAY, at(2.0))
    assert rows["event_id"].to_list() == ["e-0-1", "e-0-2"], "the limits are in"
    counts = manifest(tmp_path).counts
    assert (counts.outside, counts.immature, counts.unscored, counts.rows) == (1, 1, 0, 2)
    made(settings, tmp_path, 3.0 + DAY)
    assert manifest(tmp_path).counts.unscored == 1


def test_the_same_manifest_gives_the_same_bytes_whatever_came_since(settings: Settings, tmp_path: Path) -> None:
    events = [event(i % 3, i // 3, 1.0 + i / 50, entity=f"card-{i % 7}") for i in range(300)]
    decided = [past(one, SHARE) if i % 5 == 0 else prediction(one) for i, one in enumerate(events)]
    fill(settings, events, decided, [label(events[i]["event_id"], i % 2, 4.0, i) for i in range(20)])
    made(settings, tmp_path)
    wanted, before = manifest(tmp_path), (tmp_path / "set.parquet").read_bytes()
    late = event(0, 100, 1.5)
    fill(settings, [late], [prediction(late)], [label(events[0]["event_id"], 1, 3.0, 20, origin="analyst")])
    store = TrainingStore(settings)
    store.compact(events_table(settings.stream.fields))
    other = settings.model_copy(update={"labels": settings.labels.model_copy(update={"maturity_hours": 1.0})})
    again = rebuild(other, wanted, tmp_path / "again.parquet", lambda *_: None)
    assert again == wanted
    assert (tmp_path / "again.parquet").read_bytes() == before
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "set.json").read_bytes()
    kept = Path(settings.store.url) / "datasets" / f"{wanted.sha256}.json"
    assert kept.read_bytes() == (tmp_path / "set.json").read_bytes()
    assert made(settings, tmp_path).height == 301


@pytest.mark.parametrize("table", [PREDICTIONS, LABELS, None])
def test_a_set_whose_rows_are_gone_is_not_built_again_and_says_what_is_gone(
    settings: Settings, tmp_path: Path, table: Any
) -> None:
    events = [event(0, i, 1.0 + i) for i in range(4)]
    fill(settings, events, [prediction(one) for one in events], [label("e-0-2", 1, 7.0, 0)])
    made(settings, tmp_path)
    TrainingStore(settings).delete(table or events_table(settings.stream.fields), "event_id = 'e-0-2'")
    topic = {PREDICTIONS.name: "predictions", LABELS.name: "labels.chargeback"}.get(
        table.name if table else "", "events"
    )
    with pytest.raises(DataError, match=rf"1 rows of {settings.names.prefix}{topic}/0 are gone"):
        rebuild(settings, manifest(tmp_path), tmp_path / "again.parquet", lambda *_: None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("again")) == []


def test_by_the_clock_of_events_a_set_of_the_past_is_built_from_what_came_today(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(
        stream={"clock": "event"}, labels={"maturity_hours": 0}, store={"url": str(tmp_path / "store")}
    )
    fill(settings, revisions=[revision(0, artefacts.store(settings)), revision(ROUTE, route(settings))])
    future = 24 * 365 * 40.0
    events = [event(0, 0, future), event(0, 1, future + 5)]
    fill(settings, events, [prediction(one) for one in events], [label("e-0-0", 1, future + 3, 0)])
    assert made(settings, tmp_path, future + 2)["fraud"].to_list() == [0]
    assert made(settings, tmp_path, future + 3)["fraud"].to_list() == [1]
    arrival = settings.model_copy(update={"stream": settings.stream.model_copy(update={"clock": "arrival"})})
    with pytest.raises(DataError, match="still to come"):
        made(arrival, tmp_path, future + 3)


def test_an_empty_store_and_one_without_mature_events_say_so(settings: Settings, tmp_path: Path) -> None:
    out = str(tmp_path / "set.parquet")
    empty = ecluse(settings, "dataset", "build", "--as-of", "2026-02-01", "--out", out)
    assert empty.exit_code == 1
    assert "holds no events as of 2026-02-01" in str(empty.exception)
    fill(settings, [event(0, 0, 5.0)])
    young = ecluse(settings, "dataset", "build", "--as-of", "2026-01-05T06:00:00", "--out", out)
    assert young.exit_code == 1
    assert "None of 1 events is mature as of 2026-01-05 06:00:00 UTC" in str(young.exception)
    unscored = ecluse(settings, "dataset", "build", "--as-of", "2026-02-01", "--out", out)
    assert "of 1 mature ones 0 were blocked, 1 have no prediction" in str(unscored.exception)
    assert not Path(out).exists()


def test_a_route_a_release_or_a_model_that_is_missing_is_named(settings: Settings, tmp_path: Path) -> None:
    first = event(0, 0, 1.0)
    fill(settings, [first], [past(first, SHARE, route_revision=77)])
    with pytest.raises(DataError, match="no route of revision 77"):
        made(settings, tmp_path)
    second = event(0, 1, 1.0)
    unreleased = Arm("challenger", 9, Thresholds(0.5, 1.0), share=0.5)
    fill(settings, revisions=[revision(77, route(settings, 0.5, unreleased))])
    fill(settings, [second], [past(second, SHARE, route_revision=77)])
    with pytest.raises(DataError, match=f"no release of version 9 of model {settings.model_name}"):
        made(settings, tmp_path)


def test_a_version_whose_fields_do_not_reach_the_store_as_they_were_scores_nothing_again(
    settings: Settings, tmp_path: Path
) -> None:
    first, second = event(0, 0, 1.0), event(0, 1, 1.0)
    fill(settings, [first], [prediction(first)])
    private = settings.model_copy(update={"store": settings.store.model_copy(update={"drop": ("amount",)})})
    assert made(private, tmp_path).height == 1, "the predictions say all"
    fill(settings, [second], [past(second, SHARE)])
    with pytest.raises(DataError, match="needs the field 'amount', which does not reach the training store"):
        made(private, tmp_path)


def test_events_from_a_time_when_the_store_dropped_what_a_version_needs_are_not_scored_by_guess(
    settings: Settings, tmp_path: Path
) -> None:
    early, later = event(0, 0, 1.0, amount=None), event(0, 1, 2.0)
    fill(settings, [early, later], [past(early, SHARE), past(later, SHARE)])
    with pytest.raises(DataError, match=r"lacks the required field 'amount' of 1 events.*`--since` leaves early"):
        made(settings, tmp_path)
    assert made(settings, tmp_path, since=at(1.5)).height == 1


def test_fields_keep_their_names_and_ours_give_way(make_settings: MakeSettings, tmp_path: Path) -> None:
    fields = {"amount": "number", "score": "number", "weight": {"type": "text", "required": False}, "odds": "number"}
    settings = make_settings(
        stream={"fields": fields, "id_field": None, "time_field": None, "key_field": None},
        model={"label": "unit", "positive": "bad"},
        labels={"maturity_hours": DAY},
        store={"url": str(tmp_path / "store")},
    )
    fill(settings, revisions=[revision(0, artefacts.store(settings)), revision(ROUTE, route(settings))])
    first = event(0, 0, 1.0)
    first = {name: first[name] for name in first if name not in ("terminal_risk_30d", "night", "time")}
    first |= {"score_": 7.0, "weight": "heavy", "odds": 3.0}
    fill(settings, [first], [past(first, SHARE)], [label("e-0-0", 1, 2.0, 0)])
    row = made(settings, tmp_path).row(0, named=True)
    assert (row["score"], row["weight"], row["odds"], row["unit"]) == (7.0, "heavy", 3.0, "bad")
    assert (row["score_"], row["weight_"], row["unit_"]) == (None, 1.0, "2026-01-05 card-1")


def test_a_model_is_trained_on_a_set_as_it_is(settings: Settings, tmp_path: Path) -> None:
    events = [event(0, i, 1.0 + i / 10, amount=float(i * 7 % 40)) for i in range(200)]
    said = [label(one["event_id"], 1, 22.0, i) for i, one in enumerate(events) if one["amount"] > 25]
    fill(settings, events, [prediction(one) for one in events], said)
    rows = made(settings, tmp_path)
    (draft := tmp_path / "draft").mkdir()
    train = process.Train(process.for_child(settings), str(draft), str(tmp_path / "set.parquet"))
    process.run(train, lambda _: None)
    trained = Manifest.decode((draft / MANIFEST).read_bytes())
    assert {feature.field for feature in trained.features} <= set(settings.stream.fields)
    assert "amount" in {feature.field for feature in trained.features}
    assert (trained.training["rows"], trained.metrics["rows"], rows.height) == (160, 40, 200)
    assert trained.metrics["roc_auc"] == 1.0


def test_the_command_reports_and_builds_a_manifests_set_again(settings: Settings, tmp_path: Path) -> None:
    events = [event(0, i, 1.0 + i / 10, entity=f"card-{i}", amount=HIGH) for i in range(40)]
    said = [label(one["event_id"], i % 2, 20.0, i) for i, one in enumerate(events)]
    fill(settings, events, [past(one, SHARE) for one in events], said)
    out, again = str(tmp_path / "set.parquet"), str(tmp_path / "again.parquet")
    report = ecluse(settings, "dataset", "build", "--as-of", "2026-01-20", "--since", "2026-01-05", "--out", out)
    assert report.exit_code == 0, report.output
    for line in (
        "40 rows, 20 positive",
        "50.00%, 95% interval",
        "0.000% of 40 decided events (0)",
        f"{settings.model_name}/1",
    ):
        assert line in report.stdout
    told = json_of(
        ecluse(settings, "dataset", "build", "--manifest", str(tmp_path / "set.json"), "--out", again, "--json")
    )
    assert told["file"] == again
    assert msgspec.convert(told["manifest"], SetManifest) == manifest(tmp_path)
    rate = manifest(tmp_path).rates["false_discovery_rate"]
    assert (rate.value, rate.rows) == (0.5, 40)
    for wrong in (
        ["--out", out],
        ["--as-of", "2026-01-20", "--manifest", out, "--out", out],
        ["--as-of", "2026-01-20"],
    ):
        assert ecluse(settings, "dataset", "build", *wrong).exit_code == 2
    stranger = tmp_path / "other.json"
    without_zone = (tmp_path / "set.json").read_text().replace(":00Z", ":00")
    for text in ("{}", without_zone):
        stranger.write_text(text)
        refused = ecluse(settings, "dataset", "build", "--manifest", str(stranger), "--out", again)
        assert "is no manifest of a training set" in str(refused.exception)
    assert ModelStore.of(settings).versions(settings.model_name) == [1]


def test_an_event_that_a_version_cannot_score_is_seen_only_past_the_model_and_stops_no_set(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the model's arm a worker makes a dead letter of it."""
    score = Model.score

    def fails_on_some(self: Model, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        if (matrix[:, 0] == 7.0).any():
            raise ValueError("no")
        return np.where(matrix[:, 0] == 8.0, np.nan, score(self, matrix))

    monkeypatch.setattr(Model, "score", fails_on_some)
    events = [event(0, i, 1.0 + i, amount=amount) for i, amount in enumerate((LOW, 7.0, 8.0, HIGH))]
    fill(settings, events, [past(one, SHARE) for one in events])
    rows = made(settings, tmp_path)
    assert rows["weight"].to_list() == [1.0, 1 / SHARE, 1 / SHARE, 1 / SHARE]
    assert rows["would_block"].to_list() == [False, False, False, True]
    assert np.isnan(rows["champion_score"].to_numpy()).tolist() == [False, True, True, False]
    monkeypatch.setattr(Model, "score", lambda self, matrix: 1 / 0)
    with pytest.raises(ModelError, match=r"Version 1 of model .* fails: division by zero"):
        made(settings, tmp_path)

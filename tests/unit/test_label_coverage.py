"""Coverage of the labels by cohort, against plain Python, and what can still come where the delays are known."""

import datetime as dt
import threading
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from ecluse.contract.tables import LABELS, PREDICTIONS, Table
from ecluse.errors import StoreError
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from ingest.coverage import Cohort, Coverage, coverage
from ingest.label_metrics import LabelMetrics
from ingest.sink import Sink
from ingest.sink_telemetry import SinkTelemetry
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.unit.test_store_labels import ORIGINS, Row, label, oracle

NOON = dt.datetime(2026, 3, 20, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
MATURITY = 5 * DAY


def event(name: str, days_ago: float, **more: Any) -> Row:
    time = NOON - days_ago * DAY
    usual = {"decision": "allow", "arm": "champion", "known_at": time + dt.timedelta(seconds=1), "scored_at": NOON}
    return {"event_id": name, "event_time": time} | usual | more


def said(name: str, days_ago: float, value: int | None = 1, origin: str = "analyst", offset: int = 0) -> Row:
    known_at = NOON - days_ago * DAY
    return label(name, origin, 0, value, offset, known_at=known_at, day=known_at.date())


class Tables:
    """A store whose tables are these rows."""

    url = "nowhere"

    def __init__(self, events: list[Row], labels: list[Row]) -> None:
        self._rows = {PREDICTIONS.name: [{**row, "day": row["known_at"].date()} for row in events], LABELS.name: labels}

    def scan(self, table: Table) -> pl.LazyFrame:
        return pl.DataFrame(self._rows[table.name], schema=polars_schema(table), orient="row").lazy()


def found(events: list[Row], labels: list[Row], days: int = 30, silence: str = "negative") -> Coverage:
    chosen = Settings(
        stream={"name": "t", "fields": {"amount": "number"}},
        labels={"origins": ORIGINS, "maturity_hours": MATURITY.total_seconds() / 3600, "silence": silence},
    )
    return coverage(chosen, cast(TrainingStore, Tables(events, labels)), days=days, as_of=NOON)


def by_day(result: Coverage) -> dict[float, Cohort]:
    return {(NOON.date() - cohort.day).days: cohort for cohort in result.cohorts}


EVENTS = st.lists(
    st.tuples(
        st.integers(-8, 80).map(lambda eighths: eighths / 8),
        st.sampled_from(["allow", "review", "block"]),
        st.sampled_from(["champion", "bypass"]),
    ),
    max_size=12,
)
LABELS_OF = st.lists(
    st.tuples(
        st.integers(0, 13), st.integers(-4, 80), st.sampled_from([0, 1, None]), st.sampled_from([*ORIGINS, "retired"])
    ),
    max_size=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVENTS, LABELS_OF)
def test_the_counts_are_those_of_plain_python(
    drawn: list[tuple[float, str, str]], drawn_labels: list[tuple[int, int, int | None, str]]
) -> None:
    events = [event(f"e{n}", ago, decision=decision, arm=arm) for n, (ago, decision, arm) in enumerate(drawn)]
    labels = [said(f"e{n}", ago / 8, value, origin, i) for i, (n, ago, value, origin) in enumerate(drawn_labels)]
    held = oracle(labels, NOON)
    result = found(events, labels)
    known = [row for row in events if row["known_at"] <= NOON]
    assert result.ahead == sum(row["event_time"] > NOON for row in known) == 0
    assert sum(c.let_through.events + c.blocked.events for c in result.cohorts) == len(known)
    for ago, cohort in by_day(result).items():
        theirs = [row for row in known if (NOON.date() - row["event_time"].date()).days == ago]
        kinds = {
            "let_through": [row for row in theirs if row["decision"] != "block"],
            "bypassed": [row for row in theirs if row["decision"] != "block" and row["arm"] == "bypass"],
            "blocked": [row for row in theirs if row["decision"] == "block"],
        }
        for kind, rows in kinds.items():
            group = getattr(cohort, kind)
            without = [row for row in rows if row["event_id"] not in held]
            mature = sum(row["event_time"] <= NOON - MATURITY for row in without)
            assert group.events == len(rows)
            assert group.labelled == len(rows) - len(without)
            assert group.positives == sum(held.get(row["event_id"], {}).get("value") == 1 for row in rows)
            assert (group.silent, group.unknown) == ((0, mature) if kind == "blocked" else (mature, 0))
            assert group.open == len(without) - mature


def test_silence_that_means_nothing_leaves_events_unknown() -> None:
    (cohort,) = found([event("a", 9)], [], silence="unknown").cohorts
    assert (cohort.let_through.silent, cohort.let_through.unknown) == (0, 1)


def test_what_can_still_come_follows_the_delays_of_the_mature_events() -> None:
    # Of 40 mature events 20 got their label after two days, and 10 after four.
    mature = [event(f"m{n}", 9) for n in range(40)]
    labels = [said(f"m{n}", 7) for n in range(20)] + [said(f"m{n}", 5) for n in range(20, 30)]
    young = [event(f"y{n}", 1) for n in range(8)] + [event(f"o{n}", 3) for n in range(8)]
    result = by_day(found([*mature, *young, event("b", 1, decision="block")], labels))
    assert result[1].let_through.expected == 6.0  # 8 · (1 - 1/4) / 1
    assert result[3].let_through.expected == 4.0  # 8 · (1/2 - 1/4) / (1/2)
    assert result[9].let_through.expected == 0.0
    assert result[1].blocked.expected is None
    assert (result[9].let_through.labelled, result[9].let_through.silent) == (30, 10)


def test_without_mature_events_nobody_knows_what_to_expect() -> None:
    (cohort,) = found([event("a", 1)], [said("a", 0.5)]).cohorts
    assert cohort.let_through.expected is None
    assert cohort.let_through.labelled == 1


def test_the_delay_of_an_origin_is_that_of_its_first_label_on_mature_events() -> None:
    events = [event(f"m{n}", 9) for n in range(4)] + [event("young", 1)]
    labels = [said(f"m{n}", 8 - n) for n in range(4)]  # after one to four days
    labels += [said("m0", 0.5, 0, offset=9), said("m3", 1, 1, "chargeback"), said("young", 0.9)]
    result = found(events, labels)
    seconds = DAY.total_seconds()
    analyst, chargeback = result.origins["analyst"], result.origins["chargeback"]
    assert list(result.origins) == list(ORIGINS)
    assert (analyst.labels, analyst.late, analyst.median) == (4, 0, 2.5 * seconds)
    assert analyst.p90 == pytest.approx(3.7 * seconds)
    assert (chargeback.labels, chargeback.late, chargeback.median) == (1, 1, 8 * seconds)
    assert by_day(result)[1].origins["analyst"].median == pytest.approx(0.1 * seconds)


def test_events_outside_the_days_asked_for_tell_of_delays_only() -> None:
    result = found([event("m", 9), event("y", 1)], [said("m", 8)], days=5)
    assert list(by_day(result)) == [1]
    assert result.cohorts[0].let_through.expected == 1.0
    assert result.origins["analyst"].labels == 1


def test_an_event_of_the_future_is_counted_apart() -> None:
    ahead = event("a", -2, known_at=NOON)
    result = found([ahead, event("b", 0.1)], [])
    assert (result.ahead, len(result.cohorts)) == (1, 1)


def test_on_the_events_clock_things_stand_as_of_the_newest_event(make_settings: MakeSettings) -> None:
    chosen = make_settings(stream={"clock": "event"})
    empty = coverage(chosen, cast(TrainingStore, Tables([], [])))
    assert (empty.as_of, empty.cohorts) == (None, ())
    result = coverage(chosen, cast(TrainingStore, Tables([event("a", 3), event("b", 1)], [])))
    assert result.as_of == NOON - DAY + dt.timedelta(seconds=1)
    assert len(result.cohorts) == 2


def test_one_event_of_the_far_future_does_not_hide_the_others(make_settings: MakeSettings) -> None:
    chosen = make_settings(stream={"clock": "event"})
    events = [event("a", 3), event("b", 1), event("far", -4000)]
    result = coverage(chosen, cast(TrainingStore, Tables(events, [])))
    assert result.as_of == NOON - DAY + dt.timedelta(seconds=1)
    assert [cohort.let_through.events for cohort in result.cohorts] == [1, 1]


def test_a_real_store_is_read_and_a_broken_one_told(make_settings: MakeSettings, tmp_path: Path) -> None:
    chosen = make_settings(store={"url": str(tmp_path / "store")})
    store = TrainingStore(chosen)
    assert coverage(chosen, store, as_of=NOON).cohorts == ()
    tables = Tables([event("a", 1), event("b", 1)], [said("a", 0.5)])
    for table in (PREDICTIONS, LABELS):
        store.append(table, tables.scan(table).collect(), {f"{table.name}/0": (None, 1)})
    (cohort,) = coverage(chosen, store, as_of=NOON).cohorts
    assert (cohort.let_through.events, cohort.let_through.labelled) == (2, 1)
    for file in (tmp_path / "store" / "labels").rglob("*.parquet"):
        file.write_bytes(b"PAR1 nothing")
    with pytest.raises(StoreError, match="The training store at"):
        coverage(chosen, store, as_of=NOON)


def test_labels_in_parts_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(f"e{n}", n % 9, decision="block" if n % 7 == 0 else "allow") for n in range(60)]
    labels = [said(f"e{n % 60}", n % 5 / 2, n % 2, ORIGINS[n % 2], offset=n) for n in range(90)]
    whole = found(events, labels)
    monkeypatch.setattr("ingest.coverage._PART_LABELS", 20)
    assert found(events, labels) == whole
    assert whole.origins


def test_the_metrics_tell_what_was_written_and_what_is_covered() -> None:
    registry = CollectorRegistry()
    metrics = LabelMetrics(registry)
    rows = Tables([], [said("a", 1), said("b", 1), said("b", 0.5, None, "chargeback")]).scan(LABELS).collect()
    metrics.wrote(rows)
    assert registry.get_sample_value("ecluse_labels_total", {"origin": "analyst"}) == 2
    assert registry.get_sample_value("ecluse_labels_total", {"origin": "chargeback"}) == 1
    metrics.show(found([event("m", 7), event("n", 7), event("y", 1)], [said("m", 6.5)]))
    assert registry.get_sample_value("ecluse_label_coverage_ratio", {"age_days": "7"}) == 0.5
    assert registry.get_sample_value("ecluse_label_coverage_ratio", {"age_days": "1"}) == 0
    assert registry.get_sample_value("ecluse_label_coverage_ratio", {"age_days": "3"}) is None
    assert registry.get_sample_value("ecluse_labels_expected") == 0  # `y` is older than the label of `m` was late
    day = {"origin": "analyst", "quantile": "0.5"}
    assert registry.get_sample_value("ecluse_label_delay_seconds", day) == pytest.approx(DAY.total_seconds() / 2)
    metrics.show(Coverage(None, 24, "negative", (), {}, 0))
    assert registry.get_sample_value("ecluse_label_delay_seconds", day) is None


def test_the_sink_looks_at_the_labels_when_it_takes_care_of_their_table(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    chosen = make_settings(store={"url": str(tmp_path / "store")}, stream={"clock": "event"})
    tables = Tables([event("a", 9), event("b", 2), event("c", 1)], [said("b", 1.5)])
    for table in (PREDICTIONS, LABELS):
        TrainingStore(chosen).append(table, tables.scan(table).collect(), {f"{table.name}/0": (None, 1)})
    telemetry = SinkTelemetry()
    with Sink(chosen, telemetry, Mock()) as sink:
        sink._care(PREDICTIONS)
        assert telemetry.registry.get_sample_value("ecluse_label_coverage_ratio", {"age_days": "1"}) is None
        sink._care(LABELS)
        sink._looking.join(60)
    assert telemetry.registry.get_sample_value("ecluse_label_coverage_ratio", {"age_days": "1"}) == 1


def test_a_look_at_the_labels_that_takes_long_holds_no_commit_back(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, looks, go_on = make_settings(store={"url": str(tmp_path / "store")}), [], threading.Event()

    def slow(*_: object) -> Coverage:
        looks.append(1)
        go_on.wait(60)
        return Coverage(None, 24, "negative", (), {}, 0)

    monkeypatch.setattr("ingest.sink.coverage", slow)
    monkeypatch.setattr("ingest.sink.LOOK_SECONDS", 0.0)
    with Sink(chosen, SinkTelemetry(), Mock()) as sink:
        for _ in range(3):
            sink._care(LABELS)  # returns while the first is looking
        assert not go_on.is_set() and sink._looking.is_alive()
        go_on.set()
        sink._looking.join(60)
    assert looks == [1]


def test_the_longer_a_look_at_the_labels_takes_the_later_is_the_next(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]

    def slow(*_: object) -> Coverage:
        now[0] += 600
        return Coverage(None, 24, "negative", (), {}, 0)

    with Sink(make_settings(store={"url": str(tmp_path / "store")}), SinkTelemetry(), Mock()) as sink:
        monkeypatch.setattr("ingest.sink.coverage", slow)
        monkeypatch.setattr("ingest.sink.time.monotonic", lambda: now[0])
        sink._look_at_labels()
        assert sink._next_look == 1000 + 600 / 0.05
        monkeypatch.setattr("ingest.sink.coverage", lambda *_: Coverage(None, 24, "negative", (), {}, 0))
        sink._look_at_labels()
        assert sink._next_look == now[0] + 3600


@pytest.mark.parametrize(("clock", "code"), [("arrival", 2), ("event", 0)])
def test_a_moment_to_come_is_refused_but_on_the_clock_of_events(
    make_settings: MakeSettings, tmp_path: Path, clock: str, code: int
) -> None:
    chosen = make_settings(store={"url": str(tmp_path / "store")}, stream={"clock": clock})
    result = ecluse(chosen, "labels", "coverage", "--as-of", "2999-01-01")
    assert result.exit_code == code
    assert ("still to come" in result.stderr) == (code == 2)


def test_the_command_shows_the_cohorts_the_kinds_and_the_delays(make_settings: MakeSettings, tmp_path: Path) -> None:
    chosen = make_settings(store={"url": str(tmp_path / "store")}, labels={"maturity_hours": 120})
    events = [event("m", 9), event("n", 9), event("b", 9, decision="block"), event("y", 1, arm="bypass")]
    tables = Tables(events, [said("m", 7), said("b", 8.5, 1, "chargeback")])
    nothing = ecluse(chosen, "labels", "coverage")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "holds no prediction of these days" in " ".join(nothing.stderr.split())
    for table in (PREDICTIONS, LABELS):
        TrainingStore(chosen).append(table, tables.scan(table).collect(), {f"{table.name}/0": (None, 1)})
    shown = ecluse(chosen, "labels", "coverage", "--as-of", "2026-03-20T12:00:00Z")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[3:5] == [
        ["2026-03-11", "2", "1", "1", "1", "0", "0", "1", "1"],
        ["2026-03-19", "1", "0", "0", "0", "1", "0", "0", "0"],
    ]
    assert ["blocked", "1", "1", "1", "0", "0", "?"] in lines
    assert ["of", "those,", "bypassed", "1", "0", "0", "0", "1", "0"] in lines
    assert ["analyst", "1", "2.0", "d", "2.0", "d", "2.0", "d", "0"] in lines
    assert ["chargeback", "1", "12.0", "h", "12.0", "h", "12.0", "h", "0"] in lines
    assert "an event is mature after 5 days, and silence then means negative" in " ".join(shown.stderr.split())
    found = json_of(ecluse(chosen, "labels", "coverage", "--as-of", "2026-03-20T12:00:00Z", "--days", "5", "--json"))
    (cohort,) = cast(list[dict[str, Any]], found["cohorts"])
    assert (cohort["day"], cohort["bypassed"]["open"]) == ("2026-03-19", 1)

"""Labels that correct, take back and contradict: what holds, against an oracle in plain Python."""

import datetime as dt
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from ecluse.store.labels import by_origin, resolved

ORIGINS = ("chargeback", "analyst")
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
SCHEMA = {
    "event_id": pl.String,
    "origin": pl.String,
    "known_at": pl.Datetime("us", "UTC"),
    "day": pl.Date,
    "partition": pl.Int64,
    "offset": pl.Int64,
    "value": pl.Int64,
    "labeler": pl.String,
    "confidence": pl.Float64,
    "alerted": pl.Boolean,
}
Row = dict[str, Any]


def hour(number: int) -> dt.datetime:
    return START + dt.timedelta(hours=number)


def label(event: str, origin: str, known: int, value: int | None, offset: int = 0, **more: Any) -> Row:
    at = hour(known)
    place = {"partition": 0, "offset": offset, "known_at": at, "day": at.date()}
    said = {"value": value, "labeler": "", "confidence": 1.0, "alerted": False}
    return {"event_id": event, "origin": origin, **place, **said, **more}


def frame(rows: list[Row]) -> pl.LazyFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").lazy()


def held(rows: list[Row], known_by: dt.datetime | None = None, origins: tuple[str, ...] = ORIGINS) -> dict[str, Row]:
    found = resolved(frame(rows), origins, known_by).collect(engine="streaming")
    assert found.columns == ["event_id", "value", "origin", "known_at", "confidence", "alerted"]
    assert found["event_id"].is_unique().all()
    return {row["event_id"]: row for row in found.to_dicts()}


def oracle(rows: list[Row], known_by: dt.datetime | None) -> dict[str, Row]:
    said: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: (row["known_at"], row["partition"], row["offset"])):
        if row["origin"] in ORIGINS and (known_by is None or row["known_at"] <= known_by):
            said.setdefault(row["event_id"], {})[row["origin"]] = row
    result = {}
    for event, by in said.items():
        speaking = [by[origin] for origin in ORIGINS if origin in by and by[origin]["value"] is not None]
        if speaking:
            result[event] = {
                name: speaking[0][name] for name in ("event_id", "value", "origin", "known_at", "confidence")
            } | {"alerted": all(row["alerted"] for row in speaking)}
    return result


@st.composite
def many_labels(draw: st.DrawFn) -> list[Row]:
    one = st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([*ORIGINS, "retired"]),
        st.integers(0, 4),
        st.sampled_from([0, 1, None]),
        st.integers(0, 1),
        st.floats(0, 1),
        st.booleans(),
    )
    drawn = draw(st.lists(one, max_size=25))
    offsets = draw(st.permutations(range(len(drawn))))
    return [
        label(event, origin, known, value, offset, partition=partition, confidence=confidence, alerted=alerted)
        for (event, origin, known, value, partition, confidence, alerted), offset in zip(drawn, offsets, strict=True)
    ]


@given(many_labels(), st.none() | st.integers(-1, 5).map(hour))
def test_what_holds_is_what_plain_python_says(rows: list[Row], known_by: dt.datetime | None) -> None:
    assert held(rows, known_by) == oracle(rows, known_by)


def test_the_latest_label_of_an_origin_holds_however_it_arrived() -> None:
    rows = [label("a", "analyst", 5, 1, offset=1), label("a", "analyst", 3, 0, offset=2)]
    assert held(rows)["a"]["value"] == 1


def test_of_labels_known_at_one_moment_the_last_to_arrive_holds() -> None:
    rows = [label("a", "analyst", 5, 1, offset=8), label("a", "analyst", 5, 0, offset=9)]
    assert held(rows)["a"]["value"] == 0


def test_the_first_origin_holds_over_a_later_label_of_the_second() -> None:
    rows = [label("a", "chargeback", 1, 1), label("a", "analyst", 9, 0)]
    assert held(rows)["a"]["origin"] == "chargeback"
    assert held(rows, origins=("analyst", "chargeback"))["a"]["origin"] == "analyst"


def test_after_a_label_is_taken_back_the_next_origin_speaks() -> None:
    rows = [label("a", "chargeback", 1, 1), label("a", "chargeback", 4, None), label("a", "analyst", 2, 0)]
    assert held(rows)["a"]["origin"] == "analyst"
    assert held(rows, known_by=hour(3))["a"]["origin"] == "chargeback"
    assert held(rows[:2]) == {}


def test_a_label_given_again_after_it_was_taken_back_holds() -> None:
    rows = [label("a", "analyst", known, value) for known, value in ((1, 1), (2, None), (3, 0))]
    assert held(rows)["a"]["value"] == 0


def test_an_origin_that_is_not_configured_does_not_count() -> None:
    assert held([label("a", "retired", 1, 1)]) == {}


def test_a_limit_without_a_zone_is_utc() -> None:
    rows = [label("a", "analyst", 1, 1)]
    assert held(rows, known_by=hour(1).replace(tzinfo=None)).keys() == {"a"}
    assert held(rows, known_by=hour(0).replace(tzinfo=None)) == {}


def test_no_labels_are_no_row() -> None:
    assert held([]) == {}


def test_when_an_origin_first_had_a_label_is_kept_through_corrections() -> None:
    rows = [label("a", "analyst", known, value) for known, value in ((1, None), (2, 0), (5, 1))]
    rows.append(label("b", "analyst", 1, None))
    (row,) = by_origin(frame(rows), ORIGINS).collect(engine="streaming").to_dicts()
    assert (row["event_id"], row["value"], row["known_at"], row["first_known_at"]) == ("a", 1, hour(5), hour(2))

"""Rows of the training store: one a record, whatever the record holds."""

import json
import math
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecluse.contract.records import BypassSample, Label, Prediction, Release, Source
from ecluse.contract.tables import column_of
from ecluse.errors import RecordError, Stage
from ecluse.events import Decoder, FiniteNumbers
from ecluse.settings import Settings
from ecluse.store.schema import polars_schema
from ingest.rows import BypassRows, EventRows, LabelRows, PredictionRows, RevisionRows
from tests.unit.records import predictions, releases
from tests.unit.test_pipeline import FakeRecord

ARRIVED = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
STREAM = {
    "name": "rows",
    "fields": {
        "id": {"type": "text", "required": False},
        "at": {"type": "time", "required": False},
        "amount": "number",
        "rate": {"type": "number", "required": False},
        "count": {"type": "integer", "required": False},
        "ok": {"type": "boolean", "required": False},
        "größe": {"type": "text", "required": False},
        "day": {"type": "text", "required": False},
    },
    "id_field": "id",
    "time_field": "at",
}
SETTINGS = Settings(stream=STREAM)
EVENT_CLOCK = Settings(stream=STREAM | {"clock": "event"})
FIELDS = SETTINGS.stream.fields
EVENTS = EventRows(SETTINGS)

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=5,
)
objects = st.dictionaries(st.sampled_from([*FIELDS, "other", "more"]), values, max_size=8)
as_json = objects.map(lambda said: json.dumps(said, default=repr).encode())
as_msgpack = objects.map(msgspec.msgpack.encode)
structured = as_json.map(
    lambda data: (
        b'{"specversion":"1.0","id":"s","source":"s","type":"t","time":"2020-01-01T00:00:00Z","data":%s}' % data
    )
)
contents = st.none() | st.binary(max_size=40) | as_json | as_msgpack | structured
headers = st.none() | st.lists(
    st.tuples(
        st.sampled_from(["ce_id", "ce_time", "content-type", "other"]),
        st.none()
        | st.binary(max_size=8)
        | st.sampled_from([b"application/json", b"application/cloudevents+json", b"2024-05-05T05:05:05Z", b"x" * 5000]),
    ),
    max_size=3,
)
keys = st.none() | st.binary(max_size=6) | st.just(b"k" * 5000)
fetched = st.builds(FakeRecord, st.integers(0, 2**62), contents, keys, headers)


def at(moment: int) -> type[FakeRecord]:
    """Records that came at a moment, in milliseconds since 1970."""

    class At(FakeRecord):
        def timestamp(self) -> tuple[int, int]:
            return 1, moment

    return At


def only(frame: pl.DataFrame) -> dict[str, Any]:
    assert frame.height == 1
    return frame.row(0, named=True)


def event(said: Any, **fields: Any) -> dict[str, Any]:
    """The row of one event."""
    value = said if isinstance(said, bytes | None) else json.dumps(said).encode()
    return only(EVENTS(3, [FakeRecord(7, value, **fields)]))


@given(st.lists(fetched, max_size=4))
def test_any_bytes_give_one_row_a_record_in_either_clock(records: list[FakeRecord]) -> None:
    for rows in (EVENTS, EventRows(EVENT_CLOCK)):
        frame = rows(3, records)
        assert frame.schema == polars_schema(rows.table)
        assert frame["offset"].to_list() == [record.place for record in records]
        assert frame["known_at"].null_count() == frame["day"].null_count() == frame["event_id"].null_count() == 0
        for extra in frame["extra"].drop_nulls():
            assert isinstance(json.loads(extra), dict)


@given(fetched)
def test_what_a_worker_takes_is_readable_and_has_the_names_and_the_time_that_it_gives(record: FakeRecord) -> None:
    row = only(EVENTS(3, [record]))
    schema = SETTINGS.stream.schema_of_events()
    try:
        taken = Decoder(SETTINGS.stream, schema)(record, Source(SETTINGS.names.events, 3, record.place), [])
    except RecordError:
        assert not row["readable"]
        return
    assert row["readable"] is not bool(FiniteNumbers(schema).errors([taken.event]))
    assert (row["event_id"], row["entity"]) == (taken.id, taken.entity)
    assert row["event_time"].timestamp() == pytest.approx(taken.time, abs=1e-6)


moments = st.datetimes(timezones=st.just(UTC))
declared = st.fixed_dictionaries(
    {"amount": st.floats(allow_nan=False, allow_infinity=False)},
    optional={
        "id": st.text(min_size=1, max_size=9),
        "at": moments,
        "rate": st.floats(allow_nan=False, allow_infinity=False),
        "count": st.integers(-(2**63), 2**63 - 1),
        "ok": st.booleans(),
        "größe": st.text(max_size=9),
        "day": st.text(max_size=9),
    },
)


@given(declared, st.booleans(), st.dictionaries(st.text(min_size=1, max_size=5), st.integers() | st.text(), max_size=2))
def test_declared_values_come_back_exactly_and_the_others_as_json(
    said: dict[str, Any], binary: bool, other: dict[str, Any]
) -> None:
    other = {name: value for name, value in other.items() if name not in FIELDS}
    if binary:
        other = {name: value for name, value in other.items() if not isinstance(value, int) or abs(value) < 2**63}
    encode = msgspec.msgpack.encode if binary else msgspec.json.encode
    row = only(EVENTS(3, [FakeRecord(7, encode(said | other))]))
    assert row["readable"]
    assert {name: row[column_of(name)] for name in FIELDS} == {name: said.get(name) for name in FIELDS}
    assert (json.loads(row["extra"]) if row["extra"] else {}) == other


@pytest.mark.parametrize(
    ("value", "extra"),
    [
        (b"", None),
        (b"not json", None),
        (b"[1, 2]", None),
        (b"\xff\xfe", None),
        (b"{", None),
        (b'{"amount": 1' + b"0" * 400 + b"}", '{"amount":1' + "0" * 400 + "}"),
        (b'{"amount": 1e999, "rate": 2}', None),
        (b'{"amount": 1, "deep": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", None),
        (b'{"amount": "much", "count": 1.5}', '{"amount":"much","count":1.5}'),
        (b'{"amount": 1, "at": "soon"}', '{"at":"soon"}'),
        (b'{"amount": 1, "at": 1e300}', '{"at":1e300}'),
        (b'{"amount": 1, "count": 18446744073709551616}', '{"count":18446744073709551616}'),
        (msgspec.msgpack.encode({"amount": 1, "rate": math.inf}), None),
        (msgspec.msgpack.encode({"amount": math.nan}), '{"amount":null}'),
        (b"\x82\xa6amount\x01\xa1x\xa1\xff\x00", None),
    ],
)
def test_what_no_worker_can_read_gives_one_row_that_says_so(value: bytes, extra: str | None) -> None:
    row = event(value, name=b"card")
    assert not row["readable"]
    assert (row["partition"], row["offset"], row["entity"], row["extra"]) == (3, 7, "card", extra)


def test_four_mebibytes_of_text_are_one_row() -> None:
    text = "é" * 2 * 2**20
    row = event({"amount": 1, "größe": text, "other": text})
    assert row["readable"]
    assert row["größe"] == text
    assert json.loads(row["extra"]) == {"other": text}


def test_of_an_undeclared_field_that_cannot_be_read_the_name_is_kept() -> None:
    row = event(b'{"amount": 1, "broken": "\xff", "other": 2}')
    assert row["readable"]
    assert json.loads(row["extra"]) == {"broken": None, "other": 2}


def test_a_name_that_is_too_long_makes_the_place_the_id() -> None:
    row = event({"amount": 1, "id": "x" * 5000}, name=b"card")
    assert not row["readable"]
    assert (row["event_id"], row["entity"]) == ("ecluse.rows.events-3-7", "card")
    assert event({"amount": 1}, name=b"k" * 5000)["entity"] is None


def test_an_event_that_does_not_fit_keeps_its_id_for_the_labels_that_come() -> None:
    row = event({"id": "tx-1", "amount": "much", "at": 1_700_000_000}, name=None)
    assert (row["event_id"], row["entity"], row["amount"]) == ("tx-1", "tx-1", None)
    assert row["event_time"] == row["at"] == datetime.fromtimestamp(1_700_000_000, UTC)


def test_a_missing_number_is_null_whether_it_is_absent_or_nan() -> None:
    for said in ({"amount": 1.0}, {"amount": 1.0, "rate": math.nan}):
        row = only(EVENTS(3, [FakeRecord(7, msgspec.msgpack.encode(said))]))
        assert row["readable"]
        assert row["rate"] is None


def test_an_event_is_known_at_its_arrival_or_where_the_stream_says_so_at_its_own_time() -> None:
    record = FakeRecord(7, b'{"amount": 1, "at": "2020-02-29T23:59:59.999999Z"}')
    own = datetime(2020, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
    for settings, known_at in ((SETTINGS, ARRIVED), (EVENT_CLOCK, own)):
        row = only(EventRows(settings)(3, [record]))
        assert row["event_time"] == own
        assert (row["known_at"], row["day"]) == (known_at, known_at.date())


@pytest.mark.parametrize(("moment", "day"), [(2**63 - 1, date(9999, 12, 31)), (-(2**63), date(1, 1, 1))])
def test_an_absurd_timestamp_is_the_first_or_the_last_day_there_is_and_no_time_of_an_event(
    moment: int, day: date
) -> None:
    for settings in (SETTINGS, EVENT_CLOCK):
        row = only(EventRows(settings)(3, [at(moment)(7, b'{"amount": 1}')]))
        assert (row["day"], row["event_time"], row["readable"]) == (day, None, False)


@pytest.mark.parametrize(
    ("said", "nearest"),
    [
        ("0001-01-01T00:00:00+14:00", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.9-12:00", datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
    ],
)
def test_a_time_that_its_zone_brings_out_of_the_calendar_is_no_events_and_else_the_nearest_one(
    said: str, nearest: datetime
) -> None:
    row = event({"amount": 1, "at": said})
    assert (row["readable"], row["at"], row["event_time"], row["known_at"]) == (False, nearest, None, ARRIVED)
    fields = STREAM["fields"] | {"seen": "time"}
    other = Settings(stream=STREAM | {"fields": fields})
    row = only(EventRows(other)(3, [FakeRecord(7, json.dumps({"amount": 1, "seen": said}).encode())]))
    assert (row["readable"], row["seen"], row["event_time"]) == (True, nearest, ARRIVED)


@given(st.lists(predictions, max_size=3))
def test_predictions_come_back_as_they_were(made: list[Prediction]) -> None:
    records = [FakeRecord(i, msgspec.msgpack.encode(one)) for i, one in enumerate(made)]
    frame = PredictionRows(SETTINGS)(3, records)
    assert frame.schema == polars_schema(PredictionRows.table)
    for row, one in zip(frame.iter_rows(named=True), made, strict=True):
        same = ("event_id", "entity", "model", "version", "arm", "propensity", "score", "threshold", "route_revision")
        assert [row[name] for name in same] == [getattr(one, name) for name in same]
        assert (row["decision"], row["source_offset"]) == (one.decision.value, one.source.offset)


def _prediction(**fields: Any) -> bytes:
    said = {
        "event_id": "tx",
        "entity": "c",
        "event_time": 1e9,
        "scored_at": 2e9,
        "model": "m",
        "version": 1,
        "arm": "a",
    }
    said |= {"propensity": 1.0, "score": 0.5, "decision": "allow", "threshold": 0.5, "route_revision": 3}
    return msgspec.msgpack.encode(said | {"source": {"topic": "t", "partition": 3, "offset": 9}} | fields)


def test_a_prediction_is_known_when_it_was_scored_or_at_the_events_time() -> None:
    for settings, seconds in ((SETTINGS, 2e9), (EVENT_CLOCK, 1e9)):
        row = only(PredictionRows(settings)(3, [FakeRecord(0, _prediction())]))
        assert row["known_at"] == datetime.fromtimestamp(seconds, UTC)


@given(st.lists(contents | st.just(_prediction(version=2**64 - 1, scored_at=1e300)), max_size=3))
def test_what_another_wrote_on_our_topics_is_a_row_of_nulls(values: list[bytes | None]) -> None:
    records = [FakeRecord(i, value) for i, value in enumerate(values)]
    for rows in (PredictionRows(SETTINGS), BypassRows(SETTINGS), RevisionRows(SETTINGS)):
        frame = rows(3, records)
        assert frame.schema == polars_schema(rows.table)
        assert frame["offset"].to_list() == list(range(len(values)))
        assert frame["known_at"].null_count() == 0


@given(declared, st.booleans())
def test_a_bypass_sample_has_the_events_fields(said: dict[str, Any], binary: bool) -> None:
    encode = msgspec.msgpack.encode if binary else msgspec.json.encode
    sample = BypassSample("tx", "c", 1e9, 0.25, 4, 5, Source("t", 3, 9), said | {"other": [1]})
    row = only(BypassRows(SETTINGS)(3, [FakeRecord(0, encode(sample))]))
    assert {name: row[column_of(name)] for name in FIELDS} == {name: said.get(name) for name in FIELDS}
    assert json.loads(row["extra"]) == {"other": [1]}
    assert [row[name] for name in ("propensity", "route_revision", "switch_revision", "source_offset")] == [
        0.25,
        4,
        5,
        9,
    ]
    assert row["known_at"] == ARRIVED


def test_a_label_is_a_row_and_is_known_when_it_says_or_when_it_came() -> None:
    records = [
        FakeRecord(0, b'{"event_id": "tx", "value": true, "labeler": "lee", "alerted": true}', b"tx"),
        FakeRecord(1, msgspec.msgpack.encode(Label("ty", None, known_at=1e9, confidence=0.5)), None),
    ]
    frame, rejected = LabelRows(SETTINGS, "analyst")(3, records)
    assert frame.schema == polars_schema(LabelRows.table)
    assert not rejected
    assert frame.select("event_id", "origin", "value", "labeler", "confidence", "alerted", "known_at").rows() == [
        ("tx", "analyst", 1, "lee", 1.0, True, ARRIVED),
        ("ty", "analyst", None, "", 0.5, False, datetime.fromtimestamp(1e9, UTC)),
    ]


@pytest.mark.parametrize(
    ("value", "key", "said"),
    [
        (None, b"tx", "the value is empty"),
        (b"[", b"tx", "no label"),
        (b'{"value": 1}', None, "missing required field 'event_id'"),
        (b'{"event_id": "tx", "value": 2}', b"tx", "Invalid enum value 2 in value."),
        (b'{"event_id": "tx", "value": 1}', b"ty", "not its event_id"),
        (b'{"event_id": "tx", "value": 1, "known_at": 1700000000000}', b"tx", "known_at is no time"),
        (msgspec.msgpack.encode({"event_id": "tx", "value": 1, "known_at": math.nan}), b"tx", "known_at is no time"),
        (msgspec.msgpack.encode({"event_id": "tx", "value": 1, "confidence": math.nan}), b"tx", "confidence"),
        (b'{"event_id": "", "value": 1}', None, "event_id"),
        (json.dumps({"event_id": "x" * 5000, "value": 1}).encode(), None, "event_id"),
    ],
)
def test_what_is_no_label_is_rejected_with_a_sentence(value: bytes | None, key: bytes | None, said: str) -> None:
    frame, [(record, error)] = LabelRows(SETTINGS, "analyst")(3, [FakeRecord(4, value, key)])
    assert frame.is_empty()
    assert record.offset() == 4
    assert error.stage is Stage.LABEL
    assert said in str(error)


@given(st.lists(st.builds(FakeRecord, st.integers(0, 9), contents, keys), max_size=3))
def test_any_bytes_are_a_label_or_rejected(records: list[FakeRecord]) -> None:
    frame, rejected = LabelRows(SETTINGS, "analyst")(3, records)
    assert frame.height + len(rejected) == len(records)


@given(releases)
def test_a_revision_is_kept_as_json_under_its_kind_and_name(release: Release) -> None:
    row = only(RevisionRows(SETTINGS)(0, [FakeRecord(8, msgspec.msgpack.encode(release), b"release/m/3")]))
    assert (row["kind"], row["name"], row["offset"]) == ("release", "m", 8)
    assert msgspec.json.decode(row["record"], type=Release) == release


def test_a_revision_that_was_deleted_keeps_its_name() -> None:
    row = only(RevisionRows(SETTINGS)(0, [FakeRecord(8, None, b"switch/m")]))
    assert (row["kind"], row["name"], row["record"], row["known_at"]) == ("switch", "m", None, ARRIVED)

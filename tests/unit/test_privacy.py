"""What the settings name as private does not reach the training store as it was, wherever it stands."""

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ecluse.contract.records import BypassSample, Decision, Label, Prediction, Source
from ecluse.errors import SettingsError
from ecluse.secrets import make_secret
from ecluse.settings import Settings
from ecluse.store.schema import polars_schema
from ingest.privacy import HashKey, as_text, masked
from ingest.rows import BypassRows, EventRows, LabelRows, PredictionRows
from tests.unit.test_pipeline import FakeRecord

STREAM = {
    "name": "private",
    "fields": {
        "id": {"type": "integer", "required": False},
        "at": {"type": "time", "required": False},
        "card": {"type": "text", "required": False},
        "email": {"type": "text", "required": False},
        "amount": {"type": "number", "required": False},
        "limit": {"type": "number", "required": False},
    },
    "id_field": "id",
    "key_field": "card",
}
PRIVATE = {"hash": ("id", "card", "amount", "at"), "mask": ("email", "phone"), "drop": ("limit", "pin")}
CARD, EMAIL, PHONE, PIN = "4000-1234-5678-9010", "ada@mail.example", "0441234567", "pin-8842"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_secret(tmp_path / "hash.key")
    return Settings(stream=STREAM, store=PRIVATE | {"hash_key_file": tmp_path / "hash.key"})


def said(**other: Any) -> dict[str, Any]:
    whole = {
        "id": 77_001,
        "at": "2024-02-03T04:05:06Z",
        "card": CARD,
        "email": EMAIL,
        "amount": 1234.0,
        "limit": 987_654,
    }
    return whole | {"phone": PHONE, "PIN": PIN, "nested": {"List": [{"Card": CARD, "pin": PIN}, {"ok": 1}]}} | other


def only(frame: pl.DataFrame) -> dict[str, Any]:
    assert frame.height == 1
    return frame.row(0, named=True)


def stored(settings: Settings, value: dict[str, Any], key: bytes | None = CARD.encode()) -> dict[str, Any]:
    return only(EventRows(settings)(0, [FakeRecord(5, msgspec.json.encode(value), key)]))


def test_no_private_value_is_in_a_row_and_what_is_not_private_is_as_it_was(settings: Settings) -> None:
    row = stored(settings, said(open="yes"))
    assert row["readable"]
    assert not [value for value in (CARD, EMAIL, PHONE, PIN) if value in str(row)]
    for name in ("id", "at", "card", "amount", "event_id", "entity"):
        assert re.fullmatch("[0-9a-f]{32}", row[name])
    assert "limit" not in row
    assert row["email"] == "****mple"
    extra = json.loads(row["extra"])
    assert extra == {"phone": "****4567", "nested": {"List": [{"Card": row["card"]}, {"ok": 1}]}, "open": "yes"}


def test_the_tables_know_private_fields_as_text_and_not_those_that_are_dropped(settings: Settings) -> None:
    for rows in (EventRows(settings), BypassRows(settings)):
        frame = rows(0, [])
        assert frame.schema == polars_schema(rows.table)
        assert "limit" not in frame.columns
        assert {frame.schema[name] for name in ("id", "at", "card", "email", "amount")} == {pl.String()}


def test_rows_find_each_other_by_what_became_of_id_and_key(settings: Settings) -> None:
    event = stored(settings, said())
    source = Source("events", 0, 5)
    prediction = Prediction("77001", CARD, 1.7e9, 1.7e9, "m", 1, "a", 1.0, 0.5, Decision.ALLOW, 0.5, 3, source)
    sample = BypassSample("77001", CARD, 1.7e9, 0.5, 3, 4, source, said())
    predicted = only(PredictionRows(settings)(0, [FakeRecord(0, msgspec.msgpack.encode(prediction))]))
    bypassed = only(BypassRows(settings)(0, [FakeRecord(0, msgspec.msgpack.encode(sample))]))
    label, _ = LabelRows(settings, "analyst")(0, [FakeRecord(0, msgspec.json.encode(Label("77001", 1)), b"77001")])
    assert event["event_id"] == event["id"] == predicted["event_id"] == bypassed["event_id"] == only(label)["event_id"]
    assert event["entity"] == event["card"] == predicted["entity"] == bypassed["entity"]
    assert {name: bypassed[name] for name in ("id", "at", "card", "email", "amount", "extra")} == {
        name: event[name] for name in ("id", "at", "card", "email", "amount", "extra")
    }
    assert len({event["event_id"], event["entity"], event["amount"]}) == 3


def test_where_events_have_no_key_their_id_is_private_as_entity_too(tmp_path: Path) -> None:
    make_secret(tmp_path / "hash.key")
    store = {"hash": ("id",), "hash_key_file": tmp_path / "hash.key"}
    settings = Settings(stream=STREAM | {"key_field": None}, store=store)
    row = stored(settings, said(), key=None)
    assert row["entity"] == row["event_id"] == row["id"] != "77001"
    assert stored(settings, said())["entity"] == CARD


def test_equal_values_stay_equal_whatever_they_came_as(settings: Settings) -> None:
    rows = [
        stored(settings, said(amount=12)),
        stored(settings, said(amount=12.0, at=1_706_933_106)),
        stored(settings, said(amount=12.5)),
        only(EventRows(settings)(0, [FakeRecord(5, msgspec.msgpack.encode(said(amount=12)), CARD.encode())])),
    ]
    assert rows[0]["amount"] == rows[1]["amount"] == rows[3]["amount"] != rows[2]["amount"]
    assert rows[0]["at"] == rows[1]["at"] == rows[3]["at"]


def test_another_key_gives_other_hashes(settings: Settings, tmp_path: Path) -> None:
    make_secret(tmp_path / "other.key")
    store = settings.store.model_copy(update={"hash_key_file": tmp_path / "other.key"})
    other = settings.model_copy(update={"store": store})
    assert stored(settings, said())["card"] != stored(other, said())["card"]
    assert HashKey(settings).id != HashKey(other).id
    assert HashKey(settings).forgotten(CARD) != HashKey(settings).hashed(CARD)


def test_a_private_value_of_the_wrong_type_is_covered_in_extra(settings: Settings) -> None:
    row = stored(settings, {"amount": "4711-much", "email": [EMAIL], "limit": "none", "at": "2024-13-13"})
    assert not row["readable"]
    extra = json.loads(row["extra"])
    assert extra.keys() == {"amount", "email", "at"}
    assert all(piece not in row["extra"] for piece in ("4711", "ada", "none", "2024-13"))


MASKING = EventRows(
    Settings(
        stream=STREAM | {"id_field": None, "key_field": None},
        store={"drop": ("card", "pin", "limit"), "mask": ("phone", "email", "id", "amount")},
    )
)
_names = st.sampled_from(["card", "CARD", "pin", "phone", "email", "limit", "free", "id", "amount"])
_secret = st.sampled_from([f"secret-value-{i}" for i in range(3)])
_nested = st.recursive(
    _secret, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_names, inner, max_size=2), max_leaves=4
)
_objects = st.dictionaries(_names, _nested, max_size=4)


@given(_objects, st.booleans())
def test_a_secret_stands_nowhere_but_under_names_that_are_not_private(value: dict[str, Any], binary: bool) -> None:
    def hidden(said: Any) -> Any:
        if isinstance(said, dict):
            return {name: hidden(inner) for name, inner in said.items() if name == "free"}
        return [hidden(inner) for inner in said] if isinstance(said, list) else said

    encode = msgspec.msgpack.encode if binary else msgspec.json.encode
    row = only(MASKING(0, [FakeRecord(0, encode(value))]))
    allowed = str(hidden(value)).count("secret-value")
    assert str(row).count("secret-value") <= allowed


def test_what_is_nested_deeply_is_covered_or_null(settings: Settings) -> None:
    deep: Any = {"card": CARD}
    for _ in range(450):
        deep = {"inner": [deep]}
    row = stored(settings, said(deep=deep, shallow=1))
    assert CARD not in row["extra"]
    assert json.loads(row["extra"])["shallow"] == 1


@pytest.mark.parametrize(
    ("text", "left"), [("4000123456789010", "****9010"), ("12345678", "****5678"), ("1234567", "****"), ("", "****")]
)
def test_a_mask_shows_the_last_four_characters_and_nothing_of_short_values(text: str, left: str) -> None:
    assert masked(text) == left


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        (12.0, "12"),
        (-0.5, "-0.5"),
        (True, "true"),
        ("12", "12"),
        (None, None),
        (math.nan, None),
        (datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "1000000"),
        ({"b": 1, "a": [2]}, '{"a":[2],"b":1}'),
    ],
)
def test_values_as_text(value: Any, text: str | None) -> None:
    assert as_text(value) == text


def test_what_labels_and_forgetting_need_cannot_be_dropped_or_masked() -> None:
    for way, name in (("drop", "id"), ("mask", "Card")):
        with pytest.raises(ValidationError, match=f"cannot name '{name.lower()}'"):
            Settings(stream=STREAM, store={way: (name,)})


def test_a_field_is_private_in_one_way_only_and_hashes_need_a_key(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="named twice"):
        Settings(stream=STREAM, store={"drop": ("pin",), "mask": ("PIN",)})
    with pytest.raises(ValidationError, match="hash needs hash_key_file"):
        Settings(stream=STREAM, store={"hash": ("card",)})
    short = tmp_path / "short.key"
    short.write_bytes(b"x" * 31)
    short.chmod(0o600)
    with pytest.raises(SettingsError, match="31 bytes"):
        EventRows(Settings(stream=STREAM, store={"hash": ("card",), "hash_key_file": short}))
    short.write_bytes(b"x" * 32)
    short.chmod(0o604)
    with pytest.raises(SettingsError, match="open to everybody"):
        EventRows(Settings(stream=STREAM, store={"hash": ("card",), "hash_key_file": short}))

"""Who was forgotten stays so, without a broker: rows come as the sink makes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest

from ecluse.contract.tables import LABELS, events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ingest.forget import Entity
from ingest.forgotten import Forgotten
from ingest.rows import EventRows, LabelRows

KEY = b"card-1"


class Fetched:
    """A record at an offset."""

    def __init__(self, offset: int, key: bytes, value: bytes) -> None:
        self._offset, self._key, self._value = offset, key, value

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_772_000_000_000


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "store.key"
    file.write_bytes(b"k" * 32)
    file.chmod(0o600)
    return file


def events(settings: Settings, offsets: Sequence[int]) -> tuple[pl.DataFrame, dict[str, tuple[int | None, int]]]:
    records = [Fetched(at, KEY, b'{"id": "e-%d"}' % at) for at in offsets]
    rows = EventRows(settings)(0, cast(Any, records))
    return rows, {f"{settings.names.events}/0": (offsets[0] or None, offsets[-1] + 1)}


def label(settings: Settings, offset: int, event_id: bytes) -> tuple[pl.DataFrame, dict[str, tuple[int | None, int]]]:
    record = Fetched(offset, event_id, b'{"event_id": "%s", "value": 1}' % event_id)
    rows, _ = LabelRows(settings, "chargeback")(0, [cast(Any, record)])
    return rows, {f"{settings.names.labels('chargeback')}/0": (offset or None, offset + 1)}


@pytest.mark.parametrize("hashed", [(), ("id",), ("id", "card")])
def test_late_labels_are_dropped_also_where_ids_are_hashed_since_they_were_forgotten(
    tmp_path: Path, key_file: Path, hashed: tuple[str, ...]
) -> None:
    def made(*names: str) -> tuple[Settings, Forgotten]:
        fields = {"id": {"type": "text"}, "card": {"type": "text", "required": False}}
        stream = {"name": "t", "fields": fields, "id_field": "id", "key_field": "card"}
        store = {"url": str(tmp_path / "store"), "hash_key_file": key_file, "hash": names}
        settings = Settings(stream=cast(Any, stream), store=cast(Any, store))
        return settings, Forgotten(settings, TrainingStore(settings))

    settings, forgotten = made()
    table = events_table(settings.stored_fields)
    assert forgotten.append(table, *events(settings, range(10))).height == 10
    assert forgotten.append(LABELS, *label(settings, 0, b"e-3")).height == 1
    deleted = Entity(settings, TrainingStore(settings), KEY.decode()).forget({0: 10}, lambda *_: None)
    assert {name: rows for name, rows in deleted.rows.items() if rows} == {"labels": 1, "events": 10}

    settings, forgotten = made(*hashed)
    assert forgotten.append(LABELS, *label(settings, 1, b"e-4")).height == 0
    assert forgotten.append(LABELS, *label(settings, 2, b"e-11")).height == 1
    assert forgotten.append(events_table(settings.stored_fields), *events(settings, range(10, 12))).height == 2

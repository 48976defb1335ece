"""The tables open in plain Polars and DuckDB, by the queries that docs/store.md shows."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable

from ecluse.contract.schema import Field, FieldType
from ecluse.contract.tables import LABELS, PREDICTIONS, REVISIONS, Table, bypass_table, events_table
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from tests.docs.pages import ROOT, blocks

from .stores import app, open_store, rows

FIELDS = {"amount": Field(type=FieldType.NUMBER), "city": Field(type=FieldType.TEXT)}
KNOWN = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
TABLES: list[tuple[Table, dict[str, Any]]] = [
    (events_table(FIELDS), {"city": "Lyon", "amount": 12.5}),
    (PREDICTIONS, {"decision": "block"}),
    (bypass_table(FIELDS), {"propensity": 0.02}),
    (LABELS, {"origin": "chargeback", "value": 1}),
    (REVISIONS, {"kind": "route", "record": "{}"}),
]
PAGE = ROOT / "docs/store.md"


def write(store: TrainingStore, table: Table, values: dict[str, Any]) -> None:
    """34 rows of two days, with files that were replaced beside those that the table holds."""
    for start in range(0, 30, 10):
        batch = rows(0, start, start + 10, table, values=values)
        store.append(table, batch, {app(0): (start or None, start + 10)})
    store.compact(table)
    store.append(table, rows(0, 30, 35, table, days=1, values=values), {app(0): (30, 35)})
    store.delete(table, "offset = 2")


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    return open_store(tmp_path / "store", compact_files=2)


@pytest.mark.parametrize(("table", "values"), TABLES, ids=[table.name for table, _ in TABLES])
def test_a_table_opens_in_polars_and_duckdb(store: TrainingStore, table: Table, values: dict[str, Any]) -> None:
    write(store, table, values)
    url = store.location(table)
    by_polars = pl.scan_delta(url).group_by("day").len().sort("day").collect().rows()
    assert by_polars == [(KNOWN.date(), 29), (KNOWN.date().replace(day=5), 5)]
    assert pl.read_delta(url).filter(**values).height == 34
    assert dict(pl.read_delta(url).schema) == dict(polars_schema(table))

    opened = duckdb.read_parquet(DeltaTable(url).file_uris(), hive_partitioning=True, union_by_name=True)
    assert sorted(opened.aggregate("day, count(*)").fetchall()) == by_polars
    types = {name: str(kind) for name, kind in zip(opened.columns, opened.types, strict=True)}
    assert types["known_at"] == "TIMESTAMP WITH TIME ZONE"
    assert (types["day"], types["offset"]) == ("DATE", "BIGINT")


def test_the_queries_of_the_docs_run(store: TrainingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for table, values in TABLES:
        write(store, table, values)
    scripts = [block.text for block in blocks(PAGE, "python") if ".ecluse/store" in block.text]
    for script in scripts:
        assert ".ecluse/store" in script
        names: dict[str, Any] = {}
        exec(script.replace(".ecluse/store", store.url), names)
        frames = [value for value in names.values() if isinstance(value, pl.DataFrame)]
        assert all(frame.height > 0 for frame in frames) and ("duckdb" in names or len(frames) == len(TABLES))
    [queries] = [block.text for block in blocks(PAGE, "sql")]
    asked = re.findall(r"delta_scan\('\.ecluse/store/(\w+)'\)", queries)
    assert sorted(asked) == sorted(table.name for table, _ in TABLES)
    for query, name in zip(queries.strip().split("\n"), asked, strict=True):
        files = DeltaTable(f"{store.url}/{name}").file_uris()
        source = f"read_parquet({files!r}, hive_partitioning = true, union_by_name = true)"
        assert duckdb.sql(query.replace(f"delta_scan('.ecluse/store/{name}')", source)).fetchall()


def test_a_scan_reads_the_files_of_the_asked_days_and_the_asked_columns_alone(store: TrainingStore) -> None:
    for day in range(4):
        store.append(PREDICTIONS, rows(0, day, day + 1, days=day), {app(0): (day or None, day + 1)})
    asked = store.scan(PREDICTIONS).filter(pl.col("day") == KNOWN.date()).select("offset")
    plan = asked.explain()
    assert "day=2026-05-04" in plan and "other sources" not in plan
    assert "PROJECT 2/18 COLUMNS" in plan
    for file in Path(store.location(PREDICTIONS)).glob("day=2026-05-0[567]/*"):
        file.unlink()  # not even opened
    assert asked.collect()["offset"].to_list() == [0]


def test_a_scan_passes_over_files_whose_offsets_are_others(store: TrainingStore) -> None:
    for start in (0, 10, 20):
        store.append(PREDICTIONS, rows(0, start, start + 10), {app(0): (start or None, start + 10)})
    asked = store.scan(PREDICTIONS).filter(pl.col("offset") >= 25, pl.col("known_at") >= KNOWN).select("offset")
    held = pl.DataFrame(DeltaTable(store.location(PREDICTIONS)).get_add_actions(flatten=True))
    for path in held.filter(pl.col("max.offset") < 25)["path"]:
        (Path(store.location(PREDICTIONS)) / path).unlink()
    assert asked.collect()["offset"].to_list() == [25, 26, 27, 28, 29]

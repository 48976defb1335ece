"""The store in a bucket, on a server that speaks S3: moto's."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from moto.s3.responses import S3Response
from werkzeug.datastructures import Headers

from ecluse.contract.tables import PREDICTIONS
from ecluse.errors import StoreConflict, StoreError
from tests.buckets import Puts, bucket

from .stores import app, fill, open_store, places, rows

#: A writer of a partition that has a rival: it appends where the table stands until that is far enough.
_WRITER = """
import sys
from ecluse.contract.tables import PREDICTIONS
from ecluse.errors import StoreConflict
from tests.unit.stores import app, open_store, rows
store, part, end = open_store(sys.argv[1], compact_files=3), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
won = lost = 0
while (start := store.offsets(PREDICTIONS).get(app(part))) is None or start < end:
    first = start or 0
    try:
        store.append(PREDICTIONS, rows(part, first, first + 5), {app(part): (start, first + 5)})
        won += 1
    except StoreConflict:
        lost += 1
print(won, lost)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Puts]]:
    """The url of an empty folder in a bucket, and what is put there."""
    with bucket(monkeypatch) as made:
        yield made


@pytest.fixture
def url(place: tuple[str, Puts]) -> str:
    return place[0]


@pytest.fixture
def puts(place: tuple[str, Puts]) -> Puts:
    return place[1]


def test_a_bucket_holds_tables_as_a_folder_does(url: str) -> None:
    store = open_store(url, compact_files=2)
    fill(store, 4)
    assert store.compact(PREDICTIONS) == 4
    assert store.delete(PREDICTIONS, "offset < 3") == 3
    assert store.purge(PREDICTIONS) == 5
    assert store.vacuum(PREDICTIONS) == 0
    assert places(store) == [(0, offset) for offset in range(3, 40)]
    assert store.offsets(PREDICTIONS) == {app(0): 40}
    assert pl.scan_delta(store.location(PREDICTIONS)).select(pl.len()).collect().item() == 37
    with pytest.raises(StoreConflict, match="come to 40"):
        store.append(PREDICTIONS, rows(0, 30, 40), {app(0): (30, 40)})


@pytest.mark.parametrize("asked", [{}, {"AWS_S3_ALLOW_UNSAFE_RENAME": "true"}], ids=["as it is", "asked to be unsafe"])
def test_every_commit_is_a_conditional_write(
    url: str, puts: Puts, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]
) -> None:
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    store = open_store(url, compact_files=2)
    fill(store, 3)
    store.compact(PREDICTIONS)
    store.delete(PREDICTIONS, "offset = 1")
    commits = [condition for path, condition in puts if path.endswith(".json") and "_delta_log" in path]
    assert commits == ["*"] * 6


def test_a_server_that_passes_over_conditions_is_refused(url: str, puts: Puts, monkeypatch: pytest.MonkeyPatch) -> None:
    put = S3Response.put_object

    def unconditional(response: S3Response, *args: Any) -> Any:
        response.headers = Headers([header for header in response.headers.items() if header[0] != "If-None-Match"])
        return put(response, *args)

    monkeypatch.setattr(S3Response, "put_object", unconditional)
    with pytest.raises(StoreError, match="conditional writes"):
        fill(open_store(url), 1)
    assert [path for path, _ in puts if "_delta_log" in path] == []


def test_processes_that_race_for_a_bucket_write_every_record_once(url: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, url, str(part), "20"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in (0, 0, 1)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    won = sum(int(output.split()[0]) for output in outputs)
    store = open_store(url, compact_files=2)
    assert (won, store.offsets(PREDICTIONS)) == (8, {app(0): 20, app(1): 20})
    assert places(store) == [(part, offset) for part in (0, 1) for offset in range(20)]
    assert len(DeltaTable(store.location(PREDICTIONS)).file_uris()) == 8


def test_missing_credentials_and_a_missing_bucket_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"404 Not Found\.$"):
        fill(open_store("s3://another/store"), 1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StoreError) as told:
        open_store(url).offsets(PREDICTIONS)
    assert "credential" in str(told.value)

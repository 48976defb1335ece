"""`ecluse publish` on a real broker: the same rows from any format, the declared fields only, nothing of a wrong file."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from typer.testing import CliRunner

from console.main import app
from ecluse.errors import EcluseError
from ecluse.settings import Settings, load
from ingest import Publisher, Replay, generate
from tests.contract.test_publisher import read_events

FIELDS = {
    "transaction_id": "integer",
    "time": "time",
    "amount": "number",
    "terminal_risk_7d": {"type": "number", "required": False},
    "night": "boolean",
}


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    frame = generate(7, 3, customers=100, terminals=200).head(500)
    gaps = pl.when(pl.col("transaction_id") % 5 > 0).then(pl.col("terminal_risk_7d"))
    return frame.with_columns(gaps.alias("terminal_risk_7d"))


@pytest.fixture
def config(stream: Settings, tmp_path: Path) -> Path:
    """The stream of this test as a file; it declares neither the key's column nor the labels."""
    return write_config(tmp_path, stream)


def write_config(folder: Path, stream: Settings, **keys: Any) -> Path:
    names: dict[str, Any] = {"name": stream.stream.name, "key_field": "customer_id", "time_field": "time"} | keys
    lines = [f"{key} = {json.dumps(value)}" for key, value in names.items()]
    lines.append("[stream.fields]")
    for name, field in FIELDS.items():
        value = f'"{field}"' if isinstance(field, str) else '{ type = "number", required = false }'
        lines.append(f"{name} = {value}")
    path = folder / "ecluse.toml"
    path.write_text(
        "[stream]\n" + "\n".join(lines) + f'\n[kafka]\nbootstrap_servers = "{stream.kafka.bootstrap_servers}"\n'
    )
    return path


def run(*arguments: str | Path) -> Any:
    """Run the command, expect success, and return what it printed as JSON."""
    result = CliRunner().invoke(app, ["publish", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def events_by_id(settings: Settings) -> dict[int, tuple[bytes | None, Any]]:
    values = ((message.key(), message.value() or b"") for message in read_events(settings))
    decoded = [(key, msgspec.json.decode(value)) for key, value in values]
    assert len({event["transaction_id"] for _, event in decoded}) == len(decoded)
    return {event["transaction_id"]: (key, event) for key, event in decoded}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_each_format_gives_the_same_events_without_the_label(
    stream: Settings, config: Path, rows: pl.DataFrame, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"rows{ending}"
    {".csv": rows.write_csv, ".jsonl": rows.write_ndjson, ".parquet": rows.write_parquet}[ending](file)
    report = run(file, "-c", config)
    assert report["published"] == rows.height
    assert report["topic"] == stream.names.events
    schema = load(config).stream.schema_of_events()
    found = events_by_id(stream)
    for row in rows.to_dicts():
        key, event = found.pop(row["transaction_id"])
        assert key == str(row["customer_id"]).encode()
        moment = dt.datetime.fromisoformat(event.pop("time"))
        assert (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)) == row["time"]
        expected = {"transaction_id": row["transaction_id"], "amount": row["amount"], "night": bool(row["night"])}
        if row["terminal_risk_7d"] is not None:
            expected["terminal_risk_7d"] = row["terminal_risk_7d"]
        assert event == expected
    assert not found
    for message in read_events(stream):
        schema.decode(message.value())
        assert b"fraud" not in (message.value() or b"")
        assert not message.headers()


def test_limits_in_time_and_number_choose_rows_in_the_files_order(
    stream: Settings, config: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows.write_ndjson(tmp_path / "rows.jsonl")
    report = run(
        tmp_path / "rows.jsonl", "-c", config, "--since", "2024-01-02", "--until", "2024-01-03", "--limit", "20"
    )
    second_day = rows.filter(pl.col("time").dt.day() == 2)
    assert report["published"] == 20
    assert sorted(events_by_id(stream)) == second_day["transaction_id"].head(20).to_list()


@pytest.mark.parametrize("arguments", [("--rate", "1000"), ("--speed", "86400")])
def test_a_paced_replay_publishes_every_row_and_takes_its_time(
    stream: Settings, config: Path, rows: pl.DataFrame, tmp_path: Path, arguments: tuple[str, str]
) -> None:
    rows.write_parquet(tmp_path / "rows.parquet")
    report = run(tmp_path / "rows.parquet", "-c", config, *arguments)
    assert len(events_by_id(stream)) == report["published"] == rows.height
    lasts = 0.499 if arguments[0] == "--rate" else (rows["time"][-1] - rows["time"][0]).total_seconds() / 86_400
    assert report["seconds"] >= lasts


def test_a_file_that_does_not_fit_sends_nothing_and_says_why(
    stream: Settings, config: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    wrong = {
        "no column amount, night, which stream.fields requires": rows.drop("amount", "night"),
        "stream.key_field names": rows.drop("customer_id"),
    }
    for i, (sentence, frame) in enumerate(wrong.items()):
        file = tmp_path / f"{i}.csv"
        frame.write_csv(file)
        assert sentence in fails(file, "-c", config)
    rows.reverse().write_csv(tmp_path / "backwards.csv")
    assert "sort it first" in fails(tmp_path / "backwards.csv", "-c", config, "--speed", "1000")
    untimed = tmp_path / "untimed"
    untimed.mkdir()
    no_time = write_config(untimed, stream)
    no_time.write_text(no_time.read_text().replace('time_field = "time"\n', ""))
    assert "stream.time_field is not set" in fails(tmp_path / "backwards.csv", "-c", no_time, "--since", "2024-01-01")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    assert "cannot be read" in fails(tmp_path / "broken.parquet", "-c", config)
    assert read_events(stream) == []
    # In its own order, at full speed, that file is as good as another.
    assert run(tmp_path / "backwards.csv", "-c", config)["published"] == rows.height


def fails(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["publish", *map(str, arguments)])
    assert isinstance(result.exception, EcluseError), result.output
    return str(result.exception)


def test_rate_and_speed_together_are_wrong_use(config: Path) -> None:
    result = CliRunner().invoke(app, ["publish", "x.csv", "--rate", "1", "--speed", "1", "-c", str(config)])
    assert result.exit_code == 2


def test_ctrl_c_says_how_many_are_published_and_they_are(
    stream: Settings, config: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    rows.write_parquet(tmp_path / "rows.parquet")
    command = [sys.executable, "-c", "from console.main import run; run()", "publish", str(tmp_path / "rows.parquet")]
    process = subprocess.Popen(
        [*command, "-c", str(config), "--rate", "20"], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 30
    while len(read_events(stream)) < 10:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"Stopped: {len(read_events(stream))} of 500 events are published." in said


async def test_a_rows_text_that_is_not_the_declared_type_is_sent_as_it_is(
    stream: Settings, config: Path, tmp_path: Path
) -> None:
    settings = load(config)
    (tmp_path / "rows.csv").write_text(
        "transaction_id,customer_id,time,amount,night\n1,7,2024-01-01,12,1\n2,7,2024-01-01,oops,0\n3,,2024-01-01,1.5,maybe\n"
    )
    replay = Replay(settings, tmp_path / "rows.csv")
    async with Publisher(settings) as publisher:
        await replay.run(publisher)
    events = events_by_id(stream)
    assert [events[i][0] for i in (1, 2, 3)] == [b"7", b"7", None]
    assert [(events[i][1]["amount"], events[i][1]["night"]) for i in (1, 2, 3)] == [
        (12, True),
        ("oops", False),
        (1.5, "maybe"),
    ]
    assert {events[i][1]["time"] for i in (1, 2, 3)} == {"2024-01-01T00:00:00Z"}

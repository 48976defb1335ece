"""`ecluse score` on a real broker: the stream's own scores, decisions and errors, in any format, whole or not at all."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from ecluse.contract.headers import read_error_headers
from ecluse.contract.records import Prediction, Thresholds
from ecluse.errors import DataError, EcluseError, ModelNotFound
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from tests.cli import config_file, ecluse, json_of
from tests.workers import ECLUSE, labelled_rows, read_all, records, scored, train_champion, wait_until, worker

WRITE = {".csv": pl.DataFrame.write_csv, ".jsonl": pl.DataFrame.write_ndjson, ".parquet": pl.DataFrame.write_parquet}
READ: dict[str, Any] = {".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".parquet": pl.read_parquet}


def rows(count: int, seed: int = 23) -> pl.DataFrame:
    """Rows of the stream, with times."""
    times = pl.datetime(2026, 3, 1) + pl.duration(minutes=pl.int_range(pl.len()))
    return labelled_rows(count, seed).with_columns(times.alias("time"))


def with_bad_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """As text, with a row in ten that a worker makes a dead letter of, for one of three reasons."""
    number, amount = pl.int_range(pl.len()), pl.col("amount").cast(pl.String)
    return frame.with_columns(
        pl.when(number % 30 == 3).then(pl.lit("oops")).when(number % 30 != 13).then(amount).alias("amount"),
        pl.when(number % 30 == 23).then(pl.lit("0.5")).otherwise(pl.col("night").cast(pl.String)).alias("night"),
    )


def score(settings: Settings, file: Path, to: Path, *more: str) -> dict[str, Any]:
    """Run the command, expect success, and return what it printed as JSON."""
    result = ecluse(settings, "score", str(file), "--out", str(to), "--json", *more)
    assert result.exit_code == 0, result.output
    return json_of(result)


def refused(settings: Settings, *args: str | Path) -> EcluseError:
    """Run the command, expect that it fails, and return why."""
    result = ecluse(settings, "score", *map(str, args))
    assert isinstance(result.exception, EcluseError), result.output
    return result.exception


def test_scores_decisions_and_errors_are_those_that_a_worker_leaves_on_the_topics(
    stream: Settings, tmp_path: Path
) -> None:
    train_champion(stream, tmp_path)
    file, out = tmp_path / "new.csv", tmp_path / "scores.jsonl"
    with_bad_rows(rows(12_345)).write_csv(file)
    published = ecluse(stream, "publish", str(file))
    assert published.exit_code == 0, published.output
    with worker(stream):
        report = score(stream, file, out)
        wait_until("all are scored", scored(stream, 12_345))

    made = {p.event_id: p for p in records(stream, stream.names.predictions, Prediction)}
    letters = {
        msgspec.json.decode(message.value() or b"")["transaction_id"]: read_error_headers(message.headers() or ())
        for message in read_all(stream, stream.names.dead_letters)
    }
    assert len(made) + len(letters) == 12_345
    assert len({letter["exception.message"] for letter in letters.values()}) == 3
    found = pl.read_ndjson(out, infer_schema_length=None).to_dicts()
    assert [(row["row"], row["transaction_id"]) for row in found] == [(i + 1, f"tx-{i}") for i in range(12_345)]
    for row in found:
        p, letter = made.get(row["transaction_id"]), letters.get(row["transaction_id"])
        if p is not None:
            assert row["score"] == pytest.approx(p.score, abs=1e-6)
            expected = (p.decision.value, p.threshold, p.model, p.version, None)
        else:
            assert letter is not None
            assert row["score"] is None
            expected = (None, None, None, None, letter["exception.message"])
        assert (row["decision"], row["threshold"], row["model"], row["version"], row["error"]) == expected
    decided = [p.decision.value for p in made.values()]
    assert report["decisions"] == {decision: decided.count(decision) for decision in ("allow", "review", "block")}
    assert min(report["decisions"].values()) > 0
    assert (report["rows"], report["scored"], report["failed"]) == (12_345, len(made), len(letters))


@pytest.fixture
def trained(stream: Settings, tmp_path: Path) -> Settings:
    """A stream with a champion and no worker."""
    train_champion(stream, tmp_path)
    return stream


def test_every_format_in_and_out_gives_the_same_table(trained: Settings, tmp_path: Path) -> None:
    frame, tables = rows(500), []
    for source, to in ((".csv", ".jsonl"), (".jsonl", ".parquet"), (".parquet", ".csv")):
        file, out = tmp_path / f"in{source}", tmp_path / f"out{to}"
        WRITE[source](frame, file)
        assert score(trained, file, out)["scored"] == 500
        tables.append(READ[to](out))
    columns = ["row", "transaction_id", "time", "customer_id"]
    columns += ["score", "decision", "threshold", "model", "version", "error"]
    assert [table.columns for table in tables] == [columns] * 3
    plain = [table.drop("time", "error").to_dicts() for table in tables]
    assert plain[0] == plain[1] == plain[2]
    assert tables[0]["time"][1] == tables[2]["time"][1] == "2026-03-01T00:01:00Z"

    frame.clear().write_parquet(tmp_path / "none.parquet")
    assert score(trained, tmp_path / "none.parquet", tmp_path / "none.csv")["rows"] == 0
    assert (tmp_path / "none.csv").read_text() == ",".join(columns) + "\n"


def test_a_column_of_the_file_that_is_named_as_one_of_ours_is_told_apart(trained: Settings, tmp_path: Path) -> None:
    named = trained.stream.model_copy(update={"key_field": "version"})
    frame = rows(20).rename({"customer_id": "version"})
    frame.write_csv(file := tmp_path / "new.csv")
    score(trained.model_copy(update={"stream": named}), file, out := tmp_path / "scores.csv")
    made = pl.read_csv(out)
    assert made["version_in_file"].to_list() == frame["version"].to_list()
    assert set(made["version"]) == {1}


def test_a_version_is_scored_with_by_its_own_thresholds_and_the_champion_by_those_of_its_route(
    trained: Settings, tmp_path: Path
) -> None:
    train_champion(trained, tmp_path)
    rows(200).write_parquet(file := tmp_path / "new.parquet")
    champion, earlier = tmp_path / "champion.parquet", tmp_path / "earlier.parquet"
    assert score(trained, file, champion)["version"] == 2
    assert score(trained, file, earlier, "--model", "1")["version"] == 1
    limits: Thresholds = ModelStore.of(trained).manifest(trained.model_name, 1).thresholds
    made = pl.read_parquet(earlier)
    assert set(made["threshold"]) <= {limits.review, limits.block}
    assert set(made["version"]) == {1}
    decisions = np.select(
        [made["score"] >= limits.block, made["score"] >= limits.review], ["block", "review"], default="allow"
    )
    assert made["decision"].to_list() == decisions.tolist()
    assert "Version 9 " in str(refused(trained, file, "--out", champion, "--model", "9"))


def test_what_cannot_be_scored_or_written_is_said_and_leaves_the_output_as_it_was(
    stream: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "scores.parquet"
    out.write_text("what was there before")
    rows(50).write_csv(file := tmp_path / "new.csv")
    assert isinstance(refused(stream, file, "--out", out), ModelNotFound)
    train_champion(stream, tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "ragged.jsonl").write_text(
        '{"amount": 1, "terminal_risk_30d": 0, "night": 0, "customer_id": "c"}\n{"am'
    )
    rows(50).drop("amount").write_csv(tmp_path / "lacking.csv")
    for name, sentence in {
        "broken.parquet": "cannot be read",
        "ragged.jsonl": "cannot be read",
        "lacking.csv": "no column amount",
        "absent.csv": "There is no file",
    }.items():
        error = refused(stream, tmp_path / name, "--out", out)
        assert isinstance(error, DataError)
        assert sentence in str(error)
    assert "cannot be written" in str(refused(stream, file, "--out", tmp_path / "nowhere" / "scores.csv"))
    assert out.read_text() == "what was there before"
    assert [path.name for path in folder.iterdir()] == ["scores.parquet"]
    assert score(stream, file, out)["rows"] == pl.read_parquet(out).height == 50


def test_wrong_use_is_told_before_anything_is_read(stream: Settings, tmp_path: Path) -> None:
    rows(5).write_csv(file := tmp_path / "new.csv")
    (tmp_path / "same.csv").symlink_to(file)
    for arguments in (
        (file, "--out", file),
        (file, "--out", tmp_path / "same.csv"),
        (file, "--out", tmp_path / "scores.xlsx"),
        (tmp_path / "new.txt", "--out", tmp_path / "scores.csv"),
        (file, "--out", tmp_path / "scores.csv", "--model", "0"),
        (file,),
    ):
        assert ecluse(stream, "score", *map(str, arguments)).exit_code == 2
    assert file.read_text().count("\n") == 6


def start(settings: Settings, file: Path, to: Path) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [ECLUSE, "score", file, "--out", to, "--config", config_file(settings), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_memory_does_not_grow_with_the_file(trained: Settings, tmp_path: Path) -> None:
    peaks = []
    for name, times in (("small", 10), ("large", 45)):
        file = tmp_path / f"{name}.parquet"
        pl.concat([rows(5_000)] * times).write_parquet(file)
        with start(trained, file, tmp_path / f"{name}.csv") as process:
            _, status, used = os.wait4(process.pid, 0)
            assert status == 0
            said = json.loads(process.stdout.read()) if process.stdout else {}
        assert said["rows"] == 5_000 * times
        peaks.append(used.ru_maxrss / 1024)
    # Of the 175,000 rows more, each would take some 1,500 bytes if it were kept.
    assert peaks[1] - peaks[0] < 100


def test_ctrl_c_leaves_nothing(trained: Settings, tmp_path: Path) -> None:
    pl.concat([rows(5_000)] * 60).write_parquet(file := tmp_path / "new.parquet")
    folder = tmp_path / "out"
    folder.mkdir()
    with start(trained, file, folder / "scores.parquet") as process:
        wait_until("a part of the results is written", lambda: any(folder.glob("*/*.parquet")))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == ""
    assert list(folder.iterdir()) == []

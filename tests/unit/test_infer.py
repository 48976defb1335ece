"""`ecluse init`: what a labelled file tells about a stream."""

import datetime as dt
import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from console.init import render
from console.main import app
from ecluse import tables
from ecluse.contract.schema import FieldType
from ecluse.errors import DataError
from ecluse.settings import Settings, load
from ingest.infer import Inferred, infer

SEED = 11
KEYS = (Path("private.pem"), Path("public.pem"))


def random() -> np.random.Generator:
    return np.random.default_rng(SEED)


def labels(rows: int, share: float = 0.2) -> np.ndarray:
    return random().random(rows) < share


def configure(path: Path, **named: str) -> tuple[Inferred, Settings]:
    """What `ecluse init` finds, and the settings that its file gives."""
    found = infer(path, **named)
    written = path.parent / "ecluse.toml"
    written.write_text(render(found, path, KEYS), encoding="utf-8")
    tomllib.loads(written.read_text(encoding="utf-8"))
    settings = load(written)
    every_row_is_an_event(path, settings)
    return found, settings


def every_row_is_an_event(path: Path, settings: Settings) -> None:
    schema = settings.stream.schema_of_events()
    for row in tables.collect(tables.scan(path), path).iter_rows(named=True):
        event = {name: row[name] for name in settings.stream.fields if row[name] is not None}
        schema.decode(msgspec.json.encode(event))


def types(settings: Settings) -> dict[str, str]:
    return {name: str(field.type) for name, field in settings.stream.fields.items()}


def note(found: Inferred, name: str) -> str:
    return next(column.note for column in found.columns if column.name == name)


def left_out(found: Inferred) -> set[str]:
    return {column.name for column in found.columns if column.use == "left out"}


def noisy(truth: np.ndarray) -> np.ndarray:
    """A number that helps to tell the label, and does not give it away."""
    return random().normal(size=len(truth)) + truth


def test_payments_with_id_time_and_key_need_no_flag(tmp_path: Path) -> None:
    truth = labels(600)
    start = dt.datetime(2024, 1, 1)
    pl.DataFrame(
        {
            "transactionId": [f"t{i}" for i in range(600)],
            "created at": [start + dt.timedelta(minutes=i) for i in range(600)],
            "customer_id": [i % 40 for i in range(600)],
            "amount": noisy(truth),
            "is_fraud": truth.astype(int),
        }
    ).write_parquet(tmp_path / "Card Payments (2024).parquet")
    found, settings = configure(tmp_path / "Card Payments (2024).parquet")
    stream = settings.stream
    assert (stream.name, stream.id_field, stream.time_field, stream.key_field) == (
        "card-payments-2024",
        "transactionId",
        "created at",
        "customer_id",
    )
    assert types(settings) == {"transactionId": "text", "created at": "time", "amount": "number"}
    assert (settings.model.label, settings.model.positive) == ("is_fraud", None)
    assert (found.rows, found.positives) == (600, int(truth.sum()))
    assert stream.visible == ("created at", "amount"), "text is never shown by default"


def test_no_key_no_time_text_with_blanks_and_a_label_of_words_from_a_semicolon_file(tmp_path: Path) -> None:
    truth = labels(300)
    path = tmp_path / "credit.csv"
    lines = ["Purpose;Job; income ;Housing;risk"]
    for i, (bad, income) in enumerate(zip(truth, noisy(truth), strict=True)):
        housing = "" if i % 7 == 0 else ("own", "rent")[i % 2]
        lines.append(
            f'"car; new";{i % 4};{"NA" if i % 11 == 0 else round(income, 3)};{housing};{"bad" if bad else "good"}'
        )
    path.write_text("\n".join(lines), encoding="utf-8")
    found, settings = configure(path, label="risk")
    assert types(settings) == {"Job": "integer", " income ": "number", "Housing": "text"}
    required = {name: field.required for name, field in settings.stream.fields.items()}
    assert required == {"Job": True, " income ": False, "Housing": False}
    assert settings.model.positive == "bad"
    assert found.positives == truth.sum()
    assert note(found, "Purpose") == "it is always car; new"
    stream = settings.stream
    assert (stream.id_field, stream.time_field, stream.key_field) == (None, None, None)


def test_json_lines_with_missing_fields_text_times_lists_and_a_boolean_label(tmp_path: Path) -> None:
    truth = labels(400)
    path = tmp_path / "données.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, (churned, usage) in enumerate(zip(truth, noisy(truth), strict=True)):
            row: dict[str, Any] = {"timestamp": f"2024-03-{1 + i % 28:02d}T10:00:00Z", "churn": bool(churned)}
            row |= {"user": f"u{i % 60}", "tags": ["a"], "remark": f"the customer number {i} said this and that"}
            row |= {"usage": usage} if i % 3 else {}
            row |= {"mobile": i % 5 == 0}
            file.write(json.dumps(row) + "\n")
    found, settings = configure(path)
    assert types(settings) == {"timestamp": "time", "usage": "number", "mobile": "boolean"}
    assert not settings.stream.fields["usage"].required
    stream = settings.stream
    assert (stream.name, stream.time_field, stream.key_field, stream.id_field) == ("donnees", "timestamp", "user", None)
    assert (settings.model.label, settings.model.positive) == ("churn", None)
    assert "lists or objects" in note(found, "tags")
    assert "free text" in note(found, "remark")


ODD_NAMES = ["a.b", "it's", "größe €", "del\x7f", "*", "^c0$", "#", "true", "f0", " ", "`tick`"]
NO_FIELD_NAMES = ['say "hi"', "back\\slash", "new\nline"]


def test_any_column_name_survives(tmp_path: Path) -> None:
    truth = labels(300)
    frame = pl.DataFrame({name: noisy(truth) + i for i, name in enumerate(ODD_NAMES + NO_FIELD_NAMES)})
    frame = frame.with_columns(pl.Series('"y"', truth.astype(float)), pl.Series("", noisy(truth)))
    frame.write_parquet(tmp_path / "---.parquet")
    found, settings = configure(tmp_path / "---.parquet", label='"y"')
    assert list(settings.stream.fields) == ODD_NAMES
    assert (settings.stream.name, settings.model.label) == ("stream", '"y"')
    assert left_out(found) == {*NO_FIELD_NAMES, ""}
    assert note(found, "") == "its name is empty"


def leaky(rows: int) -> pl.DataFrame:
    truth = labels(rows, 0.1)
    kinds = random().integers(1, 4, rows)
    return pl.DataFrame(
        {
            "amount": noisy(truth),
            "strong": random().normal(size=rows) + 2.5 * truth,
            "scenario": np.where(truth, kinds, 0),
            "refund": np.where(truth, random().random(rows) + 1, random().random(rows) / 2),
            "case_note": [f"case {i}" if fraud else None for i, fraud in enumerate(truth)],
            "fraud_reason": (np.arange(rows) % 5).astype(str),
            "label_known_at": [dt.datetime(2024, 1, 1 + i % 28) for i in range(rows)],
            "fraud": truth.astype(int),
        }
    )


def test_what_leaks_the_label_is_left_out_and_what_is_only_strong_stays(tmp_path: Path) -> None:
    leaky(2_000).write_parquet(tmp_path / "a.parquet")
    found, settings = configure(tmp_path / "a.parquet")
    assert list(settings.stream.fields) == ["amount", "strong"]
    assert settings.stream.time_field is None, "a time at which the label became known is no event time"
    for name in ("scenario", "refund", "fraud_reason"):
        assert note(found, name).startswith("LEAKS the label"), name
    assert '#   "scenario": LEAKS the label' in render(found, tmp_path / "a.parquet", KEYS)


def test_few_rows_prove_no_leak_so_a_perfect_number_stays_with_a_warning(tmp_path: Path) -> None:
    leaky(150).drop("scenario", "fraud_reason", "label_known_at").write_parquet(tmp_path / "a.parquet")
    found, settings = configure(tmp_path / "a.parquet")
    assert "refund" in settings.stream.fields
    assert note(found, "refund").startswith("CHECK")


def test_good_inputs_of_balanced_classes_raise_no_alarm(tmp_path: Path) -> None:
    truth = labels(600, 0.6)
    pl.DataFrame({"x": random().normal(size=600) + 2.3 * truth, "label": truth}).write_parquet(tmp_path / "a.parquet")
    found, _ = configure(tmp_path / "a.parquet")
    assert note(found, "x") == ""
    pl.DataFrame({"x": np.arange(500.0), "label": np.arange(500) > 497}).write_parquet(tmp_path / "b.parquet")
    found, _ = configure(tmp_path / "b.parquet")
    assert note(found, "x") == "", "two positives say nothing"


@pytest.mark.parametrize("values", [("setosa", "versicolor", "virginica"), (0, 1, 2)])
def test_three_classes_are_refused_with_a_sentence(tmp_path: Path, values: tuple[Any, ...]) -> None:
    pl.DataFrame({"x": np.arange(90.0), "class": [values[i % 3] for i in range(90)]}).write_csv(tmp_path / "iris.csv")
    shown = ", ".join(map(str, values))
    with pytest.raises(DataError, match=rf"The label 'class' has 3 different values \({shown}\), .* exactly two"):
        infer(tmp_path / "iris.csv")


def test_a_label_that_is_not_clear_is_asked_for(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1, 2, 3, 4], "fraud": [0, 1, 0, 1], "target": [0, 0, 0, 1]}).write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"could be the label: 'fraud', 'target'. Say which with --label"):
        infer(tmp_path / "a.csv")
    pl.DataFrame({"x": [1, 2, 2, 9], "night": [0, 1, 0, 1]}).write_csv(tmp_path / "b.csv")
    with pytest.raises(DataError, match="--label COLUMN; these have two values: 'night'"):
        infer(tmp_path / "b.csv")
    assert infer(tmp_path / "b.csv", label="night").label == "night"
    with pytest.raises(DataError, match=r"no column 'nothing'. Its columns are 'x', 'night'"):
        infer(tmp_path / "b.csv", label="nothing")


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (["yes", "no", "no", "yes", "yes"], "yes"),
        (["legit", "odd", "legit", "odd", "odd"], "odd"),
        (["blue", "red", "blue", "blue", "red"], "red"),
        ([1, -1, 1, 1, -1], "1"),
        ([1, 2, 1, 1, 2], "2"),
        ([True, False, True, True, True], None),
        ([1.0, 0.0, 1.0, 1.0, 0.0], None),
        (["0", "1", "0", "0", "1"], "1"),
        ([None, "N", "Y", "Y", "Y"], "Y"),
    ],
)
def test_the_positive_value_is_the_obvious_one_else_the_rarer(
    tmp_path: Path, values: list[Any], positive: str | None
) -> None:
    pl.DataFrame({"x": np.arange(50.0) % 7, "label": values * 10}).write_parquet(tmp_path / "a.parquet")
    found, settings = configure(tmp_path / "a.parquet")
    assert settings.model.positive == positive
    meant = 1 if positive is None else type(values[-1])(positive)
    assert found.positives == 10 * values.count(meant)
    assert found.unlabelled == 10 * values.count(None)


def test_alerts_are_budgeted_by_how_common_positives_are(tmp_path: Path) -> None:
    for share, alerts, blocks in ((0.005, 0.005, 0.001), (0.2, 0.2, 0.04), (0.9, 0.5, 0.1)):
        truth = np.arange(1_000) < 1_000 * share
        pl.DataFrame({"x": noisy(truth), "label": truth}).write_parquet(tmp_path / "a.parquet")
        _, settings = configure(tmp_path / "a.parquet")
        assert (settings.thresholds.alert_budget, settings.thresholds.block_budget) == (alerts, blocks)


def test_the_flags_stand_over_what_would_be_inferred(tmp_path: Path) -> None:
    rows = 200
    pl.DataFrame(
        {
            "id": np.arange(rows) + 5_000,
            "ref": [f"r{i}" for i in range(rows)],
            "time": np.arange(rows) + 1_700_000_000,
            "when": np.arange(rows) + 1_700_000_000_000,
            "card": np.arange(rows) % 60,
            "shop": np.arange(rows) % 3,
            "x": np.arange(rows) % 17,
            "label": np.arange(rows) % 2,
            "bad": np.arange(rows) % 3 == 0,
        }
    ).write_parquet(tmp_path / "a.parquet")
    named = {"label": "bad", "id": "ref", "time": "when", "key": "shop", "name": "mine"}
    found, settings = configure(tmp_path / "a.parquet", **named)
    assert (found.label, found.id, found.time, found.key, found.name) == tuple(named.values())
    assert settings.stream.fields["when"].type is FieldType.TIME
    inferred, _ = configure(tmp_path / "a.parquet", label="bad")
    assert (inferred.id, inferred.time, inferred.key) == ("id", "time", "card")
    for flag, column in (("time", "x"), ("id", "bad"), ("key", "bad")):
        with pytest.raises(DataError, match=f"'{column}'"):
            infer(tmp_path / "a.parquet", label="bad", **{flag: column})


def test_what_a_model_cannot_use_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = 400
    day = dt.date(2024, 1, 1)
    pl.DataFrame(
        {
            "Unnamed: 0": np.arange(rows),
            "date": [day + dt.timedelta(days=i // 10) for i in range(rows)],
            "birth_date": [day - dt.timedelta(days=9_000 + i) for i in range(rows)],
            "terminal_id": np.arange(rows) % 100,
            "country": ["FR"] * rows,
            "empty": [None] * rows,
            "price": np.where(np.arange(rows) % 9 == 0, np.inf, noisy(labels(rows))),
            "huge": pl.Series(range(2**63, 2**63 + rows), dtype=pl.UInt64),
            "clock": [dt.time(i % 24) for i in range(rows)],
            "label": labels(rows).astype(int),
        }
    ).write_parquet(tmp_path / "a.parquet")
    found, settings = configure(tmp_path / "a.parquet")
    assert types(settings) == {"date": "time", "price": "number"}
    assert not settings.stream.fields["price"].required, "JSON carries no infinity"
    assert found.key == "terminal_id"
    assert left_out(found) == {"Unnamed: 0", "birth_date", "country", "empty", "huge", "clock"}
    assert all(note(found, name) for name in left_out(found))


def test_a_text_of_its_own_on_every_row_may_be_the_id(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [f"tx-{i},{i % 7},{i % 2}" for i in range(400)]
    path.write_text("\n".join(["tx,amount,label", *rows]) + "\n")
    found, settings = configure(path)
    assert settings.stream.id_field is None
    assert "--id" in note(found, "tx")


def test_nothing_to_learn_from_no_rows_and_no_file_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,label\n1,0\n2,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column that a model could learn from"):
        infer(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("id,label\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no rows"):
        infer(tmp_path / "b.csv")
    (tmp_path / "c.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="cannot be read"):
        infer(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="There is no file"):
        infer(tmp_path / "d.csv")


def test_the_command_writes_the_file_once_and_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leaky(2_000).write_csv("payments.csv")
    shown = CliRunner().invoke(app, ["init", "payments.csv"])
    assert shown.exit_code == 0, shown.output
    assert "LEAKS" in shown.output
    assert "ecluse model train payments.csv" in shown.output
    assert load(Path("ecluse.toml")).stream.name == "payments"
    model = load(Path("ecluse.toml")).model
    assert model.signing_key == Path(".ecluse/keys/development.key.pem"), "beside the file, as the store is"
    assert model.signing_key.stat().st_mode & 0o077 == 0
    before = model.signing_key.read_bytes()
    again = CliRunner().invoke(app, ["init", "payments.csv"])
    assert again.exit_code == 1
    assert "--force" in again.output
    printed = CliRunner().invoke(app, ["init", "payments.csv", "--force", "--json", "--name", "other"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["stream"]["label"] == "fraud"
    assert load(Path("ecluse.toml")).stream.name == "other"
    assert model.signing_key.read_bytes() == before, "what was signed before is still trusted"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    leaky(2_000).write_csv(tmp_path / "payments.csv")
    shown = CliRunner().invoke(
        app, ["init", str(tmp_path / "payments.csv"), "--config", str(tmp_path / "no" / "x.toml")]
    )
    assert shown.exit_code == 1 and "cannot be written: No such file or directory." in shown.output

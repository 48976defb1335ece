from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from console.main import app
from ecluse.contract.records import Arm
from ecluse.errors import ModelRefused, TopicsWrong
from ecluse.model.artefact import load_model
from ecluse.model.manifest import Manifest
from ecluse.model.registry import read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.training import train_and_publish
from tests.conftest import MakeSettings

SEED = 20180401


def labelled(folder: Path, rows: int = 1500) -> Path:
    """Transactions of which the large ones at risky terminals are mostly fraud."""
    random = np.random.default_rng(SEED)
    amount, risk = random.gamma(2.0, 30.0, rows), random.random(rows)
    fraud = (amount * risk + random.normal(0, 10, rows)) > 100
    times = pl.datetime_range(pl.datetime(2026, 1, 1), pl.datetime(2026, 3, 5), "1h", eager=True)[:rows]
    path = folder / "labelled.parquet"
    pl.DataFrame(
        {
            "transaction_id": [f"t{i}" for i in range(rows)],
            "time": times,
            "customer_id": [f"c{i % 50}" for i in range(rows)],
            "amount": amount,
            "terminal_risk_30d": risk,
            "night": (random.random(rows) < 0.2).astype(int),
            "fraud": fraud.astype(int),
            "fraud_scenario": fraud.astype(int) * 2,
        }
    ).write_parquet(path)
    return path


def test_training_releases_a_model_that_workers_can_load_and_makes_it_champion(
    stream: Settings, tmp_path: Path
) -> None:
    file = labelled(tmp_path)
    manifest, revision = train_and_publish(stream, file)
    registry = read_registry(stream)
    routed = registry.routes[stream.model_name]
    assert routed.revision == revision
    assert routed.route.champion == Arm("champion", 1, manifest.thresholds)
    assert manifest.metrics["average_precision"] > 0.8
    assert manifest.metrics["alert_share"] <= stream.thresholds.alert_budget
    assert manifest.metrics["rows"] == 300 and manifest.training["rows"] == 1200
    assert manifest.training["span"][1] < manifest.training["held_out_span"][0]
    assert [feature.name for feature in manifest.features] == ["amount", "terminal_risk_30d", "night"]
    assert manifest.training["left_out"] == {"transaction_id": "the id", "time": "the time", "customer_id": "the key"}

    schema = stream.stream.schema_of_events()
    model = load_model(stream, 1, registry.releases[stream.model_name, 1])
    rows = pl.read_parquet(file)
    events = [schema.decode(msgspec.json.encode(row)) for row in rows.drop("fraud").to_dicts()]
    scores = model.score(model.features.matrix(events))
    assert scores[rows["fraud"].to_numpy() == 1].mean() > 10 * scores[rows["fraud"].to_numpy() == 0].mean()


def test_the_next_training_has_the_next_version_even_in_an_empty_store(stream: Settings, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "from sklearn.ensemble import RandomForestClassifier\n\n\ndef train(frame, features):\n"
        "    return RandomForestClassifier(5).fit(frame.select(features).to_numpy(), frame['label'].to_numpy())\n"
    )
    file = labelled(tmp_path)
    here, there = (
        stream.model_copy(
            update={
                "model": stream.model.model_copy(update={"script": f"{script}:train", "store": str(tmp_path / store)})
            }
        )
        for store in ("here", "there")
    )
    first, revision = train_and_publish(here, file)
    second, later = train_and_publish(there, file)
    assert (first.version, second.version) == (1, 2)
    assert later > revision
    registry = read_registry(stream)
    assert registry.routes[stream.model_name].route.champion.version == 2
    assert sorted(registry.releases) == [(stream.model_name, 1), (stream.model_name, 2)]
    assert first.files == second.files, "the same rows and the same seed give the same model, byte for byte"


def test_a_script_that_fails_publishes_nothing(stream: Settings, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text("def train(frame, features):\n    raise ValueError('too few frauds')\n")
    model = stream.model.model_copy(update={"script": f"{script}:train"})
    with pytest.raises(ModelRefused, match="too few frauds"):
        train_and_publish(stream.model_copy(update={"model": model}), labelled(tmp_path))
    assert read_registry(stream).releases == {}
    assert ModelStore.of(stream).versions(stream.model_name) == []


def test_training_begins_only_where_its_topic_is(servers: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(TopicsWrong, match=r"models is missing: `ecluse topics create` makes it"):
        train_and_publish(make_settings(servers), tmp_path / "need not be there")


def test_the_command_prints_the_summary_and_as_json_the_manifest(
    stream: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", stream.kafka.bootstrap_servers)
    config = tmp_path / "ecluse.toml"
    config.write_text(
        f'[stream]\nname = "{stream.stream.name}"\ntime_field = "time"\n'
        '[stream.fields]\ntime = "time"\namount = "number"\nterminal_risk_30d = "number"\n'
        f'[model]\nlabel = "fraud"\nstore = "{tmp_path}/models"\nsigning_key = "{stream.model.signing_key}"\n'
        "[topics]\npartitions = 4\n"
    )
    arguments = ["model", "train", str(labelled(tmp_path)), "-c", str(config), "--since", "2026-01-02"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "version 1, champion" in shown.stdout and "seed" in shown.stdout
    assert "Training" in shown.stderr and "Training" not in shown.stdout
    printed = CliRunner().invoke(app, [*arguments, "--holdout-since", "2026-02-01", "--json"], catch_exceptions=False)
    answer = msgspec.json.decode(printed.stdout)
    assert answer["manifest"]["version"] == 2
    assert answer["manifest"]["training"]["held_out_span"][0].startswith("2026-02-01")

    def outrun(*_: object) -> tuple[Manifest, None]:
        return msgspec.convert(answer["manifest"], Manifest), None

    monkeypatch.setattr("retrain.training.train_and_publish", outrun)
    late = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "version 2, released; a newer version is champion already" in " ".join(late.stdout.split())

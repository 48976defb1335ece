"""`ecluse trainer` on a real broker: from a request to a signed challenger, by topics alone, by real processes."""

import json
import random
from pathlib import Path

import pytest

from ecluse import cluster
from ecluse.contract.loop import RunState
from ecluse.model.artefact import load_model
from ecluse.model.manifest import Manifest
from ecluse.model.registry import read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.manifests import SetManifest
from retrain.study.report import Study
from tests.cli import ecluse
from tests.conftest import MakeSettings
from tests.trainers import (
    CUTOFF,
    ask,
    request,
    require_whole,
    runs,
    script,
    trainer,
    wait_finished,
    with_past,
)
from tests.workers import wait_until

#: A script that draws by chance, of generators that it does not set.
BY_CHANCE = """
import random
import numpy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

def train(frame, features):
    print("drawn", random.random())
    rows, labels = frame.select(features).to_numpy(), frame["label"].to_numpy()
    weights = frame["weight"].to_numpy() * numpy.random.random(len(rows))
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels, logisticregression__sample_weight=weights)

def candidates(features):
    return {"only": train}
"""
#: What it does is in a file beside it.
BY_MOOD = """
import os, pathlib, sys, time
MOOD = pathlib.Path(__file__).with_name("mood")

def train(frame, features):
    mood = MOOD.read_text()
    if mood == "raise":
        raise ValueError("too few frauds for me")
    if mood == "nonsense":
        return "a model, surely"
    if mood == "memory":
        held = []
        while True:
            held.append(bytearray(os.urandom(2**20)) * 8)
            time.sleep(0.01)
    if mood == "close":
        os.closerange(0, 64)
        time.sleep(600)

def candidates(features):
    return {"only": train}
"""

#: On a busy machine each training process takes its time to start.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream with a past in its store, and a script that is quick."""
    made = make_settings(
        servers,
        labels={"maturity_hours": 24.0},
        store={"url": str(tmp_path / "store")},
        trainer={"runs": tmp_path / "runs", "time_limit_minutes": 2.0},
        study={"bootstrap": 100},
        worker={"session_timeout_seconds": 1.0},
    )
    cluster.create_topics(made)
    with_past(made)
    return script(made, tmp_path)


def manifest_of(settings: Settings, version: int | None) -> Manifest:
    assert version is not None
    digest = read_registry(settings).releases[settings.model_name, version].manifest_sha256
    return ModelStore.of(settings).manifest(settings.model_name, version, digest)


def test_a_request_becomes_a_signed_challenger_that_a_person_may_promote(settings: Settings, tmp_path: Path) -> None:
    settings = script(settings, tmp_path, BY_CHANCE)
    settings = settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"seed": 7})})
    ask(settings, request(settings, "person-0"), request(settings, "person-1", reason="it drifts"))
    ask(settings, request(settings, "other-1", model="other"))
    with trainer(settings) as running:
        first = wait_finished(settings, ["person-1"], [running])["person-1"]
        assert first.state is RunState.PUBLISHED, running.text
        picture = tmp_path / "runs" / "person-1" / "study.png"
        wait_until("the study is drawn", lambda: picture.exists() and picture.read_bytes().startswith(b"\x89PNG"))
        wait_until("the merged one is told", lambda: "person-0: answered with person-1" in running.text)
        page = running.get("/metrics")[1]
        assert 'ecluse_trainer_runs_total{state="published"} 1.0' in page and "ecluse_trainer_elected 1.0" in page
        assert running.get("/health/ready")[0] == running.get("/health/live")[0] == 200
        assert running.stop() == 0
    assert "person-1: version 2 is released; `ecluse model promote 2` makes it the champion" in running.text

    registry, made = read_registry(settings), manifest_of(settings, first.version)
    assert registry.routes == {} and set(runs(settings)) == {"person-0", "person-1"}
    require_whole(settings, registry)
    load_model(settings, 2, registry.releases[settings.model_name, 2])
    folder = tmp_path / "runs" / "person-1"
    built = SetManifest.read(folder / "set.json")
    assert made.training["request"] == {
        "id": "person-1",
        "asker": "person",
        "reason": "it drifts",
        "cutoff": CUTOFF,
    }
    assert made.training["set"] == {"sha256": built.sha256, "manifest": f"datasets/{built.sha256}.json"}
    assert (tmp_path / "store" / "datasets" / f"{built.sha256}.json").is_file()
    assert made.training["seed"] == 7 and len(made.training["script_sha256"]) == 64
    assert f"drawn {random.Random(7).random()}" in (folder / "run.log").read_text(), "the seed reaches the script"
    assert made.training["study"]["picked"] == Study.read(folder / "study.json").picked == "only"
    assert "study.json" in made.files and made.libraries["scikit-learn"]
    assert "Publishing only" in (folder / "run.log").read_text()
    assert not list(folder.glob("draft-*"))

    promoted = ecluse(settings, "model", "promote", "2")
    assert promoted.exit_code == 0, promoted.output
    assert read_registry(settings).routes[settings.model_name].route.champion.version == 2


def test_told_to_train_once_it_exits_with_1_where_a_run_failed(settings: Settings) -> None:
    ask(settings, request(settings, "person-1", cutoff=0.0))
    failed = ecluse(settings, "trainer", "--once", "--json")
    assert failed.exit_code == 1
    told = json.loads(failed.stdout)
    assert (told["request"], told["state"]) == ("person-1", "failed")
    assert "holds no events as of 1970-01-01" in told["reason"]
    assert ecluse(settings, "trainer", "--once").exit_code == 0


def test_a_script_that_goes_wrong_ends_in_a_failed_run_with_its_reason_and_in_nothing_else(
    settings: Settings, tmp_path: Path
) -> None:
    limited = settings.trainer.model_copy(update={"memory_limit_mb": 700})
    settings = script(settings.model_copy(update={"trainer": limited}), tmp_path, BY_MOOD)
    reasons = {
        "raise": "ValueError: too few frauds for me (own.py line 8: raise ValueError",
        "nonsense": "returned str, which has no predict_proba: a fitted classifier is needed",
        "memory": "may take 700 MiB of memory (trainer.memory_limit_mb",
        "close": "closed its pipe before it was done",
    }
    with trainer(settings) as running:
        for mood, reason in reasons.items():
            (tmp_path / "mood").write_text(mood)
            ask(settings, request(settings, f"person-{mood}"))
            told = wait_finished(settings, [f"person-{mood}"], [running])[f"person-{mood}"]
            assert told.state is RunState.FAILED and reason in told.reason, (told, running.text)
        assert running.stop() == 0
    registry = read_registry(settings)
    assert registry.releases == {} and registry.routes == {}


def test_two_trainers_train_each_request_once_and_the_same_inputs_give_the_same_model(
    settings: Settings, tmp_path: Path
) -> None:
    settings = script(settings, tmp_path, BY_CHANCE)
    ask(settings, request(settings, "person-1"))
    with trainer(settings) as first, trainer(settings) as second:
        wait_until("the first is trained", lambda: "person-1" in runs(settings))
        ask(settings, request(settings, "person-2"))
        told = wait_finished(settings, ["person-1", "person-2"], [first, second])
        wait_until("one stands by", lambda: any("another trainer is elected" in each.text for each in (first, second)))
        assert [each.stop() for each in (first, second)] == [0, 0]
    assert [told[f"person-{number}"].state for number in (1, 2)] == [RunState.PUBLISHED] * 2
    assert len(read_registry(settings).releases) == 2
    first_made, second_made = (manifest_of(settings, told[f"person-{number}"].version) for number in (1, 2))
    assert first_made.files["model.onnx"] == second_made.files["model.onnx"]

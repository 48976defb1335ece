"""What stands around a training: requests that are merged, runs that fail, and a trainer that ends at any step."""

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from ecluse import cluster
from ecluse.contract.loop import Asker, RunState
from ecluse.errors import BrokerUnreachable, ModelRefused, NothingToLearn, SettingsError, StoreConflict
from ecluse.model import routes
from ecluse.model.artefact import verified
from ecluse.model.registry import read_registry
from ecluse.model.routes import record_run
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.manifests import SetManifest
from retrain.trainer import loop, run
from tests.conftest import MakeSettings
from tests.stores import at
from tests.trainers import FakeChild, ask, request, require_whole, runs, train_once, with_past
from tests.unit.artefacts import with_model


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream with a past in its store."""
    made = make_settings(
        servers,
        labels={"maturity_hours": 24.0},
        store={"url": str(tmp_path / "store")},
        trainer={"runs": tmp_path / "runs"},
    )
    cluster.create_topics(made)
    with_past(made, rows=40)
    return made


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> FakeChild:
    """No training: a draft at once."""
    made = FakeChild()
    monkeypatch.setattr("retrain.process.run", made)
    return made


def test_requests_that_wait_together_are_merged_into_the_newest_drift(settings: Settings, child: FakeChild) -> None:
    drift = (Asker.DRIFT, "drift-1-60", "drift-1-120")
    ask(
        settings,
        request(settings, "person-1"),
        *(request(settings, id, drift[0]) for id in drift[1:]),
        request(settings, "schedule-1", Asker.SCHEDULE),
        request(settings, "drift-1-120", Asker.DRIFT, reason="told twice"),
        request(settings, "person-9", model="other"),
    )
    sound, told = train_once(settings)
    assert sound and child.drafted == 1
    assert [each.request for each in told] == ["drift-1-120", "person-1", "drift-1-60", "schedule-1"]
    found = runs(settings)
    assert set(found) == {each.request for each in told}, "what is asked of another model is not ours"
    assert found["drift-1-120"].state is RunState.PUBLISHED and found["drift-1-120"].version == 2
    for id in ("person-1", "drift-1-60", "schedule-1"):
        assert (found[id].state, found[id].into, found[id].version) == (RunState.MERGED, "drift-1-120", None)
    assert train_once(settings) == (True, []), "what has its answer is not trained again"


def test_a_request_for_what_cannot_be_built_fails_with_the_reason_and_is_not_tried_again(
    settings: Settings, child: FakeChild
) -> None:
    ask(settings, request(settings, "person-1", cutoff=at(20.0).timestamp()))
    sound, told = train_once(settings)
    assert not sound and told[0].state is RunState.FAILED
    assert "events is mature as of 2026-01-05 20:00:00 UTC: outcomes count as known 24 h" in told[0].reason
    assert runs(settings)["person-1"] == told[0]
    assert train_once(settings) == (True, [])
    assert child.drafted == 0 and read_registry(settings).releases == {}


def test_what_is_wrong_with_one_request_alone_answers_no_other(settings: Settings, child: FakeChild) -> None:
    ask(
        settings,
        request(settings, "person-1"),
        request(settings, "person-2", cutoff=at(20.0).timestamp()),
    )
    sound, told = train_once(settings)
    assert not sound
    assert [(each.request, each.state) for each in told] == [
        ("person-2", RunState.FAILED),
        ("person-1", RunState.PUBLISHED),
    ]
    assert child.drafted == 1


@pytest.mark.parametrize("cutoff", [at(0.0).timestamp() * 1000, 1e20, float("nan")])
def test_a_cut_off_that_is_no_time_fails_with_a_sentence(settings: Settings, child: FakeChild, cutoff: float) -> None:
    settings = settings.model_copy(update={"stream": settings.stream.model_copy(update={"clock": "event"})})
    ask(settings, request(settings, "person-1"), request(settings, "person-2", cutoff=cutoff))
    _, told = train_once(settings)
    assert [(each.request, each.state) for each in told] == [
        ("person-2", RunState.FAILED),
        ("person-1", RunState.PUBLISHED),
    ]
    assert "is no time: seconds since 1970 were expected" in told[0].reason
    assert child.drafted == 1


def test_too_few_positives_as_of_one_request_answer_no_other(settings: Settings, child: FakeChild) -> None:
    child.fails = NothingToLearn("The 40 rows to train on hold 0 positive labels; each part needs both classes.")
    ask(settings, request(settings, "person-1"), request(settings, "person-2"))
    _, told = train_once(settings)
    assert [(each.request, each.state) for each in told] == [
        ("person-2", RunState.FAILED),
        ("person-1", RunState.FAILED),
    ]


def test_a_failure_of_the_training_is_the_runs_reason_and_nothing_else_happens(
    settings: Settings, child: FakeChild
) -> None:
    child.fails = ModelRefused("The training script own.py:train failed: ValueError: no luck. Nothing was published.")
    ask(settings, request(settings, "person-1"), request(settings, "person-2"))
    sound, told = train_once(settings)
    assert not sound
    assert [(each.request, each.state) for each in told] == [
        ("person-2", RunState.FAILED),
        ("person-1", RunState.MERGED),
    ]
    assert told[0].reason == str(child.fails)
    assert "ended: The training script own.py:train failed" in Path(told[0].log).read_text()
    registry = read_registry(settings)
    assert (registry.releases, registry.routes) == ({}, {})
    assert ModelStore.of(settings).versions(settings.model_name) == [1], "the one that decided in the past"


def test_an_id_that_is_no_name_for_a_folder_fails(settings: Settings, child: FakeChild, tmp_path: Path) -> None:
    ask(settings, request(settings, "../../outside"))
    sound, told = train_once(settings)
    assert not sound and "'../../outside' is no name for a folder" in told[0].reason
    assert child.drafted == 0 and not (tmp_path.parent / "outside").exists()


def test_a_request_whose_id_fits_into_no_record_keeps_nobody_waiting(
    settings: Settings, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_ONCE_SECONDS", 5.0)
    ask(settings, request(settings, "person-1"), request(settings, random.Random(1).randbytes(300_000).hex()))
    sound, told = train_once(settings)
    assert sound and [each.request for each in told] == ["person-1"]


def test_a_key_that_went_missing_and_a_store_that_cannot_be_written_fail_the_run(
    settings: Settings, child: FakeChild, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"model\.signing_key is not set"):
        train_once(with_model(settings, signing_key=None))
    key = tmp_path / "own.key.pem"
    assert settings.model.signing_key is not None
    key.write_bytes(settings.model.signing_key.read_bytes())
    child.while_training = key.unlink
    ask(settings, request(settings, "person-1"))
    sound, (told,) = train_once(with_model(settings, signing_key=key))
    assert not sound and f"The key {key} cannot be read" in told.reason
    claims = tmp_path / "models" / settings.model_name / "claims"
    claims.rename(tmp_path / "gone")
    claims.write_text("no folder")
    ask(settings, request(settings, "person-2"))
    child.while_training = lambda: None
    sound, (told,) = train_once(settings)
    assert not sound and "The model store" in told.reason and "cannot be written" in told.reason
    assert read_registry(settings).releases == {}


def test_trouble_that_passes_is_waited_out(
    settings: Settings, child: FakeChild, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ecluse.kafka.LOOK_FOR_BROKER", 0.01)
    troubles = {
        "build": [StoreConflict("here", "another writer has come before.")],
        "record_run": [BrokerUnreachable("there"), BrokerUnreachable("there")],
    }

    def troubled(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            if troubles[name]:
                raise troubles[name].pop()
            return call(*args, **more)

        return called

    monkeypatch.setattr(run, "build", troubled("build", run.build))
    monkeypatch.setattr(loop, "record_run", troubled("record_run", record_run))
    ask(settings, request(settings, "person-1"))
    with caplog.at_level(logging.WARNING):
        sound, (told,) = train_once(settings)
    assert sound and told.state is RunState.PUBLISHED
    assert child.drafted == 1 and caplog.text.count("It is waited for.") == 3


class Killed(BaseException):
    """The end of a process, at a step."""


def _ends(before: bool, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **more: Any) -> Any:
        if before:
            raise Killed
        call(*args, **more)
        raise Killed

    return called


def test_a_trainer_that_loses_the_election_while_it_looks_for_requests_goes_on(
    settings: Settings, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, lost = loop.Trainer._registry, [loop.Superseded("Another trainer is elected.")]

    def looked(trainer: loop.Trainer) -> Any:
        if lost:
            raise lost.pop()
        return look(trainer)

    monkeypatch.setattr(loop.Trainer, "_registry", looked)
    ask(settings, request(settings, "person-1"))
    sound, (told,) = train_once(settings)
    assert sound and told.state is RunState.PUBLISHED and not lost


@pytest.mark.parametrize(
    ("where", "what", "before", "released", "version"),
    [
        (loop, "record_run", False, 0, 2),
        (run, "build", False, 0, 2),
        (run, "store_draft", True, 0, 2),
        (run, "store_draft", False, 0, 3),  # a version that nobody knows of is left, and its number is skipped
    ],
    ids=["run-written", "set-built", "draft-made", "artefact-stored"],
)
def test_a_trainer_that_ends_at_a_step_leaves_the_request_open_and_no_half_model(
    settings: Settings,
    child: FakeChild,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    what: str,
    before: bool,
    released: int,
    version: int,
) -> None:
    ask(settings, request(settings, "person-1"))
    with monkeypatch.context() as patch:
        patch.setattr(where, what, _ends(before, getattr(where, what)))
        with pytest.raises(Killed):
            train_once(settings)
    assert len(read_registry(settings).releases) == released
    assert runs(settings)["person-1"].state is RunState.TRAINING
    sound, (told,) = train_once(settings)
    registry = read_registry(settings)
    assert sound and told.version == version
    assert set(registry.releases) == {(settings.model_name, version)} and registry.routes == {}
    require_whole(settings, registry)


def test_a_trainer_that_ends_right_after_its_publication_does_not_train_again(
    settings: Settings, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(settings, request(settings, "person-1"))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_finish", _ends(False, loop.Trainer._finish))
        with pytest.raises(Killed):
            train_once(settings)
    assert train_once(settings) == (True, [])
    assert child.drafted == 1
    assert verified(settings, 2, read_registry(settings).releases[settings.model_name, 2])


def test_a_trainer_that_is_not_told_of_its_publication_finds_it(
    settings: Settings, child: FakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecluse.kafka.LOOK_FOR_BROKER", 0.01)
    lost: list[bool] = []

    class Forgetful(Producer):
        """The answer to its commit is lost, and what was written cannot be looked up at once either."""

        def commit_transaction(self, *timeout: float) -> None:
            super().commit_transaction(*timeout)
            if lost:
                lost.pop()
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "lost"))

    monkeypatch.setattr(routes, "Producer", Forgetful)
    child.while_training = lambda: lost.append(True)
    ask(settings, request(settings, "person-1"), request(settings, "person-2"))
    sound, told = train_once(settings)
    assert not lost and sound and [each.state for each in told] == [RunState.PUBLISHED, RunState.MERGED]
    assert runs(settings) == {each.request: each for each in told}
    assert list(read_registry(settings).releases) == [(settings.model_name, 2)]


def test_a_cut_off_by_a_clock_that_is_ahead_of_the_trainers_means_now(settings: Settings, child: FakeChild) -> None:
    ask(settings, request(settings, "person-1", cutoff=time.time() + 3600))
    sound, (told,) = train_once(settings)
    assert sound and told.version == 2
    built = msgspec.json.decode(Path(told.log).with_name("set.json").read_bytes(), type=SetManifest)
    assert told.started_at <= built.recipe.as_of.timestamp() <= time.time()


def test_who_finds_the_request_taken_up_by_another_publishes_nothing(settings: Settings, child: FakeChild) -> None:
    ask(settings, request(settings, "person-1"))

    def take() -> None:
        """As a trainer does that was elected because this one hung."""
        ours = runs(settings)["person-1"]
        other = type(ours)(
            name=ours.name, request=ours.request, state=RunState.PUBLISHED, trainer="other", started_at=1.0, version=7
        )
        assert record_run(settings, other)
        assert not record_run(settings, ours, ours=ours), "nor does the topic take it"

    child.while_training = take
    assert train_once(settings) == (True, [])
    registry = read_registry(settings)
    assert child.drafted == 0 and registry.releases == {}
    assert registry.runs[settings.model_name, "person-1"].trainer == "other"

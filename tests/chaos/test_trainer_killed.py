"""Trainers are killed and frozen while requests wait: each has one answer, and every release is whole."""

import random
import signal
from pathlib import Path

import pytest

from ecluse import cluster
from ecluse.contract.loop import RunState
from ecluse.model.registry import read_registry
from ecluse.settings import Settings
from tests.chaos.conftest import SEED, Variant
from tests.conftest import MakeSettings
from tests.trainers import (
    ask,
    kill_again_and_again,
    request,
    require_whole,
    runs,
    script,
    start_trainer,
    trainer,
    wait_finished,
    with_past,
)
from tests.workers import DEADLINE, wait_until

pytestmark = pytest.mark.timeout(600)
KILLS, REQUESTS = 5, 3


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream with a past in its store, and a script that is quick."""
    made = make_settings(
        servers,
        labels={"maturity_hours": 24.0},
        store={"url": str(tmp_path / "store")},
        trainer={"runs": tmp_path / "runs"},
        study={"bootstrap": 100},
        worker={"session_timeout_seconds": 1.0},
    )
    cluster.create_topics(made)
    with_past(made)
    return script(made, tmp_path)


@pytest.mark.chaos(seconds=120)
def test_a_trainer_is_killed_fifteen_times_and_each_request_has_one_answer(
    settings: Settings, variant: Variant, request_seed: str
) -> None:
    """Five times for each of three requests, of which the trainer knows one at a time."""
    chance, ids = random.Random(f"{request_seed}/trainer"), [f"person-{number}" for number in range(REQUESTS)]
    killed = 0
    for id in ids:
        ask(settings, request(settings, id))
        killed += kill_again_and_again(settings, chance, [id], KILLS)
        with trainer(settings) as running:
            wait_finished(settings, [id], [running])
    assert killed > REQUESTS * (KILLS - 2), "requests were answered before they had met the kills"
    require_one_answer_each(settings, ids)


@pytest.mark.chaos(seconds=60)
def test_a_trainer_that_is_frozen_while_it_trains_wakes_and_publishes_nothing(
    settings: Settings, variant: Variant
) -> None:
    """The other has trained the request meanwhile."""
    ask(settings, request(settings, "person-1"))
    frozen = start_trainer(settings)
    try:
        wait_until("it trains", lambda: "Candidate" in frozen.text)
        frozen.process.send_signal(signal.SIGSTOP)
        with trainer(settings) as other:
            wait_finished(settings, ["person-1"], [other])
            frozen.process.send_signal(signal.SIGCONT)
            wait_until("the woken one knows", lambda: "Nothing was published" in frozen.text)
            assert frozen.stop() == 0
    finally:
        frozen.process.kill()
        frozen.process.wait(DEADLINE)
    require_one_answer_each(settings, ["person-1"])


@pytest.fixture
def request_seed(pytestconfig: pytest.Config) -> str:
    """The seed of the run, which its header tells."""
    return pytestconfig.stash[SEED]


def require_one_answer_each(settings: Settings, ids: list[str]) -> None:
    """Each request was published, by a release of its own that is whole, and no route was written."""
    registry, told = read_registry(settings), runs(settings)
    assert [told[id].state for id in ids] == [RunState.PUBLISHED] * len(ids)
    assert sorted(version for _, version in registry.releases) == sorted(told[id].version or 0 for id in ids)
    assert registry.routes == {}
    require_whole(settings, registry)

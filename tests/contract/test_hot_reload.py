"""The champion changes while events flow: nothing is lost or doubled, and each prediction is of the version that it names."""

import re
from pathlib import Path

import pytest

from ecluse import cluster
from ecluse.model.routes import promote, rollback
from ecluse.settings import Settings
from tests.chaos.fleet import broken_model
from tests.conftest import MakeSettings
from tests.swaps import (
    Sender,
    Swapper,
    predictions_by_place,
    release_versions,
    require_no_way_back,
    require_own_scores,
    serving,
)
from tests.workers import WorkerProcess, audited, events, json_values, scored, send, wait_until, worker

SWAPS = 24


@pytest.fixture
def short_session(servers: str, make_settings: MakeSettings) -> Settings:
    settings = make_settings(servers, worker={"session_timeout_seconds": 6})
    cluster.create_topics(settings)
    return settings


def held(running: WorkerProcess) -> int:
    """How many partitions a worker says that it holds."""
    found = re.search(r"^ecluse_assigned_partitions (\d+)", running.get("/metrics")[1], re.MULTILINE)
    return int(found[1]) if found else 0


def committed(settings: Settings) -> int:
    """How many events the group has committed."""
    return sum(offset or 0 for offset in cluster.committed_offsets(settings).values())


def test_swaps_under_load_and_rebalances_lose_nothing_and_no_partition_goes_back(
    short_session: Settings, tmp_path: Path
) -> None:
    settings = short_session
    arms = release_versions(settings, tmp_path, 3)
    rows = events(400)
    sender, swapper = Sender(settings, rows), Swapper(settings, arms, SWAPS, hold=2 * SWAPS // 3)
    with worker(settings, "--from", "earliest") as first, worker(settings) as second:
        sender.start()
        swapper.start()
        wait_until("a third of the swaps", lambda: len(swapper.versions) > SWAPS // 3)
        with worker(settings) as third:  # partitions move to it, and back when it is killed
            wait_until("it holds some", lambda: held(third) > 0)
            swapper.go_on.set()
            wait_until("two thirds of the swaps", lambda: len(swapper.versions) > 2 * SWAPS // 3 + 1)
            third.process.kill()
            swapper.finish(120)
        serving([first, second], max(swapper.versions))
        sent = sender.finish()
        wait_until("all is scored", scored(settings, sent))
        assert (first.stop(), second.stop()) == (0, 0), first.text + second.text
    report = audited(settings)
    assert (report.events, report.missing, report.doubled) == (sent, 0, 0)
    found = predictions_by_place(settings)
    require_no_way_back(found, swapper.versions)
    require_own_scores(settings, json_values(rows), lambda event: int(event.removeprefix("tx-")), found)
    assert len({prediction.route_revision for made in found.values() for prediction in made}) > SWAPS // 4


def test_a_partition_that_comes_to_a_worker_which_still_loads_waits_and_its_own_go_on(
    short_session: Settings, tmp_path: Path
) -> None:
    settings = short_session
    arms = release_versions(settings, tmp_path, 2)
    rows = events(200)
    sender, release = Sender(settings, rows), tmp_path / "release"
    with (
        worker(settings, "--from", "earliest") as quick,
        worker(settings, env=broken_model("load") | {"CHAOS_RELEASE": str(release)}) as slow,
    ):
        wait_until("both have two partitions", lambda: [held(each) for each in (quick, slow)] == [2, 2])
        sender.start()
        (before,) = set(Swapper(settings, arms, 0).versions)
        revision = promote(settings, arms[0], before)
        serving([quick], revision)
        wait_until("the quick one scores by it", scored(settings, committed(settings) + 400))
        assert quick.stop() == 0, quick.text
        wait_until("all partitions are the slow one's", lambda: held(slow) == 4)
        wait_until("its own go on", scored(settings, committed(settings) + 200))
        assert slow.model["revision"] == before
        release.touch()
        serving([slow], revision)
        sent = sender.finish()
        wait_until("all is scored", scored(settings, sent))
        assert slow.stop() == 0, slow.text
    found = predictions_by_place(settings)
    assert sum(map(len, found.values())) == sent
    require_no_way_back(found, {before: arms[1].version, revision: arms[0].version})


def test_a_bad_version_leaves_the_old_one_at_work_and_a_good_one_ends_it(stream: Settings, tmp_path: Path) -> None:
    arms = release_versions(stream, tmp_path, 2)
    manifest = Path(stream.model.store) / stream.model_name / "1" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"created_at"', b'"created_at "'))
    with worker(stream, "--from", "earliest") as running:
        good = running.model["revision"]
        bad = promote(stream, arms[0], good)
        wait_until("it says that it is degraded", lambda: bool(running.model["degraded"]))
        told = running.model
        assert (told["version"], told["revision"], told["routed_version"], told["routed_revision"]) == (2, good, 1, bad)
        assert "changed after its release" in told["degraded"]
        assert running.get("/health/ready")[0] == 503
        _, metrics = running.get("/metrics")
        assert "ecluse_model_degraded 1.0" in metrics
        assert 'ecluse_model_failures_total{step="verify"}' in metrics
        send(stream, json_values(events(50)))
        wait_until("the old one goes on", scored(stream, 50))
        revision = rollback(stream, bad)
        serving([running], revision)
        assert running.model["degraded"] == ""
        assert running.get("/health/ready")[0] == 200
        assert running.stop() == 0, running.text
    assert {made.version for each in predictions_by_place(stream).values() for made in each} == {2}


def test_a_worker_whose_first_version_is_bad_waits_outside_the_group_until_there_is_a_good_one(
    stream: Settings, tmp_path: Path
) -> None:
    arms = release_versions(stream, tmp_path, 2)
    onnx = Path(stream.model.store) / stream.model_name / "2" / "model.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1])
    send(stream, json_values(events(50)))
    with worker(stream, "--from", "earliest", ready=False) as running:
        wait_until("it says why", lambda: bool(running.model.get("degraded")))
        assert running.model["version"] is None
        assert "assigned partitions" not in running.text
        promote(stream, arms[0], running.model["routed_revision"])
        running.wait_ready()
        wait_until("it scores", scored(stream, 50))
        assert running.stop() == 0, running.text


def test_a_worker_that_trusts_no_key_ends_with_a_sentence(stream: Settings, tmp_path: Path) -> None:
    release_versions(stream, tmp_path, 1)
    nobody = stream.model_copy(update={"model": stream.model.model_copy(update={"trusted_keys": ()})})
    with worker(nobody, "--from", "earliest", ready=False) as running:
        assert running.process.wait(30) == 1
        assert "model.trusted_keys is empty" in running.text
        assert "Traceback" not in running.text

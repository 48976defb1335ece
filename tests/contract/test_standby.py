"""A standby on a real broker: it waits outside the group, a burst or a death brings it in, and drained it leaves."""

import os
import signal
import time
from pathlib import Path

from console import broker as dev_broker
from ecluse import cluster
from ecluse.contract.records import Prediction
from tests.cli import ecluse
from tests.conftest import MakeSettings
from tests.workers import (
    WorkerProcess,
    events,
    json_values,
    records,
    scored,
    send,
    train_champion,
    wait_until,
    worker,
)

QUICK = {"standby_join_seconds": 2.0, "standby_settle_seconds": 0.5, "session_timeout_seconds": 3.0}


def holds(running: WorkerProcess, partitions: int) -> bool:
    """Whether a worker holds so many partitions."""
    return f"ecluse_assigned_partitions {partitions}.0" in running.get("/metrics")[1]


def waits(running: WorkerProcess) -> bool:
    """Whether it is outside its group, on purpose, and says so."""
    page = running.get("/metrics")[1]
    outside = "ecluse_standby 1.0" in page and "ecluse_assigned_partitions" not in page
    return outside and all(running.get(f"/health/{state}")[0] == 200 for state in ("live", "ready"))


def said(running: WorkerProcess, what: str, times: int) -> bool:
    """Whether its log says this so often."""
    assert running.process.poll() is None, running.text
    return running.text.count(what) == times


def test_a_standby_joins_with_the_model_that_is_routed_by_then(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(servers, worker=QUICK)
    cluster.create_topics(settings)
    train_champion(settings, tmp_path)
    with worker(settings, "--standby") as standby:
        assert 'version="1"' in standby.get("/metrics")[1]
        train_champion(settings, tmp_path)
        send(settings, json_values(events(10)))
        wait_until("all are scored", scored(settings, 10))
        page = standby.get("/metrics")[1]
        assert 'ecluse_model_info{model="%s"' % settings.model_name in page  # noqa: UP031
        assert page.count("ecluse_model_info{") == 1
        assert standby.stop() == 0
    assert {found.version for found in records(settings, settings.names.predictions, Prediction)} == {2}


def test_a_standby_stays_warm_without_a_broker_and_says_so_once(make_settings: MakeSettings, tmp_path: Path) -> None:
    data = tmp_path / "broker"
    running = dev_broker.start(data, port=0)
    try:
        settings = make_settings(running.servers, worker=QUICK)
        cluster.create_topics(settings)
        train_champion(settings, tmp_path)
        with worker(settings, "--standby") as standby:
            wait_until("it waits", lambda: "waits outside the group" in standby.text)
            os.kill(running.pid, signal.SIGSTOP)
            wait_until("it says so", lambda: "the lag cannot be seen" in standby.text)
            assert waits(standby)
            os.kill(running.pid, signal.SIGCONT)
            wait_until("it sees again", lambda: "the lag can be seen again" in standby.text)
            assert said(standby, "the lag cannot be seen", 1)
            os.kill(running.pid, signal.SIGSTOP)
            wait_until("it says so again", lambda: said(standby, "the lag cannot be seen", 2))
            started = time.monotonic()
            assert standby.stop() == 0
            assert time.monotonic() - started < 5
    finally:
        os.kill(running.pid, signal.SIGCONT)
        dev_broker.stop(data)


def test_a_standby_is_no_static_member(make_settings: MakeSettings) -> None:
    refused = ecluse(make_settings(worker={"static_member": True, "slot": "a"}), "worker", "--standby")
    assert refused.exit_code == 2
    assert "would wait for the session" in " ".join(refused.stderr.split())

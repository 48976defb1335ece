"""Several worker processes on a real broker: they share, come back, roll, grow and shrink, and nothing is lost."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from console.process import ask
from console.supervisor import supervisor_of
from ecluse import cluster
from ecluse.settings import Settings
from tests.cli import config_file
from tests.conftest import MakeSettings
from tests.workers import (
    DEADLINE,
    audited,
    events,
    json_values,
    scored,
    send,
    train_champion,
    wait_until,
)


class Supervised:
    """A command that supervises workers, and its log."""

    def __init__(self, process: psutil.Popen, log: Path) -> None:
        self.process, self.log = process, log

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def workers(self) -> list[psutil.Process]:
        """Its workers, the oldest first."""
        return sorted(self.process.children(), key=lambda child: child.create_time())

    def ready(self, count: int) -> None:
        """Wait until workers have said so often that they are ready."""

        def said() -> bool:
            assert self.process.poll() is None, self.text
            return len(re.findall(r"\S+ is ready", self.text)) >= count

        wait_until(f"{count} times a worker is ready", said)

    def stop(self) -> int:
        """SIGTERM; the exit code. Nothing is left running."""
        workers = self.workers
        self.process.terminate()
        code = self.process.wait(DEADLINE)
        assert [worker for worker in workers if worker.is_running()] == []
        assert isinstance(code, int)
        return code


@contextmanager
def supervised(settings: Settings, *args: str) -> Iterator[Supervised]:
    """`ecluse ARGS` in the background; ended with its workers where the test did not."""
    config = config_file(settings)
    log = config.parent / f"supervisor-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "console", *args, "--config", str(config)]
        process = psutil.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    running = Supervised(process, log)
    try:
        yield running
    finally:
        if process.is_running() and process.poll() is None:
            left = running.workers
            process.kill()
            process.wait(DEADLINE)
            psutil.wait_procs(left, DEADLINE)


@pytest.fixture
def trained(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream with a champion, whose dead workers are missed soon."""
    settings = make_settings(
        servers,
        worker={"session_timeout_seconds": 3},
        autoscale={"up_seconds": 0.5, "down_seconds": 0.2, "settle_seconds": 3},
    )
    cluster.create_topics(settings)
    train_champion(settings, tmp_path)
    return settings


def test_two_processes_share_the_partitions_one_killed_comes_back_and_all_roll(trained: Settings) -> None:
    values = json_values(events(10_000))
    with supervised(trained, "worker", "--processes", "2") as running:
        running.ready(2)
        send(trained, values)
        wait_until("all are scored", scored(trained, 10_000))
        made = r"ecluse_predictions_total{.*} (\d+)"
        shares = [
            sum(map(int, re.findall(made, ask(address, "/metrics")[1])))
            for address in re.findall(r"http://(\S+)", running.text)
        ]
        assert (len(shares), sum(shares), 0 in shares) == (2, 10_000, False)
        first, second = running.workers
        first.kill()
        send(trained, values)
        running.ready(3)
        assert "ended unasked with SIGKILL: restart in 1 s (failure 1 in a row" in running.text
        wait_until("all are scored", scored(trained, 20_000))
        before = running.workers
        assert second in before
        running.process.send_signal(signal.SIGHUP)
        send(trained, values)
        running.ready(5)
        assert not {worker.pid for worker in before} & {worker.pid for worker in running.workers}
        wait_until("all are scored", scored(trained, 30_000))
        assert running.stop() == 0
    report = audited(trained)
    assert (report.events, report.missing) == (30_000, 0)
    slots = set(re.findall(r"(\S+) has started", running.text))
    assert {slot.rsplit("-", 1)[1] for slot in slots} == {"0", "1"}, "a restarted worker keeps its slot"
    told = re.findall(r"(\S+) (is ready|has started|has stopped)", running.text)[-6:]
    assert [what for _, what in told[-2:]] == ["has stopped"] * 2


def test_workers_end_with_a_supervisor_that_is_killed(trained: Settings) -> None:
    with supervised(trained, "worker", "--processes", "2") as running:
        running.ready(2)
        workers = running.workers
        running.process.kill()
        running.process.wait(DEADLINE)
        _, alive = psutil.wait_procs(workers, DEADLINE)
        assert alive == []


def test_a_worker_that_cannot_start_is_given_up_loudly(
    trained: Settings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    nobody = trained.model_copy(update={"model": trained.model.model_copy(update={"trusted_keys": ()})})
    supervisor = supervisor_of(nobody, config_file(nobody), delays=(0.1,))
    supervisor.scale(1)
    assert supervisor.run() == 1
    (loud,) = [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]
    assert "failed 2 times in a row, at last with exit code 1" in loud
    assert "model.trusted_keys is empty" in loud
    assert re.search(r"^\S+-0 \| .*model\.trusted_keys", capsys.readouterr().err, re.MULTILINE)


def test_more_processes_than_partitions_are_not_started(servers: str, make_settings: MakeSettings) -> None:
    settings = make_settings(servers, topics={"partitions": 1})
    cluster.create_topics(settings)
    with supervised(settings, "worker", "--processes", "3") as running:
        wait_until("it says so", lambda: "Of 3 workers 1 can have a partition" in running.text)
        wait_until("a worker has started", lambda: "has started" in running.text)
        assert len(running.workers) == 1
        assert running.stop() == 0


def test_autoscale_answers_a_burst_and_goes_back(trained: Settings) -> None:
    values, count = json_values(events(40_000)), 160_000
    with supervised(trained, "autoscale", "--min", "1", "--max", "9", "--json") as running:
        wait_until("it says that there is a cap", lambda: "Of 9 workers 4 can have a partition" in running.text)
        running.ready(1)
        for _ in range(count // len(values)):
            send(trained, values)
        wait_until("more workers are started", lambda: " -> 2 workers: " in running.text)
        wait_until("all are scored", scored(trained, count))
        wait_until("one is left", lambda: " -> 1 workers: " in running.text and len(running.workers) == 1)
        assert running.stop() == 0
    report = audited(trained)
    assert (report.events, report.missing) == (count, 0)
    decisions = [json.loads(line) for line in running.text.splitlines() if line.startswith("{")]
    assert (decisions[0]["workers"], decisions[0]["wanted"], decisions[-1]["wanted"]) == (1, 2, 1)
    assert all(1 <= decision["wanted"] <= 4 for decision in decisions)
    assert re.search(r"^1 -> 2 workers: [\d,]+ events wait, ", running.text, re.MULTILINE)

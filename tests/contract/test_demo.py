"""`ecluse demo` from the outside: what it shows, how it ends, and that nothing is left of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka.admin import AdminClient

from ingest import generate

ROOT = Path(__file__).parents[2]
DEADLINE = 300.0


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small labelled file: 30 days, so that it is split by its days."""
    path = tmp_path_factory.mktemp("data") / "payments.parquet"
    generate(5, 30, customers=600, terminals=1_200).write_parquet(path)
    return path


class Demo:
    """The command, running with a folder for temporary files that is all its own."""

    def __init__(self, temporary: Path, file: Path | None, *args: str, **environment: str) -> None:
        self.temporary = temporary
        self._log = temporary.parent / "demo.log"
        with self._log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "console",
                    "demo",
                    "--headless",
                    *(("--data", str(file)) if file else ()),
                    *args,
                ],
                env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)} | environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.seen: set[psutil.Process] = set()

    @property
    def said(self) -> str:
        """What it said on the way."""
        return self._log.read_text(encoding="utf-8")

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition, and note every process that the demo has."""
        end = time.monotonic() + DEADLINE
        while True:
            self.note_processes()
            if condition():
                return
            assert self.process.poll() is None, f"ended before {what}:\n{self.said}"
            assert time.monotonic() < end, f"{what}: not within {DEADLINE:.0f} s:\n{self.said}"
            time.sleep(0.2)

    def note_processes(self) -> None:
        """The demo's descendants, and what names its folder on the command line: the broker is nobody's child."""
        try:
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return
        self.seen.update(self.named())

    def named(self) -> list[psutil.Process]:
        """Processes whose command line names the demo's folder."""
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(str(self.temporary / "ecluse-demo-") in word for word in process.info["cmdline"] or ())
        ]

    def worker(self) -> psutil.Process | None:
        """One of its workers."""
        for process in self.seen:
            try:
                if process.cmdline()[-1:] == ["worker"]:
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    def end(self) -> tuple[int, str]:
        """Wait for its end; its exit code and what it printed."""
        printed, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, printed

    def require_nothing_left(self) -> None:
        """No process, no folder."""
        assert [process for process in self.seen if process.is_running()] == []
        assert self.named() == []
        assert list(self.temporary.iterdir()) == []


@contextmanager
def demo(folder: Path, file: Path | None, *args: str, **environment: str) -> Iterator[Demo]:
    temporary = folder / "tmp"
    temporary.mkdir()
    running = Demo(temporary, file, *args, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            running.process.communicate(timeout=DEADLINE)


@pytest.mark.timeout(600)
def test_a_drift_leads_to_a_request_to_a_study_to_a_signed_challenger_and_on_promotion_to_the_champion_by_topics_alone(
    tmp_path: Path,
) -> None:
    with demo(tmp_path, None, "--events", "9000", "--json", KAFKA_BOOTSTRAP_SERVERS="") as running:
        running.until("the processes", lambda: "✓ workers" in running.said)
        code, printed = running.end()
    assert code == 0, running.said
    result = json.loads(printed)
    require_every_event_accounted_for(result, 9_000)
    request, run, study = result["request"], result["run"], result["study"]
    assert (result["requests"], request["asker"], request["version"]) == (1, "drift", 1)
    assert request["inputs"][0] in ("amount", "customer_mean_amount_1d"), request["reason"]
    assert (run["request"], run["state"], run["version"]) == (request["id"], "published", 2)
    assert result["champion_when_released"] == 1
    assert result["verified"]["version"] == 2 and result["verified"]["signed_by"].endswith(".pub.pem")
    assert study["picked"] in [candidate["name"] for candidate in study["candidates"] if candidate["average_precision"]]
    assert result["by_version"].keys() == {"1", "2"}, running.said
    told = [running.said.index(what) for what in (request["id"], "2 is released", "model verify 2", "2 is promoted")]
    assert told == sorted(told)
    for worker in ("worker 1", "worker 2"):
        assert f"{worker} scores its first event by version 2" in running.said
    running.require_nothing_left()


def require_every_event_accounted_for(result: dict[str, Any], rows: int) -> None:
    """Rows, three events of another make and nine broken ones: on the topics, in the profiles, in the store, in the set."""
    assert result["events"] == rows + 12
    assert (result["predictions"], result["dead_letters"]) == (rows + 3, 9)
    assert (result["missing"], result["doubled"]) == (0, 0)
    assert sum(result["by_version"].values()) == result["profiled"] == rows + 3
    assert result["alerts"] >= result["alerts_with_reasons"] > 0
    stored, counts = result["stored"], result["set"]["counts"]
    assert (stored["events"], stored["predictions"]) == (rows + 12, rows + 3)
    assert 0 < stored["bypass"] == result["bypassed"] == counts["bypassed"] < rows
    assert counts["rows"] + counts["blocked"] == rows + 3
    assert counts["positives"] == stored["labels"]
    assert {"false_discovery_rate", "false_positive_rate"} == result["set"]["rates"].keys()


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "starting the broker"), (signal.SIGINT, "training"), (signal.SIGTERM, "streaming")],
)
def test_a_signal_at_any_time_leaves_nothing_behind(
    tmp_path: Path, file: Path, number: signal.Signals, moment: str
) -> None:
    with demo(tmp_path, file, "--events", "4000", KAFKA_BOOTSTRAP_SERVERS="") as running:
        conditions = {
            "starting the broker": lambda: any("kafka.Kafka" in process.cmdline() for process in running.named()),
            "training": lambda: any("train" in process.cmdline() for process in running.named()),
            "streaming": lambda: "/s)  lag " in running.said,
        }
        running.until(moment, conditions[moment])
        running.process.send_signal(number)
        code, printed = running.end()
    assert (code, printed) == (128 + number, "")
    assert "Traceback" not in running.said
    running.require_nothing_left()


def test_a_worker_that_dies_ends_the_demo_with_its_log_and_a_foreign_cluster_keeps_none_of_its_topics(
    tmp_path: Path, file: Path, servers: str
) -> None:
    with demo(tmp_path, file, "--events", "4000", KAFKA_BOOTSTRAP_SERVERS=servers) as running:
        running.until("streaming", lambda: "/s)  lag " in running.said)
        worker = running.worker()
        assert worker is not None
        worker.kill()
        code, _ = running.end()
    assert code == 1
    assert "The process 'worker " in running.said and "ended with SIGKILL" in running.said
    assert "metrics and health at http://" in running.said
    topics = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).topics
    assert [name for name in topics if name.startswith("ecluse.demo-")] == []
    running.require_nothing_left()


def test_a_file_that_cannot_be_played_is_refused_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    file.write_text("amount,fraud\n" + "1.5,0\n2.5,1\n" * 30, encoding="utf-8")
    with demo(tmp_path, file, KAFKA_BOOTSTRAP_SERVERS="") as running:
        code, _ = running.end()
    assert code == 1
    assert "needs 1,000" in running.said
    running.require_nothing_left()

"""The README's tour and its two clients, run as they stand, in the order in which they stand, on a real broker."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import pytest
from tenacity import Retrying, stop_after_delay, wait_fixed

from tests.docs.pages import ROOT, blocks

README = ROOT / "README.md"
PATIENCE = 60.0

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(servers: str) -> dict[str, str]:
    """A shell in which our programs come first, and the cluster is the test's."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "KAFKA_BOOTSTRAP_SERVERS": servers,
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Runs one line of the tour to its end."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            line.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    return run


class Terminal:
    """A program that runs on in a terminal of its own; what it prints is read as it comes."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / f"{'-'.join(command[1:]).replace('/', '_')}.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.lines: list[str] = []
        self._reader = Thread(target=self._read, name="terminal")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            self.lines.extend(iter(lines.readline, ""))

    def wait_for(self, text: str) -> str:
        """The first line that holds a text."""

        def find() -> str:
            assert self.process.poll() is None, f"it ended early:\n{self.log.read_text(encoding='utf-8')[-2000:]}"
            return next(line for line in list(self.lines) if text in line)

        waiting = Retrying(stop=stop_after_delay(PATIENCE), wait=wait_fixed(0.1), reraise=True)
        return waiting(find)

    def close(self) -> None:
        """End it as a person would, and wait."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE / 2)
        finally:
            self.process.kill()
            self._reader.join(PATIENCE / 2)


@contextmanager
def terminal(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    """Open a terminal and close it after."""
    opened = Terminal(command, folder, environment)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.timeout(600)  # a dozen programs start one after another
def test_the_tour_and_both_clients_work_as_they_are_written(
    servers: str, run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    make_payments, producer, consumer = (
        block.text.replace("127.0.0.1:9092", servers) for block in blocks(README, "python")
    )
    for name, text in {"make_payments.py": make_payments, "producer.py": producer, "consumer.py": consumer}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    _, before, worker, alerts, after, _more_workers = (block.lines for block in blocks(README, "sh"))

    for line in without_the_broker(before):
        run(line)
    with ExitStack() as stack:
        open_terminals = [
            stack.enter_context(terminal(line.split(), tmp_path, environment)) for line in (*worker, *alerts)
        ]
        publish, audit, *rest = without_the_broker(after)
        run(publish)
        open_terminals[1].wait_for("usual")  # an alert, with a reason
        Retrying(stop=stop_after_delay(PATIENCE), wait=wait_fixed(0.5), reraise=True)(run, audit)
        run("python producer.py")
        reading = stack.enter_context(terminal(["python", "consumer.py"], tmp_path, environment))
        assert "block" in reading.wait_for("p-new") or "review" in reading.wait_for("p-new")
        for line in rest:
            run(line)


def without_the_broker(lines: list[str]) -> list[str]:
    """The test's own broker stands for the one that the tour starts and stops."""
    return [line for line in lines if not line.startswith("ecluse broker")]

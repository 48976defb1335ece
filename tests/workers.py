"""Real workers for tests: processes of the `ecluse worker` command, and a champion for them to score with."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import polars as pl
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from console.audit import AuditReport, audit
from ecluse import cluster, kafka
from ecluse.contract.codecs import Reader
from ecluse.model.manifest import MANIFEST, Manifest
from ecluse.settings import Settings
from retrain import process
from retrain.publish import publish
from tests.cli import config_file

ECLUSE = Path(sys.executable).parent / "ecluse"
DEADLINE = 180.0
T = TypeVar("T")


def wait_until(what: str, condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Wait for a condition, or fail by its name."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline:.0f} s"
        time.sleep(0.05)


def labelled_rows(rows: int = 4000, seed: int = 7) -> pl.DataFrame:
    """Rows for the fields of `tests.conftest.FIELDS`, in which amount and the terminal's risk tell fraud."""
    random = np.random.default_rng(seed)
    amount = random.gamma(2.0, 40.0, rows).round(2)
    risk = np.where(random.random(rows) < 0.1, random.random(rows), 0.0).round(3)
    fraud = random.random(rows) < 1 / (1 + np.exp(-(amount - 260) / 20 - 6 * risk + 2))
    return pl.DataFrame(
        {
            "transaction_id": [f"tx-{i}" for i in range(rows)],
            "customer_id": [f"c-{i % 97}" for i in range(rows)],
            "amount": amount,
            "terminal_risk_30d": risk,
            "night": (random.random(rows) < 0.2).astype(int),
            "fraud": fraud.astype(int),
        }
    )


def events(rows: int, seed: int = 11) -> list[dict[str, Any]]:
    """Events of those rows, without the label."""
    return labelled_rows(rows, seed).drop("fraud").to_dicts()


_DRAFTS: dict[bytes, dict[str, bytes]] = {}


def release_trained(settings: Settings, rows: int = 4000, seed: int = 7) -> tuple[Manifest, int | None]:
    """What `train_and_publish` releases of labelled rows. What would be trained alike is trained once, and released again.

    Training takes seconds. tests/contract/test_model_train.py has it done in full, each time.
    """
    job = process.for_child(settings)
    for section in ("stream", "model"):
        job[section] = job[section] | {"name": ""}
    alike = msgspec.json.encode([job, rows, seed])
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft")
        draft.mkdir()
        if alike not in _DRAFTS:
            labelled_rows(rows, seed).write_parquet(file := Path(folder, "rows.parquet"))
            train = process.Train(process.for_child(settings), str(draft), str(file))
            process.run(train, lambda _: None)
            _DRAFTS[alike] = {each.name: each.read_bytes() for each in draft.iterdir()}
        for name, data in _DRAFTS[alike].items():
            draft.joinpath(name).write_bytes(data)
        manifest = Manifest.decode(draft.joinpath(MANIFEST).read_bytes())
        renamed = msgspec.structs.replace(manifest, name=settings.model_name)
        draft.joinpath(MANIFEST).write_bytes(renamed.encode())
        return publish(settings, draft, champion=True)


def train_champion(settings: Settings, folder: Path) -> None:
    """Train and release a champion for the stream."""
    release_trained(settings)


def send(settings: Settings, values: list[bytes], partition: int | None = None, key: bytes | None = b"c-1") -> None:
    """Publish as a service that has never heard of us: a plain producer, no headers."""
    producer = kafka.producer(settings)
    place = {} if partition is None else {"partition": partition}
    for i, value in enumerate(values):
        producer.produce(
            settings.names.events, value, key=key if partition is not None else f"c-{i % 97}".encode(), **place
        )
        while len(producer) > 50_000:  # a busy broker takes its time
            producer.poll(0.1)
    assert producer.flush(DEADLINE) == 0


def read_all(settings: Settings, topic: str) -> list[Message]:
    """What a topic holds now, partition by partition: the committed records."""
    places = [TopicPartition(topic, partition, 0) for partition in cluster.end_offsets(settings, topic)]
    found: list[Message] = []
    with closing(Consumer(kafka.consumer_config(settings, "tests") | {"enable.partition.eof": True})) as consumer:
        consumer.assign(places)
        missing = {place.partition for place in places}
        deadline = time.monotonic() + DEADLINE
        while missing:
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            for message in consumer.consume(5000, 0.1):
                if (error := message.error()) is None:
                    found.append(message)
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    missing.discard(message.partition())
    return found


def records(settings: Settings, topic: str, kind: type[T]) -> list[T]:
    """A topic's records, decoded."""
    reader = Reader(kind)
    return [reader(message.value() or b"") for message in read_all(settings, topic)]


def scored(settings: Settings, count: int) -> Callable[[], bool]:
    """Whether the group has committed `count` events."""
    return lambda: sum(offset or 0 for offset in cluster.committed_offsets(settings).values()) >= count


def audited(settings: Settings) -> AuditReport:
    """The audit of everything on the events topic."""
    return audit(settings, everything=True)


@dataclass
class WorkerProcess:
    """A worker, its log, and how to ask it."""

    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of one of its pages; 0 while it does not listen."""
        address = next(
            (line.split("http://")[1].split()[0] for line in self.text.splitlines() if "http://" in line), None
        )
        if address is None:
            return 0, ""
        try:
            with closing(urllib.request.urlopen(f"http://{address}{path}", timeout=5)) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with closing(error):
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    @property
    def model(self) -> dict[str, Any]:
        """What it says of its model; nothing while it does not listen."""
        return dict(json.loads(self.get("/model")[1] or "{}"))

    def wait_ready(self) -> None:
        """Wait until it has its partitions."""

        def ready() -> bool:
            assert self.process.poll() is None, self.text
            return self.get("/health/ready")[0] == 200

        wait_until("the worker is ready", ready)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(how)
        return self.process.wait(DEADLINE)


@contextmanager
def worker(
    settings: Settings, *args: str, ready: bool = True, env: dict[str, str] | None = None
) -> Iterator[WorkerProcess]:
    """A running worker, which is killed at the end if it still runs; `env` comes to its environment."""
    config = config_file(settings)
    log = config.parent / f"worker-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        command = [ECLUSE, "worker", "--config", str(config), *args]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | (env or {}))
    running = WorkerProcess(process, log)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        process.kill()
        process.wait(DEADLINE)


def json_values(found: list[dict[str, Any]]) -> list[bytes]:
    """Events as a service would write them."""
    return [json.dumps(event).encode() for event in found]

"""Real sinks for tests: processes of `ecluse store`, records for them on every topic, and what their tables hold."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import polars as pl
from confluent_kafka import Producer

from ecluse import kafka
from ecluse.contract.codecs import encoder
from ecluse.contract.records import BypassSample, Decision, Prediction, Source
from ecluse.contract.tables import LABELS, PREDICTIONS, Table, bypass_table, events_table
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from tests.cli import config_file
from tests.workers import DEADLINE, ECLUSE, WorkerProcess, wait_until

_encode = encoder("msgpack")
json = msgspec.json.encode


def tables_of(settings: Settings) -> dict[str, Table]:
    """The tables of a stream's events and what comes of them, by name."""
    fields = settings.stream.fields
    made = (events_table(fields), PREDICTIONS, bypass_table(fields), LABELS)
    return {table.name: table for table in made}


def rows_of(settings: Settings, table: str) -> pl.DataFrame:
    """What a table holds."""
    return TrainingStore(settings).scan(tables_of(settings)[table]).collect()


def counts(settings: Settings) -> dict[str, int]:
    """How many rows each table holds; those of labels too."""
    return {name: rows_of(settings, name).height for name in tables_of(settings)}


@contextmanager
def sink(settings: Settings, *args: str, ready: bool = True, shell: str = "") -> Iterator[WorkerProcess]:
    """A running sink, which is killed at the end if it still runs; `shell` runs the command, as ``"$@"``."""
    running = start_sink(settings, *args, shell=shell)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        running.process.kill()
        running.process.wait(DEADLINE)


def start_sink(settings: Settings, *args: str, shell: str = "", env: Mapping[str, str] | None = None) -> WorkerProcess:
    """Start a sink; who starts it ends it. `env` comes to its environment."""
    config = config_file(settings)
    log = config.parent / f"sink-{time.monotonic_ns()}.log"
    command = [str(ECLUSE), "store", "--config", str(config), *args]
    with log.open("wb") as out:
        whole = ["sh", "-c", shell, "sh", *command] if shell else command
        process = subprocess.Popen(whole, stdout=out, stderr=out, env=os.environ | dict(env or {}))
    return WorkerProcess(process, log)


class Records:
    """Writes records of every kind as their writers do: predictions and samples in transactions, whose markers take offsets."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sent = 0
        config = kafka.transactional_config(settings, f"{settings.group}-test", 60)
        self._outputs = Producer(config)
        self._outputs.init_transactions(10)
        self._inputs = kafka.producer(settings)

    def send(self, count: int, labels: int = 0) -> None:
        """Send so many events, each with its prediction, every tenth with a sample, and so many labels; all are there then."""
        names, partitions = self.settings.names, self.settings.topics.partitions
        self._outputs.begin_transaction()
        for number in range(self.sent, self.sent + count):
            partition, event_id = number % partitions, f"e-{number}"
            event = {"transaction_id": event_id, "amount": 1.5, "terminal_risk_30d": 0.0, "night": 0, "more": number}
            self._inputs.produce(names.events, json(event), b"c-1", partition)
            source = Source(names.events, partition, number // partitions)
            self._outputs.produce(names.predictions, _prediction(event_id, source), b"c-1", partition)
            if number % 10 == 0:
                self._outputs.produce(names.bypass, _sample(event_id, source, event), b"c-1", partition)
            if number < self.sent + labels:
                value = json({"event_id": event_id, "value": number % 2})
                self._inputs.produce(names.labels("chargeback"), value, event_id.encode(), partition)
            if number % 1000 == 0:
                self._outputs.poll(0)
                self._inputs.poll(0)
        assert self._inputs.flush(DEADLINE) == 0
        self._outputs.commit_transaction(DEADLINE)
        self.sent += count

    def abort(self, count: int) -> None:
        """Leave so many predictions and samples of a transaction that was aborted: their offsets hold no record."""
        names = self.settings.names
        self._outputs.begin_transaction()
        for number in range(count):
            for topic in (names.predictions, names.bypass):
                self._outputs.produce(topic, b"never", b"c-1", number % self.settings.topics.partitions)
        assert self._outputs.flush(DEADLINE) == 0
        self._outputs.abort_transaction(DEADLINE)


def _prediction(event_id: str, source: Source) -> bytes:
    prediction = Prediction(
        event_id, "c-1", 1.7e9, time.time(), "m", 1, "champion", 1.0, 0.25, Decision.ALLOW, 0.5, 1, source
    )
    return _encode(prediction)


def _sample(event_id: str, source: Source, event: dict[str, Any]) -> bytes:
    return _encode(BypassSample(event_id, "c-1", 1.7e9, 0.02, 1, 2, source, event))


def wait_stored(settings: Settings, wanted: Mapping[str, int]) -> None:
    """Wait until the tables hold so many rows; a table that holds more never will."""

    def stored() -> bool:
        found = counts(settings)
        assert all(found[name] <= rows for name, rows in wanted.items()), found
        return all(found[name] == rows for name, rows in wanted.items())

    wait_until(f"the tables hold {dict(wanted)}", stored)

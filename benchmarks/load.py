"""A steady load from a process of its own: events stamped with the moment at which they are sent, even over the partitions."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
from confluent_kafka import Producer

from benchmarks.ground import Ground
from ecluse import kafka
from ecluse.settings import load

_END_SECONDS = 30


class Load:
    """A load that runs; its rate, in events a second, may be changed meanwhile."""

    def __init__(self, ground: Ground, rate: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._rate, self._stop = context.Value("d", rate), context.Event()
        arguments = (ground.config, ground.folder / "events.parquet", self._rate, self._stop)
        self._process = context.Process(target=produce, args=arguments, daemon=True)
        self._process.start()

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self._process.is_alive()

    def change(self, rate: int) -> None:
        """Go on at another rate."""
        self._rate.value = rate

    def end(self) -> None:
        """Stop, when the broker has all."""
        self._stop.set()
        self._process.join(_END_SECONDS)
        if self._process.exitcode != 0:
            self._process.kill()
            raise RuntimeError("the load did not end well: the broker may not have all events")


@contextmanager
def steady(ground: Ground, rate: int) -> Iterator[Load]:
    """A load for as long as the context lasts."""
    running = Load(ground, rate)
    try:
        yield running
    finally:
        running.end()


def produce(config: Path, file: Path, rate: Any, stop: Event) -> None:
    """Stamp and produce events, evenly spaced and in turn over the partitions, until told to stop."""
    settings = load(config)
    stream = settings.stream
    if stream.time_field is None or stream.key_field is None:
        raise ValueError("the stamp needs a time field, and the order a key")
    frame = pl.read_parquet(file, n_rows=20_000)
    keys = [str(key).encode() for key in frame[stream.key_field]]
    rows = frame.select(name for name in stream.fields if name in frame.columns).drop(stream.time_field).to_dicts()
    queue = {"queue.buffering.max.messages": 1_000_000, "queue.buffering.max.kbytes": 1 << 20}
    client = Producer(kafka.producer_config(settings) | queue | {"linger.ms": 0})
    encode = msgspec.json.Encoder().encode
    before, due, sent = time.monotonic(), 0.0, 0
    while not stop.is_set():
        now = time.monotonic()
        due += (now - before) * rate.value
        before = now
        for i in range(sent, int(due)):
            row = rows[i % len(rows)]
            row[stream.time_field] = time.time()
            client.produce(
                settings.names.events, encode(row), keys[i % len(rows)], partition=i % settings.topics.partitions
            )
        sent = int(due)
        client.poll(0)
        time.sleep(max(0.5 / rate.value, 0.0005))
    if client.flush(_END_SECONDS):
        raise RuntimeError("the broker did not take all events")

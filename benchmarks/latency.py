"""End-to-end latency at a steady rate: from the moment a producer stamps an event to the one a reader has its prediction."""

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from confluent_kafka import Producer, TopicPartition

from benchmarks.ground import Ground
from benchmarks.measure import contestant
from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.records import Prediction
from ecluse.settings import load

#: Left out at the start, for the group to form and the caches to fill.
SETTLE_SECONDS = 5.0
_PATIENCE = 60.0


@dataclass(frozen=True)
class Latency:
    """Quantiles of seconds."""

    p50: float
    p99: float
    p999: float


def quantiles(seconds: list[float]) -> Latency:
    """The nearest-rank quantiles: each is a value that was seen."""
    return Latency(*np.quantile(seconds, [0.5, 0.99, 0.999], method="inverted_cdf").tolist())


def latency(ground: Ground, name: str, rate: int, seconds: float) -> Latency:
    """Latency of a contestant that has nothing else to do, over `seconds` after it has settled.

    An event's time field is its stamp, and a prediction carries it; producer and reader share the machine's clock.
    """
    names = ground.settings.names
    decode = Reader(Prediction)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with kafka.reader(ground.settings) as consumer, contestant(ground, name, 0):
        consumer.assign(
            [TopicPartition(names.predictions, p, end) for p, end in enumerate(ground.ends(names.predictions))]
        )
        producer = context.Process(target=produce, args=(ground.config, ground.folder / "events.parquet", rate, stop))
        producer.start()
        try:
            taken: list[float] = []
            start = float("inf")
            past: set[int] = set()  # partitions whose predictions have gone past the window
            deadline = time.monotonic() + _PATIENCE + seconds
            while len(past) < ground.settings.topics.partitions:
                message = consumer.poll(0.1)
                now = time.time()
                if message is not None and not message.error():
                    stamp = decode(message.value() or b"").event_time
                    start = min(start, now + SETTLE_SECONDS)
                    if stamp > start + seconds:
                        past.add(message.partition() or 0)
                    elif stamp >= start:
                        taken.append(now - stamp)
                if time.monotonic() > deadline or not producer.is_alive():
                    raise TimeoutError(f"{len(taken)} predictions came within {_PATIENCE + seconds:.0f} s")
            return quantiles(taken)
        finally:
            stop.set()
            producer.join(30)


def produce(config: Path, file: Path, rate: int, stop: Event) -> None:
    """Stamp and produce events, evenly spaced, until told to stop."""
    settings = load(config)
    stream = settings.stream
    if stream.time_field is None or stream.key_field is None:
        raise ValueError("the stamp needs a time field, and the order a key")
    frame = pl.read_parquet(file, n_rows=20_000)
    keys = [str(key).encode() for key in frame[stream.key_field]]
    rows = frame.select(name for name in stream.fields if name in frame.columns).drop(stream.time_field).to_dicts()
    client = Producer(kafka.producer_config(settings) | {"linger.ms": 0})
    encode = msgspec.json.Encoder().encode
    begun, sent = time.monotonic(), 0
    while not stop.is_set():
        due = int((time.monotonic() - begun) * rate)
        for i in range(sent, due):
            row = rows[i % len(rows)]
            row[stream.time_field] = time.time()
            client.produce(settings.names.events, encode(row), keys[i % len(rows)])
        sent = max(sent, due)
        client.poll(0)
        time.sleep(0.5 / rate)
    client.flush(10)

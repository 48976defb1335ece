"""End-to-end latency at a steady rate: from the moment a producer stamps an event to the one a reader has its prediction."""

import time
from dataclasses import dataclass

import numpy as np
from confluent_kafka import TopicPartition

from benchmarks.ground import Ground
from benchmarks.load import steady
from benchmarks.measure import contestant
from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.records import Prediction

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
    with kafka.reader(ground.settings) as consumer, contestant(ground, name, 0):
        consumer.assign(
            [TopicPartition(names.predictions, p, end) for p, end in enumerate(ground.ends(names.predictions))]
        )
        with steady(ground, rate) as load:
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
                if time.monotonic() > deadline or not load.runs:
                    raise TimeoutError(f"{len(taken)} predictions came within {_PATIENCE + seconds:.0f} s")
            return quantiles(taken)

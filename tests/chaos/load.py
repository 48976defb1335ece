"""Generated load at a steady rate, from a seed: it knows how many events the broker has taken."""

import json
import random
import threading
import time

from confluent_kafka import KafkaError, Message, Producer

from ecluse import kafka
from ecluse.settings import Settings
from tests.workers import events

#: How long the broker may take to confirm the last events, in seconds.
PATIENCE = 90.0
#: `night` is 0 or 1: a model of `tests/chaos/inject` raises on this one.
POISON = 2
_TICK = 0.01


class Load(threading.Thread):
    """Sends events with ids that no other has until it is finished, and `least` of them at least.

    Args:
        settings: the stream's; the load goes past any proxy.
        chance: where keys and values come from.
        rate: events a second; may be changed while it runs.
        least: it goes on until it has sent so many.
        poison_every: every so many events one is poison; 0 for none.
    """

    def __init__(self, settings: Settings, chance: random.Random, rate: int, least: int, poison_every: int = 0) -> None:
        super().__init__(name="chaos-load", daemon=True)
        self.rate, self.sent, self.poisoned = rate, 0, 0
        self._least, self._poison_every = least, poison_every
        self._topic = settings.names.events
        self._chance = chance
        self._finishing = threading.Event()
        self._failure: BaseException | None = None
        queue = {"queue.buffering.max.messages": 2_000_000, "queue.buffering.max.kbytes": 1 << 20}
        self._producer = Producer(kafka.producer_config(settings) | queue)
        rows = events(2_000, chance.randrange(1 << 30))
        for row in rows:
            del row["transaction_id"]
        self._values = [json.dumps(row)[1:].encode() for row in rows]
        self._poison = json.dumps(rows[0] | {"night": POISON})[1:].encode()

    @property
    def values(self) -> list[bytes]:
        """The events as they are sent, in turn, but for their ids: event ``e-n`` is number n modulo their count."""
        return [b"{" + value for value in self._values]

    def run(self) -> None:
        """Send what is due, every hundredth of a second."""
        try:
            before, due = time.monotonic(), 0.0
            while not self._finishing.is_set() or self.sent < self._least:
                now = time.monotonic()
                due += (now - before) * self.rate
                before = now
                for _ in range(int(due)):
                    self._send()
                due %= 1
                self._producer.poll(0)
                time.sleep(_TICK)
        except BaseException as error:
            self._failure = error

    def _send(self) -> None:
        number = self.sent
        poison = self._poison_every > 0 and number % self._poison_every == self._poison_every // 2
        value = self._poison if poison else self._values[number % len(self._values)]
        key = f"c-{self._chance.randrange(997)}".encode()
        self._producer.produce(
            self._topic, b'{"transaction_id": "e-%d", ' % number + value, key, on_delivery=self._told
        )
        self.sent += 1
        self.poisoned += poison

    def _told(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failure = RuntimeError(f"an event was not delivered: {error.str()}")

    def finish(self) -> int:
        """End the load and return how many events the broker has."""
        self._finishing.set()
        self.join(self._least / self.rate + PATIENCE)
        assert not self.is_alive(), "the load does not end"
        assert self._producer.flush(PATIENCE) == 0, "the broker did not take all events"
        assert self._failure is None, self._failure
        return self.sent

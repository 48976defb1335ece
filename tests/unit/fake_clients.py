"""Producer and consumer of `fake_broker`, with the states and errors that librdkafka has."""

import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tests.unit.fake_broker import Broker, Fault, Transaction, TransactionalId, failure

TOPIC = "events"
#: Longer than any patience of the worker.
HANG_SECONDS = 1000.0


class FakeProducer:
    """A transactional producer with librdkafka's states and errors."""

    def __init__(self, broker: Broker, config: dict[str, Any]) -> None:
        self.broker = broker
        self.name: str = config["transactional.id"]
        self.state, self.epoch = "new", -1
        self.error: KafkaException | None = None
        self.queue: list[tuple[int, int]] = []
        self.transaction: Transaction | None = None

    def __len__(self) -> int:
        return len(self.queue)

    @property
    def _id(self) -> TransactionalId:
        return self.broker.ids[self.name]

    def init_transactions(self, timeout: float) -> None:
        def init() -> None:
            each, birth = self._id, self.broker.acting.birth if self.broker.acting else 0
            assert each.holder <= birth, f"a worker of old fences the rightful producer of {self.name}"
            if each.transaction is not None:
                self.broker.end(each, "aborted")
            each.holder, each.timed_out = birth, None
            each.epoch += 1
            self.epoch = each.epoch

        self._call("init_transactions", timeout, init, {"new"}, "new")
        self.state = "ready"

    def begin_transaction(self) -> None:
        self._call("begin_transaction", 0.0, lambda: None, {"ready"}, "ready")
        self.state = "open"

    def produce(self, topic: str, value: bytes, key: bytes | None, partition: int, headers: Any) -> None:
        if self.state != "open":
            raise failure(KafkaError._FATAL if self.state == "fatal" else KafkaError._STATE, "no transaction is open")
        fault = self.broker.fault("produce")
        if fault is Fault.FULL:
            raise BufferError("queue full")
        if fault is not None:
            code = KafkaError.MSG_SIZE_TOO_LARGE if fault is Fault.REFUSED else KafkaError._STATE
            raise failure(code, "injected")
        self.queue.append((partition if key is None else int(key), int(value)))

    def poll(self, wait: float) -> None:
        self.broker.clock.now += wait
        if self.state == "open" and not self.broker.slow:
            with suppress(KafkaException):  # the next call tells
                self._send()

    def send_offsets_to_transaction(self, places: list[TopicPartition], metadata: bytes, timeout: float) -> None:
        epoch, member = struct.unpack_from("<i", metadata, 7)[0], metadata[11:].split(b"\0")[1].decode()

        def send() -> None:
            transaction = self._at_broker()
            try:
                self.broker.group.check_member(member, epoch)
            except KafkaException as error:
                self._fail(error)
            transaction.offsets |= {place.partition: place.offset for place in places}

        self._call("send_offsets_to_transaction", timeout, send, {"open"}, "open")

    def commit_transaction(self, timeout: float) -> None:
        def commit() -> None:
            if self.transaction is None or self.transaction.state != "committed":
                self._send()
                self._at_broker()
                self.broker.end(self._id, "committed")

        self._call("commit_transaction", timeout, commit, {"open", "committing"}, "committing")
        self.state, self.transaction = "ready", None

    def abort_transaction(self, timeout: float) -> None:
        def abort() -> None:
            self.queue.clear()
            each = self._id
            if each.epoch != self.epoch:
                if not self._may_recover():
                    self._fail(failure(KafkaError._FENCED, "fenced", fatal=True))
                each.epoch += 1
                self.epoch = each.epoch
            elif self.transaction is not None and self.transaction.state == "committed":
                self._fail(failure(KafkaError.INVALID_TXN_STATE, "it is committed", fatal=True))
            elif each.transaction is not None:
                self.broker.end(each, "aborted")

        self._call("abort_transaction", timeout, abort, {"open", "abortable", "aborting"}, "aborting")
        self.state, self.transaction, self.error = "ready", None, None

    def purge(self) -> None:
        self.queue.clear()

    def _call(self, name: str, timeout: float, effect: Callable[[], None], states: set[str], during: str) -> None:
        """Make a call in the way that the next fault says. Where it is tried again, it was left in state `during`."""
        if self.error is not None and (self.state == "fatal" or self.state not in states):
            raise self.error
        if self.state not in states:
            raise failure(KafkaError._STATE, f"{name} is not valid in state {self.state}")
        self.state, fault = during, self.broker.fault(name)
        if fault is Fault.BROKER_TIMEOUT:
            self.broker.time_out(self._id)
        if fault is Fault.EXPELLED and self.broker.acting is not None:
            self.broker.group.expel(self.broker.acting)
        if fault in (Fault.ABORTABLE, Fault.REFUSED):
            code = KafkaError.TOPIC_AUTHORIZATION_FAILED if fault is Fault.REFUSED else KafkaError.ILLEGAL_GENERATION
            self._fail(failure(code, "injected", txn_requires_abort=True))
        if fault is Fault.FATAL:
            self._fail(failure(KafkaError._FATAL, "injected", fatal=True))
        if fault is Fault.STATE:
            raise failure(KafkaError._STATE, "injected")
        if fault is Fault.LATE:
            self._send()
            self.broker.in_flight.append((self._id, self.epoch))
        if fault not in (Fault.SLOW, Fault.HANGS, Fault.LATE):
            effect()
        if fault in (Fault.SLOW, Fault.DONE_SLOW, Fault.HANGS, Fault.DONE_HANGS, Fault.LATE):
            self.broker.clock.now += timeout if fault in (Fault.SLOW, Fault.DONE_SLOW) else HANG_SECONDS
            raise failure(KafkaError._TIMED_OUT, "injected", retriable=True)

    def _fail(self, error: KafkaException) -> NoReturn:
        self.error, self.state = error, "fatal" if error.args[0].fatal() else "abortable"
        raise error

    def _send(self) -> None:
        if self.queue:
            transaction = self._at_broker()
            for partition, offset in self.queue:
                self.broker.outputs[partition].append((transaction, offset))
            self.queue.clear()

    def _may_recover(self) -> bool:
        return self.broker.recovers and self._id.timed_out == self.epoch == self._id.epoch - 1

    def _at_broker(self) -> Transaction:
        """The open transaction, where the broker still takes this producer; the first request opens it."""
        if self._id.epoch != self.epoch:
            if self._may_recover():
                self._fail(failure(KafkaError.INVALID_PRODUCER_EPOCH, "timed out", txn_requires_abort=True))
            self._fail(failure(KafkaError._FENCED, "fenced", fatal=True))
        if self._id.transaction is None:
            self._id.transaction = self.transaction = Transaction()
        return self._id.transaction


@dataclass(eq=False)
class FakeMessage:
    """A record, or the news that there is none at this offset yet."""

    place: int
    at: int
    end: bool = False

    def __len__(self) -> int:
        return 1

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return self.place

    def offset(self) -> int:
        return self.at

    def error(self) -> KafkaError | None:
        return KafkaError(KafkaError._PARTITION_EOF) if self.end else None

    def timestamp(self) -> tuple[int, int]:
        return 1, 0


class FakeConsumer:
    """A member of the group that reads committed records. Rebalances are served inside `poll`, `consume` and `close`."""

    def __init__(self, broker: Broker, birth: int) -> None:
        self.broker, self.birth = broker, birth
        self.member, self.epoch = "", -1
        self.positions: dict[int, int | None] = {}  # None until the committed offset is known
        self.paused: set[int] = set()  # outlives an assignment, as librdkafka has it
        self.told_end: dict[int, int] = {}
        self.news: deque[tuple[str, list[int], bool]] = deque()
        self.on: dict[str, Callable[[Any, list[TopicPartition]], None]] = {}

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on = {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self.broker.group.join(self)

    def tell(self, kind: str, partitions: list[int], *, later: bool = False) -> None:
        """Call back when served; `later`: not in the next `poll`, but in the `consume` that may follow."""
        self.news.append((kind, partitions, later))

    def learn(self) -> None:
        """The client comes to know that it was expelled; the application does when it is served."""
        self.member, self.epoch = "", -1
        self.news.clear()
        if self.positions:
            self.tell("lost", list(self.positions))

    def _serve(self, *, consuming: bool) -> None:
        while self.news:
            kind, partitions, later = self.news.popleft()
            if later and not consuming:
                self.news.appendleft((kind, partitions, False))
                return
            self.on[kind](self, [TopicPartition(TOPIC, partition) for partition in partitions])
            if kind == "lost":
                self.positions.clear()
            if kind == "revoke" and consuming and self.member in self.broker.group.members:
                for partition in partitions if self.broker.fault("revoke") else ():
                    self.broker.group.give(partition, self)

    def poll(self, wait: float) -> FakeMessage | None:
        self.broker.clock.now += wait
        self._serve(consuming=False)
        if self.broker.fault("poll") is not None:
            self.positions = dict.fromkeys(self.positions)
        return next(iter(self._take(1)), None)

    def consume(self, count: int, wait: float) -> list[FakeMessage]:
        self._serve(consuming=True)
        return self._take(count)

    def _take(self, count: int) -> list[FakeMessage]:
        taken: list[FakeMessage] = []
        for partition, position in self.positions.items():
            if partition in self.paused or (position is None and self.broker.pending(partition)):
                continue
            start = self.broker.group.committed[partition] if position is None else position
            offsets = [at for at in self.broker.events[partition] if at >= start][: count - len(taken)]
            taken += [FakeMessage(partition, at) for at in offsets]
            self.positions[partition] = start = offsets[-1] + 1 if offsets else start
            end = self.broker.ends[partition]
            at_end = not any(at >= start for at in self.broker.events[partition])
            if at_end and len(taken) < count and self.told_end.get(partition) != end:
                self.told_end[partition] = self.positions[partition] = end
                taken.append(FakeMessage(partition, end, end=True))
        return taken

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """Waits for open transactions that hold offsets, as readers of committed records do (KIP-447)."""
        fault = self.broker.fault("committed")
        if fault is not None or any(self.broker.pending(place.partition) for place in places):
            self.broker.clock.now += timeout
            raise failure(KafkaError._TIMED_OUT, "offsets are pending", retriable=True)
        return [
            TopicPartition(TOPIC, place.partition, self.broker.group.committed[place.partition]) for place in places
        ]

    def offsets_for_times(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return places  # asked for its side effect on librdkafka alone

    def seek(self, place: TopicPartition) -> None:
        if self.broker.fault("seek") is not None or place.partition not in self.positions:
            raise failure(KafkaError._STATE, "erroneous state")
        self.positions[place.partition] = place.offset
        self.told_end.pop(place.partition, None)

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused |= {place.partition for place in places}

    def resume(self, places: list[TopicPartition]) -> None:
        self.paused -= {place.partition for place in places}

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        for place in places:
            self.positions[place.partition] = None
            self.told_end.pop(place.partition, None)

    def incremental_unassign(self, places: list[TopicPartition]) -> None:
        for place in places:
            del self.positions[place.partition]
            if self.broker.group.owner[place.partition] is self:
                self.broker.group.owner[place.partition] = None

    def get_watermark_offsets(self, place: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, self.broker.ends[place.partition]

    def consumer_group_metadata(self) -> bytes:
        return b"CGMDv2:" + struct.pack("<i", self.epoch) + b"group\0" + self.member.encode() + b"\0"

    def close(self) -> None:
        self.news.clear()
        known = self.member in self.broker.group.members
        if self.positions:
            self.tell("revoke" if known else "lost", list(self.positions))
        try:
            self._serve(consuming=True)
        finally:
            self.broker.group.expel(self)

"""A small broker, as far as the exactly-once worker can tell; its clients are in `fake_clients`.

It knows the events of a few partitions, one group, transactions, and the outputs that they wrote. `check` is the
promise: readers of committed records see each event below a committed offset once, in order, and no other.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException

if TYPE_CHECKING:
    from tests.unit.fake_clients import FakeConsumer


def failure(code: int, reason: str, **marks: bool) -> KafkaException:
    return KafkaException(KafkaError(code, reason, **marks))


class Clock:
    """Stands for the module `time`: passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Fault(Enum):
    """What becomes of a call. "Done": the broker took it, though the client is told that it timed out."""

    SLOW = auto()  # a retriable time-out: called again, it goes on
    DONE_SLOW = auto()
    HANGS = auto()  # the same, and all patience is gone
    DONE_HANGS = auto()
    LATE = auto()  # the client gives up, the request reaches the broker later, or never
    ABORTABLE = auto()
    REFUSED = auto()  # and would be so again
    FATAL = auto()
    FULL = auto()  # BufferError
    STATE = auto()  # not now
    BROKER_TIMEOUT = auto()  # the broker has just ended the open transaction
    AGAIN = auto()  # what was there comes again: records, a revoked partition
    EXPELLED = auto()  # the group has just taken the worker for dead


@dataclass(eq=False)
class Transaction:
    """What one transaction holds, as the broker sees it."""

    state: str = "open"
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class TransactionalId:
    """The transaction coordinator's knowledge of one id."""

    epoch: int = 0
    transaction: Transaction | None = None
    timed_out: int | None = None  # the epoch that the broker's time-out ended
    holder: int = 0  # when the worker was started that initialised it last


class Broker:
    """All partitions, the group and the transactions."""

    def __init__(self, partitions: int) -> None:
        self.clock = Clock()
        self.events: dict[int, list[int]] = {partition: [] for partition in range(partitions)}
        self.ends = dict.fromkeys(range(partitions), 0)
        #: What was produced for a partition's events; what was sealed of them stands at -1 - partition.
        self.outputs: defaultdict[int, list[tuple[Transaction, int]]] = defaultdict(list)
        self.ids: defaultdict[str, TransactionalId] = defaultdict(TransactionalId)
        self.in_flight: list[tuple[TransactionalId, int]] = []  # commits that may yet arrive, with their epoch
        self.group = Group(self)
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.slow = False  # nothing is sent before a commit
        self.recovers = False  # a producer whose transaction timed out may go on (KIP-588)
        self.acting: FakeConsumer | None = None

    def fault(self, call: str) -> Fault | None:
        return self.faults[call].popleft() if self.faults[call] else None

    def open_ids(self) -> list[TransactionalId]:
        return [each for each in self.ids.values() if each.transaction is not None]

    def pending(self, partition: int) -> bool:
        return any(partition in each.transaction.offsets for each in self.open_ids() if each.transaction)

    def time_out(self, each: TransactionalId) -> None:
        """End the open transaction of an id and fence its producer."""
        if each.transaction is not None:
            self.end(each, "aborted")
            each.timed_out, each.epoch = each.epoch, each.epoch + 1

    def end(self, each: TransactionalId, state: str) -> None:
        transaction, each.transaction = each.transaction, None
        assert transaction is not None
        transaction.state = state
        if state == "committed":
            self.group.committed.update(transaction.offsets)
            self.check()

    def land(self, index: int) -> None:
        """A commit on the wire arrives at last."""
        each, epoch = self.in_flight.pop(index % len(self.in_flight))
        if each.epoch == epoch and each.transaction is not None:
            self.end(each, "committed")

    def check(self) -> None:
        for partition, committed in self.group.committed.items():
            below = [offset for offset in self.events[partition] if offset < committed]
            for place in (partition, -1 - partition):
                seen = [offset for transaction, offset in self.outputs[place] if transaction.state == "committed"]
                assert seen == below, (
                    f"partition {partition} is committed to {committed}, committed at {place} are {seen}"
                )


class Group:
    """The group coordinator. Each member has an epoch of its own, as in KIP-848; a classic group allows less."""

    def __init__(self, broker: Broker) -> None:
        self.members: dict[str, int] = {}
        self.owner: dict[int, FakeConsumer | None] = dict.fromkeys(broker.events)
        self.committed = dict.fromkeys(broker.events, 0)
        self._joined = 0

    def join(self, consumer: "FakeConsumer") -> None:
        self._joined += 1
        consumer.member = f"member-{self._joined}"
        self._bump(consumer)

    def _bump(self, consumer: "FakeConsumer") -> None:
        self.members[consumer.member] = consumer.epoch = consumer.epoch + 1 if consumer.epoch >= 0 else 1

    def give(self, partition: int, consumer: "FakeConsumer", *, later: bool = False) -> None:
        self._bump(consumer)
        self.owner[partition] = consumer
        consumer.tell("assign", [partition], later=later)

    def ask_back(self, partitions: list[int], consumer: "FakeConsumer", *, later: bool = False) -> None:
        """The owner keeps them until it has served this."""
        self._bump(consumer)
        consumer.tell("revoke", partitions, later=later)

    def expel(self, consumer: "FakeConsumer") -> None:
        """Take a member for dead. It does not know."""
        self.members.pop(consumer.member, None)
        for partition, owner in self.owner.items():
            if owner is consumer:
                self.owner[partition] = None

    def check_member(self, member: str, epoch: int) -> None:
        """What the broker checks with transactional offsets: nothing at all where there is no epoch."""
        if epoch >= 0 and self.members.get(member) != epoch:
            code = KafkaError.ILLEGAL_GENERATION if member in self.members else KafkaError.UNKNOWN_MEMBER_ID
            raise failure(code, "no member, or of another time", txn_requires_abort=True)

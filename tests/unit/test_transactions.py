"""A state machine tries to lose, double or reorder events under exactly-once, with several workers and a broker that fails.

The workers are real `Owner`s with real `ExactlyOnce`s; their thread is not started, the machine takes its steps. The broker
(`fake_broker`) checks its promise at each commit; at the end all faults stop, and whatever was left behind must be caught up.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest
from confluent_kafka import KafkaException
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ecluse.errors import BrokerError
from ecluse.transport import owner as owning
from ecluse.transport import progress, transactions
from ecluse.transport.ledger import Chunk, Output
from ecluse.transport.owner import Owner, OwnerConfig
from ecluse.transport.transactions import ExactlyOnce
from tests.unit.fake_broker import Broker, Fault
from tests.unit.fake_clients import TOPIC, FakeConsumer, FakeProducer

PARTITIONS = 3
SLOTS = 3

OUTCOMES = [Fault.SLOW, Fault.DONE_SLOW, Fault.HANGS, Fault.DONE_HANGS]
ENDINGS = [Fault.ABORTABLE, Fault.FATAL, Fault.BROKER_TIMEOUT, Fault.EXPELLED]
FAULTS = {
    "init_transactions": OUTCOMES,
    "begin_transaction": [Fault.STATE, Fault.FATAL],
    "produce": [Fault.FULL, Fault.STATE, Fault.REFUSED],
    "send_offsets_to_transaction": [*OUTCOMES, *ENDINGS, Fault.REFUSED],
    "commit_transaction": [*OUTCOMES, *ENDINGS, Fault.REFUSED, Fault.LATE],
    "abort_transaction": [*OUTCOMES, Fault.FATAL, Fault.STATE, Fault.BROKER_TIMEOUT],
    "committed": [Fault.HANGS],
    "seek": [Fault.STATE],
    "poll": [Fault.AGAIN],
    "revoke": [Fault.AGAIN],
}
faults = st.sampled_from(sorted(FAULTS)).flatmap(lambda call: st.tuples(st.just(call), st.sampled_from(FAULTS[call])))
some_partitions = st.sets(st.integers(0, PARTITIONS - 1))
Blow = tuple[tuple[str, Fault], Collection[int], bool, float]
blows = st.tuples(faults, some_partitions, st.booleans(), st.sampled_from([0.0, 2.0]))


def seal(chunks: Sequence[Chunk]) -> list[Output]:
    """Counts each event by its offset, at the place where the broker looks for it."""
    return [
        Output("sealed", str(-1 - chunk.ledger.partition.partition).encode(), str(offset).encode(), None)
        for chunk in chunks
        for offset in cast(list[int], chunk.tally)
    ]


class Worker:
    """A real owner without its thread; what it fetched waits to be scored."""

    def __init__(self, broker: Broker, slot: int, birth: int) -> None:
        self.slot, self.unscored = slot, list[Chunk]()
        self.consumer = FakeConsumer(broker, birth)
        producer = {"transactional.id": f"group-{slot}", "transaction.timeout.ms": 10_000}
        config = OwnerConfig((TOPIC,), {"group.id": "group"}, producer, commit_interval=1.0, seal=seal)
        self.owner = Owner(config, self.unscored.append, lambda _: None, lambda _: None)
        self.owner.chunk_records = 2
        self.owner._delivery = self.delivery = ExactlyOnce(
            config.producer, config.commit_interval, self.owner._beat, config.seal
        )
        self.owner._consumer = cast(Any, self.consumer)

    def score(self, first: int, count: int) -> None:
        for _ in range(min(count, len(self.unscored))):
            chunk = self.unscored.pop(first % len(self.unscored))
            outputs = [Output("scored", None, str(record.offset()).encode(), None) for record in chunk.records]
            chunk.tally = [record.offset() for record in chunk.records]
            self.owner.done(chunk, outputs)

    def end(self) -> None:
        """As `Owner.run` ends when told to."""
        self.owner.close()
        self.owner._produce_scored(0.0)
        self.owner._finish(self.owner.ledgers.values())


class TransactionsMachine(RuleBasedStateMachine):
    """Everything that befalls a group of workers, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker(PARTITIONS)
        self.group = self.broker.group
        for partition in range(PARTITIONS):
            self.publish(partition, 5, 0)
        self.births = 0
        self.workers: list[Worker] = []  # those that live; a stale one lives on beside its successor
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(transactions, "Producer", lambda config: FakeProducer(self.broker, config))
        self.patch.setattr(transactions, "QUEUED_RECORDS", 8)
        self.patch.setattr(owning, "BUSY_WAIT", 0.0)
        for module in (transactions, owning, progress):
            self.patch.setattr(module, "time", self.broker.clock)
        self.start(0)
        self.start(1)
        for partition in range(PARTITIONS):
            self.give(partition, partition, later=False)

    def act(self, worker: Worker, step: Callable[[], object]) -> None:
        """Take a step of the thread; where that ends the worker, as `Owner.run` does it."""
        self.broker.acting = worker.consumer
        try:
            step()
            if not worker.owner._closing.is_set():
                return
        except (BrokerError, KafkaException):
            worker.owner._closing.set()
            worker.owner._abandon()
        self.workers.remove(worker)
        with suppress(BrokerError, KafkaException):
            worker.consumer.close()

    def pick(self, number: int) -> Worker:
        return self.workers[number % len(self.workers)]

    # -- events come ---------------------------------------------------------------------------------------------------

    @rule(partition=st.integers(0, PARTITIONS - 1), count=st.integers(0, 6), gap=st.integers(0, 2))
    def publish(self, partition: int, count: int, gap: int) -> None:
        start = self.broker.ends[partition] + gap
        self.broker.events[partition] += range(start, start + count)
        self.broker.ends[partition] = start + count

    # -- workers work --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.workers)
    @rule(worker=st.integers(0, 5), seconds=st.sampled_from([0.0, 0.02, 2.0]))
    def turn(self, worker: int, seconds: float) -> None:
        self.broker.clock.now += seconds
        self.act(self.pick(worker), self.pick(worker).owner._turn)

    @precondition(lambda self: self.workers)
    @rule(worker=st.integers(0, 5), turns=st.sampled_from([1, 2, 4, 30]))
    def work(self, worker: int, turns: int) -> None:
        self.run(self.pick(worker), turns)

    def run(self, worker: Worker, turns: int, seconds: float = 0.006) -> None:
        """Fetch, score all in order, produce; commit now and then."""
        for _ in range(turns):
            if worker in self.workers:
                self.broker.clock.now += seconds
                self.act(worker, worker.owner._turn)
                worker.score(0, 100)

    @precondition(lambda self: self.workers)
    @rule(worker=st.integers(0, 5), part=st.sampled_from(["_fetch", "_produce_scored", "_commit"]))
    def part_of_a_turn(self, worker: int, part: str) -> None:
        owner = self.pick(worker).owner
        parts: dict[str, Callable[[], object]] = {
            "_fetch": lambda: owner._fetch(0.0),
            "_produce_scored": lambda: owner._produce_scored(0.0),
            "_commit": lambda: owner._guard(owner._commit),
        }
        if owner._rewind_due:  # then there is no other part before it
            self.act(self.pick(worker), owner._rewind)
        else:
            self.broker.clock.now += 2.0 * (part == "_commit")
            self.act(self.pick(worker), parts[part])

    @precondition(lambda self: any(each.unscored for each in self.workers))
    @rule(worker=st.integers(0, 5), first=st.integers(0, 20), count=st.integers(1, 4))
    def score(self, worker: int, first: int, count: int) -> None:
        """Any chunks, in any order, those of dead epochs too."""
        self.pick(worker).score(first, count)

    # -- the group moves partitions ------------------------------------------------------------------------------------

    def members(self) -> list[Worker]:
        return [each for each in self.workers if each.consumer.member in self.group.members]

    @rule(partition=st.integers(0, PARTITIONS - 1), worker=st.integers(0, 5), later=st.booleans())
    def give(self, partition: int, worker: int, later: bool) -> None:
        if self.group.owner[partition] is None and (members := self.members()):
            self.group.give(partition, members[worker % len(members)].consumer, later=later)

    @precondition(lambda self: self.members())
    @rule(worker=st.integers(0, 5), partitions=some_partitions, later=st.booleans())
    def ask_back(self, worker: int, partitions: Collection[int], later: bool) -> None:
        self.ask(self.members()[worker % len(self.members())].consumer, partitions, later)

    def ask(self, consumer: FakeConsumer, partitions: Collection[int], later: bool) -> None:
        asked = {partition for kind, places, _ in consumer.news if kind == "revoke" for partition in places}
        if held := sorted((consumer.positions.keys() & partitions) - asked):
            self.group.ask_back(held, consumer, later=later)

    @precondition(lambda self: self.workers)
    @rule(worker=st.integers(0, 5))
    def expel(self, worker: int) -> None:
        """The worker was silent for a session: it goes on and does not know."""
        self.group.expel(self.pick(worker).consumer)

    @rule(worker=st.integers(0, 5))
    def tell_a_stale_worker(self, worker: int) -> None:
        """First its client learns that it is no member, then, when served, the worker; then it joins again."""
        if stale := [each for each in self.workers if each not in self.members()]:
            consumer = stale[worker % len(stale)].consumer
            if consumer.member:
                consumer.learn()
            elif not consumer.news:
                self.group.join(consumer)

    @precondition(lambda self: self.members())
    @rule(worker=st.integers(0, 5), several=st.lists(blows, min_size=1, max_size=3))
    def trouble(self, worker: int, several: list[Blow]) -> None:
        """Turns with much to produce, in which calls go wrong and the group asks partitions back."""
        chosen = self.members()[worker % len(self.members())]
        for partition in range(PARTITIONS):
            self.publish(partition, 4 * len(several), 0)
        self.run(chosen, 1)
        for fault, partitions, later, seconds in several:
            self.fail(fault, 1)
            if chosen in self.members():
                self.ask(chosen.consumer, partitions, later)
            self.run(chosen, 1, seconds)

    @precondition(lambda self: len(self.members()) > 1)
    @rule(worker=st.integers(0, 5), late=st.booleans(), learns=st.booleans(), turns=st.integers(0, 4))
    def freeze(self, worker: int, late: bool, learns: bool, turns: int) -> None:
        """A worker is silent for a session, others go on in its place, and then it takes up where it stood."""
        stale, other = [self.members()[(worker + each) % len(self.members())] for each in (0, 1)]
        self.run(stale, 1)
        if late:  # its commit arrives after it was given up
            self.fail(("commit_transaction", Fault.LATE), 1)
            self.run(stale, 1, seconds=2.0)
        self.group.expel(stale.consumer)
        self.give_all(other)
        self.run(other, turns, seconds=2.0)
        if self.broker.in_flight:
            self.land(0)
        if learns and stale in self.workers:
            stale.consumer.learn()
        self.run(stale, 1, seconds=2.0)

    def give_all(self, worker: Worker) -> None:
        """All partitions that nobody has."""
        for partition, owner in self.group.owner.items():
            if owner is None and worker in self.members():
                self.group.give(partition, worker.consumer)

    @precondition(lambda self: self.members())
    @rule(worker=st.integers(0, 5), partitions=some_partitions)
    def stall(self, worker: int, partitions: Collection[int]) -> None:
        """Scoring hangs until all is paused; partitions leave meanwhile, and come back."""
        chosen = self.members()[worker % len(self.members())]
        for turn in range(8):
            if chosen in self.members():
                self.broker.clock.now += 0.5
                self.act(chosen, chosen.owner._turn)
                if turn == 5:
                    self.ask(chosen.consumer, partitions, later=False)
        self.give_all(chosen)

    # -- workers come and go -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < SLOTS)
    @rule(slot=st.integers(0, SLOTS - 1))
    def start(self, slot: int) -> None:
        """A new worker, perhaps in the slot of one that is taken for dead."""
        if all(each.slot != slot for each in self.members()):
            self.births += 1
            worker = Worker(self.broker, slot, self.births)
            self.workers.append(worker)
            self.act(worker, worker.owner._prepare)

    @precondition(lambda self: self.workers)
    @rule(worker=st.integers(0, 5))
    def kill(self, worker: int) -> None:
        """Its transaction stays open."""
        self.group.expel(self.pick(worker).consumer)
        self.workers.remove(self.pick(worker))

    @precondition(lambda self: self.members())
    @rule(worker=st.integers(0, 5), turns=st.integers(1, 3))
    def replace(self, worker: int, turns: int) -> None:
        """Killed at work, another starts in its slot."""
        old = self.members()[worker % len(self.members())]
        self.run(old, turns)
        if old in self.members():
            self.kill(self.workers.index(old))
            self.start(old.slot)
            self.give_all(self.workers[-1])

    @precondition(lambda self: self.workers)
    @rule(worker=st.integers(0, 5))
    def leave(self, worker: int) -> None:
        self.act(self.pick(worker), self.pick(worker).end)

    # -- the broker fails ----------------------------------------------------------------------------------------------

    @rule(fault=faults, times=st.sampled_from([1, 1, 1, 2, 5]))
    def fail(self, fault: tuple[str, Fault], times: int) -> None:
        self.broker.faults[fault[0]].extend([fault[1]] * times)

    @precondition(lambda self: self.broker.open_ids())
    @rule(number=st.integers(0, 5), recovers=st.booleans())
    def time_out(self, number: int, recovers: bool) -> None:
        self.broker.recovers = recovers
        self.broker.time_out(self.broker.open_ids()[number % len(self.broker.open_ids())])

    @precondition(lambda self: self.broker.in_flight)
    @rule(number=st.integers(0, 5))
    def land(self, number: int) -> None:
        self.broker.land(number)

    @rule()
    def slow_down(self) -> None:
        self.broker.slow = not self.broker.slow

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def each_event_below_a_committed_offset_came_out_once_and_in_order(self) -> None:
        self.broker.check()

    def teardown(self) -> None:
        try:
            self.catch_up()
        finally:
            self.patch.undo()

    def catch_up(self) -> None:
        """All faults end; who was taken for dead learns it and joins again."""
        self.broker.faults.clear()
        self.broker.in_flight.clear()
        self.broker.slow = False
        producers = [cast(Any, worker.delivery._producer) for worker in self.workers]
        living = {(producer.name, producer.epoch) for producer in producers if producer is not None}
        for name, each in self.broker.ids.items():
            if (name, each.epoch) not in living:
                self.broker.time_out(each)
        if not self.workers:
            self.start(0)
        for worker in self.workers:
            worker.delivery._aborts_in_a_row = 0
        workers = list(self.workers)
        for number in range(400):
            for worker in workers:
                self.tell_a_stale_worker(number)
                for partition in range(PARTITIONS):
                    self.give(partition, partition, later=False)
                self.run(worker, 1, seconds=2.0)
            assert self.workers == workers, "a worker ended though nothing was wrong any more"
            if self.group.committed == self.broker.ends:
                break
        self.broker.check()
        assert self.group.committed == self.broker.ends, "the group stands still"


TestTransactions = TransactionsMachine.TestCase
TestTransactions.settings = settings(max_examples=400, stateful_step_count=50, deadline=None, derandomize=True)


@pytest.mark.parametrize("fault", [Fault.HANGS, Fault.DONE_HANGS, Fault.LATE])
def test_a_commit_of_which_nobody_knows_the_outcome_is_looked_up_even_if_no_event_follows(fault: Fault) -> None:
    machine = TransactionsMachine()
    worker = machine.workers[1]
    machine.run(worker, 4, seconds=0.0)
    assert machine.group.committed[1] == 0
    machine.fail(("commit_transaction", fault), 1)
    machine.run(worker, 1, seconds=2.0)
    assert machine.broker.faults["commit_transaction"] == deque()
    machine.teardown()

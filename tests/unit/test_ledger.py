"""A state machine tries to break the ledger: what is committable never lies beyond an unconfirmed record."""

import pytest
from faust.types import TP
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ecluse.transport.ledger import Chunk, Ledger, Output

PARTITION = TP("events", 0)
OUTPUT = Output("predictions", None, b"", None)


class LedgerMachine(RuleBasedStateMachine):
    """Fetch, score, produce, confirm, revoke and take back in any order, with late answers for dead epochs.

    The model is a plain set: every offset handed out, and every offset whose outputs the broker has.
    """

    @initialize(holes=st.sets(st.integers(0, 200), max_size=60))
    def own(self, holes: set[int]) -> None:
        self.log = [offset for offset in range(1000) if offset not in holes]  # compaction and markers leave holes
        self.ledger = Ledger(PARTITION)
        self.next = 0
        self.committed = 0  # what the broker holds for the group; only grows
        self.confirmed: set[int] = set()
        self.fetched: set[int] = set()
        self.scoring: list[Chunk] = []
        self.in_flight: list[Chunk] = []
        self.produced: list[tuple[Ledger, int, int]] = []

    @rule(length=st.integers(1, 5))
    def fetch(self, length: int) -> None:
        records = [offset for offset in self.log if offset >= self.next][:length]
        chunk = self.ledger.add([], records[0], records[-1] + 1, fetched_at=0.0)
        self.scoring.append(chunk)
        self.fetched |= set(records)
        self.next = chunk.next_offset

    @rule()
    def reach_end(self) -> None:
        """The broker says that nothing is left below the next record: what lies between are holes."""
        self.ledger.reached_end(next(offset for offset in self.log if offset >= self.next))

    @precondition(lambda self: self.scoring)
    @rule(data=st.data())
    def score_any(self, data: st.DataObject) -> None:
        chunk = self.scoring.pop(data.draw(st.integers(0, len(self.scoring) - 1)))
        chunk.outputs = [OUTPUT]

    @rule(most=st.integers(1, 4))
    def produce(self, most: int) -> None:
        for count, chunk in enumerate(self.ledger.take_scored(), start=1):
            self.in_flight.append(chunk)
            self.produced.append((self.ledger, chunk.offset, chunk.next_offset))
            if count == most:
                break

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def confirm_any(self, data: st.DataObject) -> None:
        """The broker confirms in any order, and also what an earlier owner had produced."""
        chunk = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.confirmed |= {offset for offset in self.log if chunk.offset <= offset < chunk.next_offset}
        chunk.ledger.confirm(chunk)

    @rule()
    def commit(self) -> None:
        if (offset := self.ledger.to_commit) is not None:
            assert offset >= self.committed
            self.committed = self.ledger.committed = offset

    @rule()
    def commit_transaction(self) -> None:
        """Exactly once: what was produced counts with the offset behind it, and with that alone."""
        if (offset := self.ledger.to_send) is None:
            return
        produced = [chunk for chunk in self.in_flight if chunk.ledger is self.ledger]
        assert offset >= max([self.committed, *(chunk.next_offset for chunk in produced)])
        assert offset <= min((chunk.offset for chunk in self.scoring if chunk.ledger is self.ledger), default=offset)
        for chunk in produced:
            self.in_flight.remove(chunk)
            self.confirmed |= {at for at in self.log if chunk.offset <= at < chunk.next_offset}
        self.committed = offset
        self.ledger.confirm_transaction(offset)
        assert self.ledger.unconfirmed == 0
        assert (self.ledger.to_commit or offset) >= offset  # holes before the end may lie behind it

    @rule(loses=st.booleans())
    def change_owner(self, loses: bool) -> None:
        """Revoke commits first, loss does not; the next owner starts at what is committed."""
        if not loses:
            self.commit()
        self.ledger = Ledger(PARTITION)
        self.next = self.committed

    @invariant()
    def nothing_unconfirmed_is_committed(self) -> None:
        below = {offset for offset in self.fetched if offset < self.committed}
        assert below <= self.confirmed

    @invariant()
    def chunks_are_produced_in_order_within_an_epoch(self) -> None:
        for ledger in {entry[0] for entry in self.produced}:
            spans = [(start, end) for owner, start, end in self.produced if owner is ledger]
            assert spans == sorted(spans)

    @invariant()
    def chunks_in_hand_add_up(self) -> None:
        unscored = sum(chunk.ledger is self.ledger for chunk in self.scoring)
        assert len(self.ledger) >= unscored + self.ledger.unconfirmed
        assert (self.ledger.oldest_unscored is None) == (unscored == 0)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_records_before_the_position_are_refused() -> None:
    ledger = Ledger(PARTITION)
    ledger.add([], 5, 8, 0.0)
    with pytest.raises(ValueError, match="offset 7 lies before the position 8"):
        ledger.add([], 7, 9, 0.0)


def test_a_chunk_without_records_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot reach from 3 to 3"):
        Ledger(PARTITION).add([], 3, 3, 0.0)

"""How the owning thread sizes chunks."""

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecluse.transport.fetching import CHUNK_BYTES, split
from ecluse.transport.ledger import Record
from ecluse.transport.owner import CHUNK_RECORDS, CHUNK_SECONDS, Owner, OwnerConfig


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES // 2), max_size=30), st.integers(1, 10))
def test_runs_keep_order_and_bounds(sizes: list[int], most: int) -> None:
    class Fake:
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    records = [cast(Record, Fake(size)) for size in sizes]
    runs = split(records, most)
    assert [record for run in runs for record in run] == records
    assert all(len(run) <= most for run in runs)
    assert all(len(run) == 1 or sum(map(len, run)) <= CHUNK_BYTES for run in runs)


@pytest.mark.parametrize(
    ("per_record", "expected"), [(1e-6, CHUNK_RECORDS), (1e-3, int(CHUNK_SECONDS / 1e-3)), (0.5, 1)]
)
def test_chunks_come_to_hold_about_the_work_that_may_hold_the_loop(per_record: float, expected: int) -> None:
    owner = Owner(OwnerConfig((), {}, {}, 1.0), print, print, print)
    for _ in range(60):
        records = owner.chunk_records
        owner.pace(records * per_record, records)
    assert owner.chunk_records == pytest.approx(expected, rel=0.25)


def test_a_quick_small_chunk_says_nothing_of_large_ones() -> None:
    owner = Owner(OwnerConfig((), {}, {}, 1.0), print, print, print)
    before = owner.chunk_records
    owner.pace(0.001, 1)
    assert owner.chunk_records == before

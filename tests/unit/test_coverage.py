"""Coverage by intervals says what a plain set of offsets says."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from console.coverage import Coverage, Tally, runs

intervals = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(intervals, max_size=30))
def test_intervals_hold_what_a_set_holds(added: list[tuple[int, int]]) -> None:
    coverage, naive = Coverage(), set[int]()
    for start, end in added:
        fresh = set(range(start, end))
        assert coverage.add(start, end) == len(fresh & naive)
        naive |= fresh
    holes = {offset for start, end in coverage.holes(0, 60) for offset in range(start, end)}
    assert holes == set(range(60)) - naive


@given(st.lists(intervals, max_size=30))
def test_neighbours_are_merged_so_that_there_are_no_more_intervals_than_holes(added: list[tuple[int, int]]) -> None:
    coverage = Coverage()
    for start, end in added:
        coverage.add(start, end)
    between = [hole for hole in coverage.holes(0, 100) if hole[0] > 0]  # the last reaches to 100
    assert len(coverage) == len(between)


@given(st.lists(st.integers(0, 30), max_size=60))
def test_runs_give_the_same_offsets_in_the_same_order(offsets: list[int]) -> None:
    found = list(runs(offsets))
    assert [offset for start, end in found for offset in range(start, end)] == offsets
    assert all(end != start for (_, end), (start, _) in pairwise(found))


@given(
    first=st.integers(0, 10),
    length=st.integers(0, 30),
    gone=st.sets(st.integers(0, 45)),
    outputs=st.lists(st.integers(0, 45), max_size=80),
    split=st.integers(0, 80),
)
def test_a_tally_counts_as_a_naive_count_does(
    first: int, length: int, gone: set[int], outputs: list[int], split: int
) -> None:
    end = first + length
    events = set(range(first, end)) - gone
    outputs = [offset for offset in outputs if offset not in gone]  # no event, no output
    tally = Tally(first, end)
    counted = tally.outputs(outputs[:split])
    for offset in sorted(gone):
        tally.no_events(offset, offset + 1)
    counted += tally.outputs(outputs[split:])

    inside = [offset for offset in outputs if offset in events]
    assert (tally.events, counted) == (len(events), len(inside))
    assert tally.doubled == len(inside) - len(set(inside))
    assert tally.missing == len(events - set(inside))
    assert tally.sample_of_missing(3) == tuple(sorted(events - set(inside))[:3])
    assert counted == tally.events - tally.missing + tally.doubled


def test_a_million_outputs_in_order_take_one_interval() -> None:
    coverage = Coverage()
    for start in range(0, 1_000_000, 1_000):
        coverage.add(start, start + 1_000)
    assert len(coverage) == 1

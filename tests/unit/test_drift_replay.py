"""Whatever comes: nothing raises, each event is counted once, and a state saved anywhere goes on as if it had not been."""

import math

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ecluse.contract.loop import Counts, Covered, Profile, WindowCounts
from ecluse.contract.records import BYPASS, Decision
from tests.unit.drift_stream import DAY, HOUR, MODEL, START, Monitor, counts, even, profile, window

WRONG_TIMES = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e15, START + 300 * DAY]
Stream = list[tuple[Profile, float]]


def some_window(rng: np.random.Generator, today: int) -> WindowCounts:
    """Mostly today's, at times another day's or none; its inputs drift or lack as they will, and a few cannot be."""
    since = START + (today + rng.choice([0, 0, 0, 0, -1, 1, 5, -3])) * DAY
    if rng.random() < 0.03:
        since = float(rng.choice(WRONG_TIMES))
    shares = rng.dirichlet(np.full(10, rng.choice([1, 500])))
    numbers = rng.multinomial(rng.choice([50, 2000]), shares)
    inputs = {"amount": Counts(counts(numbers).bins, int(rng.choice([0, 0, 0, 400])), int(rng.choice([0, 30])))}
    if rng.random() < 0.03:
        inputs["stranger"] = even(10)
    if rng.random() < 0.03:
        inputs["night"] = counts([1, 1, 1])
    reviewed = int(rng.choice([20, 20, 300]))
    arms = {
        "champion": {Decision.ALLOW: int(rng.integers(0, 3000)), Decision.REVIEW: reviewed},
        BYPASS: {Decision.ALLOW: int(rng.integers(0, 50))},
    }
    return WindowCounts(since, inputs, even(1000), arms, int(rng.choice([0, 0, 0, 300])))


def stream_of(seed: int, length: int) -> Stream:
    """A stream that goes on by a third of a day or so with each profile, jumps back now and then, and is wrong at times."""
    rng = np.random.default_rng(seed)
    time, end, stream = START, [0, 0], []
    for _ in range(length):
        time += float(rng.choice([0, 0.2, 0.5, 1])) * DAY
        if rng.random() < 0.03:
            time -= 3 * DAY
        partition, read = int(rng.random() < 0.2), int(rng.integers(0, 200))
        start = end[partition] + int(rng.choice([0, 0, 0, 0, 7, -50]))
        end[partition] = max(start + read, 0)
        times = [float(rng.choice(WRONG_TIMES)) if rng.random() < 0.05 else time for _ in range(3)]
        taken = Profile(
            model=MODEL if rng.random() > 0.02 else "another",
            version=1 + int(time - START > 8 * DAY) if rng.random() > 0.1 else 3,
            manifest_sha256=str(rng.choice(["a"] * 30 + ["b", "none"])),
            worker="worker",
            window_seconds=DAY if rng.random() > 0.02 else HOUR,
            windows=[some_window(rng, int((time - START) // DAY)) for _ in range(rng.integers(0, 3))],
            covers=[Covered(partition, start, start + read, each) for each in times],
        )
        stream.append((taken, max(time, START) + float(rng.choice([0, 1, 50, 4000]))))
    return stream


STREAMS = st.builds(stream_of, st.integers(0, 10**9), st.integers(1, 60))
#: Much is judged, and much opens and ends.
SETTINGS = {
    "span_windows": 2,
    "calm_windows": 1,
    "cooldown_hours": 30,
    "schedule": "every 6h",
    "change_confidence": 0.9,
    "alerts": {"warn": 50, "alarm": 90},
    "rejected": {"warn": 0.03, "alarm": 0.06},
    "missing": {"warn": 0.08, "alarm": 0.1},
}


def told(monitor: Monitor) -> bytes:
    """All that came of a stream."""
    closed = [(each.reports, each.request) for each in monitor.closed]
    return msgspec.json.encode(
        [closed, monitor.scheduled, monitor.fold.apart, monitor.fold.leader, monitor.fold.episode]
    )


@settings(max_examples=70, deadline=None)
@given(STREAMS, st.data())
def test_a_state_saved_and_restored_anywhere_changes_nothing(stream: Stream, data: st.DataObject) -> None:
    whole, cut = Monitor(**SETTINGS), Monitor(**SETTINGS)
    restarts = data.draw(st.sets(st.integers(0, len(stream))))
    for i, (taken, recorded) in enumerate(stream):
        whole.take(taken, recorded)
        if i in restarts:
            cut.restart()
        cut.take(taken, recorded)
    assert told(cut) == told(whole)
    assert cut.fold.dump() == whole.fold.dump()


@settings(max_examples=70, deadline=None)
@given(STREAMS)
def test_each_event_is_told_once(stream: Stream) -> None:
    monitor = Monitor(**SETTINGS | {"span_windows": 1})
    sent = 0
    for taken, recorded in stream:
        for each in taken.windows:
            each.rejected = 0
            sent += sum(sum(decisions.values()) for decisions in each.arms.values())
        monitor.take(taken, recorded)
        monitor.restart()
    monitor.fold._max_ahead = math.inf  # type: ignore[misc]  # so that the end of the stream closes all that is open
    monitor.take(profile(times=[START + 400 * DAY] * 5), 9e9)
    monitor.tell(START + 400 * DAY)
    apart = monitor.fold.apart
    assert sum(report.events for report in monitor.reports) + apart.late + apart.ahead + apart.refused == sent
    for what in ("late", "ahead", "refused", "uncounted"):
        assert sum(getattr(report, what) for report in monitor.reports) <= getattr(apart, what)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.data())
def test_it_does_not_matter_how_a_windows_counts_were_sent(seed: int, data: st.DataObject) -> None:
    """In one profile or in many, in any order: what closes is the same, as long as it comes before its window closes."""
    rng = np.random.default_rng(seed)
    sent = [some_window(rng, int(rng.integers(0, 3))) for _ in range(8)]
    outcomes = []
    for shuffled in (False, True):
        monitor = Monitor(**SETTINGS)
        monitor.take(profile([window(START)], [START + HOUR] * 5))
        for group in [[each] for each in data.draw(st.permutations(sent))] if shuffled else [sent]:
            monitor.take(profile(group))
        monitor.tell(START + 9 * DAY)
        outcomes.append(told(monitor))
    assert outcomes[0] == outcomes[1]


def test_a_profile_that_was_taken_before_changes_nothing() -> None:
    monitor = Monitor()
    again = profile([window(START)], [START] * 5)
    monitor.take(again)
    before = monitor.fold.dump()
    assert monitor.fold.take(again, START, 0) is None
    assert monitor.fold.dump() == before


def test_a_state_between_the_profile_and_the_closing_that_it_brought_closes_alike() -> None:
    monitor, other = Monitor(), Monitor()
    monitor.play(window(START + day * DAY) for day in range(9))
    monitor.take(profile([window(START + 9 * DAY, amount=Counts(missing=2000))]))
    monitor.fold.take(profile(times=[START + 11 * DAY] * 5), 4e9, monitor.fold.next_offset)
    other.fold.restore(monitor.fold.dump())
    assert monitor.fold.due() == other.fold.due() is not None
    closed = monitor.fold.close()
    assert closed.request is not None
    assert other.fold.close() == closed


def test_a_state_stays_small() -> None:
    monitor = Monitor(window_hours=1, span_windows=24, change_confidence=0.2)
    monitor.play(window(START + hour * HOUR, 600) for hour in range(200))
    early = len(monitor.fold.dump())
    monitor.play(window(START + hour * HOUR, 600) for hour in range(200, 500))
    assert len(monitor.fold.dump()) <= early * 1.1 < 20_000

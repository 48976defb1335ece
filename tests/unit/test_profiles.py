"""What workers count: into which bins values fall, and that the parts add up to the whole however events are split."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from faust.types import TP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecluse.contract.codecs import Reader
from ecluse.contract.loop import Counts, Covered, Profile
from ecluse.contract.records import Arm, Decision, Thresholds
from ecluse.model.bins import Bins
from ecluse.model.features import FeatureSet
from ecluse.model.manifest import Histogram, histogram
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Ledger
from scoring.champion import Champion
from scoring.pipeline import Pipeline
from scoring.profiles import Profiles
from tests.conftest import MakeSettings
from tests.unit.test_pipeline import FEATURES, FakeRecord, by_amount

HOUR_MS = 3_600_000
REFERENCE = {
    "amount": histogram(np.arange(100, dtype=np.float32)),
    "risk": histogram(np.array([0.0] * 90 + [0.5, 1.0], dtype=np.float32)),
}
SCORES = histogram(np.linspace(0, 0.099, 50))

floats = st.floats(-50, 50, width=32) | st.just(float("nan")) | st.integers(-3, 3).map(float)


def test_bins_count_what_the_manifest_counts() -> None:
    @given(st.lists(floats, min_size=1), st.lists(floats, min_size=1), st.booleans())
    def check(reference: list[float], values: list[float], coded: bool) -> None:
        edges = [code + 0.5 for code in range(100)] if coded else None
        known = histogram(np.array(reference, dtype=np.float32), edges)
        known = msgspec.structs.replace(known, low=None, high=None) if coded else known  # as of categories
        column = np.array([*values, *known.edges], dtype=np.float32)
        bins = Bins({"x": known})
        got = bins.counts(bins.totals(bins.cells(column[:, None]))[0])["x"]
        low, high = (-np.inf, np.inf) if known.low is None or known.high is None else (known.low, known.high)
        inside = column[(column >= low) & (column <= high)]
        expected = histogram(inside, known.edges).counts
        assert got == Counts(
            {i: count for i, count in enumerate(expected) if count},
            missing=int(np.isnan(column).sum()),
            below=int((column < low).sum()),
            above=int((column > high).sum()),
        )

    check()


def test_columns_may_come_in_blocks_and_rows_in_groups() -> None:
    matrix = np.array([[0.0, 1.0], [2.0, np.nan], [-9.0, 0.5]], dtype=np.float32)
    bins = Bins({"a": histogram(matrix[:2, 0]), "b": histogram(matrix[:, 1]), "c": histogram(matrix[:, 0])})
    blocks = bins.cells(matrix, matrix[:, 0].astype(np.float64))
    assert np.array_equal(blocks, bins.cells(matrix[:, [0, 1, 0]]))
    totals = bins.totals(blocks, np.array([1, 0, 1]), 3)
    assert np.array_equal(totals[1], bins.totals(blocks[[0, 2]])[0])
    assert totals.shape == (3, bins.width) and totals[2].sum() == 0


class Counted:
    """A pipeline that counts, around a model of two inputs; `seals` are the profiles of all that it was given."""

    def __init__(self, settings: Settings, reference: dict[str, Histogram] = REFERENCE) -> None:
        self.model = SimpleNamespace(
            name="m",
            version=3,
            features=FeatureSet(FEATURES, settings.stream.schema_of_events()),
            usual=np.array([50.0, 0.0], dtype=np.float32),
            score=by_amount,
            manifest=SimpleNamespace(reference=reference, score_reference=SCORES),
        )
        self.profiles = Profiles(settings, "w-1", Telemetry())
        self.pipeline = Pipeline(settings, self.champion("champion"), "w-1", Telemetry(), self.profiles)
        self.ledgers = {partition: Ledger(TP("events", partition)) for partition in range(4)}

    def champion(self, arm: str, version: int = 3) -> Champion:
        model = SimpleNamespace(**{**vars(self.model), "version": version})
        return Champion(cast(Model, model), Arm(arm, version, Thresholds(0.05, 0.09)), 7, f"sha-{version}", 0.0)

    def chunk(self, partition: int, records: list[FakeRecord]) -> Chunk:
        return self.ledgers[partition].add(records, records[0].place, records[-1].place + 1, 0.0)

    def seal(self, chunks: list[Chunk]) -> list[Profile]:
        read = Reader(Profile)
        return [read(output.value or b"") for output in self.profiles.seal(chunks)]


def record(place: int, amount: float | None, at: int = 0, content: bytes | None = None, **more: Any) -> FakeRecord:
    body = {"transaction_id": f"t-{place}", "amount": amount, "terminal_risk_30d": 0.0, "night": 0, **more}
    return FakeRecord(place, msgspec.json.encode(body) if content is None else content, at=at)


def added_up(profiles: list[Profile]) -> dict[str, Counter[Any]]:
    """All counts, flat, by window."""
    totals: dict[str, Counter[Any]] = {}
    for profile in profiles:
        for window in profile.windows:
            total = totals.setdefault(str(window.window), Counter())
            for name, counts in [*window.inputs.items(), ("", window.scores)]:
                total.update({(name, i): count for i, count in counts.bins.items()})
                total.update({(name, k): getattr(counts, k) for k in ("missing", "below", "above")})
            total.update({(arm, d): count for arm, of in window.arms.items() for d, count in of.items()})
            total["rejected"] += window.rejected
    return {window: +total for window, total in totals.items()}


amounts = st.one_of(st.integers(-20, 150).map(float), st.none())


@given(
    st.lists(st.tuples(st.integers(0, 2), amounts, st.integers(0, 50), st.booleans()), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
    st.sampled_from(["arrival", "event"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_add_up_to_the_whole_however_events_are_split(
    make: Any, taken: list[tuple[int, float | None, int, bool]], chance: Any, clock: str
) -> None:
    rows: dict[int, list[FakeRecord]] = {}
    for place, (partition, amount, hour, is_event) in enumerate(taken):
        more = {"time": f"2026-01-0{1 + hour // 24}T{hour % 24:02}:00:00Z"} if clock == "event" else {}
        content = None if is_event else b"{"
        rows.setdefault(partition, []).append(record(place, amount, hour * HOUR_MS, content, **more))
    whole, split = Counted(make(clock)), Counted(make(clock))
    chunks = [whole.chunk(partition, records) for partition, records in rows.items()]
    whole.pipeline(chunks)
    parts: list[Chunk] = []
    for partition, records in rows.items():
        left = records
        while left:
            size = chance.randint(1, len(left))
            parts.append(split.chunk(partition, left[:size]))
            left = left[size:]
    sealed, calls = [], list(parts)
    while calls:
        size = chance.randint(1, len(calls))
        split.pipeline(calls[:size])
        calls = calls[size:]
    while parts:
        size = chance.randint(1, len(parts))
        sealed += split.seal(parts[:size])
        parts = parts[size:]
    expected, got = added_up(whole.seal(chunks)), added_up(sealed)
    if clock == "event":  # what is no event is counted with the middle of its chunk, which is another one then
        expected, got = {"": sum(expected.values(), Counter())}, {"": sum(got.values(), Counter())}
    assert got == expected
    events = sum(is_event and amount is not None for _, amount, _, is_event in taken)
    totals: Counter[Any] = sum(got.values(), Counter())
    assert sum(count for cell, count in totals.items() if cell[0] == "champion") == events
    assert totals["rejected"] == len(taken) - events
    covered = {p: [(c.start, c.end) for s in sealed for c in s.covers if c.partition == p] for p in range(3)}
    for partition, chunk in zip(rows, chunks, strict=True):
        ranges = covered[partition]
        assert ranges[0][0] == chunk.offset and ranges[-1][1] == chunk.next_offset
        assert all(before[1] == after[0] for before, after in pairwise(ranges))


@pytest.fixture
def make(make_settings: MakeSettings) -> Any:
    by_clock = {
        clock: make_settings(stream={"clock": clock}, monitor={"window_hours": 6}) for clock in ("arrival", "event")
    }
    return by_clock.__getitem__


def test_a_change_of_the_model_parts_the_counts(make: Any) -> None:
    counted = Counted(make("arrival"))
    first, second, third = (counted.chunk(0, [record(place, 10.0)]) for place in (4, 6, 9))
    counted.pipeline([first])
    counted.pipeline.serve(counted.champion("other", version=4))
    counted.pipeline([second, third])
    before, after = counted.seal([first, second, third])
    assert (before.version, before.manifest_sha256, after.version, after.manifest_sha256) == (3, "sha-3", 4, "sha-4")
    assert before.windows[0].arms == {"champion": {Decision.ALLOW: 1}}
    assert after.windows[0].arms == {"other": {Decision.ALLOW: 2}}
    # The gaps at 5, 7 and 8 (markers of a producer's transactions) hold no events, and nothing is missing there.
    assert (before.covers, after.covers) == ([Covered(0, 4, 5, 0.0)], [Covered(0, 5, 10, 0.0)])


def test_a_change_of_the_model_leaves_the_offsets_of_each_partition_in_order(make: Any) -> None:
    """Also where the partition that comes first has none of the model before: else offsets would seem to be in no profile."""
    counted = Counted(make("arrival"))
    mine, other = counted.chunk(1, [record(0, 10.0)]), counted.chunk(0, [record(0, 10.0)])
    counted.pipeline([mine])
    counted.pipeline.serve(counted.champion("other", version=4))
    later = counted.chunk(1, [record(1, 10.0)])
    counted.pipeline([other, later])
    before, after = counted.seal([other, mine, later])
    assert (before.version, before.covers) == (3, [Covered(1, 0, 1, 0.0)])
    assert (after.version, after.covers) == (4, [Covered(0, 0, 1, 0.0), Covered(1, 1, 2, 0.0)])


def test_a_profile_that_does_not_fit_is_sent_in_parts(make_settings: MakeSettings) -> None:
    chosen = make_settings(topics={"max_message_bytes": 1024}, monitor={"window_hours": 1})
    fine = histogram(np.arange(100, dtype=np.float32), [i / 64 for i in range(6400)])
    counted = Counted(chosen, {"amount": fine, "risk": REFERENCE["risk"]})
    hours = [record(place, place / 64, place % 700 * HOUR_MS) for place in range(20_000)]
    chunk = counted.chunk(1, hours)
    counted.pipeline([chunk])
    small = [record(20_000 + place, place / 64) for place in range(6400)]
    crowded = counted.chunk(1, small)
    counted.pipeline([crowded])
    outputs = counted.profiles.seal([chunk, crowded])
    sizes = [len(output.value or b"") for output in outputs]
    assert len(sizes) > 3 and max(sizes) < 1024 + 64 * 1024
    profiles = [Reader(Profile)(output.value or b"") for output in outputs]
    totals: Counter[Any] = sum(added_up(profiles).values(), Counter())
    assert sum(count for cell, count in totals.items() if cell[0] == "champion") == 26_400
    assert sum(count for cell, count in totals.items() if cell[0] == "amount") == 26_400
    assert [covered for profile in profiles for covered in profile.covers] == [Covered(1, 0, 26_400, 0.0)]


def test_dead_letters_are_counted_at_the_time_that_is_known_of_them(make: Any) -> None:
    counted = Counted(make("event"))
    at = 20 * 24 * HOUR_MS
    good = [record(place, 10.0, at, time="2026-01-01T00:30:00Z") for place in range(3)]
    mixed = counted.chunk(0, [*good, record(3, None, at, b"{")])
    alone = counted.chunk(1, [record(0, None, at, b"{")])
    counted.pipeline([mixed, alone])
    windows = counted.seal([mixed, alone])[0].windows
    assert {window.window: window.rejected for window in windows} == {at / 1e3: 1, 1_767_225_600.0: 1}


def test_dead_letters_of_a_published_past_do_not_move_the_clock_to_now(make: Any) -> None:
    counted = Counted(make("event"))
    at = 20 * 24 * HOUR_MS
    event = counted.chunk(0, [record(0, 10.0, at, time="1970-01-02T00:00:00Z")])
    dead = counted.chunk(0, [record(1, None, at + 1000, b"{")])
    counted.pipeline([event])
    counted.pipeline([dead])
    profile = counted.seal([event, dead])[0]
    assert profile.covers == [Covered(0, 0, 2, 24 * 3600 + 1.0)]
    assert [(window.window, window.rejected) for window in profile.windows] == [(24 * 3600.0, 1)]

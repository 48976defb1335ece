"""A replay's comparison: recounted by hand, whatever came before, and in a picture."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from confluent_kafka import Consumer, Message
from hypothesis import given
from hypothesis import strategies as st

from console import replay as command
from console.replay_compare import Comparison, PastThresholds, Why, decide, log_odds, why_changed
from console.replay_past import Outputs, Past, prediction_reader, read_dead_letter
from console.replay_plot import draw
from console.replay_result import Range, Replayed
from ecluse.contract.codecs import encoder
from ecluse.contract.headers import dead_letter_headers
from ecluse.contract.records import Arm, Decision, Prediction, Route, Source, Thresholds
from ecluse.errors import ModelNotFound, RecordError, Stage
from ecluse.model.registry import Registry, Routed
from ecluse.settings import Settings
from scoring.champion import Champion
from scoring.replaying import NO_ROUTE, Outcome, Rescored, load_version
from tests.conftest import MakeSettings

ALLOW, REVIEW, BLOCK, DEAD = Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK, Outcome.DEAD_LETTER

limits = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: Thresholds(min(pair), max(pair)))


def thresholds_of(settings: Settings, route: Route | None = None) -> PastThresholds:
    routes = {} if route is None else {settings.model_name: Routed(route, 4)}
    return PastThresholds(settings, Registry({}, routes))


@given(old_score=st.floats(0, 1), new_score=st.floats(0, 1), old_limits=limits, new_limits=limits)
def test_every_change_has_the_one_reason_that_its_definition_gives(
    old_score: float, new_score: float, old_limits: Thresholds, new_limits: Thresholds
) -> None:
    old, new = decide(old_score, old_limits), decide(new_score, new_limits)
    if old is new:
        return
    why = why_changed(old, Rescored(new, new_score), old_limits)
    if new_limits == old_limits:
        assert why is Why.SCORE
    if new_score == old_score:
        assert why is Why.THRESHOLD
    if why is Why.BOTH:
        assert decide(new_score, old_limits) not in (old, new)


def test_a_threshold_belongs_to_the_stricter_side() -> None:
    assert [decide(score, Thresholds(0.5, 0.9)) for score in (0.49, 0.5, 0.89, 0.9)] == [ALLOW, REVIEW, REVIEW, BLOCK]


def test_a_dead_letter_that_is_scored_and_one_that_comes_anew_have_reasons_of_their_own() -> None:
    unused = Thresholds(0.5, 0.9)
    assert why_changed(DEAD, Rescored(ALLOW, 0.1), unused) is Why.NEWLY_SCORED
    assert why_changed(BLOCK, Rescored(DEAD), unused) is Why.NO_LONGER_SCORED


#: Without a score: it went past the model.
PAST_THE_MODEL = Past(ALLOW, None, 1, 1, 0.5)
old_outputs = st.none() | st.just(Past(DEAD)) | st.just(PAST_THE_MODEL) | st.floats(0, 1)
new_outputs = st.just(Rescored(DEAD)) | st.floats(0, 1)


@given(
    events=st.lists(st.tuples(old_outputs, new_outputs), max_size=40),
    old_limits=limits,
    new_limits=limits,
    committed=st.integers(0, 40),
)
def test_every_event_is_counted_once_and_as_a_count_by_hand_says(
    events: list[tuple[Any, Any]], old_limits: Thresholds, new_limits: Thresholds, committed: int
) -> None:
    past = cast(PastThresholds, SimpleNamespace(of=lambda _: old_limits, known={}))
    then: dict[int, Past] = {}
    now: dict[int, Rescored] = {}
    expected: Counter[tuple[str, str]] = Counter()
    went_past: Counter[str] = Counter()
    for offset, (old, new) in enumerate(events):
        now[offset] = Rescored(decide(new, new_limits), new) if isinstance(new, float) else new
        if old is not None:
            then[offset] = Past(decide(old, old_limits), old, 1, 1) if isinstance(old, float) else old
            if old is PAST_THE_MODEL:
                went_past[now[offset].outcome] += 1
            else:
                expected[then[offset].outcome, now[offset].outcome] += 1
    comparison = Comparison(past)
    half = len(events) // 2
    for part in (range(half), range(half, len(events))):
        comparison.add(then, {offset: now[offset] for offset in part}, committed)
    counted: Counter[tuple[str, str]] = Counter()
    for (old_outcome, new_outcome, why), count in comparison.changes.items():
        counted[old_outcome, new_outcome] += count
        assert (why is None) == (old_outcome is new_outcome)
    assert counted == expected
    assert comparison.changed == sum(count for (old, new), count in expected.items() if old != new)
    assert comparison.changed == sum(comparison.by_reason().values())
    pairs = [(old, new) for old, new in events if isinstance(old, float) and isinstance(new, float)]
    assert comparison.scored_twice == len(pairs) == comparison.plane.sum()
    assert comparison.difference_max == max((abs(new - old) for old, new in pairs), default=0)
    without = [offset for offset, (old, _) in enumerate(events) if old is None]
    assert comparison.waiting == sum(offset >= committed for offset in without)
    assert comparison.bypassed == went_past
    told = comparison.waiting + comparison.not_found + comparison.compared + comparison.bypassed.total()
    assert told == comparison.events == len(events)


def test_who_alerts_newly_is_counted_by_the_first_reason(make_settings: MakeSettings) -> None:
    comparison = Comparison(thresholds_of(make_settings()))
    then = {offset: Past(ALLOW, 0.1, 1, 1, 0.5) for offset in range(5)} | {5: Past(REVIEW, 0.6, 1, 1, 0.5)}
    whys = ["amount", "amount", "", None, None, "night"]
    now = {offset: Rescored(REVIEW, 0.7, why) for offset, why in enumerate(whys)} | {4: Rescored(ALLOW, 0.2)}
    comparison.add(then, now, 6)
    assert comparison.newly_alerting == {"amount": 2, "": 1, None: 1}
    assert comparison.by_reason(stricter=True)[Why.SCORE] == 4


def test_thresholds_of_the_past_come_from_the_route_and_predictions_correct_them(make_settings: MakeSettings) -> None:
    settings = make_settings()
    arms = [Arm("champion", version, Thresholds(version / 10, 0.9)) for version in (3, 2)]
    route = Route(settings.model_name, (arms[0],), 1.0, history=(arms[1],))
    past = thresholds_of(settings, route)
    assert past.of(Past(ALLOW, 0.1, 3, 4, 0.3)) == Thresholds(0.3, 0.9)
    assert past.of(Past(BLOCK, 0.95, 2, 1, 0.9)) == Thresholds(0.2, 0.9)
    # An arm that nobody remembers: what its predictions turned on.
    assert past.of(Past(ALLOW, 0.1, 1, 0, 0.4)) == Thresholds(0.4, math.inf)
    assert past.of(Past(BLOCK, 0.8, 1, 0, 0.7)) == Thresholds(0.4, 0.7)
    assert past.of(Past(ALLOW, 0.1, 1, 0, 0.4)) == Thresholds(0.4, 0.7)
    assert past.of(Past(BLOCK, 0.8, 7, 0, 0.7)) == Thresholds(0.7, 0.7)
    assert past.of(Past(REVIEW, 0.5, 7, 0, 0.2)) == Thresholds(0.2, 0.7)


def test_thresholds_of_an_older_revision_are_looked_for_among_former_champions_first(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    now, before = (Arm("champion", 3, Thresholds(0.3, block)) for block in (0.8, 0.9))
    past = thresholds_of(settings, Route(settings.model_name, (now,), 1.0, history=(before,)))
    assert past.of(Past(ALLOW, 0.1, 3, 4, 0.3)) == now.thresholds
    assert past.of(Past(ALLOW, 0.1, 3, 1, 0.3)) == before.thresholds


def test_a_partition_that_grows_while_kafka_is_asked_has_no_range_that_runs_backwards(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([{0: (3, 10), 1: (0, 10)}, {0: (3, 12), 1: (12, 12)}, {0: (8, 12), 1: (12, 12)}])
    monkeypatch.setattr(command, "spans", lambda *_: next(answers))
    wanted = command._find_range(make_settings(), cast(Consumer, None), 1.0, 2.0)
    assert (wanted.spans, wanted.offsets, wanted.cut) == ({0: (3, 8), 1: (12, 12)}, 5, {0})


def message(offset: int, score: float = 0.1, partition: int = 0, topic: str = "events", when: float = 0.0) -> Message:
    """The prediction of the event at an offset, as it is read."""
    source = Source(topic, partition, offset)
    made = Prediction("e", "c", 1.0, 1.0, "m", 1, "champion", 1.0, score, Decision.ALLOW, 0.5, 1, source)
    value = encoder("msgpack")(made)
    fake = SimpleNamespace(value=lambda: value, headers=lambda: None, timestamp=lambda: (1, int(when * 1e3)))
    return cast(Message, fake)


def outputs(batches: list[list[Message]], first: int = 0, read: list[int] | None = None) -> Outputs:
    def each() -> Iterator[list[Message]]:
        for number, batch in enumerate(batches):
            if read is not None:
                read.append(number)
            yield batch

    return Outputs(each(), prediction_reader(), ("events", 0), first, since=100.0)


def test_outputs_are_read_no_further_than_the_events_are() -> None:
    read: list[int] = []
    past = outputs([[message(offset) for offset in range(start, start + 10)] for start in range(0, 100, 10)], read=read)
    assert sorted(past.up_to(15)) == list(range(15))
    assert read == [0, 1]
    assert sorted(past.up_to(20)) == list(range(15, 20))
    assert read == [0, 1]
    assert sorted(past.up_to(1_000)) == list(range(20, 100))
    assert past.up_to(2_000) == {}


@given(starts=st.lists(st.integers(0, 30), max_size=6), step=st.integers(1, 7))
def test_the_first_output_of_an_event_counts_however_often_workers_begin_again(starts: list[int], step: int) -> None:
    # Each worker begins where everything before is confirmed, and tells itself from the others by its scores.
    written: list[tuple[int, float]] = []
    done = 0
    for number, start in enumerate([0, *starts]):
        begin = min(start, done)
        written += [(offset, number / 10) for offset in range(begin, begin + 12)]
        done = max(done, begin + 12)
    first: dict[int, float] = {}
    for offset, score in written:
        first.setdefault(offset, score)
    messages = [message(offset, score) for offset, score in written]
    past = outputs([messages[at : at + step] for at in range(0, len(messages), step)])
    found: dict[int, float | None] = {}
    for end in range(0, 60, step):
        found |= {offset: each.score for offset, each in past.up_to(end).items()}
    assert found == first


def test_outputs_of_other_partitions_and_topics_and_what_is_none_are_passed_over() -> None:
    broken = cast(Message, SimpleNamespace(value=lambda: b"\xff"))
    batch = [message(0, partition=1), message(1, topic="others"), broken, message(2)]
    assert list(outputs([batch]).up_to(10)) == [2]


def test_outputs_of_deleted_events_are_counted_once_and_only_from_the_range_on() -> None:
    batch = [
        message(0, when=99),
        message(1, when=101),
        message(1, when=102),
        message(2, when=103),
        message(3, when=104),
    ]
    past = outputs([batch], first=3)
    assert list(past.up_to(10)) == [3]
    assert past.earlier == 2


def test_a_dead_letter_is_read_by_its_headers() -> None:
    error = RecordError(Stage.DECODE, "because")
    headers = dead_letter_headers([("mine", b"1")], Source("events", 2, 9), error, app="a", worker="w")
    assert read_dead_letter(cast(Message, SimpleNamespace(headers=lambda: headers))) == (
        Source("events", 2, 9),
        Past(DEAD),
    )
    assert read_dead_letter(cast(Message, SimpleNamespace(headers=lambda: None))) is None


def test_a_version_that_was_never_released_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ModelNotFound, match=r"Version 3 of model t-.* was never released; no version of it was\."):
        load_version(make_settings(), 3, Registry(), lambda *_: None)


@pytest.mark.parametrize(
    ("scores", "new_limits", "old_limits"),
    [
        ([], Thresholds(0.5, 0.9), None),
        ([(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)], Thresholds(0.5, 2.0), Thresholds(0.3, math.inf)),
        ([(0.1, 0.2)] * 1_000 + [(0.01, 0.99)], Thresholds(0.0, 1.0), Thresholds(0.15, 0.7)),
    ],
)
def test_a_picture_is_drawn_whatever_there_is_to_show(
    make_settings: MakeSettings,
    tmp_path: Path,
    scores: list[tuple[float, float]],
    new_limits: Thresholds,
    old_limits: Thresholds | None,
) -> None:
    comparison = Comparison(thresholds_of(make_settings()))
    if old_limits is not None:
        comparison.past.known[1, 1] = old_limits
        then, now = {}, {}
        for offset, (old, new) in enumerate(scores):
            was = decide(old, old_limits)
            told = old_limits.block if was is BLOCK else old_limits.review
            then[offset] = Past(was, old, 1, 1, told)
            now[offset] = Rescored(decide(new, new_limits), new)
        comparison.add(then, now, 0)
    champion = SimpleNamespace(name="m", version=2, arm=Arm("replay", 2, new_limits), revision=NO_ROUTE)
    wanted = Range(1.0, 2.0, {0: (0, len(scores))}, frozenset())
    draw(Replayed("run", cast(Champion, champion), "replays", wanted, comparison), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_log_odds_are_bounded_and_in_the_order_of_the_scores() -> None:
    odds = log_odds(np.array([0.0, 1e-9, 0.1, 0.5, 0.9, 1.0]))
    assert (np.diff(odds) >= 0).all()
    assert odds[3] == 0
    assert np.isfinite(odds).all()

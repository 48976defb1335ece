"""The performance of a version from a training store: small stores, and numbers that were computed by hand."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ecluse.contract.loop import Level, Statistic
from ecluse.contract.records import Arm, Thresholds
from ecluse.errors import DataError
from ecluse.settings import Settings
from retrain.drift import performance
from retrain.drift.performance import matured, outcomes
from tests.conftest import MakeSettings
from tests.stores import ROUTE, at, decision, event, fill, label, past, prediction, revision, route
from tests.unit import artefacts

SHARE = 0.25
#: Version 1 blocks 38 and lets 5 pass without a word; its champion reviews from 0.25 on and blocks from 0.5 on.
LOW, HIGH = 5.0, 38.0
DAY = 24.0
SINCE, UNTIL, AS_OF = 0.0, 48.0, 72.0

Found = dict[str, Statistic]


@pytest.fixture
def settings(make_settings: MakeSettings, tmp_path: Path) -> Settings:
    """A stream whose outcomes are mature after a day, with version 1 as champion in its training store."""
    settings = make_settings(
        labels={"maturity_hours": DAY, "origins": ("chargeback", "analyst")}, store={"url": str(tmp_path / "store")}
    )
    fill(settings, revisions=[revision(0, artefacts.store(settings)), revision(ROUTE, route(settings))])
    return settings


def told(settings: Settings, as_of: float = AS_OF, until: float = UNTIL, version: int = 1) -> Found:
    moments = (at(hours).timestamp() for hours in (SINCE, until, as_of))
    return {each.name: each for each in outcomes(settings, version, *moments)}


def scored(offset: int, score: float, hours: float = 1.0, **said: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """An event that the champion gave a score, and what it decided of it."""
    happened = event(0, offset, hours, entity=f"card-{offset}")
    return happened, prediction(happened, **{"score": score, "decision": str(decision(score, 0.5))} | said)


def flow(settings: Settings, scores: list[float], positive: list[int], **said: Any) -> None:
    """Events of these scores, of which these are positive by label; nobody speaks of the others."""
    events, predictions = zip(*(scored(i, score) for i, score in enumerate(scores)), strict=True)
    fill(settings, events, predictions, [label(f"e-0-{i}", 1, 5.0, n, **said) for n, i in enumerate(positive)])


def test_without_blocks_the_numbers_are_the_plain_ones(settings: Settings) -> None:
    flow(settings, [0.4, 0.3, 0.3, 0.2, 0.1, 0.1], [0, 2, 4])
    found = told(settings)
    assert set(found) == {"precision", "recall", "average_precision", "calibration"}
    assert found["precision"].value == pytest.approx(2 / 3)
    assert found["recall"].value == pytest.approx(2 / 3)
    # The first at 1 of 1, both of 0.3 at 2 of 3, both of 0.1 at 3 of 6.
    assert found["average_precision"].value == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    ratio = 3 / 1.4
    low, high = found["calibration"].low, found["calibration"].high
    assert low is not None and high is not None and low < ratio < high
    assert found["calibration"].value == max(low, 1 / high, 1.0)
    assert all((each.warn, each.alarm, each.level) == (None, None, Level.OK) for each in found.values())


def test_what_went_past_the_model_stands_for_what_it_blocks(settings: Settings) -> None:
    """Four of what the version blocks, of which one in four goes past; one that it reviews; two positives that it misses."""
    past_events = [event(0, 10, 1.0, amount=HIGH, entity="a"), event(0, 11, 1.0, amount=HIGH, entity="b")]
    blocked = [scored(i, 0.9, propensity=1 - SHARE) for i in range(6)]
    passed = [scored(6 + i, score, propensity=1 - SHARE) for i, score in enumerate((0.3, 0.1, 0.1))]
    fill(
        settings,
        [*past_events, *(happened for happened, _ in blocked + passed)],
        [*(past(one, SHARE) for one in past_events), *(decided for _, decided in blocked + passed)],
        [label("e-0-10", 1, 5.0, 0), label("e-0-7", 1, 5.0, 1), label("e-0-0", 1, 5.0, 2)],
    )
    found = told(settings)
    # Each of those past weighs 4; what was let through weighs 1; what is said of blocked events does not count.
    assert found["precision"].value == pytest.approx(4 / (4 + 4 + 1))
    assert found["recall"].value == pytest.approx(4 / (4 + 1))
    rows = matured(settings, 1, *(at(hours).timestamp() for hours in (SINCE, UNTIL, AS_OF)))
    assert rows is not None and sorted(rows.weights.tolist()) == [1.0, 1.0, 1.0, 4.0, 4.0]
    assert (rows.unseen_alerts, rows.unseen_expected) == (0.0, 0.0)


def test_blocked_events_that_never_go_past_are_not_spoken_for_and_the_log_says_so(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    flow(settings, [0.9, 0.3, 0.3, 0.1], [1])
    with caplog.at_level(logging.WARNING):
        found = told(settings)
    assert found["precision"].value == pytest.approx(1 / 2), "one of three alerts is not seen: it speaks of the others"
    assert "recall" not in found and "average_precision" not in found
    assert "recall is left out: 56% of its expected positives were blocked" in caplog.text


def test_no_precision_is_told_where_most_alerts_cannot_be_seen(settings: Settings) -> None:
    flow(settings, [0.9, 0.9, 0.9, 0.3, 0.3, 0.1], [3])
    assert "precision" not in told(settings)


def test_a_corrected_label_changes_the_number(settings: Settings) -> None:
    flow(settings, [0.4, 0.3, 0.1, 0.1], [0, 1])
    assert told(settings)["precision"].value == 1.0
    fill(settings, labels=[label("e-0-1", 0, 50.0, 2)])
    assert told(settings)["precision"].value == 0.5
    assert told(settings, as_of=49.0, until=25.0)["precision"].value == 1.0, "it was not known then"


def test_immature_events_do_not_count_and_neither_do_those_outside_the_span(settings: Settings) -> None:
    events, predictions = zip(
        scored(0, 0.4, -0.1), scored(1, 0.4, 0.0), scored(2, 0.4, 10.0), scored(3, 0.4, 11.0), strict=True
    )
    fill(settings, events, predictions, [label("e-0-2", 1, 12.0, 0), label("e-0-3", 1, 12.0, 1)])
    assert told(settings)["precision"].value == pytest.approx(2 / 3)
    assert told(settings, until=10.0)["precision"].value == pytest.approx(1 / 2)
    assert told(settings, as_of=10.0 + DAY)["precision"].value == pytest.approx(1 / 2), "mature, whatever is asked for"
    assert told(settings, as_of=DAY - 0.5) == {}


def test_where_silence_says_nothing_only_labels_that_no_alert_brought_count(settings: Settings) -> None:
    unknown = settings.model_copy(update={"labels": settings.labels.model_copy(update={"silence": "unknown"})})
    flow(settings, [0.4, 0.4, 0.4, 0.4], [0])
    said = [label("e-0-1", 0, 5.0, 1), label("e-0-2", 1, 5.0, 2, alerted=True)]
    fill(settings, labels=said)
    assert told(unknown)["precision"].value == pytest.approx(1 / 2)
    assert told(settings)["precision"].value == pytest.approx(2 / 4)


def test_each_event_counts_once_however_often_it_was_sent_or_decided(settings: Settings) -> None:
    first, again, other = event(0, 0, 1.0, entity="a"), event(1, 0, 2.0, event_id="e-0-0"), event(0, 1, 1.0)
    decided = [
        prediction(first, offset=7, score=0.3, decision="review"),
        prediction(first, offset=9, score=0.1),
        prediction(again, score=0.1),
        prediction(other, offset=8, score=0.3, decision="review"),
    ]
    fill(settings, [first, again, other], decided, [label("e-0-0", 1, 5.0, 0)])
    rows = matured(settings, 1, *(at(hours).timestamp() for hours in (SINCE, UNTIL, AS_OF)))
    assert rows is not None
    assert (rows.scores.tolist(), rows.positive.tolist()) == ([0.3, 0.3], [True, False])


def test_what_went_past_and_is_not_in_the_store_any_more_is_left_out_and_told(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    flow(settings, [0.4, 0.3, 0.1], [0])
    gone = event(0, 9, 1.0)
    fill(settings, predictions=[past(gone, SHARE)])
    assert told(settings)["precision"].value == 0.5
    assert "1 events that went past the model are not in the training store" in caplog.text


def test_of_many_events_a_share_of_the_entities_is_read_with_all_of_theirs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [event(0, i, 1.0, entity=f"card-{i % 100}") for i in range(300)]
    fill(settings, events, [prediction(one) for one in events])
    monkeypatch.setattr(performance, "MAX_EVENTS", 60)
    rows = matured(settings, 1, *(at(hours).timestamp() for hours in (SINCE, UNTIL, AS_OF)))
    assert rows is not None
    counts = Counter(rows.units.tolist())
    assert 5 <= len(counts) <= 45, "one in five of a hundred"
    assert set(counts.values()) == {3}


def test_a_version_speaks_for_all_events_of_its_time_by_those_that_it_decided_itself(settings: Settings) -> None:
    lenient = Arm("challenger", 2, Thresholds(0.25, 0.95), share=0.4)
    fill(
        settings,
        revisions=[revision(2, artefacts.store(settings, 2)), revision(3, route(settings, 0.5, lenient))],
    )
    events = [event(0, i, 1.0, amount=(LOW, LOW, HIGH, HIGH)[i], entity=f"card-{i}") for i in range(4)]
    own = {"arm": "challenger", "version": 2, "propensity": (1 - SHARE) * 0.4, "route_revision": 3}
    fill(
        settings,
        events,
        [
            prediction(events[0], propensity=(1 - SHARE) * 0.6, route_revision=3),
            prediction(events[1], **own, score=0.1),
            prediction(events[2], **own, score=0.9, decision="review"),
            past(events[3], SHARE, route_revision=3),
        ],
    )
    moments = [at(hours).timestamp() for hours in (SINCE, UNTIL, AS_OF)]
    champion, challenger = matured(settings, 1, *moments), matured(settings, 2, *moments)
    assert champion is not None and challenger is not None
    both = SHARE + (1 - SHARE) * 0.6
    assert sorted(champion.weights.tolist()) == pytest.approx(sorted([1 / both, 1 / SHARE]))
    passes = SHARE + (1 - SHARE) * 0.4
    high = artefacts.ESTIMATOR.predict_proba([[HIGH]])[0, 1]
    assert sorted(challenger.scores.tolist()) == pytest.approx([0.1, 0.9, high], abs=1e-6)
    through = 1 / passes if high < 0.95 else 1 / SHARE
    assert challenger.weights.tolist() == pytest.approx([1 / passes, 1 / passes, through])
    assert challenger.alerted.tolist() == [False, True, True]


def test_an_alarm_is_told_only_where_the_whole_interval_lies_beyond(settings: Settings) -> None:
    limits = {"precision": {"warn": 0.6, "alarm": 0.3}, "calibration": {"warn": 1.2, "alarm": 1.5}}
    judged = settings.model_copy(update={"monitor": type(settings.monitor).model_validate(limits)})
    flow(settings, [0.4] * 6, [0])
    few = told(judged)
    assert few["precision"].value < 0.3 and few["precision"].level is Level.OK, "chance explains it"
    assert few["calibration"].level is Level.OK
    many = [scored(100 + i, 0.4) for i in range(200)]
    fill(settings, *zip(*many, strict=True))
    found = told(judged)
    assert (found["precision"].level, found["precision"].warn, found["precision"].alarm) == (Level.ALARM, 0.6, 0.3)
    assert found["calibration"].level is Level.ALARM and found["calibration"].value >= 1.5
    assert set(found) == {"precision", "calibration"}, "a single positive has no interval"


def test_without_a_route_of_its_time_an_event_has_no_odds(settings: Settings) -> None:
    happened, decided = scored(0, 0.1, route_revision=77)
    fill(settings, [happened], [decided])
    with pytest.raises(DataError, match="no route of revision 77"):
        told(settings)


def test_a_version_of_which_nothing_is_known_says_nothing(settings: Settings) -> None:
    assert told(settings) == {}
    flow(settings, [0.4, 0.1], [0])
    assert told(settings, version=9) == {}

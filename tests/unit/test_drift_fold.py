"""Profiles in, reports and requests out: windows, clock, versions, episodes and the state in between."""

import numpy as np
import pytest

from ecluse.contract.loop import Asker, Counts, DriftReport, Level, Statistic, WindowCounts
from ecluse.contract.records import BYPASS, Decision
from ecluse.errors import DataError
from retrain.drift.change import change
from retrain.drift.fold import MAX_OPEN, MAX_VERSIONS, Outcomes
from retrain.drift.statistics import mean_rank
from tests.unit.drift_stream import DAY, HOUR, START, Monitor, counts, even, profile, window

SHIFTED = [0, 0, 100, 200, 200, 300, 300, 300, 300, 300]


def days(number: int, **inputs: Counts) -> list[WindowCounts]:
    return [window(START + day * DAY, **inputs) for day in range(number)]


def drifting(first: int, number: int) -> list[WindowCounts]:
    return [window(START + day * DAY, amount=counts(SHIFTED)) for day in range(first, first + number)]


def named(report: DriftReport) -> dict[tuple[str, str | None], Statistic]:
    return {(each.name, each.input): each for each in report.statistics}


def test_a_steady_stream_gives_a_report_a_window_and_no_request() -> None:
    monitor = Monitor()
    monitor.play(days(30))
    assert [report.level for report in monitor.reports] == [Level.OK] * 30
    assert monitor.requests == []
    first, last = monitor.reports[0], monitor.reports[-1]
    assert (first.since, first.until, first.events) == (START, START + DAY, 2000)
    assert (last.since, last.until, last.events) == (START + 23 * DAY, START + 30 * DAY, 14_000)
    # Whole spans only, and none with the window in which the version began.
    assert [("psi", "amount") in named(report) for report in monitor.reports] == [False] * 7 + [True] * 23


def test_a_drift_asks_once_with_its_evidence_and_ends_when_it_is_calm() -> None:
    monitor = Monitor(cooldown_hours=24)
    monitor.play([*days(10), *drifting(10, 8), *[window(START + day * DAY) for day in range(18, 30)]])
    [request] = monitor.requests
    report = next(report for report in monitor.reports if report.request)
    assert request.id == report.request == report.episode == f"drift-1-{report.until:.0f}"
    assert (request.asker, request.version, request.inputs) == (Asker.DRIFT, 1, ("amount",))
    assert (request.since, request.until, request.cutoff) == (report.since, report.until, report.until)
    assert request.evidence == tuple(each for each in report.statistics if each.level is not Level.OK)
    assert request.evidence[0].name == "psi"
    assert "index of" in request.reason
    episodes = [report.episode for report in monitor.reports]
    begun = episodes.index(request.id)
    assert set(episodes[begun:]) == {request.id, None}
    ended = episodes.index(None, begun)
    assert [report.level for report in monitor.reports[ended - 1 : ended + 1]] == [Level.OK, Level.OK]
    assert monitor.reports[ended - 2].level is Level.WARN


def test_an_input_gone_missing_is_named_by_the_first_window() -> None:
    monitor = Monitor()
    monitor.play([*days(10), window(START + 10 * DAY, amount=Counts(missing=2000))])
    [request] = monitor.requests
    assert request.inputs == ("amount",)
    assert request.evidence[0].name == "missing"
    assert request.until == START + 11 * DAY


def test_a_window_with_few_events_is_not_judged_and_chance_does_not_fire() -> None:
    monitor = Monitor(missing={"warn": 0.01, "alarm": 0.02})
    monitor.play([window(START, 100, amount=counts([5] * 10, 50))])
    monitor.play(
        [window(START + DAY, 400, amount=counts([39] * 10, 10))]
    )  # 2.5% are missing: chance gives that from 1%
    assert [report.level for report in monitor.reports] == [Level.OK, Level.OK]
    assert ("missing", "amount") not in named(monitor.reports[0])
    assert named(monitor.reports[1])["missing", "amount"].value < 0.01


def test_dead_letters_values_out_of_range_and_alerts_are_judged() -> None:
    monitor = Monitor()
    monitor.play([window(START, alerts=200, rejected=500, amount=Counts(dict.fromkeys(range(10), 150), above=500))])
    [report] = monitor.reports
    levels = {name: each.level for name, each in named(report).items()}
    assert levels["rejected", None] is levels["range", "amount"] is levels["alerts", None] is Level.ALARM
    alerts = named(report)["alerts", None]
    assert 5 < alerts.value < 10
    assert alerts.low is not None
    assert alerts.low > 8


def test_what_the_store_says_is_told_and_opens_an_episode() -> None:
    monitor = Monitor()
    recall = Statistic("recall", 0.2, 0.8, 0.6, Level.ALARM, low=0.1, high=0.3)
    monitor.take(profile([window(START)], [START] * 5))
    monitor.take(
        profile(times=[START + 2 * DAY] * 5), outcomes={1: Outcomes([recall], START - 9 * DAY, START - 2 * DAY)}
    )
    [report] = monitor.reports
    assert (report.matured_since, report.matured_until) == (START - 9 * DAY, START - 2 * DAY)
    assert report.statistics[0] == recall
    assert monitor.requests[0].inputs == ()
    assert "recall is 0.2 (alarm at 0.6)" in monitor.requests[0].reason


def hourly(hours: int, *, weekly: bool = False) -> list[WindowCounts]:
    """Nothing but nights and days; with `weekly`, and weekends."""
    rng = np.random.default_rng(3)
    windows = []
    for hour in range(hours):
        night, weekend = hour % 24 < 8, hour // 24 % 7 >= 5
        events = int(rng.poisson(600)) // 10 * 10
        flags = {"night": counts([0, events] if night else [events, 0])}
        if weekly:
            flags["weekend"] = counts([0, events] if weekend else [events, 0])
        windows.append(window(START + hour * HOUR, events, **flags))
    return windows


def test_a_daily_pattern_is_no_drift() -> None:
    monitor = Monitor(window_hours=1, span_windows=24, change_confidence=0.2, psi={"warn": 0.1, "alarm": 0.2})
    monitor.play(hourly(24 * 8))
    assert {("psi", "night")} < set(named(monitor.reports[-1]))
    assert {report.level for report in monitor.reports} == {Level.OK}
    assert monitor.requests == []


def test_a_weekly_pattern_is_no_drift_though_it_is_a_change_from_one_window_to_the_next() -> None:
    monitor = Monitor(window_hours=1, span_windows=24 * 7, change_confidence=0.2)
    monitor.play(hourly(24 * 7 * 3, weekly=True))
    assert {("psi", "weekend")} < set(named(monitor.reports[-1]))
    assert {report.level for report in monitor.reports} == {Level.OK}
    # From one window to the next, the same numbers change their level on Saturday.
    by_window = [float(hour // 24 % 7 >= 5) for hour in range(48, 168)]
    assert any(change(by_window[:end], 0.2) is not None for end in range(72, 121))


def test_a_week_of_days_with_its_weekend_is_no_drift() -> None:
    monitor = Monitor(change_confidence=0.2)
    monitor.play(
        window(START + day * DAY, weekend=counts([0, 2000] if day % 7 >= 5 else [2000, 0])) for day in range(70)
    )
    assert {report.level for report in monitor.reports} == {Level.OK}
    assert ("psi", "weekend") in named(monitor.reports[-1])


def test_a_change_of_level_below_every_other_threshold_is_told_by_its_series() -> None:
    monitor = Monitor(window_hours=1, span_windows=2, psi={"warn": 50, "alarm": 90}, change_confidence=0.05)
    high = counts([0] * 5 + [120] * 5)
    monitor.play(window(START + hour * HOUR, 600) for hour in range(60))
    monitor.play(window(START + hour * HOUR, 600, amount=high) for hour in range(60, 110))
    [request] = monitor.requests
    assert [(each.name, each.input) for each in request.evidence] == [("change", "amount")]
    assert request.evidence[0].value == pytest.approx(mean_rank(np.array([0] * 5 + [1] * 5)) - 0.5, abs=0.05)


def test_late_events_and_those_far_ahead_are_told_and_change_nothing() -> None:
    monitor = Monitor()
    monitor.play(days(3))
    later_than_its_record = (4e9 // DAY + 2) * DAY
    monitor.take(profile([window(START, 70), window(later_than_its_record, 90)]))
    monitor.play([window(START + 3 * DAY)])
    report = monitor.reports[-1]
    assert (report.late, report.ahead, report.events) == (70, 90, 8000)
    monitor.play([window(START + 4 * DAY)])
    assert (monitor.reports[-1].late, monitor.reports[-1].ahead) == (0, 0)
    assert (monitor.fold.apart.late, monitor.fold.apart.ahead) == (70, 90)


def test_a_wrong_clock_moves_nothing_and_one_beyond_the_record_itself_never_does() -> None:
    monitor = Monitor()
    monitor.take(profile([window(START)], [START + HOUR] * 5))
    monitor.take(profile(times=[START + 90 * DAY, float("nan")]))
    monitor.take(profile(times=[-1.0, float("inf"), START + HOUR]))
    monitor.take(profile(times=[9e9] * 5), recorded=START + DAY)
    assert monitor.fold.time == START + HOUR
    assert monitor.closed == []


def test_events_with_a_wrong_time_in_a_past_wait_in_a_window_of_their_own_and_close_none() -> None:
    monitor = Monitor()
    monitor.take(profile([window(START + 400 * DAY, 50)], [START + 400 * DAY]))
    monitor.take(profile([window(START)], [START] * 4))
    monitor.tell(START + 2 * DAY)
    assert [report.events for report in monitor.reports] == [2000]
    monitor.tell(START + 402 * DAY)
    assert [report.events for report in monitor.reports] == [2000, 50]


def test_of_too_many_open_windows_the_last_are_not_judged_and_told() -> None:
    monitor = Monitor()
    monitor.take(profile([window(START)], [START] * 5))
    monitor.take(profile([window(START + day * DAY, 10) for day in range(MAX_OPEN, 0, -1)]))
    monitor.tell(START + 2 * DAY)
    assert (monitor.reports[-1].until, monitor.reports[-1].ahead) == (START + DAY, 10)


@pytest.mark.parametrize(("lump", "began"), [(500, 400 * DAY), (3000, 400 * DAY), (3000, 0.0)])
def test_a_backlog_that_is_read_partition_by_partition_is_judged_whole(lump: int, began: float) -> None:
    """Forty days of 16 partitions, in lumps that hold several, the first one short, read `began` seconds after their end."""
    days, partitions, chunk = 40, 16, 500
    times = START + np.sort(np.random.default_rng(7).random(days * 4000)) * days * DAY
    parts = [times[partition::partitions] for partition in range(partitions)]
    monitor, recorded, sent = Monitor(), START + days * DAY + began, 0
    ends = [chunk, *range(chunk + lump, len(parts[0]), lump), len(parts[0])]
    for at, end in zip([0, *ends], ends, strict=False):
        for partition, mine in enumerate(parts):
            for start in range(at, end, chunk):
                some = mine[start : min(start + chunk, end)]
                numbers, sizes = np.unique(some // DAY, return_counts=True)
                windows = [window(number * DAY, int(size)) for number, size in zip(numbers, sizes, strict=True)]
                middle = float(some[len(some) // 2])
                monitor.take(profile(windows, [middle], partition=partition), recorded)
                recorded, sent = recorded + 0.05, sent + len(some)
    assert sent == len(times)
    apart = monitor.fold.apart
    assert (apart.late, apart.ahead) == (0, 0)
    assert len(monitor.reports) >= days - 15  # the last are open: a partition stands at the middle of its last times


def test_a_partition_whose_clock_is_wrong_and_goes_on_holds_nothing_back() -> None:
    monitor = Monitor()
    for minute in range(20):
        now = START + 30 * DAY + 60 * minute
        monitor.take(profile([window(START + 30 * DAY, 10)], [now], partition=0), now)
        monitor.take(profile([], [600.0 + 60 * minute], partition=1), now)
    assert monitor.fold.time is not None and monitor.fold.time > START + 30 * DAY


def test_the_slowest_partition_holds_windows_open_until_it_is_silent_or_far_behind() -> None:
    monitor = Monitor()
    monitor.take(profile([window(START)], [START] * 5, partition=0), recorded=START + DAY)
    monitor.take(profile([], [START + 25 * HOUR] * 5, partition=1), recorded=START + DAY)
    assert monitor.closed == []
    monitor.take(profile([window(START, 500)], [START + HOUR] * 5, partition=0), recorded=START + DAY + 30)
    monitor.take(profile([], [START + 25 * HOUR] * 5, partition=1), recorded=START + DAY + 100)
    assert [report.events for report in monitor.reports] == [2500]
    assert monitor.fold.apart.late == 0
    monitor.take(profile([], [START + 3 * HOUR] * 5, partition=0), recorded=START + DAY + 101)
    assert monitor.fold.time == START + 25 * HOUR


def test_a_stream_that_plays_its_past_again_is_late_until_it_has_caught_up() -> None:
    monitor = Monitor()
    monitor.play(days(5))
    monitor.play(days(5))
    assert len(monitor.reports) == 5
    assert monitor.fold.apart.late == 5 * 2000
    monitor.play([window(START + 5 * DAY)])
    assert len(monitor.reports) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        profile([window(START)], seconds=HOUR),
        profile([window(START)], sha="none", version=2),
        profile([window(START)], sha="b"),
        profile([window(START, amount=counts([0] * 10 + [5]))]),
        profile([window(START, amount=Counts({-1: 5}))]),
        profile([window(START, amount=Counts({1: -5}))]),
        profile([window(START, stranger=even(10))]),
        profile([window(START + HOUR)]),
        profile([window(-DAY)]),
        profile([window(float("nan"))]),
    ],
)
def test_counts_that_cannot_be_of_the_manifest_or_the_settings_are_refused_and_told(wrong: object) -> None:
    monitor = Monitor()
    monitor.take(profile([window(START)], [START] * 5))
    monitor.take(wrong)  # type: ignore[arg-type]
    monitor.tell(START + 2 * DAY)
    assert [(report.version, report.events, report.refused) for report in monitor.reports] == [(1, 2000, 2000)]


def test_offsets_that_no_profile_covers_are_told() -> None:
    monitor = Monitor()
    first, second = profile([window(START)], [START] * 5), profile(times=[START + 2 * DAY] * 5, start=100)
    first.covers[-1].end = 90
    monitor.take(first)
    monitor.take(second)
    assert monitor.reports[0].uncounted == 10


def test_an_outage_of_days_leaves_no_whole_span_and_so_no_false_alarm() -> None:
    monitor = Monitor()
    weekdays = [window(START + day * DAY, weekend=counts([2000, 0])) for day in range(30) if day % 7 < 5]
    weekends = [window(START + day * DAY, weekend=counts([0, 2000])) for day in range(30) if day % 7 >= 5 and day != 19]
    monitor.play(sorted([*weekdays, *weekends], key=lambda each: each.window))
    judged = [report.until for report in monitor.reports if ("psi", "weekend") in named(report)]
    assert judged == [START + day * DAY for day in (*range(8, 20), *range(28, 31))]
    assert monitor.requests == []


def test_a_day_that_is_always_quiet_is_no_gap() -> None:
    monitor = Monitor(psi={"warn": 0.2, "alarm": 0.5})
    monitor.play([window(START + day * DAY) for day in range(35) if day % 7 != 6])
    assert [("psi", "amount") in named(report) for report in monitor.reports][-18:] == [True] * 18


def test_an_episode_whose_blame_is_never_told_again_ends_and_leaves_room_for_the_next() -> None:
    """As recall, once the bypass is off."""
    monitor = Monitor(cooldown_hours=24)
    for each in days(50):
        if each.window >= START + 40 * DAY:
            each.inputs["amount"] = counts(SHIFTED)
        recall = Statistic("recall", 0.1, 0.5, 0.3, Level.ALARM) if each.window == START + 9 * DAY else None
        monitor.take(profile([each], [each.window] * 5))
        told = {1: Outcomes([recall])} if recall else None
        monitor.take(profile(times=[each.window + DAY + 3600 * monitor.settings.late_hours] * 5), outcomes=told)
    first, second = monitor.requests
    assert [each.name for each in first.evidence] == ["recall"]
    assert second.inputs == ("amount",)


def test_a_new_champion_ends_the_episode_of_the_old_one() -> None:
    monitor = Monitor()
    monitor.play([*days(10), *drifting(10, 8)])
    assert monitor.fold.episode == monitor.requests[0].id
    monitor.play([window(START + 18 * DAY)], version=2)
    assert monitor.fold.leader == 2
    assert monitor.fold.episode is None
    assert monitor.reports[-1].episode is None


def test_of_too_many_versions_the_oldest_makes_room() -> None:
    monitor = Monitor()
    for version in range(1, MAX_VERSIONS + 4):
        monitor.take(profile([window(START, 100)], [START] * 5, version=version))
    assert list(monitor.fold.versions) == list(range(4, MAX_VERSIONS + 4))
    assert monitor.fold.apart.refused == 300


def test_the_schedule_asks_by_the_streams_clock_and_once_after_an_outage() -> None:
    monitor = Monitor(schedule="every 6h", cooldown_hours=1000)
    for hours in (1, 5, 7, 7, 13, 60):
        monitor.tell(START + hours * HOUR)
    assert [request.cutoff - START for request in monitor.scheduled] == [6 * HOUR, 12 * HOUR, 60 * HOUR]
    assert monitor.scheduled[0].id == f"schedule-{START + 6 * HOUR:.0f}"
    assert monitor.scheduled[0].asker is Asker.SCHEDULE
    assert monitor.scheduled[0].reason == "The schedule asks for a new model every 6h."


def test_another_window_length_keeps_the_clock_and_the_episode_and_begins_new_windows() -> None:
    old, new = Monitor(), Monitor(window_hours=12)
    old.play([*days(10), *drifting(10, 8)])
    new.fold.restore(old.fold.dump())
    assert new.fold.time == old.fold.time
    assert new.fold.episode == old.requests[0].id
    assert new.fold.versions == {}
    new.take(profile([window(START + 18.5 * DAY)], seconds=12 * HOUR))
    new.tell(START + 20 * DAY)
    assert new.reports[-1].until == START + 19 * DAY


def test_a_state_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(DataError, match="state cannot be read"):
        Monitor().fold.restore(b"nonsense")


def test_a_partition_more_than_a_day_behind_holds_nothing_back() -> None:
    monitor = Monitor()
    monitor.take(profile([window(START)], [START] * 5, partition=0))
    monitor.take(profile([], [START + 26 * HOUR] * 5, partition=1))
    assert monitor.fold.time == START + 26 * HOUR
    assert len(monitor.reports) == 1


def test_events_that_went_past_the_model_count_as_events_and_not_as_ones_that_did_not_alert() -> None:
    monitor = Monitor()
    passed = window(START)
    passed.arms[BYPASS] = {Decision.ALLOW: 50_000}
    monitor.play([passed])
    [report] = monitor.reports
    assert report.events == 52_000
    assert named(report)["alerts", None].value == 1


def test_a_partition_of_which_little_was_told_yet_holds_windows_open_too() -> None:
    monitor = Monitor()
    monitor.take(profile([window(START)], [START + HOUR], partition=1))
    monitor.take(profile([window(START)], [START + 25 * HOUR] * 5, partition=0))
    assert monitor.fold.time == START + HOUR
    monitor.take(profile([window(START)], [START + 25 * HOUR] * 2, partition=1))
    assert [report.events for report in monitor.reports] == [6000]

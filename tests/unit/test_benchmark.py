"""The parts of the benchmark that can be wrong without anyone seeing it. No time is asserted."""

import csv
import re
from pathlib import Path

import pytest

from benchmarks.burst import Burst, Sample, draw
from benchmarks.burst import figures as figures_of_burst
from benchmarks.burst import show as show_burst
from benchmarks.latency import Latency, quantiles
from benchmarks.measure import AT_LEAST_ONCE, CONTESTANTS, EXACTLY_ONCE, WORKERS, Run
from benchmarks.report import Results, append, faster_faust, figures, ratio, show, surroundings
from benchmarks.silence import Change, held, longest_gap
from benchmarks.silence import figures as figures_of_silence
from benchmarks.silence import show as show_silence
from benchmarks.store import Run as StoreRun
from benchmarks.store import Stored
from benchmarks.store import figures as figures_of_store
from benchmarks.store import show as show_store
from benchmarks.swap import Swaps
from benchmarks.swap import figures as figures_of_swaps
from benchmarks.swap import show as show_swaps
from console.audit import AuditReport, PartitionAudit
from console.audit_store import StoreReport

ROOT = Path(__file__).parents[2]


def run(rate: float) -> Run:
    return Run(events=1_000, rate=rate, cpu_us=1e6 / rate, peak_mib=100.0)


@pytest.fixture
def results() -> Results:
    rates = {
        EXACTLY_ONCE: [90_000.0, 30_000.0, 75_000.0],
        AT_LEAST_ONCE: [100_000.0, 40_000.0, 75_000.0],
        "by hand": [100_000.0, 60_000.0, 75_000.0],
        "faust, one": [1_000.0, 500.0, 900.0],
        "faust, take": [3_000.0, 1_500.0, 4_000.0],
    }
    quick, slow = Latency(0.005, 0.02, 0.05), Latency(0.004, 0.01, 0.02)
    return Results(
        rounds={name: [run(rate) for rate in rates[name]] for name in CONTESTANTS},
        memory={name: {100_000: 250.0, 1_000_000: 300.0} for name in WORKERS},
        latency={EXACTLY_ONCE: quick, AT_LEAST_ONCE: slow, "by hand": slow},
        rate=1_000,
    )


def test_a_quantile_is_a_value_that_was_seen() -> None:
    assert quantiles([i / 1_000 for i in range(1_000, 0, -1)]) == Latency(0.5, 0.99, 0.999)


def test_one_slow_event_in_a_hundred_does_not_move_the_median_but_is_the_highest_quantile() -> None:
    assert quantiles([0.001] * 99 + [5.0]) == Latency(0.001, 0.001, 5.0)


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_the_medians(results: Results) -> None:
    assert ratio(results, EXACTLY_ONCE, "by hand") == pytest.approx(0.9)  # of 0.9, 0.5 and 1.0; the medians give 1.0
    assert ratio(results, EXACTLY_ONCE, "faust, take") == pytest.approx(
        20.0
    )  # of 30, 20 and 18.75; the medians give 25


def test_the_workers_are_held_against_the_faster_plain_faust(results: Results) -> None:
    assert faster_faust(results) == "faust, take"
    slow_take = {**results.rounds, "faust, take": [run(10.0)] * 3}
    assert faster_faust(Results(slow_take, results.memory, results.latency, results.rate)) == "faust, one"


def test_a_row_holds_the_machine_the_versions_and_every_figure(tmp_path: Path, results: Results) -> None:
    file = tmp_path / "results.csv"
    row = surroundings() | figures(results)
    append(file, row)
    append(file, row)
    with file.open(newline="", encoding="utf-8") as lines:
        first, second = csv.DictReader(lines)
    assert first == second == {name: str(value) for name, value in row.items()}
    assert first["worker_exactly_once_events_per_s"] == first["worker_at_least_once_events_per_s"] == "75000"
    assert first["exactly_once_to_at_least_once"] == "0.9"
    assert first["worker_exactly_once_to_by_hand"] == "0.9"
    assert first["worker_exactly_once_to_faust"] == "20.0"
    assert first["worker_at_least_once_peak_mib_large"] == "300"
    assert first["worker_exactly_once_p999_ms"] == "50.0"
    assert {"date", "machine", "cores", "memory_gib", "python", "ecluse", "kafka", "librdkafka", "scikit-learn"} <= set(
        first
    )


def test_the_file_of_results_has_the_columns_of_today(results: Results) -> None:
    with (ROOT / "benchmarks" / "results.csv").open(newline="", encoding="utf-8") as lines:
        columns = next(csv.reader(lines))
    assert columns == list(surroundings() | {"events": 1, "rounds": 1} | figures(results))


def test_a_row_with_other_columns_is_refused_and_the_file_is_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    append(file, {"date": "today", "rate": 1})
    before = file.read_bytes()
    with pytest.raises(ValueError, match="other columns"):
        append(file, {"date": "today", "speed": 1})
    assert file.read_bytes() == before


def test_the_table_shows_every_contestant_and_both_backlogs(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    show(results)
    shown = capsys.readouterr().out
    assert all(name in shown for name in CONTESTANTS)
    assert "worker, exactly once, with a backlog of 100,000: 250 MiB" in shown
    assert "worker, at least once, with a backlog of 1,000,000: 300 MiB" in shown
    assert "Exactly once runs at 0.90 of at least once" in shown


# -- silence -----------------------------------------------------------------------------------------------------------


def test_the_longest_gap_is_found_also_where_it_begins_before_the_window_or_ends_after_it() -> None:
    seen = [0.0, 1.0, 4.0, 4.5, 5.0, 9.0]
    assert longest_gap(seen, 2.0, 4.2) == 3.0
    assert longest_gap(seen, 4.1, 4.9) == 0.5
    assert longest_gap(seen, 4.1, 5.1) == 4.0


def test_a_window_beyond_what_was_seen_has_no_gap_that_could_be_called_the_longest() -> None:
    with pytest.raises(ValueError, match="beyond"):
        longest_gap([1.0, 2.0], 0.5, 1.5)
    with pytest.raises(ValueError, match="beyond"):
        longest_gap([1.0, 2.0], 1.5, 2.5)


def test_a_member_holds_what_it_was_given_and_did_not_give_back_or_lose() -> None:
    assert held([("assigned", {0, 1, 2}), ("gave back", {1}), ("assigned", {5}), ("lost", {0})]) == {2, 5}


def test_the_worst_of_each_kind_of_change_is_held_against_the_aims(capsys: pytest.CaptureFixture[str]) -> None:
    changes = [
        Change("classic", "join", stayed=0.1, usual=0.08, moved=0.9, partitions=2),
        Change("classic", "join", stayed=0.5, usual=0.1, moved=1.2, partitions=2),
        Change("classic", "SIGKILL", stayed=0.2, usual=0.3, moved=10.0, partitions=3),
    ]
    row = figures_of_silence(changes)
    assert (row["classic_join_beyond_worst_ms"], row["classic_join_moved_ms"]) == (400, 1200)
    assert row["classic_sigkill_beyond_worst_ms"] == -100
    show_silence(changes)
    shown = capsys.readouterr().out
    assert re.search(r"join .* 300 NOT met, 1500 met", shown)
    assert re.search(r"SIGKILL .* 300 met, 9000 NOT met", shown)


# -- burst -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def burst() -> Burst:
    samples = [
        Sample(at=second, lag=lag, workers=workers, rate=100 if second < 2 or second > 3 else 1_000)
        for second, lag, workers in [
            (0, 10, 1),
            (1, 10, 1),
            (2, 500, 1),
            (3, 2_000, 2),
            (4, 900, 4),
            (5, 20, 4),
            (6, 10, 1),
        ]
    ]
    part = PartitionAudit(0, 0, 2_500, 2_500, 2_500, 0, 0, 0, 0, 0, 0, ())
    return Burst(samples, capacity=700.0, began=1.5, ended=3.5, audit=AuditReport("events", (part,), 0.1))


def test_a_bursts_row_tells_its_height_its_end_and_what_the_audit_found(burst: Burst) -> None:
    row = figures_of_burst(burst)
    assert (row["most_lag"], row["most_workers"], row["burst_per_s"]) == (2_000, 4, 1_000)
    assert (row["drained_s_after_burst"], row["back_to_least_s_after_burst"]) == (1.5, 2.5)
    assert (row["events"], row["missing"], row["doubled"]) == (2_500, 0, 0)


def test_a_burst_is_told_and_drawn(burst: Burst, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_burst(burst)
    assert "Nothing is missing" in capsys.readouterr().out
    draw(burst, tmp_path / "burst.png")
    assert (tmp_path / "burst.png").read_bytes().startswith(b"\x89PNG")


# -- swap --------------------------------------------------------------------------------------------------------------


def test_windows_with_changes_are_held_against_those_without(capsys: pytest.CaptureFixture[str]) -> None:
    part = PartitionAudit(0, 0, 2_500, 2_500, 2_500, 0, 0, 0, 0, 0, 0, ())
    report = AuditReport("events", (part,), 0.1)
    quiet, disturbed = [0.002] * 999 + [0.020], [0.002] * 999 + [0.500]
    found = Swaps([quiet, quiet, disturbed], [[0.003] * 998 + [0.035] * 2] * 3, 12, 11, report)
    row = figures_of_swaps(found)
    assert (row["quiet_events"], row["quiet_p50_ms"], row["quiet_p999_ms"], row["quiet_longest_ms"]) == (
        3000,
        2,
        2,
        500,
    )
    assert (row["swapping_p999_ms"], row["swapping_p999_median_window_ms"], row["p999_beyond_ms"]) == (35, 35, 33)
    assert (row["promoted"], row["scored"], row["events"], row["missing"], row["doubled"]) == (12, 11, 2_500, 0, 0)
    show_swaps(found)
    shown = " ".join(capsys.readouterr().out.split())
    assert "+33.0 ms beyond" in shown
    assert "NOT met" in shown
    assert "12 promotions, 11 of them scored" in shown


def test_the_sinks_row_tells_each_load_and_what_the_audit_of_its_tables_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = tuple(
        StoreRun(
            name, records=1_200_000, seconds=60.0, behind=90_000, drained=4.0, cpu_us=15.0, peak_mib=250.0, commits=9
        )
        for name in ("20,000 records/s", "20,000 events/s", "backlog")
    )
    found = Stored(runs, StoreReport("store", (), 1.0))
    told = figures_of_store(found)
    assert [told[f"{key}_per_s"] for key in ("records", "events", "backlog")] == [20_000] * 3
    assert (told["records_peak_mib"], told["missing"], told["doubled"], told["stray"]) == (250, 0, 0, 0)
    show_store(found)
    said = capsys.readouterr().out
    assert "1,200,000" in said
    assert "There was no record to compare with the training store." in said

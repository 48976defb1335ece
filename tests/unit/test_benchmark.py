"""The parts of the benchmark that can be wrong without anyone seeing it. No time is asserted."""

import csv
from pathlib import Path

import pytest

from benchmarks.latency import Latency, quantiles
from benchmarks.measure import CONTESTANTS, Run
from benchmarks.report import Results, append, faster_faust, figures, ratio, show, surroundings


def run(rate: float) -> Run:
    return Run(events=1_000, rate=rate, cpu_us=1e6 / rate, peak_mib=100.0)


@pytest.fixture
def results() -> Results:
    rates = {
        "worker": [90_000.0, 30_000.0, 75_000.0],
        "by hand": [100_000.0, 60_000.0, 75_000.0],
        "faust, one": [1_000.0, 500.0, 900.0],
        "faust, take": [3_000.0, 1_500.0, 4_000.0],
    }
    quick, slow = Latency(0.005, 0.02, 0.05), Latency(0.004, 0.01, 0.02)
    return Results(
        rounds={name: [run(rate) for rate in rates[name]] for name in CONTESTANTS},
        memory={100_000: 250.0, 1_000_000: 300.0},
        latency={"worker": quick, "by hand": slow},
        rate=1_000,
    )


def test_a_quantile_is_a_value_that_was_seen() -> None:
    assert quantiles([i / 1_000 for i in range(1_000, 0, -1)]) == Latency(0.5, 0.99, 0.999)


def test_one_slow_event_in_a_hundred_does_not_move_the_median_but_is_the_highest_quantile() -> None:
    assert quantiles([0.001] * 99 + [5.0]) == Latency(0.001, 0.001, 5.0)


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_the_medians(results: Results) -> None:
    assert ratio(results, "worker", "by hand") == pytest.approx(0.9)  # of 0.9, 0.5 and 1.0; the medians give 1.0
    assert ratio(results, "worker", "faust, take") == pytest.approx(20.0)  # of 30, 20 and 18.75; the medians give 25


def test_the_worker_is_held_against_the_faster_plain_faust(results: Results) -> None:
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
    assert first["worker_events_per_s"] == "75000"
    assert first["worker_to_by_hand"] == "0.9"
    assert first["worker_to_faust"] == "20.0"
    assert first["worker_peak_mib_large"] == "300"
    assert first["worker_p999_ms"] == "50.0"
    assert {"date", "machine", "cores", "memory_gib", "python", "ecluse", "kafka", "librdkafka", "scikit-learn"} <= set(
        first
    )


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
    show(results, {"python": "3.11"})
    shown = capsys.readouterr().out
    assert all(name in shown for name in CONTESTANTS)
    assert "backlog of 100,000: 250 MiB" in shown
    assert "backlog of 1,000,000: 300 MiB" in shown

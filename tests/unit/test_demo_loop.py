"""What `ecluse demo` makes of the loop's records."""

import time
from pathlib import Path

import msgspec
import pytest

from console.demo_end import loop_lines, profiles_line
from console.demo_loop import Loop
from console.demo_view import challenger_text, study_text, trainer_text
from console.demo_watch import Watch
from ecluse.contract.loop import (
    Asker,
    DriftReport,
    Level,
    Profile,
    RetrainRequest,
    Run,
    RunState,
    Statistic,
    WindowCounts,
)
from ecluse.contract.records import Arm, Decision, Route, Thresholds
from ecluse.model.registry import Registry
from ecluse.settings import Settings
from retrain.study.report import STUDY, Candidate, Study
from retrain.study.rule import Interval
from tests.conftest import MakeSettings

DAY = 86_400.0


class Message:
    """A record of a topic."""

    def __init__(self, record: msgspec.Struct, key: str = "") -> None:
        self._record, self._key = record, key

    def key(self) -> bytes:
        return self._key.encode()

    def value(self) -> bytes:
        return msgspec.msgpack.encode(self._record)


@pytest.fixture
def settings(make_settings: MakeSettings, tmp_path: Path) -> Settings:
    return make_settings(trainer={"runs": tmp_path})


@pytest.fixture
def loop(settings: Settings) -> Loop:
    return Loop(settings)


def said(loop: Loop) -> list[str]:
    return [sentence for _, sentence in loop.told]


def report(day: int, level: Level) -> Message:
    numbers = () if level is Level.OK else (Statistic("psi", 0.123, 0.05, 0.1, level, "amount"),)
    record = DriftReport(
        model="m", version=1, since=0.0, until=day * DAY, events=1_000, level=level, statistics=numbers
    )
    return Message(record, record.key)


def ask(loop: Loop, name: str, asker: Asker = Asker.DRIFT) -> None:
    request = RetrainRequest(
        id=name, model="m", asker=asker, reason=f"because {name}", cutoff=DAY, created_at=0.0, inputs=("amount",)
    )
    loop.take_request(Message(request))  # type: ignore[arg-type]


def answer(loop: Loop, name: str, state: RunState, folder: Path, version: int | None = None) -> None:
    """The trainer has come to a state with a request, by version 1's leave."""
    registry = Registry()
    registry.add(Route("m", (Arm("champion", 1, Thresholds(0.5, 0.9)),), created_at=time.time()), 0)
    log = folder / name / "run.log"
    registry.add(
        Run(
            name="m", request=name, state=state, trainer="t", started_at=0.0, version=version, reason="no", log=str(log)
        ),
        1,
    )
    loop.take_registry(registry)


def write_run(folder: Path, name: str, *lines: str) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "run.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_study(folder: Path, name: str) -> None:
    sizes = {"small": 1_000, "large": 30_000}
    (folder / name / STUDY).write_bytes(
        Study(
            model="m", picked="small", best="large", why="It is small.", tolerance=0.01, max_size_bytes=None,
            candidates=(
                *(Candidate(name=each, size_bytes=size, average_precision=Interval(0.5, 0.4, 0.6))
                  for each, size in sizes.items()),
                Candidate(name="script", reason="It raised."),
            ),
            resamples=100, seed=1, drawn="row", units=1, rows=1, positives=1, held_out_span=None, trained_rows=80,
            script="default", script_sha256="", file="set.parquet",
        ).encode()
    )  # fmt: skip


def test_profiles_are_summed_over_windows_and_arms(loop: Loop) -> None:
    windows = [
        WindowCounts(0.0, arms={"champion": {Decision.ALLOW: 5, Decision.BLOCK: 1}, "bypass": {Decision.ALLOW: 2}}),
        WindowCounts(DAY, arms={"champion": {Decision.ALLOW: 3}}, rejected=4),
    ]
    profile = Profile("m", 1, "", "w", DAY, windows, [])
    for _ in range(2):
        loop.take_profile(Message(profile))  # type: ignore[arg-type]
    assert (loop.counted, loop.rejected) == (22, 8)
    assert profiles_line(loop, 22).endswith("as many as there are predictions.")


def test_a_report_is_told_when_its_level_is_another_and_the_monitors_own_records_never_are(loop: Loop) -> None:
    loop.take_report(Message(Thresholds(0.5, 0.9), "state/m"))  # type: ignore[arg-type]
    for day, level in enumerate((Level.OK, Level.OK, Level.ALARM, Level.ALARM)):
        loop.take_report(report(day + 1, level))  # type: ignore[arg-type]
    calm, alarm = said(loop)
    assert "OK" in calm and "1970-01-02" in calm
    assert "ALARM" in alarm and "psi of amount 0.12" in alarm


def test_what_the_trainer_does_is_told_by_its_own_lines_each_once(loop: Loop, tmp_path: Path) -> None:
    ask(loop, "r1")
    write_run(tmp_path, "r1", "06:00:00 The set has 10 rows", "what the script printed")
    answer(loop, "r1", RunState.TRAINING, tmp_path)
    write_run(tmp_path, "r1", "06:00:00 The set has 10 rows", "what the script printed", "06:00:01 Candidate 1")
    answer(loop, "r1", RunState.TRAINING, tmp_path)
    assert said(loop)[1:] == ["`ecluse trainer`: The set has 10 rows", "`ecluse trainer`: Candidate 1"]
    assert trainer_text(loop) == "Candidate 1"


def test_what_comes_out_is_a_challenger_with_its_study_while_the_champion_scores_on(
    loop: Loop, settings: Settings, tmp_path: Path
) -> None:
    ask(loop, "r1")
    write_run(tmp_path, "r1")
    write_study(tmp_path, "r1")
    for _ in range(2):
        answer(loop, "r1", RunState.PUBLISHED, tmp_path, 2)
    assert (loop.version, loop.champion, loop.failed) == (2, 1, False)
    _, small, large, script, why, released = said(loop)
    assert small.strip() == "small              1 kB  average precision 0.50 (0.40 to 0.60)  picked"
    assert "picked" not in large and "It raised." in script and why.strip() == "It is small."
    assert released == "version 2 is released: a challenger; version 1 scores on"
    assert loop.study is not None
    assert study_text(loop.study).plain.split("   ")[:2] == ["small 1 kB 0.50", "large 30 kB 0.50"]
    because, trained = loop_lines(loop)
    assert because == "because r1"
    assert trained == "So version 2 was trained on 80 rows of what flowed: small, one of 3 candidates."
    watch = Watch(settings, (), None)  # type: ignore[arg-type]
    watch.loop = loop
    assert challenger_text(watch) == "version 2; version 1 scores on"


def test_a_request_that_fails_gives_way_to_the_next_and_one_that_does_not_keeps_its_place(
    loop: Loop, tmp_path: Path
) -> None:
    ask(loop, "r1")
    answer(loop, "r1", RunState.FAILED, tmp_path)
    assert loop.failed
    assert said(loop)[-1] == "`ecluse trainer`: failed: no"
    ask(loop, "r2", Asker.PERSON)
    assert not loop.failed
    ask(loop, "r3")
    assert loop.request is not None
    assert (loop.requests, loop.request.id) == (3, "r2")

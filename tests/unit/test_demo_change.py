"""What `ecluse demo` waits for, and for how long, and what it has a person do about the model."""

import datetime as dt
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import polars as pl
import pytest

from console.demo_data import Scene
from console.demo_feed import Feed
from console.demo_view import change_line, told_of
from console.demo_watch import Picture, Watch
from ecluse.contract.loop import Asker, RetrainRequest, Run, RunState
from ecluse.errors import ProcessFailed
from tests.conftest import MakeSettings

#: Of the last event that was scored; a person asks as of the second after it.
LAST = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)


class Process:
    """A child that ends when the test says so, and well."""

    def __init__(self, out: Path) -> None:
        self.ended, self.out, self.process = False, out, self

    def poll(self) -> int | None:
        return 0 if self.ended else None


class Stage:
    """Starts nothing, and remembers what it was to start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: dict[str, Process] = {}
        self.told: dict[str, tuple[str, ...]] = {}

    def start(self, name: str, *args: str) -> Process:
        self.started[name], self.told[name] = Process(self.folder / name), args
        return self.started[name]

    def end(self, name: str, said: str = "") -> None:
        self.started[name].out.write_text(said, encoding="utf-8")
        self.started[name].ended = True

    def require_done(self, *children: Process) -> None:
        pass

    def fail(self, sentence: str) -> NoReturn:
        raise ProcessFailed(sentence)


class Office:
    """A back office that has told of as many events as the test says."""

    told = 0

    def send(self) -> None:
        pass


class Running:
    """A demonstration of 30 rows in three parts, its looks and its clocks in the test's hands."""

    def __init__(self, folder: Path, watch: Watch, clock: list[float], settings: Any, *, drifts: bool) -> None:
        self.watch, self.stage, self.office, self._clock = watch, Stage(folder), Office(), clock
        parts = tuple(folder / f"{name}.parquet" for name in ("first", "second", "last"))
        for part in parts:
            pl.DataFrame({"row": range(10)}).write_parquet(part)
        scene = Scene({}, Path(), None, parts, 30, 1_000, (), (), drifts=drifts)
        self._feed = Feed(self.stage, scene, settings, self.office)  # type: ignore[arg-type]

    def look(self, done: int, *, stored: int = 0, after: float = 1.0) -> None:
        """The stream as it is `after` so many seconds: `done` events are scored, and `stored` rows in the store."""
        self._clock[0] += after
        self.watch.versions[1] = done
        rows = Counter({"events": stored})
        self.watch.pictures.append(Picture(self._clock[0], done, done, (0,), (), not self.watch.behind, rows))
        self._feed.go_on(self.watch)

    def play_two_parts(self) -> None:
        """Up to the moment when all but the last part is scored and stored."""
        for name, done in (("first", 10), ("second", 20)):
            self.look(done - 10, stored=2 * done)
            self.stage.end(f"publish {name}.parquet")
            self.look(done)

    def ask(self, asker: Asker = Asker.DRIFT) -> None:
        """A request comes."""
        self.watch.loop.request = RetrainRequest(
            id="r", model="m", asker=asker, reason="why", cutoff=0.0, created_at=0.0
        )

    def finish(self, state: RunState, version: int | None = None) -> None:
        """The trainer has answered the request."""
        self.watch.loop.run = Run(
            name="m", request="r", state=state, trainer="t", started_at=0.0, version=version, reason="one class only"
        )


@pytest.fixture
def watch(make_settings: MakeSettings, tmp_path: Path) -> Watch:
    """Of a stream that began at second 1000."""
    watch = Watch(make_settings(), (), Process(tmp_path))  # type: ignore[arg-type]
    watch.began, watch.last_event = 1000.0, LAST.timestamp() + 0.25
    watch.behind = {"worker 1", "worker 2"}
    return watch


@pytest.fixture
def drifts() -> bool:
    return True


@pytest.fixture
def running(
    tmp_path: Path, watch: Watch, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, drifts: bool
) -> Running:
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("console.demo_feed.guests", lambda *_: iter(()))
    return Running(tmp_path, watch, clock, make_settings(), drifts=drifts)


def test_the_second_part_comes_when_the_first_and_its_labels_are_stored(running: Running) -> None:
    running.look(0)
    running.office.told = 3
    running.stage.end("publish first.parquet")
    running.look(9, stored=30)
    running.look(10, stored=22)
    assert list(running.stage.started) == ["publish first.parquet"]
    running.look(10, stored=23)
    assert list(running.stage.started) == ["publish first.parquet", "publish second.parquet"]


def test_a_person_looks_at_the_version_and_promotes_it_and_the_last_part_waits_until_every_worker_has_it(
    running: Running,
) -> None:
    running.play_two_parts()
    running.ask()
    running.look(20)
    assert list(running.stage.started) == ["publish first.parquet", "publish second.parquet"]
    running.finish(RunState.PUBLISHED, 2)
    running.look(20)
    assert running.stage.told["verify"] == ("model", "verify", "2", "--json")
    running.look(20)
    assert "promote" not in running.stage.started
    running.stage.end("verify", '{"signed_by": "key"}')
    running.look(20)
    assert running.stage.told["promote"] == ("model", "promote", "2")
    assert running.watch.loop.verified == {"signed_by": "key"}
    running.watch.announced, running.watch.behind = 1000.0, {"worker 2"}
    running.look(20)
    assert "publish last.parquet" not in running.stage.started
    running.watch.behind = set()
    running.look(20)
    assert "publish last.parquet" in running.stage.started


def test_where_the_data_drift_and_the_monitor_does_not_ask_the_demonstration_ends(running: Running) -> None:
    running.play_two_parts()
    running.look(20, stored=40)
    with pytest.raises(ProcessFailed, match="Nobody has asked for a new version after 60 s"):
        running.look(20, stored=40, after=61.0)
    assert "ask" not in running.stage.started


def test_training_that_fails_ends_the_demonstration_with_its_reason(running: Running) -> None:
    running.play_two_parts()
    running.ask()
    running.finish(RunState.FAILED)
    with pytest.raises(ProcessFailed, match="has failed: one class only"):
        running.look(20)


def test_training_that_does_not_end_ends_the_demonstration(running: Running) -> None:
    running.play_two_parts()
    running.ask()
    running.look(20)
    with pytest.raises(ProcessFailed, match="has not ended after 300 s"):
        running.look(20, after=301.0)


@pytest.mark.parametrize("drifts", [False])
def test_of_a_file_that_is_not_known_to_drift_a_person_asks_as_of_the_last_event_once(running: Running) -> None:
    running.play_two_parts()
    running.look(20, stored=39)
    assert "ask" not in running.stage.started
    running.look(20, stored=40)
    assert running.stage.told["ask"][-1] == "2024-01-31T12:00:01Z"
    running.ask(Asker.PERSON)
    running.finish(RunState.FAILED)
    with pytest.raises(ProcessFailed, match="one class only"):
        running.look(20, stored=40)


@pytest.mark.parametrize("drifts", [False])
def test_where_the_monitor_asked_too_early_to_come_to_anything_a_person_asks_again(running: Running) -> None:
    running.ask()
    running.finish(RunState.FAILED)
    running.play_two_parts()
    running.look(20, stored=40)
    assert "ask" in running.stage.started


def test_a_worker_that_does_not_change_to_the_promoted_version_is_named(running: Running) -> None:
    running.play_two_parts()
    running.ask()
    running.finish(RunState.PUBLISHED, 2)
    running.watch.announced, running.watch.behind = 1003.5, {"worker 2"}
    running.look(20)
    with pytest.raises(ProcessFailed, match=r"^worker 2 did not change to version 2 after 60 s"):
        running.look(20, after=61.0)


def test_a_stream_in_which_nothing_moves_although_something_should_ends_the_demonstration(running: Running) -> None:
    running.look(0)
    running.look(5, after=61.0)
    with pytest.raises(ProcessFailed, match="Nothing has moved, with 25 events to go after 60 s"):
        running.look(5, after=61.0)


def test_the_change_is_told_in_its_order_with_times_from_the_promotion(watch: Watch) -> None:
    assert [*told_of(watch)] == []
    watch.versions[1] = 50
    watch.announced = 1010.0
    watch.first = {"worker 1": 1010.5, "worker 2": 1010.25}
    watch.versions[2] = 1_200
    promoted, first, second = (line.strip() for _, line in told_of(watch))
    assert promoted.startswith("10.0 s  version 2 is promoted")
    assert first == "10.2 s  worker 2 scores its first event by version 2, 0.25 s later"
    assert second == "10.5 s  worker 1 scores its first event by version 2, 0.50 s later"
    assert change_line(watch) == "The model changed in mid-stream: 50 by version 1 and 1,200 by version 2."


def test_what_a_person_saw_of_the_version_is_told(watch: Watch) -> None:
    watch.loop.take_verified(msgspec.json.encode({"signed_by": "key"}).decode())
    assert "as it was released and signed" in next(line for _, line in told_of(watch))

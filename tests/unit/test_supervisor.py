"""The supervisor's decisions, with processes that do as they are told and a clock that tests set."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from console.process import WorkerProcess
from console.supervisor import DELAYS, STEADY_SECONDS, STOP_SECONDS, Slot, Supervisor, slot_base, take_slot
from tests.conftest import MakeSettings
from tests.workers import wait_until

SECOND = 1.0


@dataclass
class FakeProcess:
    """Runs until a test or SIGKILL ends it; SIGTERM ends it too, unless it is deaf."""

    slot: Slot
    pid: int
    is_ready: bool = True
    deaf: bool = False
    code: int | None = None
    signals: list[signal.Signals] = field(default_factory=list)

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.code = -number
        elif not self.deaf:
            self.code = 0

    def ready(self) -> bool:
        return self.is_ready

    def end_of_log(self) -> list[str]:
        return ["first line", "last words"]

    def close(self) -> None:
        assert self.code is not None


class Scene:
    """A supervisor of fakes; time moves when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.started: list[FakeProcess] = []
        self.indices = itertools.count()
        self.broker = True
        self.starts_ready = True
        self.supervisor = Supervisor(self.start, self.slot, lambda: self.broker, clock=lambda: self.now)

    def start(self, slot: Slot) -> FakeProcess:
        self.started.append(FakeProcess(slot, pid=len(self.started), is_ready=self.starts_ready))
        return self.started[-1]

    def slot(self) -> Slot:
        index = next(self.indices)
        return Slot(index, f"w-{index}", os.open(os.devnull, os.O_RDONLY))

    @property
    def running(self) -> list[FakeProcess]:
        return [process for process in self.started if process.code is None]

    def pass_time(self, seconds: float) -> None:
        """Steps of half a second."""
        for _ in range(round(seconds / 0.5)):
            self.supervisor.step()
            self.now += 0.5
        self.supervisor.step()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.supervisor.stop()
    for process in made.running:
        process.send_signal(signal.SIGKILL)
    made.supervisor.step()


def test_as_many_run_as_were_told_and_the_newest_leave_first(scene: Scene) -> None:
    scene.supervisor.scale(3)
    scene.pass_time(SECOND)
    assert (scene.supervisor.workers, scene.supervisor.ready) == (3, 3)
    first, second, third = scene.started
    scene.supervisor.scale(1)
    assert (first.signals, second.signals, third.signals) == ([], [signal.SIGTERM], [signal.SIGTERM])
    scene.pass_time(SECOND)
    assert (scene.supervisor.workers, scene.running) == (1, [first])
    scene.supervisor.scale(2)
    scene.pass_time(SECOND)
    assert (scene.supervisor.workers, len(scene.started)) == (2, 4)


def test_a_worker_that_fails_again_and_again_waits_longer_each_time_and_then_all_stop(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.supervisor.scale(2)
    scene.supervisor.step()
    healthy, failing = scene.started
    starts = [scene.now]
    for _ in DELAYS:
        failing.code = 1
        while scene.started[-1] is failing:
            scene.pass_time(0.5)
        failing = scene.started[-1]
        assert failing.slot.name == "w-1", "it comes back in its own slot"
        starts.append(scene.now)
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert waits == sorted(waits)
    assert all(delay <= wait <= delay + 1 for delay, wait in zip(DELAYS, waits, strict=True))
    assert (scene.supervisor.code, healthy.signals) == (None, [])
    failing.code = -signal.SIGSEGV
    scene.pass_time(SECOND)
    assert (scene.supervisor.code, healthy.signals, scene.running) == (1, [signal.SIGTERM], [])
    (loud,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert "w-1 failed 6 times in a row, at last with SIGSEGV" in loud.getMessage()
    assert "last words" in loud.getMessage()


def test_a_worker_that_was_ready_for_a_minute_has_its_failures_forgotten(scene: Scene) -> None:
    scene.supervisor.scale(1)
    for _ in range(3 * len(DELAYS)):
        scene.pass_time(STEADY_SECONDS + 2 * DELAYS[0])
        scene.running[0].code = 70
    scene.pass_time(2 * DELAYS[0])
    assert (scene.supervisor.code, len(scene.running)) == (None, 1)


def test_a_minute_without_being_ready_is_no_good_start(scene: Scene) -> None:
    scene.starts_ready = False
    scene.supervisor.scale(1)
    for _ in range(len(DELAYS) + 1):
        scene.pass_time(STEADY_SECONDS + DELAYS[-1])
        scene.running[0].code = 1
    scene.pass_time(SECOND)
    assert scene.supervisor.code == 1


def test_a_worker_that_somebody_stopped_is_started_again(scene: Scene) -> None:
    scene.supervisor.scale(1)
    scene.pass_time(SECOND)
    scene.started[0].code = 0
    scene.pass_time(DELAYS[0] / 2)
    assert scene.running == []
    scene.pass_time(DELAYS[0])
    assert len(scene.running) == 1


def test_wrong_use_is_not_tried_again(scene: Scene) -> None:
    scene.supervisor.scale(2)
    scene.pass_time(SECOND)
    scene.started[0].code = 2
    scene.pass_time(SECOND)
    assert (scene.supervisor.code, scene.running, len(scene.started)) == (2, [], 2)


def test_while_no_broker_answers_nothing_is_started_and_no_failure_is_counted(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.supervisor.scale(2)
    scene.pass_time(SECOND)
    survivor, fallen = scene.started
    scene.broker, fallen.code = False, 1
    scene.pass_time(3600)
    assert (scene.running, len(scene.started), scene.supervisor.code) == ([survivor], 2, None)
    assert sum("no broker answers" in record.getMessage() for record in caplog.records) == 1
    scene.broker = True
    scene.pass_time(2 * SECOND)
    assert len(scene.running) == 2


def test_stopping_waits_for_all_and_kills_what_does_not_end(scene: Scene) -> None:
    scene.supervisor.scale(2)
    scene.pass_time(SECOND)
    good, deaf = scene.started
    deaf.deaf = True
    scene.supervisor.stop()
    scene.pass_time(STOP_SECONDS - 1)
    assert (good.code, deaf.code, scene.supervisor.code) == (0, None, 0)
    scene.pass_time(2)
    assert (deaf.code, scene.supervisor.code, scene.supervisor.workers) == (-signal.SIGKILL, 1, 0)


def test_a_rolling_restart_takes_the_next_only_when_the_one_before_is_ready(scene: Scene) -> None:
    scene.supervisor.scale(3)
    scene.pass_time(SECOND)
    old = list(scene.started)
    scene.starts_ready = False
    scene.supervisor.roll()
    for done in range(1, 4):
        scene.pass_time(10)
        assert [process.code for process in old] == [0] * done + [None] * (3 - done)
        assert len(scene.running) == 3
        scene.running[-1].is_ready = True
    scene.pass_time(10)
    assert [process.slot.name for process in scene.started] == ["w-0", "w-1", "w-2"] * 2
    assert scene.supervisor.ready == 3


def test_a_stop_ends_a_rolling_restart(scene: Scene) -> None:
    scene.supervisor.scale(2)
    scene.pass_time(SECOND)
    scene.started[0].deaf = True
    scene.supervisor.roll()
    scene.pass_time(SECOND)
    scene.supervisor.stop()
    scene.started[0].code = 0
    scene.pass_time(SECOND)
    assert (scene.running, len(scene.started), scene.supervisor.code) == ([], 2, 0)


def test_a_signal_stops_a_running_supervisor_and_its_handlers_go_with_it(scene: Scene) -> None:
    before = signal.getsignal(signal.SIGTERM)
    scene.supervisor.scale(2)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    assert scene.supervisor.run() == 0
    timer.join()
    assert (scene.running, len(scene.started)) == ([], 2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_slots_are_stable_over_a_restart_and_never_shared_by_two_that_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = [take_slot("g", "host") for _ in range(2)]
    second = [take_slot("g", "host") for _ in range(2)]
    other = take_slot("another-group", "host")
    assert [slot.name for slot in [*first, *second, other]] == ["host-0", "host-1", "host-2", "host-3", "host-0"]
    os.close(first[1].lock)
    again = take_slot("g", "host")
    assert (again.name, again.index) == ("host-1", 1)
    for slot in (first[0], again, *second, other):
        os.close(slot.lock)


def test_slots_are_named_by_the_setting_or_else_by_the_host(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "pod_7:häfen")
    assert slot_base(make_settings()) == "pod_7-h-fen"
    assert slot_base(make_settings(worker={"slot": "blue"})) == "blue"


def test_a_worker_that_outlives_its_supervisor_keeps_its_slot_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    slot = take_slot("g", "host")
    worker = WorkerProcess(slot.name, ["--config", str(tmp_path / "none.toml")], {}, slot.lock)
    os.close(slot.lock)
    other = take_slot("g", "host")
    assert other.index == 1
    wait_until("it ends, for want of a configuration", lambda: worker.poll() == 1)
    worker.close()
    again = take_slot("g", "host")
    assert again.index == 0
    assert worker.end_of_log()[0].startswith("error: There is no configuration")
    assert capsys.readouterr().err.startswith("host-0 | error: There is no configuration")
    os.close(again.lock)
    os.close(other.lock)


def test_a_worker_that_logs_much_goes_on_where_its_supervisors_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    chatty = tmp_path / "console" / "__main__.py"
    chatty.parent.mkdir()
    (chatty.parent / "__init__.py").touch()
    chatty.write_text("for number in range(5000):\n    print(number, 'x' * 100)\n")
    monkeypatch.chdir(tmp_path)  # where the interpreter looks first for what it is to run
    monkeypatch.setattr("sys.stderr", Full())
    lock = os.open(tmp_path / "lock", os.O_CREAT)
    worker = WorkerProcess("w-0", [], {}, lock)
    wait_until("it ends", lambda: worker.poll() == 0, 20.0)
    assert worker.end_of_log()[-1].startswith("4999 ")
    worker.close()
    os.close(lock)

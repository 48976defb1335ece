"""The bounds of a training process: time, memory, what it prints, and what it starts."""

import os
from pathlib import Path

import psutil
import pytest

from ecluse.errors import ProcessFailed
from retrain.limits import Limits, free_memory
from retrain.process import Guard, run
from retrain.runlog import FILE_BYTES, RunLog
from tests.conftest import MakeSettings
from tests.unit.test_child_process import alive, job, silent, until

MUCH = 2**40


def guard(log: RunLog, seconds: float = 300.0) -> Guard:
    return Guard(Limits(seconds, MUCH), log, lambda: None)


def test_a_script_that_never_ends_is_ended_with_the_limit_that_it_hit(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    with (
        RunLog(tmp_path / "run.log") as log,
        pytest.raises(ProcessFailed, match=r"not done within 0\.05 minutes \(trainer\.time_limit_minutes\)"),
    ):
        run(job(make_settings(), tmp_path, "while True: print('x' * 65_536)"), silent, guard(log, 3.0))


def test_what_a_script_starts_outside_its_group_ends_with_it_and_a_fork_of_it_does_nothing(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    body = f"""
    import os, subprocess, sys
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open({str(pid)!r}, "w").write(str(left.pid))
    print("printed")
    os.fork()
    """
    said: list[str] = []
    with RunLog(tmp_path / "run.log") as log:
        run(job(make_settings(), tmp_path, body), said.append, guard(log))
    assert [line.split()[0] for line in said] == ["Reading", "Training", "Converting", "Measuring"]
    assert "printed" in (tmp_path / "run.log").read_text()
    until(lambda: not alive(int(pid.read_text())), "what the script started still runs")


def test_a_check_that_raises_ends_the_training(make_settings: MakeSettings, tmp_path: Path) -> None:
    def check() -> None:
        raise RuntimeError("it is another's")

    with RunLog(tmp_path / "run.log") as log, pytest.raises(RuntimeError, match="it is another's"):
        run(job(make_settings(), tmp_path, "pass"), silent, Guard(Limits(300.0, MUCH), log, check))
    assert not psutil.Process().children(), "the child has ended"


def test_a_log_keeps_the_newest_of_what_is_printed_without_end(tmp_path: Path) -> None:
    read, write = os.pipe()
    with RunLog(tmp_path / "run.log") as log:
        log.line("the first line")
        log.copy(read)
        for number in range(300):
            os.write(write, f"{number:65535}\n".encode())
        log.stop()
    os.close(read)
    os.close(write)
    newer, older = (tmp_path / name for name in ("run.log", "run.log.1"))
    assert max(newer.stat().st_size, older.stat().st_size) <= FILE_BYTES
    text = older.read_text() + newer.read_text()
    assert text.endswith(" 299\n") and "the first line" not in text
    assert [int(line) for line in text.split()] == list(range(300 - len(text.split()), 300)), "without a gap"


def test_no_line_of_ours_gets_into_one_that_is_printed_in_pieces(tmp_path: Path) -> None:
    read, write = os.pipe()
    file = tmp_path / "run.log"
    with RunLog(file) as log:
        log.copy(read)
        os.write(write, b"first\ndrawn ")
        until(lambda: file.read_bytes() == b"first\n", "whole lines are not copied at once")
        log.line("ours")
        os.write(write, b"7\n 10%\r 20%\r and a last word")
        until(lambda: file.read_bytes().endswith(b"20%\r"), "a bar that is drawn is not copied")
    os.close(read)
    os.close(write)
    assert file.read_bytes() == b"first\nours\ndrawn 7\n 10%\r 20%\r and a last word\n"


def test_a_line_without_end_is_copied_all_the_same(tmp_path: Path) -> None:
    read, write = os.pipe()
    with RunLog(tmp_path / "run.log") as log:
        log.copy(read)
        for _ in range(100):
            os.write(write, b"x" * 65536)
        log.stop()
    os.close(read)
    os.close(write)
    newer, older = (tmp_path / name for name in ("run.log", "run.log.1"))
    assert newer.stat().st_size + older.stat().st_size == 100 * 65536 + newer.read_bytes().count(b"\n")


def test_a_disk_that_is_full_for_a_while_takes_nothing_from_a_log(tmp_path: Path) -> None:
    file, older = tmp_path / "run.log", tmp_path / "run.log.1"
    with RunLog(file) as log:
        log.line("kept")
        out, log._out = log._out, open("/dev/full", "wb", buffering=0)  # noqa: SIM115, PTH123
        log.line("lost")
        log._out.close()
        log._out = out
        log.line("after")
        assert file.read_text() == "kept\nafter\n" and not older.exists()
        log._room, blocked = 0, tmp_path / "run.log.new"
        blocked.mkdir()  # no file can be begun
        log.line("lost")
        blocked.rmdir()
        log.line("in a new file")
    assert (file.read_text(), older.read_text()) == ("in a new file\n", "kept\nafter\n")


def test_what_is_free_is_told_where_no_limit_is_set() -> None:
    assert 0 < free_memory() < psutil.virtual_memory().total

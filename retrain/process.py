"""Training, conversion and comparison in a process of their own, which is given neither the signing key nor Kafka's secrets.

The parent writes the job on the child's standard input, a line of JSON, and keeps it open: when it ends, because the parent
did, however it did, the child ends too, with all that it started. What the child says comes back over its first standard
output; what a training script prints goes to stderr. The draft is a folder: of its files the parent takes digests only.
"""

import contextlib
import datetime as dt
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from ecluse.contract.records import Thresholds
from ecluse.errors import DataError, EcluseError, ModelRefused, NothingToLearn, ProcessFailed
from ecluse.settings import Settings
from retrain.limits import Limits, Watch
from retrain.runlog import RunLog

#: A line of a child that says more is cut off with the child.
_LINE_BYTES = 1024 * 1024
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.25
#: A name in the environment of the child and of all that it starts, by which these are found.
MARK = "RETRAIN_PROCESS"
_SWEEPS = 10
#: What a child needs of the settings: no key, no store, no cluster.
_MODEL_KEYS = {"name", "label", "positive", "features", "script", "holdout", "unpickle"}


class Train(msgspec.Struct, frozen=True, tag=True):
    """Train the stream's model on the rows of a file, and write the draft into a folder; with `study`, of several candidates
    the one that a study picks, and the study beside it. No process of it may set aside more than `data_bytes`. The
    fields in `private` (in small letters) are not in the file as they were in the events: they are no inputs."""

    settings: dict[str, Any]
    draft: str
    file: str
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    holdout_since: dt.datetime | None = None
    study: bool = False
    data_bytes: int | None = None
    private: tuple[str, ...] = ()


class Register(msgspec.Struct, frozen=True, tag=True):
    """Check somebody's model on sample rows, and write the draft into a folder."""

    settings: dict[str, Any]
    draft: str
    model: str
    features: str
    samples: str
    thresholds: Thresholds | None


class Said(msgspec.Struct, frozen=True, tag=True):
    """A line for the person who waits."""

    text: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The error that ended the job."""

    kind: str
    sentence: str


class Done(msgspec.Struct, frozen=True, tag=True):
    """The draft is whole."""


Job = Train | Register
Message = Said | Refused | Done
_message = msgspec.json.Decoder(Message)
_ERRORS: dict[str, type[EcluseError]] = {
    error.__name__: error for error in (DataError, ModelRefused, NothingToLearn, ProcessFailed)
}


def for_child(settings: Settings) -> dict[str, Any]:
    """The settings that a child gets, as plain values."""
    plain = {name: getattr(settings, name).model_dump(mode="json") for name in ("stream", "thresholds", "study")}
    plain["trainer"] = {"seed": settings.trainer.seed}
    return plain | {"model": settings.model.model_dump(mode="json", include=_MODEL_KEYS)}


@dataclass(frozen=True)
class Guard:
    """How a child that nobody looks after is kept in bounds. `check` is asked often; what it raises ends the child."""

    limits: Limits
    log: RunLog
    check: Callable[[], None]


def run(job: Job, say: Callable[[str], None], guard: Guard | None = None) -> None:
    """Have a child do the job; when this returns, the draft is whole.

    Args:
        job: what it does.
        say: gets the child's lines.
        guard: where it has limits; what it prints then goes to the guard's log, else to our stderr.

    Raises:
        DataError, ModelRefused: what the child refused, in its words.
        ProcessFailed: it ended before the job was done, or took more than it may.
    """
    # What a child that is killed leaves of its own goes with this folder.
    with tempfile.TemporaryDirectory(prefix="ecluse-child-", ignore_cleanup_errors=True) as scratch:
        _run(job, say, guard, scratch)
    _require_plain_files(Path(job.draft))


def _run(job: Job, say: Callable[[str], None], guard: Guard | None, scratch: str) -> None:
    """See `run`."""
    mark = uuid.uuid4().hex
    child = subprocess.Popen(
        [sys.executable, "-P", "-u", "-m", "retrain.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if guard is None else subprocess.PIPE,
        env=_environment(job.settings) | {MARK: mark, "TMPDIR": scratch},
        process_group=0,  # Ctrl-C reaches us only, and what the child started ends with it
    )
    assert child.stdin is not None
    try:
        if guard is not None and child.stderr is not None:
            guard.log.copy(child.stderr.fileno())
        with contextlib.suppress(BrokenPipeError):  # it is gone already: told below
            child.stdin.write(msgspec.json.encode(job) + b"\n")
            child.stdin.flush()
        _follow(child, say, _looking(child, guard))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_SECONDS)
    finally:
        _end(child, mark)
        if guard is not None:
            guard.log.stop()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ECLUSE_", "KAFKA_")) and not name.endswith("_FILE")
    }
    # OpenMP's threads would spin while they wait for each other: on busy cores that takes three times as long.
    # Strings' hashes are of the seed too, or a script that walks through a set would make another model each time.
    seed = str(int(settings.get("trainer", {}).get("seed", 0)) % 2**32)
    return {"OMP_WAIT_POLICY": "passive"} | kept | {"PYTHONHASHSEED": seed}


def _looking(child: subprocess.Popen[bytes], guard: Guard | None) -> Callable[[], None]:
    """What to do again and again while the child works."""
    if guard is None:
        return lambda: None
    watch = Watch(child.pid, guard.limits)

    def look() -> None:
        watch.look()
        guard.check()

    return look


def _end(child: subprocess.Popen[bytes], mark: str) -> None:
    """End the child with all that it started, also what left its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(_STOP_SECONDS)
    end_marked(mark)


def end_marked(mark: str) -> None:
    """End all processes that bear a mark, but for this one."""
    for _ in range(_SWEEPS):  # what is being swept may start another
        left = [each for each in psutil.process_iter() if each.pid != os.getpid() and _is_marked(each, mark)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not left:
            return


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # ended meanwhile, or not ours
        return False


def _follow(child: subprocess.Popen[bytes], say: Callable[[str], None], look: Callable[[], None]) -> None:
    """Pass on what the child says, until it is done."""
    assert child.stdout is not None
    pipe, pending = child.stdout.fileno(), b""
    while len(pending) <= _LINE_BYTES:
        look()
        if not select.select([pipe], [], [], _POLL_SECONDS)[0]:
            if child.poll() is not None:  # something that it left behind holds the pipe
                break
            continue
        part = os.read(pipe, 64 * 1024)
        if not part:
            break
        *lines, pending = (pending + part).split(b"\n")
        for line in lines:
            match _decoded(line):
                case Said(text):
                    say(text)
                case Refused(kind, sentence):
                    raise _ERRORS.get(kind, ModelRefused)(sentence)
                case Done():
                    return
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_STOP_SECONDS)
    raise ProcessFailed(
        f"The process that does the training and the comparison {how_it_ended(child.returncode)} before it was done. "
        "Nothing was published."
    )


def _decoded(line: bytes) -> Message:
    try:
        message: Message = _message.decode(line)
    except msgspec.DecodeError as error:
        raise ProcessFailed(f"The process that does the training says what cannot be read: {error}.") from error
    return message


def own_stdout() -> int:
    """A descriptor of what was standard output; from now on, whatever anybody prints goes to stderr."""
    said = os.dup(1)
    os.dup2(2, 1)
    return said


def how_it_ended(code: int | None) -> str:
    """An exit code as `subprocess` gives it, in words that follow "the process"."""
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), which is what the system does where memory runs out,"
    return f"was ended by signal {-code} ({signal.strsignal(-code)})"


def _require_plain_files(draft: Path) -> None:
    """A link in the draft would have us publish a file that only we can read."""
    for file in draft.iterdir():
        if not stat.S_ISREG(file.lstat().st_mode):
            raise ModelRefused(f"The draft holds {file.name}, which is no plain file. Nothing was published.")

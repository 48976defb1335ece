"""The child: reads a job on its standard input, does it, and says how it goes. See `retrain.process`."""

import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from ecluse.errors import EcluseError
from ecluse.settings import Settings
from retrain.process import MARK, Done, Job, Message, Refused, Register, Said, Train, end_marked, own_stdout


def main() -> None:
    """Do one job."""
    said = own_stdout()
    orders = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # a training script that reads waits for nobody
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(orders, 64 * 1024)
        if not part:
            sys.exit("There is no job.")
        line += part
    ending = orders, os.environ.get(MARK, "")
    threading.Thread(target=_end_with_parent, args=ending, name="end with parent", daemon=True).start()

    ours = os.getpid()

    def tell(message: Message) -> None:
        if os.getpid() != ours:  # a training script forked, and this is its copy of us
            os._exit(1)
        os.write(said, msgspec.json.encode(message) + b"\n")

    try:
        _do(msgspec.json.decode(line, type=Job), lambda text: tell(Said(text)))
    except EcluseError as error:
        tell(Refused(type(error).__name__, str(error)))
    except MemoryError:
        tell(Refused("ProcessFailed", "The memory does not suffice. Nothing was published."))
    else:
        tell(Done())


def _do(job: Job, say: Callable[[str], None]) -> None:
    settings = Settings(**job.settings)
    if isinstance(job, Train) and job.data_bytes is not None:
        with contextlib.suppress(ValueError, OSError):  # not every system has this limit: the parent looks, too
            resource.setrlimit(resource.RLIMIT_DATA, (job.data_bytes, job.data_bytes))
    match job:
        case Train(study=True):
            from retrain.study.run import study  # noqa: PLC0415

            study(settings, job, say)
        case Train():
            from retrain.fitting import train  # noqa: PLC0415

            train(settings, job, say)
        case Register():
            from retrain.foreign import register  # noqa: PLC0415

            register(settings, job, say)


def _end_with_parent(orders: int, mark: str) -> None:
    """Wait until the parent's end of the pipe is closed, and end this process and all that it started."""
    while os.read(orders, 1024):
        pass
    try:
        end_marked(mark)  # also what has left the group
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()

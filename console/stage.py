"""The demonstration's stage: a folder, a broker and `ecluse` processes, of which nothing is left at the end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import psutil

from console import broker
from console.process import address_in, ask, how_it_ended
from ecluse.errors import ProcessFailed

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Each worker and sink takes a free port. OpenMP's threads sleep where they would spin: on busy cores training takes a third.
_ENVIRONMENT = {"ECLUSE_WORKER__METRICS_PORT": "0", "ECLUSE_STORE__METRICS_PORT": "0", "OMP_WAIT_POLICY": "passive"}
_POLL_SECONDS = 0.1
_STOP_SECONDS = 15.0
_LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Child:
    """A process of the stage: `out` is its standard output, `log` its standard error."""

    name: str
    process: subprocess.Popen[bytes]
    out: Path
    log: Path

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.process.poll() is not None

    def ending(self) -> str:
        """How it ended, in words, with the end of its log."""
        how = how_it_ended(self.process.returncode)
        return f"The process '{self.name}' ended with {how}. {self.end_of_log()}"

    def end_of_log(self) -> str:
        """The last lines that it logged."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return "The end of its log:\n" + "\n".join(f"  {line}" for line in lines) if lines else "Its log is empty."

    def get(self, path: str) -> tuple[int, str]:
        """What a worker or sink answers over HTTP: status and text; (0, "") while it does not listen."""
        return ask(address_in(self.log.read_text(encoding="utf-8", errors="replace")), path)


class Stage:
    """A context with a folder, a broker and processes of its own; leaving it stops and removes all of them.

    SIGTERM and SIGHUP leave it as Ctrl-C does; while it tidies up, further signals are ignored. `say` is told when it does.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.folder = Path()
        self._children: list[Child] = []
        self._tidying: list[Callable[[], None]] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, _leave) for number in _ENDING}
        self.folder = Path(tempfile.mkdtemp(prefix="ecluse-demo-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        with contextlib.ExitStack() as end:  # the last one first, and all of them, whatever one raises
            for number, handler in self._handlers.items():
                end.callback(signal.signal, number, handler)
            end.callback(shutil.rmtree, self.folder, ignore_errors=True)
            end.callback(self._sweep)
            end.callback(broker.stop, self._broker_data)
            for tidy in self._tidying:
                end.callback(tidy)
            end.callback(self._stop_children)
            if self._children or self._broker_data.exists():
                end.callback(self._say, "Stopping all that was started …")

    def at_end(self, tidy: Callable[[], None]) -> None:
        """Have something done when no process of the stage is left, and the broker still runs."""
        self._tidying.append(tidy)

    @property
    def _broker_data(self) -> Path:
        return self.folder / "broker"

    def start_broker(self) -> str:
        """Start a broker on a free port; its address.

        Raises:
            BrokerSetupError: it cannot be started here.
        """
        return broker.start(self._broker_data, port=0).servers

    def start(self, name: str, *args: str) -> Child:
        """Start ``ecluse ARGS`` in the stage's folder, in a process group of its own (Ctrl-C does not reach it)."""
        out, log = self.folder / f"{name}.out", self.folder / f"{name}.log"
        with out.open("wb") as stdout, log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "console", *args],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env=os.environ | _ENVIRONMENT | {"TMPDIR": str(self.folder)},
            )
        child = Child(name, process, out, log)
        self._children.append(child)
        return child

    def run(self, seconds: float, name: str, *args: str) -> str:
        """Run ``ecluse ARGS`` to its end; what it printed.

        Raises:
            ProcessFailed: it failed, or was not done after `seconds`.
        """
        child = self.start(name, *args)
        self.wait(lambda: child.ended, seconds, f"`ecluse {args[0]}` has not ended")
        self.require_done(child)
        return child.out.read_text(encoding="utf-8")

    def wait(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Wait until `done`.

        Raises:
            ProcessFailed: it was not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                self.fail(f"{otherwise} after {seconds:.0f} s.")
            time.sleep(_POLL_SECONDS)

    def require_done(self, *children: Child) -> None:
        """Let processes pass that run, or ended well.

        Raises:
            ProcessFailed: one ended with another code than 0.
        """
        for child in children:
            if child.process.poll():
                raise ProcessFailed(child.ending())

    def require_running(self, *children: Child) -> None:
        """Let processes pass that run.

        Raises:
            ProcessFailed: one has ended.
        """
        for child in children:
            if child.ended:
                raise ProcessFailed(child.ending())

    def fail(self, sentence: str) -> NoReturn:
        """Give up, and show the end of the log of every process that still runs.

        Raises:
            ProcessFailed: always.
        """
        running = [child for child in self._children if not child.ended]
        raise ProcessFailed("\n".join([sentence, *(f"{child.name}: {child.end_of_log()}" for child in running)]))

    def _stop_children(self) -> None:
        """SIGTERM to all, wait for them, then SIGKILL to what is left of their groups."""
        for child in self._children:
            if not child.ended:
                _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.process.wait(_STOP_SECONDS)

    def _sweep(self) -> None:
        """End a broker whose start was interrupted before it was noted: its command line names its configuration."""
        config = str(self._broker_data.resolve() / "server.properties")
        for process in psutil.process_iter(["cmdline"]):
            if config in (process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    process.kill()
                    process.wait(_STOP_SECONDS)


def _leave(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _signal_group(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)

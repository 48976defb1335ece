"""An `ecluse worker` as a child process: its log, its health, and its end with ours."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence

_ADDRESS = re.compile(r"http://([\w.:\[\]-]+:\d+)")
_ANSWER_SECONDS = 2.0
_LOG_LINES = 12
#: A line without an end is passed on in pieces: what is held of a log is bounded.
_LINE_BYTES = 64 * 1024


def address_in(log: str) -> str | None:
    """Where the worker that wrote this log listens (``host:port``); None where it does not say."""
    found = _ADDRESS.search(log)
    return found[1] if found else None


def ask(address: str | None, path: str) -> tuple[int, str]:
    """What a worker answers over HTTP: status and text; (0, "") while it does not listen."""
    if address is None:
        return 0, ""
    connection = http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def how_it_ended(code: int) -> str:
    """An exit code as `subprocess` gives it, in words."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


class WorkerProcess:
    """A worker that runs. What it prints goes to our stderr, with its name before each line.

    Its standard input is a pipe from us: when that ends, because we did, however we did, the worker stops in order.

    Args:
        name: before the lines of its log.
        arguments: of the command line, after ``ecluse worker``.
        environment: over ours.
        lock: a file descriptor that the worker holds open while it lives.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], lock: int) -> None:
        self._name = name
        self._address: str | None = None
        self._tail: deque[str] = deque(maxlen=_LOG_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "console", "worker", *arguments, "--stop-at-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            pass_fds=[lock],
            process_group=0,  # Ctrl-C reaches the supervisor only
        )
        self._reader = threading.Thread(target=self._pass_on, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs. Once it has ended, all of its log has been passed on."""
        code = self._process.poll()
        if code is not None and self._reader.is_alive():
            self._reader.join(_ANSWER_SECONDS)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens where it has ended."""
        self._process.send_signal(number)

    def ready(self) -> bool:
        """Whether it does its work: the model is warm and it has partitions."""
        return ask(self._address, "/health/ready")[0] == 200

    def end_of_log(self) -> list[str]:
        """The last lines that it printed."""
        return list(self._tail)

    def close(self) -> None:
        """Let go of its pipes, after its end."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _pass_on(self) -> None:
        pipe = self._process.stdout
        while pipe is not None and (line := pipe.readline(_LINE_BYTES)):
            text = line.decode("utf-8", errors="replace").rstrip("\n")
            self._tail.append(text)
            self._address = self._address or address_in(text)
            with contextlib.suppress(OSError, ValueError):  # a full disk must not stop who empties the worker's pipe
                sys.stderr.write(f"{self._name} | {text}\n")

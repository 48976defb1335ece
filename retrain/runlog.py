"""The log of a run: what a training printed, of bounded size however much that is."""

import contextlib
import os
import select
import threading
from pathlib import Path
from typing import Self

#: A file of the log. The one before it is kept beside it, so that twice as much is there at most.
FILE_BYTES = 5 * 1024 * 1024
_POLL_SECONDS = 0.5
#: After its end, what still fits into a pipe is copied, and no more.
_LAST_READS = 32
#: A line waits for its end, so that none of ours gets into it; one that is longer waits no more.
_LINE_BYTES = 64 * 1024


class RunLog:
    """Writes into a file and, when that is full, goes on in a new one; the one before is kept with ``.1`` behind its name.

    A context, in whose end a thread that copies is joined.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._older = file.with_name(f"{file.name}.1")
        self._older.unlink(missing_ok=True)
        self._out = file.open("wb", buffering=0)
        self._room = FILE_BYTES
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._begun = b""  # of a line that is printed, while the rest has not come
        self._copying: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._out.close()

    def line(self, text: str) -> None:
        """A line of ours."""
        self._write(f"{text}\n".encode())

    def copy(self, pipe: int) -> None:
        """Have a thread copy what comes out of a pipe, in whole lines, to its end or until `stop`."""
        self._stop.clear()
        self._copying = threading.Thread(target=self._copy, args=(pipe,), name="run log", daemon=True)
        self._copying.start()

    def stop(self) -> None:
        """End copying: what has come by now is in the file."""
        self._stop.set()
        if self._copying is not None:
            self._copying.join()
            self._copying = None
            if self._begun:
                self._write(self._begun + b"\n")
                self._begun = b""

    def _copy(self, pipe: int) -> None:
        last = _LAST_READS
        while last:
            stopping = self._stop.is_set()  # asked before looking: what was there by then is still copied
            last -= stopping
            if select.select([pipe], [], [], 0.0 if stopping else _POLL_SECONDS)[0]:
                part = os.read(pipe, 64 * 1024)
                if not part:
                    return
                self._print(part)
            elif stopping:
                return

    def _print(self, part: bytes) -> None:
        """Write the lines that end in this part; a carriage return ends a progress bar's."""
        self._begun += part
        whole = max(self._begun.rfind(b"\n"), self._begun.rfind(b"\r")) + 1
        if len(self._begun) - whole > _LINE_BYTES:
            whole = len(self._begun)
        if whole:
            self._write(self._begun[:whole])
            self._begun = self._begun[whole:]

    def _write(self, data: bytes) -> None:
        # A full disk must not stop who empties the pipe: what is there stays.
        with self._lock, contextlib.suppress(OSError):
            if len(data) > self._room:
                self._turn()
            self._out.write(data)
            self._room -= len(data)

    def _turn(self) -> None:
        """Go on in a new file, once there is one."""
        begun = self._file.with_name(f"{self._file.name}.new")
        fresh = begun.open("wb", buffering=0)
        self._out.close()
        self._out, self._room = fresh, FILE_BYTES
        self._file.replace(self._older)
        begun.replace(self._file)

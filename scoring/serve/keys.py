"""Bearer keys: a file of their SHA-256 sums, so that who reads it cannot ask with them."""

import hashlib
import hmac
import logging
import re
import time
from pathlib import Path

from ecluse.errors import SettingsError

logger = logging.getLogger(__name__)

_LINE = re.compile(r"^(?P<name>[A-Za-z0-9._-]+):(?P<digest>[0-9a-f]{64})$")
#: How often the file is looked at, in seconds.
LOOK_SECONDS = 1.0


class Keys:
    """Who may ask. A changed file counts within a second, and one that names nobody lets nobody ask; of one that cannot be
    read is told, the keys stay, and it is tried again.

    Raises:
        SettingsError: the file cannot be read, a line is not as it must be, or there is none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = self._stamped()  # first: what changes while it is read is read again
        self._digests = _read(file)
        if not self._digests:
            raise SettingsError([f"serve.keys_file: {file} holds no key, so nobody could ask."])
        self._looked = time.monotonic()
        self._said = ""

    def holds(self, authorization: str | None) -> bool:
        """Whether the header names one of the keys. Every line is compared, in constant time."""
        self._look()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        try:
            self._digests = _read(self._file)
        except SettingsError as error:
            if str(error) != self._said:  # it is tried every second
                self._said = str(error)
                logger.error("%s The keys from before stay.", error)
            return
        self._stamp, self._said = stamp, ""
        logger.info("%s has changed: %d keys may ask", self._file, len(self._digests))

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError([f"serve.keys_file names {file}, which cannot be read: {error.strerror}."]) from error
    except UnicodeDecodeError:  # neither its words nor a traceback may be shown
        raise SettingsError([f"serve.keys_file names {file}, which is not UTF-8 text."]) from None
    digests = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parsed = _LINE.match(line.strip())
        if parsed is None:  # it may hold the key itself: the line is not shown
            raise SettingsError(
                [f"serve.keys_file: line {number} of {file} is not `name:SHA-256` (64 hexadecimal digits, lower case)."]
            )
        digests.append(parsed["digest"])
    return tuple(digests)

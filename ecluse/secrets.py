"""Secrets of the operator: files of random bytes that draw or hash. What is in them is never printed, logged or stored."""

import os
import secrets
import stat
from pathlib import Path

from ecluse.errors import SettingsError, cause

#: The shortest secret, in bytes; what is made here is as long.
LEAST_BYTES = 32


def read_secret(file: Path, setting: str) -> bytes:
    """The bytes of a secret's file, as they stand.

    Args:
        file: it must not be open to others than its owner and group.
        setting: what names it, for the sentence.

    Raises:
        SettingsError: it cannot be read, is open to others, or is too short.
    """
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            secret = opened.read()
    except OSError as error:
        raise SettingsError([f"{setting} names {file}, which cannot be read: {error.strerror}."]) from error
    if mode & stat.S_IRWXO:
        raise SettingsError([f"{setting} names {file}, which is open to everybody on the machine: `chmod o= {file}`."])
    if len(secret) < LEAST_BYTES:
        raise SettingsError([f"{setting} names {file}, which holds {len(secret)} bytes: {LEAST_BYTES} are the least."])
    return secret


def make_secret(file: Path) -> None:
    """Write a secret of `LEAST_BYTES` random bytes that only its owner may read. One that is there stays.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(secrets.token_bytes(LEAST_BYTES))
    except FileExistsError:
        if not file.is_file():
            raise SettingsError([f"{file} cannot be written: something else is there."]) from None
    except OSError as error:
        raise SettingsError([f"{file} cannot be written: {cause(error)}."]) from error

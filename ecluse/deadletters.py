"""A record that cannot be scored, as it was, with why."""

import hashlib
import logging

from ecluse.contract.headers import ORIGINAL_BYTES, ORIGINAL_SHA256, dead_letter_headers
from ecluse.contract.records import Source
from ecluse.errors import RecordError
from ecluse.transport.ledger import Output, Record

logger = logging.getLogger(__name__)

#: What is kept of a record that does not fit with its error headers.
KEPT_BYTES = 1024
#: What a batch of one record takes beside key, value and headers (the message format v2: 61, and up to 40).
RECORD_BYTES = 128

Headers = list[tuple[str, str | bytes | None]]


class DeadLetters:
    """Makes dead letters: the record's key, value and headers unchanged, plus Kafka Connect's error headers.

    Args:
        topic: where they go.
        app: the ``connector.name`` header.
        worker: the ``task.id`` header.
        largest: the largest record that the topic takes, in bytes.
    """

    def __init__(self, topic: str, app: str, worker: str, largest: int) -> None:
        self._topic = topic
        self._app = app
        self._worker = worker
        self._largest = largest

    def __call__(self, record: Record, source: Source, error: RecordError) -> Output:
        """The dead letter of a record; one that does not fit keeps its headers, a SHA-256 and the first KiB.

        Where its key or its headers alone do not fit (a producer's compression can bring them past the broker's limit), the
        first KiB of its key is kept and of the headers only ours.
        """
        logger.debug("%s is a dead letter (%s): %s", source, error.stage, error.reason)
        key, value = record.key(), record.value()
        headers = self._headers(record, source, error)
        if _size(key, value, headers) > self._largest:
            cut = _what_was(value)
            value = value and value[:KEPT_BYTES]
            headers += cut
            if _size(key, value, headers) > self._largest:
                key = key and key[:KEPT_BYTES]
                headers = self._headers(None, source, error) + cut
        return Output(self._topic, key, value, headers)

    def _headers(self, record: Record | None, source: Source, error: RecordError) -> Headers:
        original = record.headers() if record else None
        return [*dead_letter_headers(original, source, error, app=self._app, worker=self._worker)]


def _what_was(value: bytes | None) -> Headers:
    """What the headers tell of a value that is cut. Where there was none, the size alone says that the key or headers are."""
    if value is None:
        return [(ORIGINAL_BYTES, b"0")]
    return [
        (ORIGINAL_BYTES, str(len(value)).encode()),
        (ORIGINAL_SHA256, hashlib.sha256(value).hexdigest().encode()),
    ]


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """About what a record takes on the wire, and not less."""
    of_headers = sum(len(name.encode()) + len(content or b"") + 10 for name, content in headers)
    return RECORD_BYTES + len(key or b"") + len(value or b"") + of_headers

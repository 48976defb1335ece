"""A record that cannot be scored, as it was, with why."""

import hashlib
import logging

from ecluse.contract.headers import dead_letter_headers
from ecluse.contract.records import Source
from ecluse.errors import RecordError
from ecluse.transport.ledger import Output, Record

logger = logging.getLogger(__name__)

#: What is kept of a record that does not fit with its error headers.
KEPT_BYTES = 1024


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
        """The dead letter of a record; one that does not fit keeps its headers, a SHA-256 and the first KiB."""
        logger.debug("%s is a dead letter (%s): %s", source, error.stage, error.reason)
        headers: list[tuple[str, str | bytes | None]] = [
            *dead_letter_headers(record.headers(), source, error, app=self._app, worker=self._worker)
        ]
        key, value = record.key(), record.value()
        size = (
            len(key or b"") + len(value or b"") + sum(len(name) + len(content or b"") + 10 for name, content in headers)
        )
        if value is not None and size > self._largest:
            headers += [
                ("ecluse-original-bytes", str(len(value)).encode()),
                ("ecluse-original-sha256", hashlib.sha256(value).hexdigest().encode()),
            ]
            value = value[:KEPT_BYTES]
        return Output(self._topic, key, value, headers)

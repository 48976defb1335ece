"""Who trains: of all trainers the one to whom the group gives the requests' only partition."""

import logging
import threading
import time
from typing import Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from ecluse import kafka
from ecluse.contract.codecs import Reader
from ecluse.contract.loop import RetrainRequest
from ecluse.errors import BrokerError
from ecluse.events import LONGEST_NAME
from ecluse.settings import Settings
from ecluse.transport.transactions import generation

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_JOIN_SECONDS = 30.0
_TOLD = {
    True: "elected: this trainer trains",
    False: "another trainer is elected: this one stands by",
    None: "nobody is known to be elected",
}


def group_of(settings: Settings) -> str:
    """The trainers' consumer group."""
    return f"{settings.names.prefix}trainer"


class Election:
    """A member of the trainers' group, in a thread of its own: a training of hours costs nobody the membership.

    `elected` is True while the partition is ours, False while it is another's, and None where nobody can tell: before the first
    election, and after contact was lost until the group has decided again. `requests` are then those for the stream's model, in
    the order of the topic, read from its start. A context, in whose end the thread is joined and the group left.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.names.retrain_requests
        self._read = Reader(RetrainRequest)
        self._changed = threading.Condition()
        self._elected: bool | None = None
        self._member_since: float | None = None
        self._whole = False
        self._requests: dict[str, RetrainRequest] = {}
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trainer election", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)

    @property
    def elected(self) -> bool | None:
        """Whether this trainer trains; see above."""
        with self._changed:
            return self._elected

    @property
    def alive(self) -> bool:
        """Whether its thread has not ended."""
        return self._thread.ident is None or self._thread.is_alive()

    def requests(self) -> list[RetrainRequest] | None:
        """What is asked for; None where another is elected, or the topic is not yet read to its end."""
        with self._changed:
            return list(self._requests.values()) if self._elected and self._whole else None

    def wait(self, seconds: float) -> None:
        """Wait until anything changes here, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

    def require_sound(self) -> None:
        """Make sure that the thread goes on.

        Raises:
            BrokerError: it does not.
        """
        if self._failure is not None:
            raise BrokerError(f"The trainer cannot follow {self._topic}: {self._failure}.") from self._failure

    def _run(self) -> None:
        group = group_of(self._settings)
        config = kafka.consumer_config(self._settings, group) | kafka.membership(self._settings.worker, group)
        consumer = Consumer(config | {"enable.partition.eof": True, "auto.offset.reset": "earliest"})
        try:
            consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
            while not self._stop.is_set():
                message = consumer.poll(_POLL_SECONDS)
                if message is not None:
                    self._take(message)
                self._settle(consumer)
        except Exception as error:
            with self._changed:
                self._failure, self._elected = error, None
                self._changed.notify_all()
        finally:
            consumer.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(
            [TopicPartition(place.topic, place.partition, OFFSET_BEGINNING) for place in partitions]
        )
        if partitions:
            self._become(True)
        elif not consumer.assignment():
            self._become(False)

    def _settle(self, consumer: Consumer) -> None:
        """With KIP-848 nobody is told that he is given nothing: a member that is given nothing for a session is not elected."""
        member = generation(consumer.consumer_group_metadata()) > 0
        if self._elected is not None or consumer.assignment() or not member:
            self._member_since = None
        elif self._member_since is None:
            self._member_since = time.monotonic()
        elif time.monotonic() - self._member_since > self._settings.worker.session_timeout_seconds:
            self._become(False)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign(partitions)
        self._become(None)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("This trainer is no member of its group any more; it joins again.")
        self._revoked(consumer, partitions)

    def _become(self, elected: bool | None) -> None:
        with self._changed:
            if elected is not self._elected and not self._stop.is_set():
                log.info(_TOLD[elected])
            self._elected, self._whole, self._requests = elected, False, {}
            self._changed.notify_all()

    def _take(self, message: Message) -> None:
        """Take in a record, or the news that there is none behind it."""
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                with self._changed:
                    self._whole = True
                    self._changed.notify_all()
            elif error.fatal():
                raise KafkaException(error)
            else:
                log.warning("%s: %s", self._topic, error.str())
            return
        try:
            request = self._read(message.value() or b"")
            if len(request.id) > LONGEST_NAME:
                raise ValueError(f"its id is longer than {LONGEST_NAME} characters")  # no run could be written of it
        except ValueError as wrong:  # a DecodeError is one
            log.warning("%s: the record at offset %s is passed over: %s", self._topic, message.offset(), wrong)
            return
        if request.model == self._settings.model_name:
            with self._changed:
                self._requests.setdefault(request.id, request)
                self._changed.notify_all()

"""Every error that Écluse raises on purpose.

EcluseError
├── SettingsError        the configuration cannot be used
├── BrokerError          Kafka is not there, or not as it must be
│   ├── BrokerUnreachable
│   ├── BrokerSetupError     the development broker cannot be installed or started
│   ├── TopicsWrong
│   └── DeliveryError        a record was not confirmed by the broker
├── RecordError          one record cannot be scored: it becomes a dead letter, the rest goes on
├── ModelError
│   ├── ModelRefused         an artefact that must not be published or served
│   └── ModelNotFound
├── DataError            a file cannot be read as what it was said to be
└── ProcessFailed        a process that was started for the task ended or hung
"""

from collections.abc import Sequence
from enum import StrEnum


class EcluseError(Exception):
    """Base of all. ``str(error)`` is a sentence for a person."""


class SettingsError(EcluseError):
    """The configuration cannot be used; `problems` holds one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class BrokerError(EcluseError):
    """Kafka is not there, or not as it must be."""


class BrokerUnreachable(BrokerError):
    """No broker answered at `servers`."""

    def __init__(self, servers: str, reason: str = "") -> None:
        super().__init__(
            f"No Kafka broker answers at {servers}{f' ({reason})' if reason else ''}. "
            "Start it, or name another with KAFKA_BOOTSTRAP_SERVERS or --bootstrap-servers; without either, "
            "`ecluse broker start` starts one for development."
        )
        self.servers = servers
        self.reason = reason


class BrokerSetupError(BrokerError):
    """The development broker cannot be installed, started or stopped."""


class TopicsWrong(BrokerError):
    """The topics are not as the stream needs them; `problems` holds one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DeliveryError(BrokerError):
    """The broker did not confirm a record for `topic`."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"A record for {topic} was not delivered: {reason}")
        self.topic = topic
        self.reason = reason


class Stage(StrEnum):
    """Where on the path of a chunk a record failed (the ``stage`` header of its dead letter)."""

    DECODE = "decode"
    VALIDATE = "validate"
    FEATURES = "features"
    SCORE = "score"
    PRODUCE = "produce"


class RecordError(EcluseError):
    """One record cannot be scored, for `reason`; found at `stage`."""

    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = reason


class ModelError(EcluseError):
    """Base of what goes wrong with models."""


class ModelRefused(ModelError):
    """An artefact that must not be published or served."""


class ModelNotFound(ModelError):
    """There is no such model or version."""


class DataError(EcluseError):
    """A file cannot be read as what it was said to be."""


class ProcessFailed(EcluseError):
    """A process that was started for the task ended with a failure, or did not do its part in time."""

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
│   │   └── NothingToLearn   its rows hold one class only: other rows may do
│   ├── ModelNotFound
│   ├── RouteChanged         somebody else changed the route meanwhile
│   └── SwitchChanged        somebody else changed the bypass switch meanwhile
├── RequestRefused       a request over HTTP that is not answered as asked
├── StoreError           the training store cannot be read or written
│   └── StoreConflict    another writer has come before
├── DataError            a file cannot be read as what it was said to be
└── ProcessFailed        a process that was started for the task ended or hung
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum


class EcluseError(Exception):
    """Base of all. ``str(error)`` is a sentence for a person."""


def cause(error: BaseException) -> str:
    """What a library says, as part of a sentence of ours: its first line, or its kind where it says nothing."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
    return "".join(letter if letter.isprintable() else "?" for letter in line)  # it may quote a stranger


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
    """Where a record failed (the ``stage`` header of its dead letter): on the path of a chunk, or a label in the store."""

    DECODE = "decode"
    VALIDATE = "validate"
    FEATURES = "features"
    SCORE = "score"
    PRODUCE = "produce"
    LABEL = "label"


class RecordError(EcluseError):
    """One record cannot be scored, for `reason`; found at `stage`."""

    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage
        self.reason = reason


class ModelError(EcluseError):
    """Base of what goes wrong with models; `step` says where on the way into service, where that is known."""

    step: str = ""


class ModelRefused(ModelError):
    """An artefact that must not be published or served."""


class NothingToLearn(ModelRefused):
    """The rows, or one of their two parts, hold one class only: other rows may do."""


class ModelNotFound(ModelError):
    """There is no such model or version."""


class RouteChanged(ModelError):
    """Somebody else changed the route of `name` meanwhile: it is of `revision` now (None: there is none)."""

    def __init__(self, name: str, revision: int | None, champion: int | None) -> None:
        now = "there is none any more" if revision is None else f"version {champion} is champion by revision {revision}"
        super().__init__(f"The route of model {name} was changed meanwhile: {now}. Look again before you change it.")
        self.name = name
        self.revision = revision


class SwitchChanged(ModelError):
    """Somebody else changed the bypass switch of `name` meanwhile: it is of `revision` now (None: there is none)."""

    def __init__(self, name: str, revision: int | None, share: float | None) -> None:
        now = "there is none any more" if share is None else f"a share of {share:g} goes past, by revision {revision}"
        super().__init__(f"The bypass of model {name} was changed meanwhile: {now}. Look again before you change it.")
        self.name = name
        self.revision = revision


class RequestRefused(EcluseError):
    """A request over HTTP that is not answered as asked; `status` and `headers` are the answer's."""

    def __init__(self, reason: str, *, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = dict(headers or {})


class StoreError(EcluseError):
    """The training store at `url` cannot be read or written."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"The training store at {url}: {reason}")
        self.url = url
        self.reason = reason


class StoreConflict(StoreError):
    """Another writer has come before: nothing was written, and the table stands elsewhere than was believed."""


class DataError(EcluseError):
    """A file cannot be read as what it was said to be."""


class ProcessFailed(EcluseError):
    """A process that was started for the task ended with a failure, or did not do its part in time."""

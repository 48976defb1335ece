"""The topics of a stream: their names, and how each must be made."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,63}$")
PREFIX = re.compile(r"^[a-z0-9][a-z0-9.-]{0,120}\.$")
#: Output topics hold what came in and the headers that say what became of it.
HEADROOM_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of a stream's topics: `prefix` and a noun each."""

    prefix: str

    @property
    def events(self) -> str:
        """What producers publish."""
        return f"{self.prefix}events"

    @property
    def predictions(self) -> str:
        """Exactly one `Prediction` an event."""
        return f"{self.prefix}predictions"

    @property
    def alerts(self) -> str:
        """`Alert`s, with reasons."""
        return f"{self.prefix}alerts"

    @property
    def bypass(self) -> str:
        """`BypassSample`s: the events that went past the model."""
        return f"{self.prefix}bypass"

    def labels(self, origin: str) -> str:
        """`Label`s of one origin (chargeback, analyst, …)."""
        return f"{self.prefix}labels.{origin}"

    @property
    def dead_letters(self) -> str:
        """Records that could not be scored, as they were, with the error headers."""
        return f"{self.prefix}dead-letters"

    @property
    def models(self) -> str:
        """`Release`s, `Route`s, `Switch`es and `Run`s: compacted, one partition."""
        return f"{self.prefix}models"

    @property
    def profiles(self) -> str:
        """`Profile`s: what the workers count. One partition, so that all who read it see the same order."""
        return f"{self.prefix}profiles"

    @property
    def drift(self) -> str:
        """`DriftReport`s, and where the monitor stands: compacted, one partition."""
        return f"{self.prefix}drift"

    @property
    def retrain_requests(self) -> str:
        """`RetrainRequest`s: one partition."""
        return f"{self.prefix}retrain-requests"

    @property
    def replays(self) -> str:
        """What `ecluse replay` decided about events of the past; made by it where it is missing."""
        return f"{self.prefix}replays"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it must be; `config` holds Kafka's own topic settings."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


def topic_specs(
    topics: Topics,
    *,
    partitions: int,
    replication: int,
    retention_ms: int,
    max_message_bytes: int,
    origins: Sequence[str] = (),
) -> tuple[TopicSpec, ...]:
    """How the topics of a stream must be made.

    Events and all that comes of them have the same partition count, because what comes of an event goes to the event's
    own partition number. Outputs allow `HEADROOM_BYTES` more than an event.
    """
    timed = {"cleanup.policy": "delete", "retention.ms": str(retention_ms)}
    outputs = timed | {"max.message.bytes": str(max_message_bytes + HEADROOM_BYTES)}
    return (
        TopicSpec(topics.events, partitions, replication, timed | {"max.message.bytes": str(max_message_bytes)}),
        *(
            TopicSpec(name, partitions, replication, outputs)
            for name in (topics.predictions, topics.alerts, topics.bypass, topics.dead_letters)
        ),
        *(TopicSpec(topics.labels(origin), partitions, replication, timed) for origin in origins),
        TopicSpec(topics.profiles, 1, replication, outputs),
        # Every report has a key of its own: compaction takes only what the monitor wrote of where it stood before.
        TopicSpec(
            topics.drift,
            1,
            replication,
            {"cleanup.policy": "compact", "max.message.bytes": outputs["max.message.bytes"]},
        ),
        # Few and small, and an open one may wait for a trainer for longer than events are kept.
        TopicSpec(topics.retrain_requests, 1, replication, {"cleanup.policy": "delete", "retention.ms": "-1"}),
        # The store reads every revision: compaction waits as long as the events that they scored are kept.
        TopicSpec(
            topics.models, 1, replication, {"cleanup.policy": "compact", "min.compaction.lag.ms": str(retention_ms)}
        ),
    )


def replays_spec(topics: Topics, specs: Sequence[TopicSpec]) -> TopicSpec:
    """How the replays must be made: as the predictions among `specs`, of which they are none: a stream is whole without."""
    return replace(next(spec for spec in specs if spec.name == topics.predictions), name=topics.replays)

"""The topics of a stream: their names, and how each must be made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    def dead_letters(self) -> str:
        """Records that could not be scored, as they were, with the error headers."""
        return f"{self.prefix}dead-letters"

    @property
    def models(self) -> str:
        """`Release`s and `Route`s: compacted, one partition."""
        return f"{self.prefix}models"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic as it must be; `config` holds Kafka's own topic settings."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)


def topic_specs(
    topics: Topics, *, partitions: int, replication: int, retention_ms: int, max_message_bytes: int
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
            for name in (topics.predictions, topics.alerts, topics.dead_letters)
        ),
        TopicSpec(topics.models, 1, replication, {"cleanup.policy": "compact"}),
    )

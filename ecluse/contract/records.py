"""The records on Écluse's topics.

Readers ignore fields that they do not know. A field is never removed or retyped, only added with a default, so a
consumer written today reads tomorrow's records. Times are seconds since 1970-01-01 UTC.
"""

from enum import StrEnum
from typing import Any, Literal

import msgspec


class Decision(StrEnum):
    """What the thresholds make of a score. Only `block` hides the outcome."""

    ALLOW = "allow"
    REVIEW = "review"
    BLOCK = "block"


class Severity(StrEnum):
    """How urgent an alert is: `medium` to review, `high` blocked, `critical` blocked with a score near 1."""

    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Source(msgspec.Struct, frozen=True, gc=False):
    """Where an event stands: the coordinates by which the audit counts it, and a reader recognises a duplicate."""

    topic: str
    partition: int
    offset: int


class Prediction(msgspec.Struct, gc=False):
    """What was decided about one event. Every event has exactly one, or one dead letter.

    `propensity` is the probability with which the event came into `arm`. `score` is null where no model scored it.
    `threshold` is the one that `decision` turned on: the highest that the score reached, else the lowest there is.
    `route_revision` is the offset of the route on the models topic.
    """

    event_id: str
    entity: str
    event_time: float
    scored_at: float
    model: str
    version: int
    arm: str
    propensity: float
    score: float | None
    decision: Decision
    threshold: float
    route_revision: int
    source: Source


class Reason(msgspec.Struct, gc=False):
    """One input that raised an alert's score.

    `effect` is the score less the score with this input at its usual value (occlusion against the reference median).
    `value` and `usual` are null where the field is not among those that people may see, or the value is missing.
    """

    feature: str
    value: float | str | None
    usual: float | str | None
    effect: float


class Alert(msgspec.Struct, gc=False):
    """An event that a person should look at, with why. `fields` holds the event's fields that people may see."""

    event_id: str
    entity: str
    event_time: float
    scored_at: float
    model: str
    version: int
    arm: str
    score: float
    decision: Decision
    threshold: float
    severity: Severity
    reasons: list[Reason] | Literal["skipped"]
    fields: dict[str, Any]
    route_revision: int
    source: Source


class Thresholds(msgspec.Struct, frozen=True):
    """Scores from which an event is reviewed, and from which it is blocked; review <= block."""

    review: float
    block: float

    def __post_init__(self) -> None:
        """Refuse thresholds in the wrong order."""
        if not self.review <= self.block:
            raise ValueError(f"the review threshold {self.review} lies above the block threshold {self.block}")


class Arm(msgspec.Struct, frozen=True):
    """A model version that takes part of the traffic, with thresholds on its own scale of scores."""

    name: str
    version: int
    thresholds: Thresholds
    share: float = 1.0


class Release(msgspec.Struct, frozen=True):
    """A published version of a model. Key on the models topic: ``release/<name>/<version>``."""

    name: str
    version: int
    created_at: float
    manifest_sha256: str
    size_bytes: int

    @property
    def key(self) -> str:
        """The record's key on the models topic."""
        return f"release/{self.name}/{self.version}"


class Route(msgspec.Struct, frozen=True):
    """Which versions score the stream. Key on the models topic: ``route/<name>``; its offset is the revision."""

    name: str
    arms: tuple[Arm, ...]
    created_at: float

    @property
    def key(self) -> str:
        """The record's key on the models topic."""
        return f"route/{self.name}"

    @property
    def champion(self) -> Arm:
        """The arm that takes what no other arm takes: the first."""
        return self.arms[0]

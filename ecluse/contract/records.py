"""The records on Écluse's topics.

Readers ignore fields that they do not know. A field is never removed or retyped, only added with a default, so a
consumer written today reads tomorrow's records. Times are seconds since 1970-01-01 UTC.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

#: Types that carry their description into the published schemas.
EventId = Annotated[str, Meta(description="The producer's own id of the event, else topic-partition-offset.")]
Entity = Annotated[
    str, Meta(description="What the event is about (card, customer): the record key; without one, its id.")
]
Moment = Annotated[float, Meta(description="Seconds since 1970-01-01 UTC.")]
ModelName = Annotated[str, Meta(description="The model's name.")]
Version = Annotated[int, Meta(description="The model's version: whole numbers that only grow.")]
ArmName = Annotated[str, Meta(description="The arm of the route that took the event.")]
Score = Annotated[float, Meta(description="The model's probability that the event is positive, 0 to 1.")]
Threshold = Annotated[
    float, Meta(description="The threshold on which the decision turned, on the model's scale of scores.")
]
Revision = Annotated[int, Meta(description="The route in force: its offset on the models topic.")]


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

    event_id: EventId
    entity: Entity
    event_time: Moment
    scored_at: Moment
    model: ModelName
    version: Version
    arm: ArmName
    propensity: float
    score: Score | None
    decision: Decision
    threshold: Threshold
    route_revision: Revision
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

    event_id: EventId
    entity: Entity
    event_time: Moment
    scored_at: Moment
    model: ModelName
    version: Version
    arm: ArmName
    score: Score
    decision: Decision
    threshold: Threshold
    severity: Severity
    reasons: list[Reason] | Literal["skipped"]
    fields: dict[str, Any]
    route_revision: Revision
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
    version: Version
    thresholds: Thresholds
    share: float = 1.0


class Release(msgspec.Struct, frozen=True):
    """A published version of a model. Key on the models topic: ``release/<name>/<version>``."""

    name: str
    version: Version
    created_at: Moment
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
    created_at: Moment

    def __post_init__(self) -> None:
        """Refuse a route that leads nowhere."""
        if not self.arms:
            raise ValueError("a route needs at least one arm")

    @property
    def key(self) -> str:
        """The record's key on the models topic."""
        return f"route/{self.name}"

    @property
    def champion(self) -> Arm:
        """The arm that takes what no other arm takes: the first."""
        return self.arms[0]

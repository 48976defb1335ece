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
Propensity = Annotated[float, Meta(description="The probability with which the event came into its arm, 0 to 1.")]

#: The arm of the events that went past the model.
BYPASS = "bypass"


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

    `propensity` is the probability with which the event came into `arm`. In the arm `bypass` no model scored it: `score` is
    null, `decision` is allow, and `version` is the champion's that it went past. `threshold` is the one that `decision` turned
    on: the highest that the score reached, else the lowest there is. `route_revision` and `switch_revision` are the offsets, on
    the models topic, of the route and of the bypass switch in force; without a switch it is -1.
    """

    event_id: EventId
    entity: Entity
    event_time: Moment
    scored_at: Moment
    model: ModelName
    version: Version
    arm: ArmName
    propensity: Propensity
    score: Score | None
    decision: Decision
    threshold: Threshold
    route_revision: Revision
    source: Source
    switch_revision: int = -1


class BypassSample(msgspec.Struct, gc=False):
    """An event that went past the model, so that its outcome can be seen whatever the model would have said of it.

    `propensity` is the share of such events that go past: the weight of the sample is 1 over it. `event` is the event as its
    producer sent it, fields that the stream does not declare included; only those that it declares where the others cannot be
    read. Key on its topic: the entity.
    """

    event_id: EventId
    entity: Entity
    event_time: Moment
    propensity: Propensity
    route_revision: Revision
    switch_revision: int
    source: Source
    event: dict[str, Any]


class Label(msgspec.Struct, gc=False):
    """What was right about one event, as one origin says. Key on its topic ``labels.<origin>``: the event's id.

    Any service may write it, as JSON: ``{"event_id": "…", "value": 1}`` is enough. The topic says the origin, not the record.
    A later label of the same origin takes the place of an earlier one; `value` null takes it back. `known_at` is when it became
    known; the record's arrival where it is not given. `alerted` says that the case was looked at because of an alert: such
    labels are a selected, not a random, sample.
    """

    event_id: Annotated[str, Meta(min_length=1, max_length=4096, description="The id of the event it speaks of.")]
    value: Annotated[
        Literal[0, 1] | bool | None, Meta(description="1 or true: positive; 0 or false: negative; null: taken back.")
    ]
    known_at: Moment | None = None
    labeler: Annotated[str, Meta(max_length=200, description="Who says so.")] = ""
    confidence: Annotated[float, Meta(ge=0, le=1, description="How sure the labeler is, 0 to 1.")] = 1.0
    alerted: bool = False


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
    """Which versions score the stream. Key on the models topic: ``route/<name>``; its offset is the revision.

    `arms`: first the champion, then challengers with their shares. `shadows` score everything and decide nothing. Both are
    of experiments: a worker that runs none refuses such a route and goes on with the one before.
    `history` holds the champions before this one, the latest first: where a rollback leads.
    """

    name: str
    arms: tuple[Arm, ...]
    created_at: Moment
    shadows: tuple[Arm, ...] = ()
    history: tuple[Arm, ...] = ()

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


class Switch(msgspec.Struct, frozen=True):
    """The bypass: which share of which events goes past the model. Key on the models topic: ``switch/<name>``.

    Its offset is the switch's revision. What is eligible is a pure function of the event and this record. `share` is the one in
    force, `wanted` the one that a person asked for: the budget's controller lowers the first and never the second.
    `secret_id` names the secret that draws, without telling it.
    """

    name: str
    share: Annotated[float, Meta(ge=0, le=1)]
    wanted: Annotated[float, Meta(ge=0, le=1)]
    created_at: Moment
    secret_id: str
    amount_field: str | None = None
    max_amount: float | None = None
    never: dict[str, list[str | int | bool]] = {}
    budget: float | None = None

    @property
    def key(self) -> str:
        """The record's key on the models topic."""
        return f"switch/{self.name}"

"""The records of the loop: from what workers count, over the monitor's reports and requests, to the trainer's runs."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from ecluse.contract.records import Decision, ModelName, Moment, Version

#: A larger one could not be added up.
Count = Annotated[int, Meta(le=2**53)]


class Counts(msgspec.Struct, gc=False, omit_defaults=True):
    """How often values fell into the bins of a reference histogram; bins that hold none are left out.

    Bin i is the manifest's (see `ecluse.model.manifest.Histogram`). `below` and `above` count numbers outside what the
    reference rows held: they are in no bin. `missing` counts those that were not there.
    """

    bins: dict[int, Count] = {}
    missing: Count = 0
    below: Count = 0
    above: Count = 0


class WindowCounts(msgspec.Struct, gc=False, omit_defaults=True):
    """What one version made of the events of one window: counts that add up.

    `window` is its start on the stream's clock. `inputs` (by feature) and `scores` count the events that the model scored;
    `arms` all that were decided, by arm and decision; `rejected` those that became dead letters.
    """

    window: Moment
    inputs: dict[str, Counts] = {}
    scores: Counts = msgspec.field(default_factory=Counts)
    arms: dict[str, dict[Decision, Count]] = {}
    rejected: Count = 0


class Covered(msgspec.Struct, gc=False):
    """Which offsets of a partition a profile counts, `start` to `end` (excluded); `time`: of the last chunk's middle event."""

    partition: int
    start: int
    end: int
    time: Moment


class Profile(msgspec.Struct, gc=False):
    """What a worker saw since the profile before: counts into the reference bins of the version that scored.

    Key on its topic: the model's version. Sent in the same transaction as the predictions that it counts (at least once: after
    their commit), so that each event is counted once. `manifest_sha256` names the manifest whose bins are meant.
    """

    model: ModelName
    version: Version
    manifest_sha256: str
    worker: str
    window_seconds: float
    windows: list[WindowCounts]
    covers: list[Covered]


class Level(StrEnum):
    """How far a statistic has come: below its first threshold, from it on, from the second on."""

    OK = "ok"
    WARN = "warn"
    ALARM = "alarm"


class Statistic(msgspec.Struct, frozen=True, gc=False):
    """One number that the monitor judges, with its thresholds. `name` says of what: `psi`, `missing`, `range`, `change` (of
    `input`, where it is of one), `alerts`, `rejected`, `precision`, `recall`, `average_precision`, `calibration`.

    `low` and `high` are its 95% interval, where it is an estimate.
    """

    name: str
    value: float
    warn: float | None
    alarm: float | None
    level: Level
    input: str | None = None
    low: float | None = None
    high: float | None = None


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor says of one version when a window closes, on the stream's clock.

    Numbers are of the span `since` to `until`, whose last window has just closed; those of outcomes are of the events from
    `matured_since` to `matured_until`. `statistics` are in order of blame, the worst first. `episode` is the id of the episode
    that is open, `request` that of the request which this window made. `late` counts events that came after their window had
    closed, `ahead` those that lie further ahead of the stream than it may be, `refused` those in counts that cannot be used
    (another window length, other bins, no manifest, a time that is none), `uncounted` the offsets that no profile covers. These
    are of the whole stream since the report before, in the first report of a window.
    """

    model: ModelName
    version: Version
    since: Moment
    until: Moment
    events: int
    level: Level
    statistics: tuple[Statistic, ...]
    episode: str | None = None
    request: str | None = None
    matured_since: Moment | None = None
    matured_until: Moment | None = None
    late: int = 0
    ahead: int = 0
    refused: int = 0
    uncounted: int = 0

    @property
    def key(self) -> str:
        """The record's key on the drift topic."""
        return f"report/{self.model}/{self.version}/{self.until:.0f}"


class Asker(StrEnum):
    """Who asked for a new model."""

    DRIFT = "drift"
    SCHEDULE = "schedule"
    PERSON = "person"


class RetrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Please train a new version. Key on its topic: the model's name. The same request always has the same `id`.

    `cutoff` is the moment, on the stream's clock, as of which the training set is to be built. Of a drift, `version` is the one
    that was judged, `inputs` are those that changed, the most blamed first, `evidence` the numbers over `since` to `until`.
    """

    id: str
    model: ModelName
    asker: Asker
    reason: str
    cutoff: Moment
    created_at: Moment
    version: Version | None = None
    inputs: tuple[str, ...] = ()
    evidence: tuple[Statistic, ...] = ()
    since: Moment | None = None
    until: Moment | None = None


class RunState(StrEnum):
    """What became of a request."""

    TRAINING = "training"
    PUBLISHED = "published"
    FAILED = "failed"
    MERGED = "merged"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer made of a request. Key on the models topic: ``run/<name>/<request>``.

    A published run stands on the topic since the very moment at which its release does. `version` is what it published; `into`
    the request that a merged one was answered with; `reason` why one failed.
    """

    name: str
    request: str
    state: RunState
    trainer: str
    started_at: Moment
    ended_at: Moment | None = None
    version: Version | None = None
    into: str | None = None
    reason: str = ""
    log: str = ""

    @property
    def key(self) -> str:
        """The record's key on the models topic."""
        return f"run/{self.name}/{self.request}"

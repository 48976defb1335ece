"""What a study found: `study.json`, in a draft and for programs."""

from pathlib import Path
from typing import Literal

import msgspec

from ecluse.contract.records import Thresholds
from ecluse.errors import DataError, cause
from retrain.study.rule import Interval, Loss

#: The study's file in a draft and in the artefact.
STUDY = "study.json"


class Latency(msgspec.Struct, frozen=True):
    """How long a call took, in milliseconds, over so many calls."""

    calls: int
    p50_ms: float
    p99_ms: float


class Cost(msgspec.Struct, frozen=True):
    """What a candidate takes of a worker. Memory is what a fresh process grew by once it had loaded and scored, and at most
    meanwhile; times are with one thread. `events_per_second` is one core's, in batches of 1,000, by the processor time that
    these take: the model's part alone."""

    memory_bytes: int
    peak_memory_bytes: int
    load_ms: float
    batch_1: Latency
    batch_1000: Latency
    events_per_second: float


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate: what it is worth on the held-out slice, and what it costs. `reason` says why it cannot be picked; what was
    not measured is None. `size_bytes` is that of the file which workers serve. Precision and recall are at its own review
    threshold."""

    name: str
    reason: str = ""
    size_bytes: int | None = None
    average_precision: Interval | None = None
    loss: Loss | None = None
    precision: float | None = None
    recall: float | None = None
    alert_share: float | None = None
    thresholds: Thresholds | None = None
    cost: Cost | None = None


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """Candidates, small to large, and which of them is picked (None: none can be). All but the costs is the same again for the
    same rows, script, libraries and seed.

    `required` names the candidate that must not fail: the settings' script, where that names no candidates of its own. `units`
    counts what resamples are drawn of: entities, or rows where the file does not say whose they are. `best` is the yardstick of
    the losses.
    """

    model: str
    picked: str | None
    best: str | None
    why: str
    tolerance: float
    max_size_bytes: int | None
    candidates: tuple[Candidate, ...]
    resamples: int
    seed: int
    drawn: Literal["entity", "row"]
    units: int
    rows: int
    positives: int
    held_out_span: tuple[str, str] | None
    trained_rows: int
    script: str
    script_sha256: str
    file: str
    notes: tuple[str, ...] = ()
    required: str | None = None

    @property
    def decided(self) -> "Study":
        """The study without what the clock and the machine have a part in."""
        plain = tuple(msgspec.structs.replace(each, cost=None) for each in self.candidates)
        return msgspec.structs.replace(self, candidates=plain)

    @property
    def summary(self) -> dict[str, object]:
        """What the manifest says of it."""
        chosen = next((each for each in self.candidates if each.name == self.picked), None)
        return {
            "picked": self.picked,
            "best": self.best,
            "candidates": [each.name for each in self.candidates],
            "tolerance": self.tolerance,
            "max_size_bytes": self.max_size_bytes,
            "loss": chosen.loss if chosen else None,
            "why": self.why,
        }

    def encode(self) -> bytes:
        """As indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def read(file: Path) -> "Study":
        """Read what `encode` wrote.

        Raises:
            DataError: there is no such file, or it is no study.
        """
        try:
            return msgspec.json.decode(file.read_bytes(), type=Study)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error
        except msgspec.MsgspecError as error:
            raise DataError(f"{file} is no study: {cause(error)}.") from error

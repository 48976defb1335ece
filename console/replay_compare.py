"""Decisions of the past held against those that a replay makes: what changes, and why."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from console.replay_past import Past
from ecluse.contract.records import Thresholds
from ecluse.errors import EcluseError
from ecluse.model.registry import Registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from scoring.replaying import Outcome, Rescored

#: The scores' plane is counted in so many squares a side, even on the scale of log-odds between these.
SQUARES, LOG_ODDS = 180, 11.0
#: From the mildest.
SCORED = (Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK)
#: A version and the revision of the route by which it decided.
Arm = tuple[int, int]


class Why(StrEnum):
    """Why a decision changes. Each changed decision has exactly one reason.

    Put the new score under the old thresholds. If that gives the new decision, the score is the reason; if it gives the old
    one, the thresholds are; and if it gives the third, it takes both.
    """

    SCORE = "score"
    THRESHOLD = "threshold"
    BOTH = "both"
    NEWLY_SCORED = "newly scored"
    NO_LONGER_SCORED = "no longer scored"


def decide(score: float, limits: Thresholds) -> Outcome:
    """What thresholds make of a score."""
    if score >= limits.block:
        return Outcome.BLOCK
    return Outcome.REVIEW if score >= limits.review else Outcome.ALLOW


def why_changed(old: Outcome, new: Rescored, limits: Thresholds) -> Why:
    """Why the outcome `old` became `new`; `limits` are the thresholds that gave `old`."""
    if old is Outcome.DEAD_LETTER:
        return Why.NEWLY_SCORED
    if new.score is None:
        return Why.NO_LONGER_SCORED
    between = decide(new.score, limits)
    return Why.SCORE if between is new.outcome else Why.THRESHOLD if between is old else Why.BOTH


class PastThresholds:
    """The thresholds of each arm that decided in the past.

    A prediction tells the one that it turned on. The other is that of the route, if the models topic still remembers it, or
    of the version's manifest; until a prediction tells better. Infinity: nobody knows, and nobody was blocked.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self.known: dict[Arm, Thresholds] = {}

    def of(self, past: Past) -> Thresholds:
        """The thresholds that gave a decision."""
        arm = past.version, past.revision
        known = self.known.get(arm)
        if known is None:
            known = self._look_up(past)
        told = known.block if past.outcome is Outcome.BLOCK else known.review
        if told != past.threshold:
            known = self._corrected(known, past)
        self.known[arm] = known
        return known

    def _look_up(self, past: Past) -> Thresholds:
        name = self._settings.model_name
        routed = self._registry.routes.get(name)
        now, before = (routed.route.arms, routed.route.history) if routed else ((), ())
        arms = (*now, *before) if routed and routed.revision == past.revision else (*before, *now)
        candidates = [arm.thresholds for arm in arms if arm.version == past.version]
        release = self._registry.releases.get((name, past.version))
        if release is not None:
            try:
                manifest = ModelStore.of(self._settings).manifest(name, past.version, release.manifest_sha256)
                candidates.append(manifest.thresholds)
            except EcluseError:  # an old version that the store has dropped
                pass
        fits = (each for each in candidates if past.threshold in (each.review, each.block))
        return next(fits, Thresholds(past.threshold, math.inf))

    @staticmethod
    def _corrected(known: Thresholds, past: Past) -> Thresholds:
        if past.outcome is Outcome.BLOCK:
            return Thresholds(min(known.review, past.threshold), past.threshold)
        return Thresholds(past.threshold, max(known.block, past.threshold))


@dataclass
class Comparison:
    """Counts what became of events then and now. Its memory does not grow with their number."""

    past: PastThresholds
    #: Events by what became of them then and now, and why that differs (None: it does not).
    changes: Counter[tuple[Outcome, Outcome, Why | None]] = field(default_factory=Counter)
    #: Events that would newly alert, by the input that moved their score most: none where empty, not looked for where None.
    newly_alerting: Counter[str | None] = field(default_factory=Counter)
    #: Events by what becomes of them now.
    now: Counter[Outcome] = field(default_factory=Counter)
    #: Decisions of the past by the arm that made them.
    arms: Counter[Arm] = field(default_factory=Counter)
    #: Events that went past the model then, by what becomes of them now: nothing was decided about them.
    bypassed: Counter[Outcome] = field(default_factory=Counter)
    #: Events without an outcome in the past: not scored yet, and those of which none is found.
    waiting: int = 0
    not_found: int = 0
    #: Scores then and now, counted in squares of log-odds: [then, now].
    plane: NDArray[np.int64] = field(default_factory=lambda: np.zeros((SQUARES, SQUARES), dtype=np.int64))
    scored_twice: int = 0
    difference_sum: float = 0.0
    difference_max: float = 0.0

    def add(self, then: Mapping[int, Past], now: Mapping[int, Rescored], committed: int) -> None:
        """Compare events of a partition by their offsets; from `committed` on they wait to be scored."""
        pairs: list[tuple[float, float]] = []
        for offset, new in now.items():
            self.now[new.outcome] += 1
            old = then.get(offset)
            if old is None:
                if offset >= committed:
                    self.waiting += 1
                else:
                    self.not_found += 1
                continue
            if old.bypassed:
                self.bypassed[new.outcome] += 1
                continue
            why = None
            if old.outcome is not Outcome.DEAD_LETTER:
                self.arms[old.version, old.revision] += 1
                limits = self.past.of(old)
                if old.score is not None and new.score is not None:
                    pairs.append((old.score, new.score))
                if old.outcome is not new.outcome:
                    why = why_changed(old.outcome, new, limits)
            elif new.outcome is not Outcome.DEAD_LETTER:
                why = Why.NEWLY_SCORED
            self.changes[old.outcome, new.outcome, why] += 1
            if old.outcome is Outcome.ALLOW and new.outcome in (Outcome.REVIEW, Outcome.BLOCK):
                self.newly_alerting[new.why] += 1
        self._add_scores(np.array(pairs).reshape(-1, 2))

    def _add_scores(self, pairs: NDArray[np.float64]) -> None:
        if not len(pairs):
            return
        differences = np.abs(pairs[:, 1] - pairs[:, 0])
        self.scored_twice += len(pairs)
        self.difference_sum += float(differences.sum())
        self.difference_max = max(self.difference_max, float(differences.max()))
        squares = ((log_odds(pairs) + LOG_ODDS) / (2 * LOG_ODDS) * SQUARES).astype(np.int64).clip(0, SQUARES - 1)
        np.add.at(self.plane, (squares[:, 0], squares[:, 1]), 1)

    @property
    def events(self) -> int:
        """Events that were scored again."""
        return self.now.total()

    @property
    def compared(self) -> int:
        """Events of which it is known what became of them then."""
        return self.changes.total()

    @property
    def changed(self) -> int:
        """Events of which something else becomes now."""
        return sum(count for (_, _, why), count in self.changes.items() if why is not None)

    def by_reason(self, *, stricter: bool | None = None) -> dict[Why, int]:
        """Changed events by reason: all of them, or only those that are treated more strictly (or less) than then.

        A dead letter is neither stricter nor milder than a decision.
        """
        counts = dict.fromkeys(Why, 0)
        for (old, new, why), count in self.changes.items():
            if why is not None and (stricter is None or _direction(old, new) == (1 if stricter else -1)):
                counts[why] += count
        return counts


def _direction(old: Outcome, new: Outcome) -> int:
    """1: stricter, -1: milder, 0: neither."""
    if Outcome.DEAD_LETTER in (old, new):
        return 0
    return int(np.sign(SCORED.index(new) - SCORED.index(old)))


def log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of p/(1-p), within the plane's bounds."""
    edge = 1 / (1 + math.exp(LOG_ODDS))
    within: NDArray[np.float64] = scores.clip(edge, 1 - edge)
    odds: NDArray[np.float64] = np.log(within / (1 - within))
    return odds

"""The model that scores the stream: which one the route names, loaded and warm."""

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Arm, Decision, Release, Route
from ecluse.errors import ModelError, ModelRefused
from ecluse.model.artefact import Progress, load_model
from ecluse.model.runtime import Model
from ecluse.settings import Settings


class Verdict(NamedTuple):
    """A decision, and the threshold that it turned on."""

    decision: Decision
    threshold: float


@dataclass(frozen=True)
class Champion:
    """A warm model, the arm that it scores for, and the revision of the route that names it."""

    model: Model
    arm: Arm
    revision: int
    sha256: str
    load_seconds: float

    @property
    def verdicts(self) -> tuple[Verdict, Verdict, Verdict]:
        """What becomes of a score below both thresholds of the arm, from the first on, and from the second on."""
        limits = self.arm.thresholds
        return (
            Verdict(Decision.ALLOW, limits.review),
            Verdict(Decision.REVIEW, limits.review),
            Verdict(Decision.BLOCK, limits.block),
        )

    def levels(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which of the `verdicts` each score has, shape (n,)."""
        limits = self.arm.thresholds
        return (scores >= limits.review).astype(np.int64) + (scores >= limits.block)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def version(self) -> int:
        """The model's version."""
        return self.model.version

    def score(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """The probability of class 1 for rows of features, (n, features) to (n,).

        Raises:
            ValueError: a score is not a number. The model may raise anything else.
        """
        scores = self.model.score(matrix)
        if not np.isfinite(scores).all():
            raise ValueError("the model's score is not a number")
        return scores

    def require_sound(self, cause: Exception) -> None:
        """Tell rows that no model could score from a model that scores nothing.

        Raises:
            ModelError: the model fails on its own usual values too.
        """
        try:
            self.score(self.model.usual[None, :])
        except Exception as error:
            raise ModelError(
                f"Model {self.name} version {self.version} fails on its own usual values: {error}"
            ) from cause


def single_champion(route: Route) -> Arm:
    """The champion of a route that names nobody else.

    Raises:
        ModelRefused: it names challengers or shadows, or gives the champion a share: scoring without them would be another
            route than the one that was asked for.
    """
    champion = route.champion
    if len(route.arms) > 1 or route.shadows or champion.share != 1.0:
        raise ModelRefused(f"The route of model {route.name} names an experiment, and this worker runs none.")
    return champion


def load_champion(
    settings: Settings, arm: Arm, revision: int, release: Release, before: Champion | None, progress: Progress
) -> Champion:
    """The arm's version, loaded and warm.

    Args:
        settings: the stream's.
        arm: the champion of a route.
        revision: the route's.
        release: of the arm's version.
        before: what scores meanwhile; of the same version, its model is taken as it is.
        progress: told of the bytes that are fetched, and of all.

    Raises: as `ecluse.model.artefact.load_model`.
    """
    sha256 = release.manifest_sha256
    if before is not None and before.sha256 == sha256:
        return replace(before, arm=arm, revision=revision)
    started = time.perf_counter()
    beside = before.model.manifest.memory_bytes if before else 0
    model = load_model(settings, arm.version, release, beside=beside, progress=progress)
    return Champion(model, arm, revision, sha256, time.perf_counter() - started)

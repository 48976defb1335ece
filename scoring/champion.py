"""The model that scores the stream: which one the route names, loaded and warm."""

import logging
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Arm, Decision
from ecluse.errors import ModelError, ModelNotFound, ModelRefused
from ecluse.model.registry import read_registry
from ecluse.model.runtime import Model, load_model
from ecluse.model.store import ModelStore
from ecluse.settings import Settings

logger = logging.getLogger(__name__)


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


def routed_champion(settings: Settings, loaded: Champion) -> Champion:
    """The champion that the route names now: `loaded`, where the route is as it was.

    Raises:
        BrokerError: the route could not be read.
        ModelNotFound, ModelRefused: as `load_champion`.
    """
    routed = read_registry(settings).routes.get(settings.model_name)
    return loaded if routed is not None and routed.revision == loaded.revision else load_champion(settings)


def load_champion(settings: Settings) -> Champion:
    """Load and warm the version that the route names.

    Raises:
        ModelNotFound: no route names a model for this stream yet.
        ModelRefused: the artefact is not what was released, or does not fit the stream.
    """
    registry = read_registry(settings)
    routed = registry.routes.get(settings.model_name)
    if routed is None:
        raise ModelNotFound(f"No model scores stream {settings.stream.name} yet: `ecluse model train FILE` makes one.")
    arm = routed.route.champion
    release = registry.releases.get((settings.model_name, arm.version))
    if release is None:
        raise ModelNotFound(
            f"The route names version {arm.version} of {settings.model_name}, which was never released."
        )
    started = time.perf_counter()
    schema = settings.stream.schema_of_events()
    try:
        model = load_model(ModelStore.of(settings), settings.model_name, arm.version, schema, release)
    except ModelNotFound as error:
        raise ModelRefused(f"The route names a version that the store does not hold: {error}") from error
    model.warm()
    took = time.perf_counter() - started
    logger.info("model %s version %d is warm after %.2f s", model.name, model.version, took)
    return Champion(model, arm, routed.revision, release.manifest_sha256, took)

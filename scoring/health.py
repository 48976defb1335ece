"""What a worker tells of itself at /health/live, /health/ready and /model (see `ecluse.health`).

`live` fails only when a chunk has waited for its score too long: then the worker hangs, and a restart helps. A broker that
is away does not fail it, because a restart would only lose the warm model. `ready` says whether the worker does its work,
with the model that is routed. `model` says what really scores, and what else should.
"""

import time

from ecluse.health import STILL_SECONDS
from ecluse.transport.progress import Progress
from scoring.live import LiveModel
from scoring.pipeline import Pipeline


class Health:
    """What is known of the worker's state.

    `progress` is None until the worker joins its group; `waits` says that it is a standby, outside the group on purpose.
    `models` follows the route, and `pipeline` scores; it is None until the first model is warm.
    """

    def __init__(self, worker: str, stuck_after: float) -> None:
        self._worker = worker
        self._stuck_after = stuck_after
        self.progress: Progress | None = None
        self.waits = False
        self.models: LiveModel | None = None
        self.pipeline: Pipeline | None = None

    def live(self) -> list[str]:
        """Why the worker should be restarted; empty where it should not."""
        oldest = self.progress.oldest_unscored if self.progress else None
        age = time.monotonic() - oldest if oldest is not None else 0.0
        return [f"a chunk has waited for its score for {age:.0f} s"] if age > self._stuck_after else []

    def ready(self) -> list[str]:
        """Why the worker does not do its work; empty where it does."""
        degraded = self.models.degraded if self.models else ""
        if self.pipeline is None or degraded:
            return [degraded or "the model is not warm yet"]
        if self.waits:
            return []
        if self.progress is None or not self.progress.assigned:
            return ["the worker waits for its partitions"]
        still = time.monotonic() - self.progress.moved_at
        if still > STILL_SECONDS:
            return [f"events wait, and nothing was committed for {still:.0f} s"]
        return []

    def model(self) -> dict[str, str | int | float | None]:
        """What scores now, what the route names, and what is between the two; what goes past. `since` is in seconds."""
        scores = self.pipeline.champion if self.pipeline else None
        routed = self.models.routed if self.models else None
        loading = self.models.loading if self.models else None
        return {
            "worker": self._worker,
            "model": scores.name if scores else None,
            "version": scores.version if scores else None,
            "sha256": scores.sha256 if scores else None,
            "revision": scores.revision if scores else None,
            "since": time.monotonic() - self.pipeline.serves_since if self.pipeline else None,
            "routed_version": routed.route.champion.version if routed else None,
            "routed_revision": routed.revision if routed else None,
            "loading": loading.version if loading else None,
            "progress": loading.fetched if loading else None,
            "switch_revision": self.pipeline.bypass.revision if self.pipeline else None,
            "bypass_share": self.pipeline.bypass.share if self.pipeline else None,
            "degraded": self.models.degraded if self.models else "",
        }

"""Thresholds, chosen on the held-out slice by the settings' policy."""

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Thresholds
from ecluse.sections import ThresholdSettings

#: Above every probability: nothing reaches it.
NEVER = 2.0

Scores = NDArray[np.float64]
Labels = NDArray[np.int8]
Weights = NDArray[np.float64]


def choose_thresholds(
    scores: Scores, labels: Labels, policy: ThresholdSettings, weights: Weights | None = None
) -> Thresholds:
    """The thresholds for a slice of rows with its truth (0 or 1) and the events that each stands for (1 where None), all of
    shape (n,), n > 0.

    budget: the lowest thresholds with which no more than the allowed share of the events alerts, or is blocked; rows with
    equal scores stay together, so the share may be smaller. cost: those with the least total cost on the slice; where
    several cost the same, the higher.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    # Place i: the i highest rows lie above the cut. A cut never parts equal scores.
    last_of_equals = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    places = np.concatenate([[0], last_of_equals + 1])
    weights = np.ones(len(scores)) if weights is None else weights
    above, positives = (
        np.concatenate([[0.0], np.cumsum(each[order])])[places] for each in (weights, weights * (labels == 1))
    )
    if policy.policy == "budget":
        review, block = (_within_budget(above, share) for share in (policy.alert_budget, policy.block_budget))
        # Where no row fits, just above them all.
        none = float(np.nextafter(ordered[0], NEVER))
        never = [none if share else NEVER for share in (policy.alert_budget, policy.block_budget)]
    else:
        review, block = _least_cost(above, positives, policy)
        never = [NEVER, NEVER]
    cuts = (
        float(ordered[places[at] - 1]) if at else above_all
        for at, above_all in zip((review, block), never, strict=True)
    )
    return Thresholds(*cuts)


def _within_budget(above: NDArray[np.float64], share: float) -> int:
    """The last place above which no more than a share of the events lies; a share of 0.29 of 100 is 29, though the product is
    28.999999999999996."""
    return int(np.searchsorted(above, share * above[-1] + 1e-9, side="right")) - 1


def _least_cost(
    above: NDArray[np.float64], positives: NDArray[np.float64], policy: ThresholdSettings
) -> tuple[int, int]:
    """Cut the rows, highest score first, into blocked, reviewed and allowed, at the two places with the least cost.

    The cost falls into a part for each cut, so the best first cut for each second is a running minimum.
    """
    reviewing = policy.cost_review * above - policy.cost_missed * positives
    blocking = policy.cost_block * (above - positives) - policy.cost_review * above
    least_blocking = np.minimum.accumulate(blocking)
    review_at = int(np.argmin(reviewing + least_blocking))
    return review_at, int(np.argmin(blocking[: review_at + 1]))

"""Thresholds, chosen on the held-out slice by the settings' policy."""

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Thresholds
from ecluse.settings import ThresholdSettings

#: Above every probability: nothing reaches it.
NEVER = 2.0

Scores = NDArray[np.float64]
Labels = NDArray[np.int8]


def choose_thresholds(scores: Scores, labels: Labels, policy: ThresholdSettings) -> Thresholds:
    """The thresholds for a slice of rows with its truth (0 or 1), both shape (n,), n > 0.

    budget: the lowest thresholds with which no more than the allowed share of the slice alerts, or is blocked; rows with
    equal scores stay together, so the share may be smaller. cost: those with the least total cost on the slice; where
    several cost the same, the higher.
    """
    if policy.policy == "budget":
        return Thresholds(
            review=_within_budget(scores, policy.alert_budget), block=_within_budget(scores, policy.block_budget)
        )
    return _least_cost(scores, labels, policy)


def _within_budget(scores: Scores, share: float) -> float:
    if share == 0:
        return NEVER
    ordered = np.sort(scores)[::-1]
    # A share of 0.29 of 100 rows is 29 of them, though the product is 28.999999999999996.
    allowed = int(np.floor(share * len(ordered) + 1e-9))
    if allowed and (allowed == len(ordered) or ordered[allowed] < ordered[allowed - 1]):
        return float(ordered[allowed - 1])
    # The score at the border is shared by more rows than fit: start above it.
    higher = ordered[ordered > ordered[allowed]]
    return float(higher[-1]) if len(higher) else float(np.nextafter(ordered[0], NEVER))


def _least_cost(scores: Scores, labels: Labels, policy: ThresholdSettings) -> Thresholds:
    """Cut the rows, highest score first, into blocked, reviewed and allowed, at the two places with the least cost.

    The cost falls into a part for each cut, so the best first cut for each second is a running minimum.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    # Place i: the i highest rows lie above the cut. A cut never parts equal scores.
    last_of_equals = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    places = np.concatenate([[0], last_of_equals + 1])
    positives = np.concatenate([[0], np.cumsum(labels[order])])[places]
    reviewing = policy.cost_review * places - policy.cost_missed * positives
    blocking = policy.cost_block * (places - positives) - policy.cost_review * places
    least_blocking = np.minimum.accumulate(blocking)
    review_at = int(np.argmin(reviewing + least_blocking))
    block_at = int(np.argmin(blocking[: review_at + 1]))
    review, block = (float(ordered[places[at] - 1]) if at else NEVER for at in (review_at, block_at))
    return Thresholds(review=review, block=block)

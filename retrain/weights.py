"""The odds with which an event's outcome could be seen, whatever became of it: a row of a training set weighs 1 over them.

An event x goes past the model with probability b(x), and else into one of the route's arms, each with its share. Its outcome
can be seen unless the arm that took it blocks it, so the odds of that, before anything was drawn, are

    pi(x) = b(x) + sum over arms of (1 - b(x)) * share(arm) * [the arm's version does not block x].

Weighting each row that was seen by 1/pi makes sums over the rows unbiased for sums over all events with pi > 0: the estimator
of D. G. Horvitz and D. J. Thompson (1952), "A generalization of sampling without replacement from a finite universe",
JASA 47:663-685. docs/training-sets.md has the derivation. Shadows decide nothing, so they are no arms here.
"""

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Route

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: What is left of one minus a share by rounding: no bypass is so small.
_ROUNDING = 1e-9


def arm_shares(route: Route) -> Numbers:
    """The share of each arm among the events that do not go past the model, shape (arms,): the champion, the first, takes what
    no other arm takes."""
    others = [arm.share for arm in route.arms[1:]]
    return np.array([1.0 - sum(others), *others])


def bypass_odds(bypassed: Flags, propensity: Numbers, share: Numbers) -> Numbers:
    """The odds b(x) with which events go past the model, shape (n,), told from their predictions.

    Args:
        bypassed: whether the event went past, shape (n,).
        propensity: the odds of the arm that took it, shape (n,).
        share: of that arm among those that do not go past, shape (n,); where it went past it does not count.
    """
    odds = np.where(bypassed, propensity, 1.0 - propensity / np.where(bypassed, 1.0, share))
    return np.where(odds > _ROUNDING, odds, 0.0)


def seen_odds(bypass: Numbers, shares: Numbers, blocks: Flags) -> Numbers:
    """The odds pi(x) with which the outcome of events could be seen, shape (n,).

    Args:
        bypass: b(x), shape (n,).
        shares: of the arms, shape (arms,).
        blocks: whether each arm's version blocks the event, or fails on it, shape (n, arms).
    """
    through = np.where(blocks, 0.0, shares).sum(axis=1)
    return np.minimum(bypass + (1.0 - bypass) * np.where(through > _ROUNDING, through, 0.0), 1.0)

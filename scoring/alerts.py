"""Alerts: which events a person should look at, and why.

A reason is found by occlusion: an input is set to its usual value (the reference median), and what the score loses is what
the input had added. All alerts of one call share one model call, and no more than `EXPLAINED` of them are explained, so that
an attack does not multiply the load.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Decision, Reason, Severity
from ecluse.contract.schema import Event, EventSchema
from ecluse.model.features import Feature
from ecluse.model.runtime import Model

logger = logging.getLogger(__name__)

EXPLAINED = 50
REASONS = 3
#: How much of a text a reason shows.
LONGEST_TEXT = 200
#: An effect smaller than this is no reason.
LEAST_EFFECT = 1e-4


class Explainer:
    """Finds the reasons of alerts, and the fields that people may see."""

    def __init__(self, model: Model, schema: EventSchema, visible: Sequence[str]) -> None:
        self._model = model
        self._visible = {name: schema.getter(name) for name in visible}
        self._inputs = [
            (feature, schema.getter(feature.field) if feature.field in self._visible else None)
            for feature in model.features.features
        ]

    def reasons(
        self, events: Sequence[Event], matrix: NDArray[np.float32], scores: NDArray[np.float64]
    ) -> list[list[Reason] | Literal["skipped"]]:
        """The reasons of each alert, for features of shape (alerts, features); the highest scores are explained first."""
        result: list[list[Reason] | Literal["skipped"]] = ["skipped"] * len(events)
        chosen = np.argsort(-scores, kind="stable")[:EXPLAINED]
        try:
            effects = self._effects(matrix[chosen], scores[chosen])
        except Exception:  # an alert without reasons is better than none
            logger.exception("the reasons of %d alerts could not be found", len(chosen))
            return result
        for alert, row in zip(chosen, effects, strict=True):
            strongest = np.argsort(-row, kind="stable")[:REASONS]
            result[alert] = [
                self._reason(events[alert], matrix[alert], int(i), float(row[i]))
                for i in strongest
                if row[i] > LEAST_EFFECT
            ]
        return result

    def _effects(self, matrix: NDArray[np.float32], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each input added to each score, shape (alerts, features)."""
        alerts, features = matrix.shape
        occluded = np.repeat(matrix, features, axis=0)
        inputs = np.tile(np.arange(features), alerts)
        occluded[np.arange(len(occluded)), inputs] = self._model.usual[inputs]
        return scores[:, None] - self._model.score(occluded).reshape(alerts, features)

    def _reason(self, event: Event, row: NDArray[np.float32], i: int, effect: float) -> Reason:
        feature, read = self._inputs[i]
        if read is None:
            return Reason(feature.name, None, None, effect)
        raw = read(event)
        value = None if raw is None else raw[:LONGEST_TEXT] if isinstance(raw, str) else _number(feature, row[i])
        return Reason(feature.name, value, _usual(feature, self._model.usual[i]), effect)

    def fields(self, event: Event) -> dict[str, Any]:
        """What people may see of an event; times as RFC 3339 text."""
        seen = ((name, read(event)) for name, read in self._visible.items())
        return {name: _plain(value) for name, value in seen if value is not None}


def severity(decision: Decision, score: float, block: float) -> Severity:
    """How urgent: see `Severity`. A blocked score is near 1 when it lies past the middle between the threshold and 1."""
    if decision is Decision.REVIEW:
        return Severity.MEDIUM
    return Severity.CRITICAL if score >= (block + 1) / 2 else Severity.HIGH


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return value


def _number(feature: Feature, value: np.float32) -> float | None:
    """A feature's value on the scale of the field that it comes from."""
    if np.isnan(value):
        return None
    number = float(value)
    return round(float(np.sign(number) * np.expm1(abs(number))), 6) if feature.transform == "log1p" else _short(number)


def _short(number: float) -> float:
    """A float32 without the digits that it never had."""
    return float(np.format_float_positional(np.float32(number), unique=True, trim="0"))


def _usual(feature: Feature, value: np.float32) -> float | str | None:
    if feature.transform == "category":
        return feature.categories[int(value)] if int(value) < len(feature.categories) else None
    return _number(feature, value)

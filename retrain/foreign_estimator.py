"""A fitted scikit-learn estimator out of a joblib file: unpickled in the child process, and refused with the reason."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
from sklearn.base import BaseEstimator, is_regressor  # type: ignore[import-untyped]
from sklearn.exceptions import NotFittedError  # type: ignore[import-untyped]
from sklearn.utils.validation import check_is_fitted  # type: ignore[import-untyped]

from ecluse.errors import ModelRefused
from ecluse.model.features import Feature


def load_estimator(file: Path, features: Sequence[Feature]) -> tuple[Any, list[str]]:
    """Unpickle a classifier of the classes 0 and 1 that takes these features; with what a person should know.

    Raises:
        ModelRefused: it is something else.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        estimator = _unpickled(file)
    notes = list(dict.fromkeys(_first_line(warning.message) for warning in warned))
    kind = type(estimator).__name__
    if isinstance(estimator, type) or not isinstance(estimator, BaseEstimator):
        raise ModelRefused(f"{file} holds a {kind}, not a fitted scikit-learn estimator.")
    if is_regressor(estimator):
        raise ModelRefused(f"{kind} is a regressor: workers need the probability of a class, from a classifier.")
    if not hasattr(estimator, "predict_proba") and not hasattr(estimator, "classes_"):
        _require_fitted(estimator)
    if not callable(getattr(estimator, "predict_proba", None)):
        raise ModelRefused(f"{kind} has no predict_proba: CalibratedClassifierCV around it gives probabilities.")
    _require_fitted(estimator)
    if isinstance(known := getattr(estimator, "classes_", ()), list) and known and isinstance(known[0], np.ndarray):
        raise ModelRefused(f"{kind} predicts {len(known)} targets: workers need a classifier of one.")
    classes = np.asarray(known).tolist()
    if classes != [0, 1]:
        shown = ", ".join(map(repr, classes[:5])) + ("…" if len(classes) > 5 else "")
        raise ModelRefused(
            f"{kind} knows {len(classes)} classes ({shown}): workers need a classifier of two, 0 and 1, where 1 raises alerts."
        )
    _require_inputs(estimator, features)
    return estimator, notes


def _unpickled(file: Path) -> Any:
    try:
        return joblib.load(file)
    except ModuleNotFoundError as error:
        raise ModelRefused(f"{file} needs the library {error.name}, which is not installed here.") from error
    except (AttributeError, ImportError) as error:
        raise ModelRefused(
            f"{file} needs something that is not defined here, of its own script or of another version of a library: {error}."
        ) from error
    except (Exception, SystemExit) as error:  # unpickling raises anything
        raise ModelRefused(f"{file} cannot be unpickled: {type(error).__name__}: {_first_line(error)}.") from error


def _require_fitted(estimator: Any) -> None:
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ModelRefused(f"{type(estimator).__name__} is not fitted.") from error


def _require_inputs(estimator: Any, features: Sequence[Feature]) -> None:
    kind = type(estimator).__name__
    takes = getattr(estimator, "n_features_in_", len(features))
    if takes != len(features):
        raise ModelRefused(f"{kind} takes {takes} inputs, and the features file names {len(features)}.")
    names, fitted = [feature.name for feature in features], list(getattr(estimator, "feature_names_in_", ()))
    places = {name: i for i, name in enumerate(names)}
    if any(places.get(name, i) != i for i, name in enumerate(fitted)):
        raise ModelRefused(
            f"{kind} was fitted on {', '.join(fitted)}, in this order, and the features file names {', '.join(names)}."
        )
    for step in _steps(estimator):
        if any(np.asarray(known).dtype.kind in "OUS" for known in getattr(step, "categories_", ())):
            raise ModelRefused(
                f"{kind} takes texts ({type(step).__name__} was fitted on them), and models get numbers: a text comes as the "
                "code that `categories` in the features file gives it. Fit the model on those codes."
            )


def _steps(estimator: Any, depth: int = 8) -> Iterator[Any]:
    """An estimator and the fitted ones inside it."""
    yield estimator
    if not depth:
        return
    for name in ("steps", "transformers_", "estimators_", "calibrated_classifiers_", "estimator"):
        inside = getattr(estimator, name, ())
        for part in inside if isinstance(inside, list) else [inside]:
            for step in part if isinstance(part, tuple) else [part]:
                if hasattr(step, "__dict__") and not isinstance(step, type):
                    yield from _steps(step, depth - 1)


def _first_line(said: object) -> str:
    return (str(said).strip().splitlines() or [""])[0][:300].rstrip(".")

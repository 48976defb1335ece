"""The features file of a model that somebody brings: what each of its inputs is, in its order."""

import math
import tomllib
from pathlib import Path
from typing import get_args

import msgspec

from ecluse.contract.schema import EventSchema
from ecluse.errors import DataError, ModelRefused
from ecluse.model.features import Feature, FeatureSet, Transform
from retrain.inputs import usual_transform


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    """A feature as a table: see `Feature`."""

    field: str
    name: str = ""
    transform: Transform | None = None
    categories: tuple[str, ...] = ()
    missing: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    features: tuple[str | _Given, ...]


def given_features(file: Path, schema: EventSchema) -> tuple[Feature, ...]:
    """Read a features file, TOML or JSON: a list `features` of names as in `model.features`, or of tables.

    Raises:
        DataError: it cannot be read.
        ModelRefused: a feature cannot be made of the stream's fields.
    """
    try:
        content = file.read_bytes()
        raw = msgspec.json.decode(content) if file.suffix.lower() == ".json" else tomllib.loads(content.decode())
        given = msgspec.convert(raw, _File).features
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{file} is no list `features` of names or tables: {error}.") from error
    features = tuple(_feature(one, schema) for one in given)
    FeatureSet(features, schema)
    return features


def _feature(given: str | _Given, schema: EventSchema) -> Feature:
    if isinstance(given, str):
        field, _, wanted = given.rpartition(".")
        known = next((transform for transform in get_args(Transform) if transform == wanted), None)
        given = _Given(given) if given in schema.fields or known is None else _Given(field, given, known)
    if given.field not in schema.fields:
        raise ModelRefused(
            f"The feature '{given.name or given.field}' needs the field '{given.field}', which the stream does not declare."
        )
    transform = given.transform or usual_transform(given.field, schema)
    name = given.name or given.field
    if transform is None:
        raise ModelRefused(f"The feature '{name}' is a time: write {given.field}.hour or {given.field}.weekday.")
    if (transform == "category") != bool(given.categories):
        raise ModelRefused(
            f"The feature '{name}' is a text: give its `categories`, in the order of the codes that the model learnt."
            if transform == "category"
            else f"The feature '{name}' is no category, and has `categories`."
        )
    if given.missing is not None and not math.isfinite(given.missing):
        raise ModelRefused(f"`missing` of the feature '{name}' must be a number.")
    return Feature(name, given.field, transform, given.categories, given.missing)

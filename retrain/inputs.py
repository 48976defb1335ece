"""Which of a stream's fields the model gets, and as what."""

from collections.abc import Mapping, Sequence
from typing import get_args

import polars as pl

from ecluse.contract.schema import EventSchema, FieldType
from ecluse.errors import ModelRefused
from ecluse.model.features import Feature, FeatureSet, Transform

#: A text's most frequent values; all others share one code.
_MOST_CATEGORIES = 50
#: Texts of which more than this share are distinct say who a row is, not what it is like.
_DISTINCT_SHARE = 0.5


def choose_features(
    schema: EventSchema, frame: pl.DataFrame, named: Sequence[str] | None, roles: Mapping[str, str]
) -> tuple[tuple[Feature, ...], dict[str, str]]:
    """Features for a stream's fields: numbers, whole numbers and booleans as they are, texts as categories.

    Args:
        schema: the stream's.
        frame: the rows to train on.
        named: what to take, each as ``field`` or ``field.transform`` (``time.hour``); every usable field where None.
        roles: fields that are inputs only if named, and what they are (``{"card": "the key"}``).

    Returns:
        The features, and for each field that was left out why.

    Raises:
        ModelRefused: what is named cannot be used, or no field can.
    """
    left_out: dict[str, str] = {}
    if named is None:
        for field in schema.fields:
            if reason := roles.get(field) or _unusable(field, schema, frame):
                left_out[field] = reason
        named = [field for field in schema.fields if field not in left_out]
        if not named:
            reasons = "; ".join(f"{field}: {reason}" for field, reason in left_out.items())
            raise ModelRefused(f"No field can be an input of the model ({reasons}).")
    features = tuple(_feature(name, schema, frame) for name in named)
    FeatureSet(features, schema)
    return features, left_out


def _unusable(field: str, schema: EventSchema, frame: pl.DataFrame) -> str | None:
    """Why a field is no input by itself."""
    if schema.fields[field].type is FieldType.TIME:
        return "a time is an input only as its hour or weekday, if named in model.features"
    if field not in frame.columns:
        return "the file has no such column"
    known = frame[field].drop_nulls()
    if known.is_empty():
        return "it is blank in all rows"
    distinct = known.n_unique()
    if schema.fields[field].type is FieldType.TEXT and distinct > max(_MOST_CATEGORIES, _DISTINCT_SHARE * len(known)):
        return f"nearly every row has a text of its own ({distinct:,} of {len(known):,})"
    return None


def _feature(name: str, schema: EventSchema, frame: pl.DataFrame) -> Feature:
    if name in schema.fields:
        field, transform = name, usual_transform(name, schema)
    else:
        field, _, wanted = name.rpartition(".")
        transform = next((known for known in get_args(Transform) if known == wanted), None)
    if transform is None or (field in schema.fields and field not in frame.columns):
        reason = "the file has no such column" if transform else "write field, field.log1p, time.hour or time.weekday"
        raise ModelRefused(f"model.features names '{name}', which cannot be an input: {reason}.")
    if transform != "category" or field not in frame.columns:
        return Feature(name, field, transform)
    counts = frame[field].alias("text").cast(pl.String).drop_nulls().value_counts(sort=False)
    # Equal counts by name, so that the same rows give the same codes.
    frequent = counts.sort(["count", "text"], descending=[True, False]).head(_MOST_CATEGORIES)
    return Feature(name, field, transform, categories=tuple(frequent["text"].to_list()))


def usual_transform(field: str, schema: EventSchema) -> Transform | None:
    """What is made of a field where nothing is said; None of a time, which is no input by itself."""
    match schema.fields[field].type:
        case FieldType.TEXT:
            return "category"
        case FieldType.TIME:
            return None
        case _:
            return "number"

"""The manifest of a training set: all that it takes to build the same bytes again, and what was counted on the way."""

import datetime as dt
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import obstore
from obstore.exceptions import BaseError

from ecluse.contract.schema import Field
from ecluse.errors import DataError, StoreError, cause
from ecluse.settings import Settings
from ecluse.store.place import open_store
from retrain.dataset import own_column
from retrain.estimates import Estimate

#: What decides, beside our own code, which bytes come out.
_LIBRARIES = ("ecluse", "deltalake", "numpy", "onnxruntime", "polars")
_FOLDER = "datasets"
_Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class Extent(msgspec.Struct, frozen=True):
    """What was read of a partition of a topic: offsets below `end`; `rows` of them were known by then and are still there."""

    end: int
    rows: int


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a training set is made of.

    `prefix` is that of the stream's topics, `read` what was read of each ``<topic>/<partition>``. The other names are those of
    the settings. Times are UTC.
    """

    prefix: str
    as_of: _Moment
    since: _Moment | None
    clock: Literal["arrival", "event"]
    maturity_hours: float
    silence: Literal["negative", "unknown"]
    origins: tuple[str, ...]
    fields: dict[str, Field]
    label: str
    positive: str | None
    read: dict[str, Extent] = {}

    @classmethod
    def of(cls, settings: Settings, as_of: dt.datetime, since: dt.datetime | None) -> "Recipe":
        """By the settings as they are now; times without a zone are UTC."""
        return cls(
            prefix=settings.names.prefix,
            as_of=_utc(as_of),
            since=None if since is None else _utc(since),
            clock=settings.stream.clock,
            maturity_hours=settings.labels.maturity_hours,
            silence=settings.labels.silence,
            origins=settings.labels.origins,
            fields=settings.stored_fields,
            label=settings.model.label,
            positive=settings.model.positive,
        )

    @property
    def mature_by(self) -> dt.datetime:
        """The latest event time whose outcome counts as known."""
        return self.as_of - dt.timedelta(hours=self.maturity_hours)

    def column(self, name: str) -> str:
        """The column of the set for something of ours: with an underscore behind it where a field or the label has its name."""
        return own_column(name, {*self.fields, self.label})


class Counts(msgspec.Struct, kw_only=True):
    """What became of the events that were known: each is counted once, under what kept it out first, or among the `rows`.

    `outside` the window in time; `unscored`: without a prediction, most of them dead letters; `blocked`, and among these
    `unreachable`: whose outcome could be seen in no arm (pi = 0), and `blocked_labelled`: with a label all the same;
    `unlabelled` under `labels.silence = "unknown"`, and `selected`: labelled then because of an alert. `silent` are the rows
    whose outcome is silence.
    """

    events: int = 0
    unreadable: int = 0
    duplicates: int = 0
    outside: int = 0
    immature: int = 0
    unscored: int = 0
    blocked: int = 0
    blocked_labelled: int = 0
    unreachable: int = 0
    unlabelled: int = 0
    selected: int = 0
    rows: int = 0
    positives: int = 0
    silent: int = 0
    bypassed: int = 0

    @property
    def population(self) -> int:
        """The mature events of the window that were decided about."""
        return self.blocked + self.unlabelled + self.selected + self.rows


class SetManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A training set's own account.

    `population` counts the mature events that were decided about; `unspoken_share` is the share of them that no row speaks for,
    whatever was drawn: of pi = 0. `rates` are what the rows say of the champion's blocks. `models` are the SHA-256 of the
    manifests of the versions that scored again, by ``name/version``; `sha256` is that of the Parquet's bytes.
    """

    recipe: Recipe
    sha256: str
    columns: tuple[str, ...]
    counts: Counts
    population: int
    unspoken_share: float
    rates: dict[str, Estimate]
    models: dict[str, str]
    libraries: dict[str, str]

    def encode(self) -> bytes:
        """The manifest as indented JSON; the fields stay in the order that the set's columns have."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @staticmethod
    def read(file: Path) -> "SetManifest":
        """Read what `encode` wrote.

        Raises:
            DataError: there is no such file, or it is no manifest of a training set.
        """
        try:
            return msgspec.json.decode(file.read_bytes(), type=SetManifest)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{file} is no manifest of a training set: {cause(error)}.") from error


def libraries() -> dict[str, str]:
    """The versions of what decides which bytes come out."""
    return {name: version(name) for name in _LIBRARIES}


def path_of(manifest: SetManifest) -> str:
    """Where in the training store a manifest is kept."""
    return f"{_FOLDER}/{manifest.sha256}.json"


def register(settings: Settings, manifest: SetManifest) -> str:
    """Keep a manifest in the training store; returns its path there.

    Raises:
        StoreError: the store cannot be written.
    """
    url, path = settings.store.url, path_of(manifest)
    try:
        store, _ = open_store(url)
        obstore.put(store, path, manifest.encode())
    except (BaseError, ValueError, OSError) as error:
        raise StoreError(url, f"the manifest of the set cannot be kept: {cause(error)}.") from error
    return path


def _utc(moment: dt.datetime) -> dt.datetime:
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)

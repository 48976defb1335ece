"""Forgetting an entity: its rows in every table, and what of it is out of the store's reach."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import obstore
import polars as pl
from confluent_kafka import KafkaException
from confluent_kafka.admin import ConfigResource
from obstore.exceptions import BaseError

from ecluse import kafka
from ecluse.contract.tables import LABELS, PREDICTIONS, bypass_table, events_table
from ecluse.errors import BrokerUnreachable, StoreError, cause
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.place import open_store
from ingest.forgotten import PLACE, Forgotten, places_of
from ingest.privacy import HashKey

Progress = Callable[[int, int], None]
#: Kept for longer than this is kept for ever.
_LONGEST_MS = 1000 * 365 * 86_400_000


@dataclass(frozen=True)
class Found:
    """What the store has of an entity: the places of its rows by table, its events' ids, and when the events were."""

    places: Mapping[str, pl.DataFrame]
    event_ids: frozenset[str]
    first: dt.datetime | None
    last: dt.datetime | None

    @property
    def rows(self) -> dict[str, int]:
        """How many rows each table has of it."""
        return {name: places.height for name, places in self.places.items()}


class Topic(msgspec.Struct, frozen=True):
    """A topic that may hold records of the entity; `until`: when those of today are deleted, None: never."""

    name: str
    until: dt.datetime | None


class TrainingSet(msgspec.Struct, frozen=True):
    """A set that was built from this store and may hold rows of the entity. `since` None: from the first event on."""

    sha256: str
    as_of: dt.datetime
    since: dt.datetime | None


class Entity:
    """An entity in a training store.

    Args:
        settings: the stream's.
        store: the stream's.
        key: as the producers give it.

    Raises:
        SettingsError: the key of the store's hashes cannot be used.
    """

    def __init__(self, settings: Settings, store: TrainingStore, key: str) -> None:
        self._store, self._forgotten = store, Forgotten(settings, store)
        self._hashed = HashKey(settings).hashed
        #: As it is, and hashed: the settings may have changed since the first rows were written.
        self._names = {key, self._hashed(key)}
        fields = settings.stored_fields
        self._of_entity = [PREDICTIONS, bypass_table(fields), events_table(fields)]

    def find(self) -> Found:
        """What is in the tables now.

        Raises:
            StoreError: one cannot be read.
        """
        places: dict[str, pl.DataFrame] = {}
        ids: set[str] = set()
        times: list[dt.datetime] = []
        for table in self._of_entity:
            with self._store.reading(table):
                of_it = self._store.scan(table).filter(pl.col("entity").is_in(list(self._names)))
                rows = of_it.select("event_id", "event_time", "partition", "offset").collect(engine="streaming")
            places[table.name] = places_of(rows)
            ids |= set(rows["event_id"].drop_nulls())
            times += rows["event_time"].drop_nulls().to_list()
        with self._store.reading(LABELS):
            labels = self._store.scan(LABELS).filter(pl.col("event_id").is_in(list(ids))).select(PLACE).collect()
        first, last = (min(times), max(times)) if times else (None, None)
        return Found({LABELS.name: labels, **places}, frozenset(ids), first, last)

    def forget(self, ends: Mapping[int, int], progress: Progress) -> Found:
        """Delete its rows in every table, and keep it so for events below these ends and all that comes of them.

        Whenever this is stopped, doing it again finishes it: events go last, for the others are found by them.

        Args:
            ends: of each partition of the events, the offset below which they are of before the request.
            progress: told how many of how many steps are done.

        Returns:
            What was deleted.

        Raises:
            StoreError: a table cannot be read or written.
            SettingsError: the hashes in the store are of another key.
        """
        tables = [LABELS, *self._of_entity]
        steps = 2 + 2 * len(tables)
        self._forgotten.forget_entity(self._names, ends, self._of_entity)
        progress(1, steps)
        found = self.find()
        for table in self._of_entity:
            self._forgotten.note_rows(table, found.places[table.name])
        # Hashed too: the settings may change before the last label comes.
        labels = self._forgotten.forget_labels(found.event_ids | set(map(self._hashed, found.event_ids)))
        found = Found({**found.places, LABELS.name: labels}, found.event_ids, found.first, found.last)
        progress(2, steps)
        for i, table in enumerate(tables):
            self._forgotten.remove(table, found.places[table.name])
            progress(3 + i, steps)
        for i, table in enumerate(tables):
            self._store.purge(table)
            progress(3 + len(tables) + i, steps)
        return found


def topics_out_of_reach(settings: Settings) -> list[Topic]:
    """The topics that hold records of events, each with when its records of now are deleted.

    Kafka deletes whole segments, so that a record may stay for as much longer as its segment was written to.

    Raises:
        BrokerUnreachable: no broker answered in time.
    """
    names, present = settings.names, kafka.partition_counts(settings)
    of_events = [names.events, names.predictions, names.alerts, names.bypass, names.dead_letters, names.replays]
    wanted = [name for name in of_events if name in present]
    wanted += sorted(name for name in present if name.startswith(names.labels("")))  # of what was an origin once, too
    if not wanted:
        return []
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted]
    now, client = dt.datetime.now(dt.UTC), kafka.admin(settings)
    try:
        futures = client.describe_configs(resources, request_timeout=kafka.PATIENCE)
        configs = [futures[resource].result(kafka.PATIENCE) for resource in resources]
    except (KafkaException, TimeoutError) as error:
        raise BrokerUnreachable(settings.kafka.bootstrap_servers, "it says nothing of its topics") from error
    kept = [int(config["retention.ms"].value) for config in configs]
    return [
        Topic(name, now + dt.timedelta(milliseconds=ms) if 0 <= ms < _LONGEST_MS else None)
        for name, ms in zip(wanted, kept, strict=True)
    ]


def training_sets(settings: Settings, found: Found) -> list[TrainingSet]:
    """The sets built from this store whose window in time reaches over the entity's events.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        store, _ = open_store(settings.store.url)
        listed = [entry["path"] for entry in obstore.list(store, prefix="datasets/").collect()]
        read = {path: _read_manifest(bytes(obstore.get(store, path).bytes())) for path in sorted(listed)}
    except (BaseError, OSError, ValueError) as error:
        raise StoreError(settings.store.url, f"the training sets in it cannot be listed: {cause(error)}.") from error
    return [
        TrainingSet(path.removeprefix("datasets/").removesuffix(".json"), recipe.as_of, recipe.since)
        for path, recipe in read.items()
        if recipe is not None and recipe.reaches(found)
    ]


class _Recipe(msgspec.Struct):
    """Of a set's manifest: which events it takes."""

    as_of: dt.datetime
    since: dt.datetime | None
    maturity_hours: float

    def reaches(self, found: Found) -> bool:
        """Whether it takes events of the time of those that were found; where none are there any more, it may have."""
        if found.first is None or found.last is None:
            return True
        latest = self.as_of - dt.timedelta(hours=self.maturity_hours)
        return found.first <= latest and (self.since is None or found.last >= self.since)


class _Manifest(msgspec.Struct):
    recipe: _Recipe


def _read_manifest(content: bytes) -> _Recipe | None:
    try:
        return msgspec.json.decode(content, type=_Manifest).recipe
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None

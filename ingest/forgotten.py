"""What was forgotten stays so: the table `forgotten`, and the sink's appends held against it.

The order makes it safe whatever runs at once. Who forgets writes first what is forgotten, then a mark into each table, and then
looks for rows and deletes them. Who appends reads the table's mark first, then what is forgotten, and the append is refused
where the mark is another by then. So an append either comes before the mark, and its rows are found, or it knows better.
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime

import polars as pl

from ecluse.contract.tables import FORGOTTEN, LABELS, Table
from ecluse.errors import SettingsError, StoreConflict, StoreError
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from ingest.privacy import HashKey

#: The application transactions, beside the topics' offsets: how often something was forgotten, and whose key the hashes are of.
_MARK = "forgotten"
_KEY = "hash-key"
#: How often something is tried that another writer came before with.
_TRIES = 20
#: How many rows one delete names by their places.
_AT_ONCE = 1000
PLACE = ("origin", "partition", "offset")
_PLACES = pl.Schema({"partition": pl.Int64(), "offset": pl.Int64()})


class Forgotten:
    """Appends rows to the store's tables without those of whom was forgotten. One thread at a time may use it.

    Args:
        settings: the stream's.
        store: the same thread's.
    """

    def __init__(self, settings: Settings, store: TrainingStore) -> None:
        self._settings, self._store = settings, store
        self._key: HashKey | None = None  # read when the store has hashes
        self._marks: dict[str, int | None] = {}
        self._count: int | None = None
        self._ends: dict[str, dict[int, int]] = {}
        self._events: set[str] = set()

    def append(self, table: Table, rows: pl.DataFrame, advances: Mapping[str, tuple[int | None, int]]) -> pl.DataFrame:
        """Append as `TrainingStore.append` does, without the rows of whom was forgotten; returns those that were appended.

        The places of the others are in the table `forgotten` before; labels of events that are left out here are deleted.

        Raises:
            StoreConflict: another writer came before, or somebody is being forgotten: nothing was written. Read `offsets`.
            StoreError: the store cannot be read or written.
            SettingsError: the hashes in the store are of another key than the settings' one.
        """
        try:
            start = self._read_mark(table)
            kept = self._without(table, rows)
            count = self._count or 0
            self._store.append(table, kept, {**advances, _MARK: (start, count)})
        except StoreError:
            self._marks.clear()
            raise
        self._marks[table.name] = count
        return kept

    def require_sound(self) -> None:
        """What every append asks first, to be asked before there is anything to append.

        Raises:
            StoreError: the store cannot be read or written.
            SettingsError: the key of the hashes in the store is another one, or is missing.
        """
        self._load()

    def require_key(self) -> None:
        """Hold the key against the one that the store's hashes are of; the first one is remembered.

        Raises:
            SettingsError: it is another one, or there is none.
        """
        self._key = self._key or HashKey(self._settings)
        for _ in range(_TRIES):
            known = self._store.offsets(FORGOTTEN).get(_KEY)
            if known == self._key.id:
                return
            if known is not None:
                raise SettingsError(
                    ["store.hash_key_file holds another key than the one that the hashes in this store are of."]
                )
            try:
                self._store.append(FORGOTTEN, _no_rows(FORGOTTEN), {_KEY: (None, self._key.id)})
            except StoreConflict:
                continue
        raise self._outrun()

    def forget_entity(self, names: Collection[str], ends: Mapping[int, int], tables: Collection[Table]) -> None:
        """Let no row into these tables any more that is of an entity, by any of its names, and of an event below these ends."""
        self.require_key()
        hashes = pl.DataFrame({"hash": [self._hash(name) for name in names]}, schema={"hash": pl.String})
        places = pl.DataFrame({"partition": list(ends), "offset": list(ends.values())}, schema=_PLACES)
        self._note(hashes.join(places, how="cross").with_columns(kind=pl.lit("entity")))
        for table in tables:
            self._mark(table)

    def forget_labels(self, event_ids: Collection[str]) -> pl.DataFrame:
        """Let no label of these events in any more; returns the places of those that are there, which are noted."""
        hashes = [self._hash(event_id) for event_id in event_ids]
        self._note(pl.DataFrame({"hash": hashes}, schema={"hash": pl.String}).with_columns(kind=pl.lit("event")))
        self._mark(LABELS)
        with self._store.reading(LABELS):
            found = self._store.scan(LABELS).filter(pl.col("event_id").is_in(list(event_ids))).select(PLACE).collect()
        self.note_rows(LABELS, found)
        return found

    def note_rows(self, table: Table, places: pl.DataFrame) -> None:
        """Write down that records have no row in a table, or will not have; once each."""
        if places.is_empty():
            return
        named = pl.lit(table.name).alias("table_name")
        with self._store.reading(FORGOTTEN):
            noted = self._store.scan(FORGOTTEN).filter(pl.col("kind") == "row", named == pl.col("table_name"))
            new = places.join(noted.select(PLACE).collect(), on=PLACE, how="anti", nulls_equal=True)
        if new.height:
            self._note(new.with_columns(named, kind=pl.lit("row")))

    def remove(self, table: Table, places: pl.DataFrame) -> None:
        """Delete the rows at these places. They are named by place: a predicate is kept in places that nobody cleans."""
        for part in places.sort(PLACE).iter_slices(_AT_ONCE):
            self._store.delete(table, " OR ".join(_conditions(part)))

    # -- what is forgotten ---------------------------------------------------------------------------------------------

    def _read_mark(self, table: Table) -> int | None:
        """The table's mark, and then what is forgotten."""
        for _ in range(_TRIES):
            if table.name not in self._marks:
                self._marks[table.name] = self._store.offsets(table).get(_MARK)
            if not self._load():
                break
            self._marks.clear()  # there will be other marks by now
        return self._marks.get(table.name)

    def _load(self) -> bool:
        """Read again what is forgotten, where that has changed; whether it has."""
        known = self._store.offsets(FORGOTTEN)
        count = known.get(_MARK)
        hashes = count is not None or self._settings.store.hash
        if hashes and (self._key is None or known.get(_KEY) != self._key.id):
            self.require_key()
        changed = count is not None and count != self._count
        if changed:
            with self._store.reading(FORGOTTEN):
                rows = self._store.scan(FORGOTTEN).filter(pl.col("kind") != "row").collect()
            self._events = set(rows.filter(pl.col("kind") == "event")["hash"])
            self._ends = {}
            entities = rows.filter(pl.col("kind") == "entity").select("hash", "partition", "offset")
            for name, partition, end in entities.iter_rows():
                ends = self._ends.setdefault(name, {})
                ends[partition] = max(end, ends.get(partition, 0))
            self._count = count
        return changed

    def _without(self, table: Table, rows: pl.DataFrame) -> pl.DataFrame:
        if self._count is None or rows.is_empty() or not {"entity", "origin"} & table.columns.keys():
            return rows
        gone = pl.Series(self._gone(table, rows), dtype=pl.Boolean)
        left_out = rows.filter(gone)
        if left_out.is_empty():
            return rows
        self.note_rows(table, places_of(left_out))
        if table.name == "events" and (labels := self.forget_labels(left_out["event_id"].unique())).height:
            self.remove(LABELS, labels)
            self._store.purge(LABELS)
        return rows.filter(~gone)

    def _gone(self, table: Table, rows: pl.DataFrame) -> Iterator[bool]:
        if table.name == LABELS.name:
            for event_id in rows["event_id"]:
                yield self._hash(event_id) in self._events
            return
        of_event = rows["offset" if table.name == "events" else "source_offset"]
        for entity, partition, offset in zip(rows["entity"], rows["partition"], of_event, strict=True):
            ends = {} if entity is None else self._ends.get(self._hash(entity), {})
            yield offset is not None and offset < ends.get(partition, 0)

    def _hash(self, name: str) -> str:
        assert self._key is not None  # require_key was here before
        return self._key.forgotten(name)

    def _note(self, rows: pl.DataFrame) -> None:
        """Append to the table `forgotten`, and count it."""
        now = pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC"))
        rows = pl.concat([_no_rows(FORGOTTEN), rows], how="diagonal").with_columns(known_at=now, day=now.dt.date())
        for _ in range(_TRIES):
            count = self._store.offsets(FORGOTTEN).get(_MARK)
            try:
                self._store.append(FORGOTTEN, rows, {_MARK: (count, (count or 0) + 1)})
            except StoreConflict:
                continue
            self._load()
            return
        raise self._outrun()

    def _mark(self, table: Table) -> None:
        """Make every append to a table fail that does not know what is forgotten by now."""
        count = self._count or 0
        for _ in range(_TRIES):
            start = self._store.offsets(table).get(_MARK)
            if start is None or start < count:
                try:
                    self._store.append(table, _no_rows(table), {_MARK: (start, count)})
                except StoreConflict:
                    continue
                start = count
            self._marks[table.name] = start
            return
        raise self._outrun()

    def _outrun(self) -> StoreConflict:
        return StoreConflict(self._store.url, "others came before us all the time.")


def _no_rows(table: Table) -> pl.DataFrame:
    return pl.DataFrame(schema=polars_schema(table))


def places_of(rows: pl.DataFrame) -> pl.DataFrame:
    """The places of rows of a table, with their origin where they are labels."""
    origin = pl.col("origin") if "origin" in rows.columns else pl.lit(None, pl.String).alias("origin")
    return rows.select(origin, "partition", "offset")


def _conditions(places: pl.DataFrame) -> Iterator[str]:
    for (origin, partition), group in places.group_by("origin", "partition", maintain_order=True):
        offsets = ", ".join(map(str, group["offset"]))
        of_origin = f"\"origin\" = '{origin}' AND " if origin is not None else ""
        yield f'({of_origin}"partition" = {partition} AND "offset" IN ({offsets}))'

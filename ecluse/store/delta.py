"""The tables of the training store, as Delta tables: read, appended to, compacted, vacuumed.

A commit of the sink holds the rows and, as Delta application transactions, how far each partition of a topic has come: both or
neither. Before it, the table is loaded anew and must stand where the batch begins; the commit itself fails where anybody
committed since that, for it makes one named file of the log that must not exist yet. So of two writers who hold the same
records one is refused, whatever either of them believes.
"""

import math
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import SystemRandom

import msgspec
import obstore
import polars as pl
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction
from obstore.exceptions import AlreadyExistsError, BaseError
from polars.exceptions import PolarsError

from ecluse.contract.tables import Table
from ecluse.errors import EcluseError, StoreConflict, StoreError, cause
from ecluse.settings import Settings
from ecluse.store.compaction import crowded, replace
from ecluse.store.files import BOUNDED, write
from ecluse.store.place import Place, open_store
from ecluse.store.schema import delta_fields, polars_schema, require_additive, stored_types

#: How often a commit is tried anew when others (a compaction, the sink of other partitions) come before it.
_TRIES = 10
#: A file that no commit names may be that of a commit under way, and an old version what one under way is based on.
_UNDER_WAY_HOURS = 24
#: What the libraries below raise when a store cannot be read or written.
_FAILURES = (DeltaError, BaseError, PolarsError, msgspec.MsgspecError, OSError, ValueError)
#: Where the clouds' machines find their credentials: it is asked last, when nothing else told any.
_NO_CREDENTIALS = ("/latest/api/token", "/computeMetadata/", "/metadata/identity/")
#: How deltalake puts an error's own cause behind it, in colour and on a line of its own.
_CAUSED_BY = re.compile(r"\s*(\x1b\[\d+m)?↳(\x1b\[\d+m)?\s*")

#: For each ``<topic>/<partition>`` the offset at which a batch begins, and the next one after it.
Advances = Mapping[str, tuple[int | None, int]]


class TrainingStore:
    """The Delta tables of the settings' store. Its calls block.

    Raises:
        StoreError: the location cannot be used. Every call raises it where the store cannot be read or written.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.store
        self._exclusive = False
        with _told(settings.store.url):
            self._store, self.url = open_store(settings.store.url)

    def location(self, table: Table) -> str:
        """Where a table lies: what DuckDB, Polars and Spark open."""
        return self._place(table).location

    def scan(self, table: Table) -> pl.LazyFrame:
        """The table's declared columns, lazily, as of now. A column that it does not have yet is null; where there is no table
        yet, there is no row. Filters on `day` pass over the files of other days. Collect it within `reading`."""
        schema = polars_schema(table)
        with self.reading(table):
            delta = self._load(table)
            if delta is None:
                return pl.LazyFrame(schema=schema)
            stored = stored_types(delta)
            require_additive(table, stored, self.location(table))
            missing = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name not in stored]
            return pl.scan_delta(delta).with_columns(missing).select(schema.names())

    @contextmanager
    def reading(self, table: Table) -> Iterator[None]:
        """Within it, what goes wrong with a table is a `StoreError`."""
        with _told(self.location(table)):
            yield

    def offsets(self, table: Table) -> dict[str, int]:
        """How far the table has come: of each ``<topic>/<partition>`` that was ever written, the next offset."""
        with self.reading(table):
            log = self._place(table).log()
            return log.offsets() if log else {}

    def append(self, table: Table, rows: pl.DataFrame, advances: Advances) -> None:
        """Commit rows, and how far their topics have come, in one version of the table. Without rows, the advances alone.

        Args:
            table: as it is declared now; columns that the table has not yet are added.
            rows: of its `polars_schema`.
            advances: where the batch begins must be what `offsets` says; None where that says nothing: the first write of a
                partition, whose rows may begin anywhere, for the first record that a topic still holds may have any offset.

        Raises:
            StoreConflict: a partition stands elsewhere, for another writer came before: nothing was written. Read `offsets`.
            StoreError: a column has changed its type, or the store cannot be written. Rows are never there without their
                offsets, nor offsets without their rows; which of both it is, `offsets` tells.
        """
        if not advances:
            raise ValueError("rows without an advance could be written twice")
        rows, place = rows.match_to_schema(polars_schema(table)), self._place(table)
        added: list[AddAction] | None = None
        with self.reading(table):
            self._require_exclusive()
            try:
                for _ in _attempts():
                    if (delta := self._ready(table, advances)) is None:
                        continue
                    added = write(place, rows) if added is None else added
                    version = delta.version()
                    try:
                        return _commit(delta, added, advances)
                    except CommitFailedError:
                        _require_moved(place, version)
                raise StoreConflict(place.location, f"others committed before us {_TRIES} times in a row.")
            except StoreConflict:
                place.discard([action.path for action in added or ()])
                raise

    def delete(self, table: Table, predicate: str) -> int:
        """Delete rows by an SQL predicate, and return how many. Rows that are appended meanwhile may stay. The bytes of those
        deleted stay for who reads older versions (see `purge`), and the predicate in the log: name rows by their place.

        Raises:
            StoreConflict: others changed the same files all the time; nothing was deleted.
        """
        with self.reading(table):
            for _ in _attempts():
                if (delta := self._load(table)) is None:
                    return 0
                version = delta.version()
                try:
                    return int(delta.delete(predicate).get("num_deleted_rows") or 0)
                except CommitFailedError:
                    _require_moved(self._place(table), version)
        raise StoreConflict(self.location(table), f"others changed the same files {_TRIES} times in a row.")

    def compact(self, table: Table) -> int:
        """Put together the small files of each day that has more than `store.compact_files` of them; returns how many were
        replaced. Readers of older versions go on."""
        with self.reading(table):
            delta = self._load(table)
            groups = crowded(delta, self._settings.compact_files) if delta else ()
            return sum(old.height for day, old in groups if replace(self._place(table), day, old))

    def vacuum(self, table: Table) -> int:
        """Remove the files that no version of the last `store.retention_hours` needs; returns how many. The log, too, is kept
        for so long, and for a day at least."""
        hours = math.ceil(self._settings.retention_hours)
        with self.reading(table):
            if (delta := self._load(table)) is None:
                return 0
            wanted = self._configuration(table)
            if wanted.items() - delta.metadata().configuration.items():
                delta.alter.set_table_properties(wanted)
            return _vacuum(delta, hours) + _vacuum(delta, max(hours, _UNDER_WAY_HOURS), full=True)

    def purge(self, table: Table) -> int:
        """Remove the files that the newest version does not need, at once; returns how many. Who still reads an older version
        fails."""
        with self.reading(table):
            delta = self._load(table)
            return _vacuum(delta, 0) if delta else 0

    def _ready(self, table: Table, advances: Advances) -> DeltaTable | None:
        """The table as of now, with the declared columns, if it stands where the batch begins; None: it was just changed."""
        place = self._place(table)
        log = place.log()
        _require_start(place, log.offsets() if log else {}, advances)
        try:
            if log is None:
                schema, properties = Schema(delta_fields(table)), self._configuration(table)
                DeltaTable.create(place.location, schema, mode="error", partition_by="day", configuration=properties)
                return None
            delta = place.load(log.version)
            stored = stored_types(delta)
            require_additive(table, stored, place.location)
            if new := delta_fields(table, stored):
                delta.alter.add_columns(new, commit_properties=CommitProperties(max_commit_retries=0))
                return None
        except CommitFailedError:
            _require_moved(place, None if log is None else log.version)
            return None
        except DeltaError as error:
            if log is None and "already exists" in str(error):
                return None
            raise
        return delta

    def _configuration(self, table: Table) -> dict[str, str]:
        hours = max(math.ceil(self._settings.retention_hours), _UNDER_WAY_HOURS)
        return {
            "delta.checkpointInterval": "10",
            "delta.logRetentionDuration": f"interval {hours} hours",
            "delta.deletedFileRetentionDuration": f"interval {hours} hours",
            "delta.dataSkippingStatsColumns": ",".join(name for name in BOUNDED if name in table.columns),
        }

    def _require_exclusive(self) -> None:
        """Once, before the first write: the store must refuse a second object of the same name, or two writers' commits would
        overwrite each other."""
        if self._exclusive:
            return
        name = f"_exclusive-{uuid.uuid4()}"
        obstore.put(self._store, name, b"", mode="create")
        try:
            obstore.put(self._store, name, b"", mode="create")
        except AlreadyExistsError:
            self._exclusive = True
        finally:
            obstore.delete(self._store, name)
        if not self._exclusive:
            raise StoreError(
                self.url, "it knows no conditional writes, so that two writers would overwrite each other's commits."
            )

    def _place(self, table: Table) -> Place:
        return Place(self._store, self.url, table.name)

    def _load(self, table: Table) -> DeltaTable | None:
        place = self._place(table)
        return place.load(log.version) if (log := place.log()) else None


def _require_start(place: Place, stored: Mapping[str, int], advances: Advances) -> None:
    for name, (start, _) in advances.items():
        if stored.get(name) != start:
            there = f"has come to {stored[name]}" if name in stored else "was never written"
            begins = "is said to be its first" if start is None else f"begins at {start}"
            raise StoreConflict(
                place.location, f"{name} {there}, and the batch {begins}: another writer was there before."
            )


def _require_moved(place: Place, version: int | None) -> None:
    """Within the handling of a refused commit upon a version: the same refusal would come for ever where nobody came before.

    Raises:
        CommitFailedError: the one that is handled.
    """
    log = place.log()
    if (None if log is None else log.version) == version:
        raise  # noqa: PLE0704


def _commit(delta: DeltaTable, added: list[AddAction], advances: Advances) -> None:
    """Commit upon exactly this version of the table.

    Raises:
        CommitFailedError: somebody else did, or the table cannot be written.
    """
    transactions = [Transaction(name, end) for name, (_, end) in advances.items()]
    properties = CommitProperties(app_transactions=transactions, max_commit_retries=0)
    delta.create_write_transaction(
        list(added), "append", delta.schema(), partition_by=["day"], commit_properties=properties
    )


def _vacuum(delta: DeltaTable, hours: int, *, full: bool = False) -> int:
    """Remove the files that were replaced more than so many hours ago; `full`: and those that no commit names, if so old."""
    if not delta.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=full):
        return 0
    return len(delta.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=full))


def _attempts() -> Iterator[int]:
    """Some attempts, with a growing pause of random length before each but the first."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(SystemRandom().uniform(0, min(1.0, 0.01 * 2**attempt)))
        yield attempt


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong below, as a sentence of ours."""
    try:
        yield
    except _FAILURES as error:
        raise StoreError(url, _reason(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how Rust, below deltalake and Polars, tells of its own mistakes
            raise
        raise StoreError(url, _reason(error)) from error


def _reason(error: BaseException) -> str:
    told = _CAUSED_BY.sub(": ", str(error).strip()).partition(": <?xml")[0] or type(error).__name__
    if any(sign in told for sign in _NO_CREDENTIALS):
        return "no credentials for it were found: they come by the usual names of its cloud, such as AWS_ACCESS_KEY_ID."
    return f"{cause(EcluseError(told))}."

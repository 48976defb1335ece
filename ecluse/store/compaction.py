"""Small files of a day are put together into large ones: the same rows, in fewer files, by one commit.

deltalake's own `optimize.compact` is not used: two of them at once double every row (deltalake 1.6.6 rebases its commit,
whatever `max_commit_retries` says, onto one that replaced the same files). Here the commit fails where anybody committed
meanwhile, and is tried again only while each file that it replaces is still one of the table's.
"""

import time
from collections.abc import Iterator
from datetime import date

import polars as pl
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from ecluse.store.files import added, new_path
from ecluse.store.place import Place, files

#: What compaction aims at. Files under half of it are small: any two of them fit into one, so that their number falls.
_FILE_BYTES = 100 * 1024 * 1024
_TRIES = 10


def crowded(delta: DeltaTable, most: int) -> Iterator[tuple[date, pl.DataFrame]]:
    """The days that have more than `most` small files, each with groups of such files (`path`, `size`) that fit into one.

    A table that asks more of its readers than the protocol's first version does is left alone: another writer may have marked
    rows in its files as deleted.
    """
    if delta.protocol().min_reader_version > 1:
        return
    small = files(delta).filter(pl.col("size") < _FILE_BYTES // 2).sort("day", "modification_time")
    for (day,), of_day in small.group_by("day", maintain_order=True):
        if isinstance(day, date) and of_day.height > most:
            for _, group in of_day.group_by(pl.col("size").cum_sum() // _FILE_BYTES, maintain_order=True):
                if group.height > 1:
                    yield day, group.select("path", "size")


def replace(place: Place, day: date, old: pl.DataFrame) -> bool:
    """Write the rows of some files of a day into one, and commit that in their place.

    Returns:
        Whether it was done; False: somebody else replaced one of the files meanwhile, or always came before.

    Raises:
        ValueError: the new file has not as many rows as the old ones.
    """
    delta, path = place.load(), new_path(day)
    try:
        new = _write(place, delta, day, old["path"].to_list(), path)
    except BaseException:
        place.discard([path])
        raise
    now = int(time.time() * 1000)
    removed = [RemoveAction(name, False, now, size, {"day": str(day)}) for name, size in old.iter_rows()]
    for _ in range(_TRIES):
        held = set(files(delta)["path"])
        if path in held:  # the commit was made, and only its answer was lost
            return True
        if not held.issuperset(old["path"]):
            break
        try:
            delta.create_write_transaction(
                [new, *removed],
                "append",
                delta.schema(),
                partition_by=["day"],
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except CommitFailedError:
            delta = place.load()
        else:
            return True
    place.discard([path])
    return False


def _write(place: Place, delta: DeltaTable, day: date, paths: list[str], path: str) -> AddAction:
    schema = {name: kind for name, kind in pl.Schema(delta.schema()).items() if name != "day"}
    uris = [place.uri(name) for name in paths]
    old = pl.scan_parquet(uris, schema=schema, missing_columns="insert", hive_partitioning=False)
    old.sink_parquet(place.uri(path), mkdir=True)
    new = pl.scan_parquet(place.uri(path), hive_partitioning=False)
    made, expected = (frame.select(pl.len()).collect().item() for frame in (new, old))
    if made != expected:
        raise ValueError(f"compaction made {made} rows of {expected}")
    place.settle(path)
    return added(path, day, place.size(path), new, data_change=False)

"""Where a table lies: its files, its log, and the table as of now."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import obstore
import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from obstore.store import LocalStore, ObjectStore, from_url

from ecluse.errors import StoreError
from ecluse.store.log import Log

_SCHEMES = ("s3", "gs", "az")
#: A folder of a disk is not listed at one moment: a commit may seem to be missing that is there.
_LISTINGS = 3


class _Delta(DeltaTable):
    """deltalake gives the files of a folder by URL-encoded paths, which Polars takes as they stand."""

    def file_uris(self, *args: object, **kwargs: object) -> list[str]:
        return [uri if "://" in uri else unquote(uri) for uri in super().file_uris(*args, **kwargs)]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Place:
    """A table's folder: `name` in the root of `store`, which is at `url`."""

    store: ObjectStore
    url: str
    name: str

    @property
    def location(self) -> str:
        """The table's folder or URL."""
        return f"{self.url}/{self.name}"

    def uri(self, path: str) -> str:
        """A file of the table, as Polars opens it."""
        return f"{self.location}/{path}"

    def log(self) -> Log | None:
        """The table's log; None: there is no table."""
        return Log.of(self.store, self.name)

    def load(self, version: int | None = None) -> DeltaTable:
        """The table, as of a version or of now."""
        for _ in range(_LISTINGS):
            try:
                return _Delta(self.location, version)
            except DeltaError as error:
                if "contiguous" not in str(error):
                    raise
        return _Delta(self.location, version)

    def put(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        obstore.put(self.store, f"{self.name}/{path}", data)

    def size(self, path: str) -> int:
        """The bytes of a file."""
        return obstore.head(self.store, f"{self.name}/{path}")["size"]

    def settle(self, path: str) -> None:
        """Have a file on the disk before a commit names it: after a power cut there must be no commit whose rows are gone.
        Object stores see to that themselves."""
        if isinstance(self.store, LocalStore):
            file = Path(self.uri(path))
            for place in (file, file.parent):
                descriptor = os.open(place, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def discard(self, paths: Collection[str]) -> None:
        """Remove files that were written for a commit that was refused. Those that the table holds are left: a commit can be
        made and look refused, where an answer got lost and the request was sent again."""
        held = set(files(self.load())["path"]) if paths and self.log() else set()
        for path in set(paths) - held:
            try:
                obstore.delete(self.store, f"{self.name}/{path}")
            except FileNotFoundError:
                continue


def files(delta: DeltaTable) -> pl.DataFrame:
    """The table's files: `path`, `size` in bytes, `day`, `modification_time`."""
    return pl.DataFrame(delta.get_add_actions(flatten=True)).select(
        "path", pl.col("size_bytes").alias("size"), pl.col("partition.day").alias("day"), "modification_time"
    )


def open_store(url: str) -> tuple[ObjectStore, str]:
    """A folder, made if missing, or an object store; with the path or URL that it goes by from now on.

    Raises:
        StoreError: it is neither, or the folder's path has a character that the libraries below stumble over.
        OSError, ValueError, obstore.exceptions.BaseError: it cannot be used.
    """
    scheme, separator, _ = url.partition(":/")
    if separator and url.startswith(tuple(f"{known}://" for known in _SCHEMES)):
        return from_url(url), url.rstrip("/")
    if not url or (separator and "/" not in scheme):
        raise StoreError(url, "that is neither a folder nor the URL of an object store (s3://…, gs://…, az://…).")
    folder = Path(url).expanduser().absolute()
    if odd := {"%", "="} & set(str(folder)):
        raise StoreError(url, f"the path of its folder must not hold '{odd.pop()}'.")
    return LocalStore(folder, mkdir=True), str(folder)

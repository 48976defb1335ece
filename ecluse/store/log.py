"""What a table's log knows of the topics: for each ``<topic>/<partition>`` the next offset, Delta's application transactions.

`DeltaTable.transaction_version` answers for one of them, and reads the end of the log anew each time; a commit of the sink
needs all of them, so they are read here at once. By Delta's protocol the newest checkpoint holds the last version of each
application, and the commits after it override that.
"""

import re
from dataclasses import dataclass
from typing import Self

import msgspec
import obstore
import polars as pl
from obstore.store import ObjectStore

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet")


class _Application(msgspec.Struct, rename="camel"):
    app_id: str
    version: int


class _Action(msgspec.Struct):
    txn: _Application | None = None


class _Checkpoint(msgspec.Struct):
    version: int


_ACTION = msgspec.json.Decoder(_Action)


@dataclass(frozen=True, slots=True)
class Log:
    """The files of a table's log: of each version its commit, and where there is a checkpoint, its files."""

    store: ObjectStore
    commits: dict[int, str]
    checkpoints: dict[int, list[str]]

    @classmethod
    def of(cls, store: ObjectStore, table: str) -> Self | None:
        """List the log of the table in the folder `table`; None: there is no table.

        From the checkpoint on that the log names as its newest: a week's log has tens of thousands of files. A folder of a disk
        is not listed at one moment: where a commit seems to be missing, the whole is listed again.
        """
        folder = f"{table}/_delta_log/"
        for since in (_last_checkpoint(store, folder), None, None, None):
            log = cls._listed(store, folder, since)
            if not log.missing and (log.checkpoints or since is None):
                break
        return log if log.commits or log.checkpoints else None

    @classmethod
    def _listed(cls, store: ObjectStore, folder: str, since: int | None) -> Self:
        commits: dict[int, str] = {}
        checkpoints: dict[int, list[str]] = {}
        offset = None if since is None else f"{folder}{since:020}"
        for entry in obstore.list(store, prefix=folder, offset=offset).collect():
            name = entry["path"].rsplit("/", 1)[-1]
            if found := _COMMIT.fullmatch(name):
                commits[int(found[1])] = entry["path"]
            elif found := _CHECKPOINT.fullmatch(name):
                checkpoints.setdefault(int(found[1]), []).append(entry["path"])
        return cls(store, commits, checkpoints)

    @property
    def version(self) -> int:
        """The table's newest version."""
        return max([*self.commits, *self.checkpoints])

    @property
    def missing(self) -> list[int]:
        """The versions since the newest checkpoint that have no commit, which no log has."""
        base = max(self.checkpoints, default=-1)
        return [number for number in range(base + 1, max(self.commits, default=base)) if number not in self.commits]

    def offsets(self) -> dict[str, int]:
        """The next offset of each application, as of the newest version.

        Raises:
            ValueError: a commit is missing.
            msgspec.DecodeError, polars.exceptions.PolarsError: one cannot be read.
        """
        if self.missing:
            raise ValueError(f"the commit {self.missing[0]} is missing from its log")
        base = max(self.checkpoints, default=-1)
        offsets: dict[str, int] = {}
        for path in self.checkpoints.get(base, ()):
            applications = pl.read_parquet(self._read(path), columns=["txn"]).drop_nulls().unnest("txn")
            offsets.update(applications.select("appId", "version").drop_nulls().iter_rows())
        for number in range(base + 1, self.version + 1):
            for action in _ACTION.decode_lines(self._read(self.commits[number])):
                if action.txn is not None:
                    offsets[action.txn.app_id] = action.txn.version
        return offsets

    def _read(self, path: str) -> bytes:
        return bytes(obstore.get(self.store, path).bytes())


def _last_checkpoint(store: ObjectStore, folder: str) -> int | None:
    """The version of the newest checkpoint that a log names; None: it names none."""
    try:
        return msgspec.json.decode(
            bytes(obstore.get(store, f"{folder}_last_checkpoint").bytes()), type=_Checkpoint
        ).version
    except (FileNotFoundError, msgspec.MsgspecError):
        return None

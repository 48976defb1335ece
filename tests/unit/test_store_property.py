"""Several writers of one table, with crashes, zombies and upkeep in any order: every record is there once, in order."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

import ecluse.store.delta
from ecluse.contract.tables import PREDICTIONS
from ecluse.errors import StoreConflict
from ecluse.store.delta import TrainingStore

from .stores import app, open_store, places, rows

PARTITIONS = 2


class Writer:
    """A sink as it is between two commits: where it believes that each partition stands."""

    def __init__(self, store: TrainingStore) -> None:
        self.store = store
        self.start()

    def start(self) -> None:
        """As after a crash, or an assignment."""
        offsets = self.store.offsets(PREDICTIONS)
        self.believed = {part: offsets.get(app(part)) for part in range(PARTITIONS)}


class Tables(RuleBasedStateMachine):
    writers = Bundle("writers")

    @initialize(target=writers)
    def begin(self) -> Writer:
        self.folder = Path(tempfile.mkdtemp())
        self.stored = dict.fromkeys(range(PARTITIONS), 0)
        return Writer(open_store(self.folder, compact_files=2, retention_hours=0))

    @rule(target=writers)
    def another(self) -> Writer:
        return Writer(open_store(self.folder, compact_files=2, retention_hours=0))

    @rule(
        writer=writers,
        parts=st.sets(st.integers(0, PARTITIONS - 1), min_size=1),
        size=st.integers(0, 4),
        crashes=st.booleans(),
        rival=st.none() | writers,
        upkeep=st.booleans(),
    )
    def append(
        self, writer: Writer, parts: set[int], size: int, crashes: bool, rival: Writer | None, upkeep: bool
    ) -> None:
        """A batch from where the writer believes to stand. Before its commit others may come, and after it, it may crash."""

        def others() -> None:
            if rival is not None and rival is not writer:
                self.commit(rival, {min(parts)}, 2)
            if upkeep:
                writer.store.compact(PREDICTIONS)

        write, once = ecluse.store.delta.write, [others]

        def written(*args: object) -> object:
            actions = write(*args)  # type: ignore[arg-type]
            if once:
                once.pop()()
            return actions

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ecluse.store.delta, "write", written)
            done = self.commit(writer, parts, size)
        if done and not crashes:
            writer.start()

    def commit(self, writer: Writer, parts: set[int], size: int) -> bool:
        advances = {app(part): (writer.believed[part], (writer.believed[part] or 0) + size) for part in parts}
        batch = rows(0, 0, 0)
        for part in sorted(parts):
            batch = batch.vstack(rows(part, advances[app(part)][0] or 0, advances[app(part)][1], days=part))
        try:
            writer.store.append(PREDICTIONS, batch, advances)
        except StoreConflict:
            assert any(writer.believed[part] != writer.store.offsets(PREDICTIONS).get(app(part)) for part in parts)
            return False
        for part in parts:
            assert (writer.believed[part] or 0) == self.stored[part]
            self.stored[part] += size
        return True

    @rule(writer=writers)
    def reads_again(self, writer: Writer) -> None:
        writer.start()

    @rule(writer=consumes(writers))
    def ends(self, writer: Writer) -> None:
        """For good."""

    @rule(writer=writers)
    def compacts(self, writer: Writer) -> None:
        writer.store.compact(PREDICTIONS)

    @rule(writer=writers, now=st.booleans())
    def vacuums(self, writer: Writer, now: bool) -> None:
        (writer.store.purge if now else writer.store.vacuum)(PREDICTIONS)

    @invariant()
    def every_record_is_there_once(self) -> None:
        store = open_store(self.folder)
        assert places(store) == [(part, at) for part in range(PARTITIONS) for at in range(self.stored[part])]
        offsets = store.offsets(PREDICTIONS)
        assert {part: offsets.get(app(part), 0) for part in range(PARTITIONS)} == self.stored

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


Tables.TestCase.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTables = Tables.TestCase

"""A case of the chaos suite: a fresh stream under load, its workers, and the count of every event at the end."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ecluse import cluster
from ecluse.contract.records import BYPASS, BypassSample, Prediction
from ecluse.model.registry import read_registry
from ecluse.settings import Settings
from tests.chaos.brokers import Broker
from tests.chaos.fleet import Fleet, Member
from tests.chaos.load import Load
from tests.chaos.proxy import Proxy
from tests.chaos.watch import Watch, unfinished
from tests.counted import require_counted_once
from tests.workers import audited, records, wait_until

#: How long the workers may take to commit all events after the load has ended, in seconds.
CATCH_UP = 150.0


@dataclass(frozen=True)
class Result:
    """What became of a case."""

    name: str
    seed: str
    events: int
    missing: int
    doubled: int
    seconds: float
    silence: float

    @property
    def row(self) -> str:
        """Its line in the table; `silence` is the longest time without a prediction in any partition, in seconds."""
        counts = f"{self.events:9,}  {self.missing:7,}  {self.doubled:7,}"
        return f"{counts}  {self.seconds:7.1f}  {self.silence:7.2f}  {self.name}"


@dataclass
class Case:
    """What a case needs. `chance` is seeded: moments, rates, victims and partitions come from it."""

    name: str
    seed: str
    settings: Settings
    folder: Path
    events: int
    broker: Broker | None = None
    proxy: Proxy | None = None
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed}/{self.name}")
        through = self.broker.proxied if self.proxy and self.broker else self.settings.kafka.bootstrap_servers
        kafka = self.settings.kafka.model_copy(update={"bootstrap_servers": through})
        self.fleet = Fleet(self.settings.model_copy(update={"kafka": kafka}), self.folder)
        self.watch = Watch(self.settings)
        self.load: Load | None = None
        self.result: Result | None = None

    @property
    def exactly_once(self) -> bool:
        """Whether nothing may double."""
        return self.settings.worker.delivery == "exactly_once"

    # -- while it runs -----------------------------------------------------------------------------------------------------

    def begin(self, workers: int, **load: int) -> list[Member]:
        """Start workers, wait until each has its share, then the load; returns them."""
        members = [self.fleet.start(f"slot-{i}") for i in range(workers)]
        self.fleet.share(workers)
        self.begin_load(**load)
        return members

    def begin_load(self, **load: int) -> None:
        """Start the load, and wait until some of it came out."""
        self.load = Load(
            self.settings, self.chance, load.pop("rate", self.chance.randint(2_000, 4_000)), self.events, **load
        )
        self.load.start()
        self.watch.start()
        wait_until("predictions come", lambda: self.watch.count > 0)

    def pause(self, least: float, most: float) -> float:
        """Let the load run for a time that the seed chooses, in seconds."""
        seconds = self.chance.uniform(least, most)
        time.sleep(seconds)
        return seconds

    def flowing(self, *, revive: bool = False) -> None:
        """Wait until predictions come again, then let them for a while."""
        before = self.watch.count
        self._until("predictions come again", lambda: self.watch.count > before, revive)
        time.sleep(2.0)

    def freeze(self, member: Member) -> None:
        """SIGSTOP; in exactly-once at a moment when a transaction of this worker is open at the broker."""
        held = member.partitions
        assert held, "the worker holds no partition"

        def frozen() -> bool:
            member.signal(signal.SIGSTOP)
            time.sleep(0.05)  # what it had sent arrives
            if not self.exactly_once or self.open(held):
                return True
            member.signal(signal.SIGCONT)
            time.sleep(self.chance.uniform(0.0, 0.05))
            return False

        wait_until("a transaction is open", frozen)

    def kill_in_transaction(self, *members: Member) -> None:
        """SIGKILL in mid-transaction."""
        held = [(member, member.partitions) for member in members]
        for member in members:
            self.freeze(member)
        for member in members:
            member.kill()
        for _, partitions in held:
            assert not self.exactly_once or self.open(partitions), "no transaction was open at the kill"

    def open(self, partitions: set[int]) -> dict[int, int]:
        """The partitions, of these, of the predictions in which a transaction is open, and where it begins."""
        return unfinished(self.settings, self.settings.names.predictions, partitions)

    # -- the end -----------------------------------------------------------------------------------------------------------

    def finish(self, *, revive: bool = False) -> Result:
        """End the load, wait until the group has committed all, stop the workers, and hold the audit against what was sent.

        Args:
            revive: start workers anew that gave up, as an orchestrator does.
        """
        assert self.load is not None
        sent = self.load.finish()
        self._until("all is scored", lambda: self._committed() == sent, revive)
        self._until("all transactions have ended", self._all_ended, revive)
        codes = self.fleet.stop_all()
        assert set(codes) == {0}, f"told to stop, the workers exited with {codes}"
        assert self.fleet.codes <= {0, 1, -signal.SIGKILL}, f"workers exited with {self.fleet.codes}"
        report = audited(self.settings)
        wait_until("a reader has seen all that is committed", lambda: self.watch.count >= report.predictions)
        self.watch.end()
        self.result = Result(
            self.name,
            self.seed,
            sent,
            report.missing,
            report.doubled,
            time.monotonic() - self.began,
            self.watch.silence,
        )
        assert (report.events, report.missing, report.waiting, report.stray) == (sent, 0, 0, 0), report.verdict
        assert report.doubled == 0 or not self.exactly_once, report.verdict
        assert self.watch.count == report.predictions
        assert report.dead_letters == self.load.poisoned or not self.exactly_once
        self._require_samples()
        if self.exactly_once:
            require_counted_once(self.settings)
        return self.result

    def _require_samples(self) -> None:
        """Each event that went past the model has its sample, and no other has one; exactly one where nothing may double."""
        switched = read_registry(self.settings).switches.get(self.settings.model_name)
        predictions = records(self.settings, self.settings.names.predictions, Prediction)
        past = Counter(made.source for made in predictions if made.arm == BYPASS)
        samples = Counter(made.source for made in records(self.settings, self.settings.names.bypass, BypassSample))
        assert bool(past) == (switched is not None)
        assert samples.keys() == past.keys()
        assert not self.exactly_once or samples == past

    def _until(self, what: str, condition: Callable[[], bool], revive: bool) -> None:
        def reached() -> bool:
            if revive:
                self.fleet.revive()
            assert self.fleet.running, "no worker runs"
            return condition()

        wait_until(what, reached, CATCH_UP)

    def _committed(self) -> int:
        return sum(offset or 0 for offset in cluster.committed_offsets(self.settings).values())

    def _all_ended(self) -> bool:
        names = self.settings.names
        return not any(
            unfinished(self.settings, topic, range(self.settings.topics.partitions))
            for topic in (names.predictions, names.alerts, names.bypass, names.dead_letters)
        )

    def end(self) -> None:
        """Leave nothing running."""
        self.fleet.end()
        self.watch.end()
        if self.load is not None and self.load.is_alive():
            self.load.finish()

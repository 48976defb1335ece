"""Sinks are killed and frozen while records of every kind flow: each record is in its table once."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from console.audit_store import audit_store
from ecluse import cluster
from ecluse.settings import Settings
from tests.chaos.case import CATCH_UP, Result
from tests.chaos.conftest import RESULTS, SEED, Variant
from tests.conftest import MakeSettings
from tests.sinks import Records, counts, start_sink
from tests.workers import DEADLINE, WorkerProcess, wait_until

pytestmark = pytest.mark.timeout(400)

#: Records of a turn of the load, and the wait between two turns, in seconds.
TURN, PAUSE = 200, 0.1


class Flow(threading.Thread):
    """Events, predictions, samples and labels, until it is finished; now and then a transaction that is aborted."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        super().__init__(name="store-load", daemon=True)
        self._records, self._chance = Records(settings), chance
        self._ending = threading.Event()
        self._failure: BaseException | None = None
        self.labels = 0

    def run(self) -> None:
        """Send a turn after the other."""
        try:
            while not self._ending.wait(PAUSE):
                if self._chance.random() < 0.05:
                    self._records.abort(10)
                labels = self._chance.randrange(20)
                self._records.send(TURN, labels=labels)
                self.labels += labels
        except BaseException as error:
            self._failure = error

    def finish(self) -> dict[str, int]:
        """End it; how many rows each table is to have."""
        self._ending.set()
        self.join(DEADLINE)
        assert self._failure is None, self._failure
        sent = self._records.sent
        return {"events": sent, "predictions": sent, "bypass": sent // 10, "labels": self.labels}


class Stored:
    """A stream that is stored by sinks, which come and go."""

    def __init__(self, name: str, seed: str, settings: Settings) -> None:
        self.name, self.seed, self.settings = name, seed, settings
        self.chance = random.Random(f"{seed}/{name}")
        self.sinks: list[WorkerProcess] = []
        self.flow = Flow(settings, self.chance)
        self._began = time.monotonic()

    def start(self, slot: str) -> WorkerProcess:
        """Start a sink in a slot."""
        running = start_sink(self.settings, env={"ECLUSE_WORKER__SLOT": slot})
        self.sinks.append(running)
        return running

    def finish(self) -> Result:
        """End the load, wait until all of it is stored, stop the sinks, and audit."""
        wanted = self.flow.finish()

        def stored() -> bool:
            assert any(sink.process.poll() is None for sink in self.sinks), self.sinks[-1].text
            return counts(self.settings) == wanted

        wait_until(f"the tables hold {wanted}", stored, CATCH_UP)
        running = [sink for sink in self.sinks if sink.process.poll() is None]
        assert [sink.stop() for sink in running] == [0] * len(running)
        report = audit_store(self.settings, everything=True)
        assert report.holds, report.verdict
        assert report.total("rows") == sum(wanted.values())
        missing, doubled = report.total("missing"), report.total("doubled")
        seconds = time.monotonic() - self._began
        return Result(self.name, self.seed, report.total("records"), missing, doubled, seconds, 0.0)


@pytest.fixture
def stored(
    request: pytest.FixtureRequest, variant: Variant, servers: str, make_settings: MakeSettings, tmp_path: Path
) -> Iterator[Stored]:
    """A stream under load, whose store commits all the time."""
    mark = request.node.get_closest_marker("chaos")
    settings = make_settings(
        servers,
        store={"url": str(tmp_path / "store"), "commit_seconds": 0.3, "commit_rows": 500},
        worker={"session_timeout_seconds": 6} | mark.kwargs.get("worker", {}),
    )
    cluster.create_topics(settings)
    made = Stored(request.node.name, f"{request.config.stash[SEED]}/{variant.round}", settings)
    with ExitStack() as stack:
        stack.callback(lambda: [sink.process.kill() for sink in made.sinks])
        stack.callback(lambda: made.flow.is_alive() and made.flow.finish())
        made.flow.start()
        yield made


@pytest.mark.chaos(seconds=100, some=True, worker={"static_member": True, "slot": "a"})
def test_sinks_are_killed_at_random_moments(stored: Stored, request: pytest.FixtureRequest) -> None:
    """Two share the partitions; one after the other is killed, twenty times, and comes back in its slot at once."""
    few = str(request.config.getoption("chaos")) == "some"
    running = {slot: stored.start(slot) for slot in ("a", "b")}
    for sink in running.values():
        sink.wait_ready()
    for _ in range(2 if few else 20):
        slot = stored.chance.choice(["a", "b"])
        time.sleep(stored.chance.uniform(0.0, 2.0))
        assert running[slot].process.poll() is None, running[slot].text
        assert running[slot].stop(signal.SIGKILL) == -signal.SIGKILL
        running[slot] = stored.start(slot)
        if stored.chance.random() < 0.7:  # else it is killed while it comes back, or the other meanwhile
            running[slot].wait_ready()
    request.config.stash[RESULTS].append(stored.finish())


@pytest.mark.chaos(seconds=40, some=True)
def test_a_sink_is_frozen_past_its_session_and_wakes(stored: Stored, request: pytest.FixtureRequest) -> None:
    """Others have stored what it had in hand: it must find that out, and write none of it."""
    zombie, other = stored.start("a"), stored.start("b")
    for sink in (zombie, other):
        sink.wait_ready()
    wait_until("both have rows in hand", lambda: all("rows 0.0" not in pending(sink) for sink in (zombie, other)))
    time.sleep(stored.chance.uniform(0.0, 1.0))
    assignments = other.text.count("assigned partitions")
    zombie.process.send_signal(signal.SIGSTOP)
    wait_until("the other takes over", lambda: other.text.count("assigned partitions") > assignments)
    taken_over = counts(stored.settings)["events"]
    wait_until("it stores what the frozen one had", lambda: counts(stored.settings)["events"] > taken_over + 2 * TURN)
    zombie.process.send_signal(signal.SIGCONT)
    wait_until("the woken one knows, and is back", lambda: "lost partitions" in zombie.text and ready(zombie))
    request.config.stash[RESULTS].append(stored.finish())


def pending(sink: WorkerProcess) -> str:
    """The metric of the rows that a sink has in hand."""
    page = sink.get("/metrics")[1]
    return next((line for line in page.splitlines() if line.startswith("ecluse_store_pending_rows ")), "rows 0.0")


def ready(sink: WorkerProcess) -> bool:
    """Whether a sink runs and does its work."""
    assert sink.process.poll() is None, sink.text
    return sink.get("/health/ready")[0] == 200

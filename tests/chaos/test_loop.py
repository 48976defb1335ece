"""Monitors are killed and frozen while profiles flow: all that they say, they say once, as one that nothing befalls."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ecluse import cluster
from ecluse.settings import Settings
from tests.artefacts import publish_small
from tests.chaos.brokers import Broker
from tests.chaos.case import CATCH_UP, Result
from tests.chaos.conftest import RESULTS, SEED, Variant
from tests.conftest import MakeSettings
from tests.profiles import MONITOR, Profiles, reports, requests, start_monitor, undisturbed
from tests.workers import DEADLINE, WorkerProcess, wait_until

pytestmark = pytest.mark.timeout(400)

#: The wait between two windows of profiles, in seconds.
PAUSE = 0.1
#: So many windows are steady, then so many drift, again and again.
STEADY, DRIFTING = 9, 6


class Flow(threading.Thread):
    """Profiles of window after window, some of them drifting, until it is finished."""

    def __init__(self, profiles: Profiles) -> None:
        super().__init__(name="profiles", daemon=True)
        self._profiles = profiles
        self._ending = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Send a window after the other."""
        try:
            while not self._ending.wait(PAUSE):
                self._profiles.send(1, drifting=self._profiles.windows % (STEADY + DRIFTING) >= STEADY)
        except BaseException as error:
            self._failure = error

    def finish(self) -> None:
        """End it."""
        self._ending.set()
        self.join(DEADLINE)
        assert self._failure is None, self._failure


class Watched:
    """A stream whose profiles flow, and the monitors that come and go."""

    def __init__(self, name: str, seed: str, settings: Settings) -> None:
        self.name, self.seed, self.settings = name, seed, settings
        self.chance = random.Random(f"{seed}/{name}")
        self.monitors: list[WorkerProcess] = []
        self.manifest = publish_small(settings)
        self.flow = Flow(Profiles(settings, self.manifest))
        self._began = time.monotonic()

    def start(self, slot: str) -> WorkerProcess:
        """Start a monitor in a slot."""
        running = start_monitor(self.settings, {"ECLUSE_WORKER__SLOT": slot})
        self.monitors.append(running)
        return running

    def finish(self) -> Result:
        """End the flow, wait until all of it is judged, stop the monitors, and compare."""
        self.flow.finish()
        expected = undisturbed(self.settings, self.manifest)

        def done() -> bool:
            assert any(each.process.poll() is None for each in self.monitors), self.monitors[-1].text
            return len({report.key for report in reports(self.settings)}) >= len(expected.reports)

        wait_until(f"there are {len(expected.reports)} reports", done, CATCH_UP)
        running = [each for each in self.monitors if each.process.poll() is None]
        assert [each.stop() for each in running] == [0] * len(running)
        told, asked = reports(self.settings), requests(self.settings)
        assert told == list(expected.reports)
        assert asked == list(expected.requests)
        assert len(asked) > 0
        return Result(self.name, self.seed, len(told) + len(asked), 0, 0, time.monotonic() - self._began, 0.0)


def watched_stream(
    request: pytest.FixtureRequest, variant: Variant, servers: str, make_settings: MakeSettings, static: bool
) -> Watched:
    """A stream on a broker, whose monitor judges hours."""
    worker = {"session_timeout_seconds": 6} | ({"static_member": True, "slot": "a"} if static else {})
    settings = make_settings(servers, stream={"clock": "event"}, monitor=MONITOR, worker=worker)
    cluster.create_topics(settings)
    return Watched(request.node.name, f"{request.config.stash[SEED]}/{variant.round}", settings)


@pytest.fixture
def watched(
    request: pytest.FixtureRequest, variant: Variant, servers: str, make_settings: MakeSettings
) -> Iterator[Watched]:
    """Such a stream on the shared broker, with profiles flowing."""
    static = request.node.get_closest_marker("chaos").kwargs.get("worker", {}).get("static_member", False)
    made = watched_stream(request, variant, servers, make_settings, static)
    with flowing(made):
        yield made


def flowing(made: Watched) -> ExitStack:
    """Have the profiles flow; at the end nothing is left running."""
    stack = ExitStack()
    stack.callback(lambda: [each.process.kill() for each in made.monitors])
    stack.callback(lambda: made.flow.is_alive() and made.flow.finish())
    made.flow.start()
    return stack


@pytest.mark.chaos(seconds=70, worker={"static_member": True})
def test_a_monitor_is_killed_at_random_moments(watched: Watched, request: pytest.FixtureRequest) -> None:
    """It comes back in its slot at once, and is killed again, while it starts, reads its state back, or writes."""
    running = watched.start("a")
    running.wait_ready()
    for _ in range(15):
        time.sleep(watched.chance.uniform(0.0, 2.0))
        assert running.process.poll() is None, running.text
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        running = watched.start("a")
        if watched.chance.random() < 0.7:  # else it is killed while it comes back
            running.wait_ready()
    request.config.stash[RESULTS].append(watched.finish())


@pytest.mark.chaos(seconds=40)
def test_a_monitor_is_frozen_past_its_session_and_wakes(watched: Watched, request: pytest.FixtureRequest) -> None:
    """Another has taken over: what the first one had in hand must not be said again."""
    zombie = watched.start("a")
    zombie.wait_ready()
    other = watched.start("b")
    other.wait_ready()
    wait_until("the first one writes", lambda: bool(reports(watched.settings)))
    time.sleep(watched.chance.uniform(0.0, 1.0))
    zombie.process.send_signal(signal.SIGSTOP)
    wait_until("the other takes over", lambda: "assigned partitions [0]" in other.text)
    taken_over = len(reports(watched.settings))
    wait_until("it goes on", lambda: len(reports(watched.settings)) > taken_over + 5)
    zombie.process.send_signal(signal.SIGCONT)
    wait_until("the woken one knows", lambda: "lost partitions" in zombie.text)
    request.config.stash[RESULTS].append(watched.finish())


@pytest.mark.chaos(seconds=60)
def test_the_broker_is_killed_under_a_monitor(
    request: pytest.FixtureRequest, variant: Variant, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """It waits for the broker, and goes on in the same process."""
    broker = Broker(tmp_path / "broker", {})
    with ExitStack() as stack:
        stack.callback(broker.stop)
        broker.start()
        watched = watched_stream(request, variant, broker.servers, make_settings, static=False)
        stack.enter_context(flowing(watched))
        running = watched.start("a")
        running.wait_ready()
        for _ in range(2):
            before = len(reports(watched.settings))
            wait_until("it reports", lambda before=before: len(reports(watched.settings)) > before + 2)
            broker.kill()
            time.sleep(watched.chance.uniform(0.0, 3.0))
            broker.start()
        request.config.stash[RESULTS].append(watched.finish())
        assert len(watched.monitors) == 1

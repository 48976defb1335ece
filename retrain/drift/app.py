"""The Faust app of the monitor: one agent, which has every chunk folded in a thread, and one task, which gives them back."""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from faust.types import StreamT

from ecluse import cluster, kafka
from ecluse.health import HealthServer
from ecluse.settings import Settings
from ecluse.transport.driver import ChunkApp, make_app, run, watchdog_of
from ecluse.transport.hand import Limits
from ecluse.transport.ledger import Chunk, Output
from ecluse.transport.owner import OwnerConfig
from retrain.drift.monitor import RESTORE_SECONDS, Monitor
from retrain.drift.references import Stopping
from retrain.drift.state import group_of
from retrain.drift.telemetry import MonitorHealth, MonitorTelemetry

logger = logging.getLogger(__name__)

#: Chunks of which nothing is to be said are given back together, so that there is a transaction a second and not one a profile:
#: a monitor that dies reads them again.
GATHER_SECONDS = 1.0
#: So many profiles are a chunk at most, and so many are given back at once …
CHUNK_RECORDS = 2000
#: … and what may be in hand, which bounds memory in a backlog.
RECORDS, BYTES = 4 * CHUNK_RECORDS, 32 * 1024 * 1024


def run_monitor(settings: Settings) -> None:
    """Watch the stream until SIGTERM or SIGINT. Does not return: the process exits, with 1 where the monitor cannot go on.

    Raises:
        TopicsWrong: the topics are not as the stream needs them.
        SettingsError: the address of the metrics cannot be used.
    """
    # Until Faust takes it over: the first process of a container has no handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    telemetry, health = MonitorTelemetry(), MonitorHealth()
    with ExitStack() as stack:
        host, port = settings.monitor.metrics_host, settings.monitor.metrics_port
        server = stack.enter_context(HealthServer(telemetry.registry, health, host, port, section="monitor"))
        logger.info("metrics and health at http://%s (/metrics, /health/live, /health/ready)", server.address)
        kafka.once_reachable(cluster.require_topics, settings)
        monitor = Monitor(settings, telemetry, health)
        thread = stack.enter_context(ThreadPoolExecutor(1, "ecluse-monitor"))
        stack.callback(monitor.stop)  # before the thread is joined
        app = monitor_app(settings, monitor, thread, health, server.port)
        run(app)


def monitor_app(
    settings: Settings, monitor: Monitor, thread: ThreadPoolExecutor, health: MonitorHealth, port: int
) -> ChunkApp:
    """The app. Its group elects who watches, and fences who did; where the profiles are read from, the state says."""
    group, session = group_of(settings), settings.worker.session_timeout_seconds
    config = OwnerConfig(
        topics=[settings.names.profiles],
        consumer=kafka.member_config(settings, group, port),
        producer=kafka.transactional_config(settings, f"{group}-{kafka.slot(settings.worker)}", session),
        commit_interval=settings.worker.commit_interval_seconds,
        start=monitor.starts,
        limits=Limits(chunk_records=CHUNK_RECORDS, chunks=None, records=RECORDS, bytes=BYTES, wait=0.02),
    )
    app = make_app(group, config, watchdog_seconds=watchdog_of(session) + session + RESTORE_SECONDS)
    hand = _Hand(app)

    @app.agent(app.topic(settings.names.profiles))
    async def watch(stream: StreamT[list[Chunk]]) -> None:
        health.progress = app.owner.progress
        async for chunks in stream:
            try:
                for chunk in chunks:
                    hand.add(chunk, await _folded(app, monitor, thread, chunk))
            except Stopping:
                return
            except Exception as error:
                # Faust would go on. What was not committed waits for the next monitor.
                logger.critical("the monitor stops: %s", error)
                await app.crash(error)
                raise

    async def give_back() -> None:
        while True:
            await asyncio.sleep(GATHER_SECONDS / 4)
            hand.give_back_when_due()

    app.task(give_back)
    return app


async def _folded(app: ChunkApp, monitor: Monitor, thread: ThreadPoolExecutor, chunk: Chunk) -> Sequence[Output]:
    """What comes of a chunk; nothing where its partition is not ours any more, or is read again."""
    if not app.owner.live(chunk):
        return ()
    return await asyncio.get_running_loop().run_in_executor(thread, monitor, chunk)


class _Hand:
    """Chunks that were folded and not given back."""

    def __init__(self, app: ChunkApp) -> None:
        self._app = app
        self._folded: list[tuple[Chunk, Sequence[Output]]] = []
        self._records = 0
        self._since = 0.0

    def add(self, chunk: Chunk, outputs: Sequence[Output]) -> None:
        """Take in a chunk; one that says something is given back at once, with those before it."""
        if not self._folded:
            self._since = time.monotonic()
        self._folded.append((chunk, outputs))
        self._records += len(chunk.records)
        self.give_back_when_due(bool(outputs))

    def give_back_when_due(self, due: bool = False) -> None:
        """Give all back, if `due`, or if they are many or old enough."""
        late = bool(self._folded) and time.monotonic() - self._since >= GATHER_SECONDS
        if due or late or self._records >= CHUNK_RECORDS:
            folded, self._folded, self._records = self._folded, [], 0
            for chunk, outputs in folded:
                self._app.owner.done(chunk, outputs)

"""The Faust app of the sink: one agent, which puts every chunk into the sink, and one task, which commits."""

import logging
import signal
import sys
from contextlib import ExitStack

import polars as pl
from faust.types import StreamT

from ecluse import cluster, kafka
from ecluse.health import HealthServer
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from ecluse.store.schema import polars_schema
from ecluse.transport.driver import ChunkApp, make_app, run, watchdog_of
from ecluse.transport.ledger import Chunk
from ecluse.transport.owner import OwnerConfig
from ingest.sink import Sink, group_of
from ingest.sink_parts import feeds_of
from ingest.sink_telemetry import SinkHealth, SinkTelemetry

logger = logging.getLogger(__name__)

#: How often the group's offsets are committed, by which the lag is told, in seconds.
LAG_SECONDS = 1.0


def run_store(settings: Settings, *, past_lost: bool = False) -> None:
    """Store the stream until SIGTERM or SIGINT. Does not return: the process exits, with 1 where the sink cannot go on.

    Args:
        settings: the stream's.
        past_lost: go on behind records that were deleted before they were stored.

    Raises:
        TopicsWrong: the topics are not as the stream needs them.
        SettingsError: the address of the metrics or the key of private fields cannot be used.
        StoreError: the store's location cannot be used.
    """
    # Until Faust takes it over: the first process of a container has no handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    telemetry, health = SinkTelemetry(), SinkHealth(settings.store)
    with ExitStack() as stack:
        host, port = settings.store.metrics_host, settings.store.metrics_port
        server = stack.enter_context(HealthServer(telemetry.registry, health, host, port, section="store"))
        logger.info("metrics and health at http://%s (/metrics, /health/live, /health/ready)", server.address)
        kafka.once_reachable(cluster.require_topics, settings)
        if past_lost:
            skip_lost(settings)
        sink = stack.enter_context(Sink(settings, telemetry, lambda: app.owner))
        app = store_app(settings, sink, health, server.port)
        run(app)


def skip_lost(settings: Settings) -> None:
    """Have the tables go on behind what retention deleted before it was stored, and say what that was.

    Raises:
        StoreError: a table cannot be written.
        KafkaException: the broker does not answer.
    """
    store, feeds = TrainingStore(settings), feeds_of(settings)
    with kafka.reader(settings) as consumer:
        for topic, feed in feeds.items():
            for place, stored in store.offsets(feed.table).items():
                name, _, number = place.rpartition("/")
                if name != topic:
                    continue
                low, _ = kafka.watermarks(consumer, topic, int(number))
                if low > stored:
                    store.append(feed.table, pl.DataFrame(schema=polars_schema(feed.table)), {place: (stored, low)})
                    lost = f"{low - stored:,} offsets, {stored} to {low - 1},"
                    logger.warning(
                        "Of %s, %s were deleted before they were stored: the sink goes on behind.", place, lost
                    )


def store_app(settings: Settings, sink: Sink, health: SinkHealth, port: int) -> ChunkApp:
    """The app. Its group is a matter of who holds which partition; where they are read from, the tables say."""
    group, topics = group_of(settings), list(sink.feeds)
    config = OwnerConfig(
        topics=topics,
        consumer=kafka.member_config(settings, group, port),
        producer=kafka.producer_config(settings),
        commit_interval=LAG_SECONDS,
        start=sink.starts,
        limits=sink.limits,
    )
    app = make_app(group, config, watchdog_seconds=watchdog_of(settings.worker.session_timeout_seconds))

    @app.agent(app.topic(*topics))
    async def gather(stream: StreamT[list[Chunk]]) -> None:
        health.progress = app.owner.progress
        async for chunks in stream:
            try:
                sink.take_in(chunks)
            except Exception as error:
                await stop(error)

    async def commit() -> None:
        try:
            await sink.run()
        except Exception as error:
            await stop(error)

    async def stop(error: Exception) -> None:
        """Faust would go on. What is in no table waits for the next sink."""
        logger.critical("the sink stops: %s", error)
        await app.crash(error)
        raise error

    app.task(commit)
    return app

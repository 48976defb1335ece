"""A worker: a warm model, then a Faust app whose agent puts chunks through the pipeline, always with the newest model."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from faust.types import TP, StreamT

from ecluse import cluster, kafka
from ecluse.health import HealthServer
from ecluse.kafka import member_name
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.driver import ChunkApp, make_app, run, watchdog_of
from ecluse.transport.ledger import Chunk
from ecluse.transport.owner import OwnerConfig
from scoring.budget import Budget
from scoring.health import Health
from scoring.live import LiveModel
from scoring.pipeline import Pipeline
from scoring.profiles import Profiles
from scoring.standby import Standby

New = TypeVar("New")
logger = logging.getLogger(__name__)


def run_worker(settings: Settings, start: cluster.Where | None = None, *, standby: bool = False) -> None:
    """Score the stream until SIGTERM or SIGINT. Does not return: the process exits, with 1 where the worker cannot go on.

    Args:
        settings: the stream's.
        start: where to begin in partitions in which the group has no offset yet.
        standby: wait outside the group, warm, and be in it only while work waits (see `scoring.standby`).

    Raises:
        TopicsWrong: the topics are not as the stream needs them.
        SettingsError: no model could be trusted, or the address of the metrics cannot be used.
    """
    telemetry, health = Telemetry(), Health(member_name(), settings.worker.stuck_after_seconds)
    with ExitStack() as stack:
        host, port = settings.worker.metrics_host, settings.worker.metrics_port
        server = stack.enter_context(HealthServer(telemetry.registry, health, host, port, {"/model": health.model}))
        logger.info("metrics and health at http://%s (/metrics, /health/live, /health/ready)", server.address)
        kafka.once_reachable(cluster.require_topics, settings)
        if start is not None:
            kafka.once_reachable(cluster.seed_offsets, settings, start)
        models = health.models = stack.enter_context(LiveModel(settings, telemetry))
        profiles = Profiles(settings, member_name(), telemetry)
        health.pipeline = Pipeline(settings, models.first(), member_name(), telemetry, profiles)
        health.waits = standby
        watch = stack.enter_context(Standby(settings, health)) if standby else None
        stack.enter_context(
            Budget(settings, models.switch, lambda: controls(settings, health), health.pipeline.last_times)
        )
        app = worker_app(settings, models, health.pipeline, profiles, health, server.port, watch)
        run(app)


def controls(settings: Settings, health: Health) -> bool:
    """Whether this worker keeps the bypass' budget: the one that holds partition 0 of the events does."""
    return health.progress is not None and TP(settings.names.events, 0) in health.progress.lag


def worker_app(
    settings: Settings,
    models: LiveModel,
    pipeline: Pipeline,
    profiles: Profiles,
    health: Health,
    port: int,
    watch: Standby | None,
) -> ChunkApp:
    """The Faust app of a worker: one agent, which puts every chunk through the pipeline.

    Partitions that come are read once the newest route's model is ready and the newest switch is obeyed: whoever had them may
    have scored by both already.
    """
    session = settings.worker.session_timeout_seconds
    config = OwnerConfig(
        topics=[settings.names.events],
        consumer=kafka.member_config(settings, settings.group, port),
        producer=kafka.producer_config(settings)
        if settings.worker.delivery == "at_least_once"
        else kafka.transactional_config(settings, f"{settings.group}-{kafka.slot(settings.worker)}", session),
        commit_interval=settings.worker.commit_interval_seconds,
        admit=models.up_to_date,
        seal=profiles.seal,
    )
    stand_by = watch.begin if watch else None
    app = make_app(settings.group, config, watchdog_seconds=watchdog_of(session), stand_by=stand_by)

    @app.agent(app.topic(settings.names.events))
    async def score(stream: StreamT[list[Chunk]]) -> None:
        health.progress = app.owner.progress
        models.hand_over_to(between_chunks(pipeline.serve))
        models.switch.hand_over_to(between_chunks(pipeline.obey))
        async for chunks in stream:
            try:
                score_chunks(app, pipeline, chunks)
            except Exception as error:
                # Faust would acknowledge what failed and go on. Uncommitted, it waits for the next worker.
                logger.critical("scoring failed, the worker stops: %s", error)
                await app.crash(error)
                raise
            await asyncio.sleep(0)

    return app


def between_chunks(take: Callable[[New], None]) -> Callable[[New], None]:
    """Have the pipeline take something new between two chunks: the loop scores a chunk in one step. Called on the loop."""
    loop = asyncio.get_running_loop()

    def hand(new: New) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(take, new)

    return hand


def score_chunks(app: ChunkApp, pipeline: Pipeline, chunks: list[Chunk]) -> None:
    """Score the chunks whose partitions are still ours, and give all of them back."""
    owner = app.owner
    live = [chunk for chunk in chunks if owner.live(chunk)]
    started = time.perf_counter()
    records = sum(len(chunk.records) for chunk in live)
    outputs = pipeline(live)
    owner.pace(time.perf_counter() - started, records)
    for chunk, output in zip(live, outputs, strict=True):
        owner.done(chunk, output)
    for chunk in chunks:
        if chunk.outputs is None:
            owner.done(chunk, ())

"""A worker: a warm model, then a Faust app whose agent puts chunks through the pipeline."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
import uuid
from contextlib import ExitStack

import faust
from faust.types import StreamT

from ecluse import cluster, kafka
from ecluse.errors import ModelNotFound
from ecluse.settings import Settings, WorkerSettings
from ecluse.telemetry import Telemetry
from ecluse.transport.driver import ChunkApp, make_app
from ecluse.transport.ledger import Chunk
from ecluse.transport.owner import OwnerConfig
from scoring.champion import Champion, load_champion
from scoring.health import Health, HealthServer
from scoring.pipeline import Pipeline
from scoring.standby import Standby

logger = logging.getLogger(__name__)

#: While a broker is away, single calls into librdkafka have taken 20 s: no reason to give up a warm model.
WATCHDOG_SECONDS = 60.0
#: How often a worker without a champion looks for one, in seconds.
LOOK_FOR_CHAMPION = 1.0


def run_worker(settings: Settings, start: cluster.Where | None = None, *, standby: bool = False) -> None:
    """Score the stream until SIGTERM or SIGINT. Does not return: the process exits, with 1 where the worker cannot go on.

    Args:
        settings: the stream's.
        start: where to begin in partitions in which the group has no offset yet.
        standby: wait outside the group, warm, and be in it only while work waits (see `scoring.standby`).

    Raises:
        TopicsWrong: the topics are not as the stream needs them.
        ModelRefused: the champion's artefact must not be served.
    """
    # Until Faust takes it over: the first process of a container has no handler of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    telemetry, health = Telemetry(), Health(settings.worker.stuck_after_seconds)
    with ExitStack() as stack:
        host, port = settings.worker.metrics_host, settings.worker.metrics_port
        server = stack.enter_context(HealthServer(telemetry, health, host, port))
        logger.info("metrics and health at http://%s (/metrics, /health/live, /health/ready)", server.address)
        kafka.once_reachable(cluster.require_topics, settings)
        if start is not None:
            kafka.once_reachable(cluster.seed_offsets, settings, start)
        pipeline = Pipeline(settings, kafka.once_reachable(await_champion, settings), worker_name(), telemetry)
        health.warm, health.waits = True, standby
        # What is loaded by now stays. Walked by the garbage collector again and again, it held the loop for 40 ms at a time.
        gc.collect()
        gc.freeze()
        watch = stack.enter_context(Standby(settings, pipeline, health)) if standby else None
        app = worker_app(settings, pipeline, health, watch)
        worker = faust.Worker(app, quiet=True, override_logging=False, redirect_stdouts=False)
        worker.spinner = None
        worker.execute_from_commandline()


def await_champion(settings: Settings) -> Champion:
    """The champion, loaded and warm; waits outside the group until there is one.

    Raises:
        ModelRefused: the champion's artefact must not be served.
    """
    told = ""
    while True:
        try:
            return load_champion(settings)
        except ModelNotFound as error:
            if str(error) != told:
                told = str(error)
                logger.warning("%s The worker waits outside the group.", told)
            time.sleep(LOOK_FOR_CHAMPION)


def worker_app(settings: Settings, pipeline: Pipeline, health: Health, watch: Standby | None) -> ChunkApp:
    """The Faust app of a worker: one agent, which puts every chunk through the pipeline."""
    session = settings.worker.session_timeout_seconds
    config = OwnerConfig(
        topics=[settings.names.events],
        consumer=kafka.consumer_config(settings, settings.group) | membership(settings.worker, settings.group),
        producer=kafka.producer_config(settings)
        if settings.worker.delivery == "at_least_once"
        else kafka.transactional_config(settings, f"{settings.group}-{slot(settings.worker)}", session),
        commit_interval=settings.worker.commit_interval_seconds,
    )
    watchdog = max(WATCHDOG_SECONDS, 2 * session)
    app = make_app(settings.group, config, watchdog_seconds=watchdog, stand_by=watch.begin if watch else None)

    @app.agent(app.topic(settings.names.events))
    async def score(stream: StreamT[list[Chunk]]) -> None:
        health.progress = app.owner.progress
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


def membership(worker: WorkerSettings, group: str) -> kafka.Config:
    """How a worker is a member of its group. With KIP-848 the broker holds the session and picks the partitions."""
    session = worker.session_timeout_seconds
    config: kafka.Config = {
        "max.poll.interval.ms": max(600_000, int(session * 1e3)),
        "queued.min.messages": 100_000,
        "queued.max.messages.kbytes": 64 * 1024,
        # A partition's share of an answer. With more, a backlog is read in long runs of one partition, and the others wait.
        "fetch.message.max.bytes": 512 * 1024,
    }
    if worker.static_member:
        config["group.instance.id"] = f"{group}-{worker.slot}"
    if worker.group_protocol == "consumer":
        return config | {"group.protocol": "consumer"}
    return config | {
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(session * 1e3),
        "heartbeat.interval.ms": min(500, int(session * 1e3 / 3)),  # a partition that moves waits for heartbeats
    }


def slot(worker: WorkerSettings) -> str:
    """The worker's place in its group; where none is set, one that no other has."""
    return worker.slot or f"{worker_name()}-{uuid.uuid4().hex[:8]}"


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


def worker_name() -> str:
    """This process among all workers: host and pid."""
    return f"{socket.gethostname()}-{os.getpid()}"

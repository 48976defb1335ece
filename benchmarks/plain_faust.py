"""Plain Faust on its stock driver (aiokafka): the same work on each event, every send confirmed before its event is acked.

``one``: an event at a time, the model at batch 1. ``take``: lists of up to 500, one model call each, sends gathered.
Both lose events where an exception leaves the agent: Faust acks the event that failed (``one``), or the whole list and what
the drainer reads until the agent is back (``take``). Neither happens here: nothing fails in a benchmark.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import faust

from benchmarks.work import CONTENT_TYPE, Work

HEADERS = [CONTENT_TYPE]

TAKE = 500
WITHIN_SECONDS = 0.1


def make_app(work: Work, group: str, style: str, datadir: str) -> faust.App:
    """An app with one agent of the given style."""
    app = faust.App(
        group,
        broker=f"kafka://{work.settings.kafka.bootstrap_servers}",
        store="memory://",
        datadir=datadir,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=10,
        broker_heartbeat_interval=3,
        producer_acks=-1,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
    )
    events = app.topic(work.settings.names.events)
    predictions = app.topic(work.settings.names.predictions)

    async def score(batch: list[Any]) -> None:
        messages = [event.message for event in batch]
        values = work([(message.key, message.value, message.partition, message.offset) for message in messages])
        futures = [
            await predictions.send(key=message.key, value=value, partition=message.partition, headers=HEADERS)
            for message, value in zip(messages, values, strict=True)
        ]
        await asyncio.gather(*futures)

    async def one(stream: Any) -> None:
        async for event in stream.events():
            await score([event])

    async def take(stream: Any) -> None:
        async for batch in stream.take_events(TAKE, within=WITHIN_SECONDS):
            await score(batch)

    app.agent(events)({"one": one, "take": take}[style])
    return app


if __name__ == "__main__":
    config, group_id, agent_style, folder = sys.argv[1:]
    faust.Worker(
        make_app(Work(Path(config)), group_id, agent_style, folder), loglevel="WARN", redirect_stdouts=False
    ).execute_from_commandline()

"""The real command line in tests, and records on the topics as a worker would have left them."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec
from click.testing import Result
from confluent_kafka import Consumer, Producer, TopicPartition
from typer.testing import CliRunner

from console.config import as_toml
from console.main import app
from ecluse import kafka
from ecluse.contract.codecs import Encoding, encoder
from ecluse.contract.headers import Headers, dead_letter_headers
from ecluse.contract.records import Decision, Prediction, Source
from ecluse.errors import RecordError, Stage
from ecluse.settings import Settings, shown


def config_file(settings: Settings) -> Path:
    """The settings as a file, beside the test's model store."""
    path = Path(settings.model.store).parent / "ecluse.toml"
    path.write_text(as_toml(shown(settings)), encoding="utf-8")
    return path


def ecluse(settings: Settings | None, *args: str) -> Result:
    """Run `ecluse ARGS` in this process. What it raises is in the result, as for any click command."""
    config = () if settings is None else ("--config", str(config_file(settings)))
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, [*args, *config])


def json_of(result: Result) -> dict[str, object]:
    """The one JSON object that a command printed."""
    found = msgspec.json.decode(result.stdout)
    assert isinstance(found, dict)
    return found


def produce(
    settings: Settings,
    topic: str,
    records: Iterable[tuple[int, bytes | None, Headers]],
    transactional_id: str | None = None,
    *,
    abort: bool = False,
) -> None:
    """Produce (partition, value, headers) and wait until the broker has them; in one transaction where it has an id."""
    config: dict[str, object] = {
        "bootstrap.servers": settings.kafka.bootstrap_servers,
        "linger.ms": 5,
        "queue.buffering.max.messages": 1_000_000,
    }
    producer = Producer(config | ({"transactional.id": transactional_id} if transactional_id else {}))
    if transactional_id:
        producer.init_transactions(10)
        producer.begin_transaction()
    for number, (partition, value, headers) in enumerate(records):
        producer.produce(topic, value, key=b"card-1", partition=partition, headers=list(headers))
        if number % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0
    if transactional_id and abort:
        producer.abort_transaction(10)
    elif transactional_id:
        producer.commit_transaction(10)


def commit(settings: Settings, offsets: dict[int, int]) -> None:
    """Commit the workers' offsets."""
    places = [TopicPartition(settings.names.events, partition, offset) for partition, offset in offsets.items()]
    with closing(Consumer(kafka.consumer_config(settings, settings.group))) as consumer:
        kafka.once_coordinated(consumer.commit, offsets=places, asynchronous=False)


def prediction(settings: Settings, partition: int, offset: int, encoding: Encoding = "msgpack") -> bytes:
    """The prediction of the event at an offset."""
    record = Prediction(
        event_id=f"e-{offset}",
        entity="card-1",
        event_time=1.7e9,
        scored_at=1.7e9,
        model="m",
        version=1,
        arm="champion",
        propensity=1.0,
        score=0.25,
        decision=Decision.ALLOW,
        threshold=0.5,
        route_revision=1,
        source=Source(settings.names.events, partition, offset),
    )
    return encoder(encoding)(record)


def dead_letter(
    settings: Settings,
    partition: int,
    offset: int,
    value: bytes | None = b"broken",
    *,
    stage: Stage = Stage.DECODE,
    reason: str = "The event is neither a JSON nor a msgpack object.",
    headers: Headers = (),
) -> tuple[int, bytes | None, Headers]:
    """The dead letter of the event at an offset, to produce."""
    source = Source(settings.names.events, partition, offset)
    error = RecordError(stage, reason)
    return partition, value, dead_letter_headers(headers, source, error, app=settings.group, worker="w-1")

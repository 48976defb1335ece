"""What every contestant stands on: a broker of its own, generated events, a trained model, and a group's start."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, OffsetSpec

from console import broker
from ecluse import cluster, kafka
from ecluse.settings import Settings, load
from ingest.generator import generate

SEED = 7
TRAINING_ROWS = 100_000
#: Rows of a generated day, so that a set of any size spans the two months in which every kind of fraud is there.
DAYS, PER_DAY = 60, 1.92
ECLUSE = str(Path(sys.executable).with_name("ecluse"))


class Ground:
    """A stream on a running broker, with `events` events waiting in it."""

    def __init__(self, folder: Path, config: Path, events: int) -> None:
        self.folder, self.config, self.events = folder, config, events
        self.settings: Settings = load(config)
        self._admin: AdminClient = kafka.admin(self.settings)

    def ends(self, topic: str) -> list[int]:
        """The offset after the last record of each partition, committed or not, or transaction marker; one request."""
        places = [TopicPartition(topic, partition) for partition in range(self.settings.topics.partitions)]
        futures = self._admin.list_offsets({place: OffsetSpec.latest() for place in places}, request_timeout=10)
        return [futures[place].result(10).offset for place in places]

    @contextmanager
    def counter(self, group: str) -> Iterator[Callable[[], int]]:
        """Counts the events that a group has committed: one request a call, over a connection that stays open.

        The events are written by a plain producer, so their offsets count events and nothing else.
        """
        places = [TopicPartition(self.settings.names.events, p) for p in range(self.settings.topics.partitions)]
        # A reader of committed records would be told of no offsets while a transaction that moves them is open.
        config = kafka.consumer_config(self.settings, group) | {"isolation.level": "read_uncommitted"}
        with closing(Consumer(config)) as consumer:

            def count() -> int:
                return sum(max(0, place.offset) for place in kafka.once_coordinated(consumer.committed, places, 10.0))

            yield count

    def store_uncompressed(self) -> None:
        """Let the broker keep events uncompressed: aiokafka cannot read the lz4 of our producers without another package."""
        entry = ConfigEntry("compression.type", "uncompressed", incremental_operation=AlterConfigOpType.SET)
        events = ConfigResource(ConfigResource.Type.TOPIC, self.settings.names.events, incremental_configs=[entry])
        for future in self._admin.incremental_alter_configs([events]).values():
            future.result(10)

    def start_at(self, group: str, backlog: int) -> None:
        """Put the group's offsets so that `backlog` events wait for it, spread over the partitions as they are."""
        ends = self.ends(self.settings.names.events)
        left, places = backlog, []
        for partition, end in enumerate(ends):
            waiting = left if partition == len(ends) - 1 else round(backlog * end / sum(ends))
            left -= waiting
            places.append(TopicPartition(self.settings.names.events, partition, end - waiting))
        deadline = time.monotonic() + 30
        with closing(Consumer(kafka.consumer_config(self.settings, group))) as consumer:
            while True:
                try:
                    kafka.once_coordinated(consumer.commit, offsets=places, asynchronous=False)
                except KafkaException:  # a member that was killed is still in the group
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)
                else:
                    return


@contextmanager
def ground(
    folder: Path, events: int, partitions: int, *, settings: dict[str, str] | None = None, script: str = "default"
) -> Iterator[Ground]:
    """Broker, topics, model and events in `folder`; the broker is stopped at the end.

    Args:
        folder: an empty one.
        events: how many are published.
        partitions: of the topics.
        settings: of the broker, over the usual ones.
        script: what trains the model.
    """
    data = folder / "broker"
    try:
        servers = broker.start(data, 0, settings).servers
        customers = max(200, round(max(events, TRAINING_ROWS) * 1.1 / (DAYS * PER_DAY)))
        frame = generate(SEED, DAYS, customers=customers, terminals=2 * customers, per_day=PER_DAY)
        training, file = folder / "training.parquet", folder / "events.parquet"
        frame.gather_every(max(1, frame.height // TRAINING_ROWS)).write_parquet(training)
        frame.head(events).write_parquet(file)
        config = folder / "ecluse.toml"
        run(
            folder, "init", str(training), "--config", str(config)
        )  # with a whole path, those of the keys are whole too
        text = config.read_text(encoding="utf-8").replace("[kafka]", f'[kafka]\nbootstrap_servers = "{servers}"')
        places = f'store = "{folder / "models"}"\ncache = "{folder / "cache"}"'
        text = text.replace("[model]", f'[model]\nscript = "{script}"\n{places}')
        config.write_text(f"{text}\n[topics]\npartitions = {partitions}\n", encoding="utf-8")
        run(folder, "topics", "create")
        run(folder, "model", "train", str(training))
        made = Ground(folder, config, events)
        made.store_uncompressed()
        run(folder, "publish", str(file))
        if (there := sum(made.ends(made.settings.names.events))) != events:
            raise RuntimeError(f"{there} events are there where {events} were published")
        cluster.require_topics(made.settings)
        yield made
    finally:
        broker.stop(data)


def run(folder: Path, *arguments: str) -> None:
    """Run an `ecluse` command in `folder`; its output is shown only where it fails."""
    done = subprocess.run([ECLUSE, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ecluse {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")

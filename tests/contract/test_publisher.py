"""The publisher on a real broker: confirmed means it is there, and an outage holds back instead of losing."""

import asyncio
import datetime as dt
import random
import string
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Message, TopicPartition

from console import broker as dev_broker
from ecluse import cluster, kafka
from ecluse.contract.headers import read_envelope
from ecluse.errors import BrokerUnreachable, DeliveryError, RecordError, TopicsWrong
from ecluse.settings import Settings
from ingest import Publisher
from tests.conftest import MakeSettings

EVENT = {"transaction_id": "t-1", "customer_id": "c-1", "amount": 12.5, "terminal_risk_30d": 0.0, "night": 0}
WAIT = 30.0


def read_events(settings: Settings) -> list[Message]:
    """Everything that the events topic holds."""
    ends = cluster.end_offsets(settings, settings.names.events)
    starts = cluster.end_offsets(settings, settings.names.events, "earliest")
    wanted = sum(ends.values()) - sum(starts.values())
    found: list[Message] = []
    with kafka.reader(settings) as consumer:
        consumer.assign([TopicPartition(settings.names.events, p, offset) for p, offset in starts.items()])
        deadline = time.monotonic() + WAIT
        while len(found) < wanted:
            assert time.monotonic() < deadline
            found += [message for message in consumer.consume(10_000, 0.5) if not message.error()]
    return found


def java_murmur2(data: bytes) -> int:
    """`Utils.murmur2` of Apache Kafka's Java client, made positive as its partitioner does."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


def noise(size: int) -> str:
    """Text that does not compress."""
    return "".join(random.Random(size).choices(string.ascii_letters + string.digits, k=size))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 what is waited for is the broker's doing
            await asyncio.sleep(0.01)


async def test_a_confirmed_event_stands_where_the_publisher_says(stream: Settings) -> None:
    async with Publisher(stream) as publisher:
        events = [EVENT | {"transaction_id": f"t-{i}", "customer_id": f"c-{i % 7}"} for i in range(500)]
        places = await asyncio.gather(*(publisher.publish(event) for event in events))
        assert (publisher.confirmed, publisher.unconfirmed) == (500, 0)
    stored = {
        (m.topic(), m.partition(), m.offset()): msgspec.json.decode(m.value() or b"") for m in read_events(stream)
    }
    assert len(stored) == 500
    for place, event in zip(places, events, strict=True):
        assert stored[place.topic, place.partition, place.offset] == event


async def test_headers_are_those_of_a_cloud_event_and_kafka_keeps_its_own_time(stream: Settings) -> None:
    happened = dt.datetime(2020, 2, 3, 4, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    before = time.time()
    async with Publisher(stream, source="/shop/checkout", kind="com.shop.payment") as publisher:
        await publisher.publish(EVENT, id="e-1", time=happened)
        await publisher.publish(EVENT)
        await publisher.publish({"amount": 1.0})
    said, from_field, made_up = sorted(read_events(stream), key=lambda m: -len(m.headers() or []))
    headers = dict(said.headers() or [])
    assert headers == {
        "content-type": b"application/json",
        "ce_specversion": b"1.0",
        "ce_id": b"e-1",
        "ce_source": b"/shop/checkout",
        "ce_type": b"com.shop.payment",
        "ce_time": b"2020-02-03T04:05:06+01:00",
    }
    envelope = read_envelope(said.headers() or [], said.value())
    assert (envelope.id, envelope.time, envelope.json) == ("e-1", happened.timestamp(), True)
    assert said.timestamp()[1] / 1e3 >= before - 1
    ids = {dict(m.headers() or [])["ce_id"] for m in (from_field, made_up)}
    assert b"t-1" in ids
    assert len(ids) == 2


async def test_msgpack_says_so_in_its_content_type(stream: Settings) -> None:
    async with Publisher(stream, encoding="msgpack") as publisher:
        await publisher.publish(EVENT)
    [message] = read_events(stream)
    assert dict(message.headers() or [])["content-type"] == b"application/msgpack"
    assert msgspec.msgpack.decode(message.value() or b"") == EVENT


class Payment(msgspec.Struct):
    customer_id: str
    amount: float


async def test_a_struct_is_an_event_and_its_key_field_the_key(stream: Settings) -> None:
    async with Publisher(stream) as publisher:
        await publisher.publish(Payment("c-9", 3.5))
        await publisher.publish(Payment("c-9", 3.5), key="other")
    assert {m.key() for m in read_events(stream)} == {b"c-9", b"other"}


def test_the_reference_partitioner_agrees_with_kafkas_own_test_values() -> None:
    # From `UtilsTest.testMurmur2` of Apache Kafka.
    for text, value in {"21": -973932308, "foobar": -790332482, "abc": 479470107}.items():
        assert java_murmur2(text.encode()) == value & 0x7FFFFFFF


async def test_a_key_goes_to_the_partition_that_the_java_client_chooses(stream: Settings) -> None:
    keys = [f"card-{i}" for i in range(200)]
    async with Publisher(stream) as publisher:
        places = await asyncio.gather(*(publisher.publish(EVENT, key=key) for key in keys))
    assert [place.partition for place in places] == [java_murmur2(key.encode()) % 4 for key in keys]


async def test_events_of_one_key_keep_the_order_in_which_they_were_published(stream: Settings) -> None:
    async with Publisher(stream, max_unconfirmed=3) as publisher:
        places = await asyncio.gather(*(publisher.publish(EVENT | {"night": i}, key="c") for i in range(300)))
    assert [place.offset for place in places] == sorted(place.offset for place in places)


async def test_an_event_that_is_too_large_is_refused_at_once_with_its_size_and_the_limit(
    servers: str, make_settings: MakeSettings
) -> None:
    settings = make_settings(servers, topics={"max_message_bytes": 2_000})
    cluster.create_topics(settings)
    async with Publisher(settings) as publisher:
        with pytest.raises(DeliveryError, match=r"it has 5,\d+ bytes, and the limit is 2,000"):
            await publisher.publish({"amount": 1.0, "note": "x" * 5_000})
        # At any size up to the limit, alone or many in a batch, the broker takes what the publisher takes.
        accepted = 0
        for size in range(1_500, 2_001, 16):
            try:
                await publisher.publish({"note": noise(size)}, id="i", key="k")
                accepted += 1
            except DeliveryError as error:
                assert "the limit is 2,000" in str(error)  # the publisher's own word, not the broker's
                break
        assert 5 < accepted < 30
        await asyncio.gather(*(publisher.publish({"note": noise(500)}) for _ in range(50)))
    assert len(read_events(settings)) == accepted + 50


async def test_an_event_that_cannot_be_encoded_is_refused_with_a_sentence(stream: Settings) -> None:
    async with Publisher(stream) as publisher:
        with pytest.raises(RecordError, match="cannot be encoded"):
            await publisher.publish({"amount": object()})


async def test_a_publisher_that_is_not_open_says_so(stream: Settings) -> None:
    publisher = Publisher(stream)
    with pytest.raises(DeliveryError, match="not open"):
        await publisher.publish(EVENT)


async def test_without_its_topic_or_a_broker_it_does_not_open(
    servers: str, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TopicsWrong, match="ecluse topics create"):
        await Publisher(make_settings(servers)).__aenter__()
    monkeypatch.setattr(kafka, "PATIENCE", 0.5)
    with pytest.raises(BrokerUnreachable):
        await Publisher(make_settings()).__aenter__()


async def test_a_refusal_by_the_broker_reaches_the_caller(servers: str, make_settings: MakeSettings) -> None:
    """The topic allows less than the settings say: only the broker notices."""
    settings = make_settings(servers, topics={"max_message_bytes": 2_000})
    cluster.create_topics(settings)
    larger = settings.model_copy(update={"topics": settings.topics.model_copy(update={"max_message_bytes": 50_000})})
    async with Publisher(larger) as publisher:
        with pytest.raises(DeliveryError, match="too large"):
            await publisher.publish({"note": noise(20_000)})
        await publisher.publish(EVENT)
    with pytest.raises(DeliveryError, match="too large"):
        async with Publisher(larger) as publisher:
            await publisher.publish_encoded([(None, noise(20_000).encode())])
    assert len(read_events(settings)) == 1


@pytest.fixture
def own_broker() -> Iterator[tuple[Path, dev_broker.RunningBroker]]:
    """A broker of one test's own, to be killed and started again on its folder."""
    with tempfile.TemporaryDirectory(prefix="ecluse-outage-") as folder:
        data = Path(folder)
        try:
            yield data, dev_broker.start(data, port=0)
        finally:
            dev_broker.stop(data)


def kill(broker: dev_broker.RunningBroker) -> None:
    process = broker.process()
    assert process is not None
    process.kill()
    process.wait(WAIT)


async def test_while_the_broker_is_dead_events_wait_within_the_bound_and_none_is_lost(
    own_broker: tuple[Path, dev_broker.RunningBroker], make_settings: MakeSettings
) -> None:
    data, broker = own_broker
    settings = make_settings(broker.servers)
    cluster.create_topics(settings)
    places: dict[int, tuple[int, int]] = {}

    async def publish(number: int) -> None:
        place = await publisher.publish({"amount": float(number)}, id=f"e-{number}", key=f"c-{number % 11}")
        places[number] = place.partition, place.offset

    async with Publisher(settings, max_unconfirmed=100) as publisher:
        tasks = [asyncio.create_task(publish(number)) for number in range(1_000)]
        await until(lambda: len(places) >= 200)
        await asyncio.to_thread(kill, broker)
        more = [asyncio.create_task(publish(number)) for number in range(1_000, 2_000)]
        await until(lambda: publisher.unconfirmed == 100)
        confirmed = len(places)
        with pytest.raises(TimeoutError):  # nothing moves, and nothing more is taken
            await asyncio.wait_for(asyncio.shield(asyncio.gather(*tasks, *more)), 1)
        assert publisher.unconfirmed == 100
        assert len(places) == confirmed < 2_000
        await asyncio.to_thread(dev_broker.start, data, broker.port)
        async with asyncio.timeout(WAIT):
            await asyncio.gather(*tasks, *more)
    assert stored_numbers(settings) == {number: [place] for number, place in places.items()}
    assert len(places) == 2_000


def stored_numbers(settings: Settings) -> dict[int, list[tuple[Any, Any]]]:
    found: dict[int, list[tuple[Any, Any]]] = {}
    for message in read_events(settings):
        number = int(msgspec.json.decode(message.value() or b"")["amount"])
        found.setdefault(number, []).append((message.partition(), message.offset()))
    return found


async def test_leaving_without_a_broker_raises_what_is_not_confirmed_and_hides_no_error(
    own_broker: tuple[Path, dev_broker.RunningBroker], make_settings: MakeSettings
) -> None:
    _, broker = own_broker
    settings = make_settings(broker.servers)
    cluster.create_topics(settings)
    other = await Publisher(settings, flush_seconds=0.2).__aenter__()
    with pytest.raises(DeliveryError, match=r"3 records were not confirmed within 0\.5 s"):
        async with Publisher(settings, flush_seconds=0.5) as publisher:
            await publisher.publish(EVENT)
            await asyncio.to_thread(kill, broker)
            waiting = [asyncio.create_task(publisher.publish(EVENT)) for _ in range(3)]
            await until(lambda: publisher.unconfirmed == 3)
    assert publisher.confirmed == 1
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, DeliveryError) for result in results)

    await other.publish_encoded([(b"k", b"{}")])
    error = LookupError()
    await other.__aexit__(LookupError, error, None)
    assert "1 records were not confirmed" in error.__notes__[0]

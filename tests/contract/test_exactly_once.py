"""Transactions on a real broker: what a slot ends, who is fenced, and what becomes of an open one when the broker dies."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Consumer, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from faust.types import TP

from console import broker as dev_broker
from ecluse import cluster, kafka
from ecluse.settings import Settings
from ecluse.transport.ledger import Ledger, Output
from ecluse.transport.transactions import Aborted, ExactlyOnce
from tests.conftest import MakeSettings
from tests.workers import (
    WorkerProcess,
    audited,
    events,
    json_values,
    read_all,
    scored,
    send,
    train_champion,
    wait_until,
    worker,
)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[dev_broker.RunningBroker]:
    """A broker that the test may kill."""
    try:
        yield dev_broker.start(tmp_path / "broker", port=0)
    finally:
        dev_broker.stop(tmp_path / "broker")


def trained(settings: Settings, folder: Path) -> Settings:
    cluster.create_topics(settings)
    train_champion(settings, folder)
    return settings


def held_back(client: AdminClient, settings: Settings) -> int:
    """How many records of the predictions belong to open transactions, so that readers of committed ones wait."""
    places = [TopicPartition(settings.names.predictions, partition) for partition in range(settings.topics.partitions)]
    sums = []
    for level in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED):
        asked = client.list_offsets({place: OffsetSpec.latest() for place in places}, isolation_level=level)
        sums.append(sum(asked[place].result(10).offset for place in places))
    return sums[0] - sums[1]


def kill_in_mid_transaction(running: WorkerProcess, client: AdminClient, settings: Settings) -> None:
    """SIGSTOP until a transaction is seen open, then SIGKILL: its records stay without an end."""

    def stopped_inside() -> bool:
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(0.02)  # what was on its way to the broker arrives
        if held_back(client, settings):
            return True
        running.process.send_signal(signal.SIGCONT)
        return False

    wait_until("a transaction is open", stopped_inside)
    running.stop(signal.SIGKILL)


def test_a_restart_in_the_same_slot_ends_the_open_transaction_of_the_killed_worker_at_once(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    # A session, and with it a transaction's time-out, far beyond the test's deadlines.
    settings = trained(make_settings(servers, worker={"slot": "a", "session_timeout_seconds": 300}), tmp_path)
    client = kafka.admin(settings)
    send(settings, json_values(events(20_000)) * 5)
    with worker(settings) as first:
        kill_in_mid_transaction(first, client, settings)
    assert held_back(client, settings) > 0
    with worker(settings, ready=False):
        wait_until("readers go on", lambda: held_back(client, settings) == 0, 30)


def test_of_two_workers_in_one_slot_the_first_is_fenced_and_both_go_on_without_loss_or_doubles(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = trained(make_settings(servers, worker={"slot": "same"}), tmp_path)
    values = json_values(events(15_000))
    send(settings, values)
    with worker(settings) as first:
        wait_until("the first works", scored(settings, 1))
        with worker(settings) as second:
            send(settings, values)
            wait_until("the first is fenced", lambda: "a new one takes its place" in first.text)
            wait_until("all are scored", scored(settings, 30_000))
            assert second.stop() == 0
        assert first.stop() == 0
    report = audited(settings)
    assert (report.events, report.missing, report.doubled) == (30_000, 0, 0)


def test_a_broker_killed_under_an_open_transaction_and_restarted_never_hangs_the_client(
    own_broker: dev_broker.RunningBroker, make_settings: MakeSettings
) -> None:
    """The reason for the client library's pin: with 2.16.1 `send_offsets_to_transaction` never comes back from this.

    The transaction must outlive the outage: one that the broker has ended is refused at once, by any version.
    """
    settings = make_settings(own_broker.servers)
    cluster.create_topics(settings)
    send(settings, [b"x"] * 10, partition=0)
    outcome: list[Any] = []
    inside, go_on = threading.Event(), threading.Event()

    def client() -> None:
        group = kafka.consumer_config(settings, settings.group) | kafka.membership(settings.worker, settings.group)
        delivery = ExactlyOnce(kafka.transactional_config(settings, f"{settings.group}-a", 60), 0.1, lambda: None)
        delivery.ready()
        with closing(Consumer(group)) as consumer:
            consumer.subscribe([settings.names.events], on_assign=lambda _, places: consumer.incremental_assign(places))
            wait_until("it is a member", lambda: consumer.poll(0.1) is not None)
            ledger = Ledger(TP(settings.names.events, 0))
            for offset in range(10):
                ledger.add([], offset, offset + 1, 0.0).outputs = [Output(settings.names.predictions, None, b"y", None)]
                delivery.produce_scored(ledger)
                if offset < 4:  # the coordinators are known by the time of the kill
                    delivery.finish(consumer, [ledger], [ledger], 10.0)
            delivery.serve(0.1)
            inside.set()
            assert go_on.wait(60)
            try:
                delivery.finish(consumer, [ledger], [ledger], 60.0)
                outcome.append("committed")
            except Aborted:
                outcome.append("aborted")
            wait_until("a producer is ready again", lambda: delivery.ready() is None, 60)

    thread = threading.Thread(target=client, daemon=True)
    thread.start()
    assert inside.wait(30)
    process = own_broker.process()
    assert process is not None
    process.kill()
    psutil.wait_procs([process], timeout=20)
    go_on.set()
    dev_broker.start(Path(own_broker.data), own_broker.port)
    thread.join(60)
    assert not thread.is_alive(), "the client hangs"
    seen = [message.value() for message in read_all(settings, settings.names.predictions)]
    assert seen == [b"y"] * (10 if outcome == ["committed"] else 4)


def test_a_worker_outlives_an_outage_longer_than_its_transactions_with_its_model_warm(
    own_broker: dev_broker.RunningBroker, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = trained(make_settings(own_broker.servers, worker={"session_timeout_seconds": 3}), tmp_path)
    send(settings, json_values(events(20_000)) * 3)
    broker = own_broker.process()
    assert broker is not None
    with worker(settings) as running:
        wait_until("it works", scored(settings, 1))
        broker.suspend()  # connections stay, and nobody answers
        try:
            silent_until = time.monotonic() + 8
            while time.monotonic() < silent_until:
                assert running.get("/health/live")[0] == 200
                time.sleep(0.2)
        finally:
            broker.resume()
        wait_until("all are scored", scored(settings, 60_000))
        assert running.stop() == 0
    report = audited(settings)
    assert (report.events, report.missing, report.doubled) == (60_000, 0, 0)


def test_the_consumer_protocol_shares_the_partitions_and_loses_and_doubles_nothing(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = trained(make_settings(servers, worker={"group_protocol": "consumer"}), tmp_path)
    values = json_values(events(5_000))
    with worker(settings) as first:
        send(settings, values)
        with worker(settings) as second:
            wait_until(
                "both hold partitions",
                lambda: all("ecluse_assigned_partitions 2.0" in each.get("/metrics")[1] for each in (first, second)),
            )
            send(settings, values)
            assert second.stop() == 0
        send(settings, values)
        wait_until("all are scored", scored(settings, 15_000))
    report = audited(settings)
    assert (report.events, report.missing, report.doubled) == (15_000, 0, 0)


def test_a_static_member_that_comes_back_within_its_session_moves_nothing(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    def rebalances(running: WorkerProcess) -> str:
        return next(line for line in running.get("/metrics")[1].splitlines() if "rebalances_total " in line)

    def holds(running: WorkerProcess, count: int) -> bool:
        return f"ecluse_assigned_partitions {count}.0" in running.get("/metrics")[1]

    base = make_settings(servers, worker={"slot": "a", "static_member": True, "session_timeout_seconds": 30})
    settings = trained(base, tmp_path)
    other = settings.model_copy(update={"worker": settings.worker.model_copy(update={"slot": "b"})})
    with worker(settings) as stays:
        with worker(other) as goes:
            wait_until("both hold partitions", lambda: holds(stays, 2) and holds(goes, 2))
            before = rebalances(stays)
            assert goes.stop() == 0
        with worker(other) as back:
            wait_until("it holds them again", lambda: holds(back, 2))
            send(settings, json_values(events(1_000)))
            wait_until("all are scored", scored(settings, 1_000))
        assert rebalances(stays) == before
    assert (audited(settings).missing, audited(settings).doubled) == (0, 0)

"""The models topic: releases and routes on a real broker, whoever else writes them at the same moment."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from ecluse import cluster, kafka
from ecluse.contract.records import Arm, Release, Route, Thresholds
from ecluse.errors import ModelNotFound, ModelRefused, RouteChanged, TopicsWrong
from ecluse.model import routes
from ecluse.model.registry import Registry, RegistryReader, Routed, read_registry
from ecluse.settings import Settings
from tests.cli import config_file
from tests.conftest import MakeSettings
from tests.workers import read_all


def release(settings: Settings, version: int, digest: str = "0" * 64) -> Release:
    return Release(settings.model_name, version, 1.0, digest, 1)


def arm(version: int) -> Arm:
    return Arm("champion", version, Thresholds(0.5, 0.9))


def announced(settings: Settings, *versions: int) -> int | None:
    """Release versions, each of them champion; the route's last revision."""
    revision = None
    for version in versions:
        revision = routes.announce(settings, release(settings, version), arm(version))
    return revision


def given(settings: Settings, *versions: int) -> int:
    """A topic on which those versions were released and promoted in this order; the route's revision."""
    writer, arms = kafka.producer(settings), [arm(version) for version in reversed(versions)]
    route = Route(settings.model_name, (arms[0],), 1.0, (), tuple(arms[1:]))
    records: list[Release | Route] = [*(release(settings, version) for version in versions), route]
    for record in records:
        writer.produce(settings.names.models, key=record.key, value=msgspec.msgpack.encode(record))
    assert writer.flush(10) == 0
    return len(versions)


def routed(settings: Settings) -> Routed:
    return read_registry(settings).routes[settings.model_name]


def versions_of(route: Route) -> list[int]:
    """The champion's version, and those before it."""
    return [route.champion.version, *(earlier.version for earlier in route.history)]


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_a_release_and_its_route_are_read_back_in_either_format(
    servers: str, make_settings: MakeSettings, encoding: str
) -> None:
    settings = make_settings(servers, stream={"encoding": encoding})
    cluster.create_topics(settings)
    revision = announced(settings, 1)
    registry = read_registry(settings)
    assert registry.releases == {(settings.model_name, 1): release(settings, 1)}
    route = registry.routes[settings.model_name]
    assert (route.revision, route.route.arms, route.route.history) == (revision, (arm(1),), ())


def test_a_topic_that_is_missing_is_told_of(servers: str, make_settings: MakeSettings) -> None:
    with pytest.raises(TopicsWrong, match=r"models is missing: `ecluse topics create` makes it"):
        read_registry(make_settings(servers))


def test_what_cannot_be_read_is_passed_over_and_what_is_taken_back_is_forgotten(
    stream: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    revision = given(stream, 1, 2)
    name = stream.model_name
    route = Route(name, (arm(1),), 0.0)
    records: list[tuple[Any, Any]] = [
        (f"release/{name}/3", b"nonsense"),
        (f"release/{name}/2", b""),  # no tombstone
        (f"release/{name}/x", None),
        (f"release/{name}/4", msgspec.msgpack.encode(release(stream, 5))),
        (f"release/{name}/05", msgspec.msgpack.encode(release(stream, 5))),
        (f"route/{name}", msgspec.json.encode({"name": name, "arms": [], "created_at": 0})),
        (f"route/{name}", msgspec.json.encode({"name": name, "arms": [{"version": 1}], "created_at": 0})),
        (f"route/{name}", msgspec.json.encode(route)[:-1]),
        (f"route/{name}", msgspec.json.encode(msgspec.structs.replace(route, name="another"))),
        (b"\xff", b"\xff"),
        # Of kinds that are not known, or of another model: nothing to warn of.
        (b"", b"{}"),
        ("later/kind", b"{}"),
        ("route/another", None),
        (f"release/{name}/1", None),
    ]
    writer = kafka.producer(stream)
    for key, value in records:
        writer.produce(stream.names.models, key=key, value=value)
    assert writer.flush(10) == 0
    registry = read_registry(stream)
    assert list(registry.releases) == [(name, 2)]
    assert versions_of(registry.routes[name].route) == [2, 1]
    assert registry.routes[name].revision == revision
    assert len([line for line in caplog.messages if "is passed over" in line]) == 10


def test_trainers_who_announce_at_once_are_all_released_and_the_highest_version_is_champion(stream: Settings) -> None:
    versions = [3, 1, 4, 2]
    with ThreadPoolExecutor(len(versions)) as trainers:
        turns = [trainers.submit(announced, stream, version) for version in versions]
        revisions = dict(zip(versions, [turn.result(60) for turn in turns], strict=True))
    registry = read_registry(stream)
    assert sorted(version for _, version in registry.releases) == [1, 2, 3, 4]
    now = registry.routes[stream.model_name]
    assert (now.route.champion.version, now.revision) == (4, revisions[4])
    made_champion = [version for version, revision in revisions.items() if revision is not None]
    assert versions_of(now.route) == sorted(made_champion, reverse=True)


def test_a_version_that_comes_late_is_released_but_takes_no_newer_ones_place(stream: Settings) -> None:
    revision = given(stream, 2)
    assert announced(stream, 1) is None
    assert routed(stream).revision == revision
    assert routes.promote(stream, arm(1), revision) == routed(stream).revision


def test_people_who_promote_at_once_lose_nobodys_change(stream: Settings) -> None:
    people = 5
    seen = given(
        stream, *range(1, people + 2)
    )  # the last is champion, and nobody promotes it: that would change nothing
    together = Barrier(people)

    def insist(version: int) -> tuple[int, int]:
        """Promote; after a change by others look again, as people do. How often, and the revision at last."""
        looked, based_on = 0, seen
        together.wait(30)
        while True:
            looked += 1
            try:
                return looked, routes.promote(stream, arm(version), based_on)
            except RouteChanged as error:
                assert error.revision is not None
                based_on = error.revision

    with ThreadPoolExecutor(people) as pool:
        done = dict(zip(range(1, people + 1), pool.map(insist, range(1, people + 1)), strict=True))
    by_revision = sorted(done, key=lambda version: done[version][1], reverse=True)
    now = routed(stream)
    assert now.revision == done[by_revision[0]][1]
    assert versions_of(now.route) == [*by_revision, *range(people + 1, 0, -1)]
    assert sorted(looked for looked, _ in done.values())[0] == 1
    written = [
        message.offset() for message in read_all(stream, stream.names.models) if b"route" in (message.key() or b"")
    ]
    assert written == [seen, *sorted(revision for _, revision in done.values())], "nothing else was written"


_PROMOTE = """
import os, signal, sys
from pathlib import Path
from ecluse.contract.records import Arm, Thresholds
from ecluse.model import routes
from ecluse.settings import load

class Frozen(routes.Producer):
    def commit_transaction(self, *timeout):
        self.flush(30)
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        super().commit_transaction(*timeout)

routes.Producer = Frozen
arm = Arm("champion", int(sys.argv[2]), Thresholds(0.5, 0.9))
try:
    print(routes.promote(load(Path(sys.argv[1])), arm, int(sys.argv[3])))
except Exception as error:
    print(type(error).__name__, error)
"""


def frozen_promoter(settings: Settings, version: int, seen: int) -> subprocess.Popen[str]:
    """A process that promotes and freezes before its commit."""
    arguments = [sys.executable, "-c", _PROMOTE, str(config_file(settings)), str(version), str(seen)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_a_writer_frozen_before_its_commit_writes_nothing_after_another_had_its_turn(stream: Settings) -> None:
    seen = given(stream, 1, 2, 3)
    with frozen_promoter(stream, 1, seen) as frozen:
        try:
            assert frozen.stdout is not None
            assert frozen.stdout.readline() == "frozen\n"
            revision = routes.promote(stream, arm(2), seen)
            frozen.send_signal(signal.SIGCONT)
            assert "RouteChanged" in frozen.stdout.read()
        finally:
            frozen.kill()
    assert (routed(stream).revision, versions_of(routed(stream).route)) == (revision, [2, 3, 2, 1])


def test_a_writer_that_is_not_told_of_its_commit_finds_it_and_writes_it_once(
    stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = given(stream, 1, 2)
    told = iter([False])

    class Forgetful(Producer):
        """Its first commit arrives, and the answer is lost."""

        def commit_transaction(self, *timeout: float) -> None:
            super().commit_transaction(*timeout)
            if not next(told, True):
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "lost", retriable=True))

    monkeypatch.setattr(routes, "Producer", Forgetful)
    revision = routes.promote(stream, arm(1), seen)
    assert (routed(stream).revision, versions_of(routed(stream).route)) == (revision, [1, 2, 1])


def test_what_an_unfinished_writer_left_is_never_seen(stream: Settings) -> None:
    slow = Producer(kafka.client_config(stream.kafka) | {"transactional.id": f"{stream.names.prefix}route"})
    slow.init_transactions(10)
    slow.begin_transaction()
    slow.produce(
        stream.names.models,
        key=f"release/{stream.model_name}/9",
        value=msgspec.msgpack.encode(release(stream, 9)),
    )
    assert slow.flush(10) == 0
    announced(stream, 1)
    with pytest.raises(KafkaException):
        slow.commit_transaction(10)
    assert list(read_registry(stream).releases) == [(stream.model_name, 1)]


def test_a_writer_overtaken_while_it_decides_decides_again(stream: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = given(stream, 1, 2)
    read, go_on, read_to_end = Event(), Event(), RegistryReader.read_to_end
    first = iter([True])

    def slowly(reader: RegistryReader, seconds: float) -> Registry:
        registry = read_to_end(reader, seconds)
        if next(first, False):
            read.set()
            assert go_on.wait(30)
        return registry

    monkeypatch.setattr(RegistryReader, "read_to_end", slowly)
    with ThreadPoolExecutor(1) as pool:
        overtaken = pool.submit(routes.promote, stream, arm(1), seen)
        assert read.wait(30)
        revision = routes.rollback(stream, seen)
        go_on.set()
        with pytest.raises(RouteChanged, match=f"version 1 is champion by revision {revision}"):
            overtaken.result(60)
    assert (routed(stream).revision, versions_of(routed(stream).route)) == (revision, [1])


def refusals(settings: Settings, seen: int) -> dict[str, Callable[[], object]]:
    """What must not be written, by the sentence that says so."""
    return {
        "Version 2 of model .* was never released": lambda: routes.promote(settings, arm(2), seen),
        "remembers no earlier champion": lambda: routes.rollback(settings, seen),
        "Version 1 of model .* is released already": lambda: routes.announce(settings, release(settings, 1, "f" * 64)),
    }


def test_a_refused_change_writes_nothing_and_keeps_nobody_waiting(stream: Settings) -> None:
    revision = given(stream, 1)
    held = len(read_all(stream, stream.names.models))
    for sentence, change in refusals(stream, revision).items():
        with pytest.raises((ModelNotFound, ModelRefused), match=sentence):
            change()
    assert len(read_all(stream, stream.names.models)) == held
    started = time.monotonic()
    assert announced(stream, 2) == routed(stream).revision
    assert time.monotonic() - started < 10


def test_a_rollback_to_a_version_whose_release_was_taken_back_is_refused(stream: Settings) -> None:
    revision = given(stream, 1, 2)
    writer = kafka.producer(stream)
    writer.produce(stream.names.models, key=f"release/{stream.model_name}/1", value=None)
    assert writer.flush(10) == 0
    with pytest.raises(ModelNotFound, match=r"Version 1 of model .* was never released"):
        routes.rollback(stream, revision)
    assert routed(stream).route.champion.version == 2

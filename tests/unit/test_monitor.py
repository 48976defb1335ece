"""The monitor without a broker: what it makes of chunks, and what it does when something cannot be had."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from faust.types import TP

from ecluse.contract.loop import DriftReport, Level, Profile, Statistic
from ecluse.contract.records import Release
from ecluse.errors import BrokerUnreachable, DataError, ModelError, SettingsError, StoreError
from ecluse.model.manifest import Manifest, sha256
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from ecluse.transport.ledger import Chunk, Ledger, Output
from retrain.drift import monitor as watching
from retrain.drift import references as referring
from retrain.drift.monitor import Monitor
from retrain.drift.references import References, Stopping
from retrain.drift.state import MonitorState
from retrain.drift.telemetry import MonitorHealth, MonitorTelemetry
from tests.artefacts import small_manifest
from tests.conftest import MakeSettings
from tests.profiles import MONITOR, START, WINDOW, made_profiles


class Read:
    """A record of the profiles topic."""

    def __init__(self, offset: int, value: bytes) -> None:
        self._offset, self._value = offset, value

    def __len__(self) -> int:
        return len(self._value)

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"1"

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_772_000_000_000


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(monitor=MONITOR, stream={"clock": "event"})


@pytest.fixture
def manifest(settings: Settings) -> Manifest:
    return small_manifest(settings)


@pytest.fixture
def released(settings: Settings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Release]:
    """What the models topic holds: the manifest's release, whose artefact is in the store."""
    key, digest = (settings.model_name, manifest.version), sha256(manifest.encode())
    held = {key: Release(*key, 0.0, digest, 1)}
    monkeypatch.setattr(referring, "read_registry", lambda _: SimpleNamespace(releases=held))
    monkeypatch.setattr(ModelStore, "manifest", lambda *_: manifest)
    return held


def chunk_of(ledger: Ledger, profiles: list[Profile] | list[bytes], start: int = 0) -> Chunk:
    values = [each if isinstance(each, bytes) else msgspec.msgpack.encode(each) for each in profiles]
    return ledger.add([Read(start + i, value) for i, value in enumerate(values)], start, start + len(values), 0.0)


def monitor_of(settings: Settings) -> tuple[Monitor, MonitorTelemetry]:
    telemetry = MonitorTelemetry()
    return Monitor(settings, telemetry, MonitorHealth()), telemetry


def keys(outputs: list[Output]) -> list[str]:
    return [(each.key or b"").decode().split("/")[0] for each in outputs]


def ledger_of(settings: Settings) -> Ledger:
    return Ledger(TP(settings.names.profiles, 0), 0)


def count(telemetry: MonitorTelemetry, what: str) -> float | None:
    return telemetry.registry.get_sample_value("ecluse_monitor_failures_total", {"what": what})


@pytest.mark.usefixtures("released")
def test_a_state_follows_what_is_said_and_another_monitor_goes_on_from_it(
    settings: Settings, manifest: Manifest
) -> None:
    profiles = made_profiles(settings, manifest, "sss" + "ddd" + "sss")
    whole, _ = monitor_of(settings)
    said = whole(chunk_of(ledger_of(settings), profiles))
    assert keys(said[-3:]) == ["report", "report", "state"]
    assert keys(said).count("state") == 1

    first, _ = monitor_of(settings)
    begun = first(chunk_of(ledger_of(settings), profiles[:22]))
    state = msgspec.msgpack.decode(begun[-1].value or b"", type=MonitorState)
    assert (state.profiles, begun[-1].topic) == (22, settings.names.drift)
    second, telemetry = monitor_of(settings)
    second._restored = state  # as `starts` sets it
    rest = second(chunk_of(ledger_of(settings), profiles[22:], 22))
    assert [each.value for each in begun[:-1] + rest[:-1]] == [each.value for each in said[:-1]]
    assert set(telemetry.reports) == {1}


@pytest.mark.usefixtures("released")
def test_what_is_no_profile_is_passed_over_and_counted(settings: Settings, manifest: Manifest) -> None:
    monitor, telemetry = monitor_of(settings)
    profiles = [msgspec.msgpack.encode(each) for each in made_profiles(settings, manifest, "ss")]
    said = monitor(chunk_of(ledger_of(settings), [b"", b"\xff", *profiles]))
    assert keys(said) == ["report", "state"]
    assert count(telemetry, "profile") == 2


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreError("s3://bucket", "access denied"), "access denied"),
        (SettingsError(["model.trusted_keys is empty."]), "model.trusted_keys is empty"),
        (ZeroDivisionError("by nothing"), "Traceback"),
    ],
)
def test_outcomes_that_cannot_be_had_leave_performance_out_and_nothing_else(
    settings: Settings,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    told: str,
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(watching, "has_stored", lambda *_: True)
    monkeypatch.setattr(watching, "outcomes", refuse)
    monitor, telemetry = monitor_of(settings)
    said = monitor(chunk_of(ledger_of(settings), made_profiles(settings, manifest, "sss")))
    assert keys(said) == ["report", "report", "state"]
    assert count(telemetry, "store") == 2
    assert told in caplog.text


@pytest.mark.usefixtures("released")
def test_a_monitor_that_is_stopped_does_not_look_for_the_outcomes_of_all_windows_that_are_due(
    settings: Settings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []

    def outcomes(*given: Any) -> tuple[Statistic, ...]:
        looks.append(given)
        monitor.stop()
        return ()

    monkeypatch.setattr(watching, "has_stored", lambda *_: True)
    monkeypatch.setattr(watching, "outcomes", outcomes)
    monitor, _ = monitor_of(settings)
    with pytest.raises(Stopping):
        monitor(chunk_of(ledger_of(settings), made_profiles(settings, manifest, "ssss")))
    assert len(looks) == 1


@pytest.mark.usefixtures("released")
def test_performance_is_not_judged_where_the_store_has_not_come_as_far_as_the_window(
    settings: Settings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def look(*_: Any) -> Any:
        raise AssertionError("labels may be missing")

    monkeypatch.setattr(watching, "outcomes", look)
    monitor, _ = monitor_of(settings)
    said = monitor(chunk_of(ledger_of(settings), made_profiles(settings, manifest, "ss")))
    assert msgspec.msgpack.decode(said[0].value or b"", type=DriftReport).matured_until is None
    assert "the training store holds none of its predictions" in caplog.text


@pytest.mark.usefixtures("released")
def test_a_report_holds_the_outcomes_of_a_span_that_ended_when_its_events_had_matured(
    settings: Settings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall = Statistic("recall", 0.5, 0.7, 0.6, Level.ALARM, None, 0.4, 0.59)
    asked: list[tuple[Any, ...]] = []

    def outcomes(_: Settings, *given: Any) -> tuple[Statistic, ...]:
        asked.append(given)
        return (recall,)

    monkeypatch.setattr(watching, "has_stored", lambda *_: True)
    monkeypatch.setattr(watching, "outcomes", outcomes)
    monitor, _ = monitor_of(settings)
    said = monitor(chunk_of(ledger_of(settings), made_profiles(settings, manifest, "ss")))
    end = START + WINDOW
    until = end - settings.labels.maturity_hours * 3600
    assert asked == [(1, until - 2 * WINDOW, until, end)]
    assert keys(said) == ["report", settings.model_name, "state"]
    report = msgspec.msgpack.decode(said[0].value or b"", type=DriftReport)
    assert (report.matured_since, report.matured_until) == (until - 2 * WINDOW, until)
    assert report.statistics[0] == recall
    assert report.request == f"drift-1-{end}"


@pytest.mark.usefixtures("released")
def test_a_state_that_no_topic_takes_is_refused_with_what_to_do(settings: Settings, manifest: Manifest) -> None:
    small = settings.model_copy(update={"topics": settings.topics.model_copy(update={"max_message_bytes": -64_400})})
    monitor, _ = monitor_of(small)
    with pytest.raises(DataError, match=r"raise topics\.max_message_bytes"):
        monitor(chunk_of(ledger_of(small), made_profiles(settings, manifest, "s")))


def referenced(settings: Settings, stopping: threading.Event | None = None) -> tuple[Callable[..., Any], list[str]]:
    told: list[str] = []
    failed: Callable[[], None] = lambda: told.append("failed")  # noqa: E731
    return References(settings, stopping or threading.Event(), failed, told.append), told


def test_a_manifest_is_fetched_once_and_held_against_its_release(
    settings: Settings, manifest: Manifest, released: dict[tuple[str, int], Release]
) -> None:
    digest = sha256(manifest.encode())
    references, told = referenced(settings)
    found = references(manifest.version, digest)
    assert found is not None
    assert found.inputs == manifest.reference
    released.clear()
    assert references(manifest.version, digest) is found
    assert references(manifest.version, "0" * 64) is None
    assert references(7, digest) is None
    assert told == ["", "failed", "failed"]


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("error", [ModelError("The model store cannot be read."), BrokerUnreachable("h:1")])
def test_a_store_or_a_broker_that_is_away_is_waited_for(
    settings: Settings, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(referring, "WAIT_SECONDS", 0.01)
    tries = iter([error, error])
    fetched = ModelStore.manifest

    def fetch(*args: Any) -> Manifest:
        for each in tries:
            raise each
        return fetched(*args)

    monkeypatch.setattr(ModelStore, "manifest", fetch)
    references, told = referenced(settings)
    assert references(manifest.version, sha256(manifest.encode())) is not None
    assert [each[:15] for each in told] == ["failed", "the manifest of", "failed", "the manifest of", ""]

    tries = iter([error] * 1000)
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Stopping):
        referenced(settings, stopping)[0](manifest.version, sha256(manifest.encode()))

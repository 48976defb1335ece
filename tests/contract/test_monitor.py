"""`ecluse monitor` on a real broker: what it says of real profiles, and the commands that show it."""

import re
from pathlib import Path

import pytest

from ecluse import cluster
from ecluse.contract.loop import Level
from ecluse.settings import Settings
from tests.artefacts import publish_small
from tests.cli import produce
from tests.conftest import MakeSettings
from tests.profiles import MONITOR, START, WINDOW, Profiles, monitor, reports, requests, undisturbed
from tests.workers import wait_until

DOCS = Path(__file__).parents[2] / "docs" / "monitoring.md"


@pytest.fixture
def settings(servers: str, make_settings: MakeSettings) -> Settings:
    """A fresh stream whose monitor judges hours."""
    made = make_settings(
        servers,
        stream={"clock": "event"},
        monitor=MONITOR,
        worker={"slot": "a", "static_member": True, "session_timeout_seconds": 6},
    )
    cluster.create_topics(made)
    return made


def test_each_window_is_reported_once_and_an_episode_asks_once_also_over_a_restart(settings: Settings) -> None:
    manifest = publish_small(settings)
    profiles = Profiles(settings, manifest)
    profiles.send(4)
    produce(settings, settings.names.profiles, [(0, b"no profile", ())])
    profiles.send(3, drifting=True)
    with monitor(settings) as running:
        wait_until("it asks", lambda: bool(requests(settings)))
        told = running.get("/metrics")[1]
        assert 'ecluse_monitor_failures_total{what="profile"} 1.0' in told
        assert 'ecluse_drift_level{version="1"} 2.0' in told
        assert "ecluse_monitor_episode 1.0" in told
        assert running.stop() == 0
    profiles.send(6)
    with monitor(settings) as running:
        wait_until("it has said all", lambda: len(reports(settings)) >= 12)
        again = running.get("/metrics")[1]
    expected = undisturbed(settings, manifest)
    assert reports(settings) == list(expected.reports)
    (request,) = requests(settings)
    assert (request,) == expected.requests
    assert [report.level for report in reports(settings)][:6] == [Level.OK] * 4 + [Level.WARN, Level.ALARM]
    assert (request.inputs, request.since, request.until) == (("amount",), START + 4 * WINDOW, START + 6 * WINDOW)

    assert "ecluse_monitor_episode 0.0" in again
    described = set(re.findall(r"ecluse_[a-z_]+[a-z]", DOCS.read_text(encoding="utf-8")))
    metrics = set(re.findall(r"^# HELP (ecluse_[a-z_]+)", told, flags=re.MULTILINE))
    assert {name for name in metrics if not name.endswith("_created")} == described


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_monitor_that_stands_by_is_ready_and_takes_over(
    servers: str, make_settings: MakeSettings, protocol: str
) -> None:
    settings = make_settings(servers, stream={"clock": "event"}, monitor=MONITOR, worker={"group_protocol": protocol})
    cluster.create_topics(settings)
    profiles = Profiles(settings, publish_small(settings))
    with monitor(settings) as first, monitor(settings) as second:
        profiles.send(3)
        wait_until("one of them watches", lambda: len(reports(settings)) == 2)
        assert first.stop() == 0, first.text
        profiles.send(2)
        wait_until("the other goes on", lambda: len(reports(settings)) == 4)
        assert second.stop() == 0, second.text

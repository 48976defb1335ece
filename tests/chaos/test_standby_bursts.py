"""A standby through two bursts and a death."""

import signal
import time
from pathlib import Path

import pytest

from ecluse import cluster
from tests.chaos.conftest import Variant
from tests.chaos.fleet import broken_model
from tests.conftest import MakeSettings
from tests.contract.test_standby import QUICK, holds, said, waits
from tests.workers import audited, events, json_values, scored, send, train_champion, wait_until, worker


@pytest.mark.chaos(seconds=35)
def test_a_standby_joins_for_each_burst_takes_over_from_the_dead_and_leaves_when_it_is_drained(
    variant: Variant, servers: str, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in broken_model("slow").items():  # 3,000 events a second
        monkeypatch.setenv(name, value)
    settings = make_settings(servers, worker=QUICK)
    cluster.create_topics(settings)
    train_champion(settings, tmp_path)
    burst = json_values(events(36_000))
    with worker(settings) as first, worker(settings, "--standby") as standby:
        for number in (1, 2):
            wait_until("it waits outside", lambda: waits(standby) and holds(first, 4))
            send(settings, burst)
            wait_until("it shares the burst", lambda: holds(standby, 2) and holds(first, 2))
            wait_until("the burst is scored", scored(settings, number * len(burst)))
            wait_until("it has left", lambda n=number: said(standby, "leaves: less than 0.2 s of work", n))
        wait_until("it waits outside", lambda: waits(standby) and holds(first, 4))
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        send(settings, burst[:100])
        wait_until("it takes over", scored(settings, 2 * len(burst) + 100))
        assert "100 events wait, and nothing was committed for" in standby.text
        wait_until("it holds all", lambda: holds(standby, 4))
        with worker(settings) as second:
            wait_until("with another it is not needed", lambda: said(standby, "leaves: ", 3))
            wait_until("it waits outside", lambda: waits(standby) and holds(second, 4))
            started = time.monotonic()
            assert standby.stop() == 0
            assert time.monotonic() - started < 5
    assert standby.text.count("joins: ") == 3
    report = audited(settings)
    assert (report.events, report.missing, report.doubled) == (2 * len(burst) + 100, 0, 0)

"""A model that raises or hangs, and a disk that is full: what one worker cannot do, another does."""

import pytest

from tests.chaos.brokers import free_ports
from tests.chaos.case import Case
from tests.workers import wait_until

pytestmark = pytest.mark.timeout(400)


@pytest.mark.chaos(seconds=30)
def test_a_model_raises_on_some_rows(case: Case) -> None:
    """They become dead letters, one each; the rest of their chunks is scored."""
    for number in range(2):
        case.fleet.start(f"slot-{number}", broken="row")
    case.fleet.share(2)
    case.begin_load(poison_every=case.chance.randint(500, 1_500))
    case.pause(2.0, 4.0)
    case.finish()
    assert case.load is not None
    assert case.load.poisoned > 0


@pytest.mark.chaos(seconds=35)
def test_a_model_raises_on_every_row(case: Case) -> None:
    """The worker ends uncommitted, and a sound one scores what it left."""
    broken = case.fleet.start("slot-0", broken="always")
    case.begin_load()
    wait_until("the broken worker ends", lambda: not broken.runs)
    assert broken.process.returncode == 1, broken.text
    assert "usual values" in broken.text
    case.pause(0.0, 2.0)
    case.fleet.start("slot-0")
    case.flowing()
    case.finish()


@pytest.mark.chaos(seconds=45, worker={"stuck_after_seconds": 3.0})
def test_a_model_hangs(case: Case) -> None:
    """/health/live tells, the orchestrator kills, and a sound worker scores what it left."""
    hanging = case.fleet.start("slot-0", broken="hang")
    case.begin_load()
    wait_until("its health tells", lambda: hanging.get("/health/live")[0] == 503)
    case.pause(0.0, 2.0)
    assert hanging.runs, hanging.text
    hanging.kill()
    case.fleet.start(case.chance.choice(["slot-0", "slot-1"]))
    case.flowing()
    case.finish()


@pytest.mark.chaos(seconds=35)
def test_a_workers_disk_is_full(case: Case) -> None:
    """It can neither log nor write a file, and goes on scoring, through a rebalance too."""
    (port,) = free_ports(1)
    full = case.fleet.start_without_disk("slot-0", port)
    wait_until("it is ready", lambda: full.get("/health/ready")[0] == 200)
    case.begin_load()
    case.pause(1.0, 3.0)
    sound = case.fleet.start("slot-1")
    case.fleet.share(2)
    case.pause(1.0, 2.0)
    assert sound.stop() == 0, sound.text
    case.flowing()
    assert full.runs, f"the worker ended with {full.process.returncode}"
    case.finish()

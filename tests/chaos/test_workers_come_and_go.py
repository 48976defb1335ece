"""Workers join, leave, die and freeze under load: nothing is missing, and nothing is doubled where that is promised."""

import signal
import time

import pytest

from tests.chaos.case import Case
from tests.workers import wait_until

pytestmark = pytest.mark.timeout(400)


@pytest.mark.chaos(seconds=30, also=["at_least_once", "kip848"], some=True, bypass=0.2)
def test_a_worker_joins(case: Case) -> None:
    case.begin(1)
    case.pause(1.0, 3.0)
    case.fleet.start("slot-1")
    case.fleet.share(2)
    case.pause(1.0, 2.0)
    case.finish()


@pytest.mark.chaos(seconds=30)
def test_a_worker_leaves(case: Case) -> None:
    members = case.begin(3)
    case.pause(1.0, 3.0)
    leaving = case.chance.choice(members)
    assert leaving.stop() == 0, leaving.text
    case.flowing()
    case.finish()


@pytest.mark.chaos(seconds=45, also=["at_least_once", "kip848"], some=True, bypass=0.2)
def test_a_worker_is_killed_in_mid_transaction(case: Case) -> None:
    """Its successor comes in its slot or in another, as the seed says, or not at all."""
    members = case.begin(2)
    case.pause(1.0, 3.0)
    victim = case.chance.choice(members)
    case.kill_in_transaction(victim)
    if successor := case.chance.choice([victim.slot, "slot-2", ""]):
        case.pause(0.0, 3.0)
        case.fleet.start(successor, ready=False)
    case.flowing()
    case.finish()


@pytest.mark.chaos(seconds=45, also=["at_least_once"])
def test_all_workers_are_killed(case: Case) -> None:
    members = case.begin(3)
    case.pause(1.0, 3.0)
    case.kill_in_transaction(*members)
    case.pause(0.0, 3.0)
    for member in case.chance.sample(members, 2):
        case.fleet.start(member.slot, ready=False)
    case.flowing()
    case.finish()


@pytest.mark.chaos(seconds=50, some=True, bypass=0.2)
def test_a_worker_is_frozen_past_its_session_and_wakes(case: Case) -> None:
    frozen_and_woken(case)


@pytest.mark.chaos(seconds=60, broker="late_aborts")
def test_a_worker_is_frozen_past_its_session_and_wakes_with_its_transaction_open(case: Case) -> None:
    """The broker of this case ends transactions whose time is over a minute late."""
    frozen_and_woken(case, still_open=True)


def frozen_and_woken(case: Case, *, still_open: bool = False) -> None:
    """A zombie that wakes may not commit what it had in hand: others have scored it."""
    zombie, other = case.chance.sample(case.begin(2), 2)
    case.pause(1.0, 3.0)
    held, assignments = zombie.partitions, other.text.count("assigned partitions")
    case.freeze(zombie)
    frozen_at, its_own = time.monotonic(), case.open(held)
    # Its metrics would tell only when it knows the offsets, which wait for the zombie's transaction.
    wait_until("the other takes over", lambda: other.text.count("assigned partitions") > assignments)
    time.sleep(max(0.0, frozen_at + 8.0 + case.chance.uniform(0.0, 4.0) - time.monotonic()))
    if still_open:
        assert its_own.items() & case.open(held).items(), "the broker has ended the old transaction already"
    zombie.signal(signal.SIGCONT)

    def fenced_or_back() -> bool:
        if zombie.runs:
            return bool(zombie.partitions) and "lost partitions" in zombie.text
        assert zombie.process.returncode == 1, zombie.text
        assert "fence" in zombie.text.lower(), zombie.text
        return True

    wait_until("the woken worker has given up, or is back", fenced_or_back)
    case.flowing()
    case.finish(revive=True)


@pytest.mark.chaos(seconds=60)
def test_all_workers_are_restarted_one_after_another(case: Case) -> None:
    for member in case.begin(3):
        case.pause(0.5, 2.0)
        assert member.stop() == 0, member.text
        case.fleet.start(member.slot)
        case.fleet.share(3)
    case.flowing()
    case.finish()


@pytest.mark.chaos(seconds=90, autoscale={"up_seconds": 2.0, "settle_seconds": 4.0})
def test_the_load_rises_tenfold_and_falls(case: Case) -> None:
    """Four workers can just do it, by a model that takes its time; one can do the usual load."""
    scaler = case.fleet.start_autoscaler(1, 4, broken="slow")
    case.begin_load(rate=1_000)
    assert case.load is not None
    case.pause(3.0, 5.0)
    assert scaler.workers == 1
    case.load.rate = 10_000
    wait_until("four workers run", lambda: scaler.workers == 4)
    case.pause(5.0, 8.0)
    case.load.rate = 1_000
    wait_until("one worker runs", lambda: scaler.workers == 1, 150.0)
    case.flowing()
    case.finish()

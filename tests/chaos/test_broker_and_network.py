"""The broker dies, the network is cut, both are slow: workers wait, or give up and come back, and nothing is missing."""

import pytest

from tests.chaos.case import Case

pytestmark = pytest.mark.timeout(400)


@pytest.mark.chaos(seconds=70, also=["at_least_once"], broker="killed")
def test_the_broker_is_killed_and_restarted(case: Case) -> None:
    assert case.broker is not None
    case.begin(2)
    case.pause(2.0, 4.0)
    case.broker.kill()
    case.pause(0.0, 5.0)
    case.broker.start()
    case.flowing(revive=True)
    case.finish(revive=True)


@pytest.mark.chaos(seconds=45, broker="proxied")
def test_the_network_is_cut_for_5_seconds(case: Case) -> None:
    cut(case, 5.0)


@pytest.mark.chaos(seconds=80, broker="proxied")
def test_the_network_is_cut_for_30_seconds(case: Case) -> None:
    cut(case, 30.0)


def cut(case: Case, seconds: float) -> None:
    """Between all workers and the broker; the load goes on."""
    assert case.proxy is not None
    case.begin(2)
    assert case.proxy.connections > 0, "the workers did not come through the proxy"
    case.pause(2.0, 4.0)
    case.proxy.cut(case.chance.choice(["stall", "reset"]))
    case.pause(seconds, seconds)
    case.proxy.heal()
    case.flowing(revive=True)
    case.finish(revive=True)


@pytest.mark.chaos(seconds=45, broker="proxied")
def test_the_broker_is_slow(case: Case) -> None:
    """Each way takes up to a third of a second, for some seconds."""
    assert case.proxy is not None
    case.begin(2)
    case.pause(1.0, 2.0)
    case.proxy.slow(case.chance.uniform(0.15, 0.3))
    case.pause(8.0, 12.0)
    case.fleet.start("slot-2")
    case.proxy.slow(0.0)
    case.flowing()
    case.finish()

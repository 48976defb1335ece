"""Brokers that a case may harm: with a proxied listener, killed and started again on their data, or with other settings."""

import socket
from contextlib import ExitStack
from pathlib import Path

import psutil

from console import broker as dev_broker

#: KIP-848 keeps the session at the broker; members hear of changes at their heartbeats.
SHORT_CONSUMER_SESSION = {
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
}
#: A transaction whose time is over stays open until the broker looks, which it does this often.
LATE_ABORTS = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "60000"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Broker:
    """A broker of a case's own. `servers` is for the harness; a client of `proxied` is led to `proxy_port` for all it does.

    Args:
        data: its folder.
        settings: over the usual ones.
    """

    def __init__(self, data: Path, settings: dict[str, str]) -> None:
        self._port, self.behind_proxy, self.proxy_port, controller = free_ports(4)
        proxied = f"PROXIED://127.0.0.1:{self.behind_proxy}"
        self._data = data
        self._settings = settings | {
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},{proxied},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port},PROXIED://127.0.0.1:{self.proxy_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        }

    @property
    def servers(self) -> str:
        """The direct listener."""
        return f"127.0.0.1:{self._port}"

    @property
    def proxied(self) -> str:
        """The listener that advertises the proxy."""
        return f"127.0.0.1:{self.proxy_port}"

    def start(self) -> None:
        """Start it, on its data where it ran before."""
        dev_broker.start(self._data, self._port, self._settings)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        running = dev_broker.find(self._data)
        process = running.process() if running else None
        assert process is not None, "no broker runs"
        process.kill()
        psutil.wait_procs([process], timeout=20)

    def stop(self) -> None:
        """End it for good."""
        dev_broker.stop(self._data)

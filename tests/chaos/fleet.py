"""The workers of a case: started in slots, told, frozen, killed, and started again as an orchestrator would."""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from console.config import as_toml
from ecluse.settings import Settings, shown
from tests.workers import DEADLINE, ECLUSE, WorkerProcess, wait_until

#: Holds the failing models.
INJECT = Path(__file__).with_name("inject")
#: Every write to it fails with "No space left on device".
FULL_DISK = Path("/dev/full")


def broken_model(kind: str) -> dict[str, str]:
    """The environment in which workers have a model that fails so; a sound one for an empty `kind`."""
    path = os.pathsep.join(filter(None, (str(INJECT), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "CHAOS_MODEL": kind} if kind else {}


@dataclass
class Member(WorkerProcess):
    """A worker in its slot."""

    slot: str
    address: str = ""

    @property
    def text(self) -> str:
        """What it has logged; of one that cannot log, only where it listens."""
        return f"http://{self.address} " if self.address else super().text

    @property
    def partitions(self) -> set[int]:
        """The partitions that it holds, by its metrics."""
        _, body = self.get("/metrics")
        return {
            int(found) for found in re.findall(r'^ecluse_consumer_lag\{.*?partition="(\d+)".*\}', body, re.MULTILINE)
        }

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process.poll() is None

    @property
    def workers(self) -> int:
        """How many processes of `ecluse worker` it has started and not ended."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sum("worker" in child.cmdline() for child in children if child.status() != psutil.STATUS_ZOMBIE)

    def signal(self, what: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(what)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.stop(signal.SIGKILL)


class Fleet:
    """Starts workers of one stream and remembers them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "ecluse.toml"
        self._config.write_text(as_toml(shown(settings)), encoding="utf-8")
        self.members: list[Member] = []
        self.revived = 0

    def start(self, slot: str, *, broken: str = "", ready: bool = True) -> Member:
        """Start a worker; `broken` names a fault of its model."""
        log = self._folder / f"{len(self.members)}-{slot}.log"
        return self._start(
            slot, [ECLUSE, "worker", "--config", self._config], log, ready=ready, env=broken_model(broken)
        )

    def start_autoscaler(self, least: int, most: int, broken: str) -> Member:
        """Start `ecluse autoscale`, whose workers have a model that is `broken` so."""
        command: list[str | Path] = [ECLUSE, "autoscale", "--config", self._config]
        command += ["--min", str(least), "--max", str(most)]
        return self._start("autoscale", command, self._folder / "autoscale.log", ready=False, env=broken_model(broken))

    def start_without_disk(self, slot: str, port: int) -> Member:
        """Start a worker whose log is on a full disk, and which can write no byte to any file."""
        command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", ECLUSE, "worker", "--config", self._config]
        env = {"ECLUSE_WORKER__METRICS_PORT": str(port)}
        return self._start(slot, command, FULL_DISK, address=f"127.0.0.1:{port}", env=env)

    def _start(
        self,
        slot: str,
        command: list[str | Path],
        log: Path,
        *,
        ready: bool = True,
        address: str = "",
        env: dict[str, str] | None = None,
    ) -> Member:
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=os.environ | {"ECLUSE_WORKER__SLOT": slot} | (env or {})
            )
        member = Member(process, log, slot, address)
        self.members.append(member)
        if ready:
            member.wait_ready()
        return member

    @property
    def running(self) -> list[Member]:
        """Those whose process is there."""
        return [member for member in self.members if member.runs]

    def revive(self) -> None:
        """Start the ones anew that gave up with exit code 1 (fenced, say), in their slots."""
        for member in list(self.members):
            code = member.process.poll()
            taken = any(other.slot == member.slot for other in self.running)
            if code == 1 and not taken:
                self.revived += 1
                self.start(member.slot, ready=False)

    def share(self, count: int) -> None:
        """Wait until `count` workers hold partitions."""

        def shared() -> bool:
            holding = [member for member in self.running if member.partitions]
            return len(holding) >= count

        wait_until(f"{count} workers have partitions", shared)

    def stop_all(self) -> list[int]:
        """SIGTERM to all that run, once each has begun; their exit codes."""
        running = self.running
        wait_until("each worker has begun", lambda: all("http://" in member.text for member in running))
        for member in running:
            member.signal(signal.SIGTERM)
        end = time.monotonic() + DEADLINE
        return [member.process.wait(max(0.1, end - time.monotonic())) for member in running]

    @property
    def codes(self) -> set[int]:
        """What workers exited with."""
        return {code for member in self.members if (code := member.process.poll()) is not None}

    def end(self) -> None:
        """Kill what is left."""
        for member in self.running:
            member.process.kill()
        for member in self.members:
            member.process.wait(DEADLINE)

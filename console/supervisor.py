"""Several workers on one machine, a process each: started, restarted when they crash, and stopped in order."""

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from confluent_kafka import KafkaException

from console.process import WorkerProcess, how_it_ended
from ecluse import cluster, kafka
from ecluse.errors import ProcessFailed
from ecluse.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds before each restart of a worker that fails again and again; with one failure more the supervisor gives up.
DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
#: A worker that was ready for so long has started well: its failures are counted from none.
STEADY_SECONDS = 60.0
#: How long a worker may take to finish and leave its group before it is killed.
STOP_SECONDS = 45.0
#: How long a rolling restart waits for a worker to be ready; a large model takes minutes.
ROLL_SECONDS = 900.0
WRONG_USE = 2
_TICK_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_MOST_SLOTS = 1000


@dataclass(frozen=True, slots=True)
class Slot:
    """A worker's place among those of its group on this host; nobody else has it while `lock` is open."""

    index: int
    name: str
    lock: int


def take_slot(group: str, base: str) -> Slot:
    """The first free slot, ``<base>-<index>``. Workers inherit its lock: it is free when they have ended too.

    Raises:
        ProcessFailed: none is free, or the temporary folder cannot be written.
    """
    try:
        for index in range(_MOST_SLOTS):
            name = f"{base}-{index}"
            if (lock := _lock(f"{group}/{name}")) is not None:
                return Slot(index, name, lock)
    except OSError as error:
        raise ProcessFailed(f"No lock of a worker's slot can be made: {error}.") from error
    raise ProcessFailed(f"No slot is free: {_MOST_SLOTS} workers of {group} run on this host.")


def _lock(place: str) -> int | None:
    """The file descriptor of a lock that nobody else holds; None where somebody does."""
    digest = hashlib.sha256(place.encode()).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / f"ecluse-slot-{digest}.lock"
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError:  # another user's
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def slot_base(settings: Settings) -> str:
    """What the names of this host's slots begin with: `worker.slot`, else the host's name."""
    return settings.worker.slot or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:90]


class Process(Protocol):
    """What the supervisor needs of a worker's process; see `WorkerProcess`."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""

    def ready(self) -> bool:
        """Whether it does its work."""

    def end_of_log(self) -> list[str]:
        """The last lines that it printed."""

    def close(self) -> None:
        """Let go of it, after its end."""


@dataclass(slots=True)
class _Worker:
    """A worker that there should be: its process runs, waits to be started again (`due`), or ends (`stop_by`)."""

    slot: Slot
    process: Process | None = None
    due: float = 0.0
    started_at: float = 0.0
    ready_at: float | None = None
    failures: int = 0
    stop_by: float | None = None
    #: Whether it is started again after the end that it was told.
    again: bool = False

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def leaves(self) -> bool:
        return self.stop_by is not None and not self.again

    @property
    def works(self) -> bool:
        return self.process is not None and self.stop_by is None and self.ready_at is not None


class Supervisor:
    """Keeps as many workers as it was told to.

    Args:
        start: starts the process of the worker in a slot.
        slots: takes a free slot.
        broker_answers: whether a broker does; without one nothing is started, for it could only fail.
        delays: seconds before each restart of a worker that fails again and again.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        start: Callable[[Slot], Process],
        slots: Callable[[], Slot],
        broker_answers: Callable[[], bool],
        delays: Sequence[float] = DELAYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start_process, self._take_slot, self._broker_answers = start, slots, broker_answers
        self._delays, self._clock = delays, clock
        self._workers: list[_Worker] = []
        self._rolling: list[_Worker] = []
        self._roll_by = 0.0
        self._without_broker = False
        self._wake: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        #: The exit code, from the moment that everything is told to stop.
        self.code: int | None = None

    @property
    def workers(self) -> int:
        """How many workers there should be."""
        return sum(not worker.leaves for worker in self._workers)

    @property
    def ready(self) -> int:
        """How many of them are, or were since their start, ready."""
        return sum(worker.works for worker in self._workers)

    def scale(self, count: int) -> None:
        """Start workers, or tell the newest to stop, until there are `count`."""
        staying = [worker for worker in self._workers if not worker.leaves]
        self._workers += [_Worker(self._take_slot(), due=self._clock()) for _ in range(count - len(staying))]
        for worker in staying[count:]:
            self._tell_to_stop(worker)

    def roll(self) -> None:
        """Restart all workers, one after the other, the next when all are ready."""
        logger.info("rolling restart: the workers are restarted one after the other")
        self._rolling = [worker for worker in self._workers if not worker.leaves]
        self._roll_by = self._clock() + ROLL_SECONDS

    def stop(self, code: int = 0) -> None:
        """Tell all to stop; `run` then ends with `code`, which is 1 where one had to be killed."""
        if self.code is None:
            self.code = code
            self._rolling.clear()
            for worker in list(self._workers):
                self._tell_to_stop(worker)

    def run(self, look: Callable[[], None] | None = None) -> int:
        """Supervise until SIGTERM or SIGINT (SIGHUP: rolling restart), or until there is no use; the exit code.

        `look` is called about once a second and may scale.
        """
        next_look = self._clock()
        with self._signals():
            while True:
                self.step()
                if self.code is not None and not self._workers:
                    return self.code
                if look and self.code is None and self._clock() >= next_look:
                    look()
                    next_look = self._clock() + _LOOK_SECONDS
                with contextlib.suppress(queue.Empty):
                    self._wake.get(timeout=_TICK_SECONDS)()

    def step(self) -> None:
        """See to each worker once, without waiting."""
        now = self._clock()
        for worker in list(self._workers):
            if worker.process is not None:
                self._watch(worker, worker.process, now)
            elif now >= worker.due and self.code is None:
                self._start(worker, now)
        if self._rolling:
            self._roll_on(now)

    def _start(self, worker: _Worker, now: float) -> None:
        if not self._broker_answers():
            if not self._without_broker:
                logger.warning("no broker answers: workers that must be started wait for it")
            self._without_broker, worker.due = True, now + _LOOK_SECONDS
            return
        self._without_broker = False
        worker.process = self._start_process(worker.slot)
        worker.started_at, worker.ready_at, worker.again = now, None, False
        logger.info("%s has started (process %d)", worker.name, worker.process.pid)

    def _watch(self, worker: _Worker, process: Process, now: float) -> None:
        code = process.poll()
        if code is not None:
            process.close()
            worker.process = None
            self._ended(worker, process, code, now)
        elif worker.stop_by is not None:
            if now >= worker.stop_by:
                logger.error("%s has not stopped within %.0f s and is killed", worker.name, STOP_SECONDS)
                process.send_signal(signal.SIGKILL)
                worker.stop_by = now + STOP_SECONDS
                self.code = 1 if self.code == 0 else self.code
        elif worker.ready_at is None and process.ready():
            worker.ready_at = now
            logger.info("%s is ready, %.1f s after its start", worker.name, now - worker.started_at)

    def _ended(self, worker: _Worker, process: Process, code: int, now: float) -> None:
        if worker.stop_by is not None:
            worker.stop_by, worker.due = None, now
            logger.info("%s has stopped (%s)", worker.name, how_it_ended(code))
            if not worker.again:
                self._remove(worker)
            return
        steady = worker.ready_at is not None and now - worker.ready_at >= STEADY_SECONDS
        worker.failures = 1 if steady else worker.failures + 1
        if code == WRONG_USE or worker.failures > len(self._delays):
            self._give_up(worker, process, code)
            return
        delay = self._delays[worker.failures - 1]
        worker.due = now + delay
        logger.error(
            "%s ended unasked with %s: restart in %.0f s (failure %d in a row; the supervisor gives up at %d)",
            *(worker.name, how_it_ended(code), delay, worker.failures, len(self._delays) + 1),
        )

    def _give_up(self, worker: _Worker, process: Process, code: int) -> None:
        if code == WRONG_USE:
            why = f"{worker.name} was refused its settings or its command line"
        else:
            why = f"{worker.name} failed {worker.failures} times in a row, at last with {how_it_ended(code)}"
        logger.critical(
            "%s: the supervisor gives up and stops all. The end of its log:\n  %s",
            *(why, "\n  ".join(process.end_of_log()) or "(empty)"),
        )
        self._remove(worker)
        self.stop(WRONG_USE if code == WRONG_USE else 1)

    def _tell_to_stop(self, worker: _Worker, *, again: bool = False) -> None:
        worker.again = again
        if worker.process is None:
            self._remove(worker)
        elif worker.stop_by is None:
            worker.stop_by = self._clock() + STOP_SECONDS
            worker.process.send_signal(signal.SIGTERM)

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        os.close(worker.slot.lock)

    def _roll_on(self, now: float) -> None:
        """Restart the next one, if the one before is ready again."""
        if not all(worker.works for worker in self._workers):
            if now > self._roll_by:
                logger.error("a worker is not ready after %.0f s: the rolling restart ends here", ROLL_SECONDS)
                self._rolling.clear()
            return
        worker = self._rolling.pop(0)
        if worker in self._workers:
            self._tell_to_stop(worker, again=True)
        self._roll_by = now + ROLL_SECONDS

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """While it lasts, signals wake the loop, which does what they ask for."""
        asked = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self.roll,
            signal.SIGCHLD: lambda: None,
        }
        before = {
            number: signal.signal(number, lambda n, _: self._wake.put(asked[signal.Signals(n)])) for number in asked
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def supervisor_of(
    settings: Settings,
    config: Path | None = None,
    servers: str | None = None,
    start: cluster.Where | None = None,
    delays: Sequence[float] = DELAYS,
    *,
    standby: bool = False,
) -> Supervisor:
    """A supervisor of `ecluse worker` processes with the same settings, each in a slot of its own.

    Args:
        settings: the stream's, as `config` and `servers` give them.
        config: the configuration file, if one was named.
        servers: the cluster, if one was named.
        start: where to begin in partitions in which the group has no offset yet.
        delays: seconds before each restart of a worker that fails again and again.
        standby: whether they wait outside the group until work does.

    Raises:
        TopicsWrong: the topics are not as the stream needs them.
    """
    kafka.once_reachable(cluster.require_topics, settings)
    if start is not None:
        kafka.once_reachable(cluster.seed_offsets, settings, start)
    arguments = [*(("--config", str(config)) if config else ()), *(("--bootstrap-servers", servers) if servers else ())]
    arguments += ["--standby"] if standby else []
    client = kafka.admin(settings)

    def start_process(slot: Slot) -> WorkerProcess:
        environment = {"ECLUSE_WORKER__SLOT": slot.name}
        if port := settings.worker.metrics_port:
            environment["ECLUSE_WORKER__METRICS_PORT"] = str(port + slot.index)
        return WorkerProcess(slot.name, arguments, environment, slot.lock)

    def broker_answers() -> bool:
        try:
            return bool(client.list_topics(timeout=2.0).brokers)
        except KafkaException:
            return False

    return Supervisor(start_process, lambda: take_slot(settings.group, slot_base(settings)), broker_answers, delays)

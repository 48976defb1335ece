"""A standby: a warm worker that waits outside its group, joins while too much work waits, and leaves when it is drained.

Outside it costs the group nothing: no partition moves, and what it loads and warms for minutes is done before it is needed.
"""

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self

from ecluse.cluster import LagReader
from ecluse.errors import BrokerUnreachable
from ecluse.sections import WorkerSettings
from ecluse.settings import Settings
from ecluse.transport.driver import ChunkConsumer
from scoring.health import Health

logger = logging.getLogger(__name__)

#: How often it looks at the group's backlog, in seconds.
LOOK_SECONDS = 1.0
#: It joins when too much work waits at so many looks in a row. The rate is taken over those looks: so it is that of workers
#: that are busy, and not of the lull before a burst.
LOOKS = 4
#: Drained is a backlog of so much of what makes it join.
DRAINED = 0.1
#: Workers that settle at the same time leave at different ones: after the settling time, or up to so many times as long.
SPREAD = 2.0
#: How long entering or leaving may take (leaving ends the process before that), and the last look when the process ends.
ACT_SECONDS, END_SECONDS = 60.0, 30.0


@dataclass(frozen=True, slots=True)
class Observation:
    """The group's backlog (see `ecluse.cluster.Backlog`) at a moment, in seconds that only grow."""

    at: float
    done: int
    end: int

    @property
    def lag(self) -> int:
        """Events that wait."""
        return self.end - self.done


class Gate:
    """Decides when a standby joins and leaves. Pure: it knows only what it is shown, and no clock.

    Args:
        settings: the thresholds.
        chance: spreads the times at which several standbys leave.
    """

    def __init__(self, settings: WorkerSettings, chance: random.Random) -> None:
        self._settings, self._chance = settings, chance
        self._recent: deque[Observation] = deque(maxlen=LOOKS)
        #: Events a second that the group commits, when it last committed any.
        self.rate: float | None = None
        self._still_since = 0.0
        self._much = 0
        self._low_since: float | None = None
        self._settle = 0.0

    def decide(self, now: Observation | None, *, inside: bool, alone: bool = False) -> str | None:
        """Why to join (from outside) or to leave (from inside); None where all stays.

        Args:
            now: what is seen; None where nothing can be: then nothing changes, and what was seen before does not count.
            inside: whether the standby is in the group.
            alone: whether it holds all partitions: without it nobody would score, so it stays.
        """
        if now is None:
            self._recent.clear()
            self._much, self._low_since = 0, None
            return None
        self._measure(now)
        why = self._leaves(now, alone) if inside else self._joins(now)
        if why:
            self._much, self._low_since, self._still_since = 0, None, now.at
        return why

    def _measure(self, now: Observation) -> None:
        last = self._recent[-1] if self._recent else None
        self._recent.append(now)
        first = self._recent[0]
        if now.done > first.done:
            self.rate = (now.done - first.done) / (now.at - first.at)
        if last is None or now.lag == 0 or now.done != last.done:
            self._still_since = now.at

    def _joins(self, now: Observation) -> str | None:
        limit, still = self._settings.standby_join_seconds, now.at - self._still_since
        waits = f"{now.lag:,} event{' waits' if now.lag == 1 else 's wait'}"
        if still > limit:
            return f"{waits}, and nothing was committed for {still:.1f} s (more than {limit:.1f} s)"
        if self.rate is None or now.lag / self.rate <= limit:
            self._much = 0
            return None
        self._much += 1
        if self._much < LOOKS:
            return None
        rate = f"{self.rate:,.0f}" if self.rate >= 10 else f"{self.rate:.1f}"
        return f"{waits}, {now.lag / self.rate:,.1f} s of work at {rate}/s (more than {limit:.1f} s)"

    def _leaves(self, now: Observation, alone: bool) -> str | None:
        limit = DRAINED * self._settings.standby_join_seconds
        little = now.lag == 0 or (self.rate is not None and now.lag / self.rate < limit)
        if alone or not little:
            self._low_since = None
            return None
        if self._low_since is None:
            self._low_since, self._settle = (
                now.at,
                self._settings.standby_settle_seconds * self._chance.uniform(1.0, SPREAD),
            )
        seconds = now.at - self._low_since
        return f"less than {limit:.1f} s of work has waited for {seconds:.0f} s" if seconds >= self._settle else None


class Standby(threading.Thread):
    """Looks at the group's backlog, and has the worker enter its group and leave it. A context, whose end ends it.

    Args:
        settings: the stream's.
        health: where it says that it waits.
    """

    def __init__(self, settings: Settings, health: Health) -> None:
        super().__init__(name="ecluse-standby", daemon=True)
        self._settings, self._health = settings, health
        self._gate = Gate(settings.worker, random.Random())  # noqa: S311 - no secret
        self._closing = threading.Event()
        self._blind = False

    def begin(self, consumer: ChunkConsumer) -> None:
        """Start to look; called by the app when it could enter its group."""
        self._consumer = consumer
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self.is_alive():
            self.join(END_SECONDS)

    def run(self) -> None:
        """Look until the worker stops."""
        logger.info("the standby waits outside the group, warm")
        try:
            with LagReader(self._settings) as reader:
                while not self._closing.wait(LOOK_SECONDS):
                    self._turn(self._observe(reader))
        except BaseException as error:
            if not self._consumer.should_stop:
                logger.critical("the standby cannot go on: %s", error)
                self._on_loop(self._consumer.crash(error))

    def _observe(self, reader: LagReader) -> Observation | None:
        """What is seen. That nothing can be seen, and that it can again, is said once."""
        try:
            backlog = reader.look()
        except BrokerUnreachable as error:
            if not self._blind:
                logger.warning("the lag cannot be seen (%s): the standby stays as it is, warm", error.reason)
            self._blind = True
            return None
        if self._blind:
            logger.info("the lag can be seen again")
        self._blind = False
        return Observation(time.monotonic(), backlog.done, backlog.end)

    def _turn(self, now: Observation | None) -> None:
        waits = self._health.waits
        alone = len(self._consumer.owner.ledgers) == self._settings.topics.partitions
        why = self._gate.decide(now, inside=not waits, alone=alone)
        if self._consumer.should_stop:
            return
        if why and waits:
            logger.info("joins: %s", why)
            self._health.progress = self._consumer.owner.progress
            self._health.waits = False
            self._on_loop(self._consumer.enter())
        elif why:
            logger.info("leaves: %s", why)
            self._on_loop(self._consumer.leave())
            self._health.waits = True
            self._health.progress = None

    def _on_loop(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._consumer.loop).result(ACT_SECONDS)

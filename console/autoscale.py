"""`ecluse autoscale`: as many workers on this machine as the lag needs, by the seconds of work that wait."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, print_json, say, settings_of
from ecluse.errors import BrokerUnreachable
from ecluse.sections import AutoscaleSettings

if TYPE_CHECKING:
    from console.supervisor import Supervisor
    from ecluse.cluster import LagReader

#: Rates are means that forget with this time constant, in seconds.
_MEMORY_SECONDS = 10.0
#: Workers are busy, and their rate is their capacity, where at least so many seconds of work wait before and after.
_BUSY_SECONDS = 0.5
#: One worker fewer must be able to take what comes in with so much of its capacity.
_HEADROOM = 0.8


@dataclass(frozen=True, slots=True)
class Observation:
    """The stream and its workers at a moment, in seconds that only grow.

    `done` and `end` are as in `ecluse.cluster.Backlog`; of `workers`, `ready` are at work.
    """

    at: float
    done: int
    end: int
    workers: int
    ready: int

    @property
    def lag(self) -> int:
        """Events that wait."""
        return self.end - self.done


@dataclass(frozen=True, slots=True)
class Decision:
    """Go from `workers` to `wanted`; `why` is the reason in words."""

    workers: int
    wanted: int
    why: str


class Autoscaler:
    """Decides how many workers there should be. Pure: it knows only what it is shown, and no clock.

    Args:
        settings: the thresholds.
        least, most: how many workers there may be.
    """

    def __init__(self, settings: AutoscaleSettings, least: int, most: int) -> None:
        self._settings, self._least, self._most = settings, least, most
        self._last: Observation | None = None
        #: Events a second: what a worker does when it is busy, as far as it is known, and what comes in.
        self.rate: float | None = None
        self._inflow: float | None = None
        self._growing_since: float | None = None
        self._much: bool = False
        self._low_since: float | None = None

    def decide(self, now: Observation | None) -> Decision | None:
        """What to do; None where all stays. None is no observation: then nothing changes, and lulls do not count."""
        last, self._last = self._last, now
        if now is None or last is None:
            self._much, self._growing_since, self._low_since = False, None, None
            return None
        self._measure(last, now)
        if now.ready < now.workers:  # what was started last shows its effect only when it is ready
            self._much, self._growing_since = False, None
            return None
        decision = self._up(last, now) or self._down(now)
        if decision:
            self._much, self._growing_since, self._low_since = False, None, None
        return decision

    def waiting_seconds(self, now: Observation) -> float | None:
        """The seconds of work that wait; None while the rate is not known."""
        return now.lag / (self.rate * now.workers) if self.rate and now.workers else None

    def _measure(self, last: Observation, now: Observation) -> None:
        seconds = now.at - last.at
        weight = 1 - math.exp(-seconds / _MEMORY_SECONDS)
        inflow = max(0, now.end - last.end) / seconds
        self._inflow = inflow if self._inflow is None else self._inflow + weight * (inflow - self._inflow)
        done = now.done - last.done
        if done <= 0 or not 0 < now.ready == last.ready:  # standing still, or a rebalance: says nothing of capacity
            return
        rate = done / seconds / now.ready
        if min(last.lag, now.lag) >= _BUSY_SECONDS * done / seconds:
            self.rate = rate if self.rate is None else self.rate + weight * (rate - self.rate)
        elif self.rate is not None:
            self.rate = max(self.rate, rate)  # so much they can do at least

    def _up(self, last: Observation, now: Observation) -> Decision | None:
        limit, waiting = self._settings.up_seconds, self.waiting_seconds(now)
        if waiting is None or self.rate is None:
            return self._up_unmeasured(last, now)
        # Seen twice, because a look may fall into a burst that is gone at the next.
        before, self._much = self._much, waiting > limit
        if not (before and self._much) or now.workers >= self._most:
            return None
        enough = math.ceil(now.lag / (self.rate * limit))
        wanted = min(max(enough, now.workers + 1), 2 * now.workers, self._most)
        return Decision(
            now.workers,
            wanted,
            f"{now.lag:,} events wait, {waiting:,.1f} s of work at {self.rate:,.0f}/s a worker (more than {limit:.1f} s)",
        )

    def _up_unmeasured(self, last: Observation, now: Observation) -> Decision | None:
        """While nothing is known of their rate: one more, when the lag has grown for as long as it may wait."""
        # Less than comes in while an event may wait for the usual time is no backlog, however it goes up and down.
        if now.lag <= max(last.lag, self._settings.down_seconds * (self._inflow or 0.0)):
            self._growing_since = None
            return None
        self._growing_since = last.at if self._growing_since is None else self._growing_since
        seconds = now.at - self._growing_since
        if seconds <= self._settings.up_seconds or now.workers >= self._most:
            return None
        why = f"{now.lag:,} events wait, more and more for {seconds:.1f} s, and the workers' rate is not measured yet"
        return Decision(now.workers, now.workers + 1, why)

    def _down(self, now: Observation) -> Decision | None:
        waiting, fewer = self.waiting_seconds(now), now.workers - 1
        if waiting is None and self._inflow:  # not measured, but they keep up: an event waits for about so long
            waiting = now.lag / self._inflow
        low = waiting < self._settings.down_seconds if waiting is not None else now.lag == 0
        if not low:
            self._low_since = None
            return None
        self._low_since = now.at if self._low_since is None else self._low_since
        seconds = now.at - self._low_since
        if fewer < self._least or seconds < self._settings.settle_seconds or self._inflow is None:
            return None
        room = _HEADROOM * fewer * self.rate if self.rate is not None else math.inf
        if self._inflow > room:
            return None
        return Decision(
            now.workers,
            fewer,
            f"less than {self._settings.down_seconds:.1f} s of work has waited for {seconds:.0f} s, and {fewer} can take "
            f"the {self._inflow:,.0f}/s that come in",
        )


def autoscale_command(
    least: Annotated[int, typer.Option("--min", min=1, help="So many workers always run.")],
    most: Annotated[int, typer.Option("--max", min=1, help="No more than so many run.")],
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run as many workers on this machine as the lag needs, and say why each time that their number changes.

    More are started when the events that wait are more than autoscale.up_seconds of work; the newest is stopped when they were
    less than autoscale.down_seconds for autoscale.settle_seconds. SIGTERM or Ctrl-C stops all in order.
    """
    if least > most:
        raise typer.BadParameter(f"--min {least} is more than --max {most}.")
    from console.supervisor import supervisor_of
    from ecluse.cluster import LagReader

    settings = settings_of(config, servers)
    partitions = settings.topics.partitions
    if most > partitions:
        say(f"Of {most} workers {partitions} can have a partition: so many are started at most.")
    least, most = min(least, partitions), min(most, partitions)
    supervisor = supervisor_of(settings, config, servers)
    supervisor.scale(least)
    with LagReader(settings) as reader:
        look = looking(supervisor, reader, Autoscaler(settings.autoscale, least, most), as_json=as_json)
        code = supervisor.run(look)
    raise typer.Exit(code)


def looking(
    supervisor: "Supervisor", reader: "LagReader", autoscaler: Autoscaler, *, as_json: bool
) -> Callable[[], None]:
    """One look at the lag, and what it leads to. While it cannot be seen nothing changes, which is said once."""
    blind = False

    def look() -> None:
        nonlocal blind
        try:
            backlog = reader.look()
        except BrokerUnreachable as error:
            if not blind:
                say(f"The lag cannot be seen ({error.reason}): what runs stays.")
            blind = True
            autoscaler.decide(None)
            return
        if blind:
            say("The lag can be seen again.")
        blind = False
        now = Observation(time.monotonic(), backlog.done, backlog.end, supervisor.workers, supervisor.ready)
        if decision := autoscaler.decide(now):
            say(f"{decision.workers} -> {decision.wanted} workers: {decision.why}")
            if as_json:
                print_json(asdict(decision) | {"lag": now.lag, "rate": autoscaler.rate})
            supervisor.scale(decision.wanted)

    return look

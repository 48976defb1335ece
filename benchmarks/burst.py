"""A tenfold burst under `ecluse autoscale`: lag rises, workers come, lag returns to zero, workers go, and nothing is lost."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.ground import ECLUSE, Ground
from benchmarks.load import steady
from benchmarks.measure import EXACTLY_ONCE, backlog
from benchmarks.report import Figures
from console.audit import AuditReport, audit
from ecluse.cluster import LagReader

LEAST, MOST = 1, 4
#: The steady rate is so much of what one worker takes; the burst is ten times that.
STEADY_SHARE, TIMES = 0.15, 10
#: Quicker than the defaults, so that the picture is short.
AUTOSCALE = {"UP_SECONDS": "2", "DOWN_SECONDS": "1", "SETTLE_SECONDS": "8"}
SAMPLE_SECONDS = 0.5
CALM_SAMPLES = 8
_PATIENCE = 240.0


@dataclass(frozen=True)
class Sample:
    """The stream at a moment: seconds since the beginning, events that wait, workers that run, events a second that come."""

    at: float
    lag: int
    workers: int
    rate: int


@dataclass(frozen=True)
class Burst:
    """The whole run. `capacity` is what one worker took alone, in events a second; the burst is from `began` to `ended`."""

    samples: Sequence[Sample]
    capacity: float
    began: float
    ended: float
    audit: AuditReport


class Watch:
    """Samples the stream while time passes. The moment `zero` is where the picture begins."""

    def __init__(self, reader: LagReader, autoscale: psutil.Popen) -> None:
        self._reader, self._autoscale, self.zero = reader, autoscale, time.monotonic()
        self.samples: list[Sample] = []

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.zero

    def begin(self) -> None:
        """From here it counts."""
        self.zero = time.monotonic()
        self.samples.clear()

    def until(self, rate: int, over: Callable[[], bool]) -> None:
        """Sample until something is so, while events come at a rate.

        Raises:
            RuntimeError: it took too long, or `ecluse autoscale` ended.
        """
        deadline = self.now + _PATIENCE
        while not over():
            if self.now > deadline or self._autoscale.poll() is not None:
                raise RuntimeError(f"the burst did not come to its end; last seen: {self.samples[-1:]}")
            self.samples.append(Sample(self.now, self._reader.look().lag, workers(self._autoscale), rate))
            time.sleep(SAMPLE_SECONDS)

    def calm(self) -> bool:
        """Whether for some samples the fewest workers ran, and no more waited than comes in a second."""
        last = self.samples[-CALM_SAMPLES:]
        return len(last) == CALM_SAMPLES and all(one.workers == LEAST and one.lag < one.rate for one in last)


def workers(autoscale: psutil.Popen) -> int:
    """How many worker processes it has."""
    count = 0
    for child in autoscale.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            count += child.status() != psutil.STATUS_ZOMBIE and "worker" in child.cmdline()
    return count


@contextlib.contextmanager
def autoscaling(ground: Ground) -> Iterator[psutil.Popen]:
    """`ecluse autoscale` on this stream; its log is in the ground's folder."""
    command = [ECLUSE, "autoscale", "--config", str(ground.config), "--min", str(LEAST), "--max", str(MOST)]
    environment = os.environ | {f"ECLUSE_AUTOSCALE__{name}": value for name, value in AUTOSCALE.items()}
    with (ground.folder / "autoscale.log").open("wb") as out:
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def burst(ground: Ground, before: float, during: float, say: Callable[[str], None]) -> Burst:
    """Steady for `before` seconds, tenfold for `during`, and steady until the workers that came have gone.

    What one worker takes is measured first, on the events that wait there. Nothing is wound back, so the audit at the end
    counts every event of the topic.
    """
    capacity = backlog(ground, EXACTLY_ONCE, ground.events, ground.events).rate
    calm = max(1, round(STEADY_SHARE * capacity))
    say(f"burst: one worker takes {capacity:,.0f} events/s; {calm:,}/s come, and {TIMES * calm:,}/s in the burst")
    with LagReader(ground.settings) as reader, autoscaling(ground) as autoscale:
        watch = Watch(reader, autoscale)
        with steady(ground, calm) as load:
            watch.until(calm, watch.calm)
            watch.begin()
            watch.until(calm, lambda: watch.now >= before)
            load.change(TIMES * calm)
            began = watch.now
            watch.until(TIMES * calm, lambda: watch.now >= began + during)
            load.change(calm)
            ended = watch.now
            watch.until(calm, lambda: watch.now >= ended + 1 and watch.calm())
        samples = list(watch.samples)
        watch.until(0, lambda: reader.look().lag == 0)
    log = (ground.folder / "autoscale.log").read_text(encoding="utf-8").splitlines()
    why = [line for line in log if re.match(r"\d+ -> \d+ workers", line)]
    report = audit(ground.settings, everything=True)
    say("\n".join([*why, f"burst: {report.verdict}"]))
    return Burst(samples, capacity, began, ended, report)


def figures(run: Burst) -> Figures:
    """What a row of results holds of it."""
    most = max(run.samples, key=lambda sample: sample.lag)
    drained = next((one.at for one in run.samples if one.at > most.at and one.lag < one.rate), run.samples[-1].at)
    return {
        "worker_events_per_s": round(run.capacity),
        "steady_per_s": run.samples[0].rate,
        "burst_per_s": TIMES * run.samples[0].rate,
        "burst_s": round(run.ended - run.began),
        "most_lag": most.lag,
        "most_workers": max(sample.workers for sample in run.samples),
        "drained_s_after_burst": round(max(0.0, drained - run.ended), 1),
        "back_to_least_s_after_burst": round(run.samples[-1].at - run.ended, 1),
        "events": run.audit.events,
        "missing": run.audit.missing,
        "doubled": run.audit.doubled,
    }


def show(run: Burst) -> None:
    """Print what happened, and the audit."""
    told = figures(run)
    print(
        f"A burst of {told['burst_per_s']:,} events/s for {told['burst_s']} s, after {told['steady_per_s']:,}/s; "
        f"one worker takes {told['worker_events_per_s']:,}/s.\n"
        f"At most {told['most_lag']:,} events waited, and {told['most_workers']} workers ran. "
        f"{told['drained_s_after_burst']} s after the end of the burst the lag was gone, "
        f"{told['back_to_least_s_after_burst']} s after it one worker was left.\n"
        f"{run.audit.verdict} Missing {run.audit.missing}, doubled {run.audit.doubled}."
    )


def draw(run: Burst, file: Path) -> None:
    """The picture: lag and workers over time."""
    import matplotlib as mpl  # noqa: PLC0415 - only this part needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    at = [sample.at for sample in run.samples]
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(9, 5), height_ratios=(2, 1), layout="constrained", facecolor="white"
    )
    for axes in (above, below):
        axes.axvspan(run.began, run.ended, color="#f2d9b3", lw=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd")
        axes.set_axisbelow(True)
    above.fill_between(at, [sample.lag for sample in run.samples], color="#2a6f97", alpha=0.25, lw=0)
    above.plot(at, [sample.lag for sample in run.samples], color="#2a6f97")
    above.set_ylabel("events that wait (lag)")
    above.set_ylim(bottom=0)
    above.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    middle = (run.began + run.ended) / 2
    calm = run.samples[0].rate
    above.text(middle, above.get_ylim()[1] * 0.97, f"{TIMES * calm:,} events/s", ha="center", va="top", color="#8a5a00")
    below.step(at, [sample.workers for sample in run.samples], where="post", color="#b5432a")
    below.set_ylabel("workers")
    below.set_yticks(range(MOST + 1))
    below.set_xlabel("seconds")
    figure.suptitle(
        f"ecluse autoscale: {calm:,} events/s, ten times that for {run.ended - run.began:.0f} s, and again {calm:,}\n"
        f"{run.audit.events:,} events, {run.audit.missing} missing, {run.audit.doubled} doubled",
        fontsize=11,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)

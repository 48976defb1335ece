"""``python -m benchmarks``: the whole run, each part on a broker of its own."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import burst, bypass, heavy, http, monitor, profiles, silence, store, swap
from benchmarks.ground import SEED, Ground, ground
from benchmarks.latency import Latency, latency
from benchmarks.measure import BY_HAND, CONTESTANTS, WORKERS, Run, backlog
from benchmarks.report import Figures, Results, append, figures, show, surroundings

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "burst.png"
PARTITIONS = 8
RATE = 1_000
#: The clock stops before a backlog is worked off: at its end a commit that is due later would count as time.
MEASURED = 0.95


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Of the speed: the backlog of a round, plain Faust's part of it, the backlogs for memory, the time for latency. Of the
    silence: the groups' protocols and the rounds. Of the burst: the events on which one worker's rate is measured, and the
    seconds before and in the burst. Of HTTP: the seconds of a run. Of the swaps: the windows, and
    their seconds. Of the store: the seconds of a steady rate, and the records of the backlog.
    """

    events: int = 400_000
    rounds: int = 3
    faust: int = 15_000
    backlogs: tuple[int, int] = (100_000, 1_000_000)
    seconds: float = 25.0
    protocols: tuple[str, ...] = ("classic", "consumer")
    changes: int = 3
    one_worker: int = 150_000
    burst: tuple[float, float] = (15.0, 30.0)
    http: float = 10.0
    swap: tuple[int, float] = (12, 5.0)
    store: tuple[float, int] = (60.0, 2_000_000)


QUICK = Sizes(
    30_000, 1, 3_000, (10_000, 40_000), 3.0, ("classic",), 1, 30_000, (3.0, 10.0), 1.0, (2, 3.0), (4.0, 50_000)
)


def main() -> None:
    """Measure, print the tables and append the rows."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--events", type=int, default=Sizes.events, help="the backlog of a round")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds, help="how often the contestants take turns")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small numbers, no rows, no picture in docs")
    asked = parser.parse_args()
    sizes = QUICK if asked.quick else Sizes(asked.events, asked.rounds)
    for name, part in PARTS.items():
        if asked.only in (None, name):
            about = surroundings()
            row = part(sizes, asked.quick)
            print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
            if not asked.quick:
                append(HERE / FILES[name], about | row)


@contextmanager
def prepared(events: int, settings: dict[str, str] | None = None, script: str = "default") -> Iterator[Ground]:
    """A broker of its own, with everything that workers need; gone at the end."""
    say(f"Seed {SEED}. Broker, topics, model, events …")
    with (
        tempfile.TemporaryDirectory(prefix="ecluse-bench-") as folder,
        ground(Path(folder), events, PARTITIONS, settings=settings, script=script) as there,
    ):
        yield there


def speed(sizes: Sizes, quick: bool) -> Figures:
    """Throughput, memory and latency of the contestants."""
    del quick
    with prepared(max(sizes.events, *sizes.backlogs)) as there:
        results = measure(there, sizes)
    show(results)
    return {"events": sizes.events, "rounds": sizes.rounds} | figures(results)


def silences(sizes: Sizes, quick: bool) -> Figures:
    """How long partitions are silent while workers come and go."""
    del quick
    with prepared(10_000, silence.BROKER) as there:
        changes = silence.silence(there, sizes.protocols, sizes.changes, say)
    silence.show(changes)
    return silence.figures(changes)


def bursts(sizes: Sizes, quick: bool) -> Figures:
    """A burst under `ecluse autoscale`, and its picture."""
    with prepared(sizes.one_worker, script=f"{heavy.__file__}:train") as there:
        run = burst.burst(there, *sizes.burst, say)
        burst.draw(run, there.folder / PICTURE.name if quick else PICTURE)
    burst.show(run)
    return burst.figures(run)


def served(sizes: Sizes, quick: bool) -> Figures:
    """`ecluse serve` under a closed loop."""
    del quick
    with prepared(10_000) as there:
        rates = http.http(there, sizes.http, say)
    http.show(rates)
    return http.figures(rates)


def swaps(sizes: Sizes, quick: bool) -> Figures:
    """Latency while the champion changes."""
    del quick
    with prepared(10_000) as there:
        found = swap.swap(there, *sizes.swap, say)
    swap.show(found)
    return swap.figures(found)


def stored(sizes: Sizes, quick: bool) -> Figures:
    """One sink, at a steady rate and on a backlog."""
    del quick
    with prepared(10_000) as there:
        found = store.store(there, *sizes.store, say)
    store.show(found)
    return store.figures(found)


def bypassed(sizes: Sizes, quick: bool) -> Figures:
    """A worker's rate with and without the bypass."""
    del quick
    with prepared(sizes.events) as there:
        runs = bypass.bypass(there, sizes.events, sizes.rounds, say)
    bypass.show(runs)
    return {"events": sizes.events} | bypass.figures(runs)


def counted(sizes: Sizes, quick: bool) -> Figures:
    """A worker that counts for the monitor, and one that does not."""
    del quick
    with prepared(sizes.events) as there:
        found = profiles.cost(there, sizes.events, sizes.rounds, sizes.seconds, say)
    profiles.show(found)
    return {"events": sizes.events} | profiles.figures(found)


def watched(sizes: Sizes, quick: bool) -> Figures:
    """A monitor while a worker scores little and much."""
    del quick
    with prepared(10_000) as there:
        found = monitor.monitor(there, 2 * sizes.seconds, say)
    monitor.show(found)
    return monitor.figures(found)


PARTS: dict[str, Callable[[Sizes, bool], Figures]] = {
    "speed": speed,
    "silence": silences,
    "burst": bursts,
    "http": served,
    "swap": swaps,
    "bypass": bypassed,
    "store": stored,
    "profiles": counted,
    "monitor": watched,
}
FILES = {name: f"{name}.csv" for name in PARTS} | {"speed": "results.csv"}


def measure(there: Ground, sizes: Sizes) -> Results:
    """Contestants in turn, then memory, then latency. Plain Faust gets a smaller part of the same backlog."""
    runs: dict[str, list[Run]] = {name: [] for name in CONTESTANTS}
    for number in range(sizes.rounds):
        for name in CONTESTANTS:
            count = sizes.faust if name.startswith("faust") else int(MEASURED * sizes.events)
            run = backlog(there, name, sizes.events, count)
            runs[name].append(run)
            say(
                f"round {number + 1}, {name}: {run.rate:,.0f} events/s, {run.cpu_us:.1f} µs CPU, {run.peak_mib:.0f} MiB"
            )
    memory: dict[str, dict[int, float]] = {name: {} for name in WORKERS}
    for name in WORKERS:
        for waiting in sizes.backlogs:
            memory[name][waiting] = backlog(there, name, waiting, waiting).peak_mib
            say(f"{name}, backlog of {waiting:,}: {memory[name][waiting]:.0f} MiB")
    waits: dict[str, Latency] = {}
    for name in (*WORKERS, BY_HAND):
        waits[name] = latency(there, name, RATE, sizes.seconds)
        say(f"latency of {name}: {waits[name]}")
    return Results(runs, memory, waits, RATE)


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

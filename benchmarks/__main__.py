"""``python -m benchmarks``: the whole run, on a broker of its own."""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ground import SEED, Ground, ground
from benchmarks.latency import Latency, latency
from benchmarks.measure import CONTESTANTS, Run, backlog
from benchmarks.report import Results, append, figures, show, surroundings

RESULTS = Path(__file__).with_name("results.csv")
PARTITIONS = 8
RATE = 1_000


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the backlog of a round, plain Faust's part of it, the backlogs for memory, the time for latency."""

    events: int = 400_000
    rounds: int = 3
    faust: int = 15_000
    backlogs: tuple[int, int] = (100_000, 1_000_000)
    seconds: float = 25.0


QUICK = Sizes(events=30_000, rounds=1, faust=3_000, backlogs=(10_000, 40_000), seconds=3.0)


def main() -> None:
    """Measure, print the table and append the row."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--events", type=int, default=Sizes.events, help="the backlog of a round")
    parser.add_argument("--rounds", type=int, default=Sizes.rounds, help="how often the contestants take turns")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small numbers, no row in results.csv")
    asked = parser.parse_args()
    sizes = QUICK if asked.quick else Sizes(asked.events, asked.rounds)
    about = surroundings()
    say(f"Seed {SEED}. Broker, topics, model, events …")
    with (
        tempfile.TemporaryDirectory(prefix="ecluse-bench-") as folder,
        ground(Path(folder), max(sizes.events, *sizes.backlogs), PARTITIONS) as there,
    ):
        results = measure(there, sizes)
    show(results, about)
    if not asked.quick:
        append(RESULTS, about | {"events": sizes.events, "rounds": sizes.rounds} | figures(results))


def measure(there: Ground, sizes: Sizes) -> Results:
    """Contestants in turn, then memory, then latency. Plain Faust gets a smaller part of the same backlog."""
    runs: dict[str, list[Run]] = {name: [] for name in CONTESTANTS}
    for number in range(sizes.rounds):
        for name in CONTESTANTS:
            run = backlog(there, name, sizes.events, sizes.faust if name.startswith("faust") else sizes.events)
            runs[name].append(run)
            say(
                f"round {number + 1}, {name}: {run.rate:,.0f} events/s, {run.cpu_us:.1f} µs CPU, {run.peak_mib:.0f} MiB"
            )
    memory = {}
    for waiting in sizes.backlogs:
        memory[waiting] = backlog(there, "worker", waiting, waiting).peak_mib
        say(f"backlog of {waiting:,}: {memory[waiting]:.0f} MiB")
    waits: dict[str, Latency] = {}
    for name in ("worker", "by hand"):
        waits[name] = latency(there, name, RATE, sizes.seconds)
        say(f"latency of {name}: {waits[name]}")
    return Results(runs, memory, waits, RATE)


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

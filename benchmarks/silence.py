"""How long a partition's output is silent while workers join, leave and are killed, beside minutes in which nobody does."""

import os
import random
import re
import signal
import subprocess
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from confluent_kafka import TopicPartition
from rich.console import Console
from rich.table import Table

from benchmarks.ground import ECLUSE, SEED, Ground
from benchmarks.load import steady
from benchmarks.report import Figures
from ecluse import kafka

RATE = 2_000
#: Of the classic group, of the broker's KIP-848 groups, and of transactions.
SESSION_SECONDS = 6
#: The broker's part of KIP-848; its defaults are 45 s, and heartbeats every 5 s.
BROKER = {
    "group.consumer.session.timeout.ms": f"{SESSION_SECONDS}000",
    "group.consumer.min.session.timeout.ms": f"{SESSION_SECONDS}000",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
}
#: A change counts until so long after the group has come to rest.
REST_SECONDS = 3.0
#: Seconds: of a partition that stays, beyond its usual gap; of one that moves on an order; of a killed worker's.
AIM_STAYS, AIM_MOVES, AIM_KILLED = 0.3, 1.5, SESSION_SECONDS + 3.0
_PATIENCE = 60.0
_MOVES = re.compile(r"(assigned|gave back|lost) partitions \[([\d, ]*)\]")


@dataclass(frozen=True)
class Change:
    """What one change of the group's members did: the longest gaps, in seconds.

    `usual` is of the partitions that stayed, in a window as long right after it in which nothing changed.
    """

    protocol: str
    what: str
    stayed: float
    usual: float
    moved: float
    partitions: int

    @property
    def beyond(self) -> float:
        """How much longer than usual a partition that stayed was silent."""
        return self.stayed - self.usual


def longest_gap(seen: Sequence[float], start: float, end: float) -> float:
    """The longest time between one sighting and the next, of those times that reach into a window.

    Raises:
        ValueError: there is no sighting before the window, or none after it.
    """
    first, after = bisect_right(seen, start) - 1, bisect_left(seen, end)
    if first < 0 or after == len(seen):
        raise ValueError("the window reaches beyond what was seen")
    return max(b - a for a, b in pairwise(seen[first : after + 1]))


class Sightings(threading.Thread):
    """A reader of committed predictions: when each was seen, by partition."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(name="sightings", daemon=True)
        self._settings = ground.settings
        self._places = [
            TopicPartition(ground.settings.names.predictions, partition, end)
            for partition, end in enumerate(ground.ends(ground.settings.names.predictions))
        ]
        self._ending = threading.Event()
        self.seen: list[list[float]] = [[] for _ in self._places]

    def run(self) -> None:
        """Read until told to end."""
        with kafka.reader(self._settings) as consumer:
            consumer.assign(self._places)
            while not self._ending.is_set():
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    self.seen[message.partition() or 0].append(time.monotonic())

    def since(self, moment: float) -> bool:
        """Whether every partition has been seen since a moment."""
        return all(times and times[-1] > moment for times in self.seen)

    def end(self) -> None:
        """End the reading."""
        self._ending.set()
        self.join(10.0)


class Member:
    """A worker. Which partitions it holds stands in its log."""

    def __init__(self, ground: Ground, protocol: str, number: int) -> None:
        self._log = ground.folder / f"member-{protocol}-{number}.log"
        environment = {
            "ECLUSE_WORKER__GROUP_PROTOCOL": protocol,
            "ECLUSE_WORKER__SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
        }
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [ECLUSE, "worker", "--config", str(ground.config)], stdout=out, stderr=out, env=os.environ | environment
            )

    @property
    def moves(self) -> list[tuple[str, set[int]]]:
        """What it was given and what it gave back, in order."""
        found = _MOVES.findall(self._log.read_text(encoding="utf-8"))
        return [(what, {int(number) for number in re.findall(r"\d+", numbers)}) for what, numbers in found]

    @property
    def held(self) -> set[int]:
        """The partitions that it has."""
        return held(self.moves)

    def stop(self, how: signal.Signals) -> None:
        """Send a signal that ends it, and wait for the end."""
        self.process.send_signal(how)
        self.process.wait(_PATIENCE)


def held(moves: Sequence[tuple[str, set[int]]]) -> set[int]:
    """What is left of what was given."""
    have: set[int] = set()
    for what, partitions in moves:
        have = have | partitions if what == "assigned" else have - partitions
    return have


class Group:
    """The workers of a stream, and what their changes do to its output."""

    def __init__(self, ground: Ground, protocol: str) -> None:
        self._ground, self._protocol, self._started = ground, protocol, 0
        self.members: list[Member] = []
        self.sightings = Sightings(ground)

    def join(self) -> None:
        """A worker is started."""
        self.members.append(Member(self._ground, self._protocol, self._started))
        self._started += 1

    def rest(self) -> None:
        """Wait until each member has partitions, together they have all, and all have been seen since."""
        everything = list(range(self._ground.settings.topics.partitions))

        def shared() -> bool:
            shares = [member.held for member in self.members]
            return all(shares) and sorted(p for share in shares for p in share) == everything

        wait_until("the partitions are shared out", shared)
        now = time.monotonic()
        wait_until("every partition's predictions are seen", lambda: self.sightings.since(now))
        time.sleep(REST_SECONDS)

    def measure(self, what: str, chance: random.Random) -> Change:
        """Let a worker join (`join`), or stop (`SIGTERM`) or kill (`SIGKILL`) one that chance picks."""
        before = [(member, len(member.moves)) for member in self.members]
        moved: set[int] = set()
        start = time.monotonic()
        if what == "join":
            self.join()
            before.append((self.members[-1], 0))
        else:
            leaver = chance.choice(self.members)
            self.members.remove(leaver)
            moved |= leaver.held
            leaver.stop(signal.Signals[what])
        self.rest()
        end = time.monotonic()
        for member, known in before:
            moved |= set().union(*(partitions for _, partitions in member.moves[known:]))
        time.sleep(end - start)
        later = time.monotonic()
        wait_until("every partition's predictions are seen", lambda: self.sightings.since(later))
        seen = self.sightings.seen
        stays = [times for partition, times in enumerate(seen) if partition not in moved]
        return Change(
            self._protocol,
            what,
            max((longest_gap(times, start, end) for times in stays), default=0.0),
            max((longest_gap(times, end, later) for times in stays), default=0.0),
            max((longest_gap(seen[partition], start, end) for partition in moved), default=0.0),
            len(moved),
        )


@contextmanager
def group(ground: Ground, protocol: str) -> Iterator[Group]:
    """Two workers at rest under a steady load."""
    ground.start_at(ground.settings.group, 0)
    made = Group(ground, protocol)
    with ExitStack() as stack:
        stack.callback(end_all, made)
        for _ in range(2):
            made.join()
        made.sightings.start()
        stack.enter_context(steady(ground, RATE))
        made.rest()
        yield made


def end_all(made: Group) -> None:
    """Stop the workers and the reader."""
    for member in made.members:
        member.stop(signal.SIGTERM)
    if made.sightings.ident is not None:
        made.sightings.end()


def silence(ground: Ground, protocols: Sequence[str], rounds: int, say: Callable[[str], None]) -> list[Change]:
    """In each round a worker joins and one leaves, and a worker joins and one is killed; order and victims are chance."""
    chance = random.Random(SEED)
    changes = []
    for protocol in protocols:
        with group(ground, protocol) as made:
            for number in range(rounds):
                for ending in chance.sample(("SIGTERM", "SIGKILL"), 2):
                    for what in ("join", ending):
                        changes.append(made.measure(what, chance))
                        say(f"silence, round {number + 1}: {changes[-1]}")
    return changes


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition, or fail by its name."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {_PATIENCE:.0f} s")
        time.sleep(0.05)


def by_kind(changes: Sequence[Change]) -> dict[tuple[str, str], list[Change]]:
    """The changes of each protocol and kind."""
    kinds: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        kinds.setdefault((change.protocol, change.what), []).append(change)
    return kinds


def figures(changes: Sequence[Change]) -> Figures:
    """The worst of each kind, and the median beyond the usual gap, in milliseconds."""
    row: Figures = {"rate_per_s": RATE, "session_s": SESSION_SECONDS}
    for (protocol, what), some in by_kind(changes).items():
        name = f"{protocol}_{what.lower()}"
        row[f"{name}_times"] = len(some)
        row[f"{name}_stayed_ms"] = round(max(change.stayed for change in some) * 1e3)
        row[f"{name}_usual_ms"] = round(max(change.usual for change in some) * 1e3)
        row[f"{name}_beyond_median_ms"] = round(median(change.beyond for change in some) * 1e3)
        row[f"{name}_beyond_worst_ms"] = round(max(change.beyond for change in some) * 1e3)
        row[f"{name}_moved_ms"] = round(max(change.moved for change in some) * 1e3)
    return row


def show(changes: Sequence[Change]) -> None:
    """Print the table, and how it stands against the aims."""
    out = Console(width=110)
    table = Table(title=f"Silence of a partition at {RATE:,} events/s over all, milliseconds: the longest of each kind")
    for column in ("group", "change", "times", "stays", "usually", "beyond it (median)", "moves", "aims"):
        table.add_column(column, justify="left" if column in {"group", "change", "aims"} else "right")
    for (protocol, what), some in by_kind(changes).items():
        limit = AIM_KILLED if what == "SIGKILL" else AIM_MOVES
        beyond, moved = max(change.beyond for change in some), max(change.moved for change in some)
        table.add_row(
            protocol,
            what,
            str(len(some)),
            f"{max(change.stayed for change in some) * 1e3:.0f}",
            f"{max(change.usual for change in some) * 1e3:.0f}",
            f"{beyond * 1e3:.0f} ({median(change.beyond for change in some) * 1e3:.0f})",
            f"{moved * 1e3:.0f}",
            f"{AIM_STAYS * 1e3:.0f} {verdict(beyond, AIM_STAYS)}, {limit * 1e3:.0f} {verdict(moved, limit)}",
        )
    out.print(table)
    out.print(
        f"Aims: a partition that stays is silent for at most {AIM_STAYS * 1e3:.0f} ms beyond its usual gap; one that moves on "
        f"an order for {AIM_MOVES:.1f} s; a killed worker's for session and transaction timeout and 3 s ({AIM_KILLED:.0f} s)."
    )


def verdict(value: float, limit: float) -> str:
    """Whether an aim is met."""
    return "met" if value <= limit else "NOT met"

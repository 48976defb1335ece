"""A model of a gigabyte comes while events flow. It takes minutes and up to 12 GB of memory: `make study`, not `make test`."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ecluse.contract.records import Arm
from ecluse.model.routes import promote
from ecluse.settings import Settings
from retrain.convert import to_onnx_bytes
from tests.study import forest
from tests.study.conftest import Large
from tests.study.tables import show
from tests.study.watching import Watch, longest_pause, watching
from tests.swaps import Sender
from tests.workers import WorkerProcess, audited, events, json_values, scored, send, wait_until, worker

pytestmark = pytest.mark.timeout(1800)
#: So many wait at first, which lasts for all of it on a machine that does nothing else, and so many come when few are left.
BACKLOG, FEW, MORE = 4_000_000, 1_000_000, 500_000
#: Seconds at work before it counts, for the group to form; and the length of what is compared.
SETTLE, WINDOW = 3.0, 12.0
AIM = 0.6
LOADED = 600.0
#: The worker that stays may be silent for a moment when its partitions are shared with one that joins.
STALLED = 5.0
Stream = Callable[[Arm], tuple[Settings, int]]


def test_the_quick_way_to_onnx_gives_the_bytes_that_the_usual_one_gives() -> None:
    grown = forest.grow(forest.rows(500), 3)
    assert forest.onnx_of(grown) == to_onnx_bytes(grown, len(forest.FEATURES))


@pytest.mark.study
def test_while_a_gigabyte_loads_a_worker_keeps_most_of_its_throughput(large: Large, stream: Stream) -> None:
    settings, revision = stream(large.small)
    values = json_values(events(2_000))
    send(settings, values * (BACKLOG // len(values)))
    with (
        worker(settings, "--from", "earliest") as running,
        watching(settings, running) as watch,
        refilled(settings, values, watch) as least,
    ):
        pass_by(SETTLE)
        before = pass_by(WINDOW)
        asked = time.time()
        revision = promote(settings, large.large, revision)
        fetched = serving(running, revision)
        swapped = time.time()
        during = (asked, swapped)
        with_large = pass_by(WINDOW)
        back = time.time()
        revision = promote(settings, large.small, revision)
        serving(running, revision)
        dropped = time.time()
        after = pass_by(WINDOW)
        assert running.stop() == 0, running.text
    share = watch.rate(*during) / watch.rate(*before)
    print_rates(
        watch, {"before": before, "loading": during, "large": with_large, "back": (back, dropped), "after": after}
    )
    pauses = {
        "none, before": longest_pause(settings, *before),
        "none, at the end of loading": longest_pause(settings, swapped - WINDOW, swapped - 2),
        "small to large": longest_pause(settings, swapped - 2, swapped + 4),
        "large to small, which drops it": longest_pause(settings, dropped - 2, dropped + 4),
    }
    show(
        "The longest time without a prediction",
        {"change of model": list(pauses), "seconds": [f"{seconds:.2f}" for seconds in pauses.values()]},
    )
    warm = re.findall(r"version (\d+) is warm after ([\d.]+) s", running.text)
    show(
        f"From the order to the swap {swapped - asked:.1f} s, of which the download {fetched:.1f} s",
        {"version": [version for version, _ in warm], "seconds until warm": [seconds for _, seconds in warm]},
    )
    assert min(least) > 0, "the worker had nothing to do for a while"
    assert share > AIM, f"while the model loads {share:.0%} of the throughput is left"


@pytest.mark.study
def test_a_worker_that_joins_holds_nothing_before_its_gigabyte_is_warm_and_one_without_room_for_it_goes_on(
    large: Large, stream: Stream
) -> None:
    settings, revision = stream(large.small)
    sender = Sender(settings, events(200))
    little = {"ECLUSE_MODEL__MEMORY_BUDGET_MB": "1000"}
    with worker(settings, "--from", "earliest", env=little) as first, watching(settings, first) as watch:
        sender.start()
        promote(settings, large.large, revision)
        wait_until("it says that it has no room", lambda: bool(first.model["degraded"]))
        assert "of model.memory_budget_mb = 1000" in first.model["degraded"]
        began = time.time()
        with worker(settings, ready=False) as second, holdings(first, second) as held:
            wait_until("the second has loaded the model", lambda: "is warm after" in second.text, LOADED)
            warm = time.time()
            wait_until("the partitions are shared", lambda: held[-1][1:] == (2, 2))
            wait_until("both score", scored(settings, sender.sent + 400))
            ended = time.time()
            sent = sender.finish()
            wait_until("all is scored", scored(settings, sent))
            assert (first.stop(), second.stop()) == (0, 0), first.text + second.text
        report = audited(settings)
    assert second.text.index("is warm after") < second.text.index("assigned partitions")
    early = [shares for at, *shares in held if at < warm - 1]
    assert early, "it was loaded at once"
    assert all(shares == [4, 0] for shares in early)
    assert (report.events, report.missing, report.doubled) == (sent, 0, 0)
    silent = {"while the second loads": (began, warm), "while it joins": (warm, ended)}
    longest = [longest_still(watch, *times) for times in silent.values()]
    show(
        f"A second worker loads the model for {warm - began:.0f} s; the first has no room for it and scores with the small one",
        {"": list(silent), "longest time without a commit, seconds": [f"{seconds:.2f}" for seconds in longest]},
    )
    assert max(longest) < STALLED


def pass_by(seconds: float) -> tuple[float, float]:
    """Let the worker work for so long; returns from when to when."""
    start = time.time()
    wait_until("time passes", lambda: time.time() >= start + seconds)
    return start, time.time()


def serving(running: WorkerProcess, revision: int) -> float:
    """Wait until the worker serves a revision; returns for how long it was seen to download, in seconds."""
    began = fetched = time.time()

    def serves() -> bool:
        nonlocal fetched
        told = running.model
        assert not told["degraded"], told["degraded"]
        if told["loading"] is not None and 0 < (told["progress"] or 0) < 1:
            fetched = time.time()
        return bool(told["revision"] == revision)

    wait_until(f"revision {revision} serves", serves, LOADED)
    return fetched - began


@contextmanager
def refilled(settings: Settings, values: list[bytes], watch: Watch) -> Iterator[list[int]]:
    """Keep events waiting; what is given holds how many waited at each look."""
    sent, waiting, ending = BACKLOG, [BACKLOG], threading.Event()

    def refill() -> None:
        nonlocal sent
        while not ending.wait(0.2):
            waiting.append(sent - watch.looks[-1].done if watch.looks else sent)
            if waiting[-1] < FEW:
                send(settings, values * (MORE // len(values)))
                sent += MORE

    thread = threading.Thread(target=refill, name="refill")
    thread.start()
    try:
        yield waiting
    finally:
        ending.set()
        thread.join(60)


@contextmanager
def holdings(*workers: WorkerProcess) -> Iterator[list[tuple[float, ...]]]:
    """Looks again and again at how many partitions each worker says that it holds: the time, and a number for each."""
    seen: list[tuple[float, ...]] = [(time.time(), *map(held, workers))]
    ending = threading.Event()

    def look() -> None:
        while not ending.wait(0.2):
            seen.append((time.time(), *map(held, workers)))

    thread = threading.Thread(target=look, name="holdings")
    thread.start()
    try:
        yield seen
    finally:
        ending.set()
        thread.join(30)


def held(running: WorkerProcess) -> int:
    """How many partitions a worker says that it holds; none while it is outside the group."""
    found = re.search(r"^ecluse_assigned_partitions (\d+)", running.get("/metrics")[1], re.MULTILINE)
    return int(found[1]) if found else 0


def longest_still(watch: Watch, start: float, end: float) -> float:
    """The longest time in which nothing was committed, in seconds."""
    moved, done, longest = start, -1, 0.0
    for look in watch.between(start, end):
        longest = max(longest, look.at - moved)
        if look.done > done:
            moved, done = look.at, look.done
    return longest


def print_rates(watch: Watch, times: dict[str, tuple[float, float]]) -> None:
    """Throughput, CPU and memory in each of these times; throughput also as a share of the first's."""
    names = {
        "before": "before, small model",
        "loading": "while the large one loads",
        "large": "with the large one",
        "back": "while the small one comes back",
        "after": "after, small model",
    }
    rates = [watch.rate(*span) for span in times.values()]
    sizes = [watch.resident(*span) for span in times.values()]
    show(
        "A worker with a backlog, two cores",
        {
            "": [names[name] for name in times],
            "seconds": [f"{end - start:.1f}" for start, end in times.values()],
            "events/s": [f"{rate:,.0f}" for rate in rates],
            "of before": [f"{rate / rates[0]:.0%}" for rate in rates],
            "cores": [f"{watch.cores(*span):.2f}" for span in times.values()],
            "peak MiB": [f"{peak / 2**20:,.0f}" for peak, _ in sizes],
            "MiB at its end": [f"{last / 2**20:,.0f}" for _, last in sizes],
        },
    )

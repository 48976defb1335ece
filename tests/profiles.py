"""Profiles as workers would have written them, and real monitors that read them."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
import numpy as np
from confluent_kafka import Producer

from ecluse import kafka
from ecluse.contract.codecs import Reader, encoder
from ecluse.contract.loop import Counts, Covered, DriftReport, Profile, RetrainRequest, WindowCounts
from ecluse.contract.records import Decision
from ecluse.model.bins import Bins
from ecluse.model.manifest import Manifest, sha256
from ecluse.settings import Settings
from retrain.drift.fold import Fold
from retrain.drift.windows import Reference
from tests.cli import config_file
from tests.workers import DEADLINE, ECLUSE, WorkerProcess, read_all

#: When the streams of these profiles begin, and how long their windows are, in seconds.
START, WINDOW = 1_767_571_200, 3600
#: The settings of a monitor that judges two windows of an hour.
MONITOR = {
    "window_hours": 1,
    "span_windows": 2,
    "late_hours": 0,
    "cooldown_hours": 12,
    "calm_windows": 1,
    "change_confidence": 1e-9,
}
#: So many events are in a profile, and so many profiles in a window: their clock shows the next window at its third.
EVENTS, PROFILES = 600, 5

_encode = encoder("msgpack")


class Counting:
    """Makes the profiles of one version, whose amounts go from 0 to 400 as in training, or half as far when drifting."""

    def __init__(self, settings: Settings, manifest: Manifest, seed: int = 1) -> None:
        self._settings, self._manifest = settings, manifest
        self._inputs = Bins(manifest.reference)
        self._random = np.random.default_rng(seed)
        self._digest = sha256(manifest.encode())
        self._offset = 0
        counts = np.array(manifest.score_reference.counts)
        self._shares = counts / counts.sum()

    def window(self, number: int, *, drifting: bool) -> Iterator[Profile]:
        """The profiles of a window of the stream."""
        for part in range(PROFILES):
            yield self._profile(number, START + (number + (part + 0.5) / PROFILES) * WINDOW, drifting)

    def _profile(self, window: int, time_of: float, drifting: bool) -> Profile:
        amounts = self._random.integers(0, 200 if drifting else 400, EVENTS).astype(np.float32)[:, None]
        bins, found = np.unique(self._random.choice(len(self._shares), EVENTS, p=self._shares), return_counts=True)
        start, self._offset = self._offset, self._offset + EVENTS
        counts = WindowCounts(
            window=START + window * WINDOW,
            inputs=self._inputs.counts(self._inputs.totals(self._inputs.cells(amounts))[0]),
            scores=Counts(dict(zip(bins.tolist(), found.tolist(), strict=True))),
            arms={"champion": {Decision.ALLOW: EVENTS // 2, Decision.REVIEW: EVENTS - EVENTS // 2}},
        )
        return Profile(
            model=self._settings.model_name,
            version=self._manifest.version,
            manifest_sha256=self._digest,
            worker="w-1",
            window_seconds=WINDOW,
            windows=[counts],
            covers=[Covered(0, start, self._offset, time_of)],
        )


def made_profiles(settings: Settings, manifest: Manifest, windows: str) -> list[Profile]:
    """The profiles of windows that are steady (s) or drift (d), one after the other."""
    counting = Counting(settings, manifest)
    return [each for number, kind in enumerate(windows) for each in counting.window(number, drifting=kind == "d")]


class Profiles:
    """Writes such profiles to their topic."""

    def __init__(self, settings: Settings, manifest: Manifest, seed: int = 1) -> None:
        self._topic, self._counting = settings.names.profiles, Counting(settings, manifest, seed)
        self._producer = Producer(kafka.transactional_config(settings, f"{settings.group}-{seed}", 60))
        self._producer.init_transactions(10)
        self.windows = 0

    def send(self, windows: int, *, drifting: bool = False) -> None:
        """Write the profiles of so many windows, each in a transaction of its own, as a worker does."""
        for window in range(self.windows, self.windows + windows):
            for profile in self._counting.window(window, drifting=drifting):
                self._producer.begin_transaction()
                self._producer.produce(self._topic, _encode(profile), str(profile.version).encode(), 0)
                self._producer.commit_transaction(DEADLINE)
        self.windows += windows


@contextmanager
def monitor(settings: Settings, *, ready: bool = True, env: Mapping[str, str] | None = None) -> Iterator[WorkerProcess]:
    """A running monitor, which is killed at the end if it still runs."""
    running = start_monitor(settings, env)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        running.process.kill()
        running.process.wait(DEADLINE)


def start_monitor(settings: Settings, env: Mapping[str, str] | None = None) -> WorkerProcess:
    """Start a monitor; who starts it ends it. `env` comes to its environment."""
    config = config_file(settings)
    log = config.parent / f"monitor-{time.monotonic_ns()}.log"
    command = [str(ECLUSE), "monitor", "--config", str(config)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | dict(env or {}))
    return WorkerProcess(process, log)


@dataclass(frozen=True)
class Said:
    """Reports and requests in their order."""

    reports: tuple[DriftReport, ...]
    requests: tuple[RetrainRequest, ...]


def undisturbed(settings: Settings, manifest: Manifest) -> Said:
    """What a monitor that nothing befalls says of all profiles that stand on the topic, where no outcome is known."""
    fold = Fold(settings.model_name, settings.monitor, lambda _version, _digest: Reference.of(manifest))
    told: list[DriftReport] = []
    asked: list[RetrainRequest | None] = []
    read = Reader(Profile)
    for message in read_all(settings, settings.names.profiles):
        try:
            profile = read(message.value() or b"")
        except msgspec.DecodeError:
            continue
        asked.append(fold.take(profile, message.timestamp()[1] / 1e3, message.offset() or 0))
        while fold.due() is not None:
            closed = fold.close()
            told.extend(closed.reports)
            asked.append(closed.request)
    return Said(tuple(told), tuple(request for request in asked if request is not None))


def reports(settings: Settings) -> list[DriftReport]:
    """All reports on the drift topic."""
    read = Reader(DriftReport)
    found = read_all(settings, settings.names.drift)
    return [read(each.value() or b"") for each in found if (each.key() or b"").startswith(b"report/")]


def requests(settings: Settings) -> list[RetrainRequest]:
    """All requests on their topic."""
    read = Reader(RetrainRequest)
    return [read(each.value() or b"") for each in read_all(settings, settings.names.retrain_requests)]

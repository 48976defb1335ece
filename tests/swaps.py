"""Changes of the champion under load, and the proof of what scored each event."""

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ecluse.contract.codecs import Reader
from ecluse.contract.records import Arm, Prediction
from ecluse.model.artefact import load_model
from ecluse.model.registry import read_registry
from ecluse.model.routes import promote
from ecluse.settings import Settings
from tests.workers import WorkerProcess, json_values, read_all, release_trained, send, wait_until


def release_versions(settings: Settings, folder: Path, count: int) -> list[Arm]:
    """Versions that score the same event differently; the last is champion."""
    arms = []
    for seed in range(count):
        manifest, revision = release_trained(settings, 2000, seed)
        assert revision is not None
        arms.append(Arm("champion", manifest.version, manifest.thresholds))
    return arms


#: How long a swapper waits to be told to go on, in seconds.
PATIENCE = 120.0
#: From one swap to the next, at least, in seconds: each shall score something.
EVERY = 0.1


class Swapper(threading.Thread):
    """Makes one version after another the champion, as fast as the topic takes it. `versions`: of each revision. After `hold`
    swaps it waits for `go_on`."""

    def __init__(self, settings: Settings, arms: list[Arm], count: int, hold: int | None = None) -> None:
        super().__init__(name="swapper", daemon=True)
        self._settings, self._arms, self._count, self._hold = settings, arms, count, hold
        self.go_on = threading.Event()
        routed = read_registry(settings).routes[settings.model_name]
        self.versions = {routed.revision: routed.route.champion.version}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for number, arm in enumerate(itertools.islice(itertools.cycle(self._arms), self._count)):
                if number == self._hold:
                    assert self.go_on.wait(PATIENCE), "nobody said that it shall go on"
                due = time.monotonic() + EVERY
                self.versions[promote(self._settings, arm, max(self.versions))] = arm.version
                time.sleep(max(0.0, due - time.monotonic()))
        except BaseException as error:
            self.error = error

    def finish(self, deadline: float) -> None:
        self.join(deadline)
        assert not self.is_alive(), f"{len(self.versions)} of {self._count} swaps after {deadline:.0f} s"
        assert self.error is None, self.error


class Sender(threading.Thread):
    """Publishes the same few rows again and again, until it is stopped."""

    def __init__(self, settings: Settings, rows: list[dict[str, object]]) -> None:
        super().__init__(name="sender", daemon=True)
        self._settings, self._values = settings, json_values(rows)
        self._stop_now = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._stop_now.wait(0.2):
            send(self._settings, self._values)
            self.sent += len(self._values)

    def finish(self) -> int:
        self._stop_now.set()
        self.join(60)
        return self.sent


def predictions_by_place(settings: Settings) -> dict[int, list[Prediction]]:
    """The predictions of each partition, in their order there."""
    reader, found = Reader(Prediction), defaultdict(list)
    for message in read_all(settings, settings.names.predictions):
        found[message.partition() or 0].append(reader(message.value() or b""))
    return found


def require_own_scores(
    settings: Settings, values: list[bytes], number: Callable[[str], int], found: dict[int, list[Prediction]]
) -> None:
    """Each prediction has the score that the version which it names gives its event: `number` tells which of `values` it is."""
    schema = settings.stream.schema_of_events()
    events = [schema.decode(value) for value in values]
    releases = read_registry(settings).releases
    # What went past the model has no score.
    made = [prediction for prediction in itertools.chain.from_iterable(found.values()) if prediction.score is not None]
    for version in {prediction.version for prediction in made}:
        model = load_model(settings, version, releases[settings.model_name, version])
        own = model.score(model.features.matrix(events))
        mine = [prediction for prediction in made if prediction.version == version]
        expected = own[[number(prediction.event_id) for prediction in mine]]
        assert np.max(np.abs(expected - np.array([prediction.score for prediction in mine]))) < 1e-6


def require_no_way_back(found: dict[int, list[Prediction]], versions: dict[int, int]) -> None:
    """On each partition revisions only grow, and each prediction's version is that of its revision."""
    for partition, made in found.items():
        offsets = [prediction.source.offset for prediction in made]
        assert offsets == sorted(offsets), f"partition {partition} is out of order"
        revisions = [prediction.route_revision for prediction in made]
        assert revisions == sorted(revisions), f"partition {partition} went back to an earlier route"
        assert all(versions[prediction.route_revision] == prediction.version for prediction in made)


def serving(workers: list[WorkerProcess], revision: int) -> None:
    """Wait until each worker says that it scores by this revision."""
    wait_until(
        f"all workers serve revision {revision}",
        lambda: all(each.model.get("revision") == revision for each in workers),
    )

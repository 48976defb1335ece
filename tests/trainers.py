"""Real trainers for tests: processes of `ecluse trainer`, a small past for them to train on, scripts, and requests."""

import os
import random
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ecluse import kafka
from ecluse.contract.codecs import encoder
from ecluse.contract.loop import Asker, RetrainRequest, Run
from ecluse.model.artefact import verified
from ecluse.model.manifest import MANIFEST, Manifest
from ecluse.model.registry import Registry, read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain.process import Guard, Train
from retrain.study.report import STUDY, Candidate, Study
from retrain.trainer.loop import run_trainer
from retrain.trainer.requests import finished
from tests.artefacts import draft_small
from tests.cli import config_file
from tests.stores import ROUTE, at, event, fill, label, prediction, revision, route
from tests.unit import artefacts
from tests.workers import DEADLINE, ECLUSE, WorkerProcess, wait_until

HOURS = 240.0
CUTOFF = at(HOURS).timestamp()
#: Quick, and the only candidate.
QUICK = """
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

def train(frame, features):
    rows, labels = frame.select(features).to_numpy(), frame["label"].to_numpy()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)

def candidates(features):
    return {"only": train}
"""


def with_past(settings: Settings, rows: int = 400) -> None:
    """Lay a past into the training store, in which large amounts are fraud, decided about by version 1."""
    drawn = np.random.default_rng(7)
    amounts, risks = drawn.gamma(2.0, 40.0, rows).round(2), drawn.random(rows).round(3)
    events = [
        event(0, i, i * HOURS / 2 / rows, amount=float(amount), terminal_risk_30d=float(risk), entity=f"card-{i % 50}")
        for i, (amount, risk) in enumerate(zip(amounts, risks, strict=True))
    ]
    fraud = [i for i in range(rows) if amounts[i] + 100 * risks[i] > 190]
    fill(
        settings,
        events,
        [prediction(each) for each in events],
        [label(f"e-0-{i}", 1, HOURS / 2, number) for number, i in enumerate(fraud)],
        [revision(0, artefacts.store(settings)), revision(ROUTE, route(settings))],
    )


def script(settings: Settings, folder: Path, text: str = QUICK) -> Settings:
    """The settings with a training script of this text."""
    file = folder / "own.py"
    file.write_text(textwrap.dedent(text))
    return artefacts.with_model(settings, script=f"{file}:train")


def request(settings: Settings, id: str, asker: Asker = Asker.PERSON, **said: object) -> RetrainRequest:
    """A request for the stream's model as of the end of the past."""
    said = {"model": settings.model_name, "reason": "for a test", "cutoff": CUTOFF, "created_at": CUTOFF} | said
    return RetrainRequest(id=id, asker=asker, **said)  # type: ignore[arg-type]


def ask(settings: Settings, *requests: RetrainRequest) -> None:
    """Write requests to their topic."""
    producer, encode = kafka.producer(settings), encoder(settings.stream.encoding)
    for each in requests:
        producer.produce(settings.names.retrain_requests, encode(each), each.model.encode(), 0)
    assert producer.flush(DEADLINE) == 0


def start_trainer(settings: Settings, *args: str) -> WorkerProcess:
    """Start a trainer; who starts it ends it."""
    config = config_file(settings)
    log = config.parent / f"trainer-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        command = [str(ECLUSE), "trainer", "--config", str(config), *args]
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    return WorkerProcess(process, log)


@contextmanager
def trainer(settings: Settings, *args: str) -> Iterator[WorkerProcess]:
    """A running trainer, which is killed at the end if it still runs."""
    running = start_trainer(settings, *args)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait(DEADLINE)


#: What a trainer logs on its way, in order.
STEPS = (
    "metrics and health",
    "elected: ",
    "asks for",
    "Building",
    "The set has",
    "Candidate",
    "Picked",
    "Publishing",
    "is rel",
)


def kill_again_and_again(settings: Settings, chance: random.Random, ids: Sequence[str], kills: int) -> int:
    """Start a trainer and kill it a moment after a step of its own, the last time after one of the last two.

    Returns how many times: fewer where all was done.
    """
    for kill in range(kills):
        step = chance.choice(STEPS[:-2] if kill < kills - 1 else STEPS[-2:])
        moment = chance.uniform(0.0, 0.3)
        with trainer(settings) as running:

            def there(running: WorkerProcess = running, step: str = step) -> bool:
                assert running.process.poll() is None, running.text
                return step in running.text or all(finished(runs(settings).get(id)) for id in ids)

            wait_until(f"it comes to {step!r}", there)
            time.sleep(moment)
        if all(finished(runs(settings).get(id)) for id in ids):
            return kill + 1
    return kills


def runs(settings: Settings) -> dict[str, Run]:
    """The runs on the models topic, by request."""
    return {request: run for (_, request), run in read_registry(settings).runs.items()}


def wait_finished(settings: Settings, ids: Sequence[str], running: Sequence[WorkerProcess] = ()) -> dict[str, Run]:
    """Wait until each request has its answer; the runs."""
    found: dict[str, Run] = {}

    def all_finished() -> bool:
        assert all(each.process.poll() in (None, -signal.SIGKILL) for each in running), running[-1].text
        found.update(runs(settings))
        return all(finished(found.get(id)) for id in ids)

    wait_until(f"{', '.join(ids)} have their answers", all_finished)
    return found


def require_whole(settings: Settings, registry: Registry) -> None:
    """Make sure that every release on the topic has a whole artefact with a good signature in the store."""
    for (name, version), release in registry.releases.items():
        assert ModelStore.of(settings).manifest(name, version, release.manifest_sha256)
        assert verified(settings, version, release)


@dataclass
class FakeChild:
    """Stands in for the training process where a test is of what is done around it: drafts a small model at once."""

    drafted: int = 0
    fails: Exception | None = None
    while_training: Callable[[], None] = lambda: None

    def __call__(self, job: Train, say: Callable[[str], None], guard: Guard) -> None:
        """As `retrain.process.run`."""
        say("Training, it seems")
        self.while_training()
        guard.check()
        if self.fails is not None:
            raise self.fails
        self.drafted += 1
        draft = Path(job.draft)
        draft_small(job.settings["model"]["name"] or job.settings["stream"]["name"], draft)
        (draft / STUDY).write_bytes(_study().encode())
        manifest = Manifest.decode((draft / MANIFEST).read_bytes())
        listed = {"files": manifest.files | {STUDY: ""}, "sizes": manifest.sizes | {STUDY: 0}}
        (draft / MANIFEST).write_bytes(msgspec.structs.replace(manifest, **listed).encode())


def _study() -> Study:
    return Study(
        model="m",
        picked="only",
        best="only",
        why="",
        tolerance=0.01,
        max_size_bytes=None,
        candidates=(Candidate(name="only"),),
        resamples=100,
        seed=1,
        drawn="row",
        units=1,
        rows=1,
        positives=1,
        held_out_span=None,
        trained_rows=1,
        script="own.py:train",
        script_sha256="",
        file="set.parquet",
    )


def train_once(settings: Settings) -> tuple[bool, list[Run]]:
    """`ecluse trainer --once` in this process: whether no run failed, and the runs."""
    told: list[Run] = []
    return run_trainer(settings, told.append, lambda: nullcontext(lambda *_: None), once=True), told

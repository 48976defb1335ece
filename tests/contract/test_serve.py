"""`ecluse serve` as a process: clients that are not ours, the stream's own scores, changes of the model, start and stop."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from ecluse import cluster
from ecluse.contract.records import Arm, Prediction, Thresholds
from ecluse.model.artefact import load_model
from ecluse.model.registry import read_registry
from ecluse.model.routes import promote
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from tests.cli import config_file
from tests.conftest import FIELDS
from tests.serving import FakeLive, Served, raw_events, tensor
from tests.workers import (
    DEADLINE,
    ECLUSE,
    events,
    json_values,
    records,
    release_trained,
    scored,
    send,
    train_champion,
    wait_until,
    worker,
)

SEED = 20260301
SWAPS = 12


@contextmanager
def serving(settings: Settings, *, ready: bool = True) -> Iterator[tuple[Served, subprocess.Popen[bytes]]]:
    """A running `ecluse serve`, killed at the end if it still runs."""
    config = config_file(settings)
    log = config.parent / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([ECLUSE, "serve", "--config", str(config)], stdout=out, stderr=out)
    address: list[str] = []

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        address.extend(re.findall(r"listening at (http://[^;]+);", log.read_text()))
        return bool(address)

    try:
        wait_until("it listens", listens)
        running = Served(address[0], FakeLive(None), settings)
        if ready:
            wait_until("it is ready", lambda: running.ask("GET", "/v2/health/ready").status == 200)
        yield running, process
    finally:
        process.kill()
        process.wait(DEADLINE)


@pytest.fixture(scope="module")
def stream(servers: str, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One stream with a champion, for the tests that change nothing of it."""
    folder = tmp_path_factory.mktemp("serve")
    settings = make(servers, keys, folder)
    train_champion(settings, folder)
    return settings


def make(servers: str, keys: tuple[Path, Path], folder: Path) -> Settings:
    settings = Settings(
        stream={
            "name": f"s-{time.monotonic_ns()}",
            "fields": FIELDS,
            "id_field": "transaction_id",
            "time_field": "time",
        },
        kafka={"bootstrap_servers": servers},
        topics={"partitions": 2},
        model={
            "store": str(folder / "models"),
            "cache": folder / "cache",
            "signing_key": keys[0],
            "trusted_keys": (keys[1],),
            "label": "fraud",
        },
        serve={"port": 0},
    )
    cluster.create_topics(settings)
    return settings


@pytest.fixture(scope="module")
def server(stream: Settings) -> Iterator[Served]:
    with serving(stream) as (running, _):
        yield running


def own(settings: Settings, version: int) -> Model:
    """A version, loaded as a worker loads it."""
    return load_model(settings, version, read_registry(settings).releases[settings.model_name, version])


def matrix(model: Model, settings: Settings, values: list[bytes]) -> np.ndarray:
    schema = settings.stream.schema_of_events()
    return model.features.matrix([schema.decode(value) for value in values])


def test_the_same_raw_events_have_the_scores_of_the_stream(server: Served, stream: Settings) -> None:
    found = events(300, SEED)
    send(stream, json_values(found))
    with worker(stream):
        wait_until("all are scored", scored(stream, len(found)))
    predictions = {p.event_id: p for p in records(stream, stream.names.predictions, Prediction)}
    answer = server.infer(raw_events(*found))
    assert answer.status == 200, answer.body
    outputs = {output["name"]: output["data"] for output in answer.json["outputs"]}
    streamed = [predictions[event["transaction_id"]] for event in found]
    assert outputs["predict_proba"][1::2] == [prediction.score for prediction in streamed]
    assert outputs["decision"] == [prediction.decision.value for prediction in streamed]
    assert len(set(outputs["decision"])) > 1
    one_by_one = [server.infer(raw_events(event)).json["outputs"][1]["data"][1] for event in found[:20]]
    assert one_by_one == [prediction.score for prediction in streamed[:20]]


CLIENT = """
import json, sys
import numpy as np
import tritonclient.http as triton

place, name, values, matrix = json.load(sys.stdin)
client = triton.InferenceServerClient(place)
metadata = client.get_model_metadata(name)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(name)
assert client.is_model_ready(name, "1") and not client.is_model_ready(name, "2")
assert client.get_server_metadata()["name"] == "ecluse"
assert client.get_model_repository_index() == [{"name": name, "version": "1", "state": "READY", "reason": ""}]
inputs = {tensor["name"]: tensor for tensor in metadata["inputs"]}
assert inputs["features"]["shape"] == [-1, len(matrix[0])] and inputs["events"]["datatype"] == "BYTES"

def asked(name, array, datatype, binary):
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor

texts, rows = np.array([value.encode() for value in values], dtype=object), np.array(matrix, dtype=np.float32)
found = []
for binary in (True, False):
    for tensors in (
        [asked("events", texts, "BYTES", binary)],
        [asked("features", rows, "FP32", binary)],
        [asked("features", rows.astype(np.float64), "FP64", binary)],
        [asked(n, rows[:, i].copy(), "FP32", binary) for i, n in enumerate(list(inputs)[2:])],
    ):
        outputs = [triton.InferRequestedOutput(n, binary_data=False) for n in ("predict_proba", "predict", "decision")]
        for wanted in (None, outputs):
            answer = client.infer(name, tensors, request_id="r-1", outputs=wanted)
            assert answer.get_response()["id"] == "r-1" and answer.get_response()["model_version"] == "1"
            decisions = [str(d, "utf-8") if isinstance(d, bytes) else d for d in answer.as_numpy("decision").tolist()]
            found.append([answer.as_numpy("predict_proba")[:, 1].tolist(), answer.as_numpy("predict").tolist(), decisions])
try:
    client.infer(name, [asked("events", texts, "BYTES", True)], model_version="7")
except triton.InferenceServerException as error:
    refused = [error.status(), error.message()]
print(json.dumps([found, refused]))
"""


def test_a_client_library_that_is_not_ours_gets_the_same_answer(server: Served, stream: Settings) -> None:
    values = json_values(events(40, SEED))
    model = own(stream, 1)
    rows = matrix(model, stream, values)
    host, port = server.place
    asked = [f"{host}:{port}", stream.model_name, [value.decode() for value in values], rows.tolist()]
    # In a process of its own: it brings gevent, which warns, and which we do not want in this one.
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], input=json.dumps(asked), capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    found, refused = json.loads(done.stdout)
    limits = read_registry(stream).routes[stream.model_name].route.champion.thresholds
    scores = model.score(rows).tolist()
    decisions = ["block" if s >= limits.block else "review" if s >= limits.review else "allow" for s in scores]
    assert len(found) == 16
    for got in found:
        assert got == [scores, [int(score >= limits.review) for score in scores], decisions]
    assert refused == ["404", f"Version 7 of model {stream.model_name} does not serve: version 1 is its champion."]


def test_schemathesis_finds_no_fault_in_what_the_document_says(server: Served, tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("schemathesis")
    # Not every request that has the form of one can be scored: a shape may not fit its data.
    command = [
        tool,
        "run",
        f"{server.address}/openapi.json",
        "--checks",
        "all",
        "--exclude-checks",
        "positive_data_acceptance",
    ]
    command += ["--phases", "examples,coverage,fuzzing", "--seed", str(SEED), "--max-examples", "50", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Tested: 11" in done.stdout
    counted = server.ask("GET", "/metrics").body.decode()
    assert not re.search(r'ecluse_http_requests_total\{code="5\d\d",route="(?!/v2/health/ready)', counted)
    assert re.search(r'ecluse_http_requests_total\{code="200",route="/v2/models/{model}/infer"', counted)


def test_the_document_names_every_path_and_the_streams_event(server: Served) -> None:
    document = server.ask("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert set(document["components"]["schemas"]["Event"]["properties"]) == set(FIELDS)
    example = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]
    path = f"/v2/models/{server.settings.model_name}/infer"
    assert server.ask("POST", path, json.dumps(example).encode()).status == 200


@dataclass
class Callers:
    """Threads that ask for one raw event after the other; `answers` holds status, row, version, score and revision of each."""

    server: Served
    values: list[bytes]
    answers: list[tuple[int, int, str, float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.call, args=(10 * i,)) for i in range(4)]

    def call(self, row: int) -> None:
        while not self.stop.is_set():
            row = (row + 1) % len(self.values)
            answer = self.server.infer(tensor("events", [1], "BYTES", [self.values[row].decode()]))
            body = answer.json
            if answer.status != 200:
                self.answers.append((answer.status, row, str(body), 0.0, 0))
                continue
            score, revision = body["outputs"][1]["data"][1], body["parameters"]["route_revision"]
            self.answers.append((200, row, body["model_version"], score, revision))

    def heard_of(self, revision: int) -> bool:
        """Whether a late answer was by this route."""
        return any(answer[4] == revision for answer in self.answers[-5:])

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(DEADLINE)


def test_it_waits_for_a_model_and_changes_models_under_load_without_an_error(
    servers: str, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = make(servers, keys, tmp_path)
    values = json_values(events(50, SEED))
    with serving(settings, ready=False) as (server, process):
        assert server.ask("GET", "/v2/health/live").status == 200
        assert server.ask("GET", "/v2/health/ready").status == 503
        assert "No model" in server.infer(raw_events(events(1)[0])).json["error"]
        for seed in (7, 8):
            release_trained(settings, seed=seed)
        wait_until("it is ready", lambda: server.ask("GET", "/v2/health/ready").status == 200)
        with Callers(server, values) as callers:
            for number in range(SWAPS):
                revision = read_registry(settings).routes[settings.model_name].revision
                wanted = promote(settings, Arm("champion", 1 + number % 2, Thresholds(0.5, 0.9)), revision)
                wait_until(
                    "the new route answers",
                    lambda wanted=wanted: any(answer[4] == wanted for answer in callers.answers[-5:]),
                )
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    answers = callers.answers
    assert [answer for answer in answers if answer[0] != 200] == []
    assert len({revision for *_, revision in answers}) >= SWAPS
    right = {str(v): own(settings, v).score(matrix(own(settings, v), settings, values)).tolist() for v in (1, 2)}
    assert all(one != other for one, other in zip(right["1"], right["2"], strict=True))
    assert [(row, version) for _, row, version, score, _ in answers if score != right[version][row]] == []


def test_a_missing_topic_is_said(stream: Settings, tmp_path: Path) -> None:
    (other := tmp_path / "ecluse.toml").write_text(
        config_file(stream).read_text().replace('name = "s-', 'name = "nobody-')
    )
    done = subprocess.run([ECLUSE, "serve", "-c", str(other)], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert "is missing" in done.stderr
    assert "Traceback" not in done.stderr

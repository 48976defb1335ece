"""`ecluse serve` in tests: the server in a thread, around a champion of the test's own, and a plain caller."""

import asyncio
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ecluse.contract.records import Arm, Thresholds
from ecluse.model.features import Feature, FeatureSet
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from scoring.champion import Champion
from scoring.live import LiveModel
from scoring.serve.server import answering

Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]
FEATURES = [
    Feature("amount", "amount", "number"),
    Feature("risk", "terminal_risk_30d", "number", missing=0.25),
    Feature("hour", "time", "hour"),
]


def by_amount(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """A thousandth of the amount, and a thousandth of the risk."""
    return np.clip((matrix[:, 0].astype(np.float64) + matrix[:, 1]) / 1000, 0, 1)


def make_champion(settings: Settings, score: Score = by_amount, version: int = 3, revision: int = 7) -> Champion:
    """A champion that scores as the test says; review from 0.5, block from 0.9."""
    model = SimpleNamespace(
        name=settings.model_name,
        version=version,
        features=FeatureSet(FEATURES, settings.stream.schema_of_events()),
        usual=np.array([50.0, 0.0, 12.0], dtype=np.float32),
        score=score,
        manifest=SimpleNamespace(files={"model.onnx": ""}),
    )
    arm = Arm("champion", version, Thresholds(0.5, 0.9))
    return Champion(cast(Model, model), arm, revision, "5ha", 0.5)


@dataclass
class FakeLive:
    """What the server reads of a `LiveModel`; the test puts champions in."""

    champion: Champion | None
    degraded: str = ""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running server."""

    address: str
    live: FakeLive
    settings: Settings
    context: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)
    stop: Callable[[], None] = lambda: None

    @property
    def place(self) -> tuple[str, int]:
        host, port = self.address.split("://")[1].split(":")
        return host, int(port)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        place = self.place
        connection = (
            http.client.HTTPSConnection(*place, timeout=20, context=self.context)
            if self.address.startswith("https")
            else http.client.HTTPConnection(*place, timeout=20)
        )
        with closing(connection):
            connection.request(method, path, body, self.headers | headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers), answer.read())

    def infer(self, *inputs: dict[str, Any], version: int | None = None, **more: Any) -> Answer:
        """Ask for scores."""
        path = f"/v2/models/{self.settings.model_name}{f'/versions/{version}' if version else ''}/infer"
        return self.ask("POST", path, json.dumps({"inputs": list(inputs), **more}).encode())


def tensor(name: str, shape: list[int], datatype: str, data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def features(*rows: list[float | None]) -> dict[str, Any]:
    return tensor("features", [len(rows), len(rows[0])], "FP32", list(rows))


def raw_events(*values: dict[str, Any]) -> dict[str, Any]:
    return tensor("events", [len(values)], "BYTES", [json.dumps(value) for value in values])


@contextmanager
def served(settings: Settings, live: FakeLive | None = None) -> Iterator[Served]:
    """The server on a free port, in a thread with a loop of its own."""
    live = live or FakeLive(make_champion(settings))
    ready, ended = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        stop = asyncio.Event()
        found["stop"] = partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set)
        async with answering(settings, cast(LiveModel, live), Telemetry()) as address:
            found["address"] = address
            ready.set()
            await stop.wait()

    def target() -> None:
        try:
            asyncio.run(run())
        except Exception as error:
            found["error"] = error
        finally:
            ended.set()
            ready.set()

    thread = threading.Thread(target=target, name="served")
    thread.start()
    try:
        assert ready.wait(20)
        if "error" in found:
            raise found["error"]
        yield Served(found["address"], live, settings, stop=found["stop"])
    finally:
        if not ended.is_set():
            with suppress(RuntimeError):  # its loop has ended meanwhile
                found["stop"]()
        thread.join(20)
        assert not thread.is_alive()


def said(server: Served, sent: bytes, *, trickle: bool = False) -> bytes:
    """What comes back over a bare connection until it is closed."""
    with closing(socket.create_connection(server.place, 0.1)) as line:
        line.sendall(sent)
        found, end = b"", time.monotonic() + 15
        while time.monotonic() < end:
            try:
                part = line.recv(65536)
                found += part
                if not part:
                    return found
            except TimeoutError:
                if trickle and not found:
                    line.sendall(b" ")
            except ConnectionError:
                return found
        raise AssertionError(f"the connection stays open after {found!r}")

"""`ecluse serve` under a closed loop: each connection sends its next request when it has the answer to the last.

The caller is a process of its own, a bare asyncio protocol that sends prepared bytes and takes the clock: no client library
stands between. ``python -m benchmarks.http HOST PORT CONNECTIONS SECONDS`` reads the request from stdin and writes what it saw.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.error import URLError

import msgspec
import polars as pl
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.ground import ECLUSE, Ground
from benchmarks.report import Figures
from ecluse.model.artefact import load_model
from ecluse.model.registry import read_registry

CONNECTIONS = (1, 16, 64)
#: MLServer 1.7 with the same model: requests/s, as the aim of this project names them; ours are to be so many times as many.
MLSERVER = {1: (1_000, 2), 16: (1_200, 4), 64: (1_300, 4)}
_READY_SECONDS = 60.0


@dataclass(frozen=True)
class Rate:
    """What one number of connections got: requests per second, and the times of the answers in seconds."""

    connections: int
    rate: float
    p50: float
    p99: float
    failed: int
    cpu_us: float = 0.0


class Caller(asyncio.Protocol):
    """One connection. The request goes out again as soon as an answer is whole; `seen` takes each answer's seconds."""

    def __init__(self, request: bytes, seen: list[float], failed: list[bytes], until: float) -> None:
        self.request, self.seen, self.failed, self.until = request, seen, failed, until
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) < int(length[1]):
            return
        now = time.perf_counter()
        self.seen.append(now - self.sent)
        if not head.startswith(b"HTTP/1.1 200 "):
            self.failed.append(self.buffer)
        self.buffer = b""
        if now < self.until:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if time.perf_counter() < self.until:
            self.failed.append(b"the connection was lost")
        self.done.set_result(None)


async def call(host: str, port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Keep so many connections busy for so long."""
    loop = asyncio.get_running_loop()
    seen: list[float] = []
    failed: list[bytes] = []
    started = time.perf_counter()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(lambda: Caller(request, seen, failed, started + seconds), host, port)
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    took = time.perf_counter() - started
    ordered = sorted(seen)
    if failed:
        print(failed[0][:500], file=sys.stderr)
    return {
        "rate": len(seen) / took,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(len(ordered) * 0.99)],
        "failed": len(failed),
    }


def request_of(address: str, model: str, tensor: dict[str, object]) -> bytes:
    """A request of one tensor, as it goes over the wire."""
    body = json.dumps({"id": "1", "inputs": [tensor]}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def tensors(ground: Ground) -> dict[str, dict[str, object]]:
    """One event as `features`, the model's inputs, and as `events`, raw."""
    settings = ground.settings
    row = pl.read_parquet(ground.folder / "events.parquet").select(list(settings.stream.fields)).row(0, named=True)
    event = msgspec.json.encode(row)
    model = load_model(settings, 1, read_registry(settings).releases[settings.model_name, 1])
    (values,) = model.features.matrix([settings.stream.schema_of_events().decode(event)]).tolist()
    return {
        "features": {"name": "features", "shape": [1, len(values)], "datatype": "FP32", "data": values},
        "events": {"name": "events", "shape": [1], "datatype": "BYTES", "data": [event.decode()]},
    }


def measured(address: str, request: bytes, connections: int, seconds: float, server: psutil.Process) -> Rate:
    """One run of the caller, after a short one that warms."""
    host, _, port = address.rpartition(":")
    for length in (min(1.0, seconds), seconds):
        before = server.cpu_times()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.http", host, port, str(connections), str(length)],
            input=request,
            stdout=subprocess.PIPE,
            check=True,
            cwd=Path(__file__).parent.parent,
        )
        after = server.cpu_times()
        seen = json.loads(done.stdout)
    cpu = (after.user + after.system - before.user - before.system) / (seen["rate"] * seconds) * 1e6
    return Rate(connections, **seen, cpu_us=cpu)


@contextmanager
def served(ground: Ground) -> Iterator[tuple[str, psutil.Process]]:
    """A running `ecluse serve`: its address and its process; stopped at the end."""
    log = ground.folder / "serve.log"
    with log.open("w", encoding="utf-8") as out:
        command = [ECLUSE, "serve", "--config", str(ground.config)]
        process = psutil.Popen(
            command, stdout=out, stderr=out, cwd=ground.folder, env=os.environ | {"ECLUSE_SERVE__PORT": "0"}
        )
        try:
            yield _ready(log, process), process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(20)


def _ready(log: Path, process: psutil.Popen) -> str:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if (at := re.search(r"listening at http://([^\s;]+)", log.read_text(encoding="utf-8"))) is not None:
            try:
                with urllib.request.urlopen(f"http://{at[1]}/v2/health/ready", timeout=5):
                    return at[1]
            except URLError:
                pass
        time.sleep(0.1)
    raise RuntimeError(f"ecluse serve is not ready; it said:\n{log.read_text(encoding='utf-8')[-3000:]}")


def http(ground: Ground, seconds: float, say: Callable[[str], None]) -> dict[str, list[Rate]]:
    """Features and raw events at each number of connections."""
    asked = tensors(ground)
    found: dict[str, list[Rate]] = {}
    with served(ground) as (address, server):
        for kind, tensor in asked.items():
            request = request_of(address, ground.settings.model_name, tensor)
            found[kind] = [measured(address, request, count, seconds, server) for count in CONNECTIONS]
            for rate in found[kind]:
                say(f"{kind}, {rate.connections} connections: {asdict(rate)}")
    if any(rate.failed for rates in found.values() for rate in rates):
        raise RuntimeError("requests failed")
    return found


def figures(found: dict[str, list[Rate]]) -> Figures:
    """Every figure under a column's name."""
    row: Figures = {}
    for kind, rates in found.items():
        for rate in rates:
            name = f"{kind}_{rate.connections}"
            row[f"{name}_requests_per_s"] = round(rate.rate)
            row[f"{name}_p50_ms"] = round(rate.p50 * 1e3, 2)
            row[f"{name}_p99_ms"] = round(rate.p99 * 1e3, 2)
            row[f"{name}_cpu_us_per_request"] = round(rate.cpu_us, 1)
    return row


def show(found: dict[str, list[Rate]]) -> None:
    """Print the table."""
    table = Table(title="ecluse serve, one row a request, closed loop")
    for column in ("", "connections", "requests/s", "p50 ms", "p99 ms", "CPU µs/request", "aim, requests/s"):
        table.add_column(column, justify="left" if not column else "right")
    for kind, rates in found.items():
        for rate in rates:
            theirs, times = MLSERVER[rate.connections]
            table.add_row(
                kind,
                str(rate.connections),
                f"{rate.rate:,.0f}",
                f"{rate.p50 * 1e3:.2f}",
                f"{rate.p99 * 1e3:.2f}",
                f"{rate.cpu_us:.0f}",
                f"{theirs * times:,}" if kind == "features" else "",
            )
    Console(width=110).print(table)


def main(arguments: Sequence[str]) -> None:
    """The caller's process."""
    host, port, connections, seconds = arguments
    request = sys.stdin.buffer.read()
    print(json.dumps(asyncio.run(call(host, int(port), request, int(connections), float(seconds)))))


if __name__ == "__main__":
    main(sys.argv[1:])

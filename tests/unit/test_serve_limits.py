"""What `ecluse serve` takes, from whom, how much and how long; and what it says of itself."""

import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from ecluse.errors import SettingsError
from ecluse.settings import Settings
from scoring.serve import bodies, connections
from tests.conftest import MakeSettings
from tests.serving import FakeLive, Served, by_amount, features, make_champion, raw_events, said, served
from tests.workers import wait_until

ROW = features([100.0, 0.0, 9.0])


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(serve={"port": 0, "request_bytes": 2048, "request_seconds": 1.0})


@pytest.fixture
def server(settings: Settings) -> Iterator[Served]:
    with served(settings) as running:
        yield running


class Gate:
    """A model that scores only while its gate is open; `calls` holds the rows of each call."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls: list[int] = []
        self.amounts: set[float] = set()

    def __call__(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        self.calls.append(len(matrix))
        self.amounts |= set(matrix[:, 0].tolist())
        self.entered.release()
        assert self.open.wait(20)
        return by_amount(matrix)


# -- overload and batches --------------------------------------------------------------------------------------------------


def test_requests_that_wait_share_a_call_and_too_many_are_told_to_come_back(make_settings: MakeSettings) -> None:
    gate = Gate()
    settings = make_settings(serve={"port": 0, "queue_rows": 4, "request_rows": 4, "batch_rows": 3})
    with served(settings, FakeLive(make_champion(settings, gate))) as server, ThreadPoolExecutor(8) as pool:
        try:
            first = pool.submit(server.infer, ROW)
            assert gate.entered.acquire(timeout=10)
            waiting = [pool.submit(server.infer, ROW) for _ in range(4)]
            wait_until("four rows wait", lambda: metric(server, "ecluse_http_queue_rows") == 4)
            refused = server.infer(ROW)
            assert refused.status == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert "Too many rows wait" in refused.json["error"]
            assert server.ask("GET", "/v2/health/live").status == 200  # the loop is not held
        finally:
            gate.open.set()
        assert [answer.result().status for answer in (first, *waiting)] == [200] * 5
        assert gate.calls == [1, 3, 1]


def test_a_batch_waits_for_others_as_long_as_it_is_told(make_settings: MakeSettings) -> None:
    gate = Gate()
    gate.open.set()
    settings = make_settings(serve={"port": 0, "batch_wait_ms": 1000})
    with served(settings, FakeLive(make_champion(settings, gate))) as server, ThreadPoolExecutor(3) as pool:
        started = time.monotonic()
        answers = [answer.result() for answer in [pool.submit(server.infer, ROW) for _ in range(3)]]
        assert [answer.status for answer in answers] == [200] * 3
        assert time.monotonic() - started >= 1.0
        assert gate.calls == [3]


def test_a_score_that_does_not_come_in_time_is_given_up_and_who_gave_up_waiting_is_not_scored(
    make_settings: MakeSettings,
) -> None:
    gate = Gate()
    settings = make_settings(serve={"port": 0, "request_seconds": 0.5})
    with served(settings, FakeLive(make_champion(settings, gate))) as server, ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(server.infer, ROW)
            assert gate.entered.acquire(timeout=10)
            second = pool.submit(server.infer, features([222.0, 0.0, 9.0]))
            for answer in (first.result(), second.result()):
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                assert "no score within 0.5 s" in answer.json["error"]
        finally:
            gate.open.set()
        wait_until("it scores again", lambda: server.infer(ROW).status == 200)
        assert 222.0 not in gate.amounts


def test_one_champion_scores_a_whole_batch_and_the_next_batch_has_the_next(settings: Settings) -> None:
    gate = Gate()
    live = FakeLive(make_champion(settings, gate))
    with served(settings, live) as server, ThreadPoolExecutor(3) as pool:
        before = pool.submit(server.infer, ROW)
        assert gate.entered.acquire(timeout=10)
        after = pool.submit(server.infer, ROW)
        old = pool.submit(server.infer, ROW, version=3)
        wait_until("two wait", lambda: metric(server, "ecluse_http_queue_rows") == 2)
        live.champion = make_champion(settings, lambda matrix: 2 * by_amount(matrix), version=4, revision=9)
        gate.open.set()
        assert [
            (a.json["model_version"], a.json["outputs"][1]["data"][1]) for a in (before.result(), after.result())
        ] == [
            ("3", 0.1),
            ("4", 0.2),
        ]
        assert old.result().status == 404
        assert "version 4 is its champion" in old.result().json["error"]


def test_who_hung_up_leaves_no_rows_behind(make_settings: MakeSettings) -> None:
    gate = Gate()
    settings = make_settings(serve={"port": 0, "queue_rows": 1, "request_rows": 1})
    body = json.dumps({"inputs": [ROW]}).encode()
    head = f"POST /v2/models/{settings.model_name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with served(settings, FakeLive(make_champion(settings, gate))) as server, ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(server.infer, ROW)
            assert gate.entered.acquire(timeout=10)
            with closing(socket.create_connection(server.place, 10)) as gone:
                gone.sendall(head + body)
                wait_until("it waits", lambda: metric(server, "ecluse_http_queue_rows") == 1)
            wait_until("its place is free", lambda: metric(server, "ecluse_http_queue_rows") == 0)
            second = pool.submit(server.infer, ROW)
            wait_until("another has it", lambda: metric(server, "ecluse_http_queue_rows") == 1)
        finally:
            gate.open.set()
        assert (first.result().status, second.result().status) == (200, 200)
        assert gate.calls == [1, 1]


# -- limits ----------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_announced_or_not_packed_or_not(server: Served) -> None:
    path = f"/v2/models/{server.settings.model_name}/infer"
    large = b'{"inputs":[' + b" " * 100_000
    assert server.ask("POST", path, large).status == 413
    packed = gzip.compress(b" " * 50_000_000)
    answer = server.ask("POST", path, packed[:2000], **{"Content-Encoding": "gzip"})
    assert answer.status == 413
    assert "2,048 bytes" in answer.json["error"]
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    assert said(server, head.encode() + chunk).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_is_packed_wrongly_is_refused(server: Served) -> None:
    path = f"/v2/models/{server.settings.model_name}/infer"
    assert server.ask("POST", path, b"no gzip", **{"Content-Encoding": "gzip"}).status == 400


def test_a_body_that_trickles_is_cut_off(server: Served) -> None:
    head = f"POST /v2/models/{server.settings.model_name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    started = time.monotonic()
    answer = said(server, head.encode(), trickle=True)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 1 s" in answer
    assert time.monotonic() - started < 10


def test_headers_that_trickle_are_cut_off(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 1.0)
    with served(settings) as server:
        assert said(server, b"GET /v2 HTTP/1.1\r\nX: ", trickle=True) == b""


def test_a_caller_that_asks_before_it_sends_is_told_to_go_on(server: Served) -> None:
    body = json.dumps({"inputs": [ROW]}).encode()
    path = f"/v2/models/{server.settings.model_name}/infer"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    with closing(socket.create_connection(server.place, 10)) as line:
        line.sendall(head.encode())
        assert line.recv(100).startswith(b"HTTP/1.1 100 ")
        line.sendall(body)
        assert line.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_is_told_so_and_not_quoted(server: Served) -> None:
    for sent in (
        b"nonsense s3cret\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"s3cret" * 2000 + b"\r\n\r\n",
        b"GET /v2/models/\xff HTTP/1.1\r\nHost: s3cret\r\n\r\n",
    ):
        head, _, body = said(server, sent).partition(b"\r\n\r\n")
        assert b" 400 " in head.splitlines()[0]
        assert b"application/json" in head
        assert list(json.loads(body)) == ["error"]
        assert b"s3cret" not in head + body


def test_bodies_in_hand_hold_so_much_together_and_give_it_back(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "TOGETHER", 2)
    settings = make_settings(serve={"port": 0, "request_bytes": 2048, "request_seconds": 15.0})
    path = f"/v2/models/{settings.model_name}/infer"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n".encode()
    with served(settings) as server:
        with (
            closing(socket.create_connection(server.place, 10)) as one,
            closing(socket.create_connection(server.place, 10)) as other,
        ):
            one.sendall(head + b" " * 1999)
            other.sendall(head + b" " * 1999)
            wait_until("no more is taken", lambda: server.infer(ROW).status == 429)
            assert server.infer(ROW).headers["Retry-After"] == "1"
        wait_until("it is taken again", lambda: server.infer(ROW).status == 200)


def test_connections_beyond_the_most_are_turned_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 2)
    with served(settings) as server:
        with (
            closing(socket.create_connection(server.place, 10)),
            closing(socket.create_connection(server.place, 10)),
        ):
            head, _, body = said(server, b"").partition(b"\r\n\r\n")
            assert b" 503 " in head and json.loads(body) == {"error": "There are too many connections."}

        def answers() -> bool:
            return said(server, b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")

        wait_until("those that ended make room", answers)


# -- routes and state ------------------------------------------------------------------------------------------------------


def test_the_protocols_pages(server: Served) -> None:
    name = server.settings.model_name
    assert server.ask("GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    assert server.ask("GET", "/v2/health/live").json == {"live": True}
    assert server.ask("GET", "/v2/health/ready").json == {"live": True}
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/3"):
        found = server.ask("GET", path).json
        assert (found["name"], found["versions"], found["platform"]) == (name, ["3"], "onnxruntime_onnx")
        assert [(t["name"], t["datatype"], t["shape"]) for t in found["inputs"]] == [
            ("features", "FP32", [-1, 3]),
            ("events", "BYTES", [-1]),
            ("amount", "FP32", [-1]),
            ("risk", "FP32", [-1]),
            ("hour", "FP32", [-1]),
        ]
        assert server.ask("GET", f"{path}/ready").json == {"name": name, "ready": True}
    index = [{"name": name, "version": "3", "state": "READY", "reason": ""}]
    assert server.ask("POST", "/v2/repository/index").json == index
    assert server.ask("POST", "/v2/repository/index", b'{"ready":true}').json == index
    assert server.ask("POST", "/v2/repository/index", b"[]").status == 400


def test_what_is_not_there_is_404_and_a_wrong_method_405(server: Served) -> None:
    name = server.settings.model_name
    for path in (
        "/",
        "/v1",
        "/v2/",
        "/v2/models",
        "/v2/models/other",
        f"/v2/models/{name}/versions/2",
        f"/v2/models/{name}/x",
    ):
        answer = server.ask("GET", path)
        assert (answer.status, list(answer.json)) == (404, ["error"]), path
    assert server.infer(ROW, version=2).status == 404
    assert server.ask("GET", f"/v2/models/{name}/versions/two").status == 404
    wrong = server.ask("GET", f"/v2/models/{name}/infer")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
    assert server.ask("DELETE", "/v2").headers["Allow"] == "GET"


def test_without_a_champion_it_lives_is_not_ready_and_says_so(settings: Settings) -> None:
    name = settings.model_name
    with served(settings, FakeLive(None, degraded="Version 2 does not serve: it is unsigned.")) as server:
        assert server.ask("GET", "/v2/health/live").status == 200
        for path in ("/v2/health/ready", f"/v2/models/{name}", f"/v2/models/{name}/ready"):
            answer = server.ask("GET", path)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert "unsigned" in answer.json["error"]
        assert server.infer(ROW).status == 503
        assert server.ask("POST", "/v2/repository/index").json[0]["state"] == "UNAVAILABLE"
        assert server.ask("POST", "/v2/repository/index", b'{"ready":true}').json == []
        server.live.champion = make_champion(settings)
        assert server.ask("GET", "/v2/health/ready").status == 200


def test_a_degraded_server_goes_on_and_says_so(settings: Settings) -> None:
    with served(settings, FakeLive(make_champion(settings), degraded="Version 4 does not serve.")) as server:
        assert server.infer(ROW).status == 200
        assert server.ask("GET", "/v2/health/ready").status == 200
        name = settings.model_name
        assert server.ask("GET", f"/v2/models/{name}").json["parameters"]["degraded"] == "Version 4 does not serve."
        assert server.ask("POST", "/v2/repository/index").json[0]["reason"] == "Version 4 does not serve."


def test_requests_are_counted_by_route_and_status_and_not_by_what_callers_invent(server: Served) -> None:
    name = server.settings.model_name
    server.infer(ROW)
    server.infer(ROW, version=3)
    server.infer(raw_events({}))
    server.ask("GET", "/invented/4711")
    infer = "/v2/models/{model}/infer"
    assert metric(server, "ecluse_http_requests_total", route=infer, code="200") == 2
    assert metric(server, "ecluse_http_requests_total", route=infer, code="400") == 1
    assert metric(server, "ecluse_http_request_seconds_count", route=infer, code="200") == 2
    assert metric(server, "ecluse_http_requests_total", route="none", code="404") == 1
    assert metric(server, "ecluse_model_info", model=name, version="3", sha256="5ha") == 1
    assert metric(server, "ecluse_batch_size_count") == 2


def metric(server: Served, name: str, **labels: str) -> float:
    text = server.ask("GET", "/metrics").body.decode()
    return next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )


def test_told_to_stop_it_finishes_what_is_in_hand_and_takes_nothing_new(make_settings: MakeSettings) -> None:
    gate = Gate()
    settings = make_settings(serve={"port": 0})
    body = json.dumps({"inputs": [ROW]}).encode()
    head = f"POST /v2/models/{settings.model_name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with served(settings, FakeLive(make_champion(settings, gate))) as server, ThreadPoolExecutor(1) as pool:
        kept = http.client.HTTPConnection(*server.place, timeout=10)
        with closing(kept), closing(socket.create_connection(server.place, 10)) as half:
            kept.request("GET", "/v2/health/ready")
            assert kept.getresponse().read() == b'{"live":true}'
            scored = pool.submit(server.infer, ROW)
            assert gate.entered.acquire(timeout=10)
            half.sendall(head + body[:20])
            wait_until("both are in hand", lambda: metric(server, "ecluse_http_in_hand") == 3)  # and the one that asks
            server.stop()
            answers: list[http.client.HTTPResponse] = []

            def no_longer_ready() -> bool:
                kept.request("GET", "/v2/health/ready")
                answers.append(kept.getresponse())
                return answers[-1].read() != b'{"live":true}'

            wait_until("it is no longer ready", no_longer_ready)
            assert (answers[-1].status, answers[-1].headers["Connection"]) == (503, "close")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(server.place, 1).close()
            gate.open.set()
            half.sendall(body[20:])
            assert scored.result().status == 200
            assert half.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_port_in_use_is_said(make_settings: MakeSettings) -> None:
    with served(make_settings(serve={"port": 0})) as server:
        port = server.place[1]
        with (
            pytest.raises(SettingsError, match=rf"127\.0\.0\.1:{port} cannot be used"),
            served(make_settings(serve={"port": port})),
        ):
            pass


def test_a_queue_that_could_not_hold_one_request_is_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ValueError, match="queue_rows must hold a request"):
        make_settings(serve={"queue_rows": 10})


def test_a_host_that_is_not_known_is_said(make_settings: MakeSettings) -> None:
    settings = make_settings(serve={"port": 0, "host": "nowhere.invalid"})
    with pytest.raises(SettingsError, match=r"nowhere\.invalid:0 cannot be used: \w+"), served(settings):
        pass

"""What `ecluse model status` makes of the members of a group, and of what answers where they should be."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.model_status import Answer, Member, ask, member_of, ranges, status_of

HERE = socket.gethostname()
SERVING = Answer("w-1", version=2, sha256="0" * 64, revision=5, since=1.0)


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[int]:
    """A server that says the same to whoever asks for /model; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/model" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(5)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_member_is_found_at_the_address_that_the_broker_saw_and_on_this_machine_at_its_own() -> None:
    assert member_of("ecluse/other-7/8001", "/10.0.0.7", [3, 1]) == Member("other-7", 8001, ("10.0.0.7",), (1, 3))
    assert member_of(f"ecluse/{HERE}-7/8001", "/10.0.0.7", []).hosts == ("127.0.0.1", "10.0.0.7")
    assert member_of("ecluse/other-7/8001", "/127.0.0.1", []).hosts == ("127.0.0.1",)


@pytest.mark.parametrize("client_id", ["rdkafka", "ecluse/w", "ecluse/w/port", "ecluse/w/1/2", "other/w/1", ""])
def test_a_member_that_is_no_worker_of_ours_is_told_of_and_not_asked(client_id: str) -> None:
    member = member_of(client_id, "/10.0.0.7", [0])
    assert (member.worker, member.port, member.hosts) == (client_id, None, ())
    status = status_of(member, ask(member), 5)
    assert (status.state, status.why) == ("unreachable", "its client id is none of a worker")


def test_a_worker_is_asked_where_it_is_and_fields_of_tomorrow_are_passed_over() -> None:
    said = {"worker": "w-1", "version": 2, "revision": 5, "degraded": "", "since": 0.5, "later": [1]}
    with answering(json.dumps(said).encode()) as port:
        assert ask(Member("w-1", port, ("127.0.0.1",), ())) == Answer("w-1", version=2, revision=5, since=0.5)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"worker": "w-2", "version": 2, "revision": 5}', 200),
        (b'{"worker": "w-1"}', 404),
        (b"not JSON", 200),
        (b'{"version": 2}', 200),
        (b'{"worker": "w-1", "note": "' + b"x" * 100_000 + b'"}', 200),
    ],
)
def test_whatever_else_answers_there_is_not_taken_for_the_worker(body: bytes, code: int) -> None:
    with answering(body, code) as port:
        member = Member("w-1", port, ("127.0.0.1",), ())
        assert ask(member) is None
    assert status_of(member, None, 5).why == f"at 127.0.0.1:{port}"


def test_a_worker_that_does_not_answer_is_told_of_with_its_address() -> None:
    member = Member("w-1", closed_port(), ("127.0.0.1",), (0,))
    status = status_of(member, ask(member), 5)
    assert (status.state, status.why) == ("unreachable", f"at 127.0.0.1:{member.port}")


@pytest.mark.parametrize(
    ("answer", "state", "why"),
    [
        (SERVING, "serves", ""),
        (Answer("w-1", version=3, revision=6), "serves", ""),  # ahead of what was read of the route
        (Answer("w-1", version=1, revision=4), "behind", "the route is of revision 5"),
        (Answer("w-1", version=1, revision=4, loading=2, progress=0.43), "loading", "version 2, 43% fetched"),
        (Answer("w-1", loading=2), "loading", "version 2, 0% fetched"),
        (Answer("w-1"), "behind", "the route is of revision 5"),
        (Answer("w-1", version=1, revision=4, degraded="The disk is full."), "degraded", "The disk is full."),
        (
            Answer("w-1", version=1, revision=4, degraded="Changed.", loading=3, progress=1.0),
            "degraded",
            "Changed. Loading version 3, 100% fetched.",
        ),
    ],
)
def test_the_state_of_a_worker_is_told_in_words(answer: Answer, state: str, why: str) -> None:
    status = status_of(Member("w-1", 1, ("127.0.0.1",), ()), answer, 5)
    assert (status.state, status.why) == (state, why)


@given(st.sets(st.integers(0, 30)))
def test_ranges_name_each_partition_once(numbers: set[int]) -> None:
    words = ranges(sorted(numbers))
    named: list[int] = []
    for part in words.split(", ") if numbers else []:
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(numbers)
    assert numbers or words == "none"

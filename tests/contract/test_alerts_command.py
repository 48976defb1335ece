"""`ecluse alerts` on a real broker."""

import signal
import subprocess
import sys
import threading

import msgspec
from rich.console import Console

from console.alerts import line, reason_text
from ecluse.contract.codecs import Encoding, encoder
from ecluse.contract.records import Alert, Decision, Reason, Severity, Source
from ecluse.settings import Settings
from tests.cli import config_file, ecluse, produce


def alert(number: int, **changes: object) -> Alert:
    usual = Alert(
        event_id=f"e-{number}",
        entity="card-1",
        event_time=1_767_225_600.0,
        scored_at=1_767_225_601.0,
        model="m",
        version=3,
        arm="champion",
        score=0.9731,
        decision=Decision.BLOCK,
        threshold=0.912,
        severity=Severity.HIGH,
        reasons=[Reason("amount", 812.5, 54.1, 0.31), Reason("night", 1.0, None, -0.02)],
        fields={"amount": 812.5, "night": 1},
        route_revision=1,
        source=Source("t", 0, number),
    )
    return msgspec.structs.replace(usual, **changes)


def put(settings: Settings, *alerts: Alert, partition: int = 0, encoding: Encoding = "msgpack") -> None:
    produce(settings, settings.names.alerts, [(partition, encoder(encoding)(one), ()) for one in alerts])


def test_an_alert_is_one_readable_line_with_why(stream: Settings) -> None:
    put(stream, alert(1))
    result = ecluse(stream, "alerts")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "2026-01-01 00:00:00  HIGH      block   0.9731 ≥ 0.9120  card-1  event e-1  "
        "amount 812.5 (usual 54.1) +0.31, night 1 (usual missing) -0.02  | amount=812.5 night=1\n"
    )


def test_a_reason_that_may_not_be_shown_does_not_look_like_a_missing_value() -> None:
    assert reason_text(Reason("region", None, None, 0.24)) == "region (not shown) +0.24"
    assert reason_text(Reason("age", None, 9.0, 0.14)) == "age missing (usual 9) +0.14"


def test_json_gives_one_object_a_line_whatever_the_encoding(stream: Settings) -> None:
    put(stream, alert(1))
    put(stream, alert(2, reasons="skipped"), partition=1, encoding="json")
    lines = ecluse(stream, "alerts", "--json").stdout.splitlines()
    found = [msgspec.json.decode(text, type=Alert) for text in lines]
    assert {one.event_id: one.reasons == "skipped" for one in found} == {"e-1": False, "e-2": True}


def test_a_limit_keeps_the_newest_and_says_that_there_are_more(stream: Settings) -> None:
    put(stream, *map(alert, range(20)))
    put(stream, *map(alert, range(20, 25)), partition=2)
    result = ecluse(stream, "alerts", "--limit", "7")
    assert [text.split("event e-")[1].split()[0] for text in result.stdout.splitlines()] == [
        "18", "19", "20", "21", "22", "23", "24",
    ]  # fmt: skip
    assert "newest 7 of about 25" in result.stderr


def test_the_newest_are_found_among_transaction_markers(stream: Settings) -> None:
    for number in range(4):
        produce(stream, stream.names.alerts, [(0, encoder("json")(alert(number)), ())], "x")
    produce(stream, stream.names.alerts, [(0, encoder("json")(alert(99)), ())], "x", abort=True)
    result = ecluse(stream, "alerts", "--limit", "3")
    assert [number for number in (0, 1, 2, 3, 99) if f"event e-{number} " in result.stdout] == [1, 2, 3]


def test_since_leaves_out_older_alerts(stream: Settings) -> None:
    put(stream, alert(1))
    assert "e-1" in ecluse(stream, "alerts", "--since", "10m").stdout
    assert ecluse(stream, "alerts", "--since", "2999-01-01").stdout == ""


def test_what_is_no_alert_is_said_and_left_out(stream: Settings) -> None:
    produce(stream, stream.names.alerts, [(0, b"rubbish", ()), (0, encoder("json")(alert(1)), ())])
    result = ecluse(stream, "alerts")
    assert "e-1" in result.stdout
    assert f"{stream.names.alerts}-0-0 is no alert" in result.stderr


def test_a_producers_text_cannot_steer_the_terminal(stream: Settings) -> None:
    put(stream, alert(1, event_id="\x1b[2J\n[red]x", entity="a" * 5_000, fields={"[b]": "\x1b]0;title\x07"}))
    printed = ecluse(stream, "alerts").stdout
    assert "\x1b" not in printed and "\x07" not in printed
    assert printed.count("\n") == 1
    assert "[red]x" in printed and "[b]=" in printed
    assert len(printed) < 500


def test_colours_are_for_terminals_only() -> None:
    def printed(terminal: bool) -> str:
        console = Console(force_terminal=terminal, color_system="standard" if terminal else None, width=300)
        with console.capture() as capture:
            console.print(line(alert(1)), soft_wrap=True)
        return capture.get()

    assert "\x1b[" in printed(True)
    assert "\x1b[" not in printed(False)


def test_following_shows_the_last_ones_then_what_comes_until_ctrl_c(stream: Settings) -> None:
    put(stream, *map(alert, range(12)))
    command = [sys.executable, "-c", "from console.main import run; run()", "alerts", "--follow", "--json"]
    options = ["--limit", "2", "--config", str(config_file(stream))]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        try:
            assert process.stdout is not None
            before = [msgspec.json.decode(process.stdout.readline())["event_id"] for _ in range(2)]
            put(stream, alert(50), partition=3)
            after = msgspec.json.decode(process.stdout.readline())["event_id"]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            deadline.cancel()
            process.kill()
    assert (before, after) == (["e-10", "e-11"], "e-50")

"""The load generator of the HTTP benchmark, which can be wrong without anyone seeing it. No time is asserted."""

import asyncio

import pytest

from benchmarks.http import Rate, call, figures, request_of, show
from tests.conftest import MakeSettings
from tests.serving import features, served


@pytest.mark.parametrize(("row", "fails"), [([1.0, 2.0, 3.0], False), ([1.0], True)])
def test_every_connection_asks_again_and_again_and_refusals_are_no_answers(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], row: list[float | None], fails: bool
) -> None:
    with served(make_settings(serve={"port": 0})) as server:
        request = request_of(server.address.split("//")[1], server.settings.model_name, features(row))
        seen = asyncio.run(call(*server.place, request, 3, 0.3))
        counted = server.ask("GET", "/metrics").body.decode()
    code = "400" if fails else "200"
    (line,) = (text for text in counted.splitlines() if text.startswith(f'ecluse_http_requests_total{{code="{code}"'))
    asked = float(line.split()[-1])
    assert asked > 3
    assert seen["failed"] == (asked if fails else 0)
    assert seen["rate"] * 0.25 < asked
    assert 0 < seen["p50"] <= seen["p99"]
    assert bool(capsys.readouterr().err) == fails


def test_a_row_holds_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"features": [Rate(1, 2345.6, 0.0004, 0.0011, 0, 210.0), Rate(16, 6000.0, 0.002, 0.004, 0, 120.0)]}
    row = figures(found)
    assert row["features_1_requests_per_s"] == 2346
    assert row["features_1_p50_ms"] == 0.4
    assert row["features_1_p99_ms"] == 1.1
    assert row["features_16_cpu_us_per_request"] == 120.0
    show(found)
    printed = capsys.readouterr().out
    assert "2,346" in printed and "4,800" in printed

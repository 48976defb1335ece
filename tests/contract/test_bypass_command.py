"""`ecluse bypass set|off|status` on a real broker: what is refused, what is written, and what it costs."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console import bypass as command
from ecluse import cluster, kafka
from ecluse.contract.arms import secret_id
from ecluse.contract.records import BypassSample, Source, Switch
from ecluse.errors import SettingsError, SwitchChanged
from ecluse.model import routes
from ecluse.model.registry import Switched, read_registry
from ecluse.model.routes import set_switch
from ecluse.secrets import make_secret
from ecluse.settings import Settings
from tests.cli import ecluse, json_of
from tests.conftest import MakeSettings
from tests.workers import read_all

Make = Any


@pytest.fixture
def make_stream(servers: str, make_settings: MakeSettings, tmp_path: Path) -> Make:
    def make(**bypass: Any) -> Settings:
        make_secret(tmp_path / "bypass.key")
        settings = make_settings(servers, bypass={"secret_file": tmp_path / "bypass.key"} | bypass)
        cluster.create_topics(settings)
        return settings

    return make


def switched(settings: Settings) -> Switched:
    return read_registry(settings).switches[settings.model_name]


@pytest.mark.parametrize(
    ("text", "share"), [("2%", 0.02), ("0.02", 0.02), ("0", 0.0), ("100%", 1.0), ("1", 1.0), ("0.05%", 0.0005)]
)
def test_a_share_is_a_part_or_a_percentage(text: str, share: float) -> None:
    assert command.share_of(text) == pytest.approx(share)


def test_shares_that_are_none_are_wrong_use(make_stream: Make) -> None:
    settings = make_stream()
    for text in ("2 %%", "101%", "1.01", "-1%", "nan", "x"):
        result = ecluse(settings, "bypass", "set", "--", text)
        assert result.exit_code == 2, (text, result.stdout)


def test_the_rules_of_the_settings_are_written_with_the_share_and_off_keeps_them(make_stream: Make) -> None:
    settings = make_stream(
        amount_field="amount", max_amount=100.0, budget=5000.0, never={"customer_id": ["house"], "night": [1]}
    )
    assert "there is no bypass switch" in ecluse(settings, "bypass", "off").stdout
    assert "there is no bypass switch" in ecluse(settings, "bypass", "status").stdout
    first = ecluse(settings, "bypass", "set", "2%")
    now = switched(settings)
    assert first.stdout == (
        f"2% of the eligible events go past model {settings.model_name}, by revision {now.revision}.\n"
    )
    secret = settings.bypass.secret_file.read_bytes()
    assert msgspec.structs.replace(now.switch, created_at=0.0) == Switch(
        name=settings.model_name,
        share=0.02,
        wanted=0.02,
        created_at=0.0,
        secret_id=secret_id(secret),
        amount_field="amount",
        max_amount=100.0,
        never={"customer_id": ["house"], "night": [1]},
        budget=5000.0,
    )
    assert secret not in b"".join(m.value() or b"" for m in read_all(settings, settings.names.models))
    again = json_of(ecluse(settings, "bypass", "set", "0.02", "--json"))
    assert again == {
        "model": settings.model_name,
        "from": 0.02,
        "to": 0.02,
        "revision": now.revision,
        "changed": False,
    }
    off = ecluse(settings, "bypass", "off")
    assert off.stdout == f"Nothing goes past model {settings.model_name}, by revision {switched(settings).revision}.\n"
    ended = switched(settings).switch
    assert (ended.share, ended.wanted, ended.max_amount, ended.never) == (0.0, 0.0, 100.0, now.switch.never)
    assert "That was so already." in ecluse(settings, "bypass", "off").stdout


@pytest.mark.parametrize(
    ("bypass", "stream", "share", "sentence"),
    [
        ({"max_share": 0.05}, {}, "6%", "A share of 0.06 is more than bypass.max_share allows (0.05)."),
        ({"secret_file": None}, {}, "2%", "bypass.secret_file is not set"),
        ({"secret_file": Path("gone.key")}, {}, "2%", "names gone.key, which cannot be read"),
        ({}, {"key_field": None}, "2%", "stream.key_field is not set"),
        ({"never": {"night": ["1"]}}, {}, "2%", "field 'night' is '1', which a field of type integer never is"),
    ],
)
def test_what_the_settings_do_not_allow_is_refused_with_a_sentence(
    make_settings: MakeSettings, tmp_path: Path, bypass: Any, stream: Any, share: str, sentence: str
) -> None:
    make_secret(tmp_path / "bypass.key")
    settings = make_settings(stream=stream, bypass={"secret_file": tmp_path / "bypass.key"} | bypass)
    result = ecluse(settings, "bypass", "set", share)  # no broker is asked
    assert result.exit_code == 1
    assert isinstance(result.exception, SettingsError)
    assert sentence in str(result.exception)


def test_who_decided_by_an_older_switch_is_told_and_the_controller_alone_is_in_nobodys_way(
    make_stream: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_stream()
    assert ecluse(settings, "bypass", "set", "2%").exit_code == 0
    between: list[Switch] = []

    def late(settings: Settings, switch: Switch, seen: int | None) -> int:
        """Somebody else is quicker."""
        if between:
            set_switch(settings, between.pop(), seen)
        return set_switch(settings, switch, seen)

    monkeypatch.setattr(routes, "set_switch", late)
    now = switched(settings).switch
    between.append(msgspec.structs.replace(now, share=0.001, created_at=time.time()))
    assert ecluse(settings, "bypass", "set", "3%").exit_code == 0
    assert switched(settings).switch.share == 0.03
    between.append(msgspec.structs.replace(now, share=0.05, wanted=0.05, created_at=time.time()))
    result = ecluse(settings, "bypass", "off")
    assert isinstance(result.exception, SwitchChanged)
    assert "a share of 0.05 goes past, by revision" in str(result.exception)
    assert switched(settings).switch.share == 0.05


def sample(settings: Settings, i: int, day: int, amount: object) -> bytes:
    """A sample of one day of March 2026."""
    return msgspec.msgpack.encode(
        BypassSample(
            event_id=f"e-{i}",
            entity=f"c-{i % 3}",
            event_time=1_772_323_200.0 + (day - 1) * 86_400,
            propensity=0.02,
            route_revision=1,
            switch_revision=2,
            source=Source(settings.names.events, 0, i),
            event={"amount": amount, "note": "x"},
        )
    )


def test_status_tells_the_cost_of_each_day_against_the_budget(
    servers: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    make_secret(tmp_path / "bypass.key")
    settings = make_settings(
        servers,
        stream={"clock": "event"},
        bypass={"secret_file": tmp_path / "bypass.key", "amount_field": "amount", "max_amount": 50.0, "budget": 100.0},
    )
    cluster.create_topics(settings)
    assert ecluse(settings, "bypass", "set", "2%").exit_code == 0
    now = switched(settings)
    lowered = msgspec.structs.replace(now.switch, share=0.005, created_at=time.time())
    revision = set_switch(settings, lowered, now.revision)
    writer = kafka.producer(settings)
    for i, (day, amount) in enumerate(
        [(1, 10.0), (1, 20), (2, 50.0), (2, 40.0), (2, 30.5), (2, -5.0), (2, None), (2, "9")]
    ):
        writer.produce(settings.names.bypass, sample(settings, i, day, amount), key=b"c", partition=i % 4)
    writer.produce(settings.names.bypass, b"no sample", partition=0)
    assert writer.flush(10) == 0
    result = ecluse(settings, "bypass", "status")
    assert result.exit_code == 0
    assert "0.5% of the eligible events" in result.stdout
    assert f"by revision {revision} (2% are wanted; the budget allows less). Set" in result.stdout
    assert "Eligible: events with a key; amount is given, 50 at most." in result.stdout
    assert "Budget: 100 of amount a day (UTC)." in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("2026-")]
    assert rows == [
        ["2026-03-02", "6", "3", "120.50", "15.25", "49.50", "50.00", "20.50"],
        ["2026-03-01", "2", "2", "30.00", "15.00", "19.90", "20.00", "0.00"],
    ]
    told = json_of(ecluse(settings, "bypass", "status", "--json", "--days", "1"))
    assert (told["revision"], told["ok"], told["workers"]) == (revision, True, [])
    (day,) = told["days"]  # type: ignore[misc]
    assert (day["day"], day["events"], day["eligible"], day["over"]) == ("2026-03-02", 6, 300, 20.5)

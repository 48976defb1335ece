"""The bypass in the path of a chunk, and the switch that a worker obeys or refuses; without a broker."""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from ecluse.contract.arms import secret_id
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import cloud_event_headers
from ecluse.contract.records import BYPASS, BypassSample, Decision, Switch
from ecluse.contract.topics import HEADROOM_BYTES
from ecluse.model.registry import Registry, Switched
from ecluse.secrets import make_secret
from ecluse.settings import Settings
from ecluse.transport.ledger import Output
from scoring.arms import BESIDE, GROWTH, Bypass
from scoring.switch import RETRY_SECONDS, LiveSwitch
from tests.conftest import MakeSettings
from tests.unit.test_pipeline import FakeRecord, Stage, by_amount, event

SECRET = bytes(range(32))


def switched(settings: Settings, share: float, revision: int = 12, **rules: Any) -> Switched:
    return Switched(Switch(settings.model_name, share, share, 0.0, secret_id(SECRET), **rules), revision)


def stage(settings: Settings, share: float, **rules: Any) -> Stage:
    """A pipeline that obeys a switch."""
    made = Stage(settings, by_amount)
    made.pipeline.obey(Bypass(settings, switched(settings, share, **rules), SECRET))
    return made


def samples(made: Stage, outputs: list[Output]) -> list[BypassSample]:
    found: list[BypassSample] = made.of(outputs, made.settings.names.bypass, BypassSample)
    return found


def keyed(place: int, amount: float = 10.0, **more: object) -> FakeRecord:
    """The event of an entity of its own."""
    record = event(place, amount, **more)
    record.name = b"c-%d" % place
    return record


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


def test_an_event_that_goes_past_is_allowed_without_a_score_and_has_one_sample_and_no_alert(settings: Settings) -> None:
    made = stage(settings, 1.0)
    record = event(3, 950.0, shop="a new one", nested={"a": [1, None]})
    outputs = made.run(record)
    (prediction,) = made.predictions(outputs)
    assert (prediction.arm, prediction.score, prediction.decision) == (BYPASS, None, Decision.ALLOW)
    assert (prediction.version, prediction.threshold, prediction.propensity) == (3, 0.5, 1.0)
    assert (prediction.route_revision, prediction.switch_revision) == (7, 12)
    (sample,) = samples(made, outputs)
    assert sample.event == json.loads(record.content or b"")
    assert (sample.event_id, sample.entity, sample.propensity) == ("t-3", "c-1", 1.0)
    assert (sample.route_revision, sample.switch_revision, sample.source) == (7, 12, prediction.source)
    assert (made.calls, len(outputs)) == ([], 2), "no model call, no alert"
    assert {output.key for output in outputs} == {b"c-1"}
    told = made.telemetry.exposition().decode()
    assert "ecluse_bypassed_total 1.0" in told and "ecluse_bypass_share 1.0" in told
    assert 'ecluse_predictions_total{arm="bypass",decision="allow",model="m",version="3"} 1.0' in told
    assert "ecluse_event_to_prediction_seconds_count 1.0" in told


def test_predictions_of_both_arms_stand_in_the_order_of_the_events(settings: Settings) -> None:
    made = stage(settings, 0.5, amount_field="amount", max_amount=500.0)
    records = [keyed(i, 600.0 if i % 10 == 0 else 10.0) for i in range(200)]
    records[7].content = b"{"
    outputs = made.run(*records)
    predictions = made.predictions(outputs)
    assert [each.source.offset for each in predictions] == [i for i in range(200) if i != 7]
    assert len(made.letters(outputs)) == 1
    past = [each.source.offset for each in predictions if each.arm == BYPASS]
    assert [each.source.offset for each in samples(made, outputs)] == past
    assert 60 < len(past) < 120
    for each in predictions:
        eligible = each.source.offset % 10 != 0
        assert each.propensity == (0.5 if eligible else 1.0)
        assert eligible or each.arm == "champion"
    assert len(made.alerts(outputs)) == 20
    assert made.calls[0] == 199 - len(past)


def test_the_odds_of_both_arms_add_up_to_one(settings: Settings) -> None:
    made = stage(settings, 0.02)
    odds = {each.arm: each.propensity for each in made.predictions(made.run(*[keyed(i) for i in range(500)]))}
    assert odds == {BYPASS: 0.02, "champion": 0.98}


def past(settings: Settings, share: float, records: list[FakeRecord]) -> set[int]:
    made = stage(settings, share)
    return {each.source.offset for each in samples(made, made.run(*records))}


def test_lowering_the_share_brings_nobody_in_and_the_same_share_draws_the_same(settings: Settings) -> None:
    records = [keyed(i) for i in range(2000)]
    shares = [past(settings, share, records) for share in (0.0, 0.01, 0.1, 0.1, 0.5, 1.0)]
    assert shares[0] == set() and len(shares[-1]) == 2000
    for less, more in itertools.pairwise(shares):
        assert less <= more
    assert shares[2] == shares[3]
    assert 130 < len(shares[2]) < 270


@pytest.mark.parametrize("what", ["amount", "place"])
def test_a_worker_lets_as_many_past_whatever_they_are_worth_and_score(settings: Settings, what: str) -> None:
    """A right draw fails one test in a million; these secrets and events are always the same."""
    count, share = 20_000, 0.1
    amounts = [1000.0 * (i * 7919 % count) / count for i in range(count)]  # and by these the model scores
    gone = past(settings, share, [keyed(i, amount) for i, amount in enumerate(amounts)])
    groups = np.array(amounts if what == "amount" else range(count)).argsort().argsort() * 10 // count
    went = np.bincount(groups[sorted(gone)], minlength=10)
    result = stats.chisquare(went, np.full(10, went.mean()))
    assert result.pvalue > 1e-6, went.tolist()
    low, high = stats.binom.interval(1 - 1e-6, count, share)
    assert low <= went.sum() <= high


def test_all_events_of_an_entity_and_day_go_the_same_way_and_another_day_is_drawn_anew(settings: Settings) -> None:
    made = stage(settings, 0.5)
    arms = []
    for day in range(40):
        records = [event(i, transaction_id=f"{day}-{i}") for i in range(5)]
        for record in records:
            record.at = 1_700_000_000_000 + day * 86_400_000
        arms.append({each.arm for each in made.predictions(made.run(*records))})
    assert all(len(each) == 1 for each in arms)
    assert len(set.union(*arms)) == 2


def test_the_day_is_that_of_the_stream_s_clock(make_settings: MakeSettings) -> None:
    records = [keyed(i, time=f"2026-03-{1 + i % 28:02}T12:00:00Z") for i in range(300)]
    by_arrival = past(make_settings(stream={"name": "cards"}), 0.5, records)
    by_event = past(make_settings(stream={"name": "cards", "clock": "event"}), 0.5, records)
    assert by_arrival != by_event
    for record in records:
        record.at += 86_400_000
    assert past(make_settings(stream={"name": "cards"}), 0.5, records) != by_arrival
    assert past(make_settings(stream={"name": "cards", "clock": "event"}), 0.5, records) == by_event


def test_an_event_without_a_key_never_goes_past(settings: Settings) -> None:
    made = stage(settings, 1.0)
    record = event(0)
    record.name = None
    (prediction,) = made.predictions(made.run(record))
    assert (prediction.arm, prediction.propensity) == ("champion", 1.0)


def test_the_sample_of_a_cloud_event_is_the_event_alone(settings: Settings) -> None:
    made = stage(settings, 1.0)
    data = {"amount": 10.0, "terminal_risk_30d": 0.0, "night": 0, "more": "x"}
    structured = {"specversion": "1.0", "id": "s-1", "source": "/shop", "type": "payment", "data": data}
    records = [
        FakeRecord(0, msgspec.json.encode(structured), extra=[("content-type", b"application/cloudevents+json")]),
        FakeRecord(
            1,
            msgspec.msgpack.encode(data),
            extra=cloud_event_headers("b-1", "/shop", "payment", None, b"application/msgpack"),
        ),
    ]
    found = samples(made, made.run(*records))
    assert [(each.event_id, each.event) for each in found] == [("s-1", data), ("b-1", data)]


@pytest.mark.parametrize(
    "unreadable",
    [b'"\xff"', b"123456789012345678901234567890", b"1e999"],
    ids=["text that is no UTF-8", "a number that msgpack cannot hold", "a number that no reader takes"],
)
def test_what_nobody_declared_and_nobody_can_read_costs_no_event_its_sample(
    settings: Settings, unreadable: bytes
) -> None:
    made = stage(settings, 1.0)
    value = b'{"amount": 5, "terminal_risk_30d": 0, "night": 1, "time": "2026-03-01T12:00:00Z", "odd": %b}' % unreadable
    (sample,) = samples(made, made.run(FakeRecord(0, value)))
    assert sample.event == {"amount": 5.0, "terminal_risk_30d": 0.0, "night": 1, "time": "2026-03-01T12:00:00+00:00"}


@cache
def plain(encoding: str) -> Stage:
    """A pipeline past which everything goes, without a test's own folder."""
    fields = {"transaction_id": "text", "amount": "number", "terminal_risk_30d": "number", "night": "integer"}
    stream = {"name": "plain", "fields": fields, "id_field": "transaction_id", "encoding": encoding}
    return stage(Settings.model_validate({"stream": stream}), 1.0)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@hypothesis_settings(max_examples=40, deadline=None)  # the first example makes the pipeline
@given(
    st.dictionaries(st.text(max_size=4), values, max_size=8),
    st.sampled_from(["json", "msgpack"]),
    st.sampled_from(["json", "msgpack"]),
)
def test_a_sample_always_fits_on_its_topic(more: dict[str, Any], sent_as: str, written_as: str) -> None:
    """With the longest names: the growth that is allowed for is enough."""
    sent = {**more, "transaction_id": "\x01" * 4096, "amount": 1.0, "terminal_risk_30d": 0.0, "night": 0}
    record = FakeRecord(0, (msgspec.json if sent_as == "json" else msgspec.msgpack).encode(sent), b"\x02" * 4096)
    made = plain(written_as)
    (output,) = [each for each in made.run(record) if each.topic == made.settings.names.bypass]
    size = len(output.value or b"") + len(output.key or b"")
    assert size <= GROWTH * len(record) + BESIDE
    assert Reader(BypassSample)(output.value or b"").event_id == sent["transaction_id"]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_the_largest_event_that_goes_past_fits_however_it_grows_and_a_larger_one_is_scored(
    make_settings: MakeSettings, encoding: str
) -> None:
    room = 200_000
    settings = make_settings(topics={"max_message_bytes": room}, stream={"encoding": encoding})
    made, scored, sampled = stage(settings, 1.0), 0, 0
    for size in range(10_000, room, 10_000):
        # False takes one byte in msgpack and six in JSON.
        body = {
            "amount": 1.0,
            "terminal_risk_30d": 0.0,
            "night": 0,
            "transaction_id": "\x01" * 4096,
            "x": [False] * size,
        }
        record = FakeRecord(0, msgspec.msgpack.encode(body), b"\x02" * 4096)
        outputs = made.run(record)
        (prediction,) = made.predictions(outputs)
        sampled += len(samples(made, outputs))
        scored += prediction.arm == "champion"
        assert prediction.propensity == 1.0
        for output in outputs:
            assert len(output.value or b"") + len(output.key or b"") <= room + HEADROOM_BYTES - 100
    assert sampled and scored


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def allowing(make_settings: MakeSettings, folder: Path, **bypass: Any) -> Settings:
    """Settings that allow the switch, but for what is given."""
    secret = folder / "bypass.key"
    if not secret.exists():
        secret.touch(0o600)
        secret.write_bytes(SECRET)
    return make_settings(bypass={"secret_file": secret, "max_share": 0.1} | bypass)


def registry(now: Switched) -> Registry:
    return Registry(switches={now.switch.name: now})


def test_a_switch_is_handed_over_once_and_taken_back_with_its_record(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = allowing(make_settings, tmp_path)
    live = LiveSwitch(settings)
    taken: list[tuple[int, float]] = []
    live.hand_over_to(lambda bypass: taken.append((bypass.revision, bypass.share)))
    for _ in range(3):
        live.keep_up(registry(switched(settings, 0.02)))
    live.keep_up(registry(switched(settings, 0.0, 13)))
    live.keep_up(Registry())
    live.keep_up(Registry(switches={"another": switched(settings, 0.02)}))
    assert taken == [(-1, 0.0), (12, 0.02), (13, 0.0), (-1, 0.0)]
    assert live.refused == ""


@pytest.mark.parametrize(
    ("bypass", "rules", "sentence"),
    [
        ({"max_share": 0.01}, {}, "A share of 0.02 is more than bypass.max_share allows (0.01)."),
        ({"secret_file": None}, {}, "bypass.secret_file is not set: without a secret, nobody can be drawn."),
        (
            {"secret_file": Path("missing.key")},
            {},
            "names missing.key, which cannot be read: No such file or directory.",
        ),
        ({}, {"never": {"region": ["north"]}}, "the field 'region', which the stream does not declare."),
        (
            {},
            {"amount_field": "customer_id"},
            "the field 'customer_id', which the stream does not declare as a number.",
        ),
    ],
)
def test_a_switch_that_the_settings_do_not_allow_lets_nobody_past_and_says_why(
    make_settings: MakeSettings, tmp_path: Path, bypass: dict[str, Any], rules: dict[str, Any], sentence: str
) -> None:
    settings = allowing(make_settings, tmp_path, **bypass)
    live = LiveSwitch(settings)
    live.keep_up(registry(switched(settings, 0.02, **rules)))
    assert live.refused == f"Nobody goes past the model here: {live.refused.split(': ', 1)[1]}"
    assert sentence in live.refused
    assert (live.bypass.revision, live.bypass.share) == (-1, 0.0)
    live.keep_up(registry(switched(settings, 0.0, 13, **rules)))
    assert (live.refused, live.bypass.revision) == ("", 13), "off needs nothing"


@pytest.mark.parametrize("fault", ["open to all", "too short", "another"])
def test_a_bad_secret_lets_nobody_past_until_it_is_mended(
    make_settings: MakeSettings, tmp_path: Path, fault: str
) -> None:
    settings, clock = allowing(make_settings, tmp_path), Clock()
    secret = tmp_path / "bypass.key"
    if fault == "open to all":
        secret.chmod(0o644)
    else:
        secret.write_bytes(SECRET[:31] if fault == "too short" else SECRET[::-1])
    live = LiveSwitch(settings, clock)
    live.keep_up(registry(switched(settings, 0.02)))
    assert live.bypass.share == 0.0
    assert {"open to all": "open to everybody", "too short": "holds 31 bytes", "another": "another secret"}[
        fault
    ] in live.refused
    secret.chmod(0o600)
    secret.write_bytes(SECRET)
    live.keep_up(registry(switched(settings, 0.02)))
    assert live.refused, "it is not read at every look"
    clock.now += RETRY_SECONDS
    live.keep_up(registry(switched(settings, 0.02)))
    assert (live.refused, live.bypass.share) == ("", 0.02)


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "bypass.key"
    make_secret(file)
    made = file.read_bytes()
    assert (len(made), file.stat().st_mode & 0o777) == (32, 0o600)
    make_secret(file)
    assert file.read_bytes() == made

"""The path of a chunk without a broker: what fails alone, what fails with everything, and what an attack may cost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecluse.bisect import by_halves
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import read_error_headers
from ecluse.contract.records import Alert, Arm, Decision, Prediction, Severity, Thresholds
from ecluse.errors import ModelError
from ecluse.model.features import Feature, FeatureSet
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from ecluse.transport.ledger import Chunk, Ledger, Output
from scoring.alerts import EXPLAINED, severity
from scoring.champion import Champion
from scoring.pipeline import Pipeline
from tests.conftest import MakeSettings

Score = Callable[[NDArray[np.float32]], NDArray[np.float64]]
FEATURES = [Feature("amount", "amount", "number"), Feature("risk", "terminal_risk_30d", "number")]


@dataclass
class FakeRecord:
    """A fetched record, as librdkafka would hand it over."""

    place: int
    content: bytes | None
    name: bytes | None = b"c-1"
    extra: list[tuple[str, bytes | None]] | None = None
    at: int = 1_700_000_000_000

    def __len__(self) -> int:
        return len(self.content or b"")

    def offset(self) -> int:
        return self.place

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.extra

    def timestamp(self) -> tuple[int, int]:
        return 1, self.at


@dataclass
class Stage:
    """A pipeline around a scoring function of the test's own; `calls` holds the rows of each model call."""

    settings: Settings
    score: Score
    calls: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        def counted(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
            self.calls.append(len(matrix))
            return self.score(matrix)

        model = SimpleNamespace(
            name="m",
            version=3,
            features=FeatureSet(FEATURES, self.settings.stream.schema_of_events()),
            usual=np.array([50.0, 0.0], dtype=np.float32),
            score=counted,
        )
        champion = Champion(cast(Model, model), Arm("champion", 3, Thresholds(0.5, 0.9)), 7, "sha", 0.0)
        self.telemetry = Telemetry()
        self.pipeline = Pipeline(self.settings, champion, "w-1", self.telemetry, clock=lambda: 1_700_000_001.0)

    def run(self, *records: FakeRecord) -> list[Output]:
        """What comes of one chunk."""
        chunk = Chunk(Ledger(TP("events", 5)), records, 0, len(records), 0.0)
        return self.pipeline([chunk])[0]

    def of(self, outputs: list[Output], topic: str, kind: type[Any]) -> list[Any]:
        return [Reader(kind)(output.value or b"") for output in outputs if output.topic == topic]

    def predictions(self, outputs: list[Output]) -> list[Prediction]:
        return self.of(outputs, self.settings.names.predictions, Prediction)

    def alerts(self, outputs: list[Output]) -> list[Alert]:
        return self.of(outputs, self.settings.names.alerts, Alert)

    def letters(self, outputs: list[Output]) -> list[dict[str, str]]:
        topic = self.settings.names.dead_letters
        return [
            read_error_headers(cast(Any, output.headers))
            for output in outputs
            if output.topic == topic and output.headers
        ]


def event(place: int, amount: float = 10.0, risk: float = 0.0, **more: object) -> FakeRecord:
    body = {"transaction_id": f"t-{place}", "amount": amount, "terminal_risk_30d": risk, "night": 0, **more}
    return FakeRecord(place, msgspec.json.encode(body))


def by_amount(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.clip(matrix[:, 0].astype(np.float64) / 1000, 0, 1)


def refusing(bad: Callable[[NDArray[np.float32]], NDArray[np.bool_]]) -> Score:
    def score(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        if bad(matrix).any():
            raise RuntimeError("cannot score 4711")
        return by_amount(matrix)

    return score


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


def test_all_events_of_a_chunk_share_one_model_call(settings: Settings) -> None:
    stage = Stage(settings, by_amount)
    assert len(stage.predictions(stage.run(*[event(i) for i in range(500)]))) == 500
    assert stage.calls == [500]


def test_decisions_turn_on_the_arms_own_thresholds(settings: Settings) -> None:
    stage = Stage(settings, by_amount)
    amounts = (499.0, 500.0, 899.0, 900.0)
    outputs = stage.run(*[event(i, amount) for i, amount in enumerate(amounts)])
    made = stage.predictions(outputs)
    assert [p.decision for p in made] == [Decision.ALLOW, Decision.REVIEW, Decision.REVIEW, Decision.BLOCK]
    assert [p.threshold for p in made] == [0.5, 0.5, 0.5, 0.9]
    assert {(p.model, p.version, p.route_revision, p.source.partition) for p in made} == {("m", 3, 7, 5)}
    assert len(stage.alerts(outputs)) == 3


def test_rows_on_which_the_model_raises_are_dead_letters_and_the_rest_is_scored(settings: Settings) -> None:
    stage = Stage(settings, refusing(lambda matrix: matrix[:, 0] == 13.0))
    outputs = stage.run(*[event(i, 13.0 if i in (3, 77) else 20.0) for i in range(100)])
    assert len(stage.predictions(outputs)) == 98
    first, second = stage.letters(outputs)
    assert (first["stage"], first["offset"], second["offset"]) == ("score", "3", "77")
    assert "4711" not in first["exception.message"]
    assert first["exception.class.name"] == "builtins.RuntimeError"


def test_a_score_that_is_not_a_number_is_a_dead_letter(settings: Settings) -> None:
    stage = Stage(settings, lambda matrix: np.where(matrix[:, 0] == 13.0, np.nan, 0.1))
    outputs = stage.run(event(0), event(1, 13.0), event(2))
    assert [p.source.offset for p in stage.predictions(outputs)] == [0, 2]
    assert [letter["stage"] for letter in stage.letters(outputs)] == ["score"]


def test_one_bad_event_alone_in_its_chunk_is_a_dead_letter_while_the_model_is_sound(settings: Settings) -> None:
    stage = Stage(settings, refusing(lambda matrix: matrix[:, 0] == 13.0))
    assert [letter["stage"] for letter in stage.letters(stage.run(event(0, 13.0)))] == ["score"]


def test_a_model_that_fails_on_its_own_usual_values_stops_the_worker(settings: Settings) -> None:
    stage = Stage(settings, refusing(lambda matrix: matrix[:, 0] > 0))
    with pytest.raises(ModelError, match="fails on its own usual values"):
        stage.run(*[event(i) for i in range(10)])


def test_at_most_fifty_alerts_of_a_call_are_explained_and_the_others_say_skipped(settings: Settings) -> None:
    stage = Stage(settings, by_amount)
    alerts = stage.alerts(stage.run(*[event(i, 600.0 + i) for i in range(200)]))
    explained = [alert for alert in alerts if alert.reasons != "skipped"]
    assert (len(alerts), len(explained)) == (200, EXPLAINED)
    assert min(alert.score for alert in explained) > max(alert.score for alert in alerts if alert.reasons == "skipped")
    assert stage.calls == [200, EXPLAINED * len(FEATURES)]


def test_a_reason_names_the_input_its_value_the_usual_one_and_its_effect(settings: Settings) -> None:
    stage = Stage(settings, lambda matrix: np.clip(0.001 * matrix[:, 0] + 0.2 * matrix[:, 1], 0, 1).astype(np.float64))
    (alert,) = stage.alerts(stage.run(event(0, 450.0, 1.0)))
    assert alert.reasons != "skipped"
    assert [(r.feature, r.value, r.usual, round(r.effect, 6)) for r in alert.reasons] == [
        ("amount", 450.0, 50.0, 0.4),
        ("risk", 1.0, 0.0, 0.2),
    ]


def test_alerts_go_out_without_reasons_where_these_cannot_be_found(settings: Settings) -> None:
    stage = Stage(settings, refusing(lambda matrix: matrix[:, 0] == 50.0))
    (alert,) = stage.alerts(stage.run(event(0, 800.0)))
    assert alert.reasons == "skipped"


def test_values_of_fields_that_people_may_not_see_stay_out_of_alerts(make_settings: MakeSettings) -> None:
    stage = Stage(make_settings(stream={"shown_fields": ["night"]}), by_amount)
    (alert,) = stage.alerts(stage.run(event(0, 987.0, customer_id="hidden")))
    assert alert.reasons != "skipped"
    assert [(r.feature, r.value, r.usual) for r in alert.reasons] == [("amount", None, None)]
    assert alert.fields == {"night": 0}


@pytest.mark.parametrize("ending", ["id", "key"])
def test_an_id_or_key_too_long_to_stand_in_every_record_is_refused(settings: Settings, ending: str) -> None:
    stage = Stage(settings, by_amount)
    record = event(0, transaction_id="x" * 5000) if ending == "id" else event(0)
    if ending == "key":
        record.name = b"k" * 5000
    (letter,) = stage.letters(stage.run(record))
    assert (letter["stage"], "longer than 4096" in letter["exception.message"]) == ("validate", True)


def test_an_alert_that_would_not_fit_goes_without_the_events_fields(make_settings: MakeSettings) -> None:
    settings = make_settings(stream={"shown_fields": ["customer_id", "night"]}, topics={"max_message_bytes": 1024})
    stage = Stage(settings, by_amount)
    outputs = stage.run(event(0, 950.0, customer_id="n" * 100_000))
    assert stage.alerts(outputs)[0].fields == {}
    assert max(len(output.value or b"") for output in outputs) < 1024 + 64 * 1024


def test_a_dead_letter_that_does_not_fit_keeps_its_headers_a_digest_and_the_first_kibibyte(
    make_settings: MakeSettings,
) -> None:
    stage = Stage(make_settings(topics={"max_message_bytes": 1024}), by_amount)
    (output,) = stage.run(FakeRecord(0, b"?" * 100_000, extra=[("trace", b"t-1")]))
    headers = dict(output.headers or [])
    assert (output.value, headers["trace"], headers["ecluse-original-bytes"]) == (b"?" * 1024, b"t-1", b"100000")
    assert len(cast(bytes, headers["ecluse-original-sha256"])) == 64


@given(st.lists(st.sampled_from(["good", "bad json", "wrong type", "no number", "raises"]), max_size=40))
def test_every_record_gives_exactly_one_prediction_or_one_dead_letter(kinds: list[str]) -> None:
    stage = Stage(_plain_settings(), refusing(lambda matrix: matrix[:, 0] == 13.0))
    made = {
        "good": event,
        "bad json": lambda i: FakeRecord(i, b"{"),
        "wrong type": lambda i: event(i, night="yes"),
        "no number": lambda i: FakeRecord(i, msgspec.msgpack.encode({"amount": float("nan")})),
        "raises": lambda i: event(i, 13.0),
    }
    outputs = stage.run(*[made[kind](i) for i, kind in enumerate(kinds)]) if kinds else []
    offsets = [p.source.offset for p in stage.predictions(outputs)] + [int(e["offset"]) for e in stage.letters(outputs)]
    assert sorted(offsets) == list(range(len(kinds)))
    assert [p.source.offset for p in stage.predictions(outputs)] == [
        i for i, kind in enumerate(kinds) if kind == "good"
    ]


def _plain_settings() -> Settings:
    fields = {"transaction_id": "text", "amount": "number", "terminal_risk_30d": "number", "night": "integer"}
    return Settings.model_validate({"stream": {"name": "plain", "fields": fields, "id_field": "transaction_id"}})


@given(st.lists(st.booleans(), max_size=200))
def test_by_halves_finds_exactly_the_items_that_fail_and_keeps_the_order(bad: list[bool]) -> None:
    def call(part: Any) -> list[int]:
        if any(bad[i] for i in part):
            raise ValueError
        return list(part)

    results, errors = by_halves(call, range(len(bad)))
    assert sorted(errors) == [i for i, is_bad in enumerate(bad) if is_bad]
    assert [i for result in results for i in result] == [i for i, is_bad in enumerate(bad) if not is_bad]


def test_severity_rises_with_the_decision_and_the_score() -> None:
    assert severity(Decision.REVIEW, 0.6, 0.9) is Severity.MEDIUM
    assert severity(Decision.BLOCK, 0.91, 0.9) is Severity.HIGH
    assert severity(Decision.BLOCK, 0.96, 0.9) is Severity.CRITICAL

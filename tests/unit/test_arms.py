"""Who goes past the model: a draw that is even, independent of all else and nested, and rules that only look at the event."""

import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from ecluse.contract.arms import Draw, Eligibility, day_of, secret_id
from ecluse.contract.records import Switch
from ecluse.contract.schema import EventSchema, Field, FieldType
from ecluse.errors import SettingsError

#: All below is drawn from these: what holds once holds always. Printed, so that a failure can be looked into.
SECRET, SEED = b"a secret of this test only, 32 bytes or more", 20_260_301
SHARE = 0.02
ENTITIES, DAYS = 10_000, 100
#: A right draw fails one test in a million, whatever the secret.
LEVEL = 1e-6

secrets = st.binary(min_size=32, max_size=100)
entities = st.binary(max_size=30)
days = st.integers(-(10**6), 10**6)


@pytest.fixture(scope="module")
def drawn() -> NDArray[np.bool_]:
    """Whether each of a million entity-days goes past, shape (entities, days)."""
    print(f"secret {SECRET!r}, seed {SEED}, level {LEVEL}")  # noqa: T201
    draw = Draw(SECRET, "cards")
    return np.array([[draw(b"card-%d" % entity, day) < SHARE for day in range(DAYS)] for entity in range(ENTITIES)])


def test_the_realised_share_of_a_million_entity_days_is_within_the_binomials_bounds(drawn: NDArray[np.bool_]) -> None:
    low, high = stats.binom.interval(1 - LEVEL, drawn.size, SHARE)
    assert low <= drawn.sum() <= high
    assert (high - low) / drawn.size < 0.0015, "the bounds are narrow enough to tell a wrong share"


@pytest.mark.parametrize("what", ["score", "amount", "partition", "day"])
def test_who_is_drawn_is_independent_of(drawn: NDArray[np.bool_], what: str) -> None:
    """Scores rise with the card's number, and amounts with the day and it: a draw that knew either would show."""
    random = np.random.default_rng(SEED)
    scores, amounts = np.sort(random.beta(0.5, 8.0, drawn.size)), np.sort(random.lognormal(3.5, 1.0, drawn.size))
    groups = {
        "score": lambda: np.digitize(scores.reshape(drawn.shape), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        "amount": lambda: np.digitize(amounts.reshape(drawn.T.shape).T, [10, 20, 40, 80, 160, 320]),
        "partition": lambda: np.tile([[zlib.crc32(b"card-%d" % i) % 16] for i in range(ENTITIES)], DAYS),
        "day": lambda: np.tile(np.arange(DAYS), (ENTITIES, 1)),
    }[what]()
    size = np.bincount(groups.ravel())
    past = np.bincount(groups.ravel(), weights=drawn.ravel())
    result = stats.chi2_contingency(np.array([past, size - past]))
    assert result.expected_freq.min() > 5
    assert result.pvalue > LEVEL, f"{what}: p = {result.pvalue}"


def test_an_entity_is_drawn_anew_each_day(drawn: NDArray[np.bool_]) -> None:
    """How often each entity goes past in its days is spread as by chance, neither more evenly nor less."""
    statistic = ((drawn.sum(axis=1) - DAYS * SHARE) ** 2 / (DAYS * SHARE * (1 - SHARE))).sum()
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], ENTITIES)
    assert low < statistic < high


def test_the_numbers_are_even_from_0_to_1_and_another_secret_or_stream_draws_others() -> None:
    draws = [Draw(SECRET, "cards"), Draw(SECRET, "loans"), Draw(SECRET[::-1], "cards")]
    numbers = np.array([[draw(b"card-%d" % i, 20_000) for i in range(20_000)] for draw in draws])
    assert (numbers >= 0).all() and (numbers < 1).all()
    for row in numbers:
        assert stats.kstest(row, "uniform").pvalue > LEVEL
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert stats.pearsonr(numbers[one], numbers[other]).pvalue > LEVEL


def test_the_draw_is_the_one_that_is_written_down() -> None:
    """Another would draw anew for every stream that runs: this is a promise to those who recompute it."""
    assert [Draw(bytes(range(32)), "cards")(entity, 20_000) for entity in (b"", b"card-1")] == DRAWN
    assert secret_id(bytes(range(32))) == SECRET_ID


DRAWN = [0.6283860306533199, 0.6305397132797105]
SECRET_ID = "efc4faaf31b0c134"


@given(secrets, entities, days, entities, days)
def test_no_two_pairs_of_entity_and_day_are_the_same_to_the_draw(
    secret: bytes, entity: bytes, day: int, other: bytes, later: int
) -> None:
    draw = Draw(secret, "cards")
    assert (draw(entity, day) == draw(other, later)) == ((entity, day) == (other, later))


@given(secrets, entities, days)
def test_bytes_that_wander_between_entity_and_day_make_another_pair(secret: bytes, entity: bytes, day: int) -> None:
    draw, as_bytes = Draw(secret, "cards"), day.to_bytes(8, "big", signed=True)
    assert draw(entity, day) != draw(as_bytes + entity, day)
    assert draw(as_bytes, 0) != draw(b"", day) or day == 0


@given(secrets, entities, days, st.floats(0, 1), st.sampled_from([-1, 0, 1]))
def test_what_draws_in_the_worker_draws_the_same(
    secret: bytes, entity: bytes, day: int, share: float, beside: int
) -> None:
    draw = Draw(secret, "cards")
    number = draw(entity, day)
    at_the_edge = number if not beside else math.nextafter(number, beside * math.inf)
    for each in (share, max(0.0, at_the_edge), 0.0, 1.0):
        assert draw.takes(each, day)(entity) == (number < each)


@given(secrets, entities, days)
def test_a_share_of_0_takes_nobody_and_a_share_of_1_everybody(secret: bytes, entity: bytes, day: int) -> None:
    assert 0.0 <= Draw(secret, "cards")(entity, day) < 1.0


@given(secrets, secrets)
def test_the_name_of_a_secret_tells_secrets_apart_and_holds_nothing_of_them(secret: bytes, other: bytes) -> None:
    assert (secret_id(secret) == secret_id(other)) == (secret == other)
    assert len(secret_id(secret)) == 16


@pytest.mark.parametrize(
    ("moment", "day"), [(0.0, 0), (86_399.999, 0), (86_400.0, 1), (-0.001, -1), (1_772_366_400.0, 20_513)]
)
def test_a_day_begins_at_midnight_utc(moment: float, day: int) -> None:
    assert day_of(moment) == day


SCHEMA = EventSchema(
    {
        "amount": Field(FieldType.NUMBER, required=False),
        "count": Field(FieldType.INTEGER, required=False),
        "channel": Field(FieldType.TEXT, required=False),
        "vip": Field(FieldType.BOOLEAN, required=False),
        "at": Field(FieldType.TIME, required=False),
    }
)


def switch(**rules: Any) -> Switch:
    return Switch("cards", 0.5, 0.5, 0.0, "id", **rules)


def eligible(rules: dict[str, Any], *, key: bytes | None = b"card-1", **event: Any) -> bool:
    attributes = {
        SCHEMA.struct.__struct_encode_fields__[i]: name for i, name in enumerate(SCHEMA.struct.__struct_fields__)
    }
    return Eligibility(switch(**rules), SCHEMA)(
        key, SCHEMA.struct(**{attributes[name]: value for name, value in event.items()})
    )


@pytest.mark.parametrize(
    ("amount", "may"), [(99.99, True), (100.0, True), (100.01, False), (None, False), (math.nan, False), (-1.0, True)]
)
def test_an_event_worth_more_or_that_does_not_say_what_it_is_worth_never_goes_past(
    amount: float | None, may: bool
) -> None:
    assert eligible({"amount_field": "amount", "max_amount": 100.0}, amount=amount) is may


@pytest.mark.parametrize(("amount", "may"), [(1e300, True), (math.inf, False), (math.nan, False), (None, False)])
def test_where_only_a_budget_is_set_the_amount_must_be_told_and_finite(amount: float | None, may: bool) -> None:
    assert eligible({"amount_field": "amount", "budget": 5.0}, amount=amount) is may


def test_without_a_key_there_is_no_entity_and_an_empty_key_is_one() -> None:
    assert not eligible({}, key=None)
    assert eligible({}, key=b"")


@pytest.mark.parametrize(
    ("event", "may"),
    [
        ({"channel": "wire"}, False),
        ({"channel": "Wire"}, True),
        ({"channel": None}, True),
        ({"vip": True}, False),
        ({"vip": False, "count": 4}, True),
        ({"count": 3}, False),
        ({"channel": "card", "count": 3}, False),
        ({}, True),
    ],
)
def test_segments_that_are_named_never_go_past(event: dict[str, Any], may: bool) -> None:
    assert eligible({"never": {"channel": ["wire", "branch"], "vip": [True], "count": [3]}}, **event) is may


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"amount_field": "price"}, "the field 'price', which the stream does not declare as a number"),
        ({"amount_field": "channel"}, "the field 'channel', which the stream does not declare as a number"),
        ({"never": {"region": ["x"]}}, "the field 'region', which the stream does not declare"),
        ({"never": {"count": ["3"]}}, "field 'count' is '3', which a field of type integer never is"),
        ({"never": {"count": [True]}}, "field 'count' is True, which a field of type integer never is"),
        ({"never": {"vip": [1]}}, "field 'vip' is 1, which a field of type boolean never is"),
        ({"never": {"at": ["2026-03-01"]}}, "field 'at' is '2026-03-01', which a field of type time never is"),
    ],
)
def test_rules_that_mean_nothing_to_the_stream_are_refused(rules: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Eligibility(switch(**rules), SCHEMA)


@given(
    st.none() | st.binary(max_size=4),
    st.none() | st.floats(),
    st.none() | st.sampled_from(["wire", "card"]),
    st.none() | st.booleans(),
    st.floats(1, 1e6),
)
def test_who_may_go_past_is_a_pure_function_of_key_event_and_switch(
    key: bytes | None, amount: float | None, channel: str | None, vip: bool | None, limit: float
) -> None:
    rules = {"amount_field": "amount", "max_amount": limit, "never": {"channel": ["wire"], "vip": [True]}}
    event = {"amount": amount, "channel": channel, "vip": vip}
    expected = (
        key is not None
        and amount is not None
        and math.isfinite(amount)
        and amount <= limit
        and channel != "wire"
        and vip is not True
    )
    assert [eligible(rules, key=key, **event) for _ in range(2)] == [expected] * 2

"""`ecluse dlq` on a real broker: what went wrong is shown, what the record holds is not."""

import hashlib
from typing import Any

import msgspec
import pytest

from ecluse.errors import DataError, Stage
from ecluse.settings import Settings
from tests.cli import dead_letter, ecluse, json_of, produce

SECRET = "4111-2222 a note about a person"


def put(settings: Settings, *letters: tuple[int, bytes | None, object]) -> None:
    produce(settings, settings.names.dead_letters, letters)  # type: ignore[arg-type]


def test_dead_letters_are_listed_with_why_and_counted_by_stage(stream: Settings) -> None:
    put(
        stream,
        dead_letter(stream, 0, 17),
        dead_letter(stream, 1, 3, stage=Stage.VALIDATE, reason="The event does not fit: field 'amount' is missing."),
        dead_letter(stream, 1, 4, stage=Stage.VALIDATE, reason="The event does not fit: field 'amount' is missing."),
    )
    result = ecluse(stream, "dlq", "list")
    assert result.exit_code == 0, result.output
    for text in ("0-0", "decode", " events-0-17 ", "field 'amount' is missing"):
        assert text in result.stdout
    letters: Any = json_of(ecluse(stream, "dlq", "list", "--json"))["dead_letters"]
    assert {letter["error"] for letter in letters} == {"ecluse.errors.RecordError"}
    assert "3 dead letters: validate 2, decode 1" in result.stdout


def test_a_stage_and_a_limit_choose_and_the_count_stays_whole(stream: Settings) -> None:
    put(stream, *(dead_letter(stream, 0, n, stage=Stage.SCORE if n % 2 else Stage.DECODE) for n in range(30)))
    found = json_of(ecluse(stream, "dlq", "list", "--stage", "score", "--limit", "3", "--json"))
    assert [letter["place"] for letter in found["dead_letters"]] == ["0-25", "0-27", "0-29"]  # type: ignore[attr-defined]
    assert found["by_stage"] == {"decode": 15, "score": 15}
    assert ecluse(stream, "dlq", "list", "--stage", "nonsense").exit_code == 2


def test_an_empty_topic_says_none(stream: Settings) -> None:
    assert ecluse(stream, "dlq", "list").stdout == "0 dead letters\n"


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_show_gives_headers_and_only_the_visible_fields(stream: Settings, encode: object) -> None:
    event = {"amount": 12.5, "customer_id": SECRET, "undeclared": SECRET, "night": SECRET}
    value = encode(event)  # type: ignore[operator]
    put(stream, dead_letter(stream, 2, 8, value, headers=[("ce_id", b"e-8"), ("binary", b"\xff\xfe")]))
    result = ecluse(stream, "dlq", "show", "2-0")
    shown = json_of(ecluse(stream, "dlq", "show", "2-0", "--json"))

    assert result.exit_code == 0, result.output
    assert SECRET not in result.output and "4111" not in str(shown)
    assert shown["fields"] == {
        "amount": 12.5,
        "night": f"(text of {len(SECRET)} characters, where integer was declared)",
    }
    assert shown["source"] == f"{stream.names.events}-2-8"
    assert shown["value_sha256"] == hashlib.sha256(value).hexdigest()
    headers = shown["headers"]
    assert isinstance(headers, dict)
    assert (headers["ce_id"], headers["binary"]) == ("e-8", "(2 bytes)")
    assert headers["__connect.errors.offset"] == "8"
    assert "amount: 12.5" in result.stdout


@pytest.mark.parametrize(
    "value", [SECRET.encode(), b'"' + SECRET.encode() + b'"', b"\xff" + SECRET.encode(), b'{"amount": "4111']
)
def test_a_value_that_is_no_object_shows_its_size_and_digest_only(stream: Settings, value: bytes) -> None:
    put(stream, dead_letter(stream, 0, 1, value))
    result = ecluse(stream, "dlq", "show", "0-0")
    assert "4111" not in result.output
    assert f"value_bytes: {len(value)}" in result.stdout
    assert hashlib.sha256(value).hexdigest() in result.stdout


def test_a_structured_cloud_event_shows_the_visible_fields_of_its_data(stream: Settings) -> None:
    data = {"amount": 3.0, "customer_id": SECRET}
    event = {"id": "1", "source": "s", "specversion": "1.0", "type": "t", "data": data}
    headers = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    put(stream, dead_letter(stream, 0, 1, msgspec.json.encode(event), headers=headers))
    shown = json_of(ecluse(stream, "dlq", "show", "0-0", "--json"))
    assert shown["fields"] == {"amount": 3.0}
    assert SECRET not in str(shown)


def test_a_message_does_not_give_away_what_it_took_from_the_payload(stream: Settings) -> None:
    value = msgspec.json.encode({"amount": 1.0, "customer_id": SECRET, "note": 987654321})
    reason = f"could not convert string to float: '{SECRET}' near 987654321 in field 'amount'"
    put(
        stream,
        dead_letter(stream, 0, 1, value, stage=Stage.FEATURES, reason=reason),
        dead_letter(stream, 0, 2, f"xx {SECRET}".encode(), reason=f"unexpected '{SECRET}' in field 'amount'"),
    )
    listed = ecluse(stream, "dlq", "list").output + ecluse(stream, "dlq", "list", "--json").output
    shown = ecluse(stream, "dlq", "show", "0-0").output + ecluse(stream, "dlq", "show", "0-1").output
    for output in (listed, shown):
        assert "4111" not in output and "987654321" not in output
        assert "field 'amount'" in output


def test_a_number_beyond_64_bits_is_described(stream: Settings) -> None:
    put(stream, dead_letter(stream, 0, 1, value=b'{"amount": 1%s}' % (b"0" * 30)))
    assert ecluse(stream, "dlq", "list").exit_code == 0
    shown = json_of(ecluse(stream, "dlq", "show", "0-0", "--json"))
    assert shown["fields"] == {"amount": "(int, where number was declared)"}  # type: ignore[index]


def test_a_key_between_colons_is_no_picture(stream: Settings) -> None:
    put(stream, dead_letter(stream, 0, 1, headers=[("trace", b"user:100:5")]))
    assert "trace: user:100:5" in ecluse(stream, "dlq", "show", "0-0").stdout


def test_a_record_without_error_headers_and_value_is_listed_too(stream: Settings) -> None:
    put(stream, (0, None, ()))
    result = ecluse(stream, "dlq", "list")
    assert "1 dead letters: no stage 1" in result.stdout
    assert ecluse(stream, "dlq", "show", "0-0").exit_code == 0


def test_a_place_that_is_none_or_holds_nothing_is_refused(stream: Settings) -> None:
    assert ecluse(stream, "dlq", "show", "seventeen").exit_code == 2
    result = ecluse(stream, "dlq", "show", "0-99")
    assert isinstance(result.exception, DataError)
    assert "no dead letter at 0-99" in str(result.exception)

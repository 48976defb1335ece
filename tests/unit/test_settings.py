"""The configuration: where a value comes from, what is refused, and that secrets stay secret."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ecluse.contract.schema import Field, FieldType
from ecluse.errors import SettingsError
from ecluse.settings import Settings, load, shown
from tests.conftest import MakeSettings

STREAM = '[stream]\nname = "cards"\n[stream.fields]\namount = "number"\n'


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("ECLUSE_", "KAFKA_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield


def configured(text: str = "", flags: dict[str, Any] | None = None, stream: str = STREAM) -> Settings:
    Path("ecluse.toml").write_text(stream + text, encoding="utf-8")
    return load(flags=flags)


def refusal(text: str = "", stream: str = STREAM) -> str:
    with pytest.raises(SettingsError) as refused:
        configured(text, stream=stream)
    return str(refused.value)


def test_flags_stand_over_environment_over_kafka_names_over_the_file_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def servers(text: str = "", **flags: str) -> str:
        return configured(text, {"kafka": flags} if flags else None).kafka.bootstrap_servers

    in_file = '[kafka]\nbootstrap_servers = "file:1"\n'
    assert servers() == "127.0.0.1:9092"
    assert servers(in_file) == "file:1"
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka:1")
    assert servers(in_file) == "kafka:1"
    monkeypatch.setenv("ECLUSE_KAFKA__BOOTSTRAP_SERVERS", "ecluse:1")
    assert servers(in_file) == "ecluse:1"
    assert servers(in_file, bootstrap_servers="flag:1") == "flag:1"


def test_a_layer_that_sets_one_key_of_a_section_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECLUSE_TOPICS__REPLICATION", "3")
    monkeypatch.setenv("ECLUSE_STREAM__ENCODING", "json")
    settings = configured("[topics]\npartitions = 8\n", {"topics": {"retention_hours": 5}})
    assert (settings.topics.partitions, settings.topics.replication, settings.topics.retention_hours) == (8, 3, 5)
    assert (settings.stream.name, settings.stream.encoding) == ("cards", "json")


def test_a_named_file_is_read_and_a_missing_one_says_how_to_get_one(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(STREAM, encoding="utf-8")
    assert load(tmp_path / "other.toml").stream.name == "cards"
    with pytest.raises(SettingsError, match=r"no configuration at missing\.toml.*ecluse init FILE"):
        load(Path("missing.toml"))


@pytest.mark.parametrize("text", ["x = ", "\0", "[stream]\n[stream]\n"])
def test_a_file_that_is_no_toml_is_refused_by_name(text: str) -> None:
    assert refusal(stream=text).startswith("ecluse.toml cannot be read: ")


def test_a_file_that_is_not_utf8_is_refused_by_name() -> None:
    Path("ecluse.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(SettingsError, match=r"ecluse\.toml cannot be read"):
        load()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[topic]\npartitions = 1\n", "topic"),
        ("[topics]\npartition = 1\n", "topics.partition"),
        ('[stream.fields.extra]\ntype = "text"\nneeded = true\n', "stream.fields.extra.needed"),
    ],
)
def test_unknown_keys_are_refused_by_name(text: str, key: str) -> None:
    assert refusal(text) == f"ecluse.toml: there is no setting '{key}'."


def test_unknown_names_in_the_environment_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECLUSE_TOPICZ__PARTITIONS", "8")
    assert refusal() == "The environment variable ECLUSE_TOPICZ__PARTITIONS names no section of the configuration."
    monkeypatch.delenv("ECLUSE_TOPICZ__PARTITIONS")
    monkeypatch.setenv("ECLUSE_TOPICS__PARTITION", "8")
    assert refusal() == "ECLUSE_TOPICS__PARTITION: there is no setting 'topics.partition'."


def test_every_problem_is_told_at_once_and_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECLUSE_TOPICS__PARTITIONS", "many")
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "none")
    assert refusal("[topics]\nreplication = 0\n").splitlines() == [
        "KAFKA_SECURITY_PROTOCOL: kafka.security_protocol: it must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'.",
        "ECLUSE_TOPICS__PARTITIONS: topics.partitions: it must be of type integer.",
        "ecluse.toml: topics.replication: it must be greater than or equal to 1.",
    ]


@pytest.mark.parametrize("value", ["5", "{no json"])
def test_a_section_that_is_no_table_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ECLUSE_TOPICS", value)
    assert "topics" in refusal()


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        ("", "the setting 'stream' is missing"),
        ("stream = 3", "stream: it must be a table of settings"),
        ('[stream]\nname = "a"\n', "the setting 'stream.fields' is missing"),
        ('[stream]\nname = "a"\nfields = {}\n', "a stream needs at least one field"),
        (
            '[stream]\nname = "A b"\nfields = { x = "text" }\n',
            "a stream's name has lower-case letters, digits and hyphens",
        ),
        ('[stream]\nname = "a"\nprefix = "a"\nfields = { x = "text" }\n', "ends in a dot"),
        ('[stream]\nname = "a"\nfields = { x = "int" }\n', "fields.x.type: it must be 'number', 'integer', 'text'"),
        ('[stream]\nname = "a"\nfields = { x = 3 }\n', "fields.x: it must be a table of settings"),
        ('[stream]\nname = "a"\nfields = { \'"\' = "text" }\n', "holds a quote, a backslash or a control character"),
        ('[stream]\nname = "a"\nid_field = "y"\nfields = { x = "text" }\n', "id_field names 'y', which is not in"),
        ('[stream]\nname = "a"\nid_field = "x"\nfields = { x = "number" }\n', "must be text or integer"),
        ('[stream]\nname = "a"\ntime_field = "x"\nfields = { x = "text" }\n', "whose type must be time"),
        ('[stream]\nname = "a"\nshown_fields = ["y"]\nfields = { x = "text" }\n', "shown_fields names y"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_with_a_sentence(stream: str, sentence: str) -> None:
    assert sentence in refusal(stream=stream)


def test_budgets_in_the_wrong_order_are_refused() -> None:
    assert "block_budget is part of alert_budget" in refusal("[thresholds]\nalert_budget = 0.1\nblock_budget = 0.2\n")


def test_a_field_is_its_type_or_a_table() -> None:
    settings = configured('[stream.fields.shop]\ntype = "text"\nrequired = false\n')
    assert settings.stream.fields == {
        "amount": Field(FieldType.NUMBER),
        "shop": Field(FieldType.TEXT, required=False),
    }
    assert settings.stream.visible == ("amount",), "free text is not shown unless it is listed"
    assert (
        configured(stream=STREAM.replace("[stream.fields]", "shown_fields = []\n[stream.fields]")).stream.visible == ()
    )


def test_names_follow_from_the_stream() -> None:
    settings = configured()
    assert settings.names.events == "ecluse.cards.events"
    assert (settings.group, settings.model_name) == ("ecluse.cards.workers", "cards")
    own = configured('[model]\nname = "m"\n', stream=STREAM.replace("[stream.f", 'prefix = "prod.pay."\n[stream.f'))
    assert (own.names.events, own.group, own.model_name) == ("prod.pay.events", "prod.pay.workers", "m")


SECRET = "correct-horse"


def test_secrets_are_stars_wherever_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", SECRET)
    settings = configured()
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == SECRET
    for printed in (repr(settings), str(settings), str(shown(settings)), settings.model_dump_json()):
        assert SECRET not in printed
    assert shown(settings)["kafka"]["sasl_password"] == "**********"


def test_a_refusal_does_not_tell_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", SECRET)
    monkeypatch.setenv("KAFKA_SASL_MECHANISM", "wrong")
    assert SECRET not in refusal()
    monkeypatch.setenv("ECLUSE_KAFKA", SECRET)
    assert SECRET not in refusal()
    monkeypatch.delenv("ECLUSE_KAFKA")
    assert SECRET not in refusal(f'[kafka]\nsasl_password = ["{SECRET}"]\n')


def test_a_secret_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n", encoding="utf-8")
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "password"))
    password = configured().kafka.sasl_password
    assert password is not None
    assert password.get_secret_value() == SECRET
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", "/nowhere")
    assert refusal() == "KAFKA_SASL_PASSWORD_FILE names /nowhere, which cannot be read: No such file or directory."
    (tmp_path / "binary").write_bytes(b"\xff" + SECRET.encode())
    monkeypatch.setenv("KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "binary"))
    assert refusal() == f"KAFKA_SASL_PASSWORD_FILE names {tmp_path / 'binary'}, which is not UTF-8 text."


def test_the_label_is_no_field_of_an_event() -> None:
    field = next(iter(configured().stream.fields))
    assert "the truth is not known when the event happens" in refusal(f'\n[model]\nlabel = "{field}"\n')


def test_settings_do_not_change_once_made() -> None:
    settings = configured()
    with pytest.raises(ValidationError):
        settings.topics.partitions = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.stream = settings.stream  # type: ignore[misc]


def test_every_setting_is_documented_where_it_stands() -> None:
    clear_by_name = {"bootstrap_servers", "security_protocol", "sasl_mechanism", "sasl_username", "sasl_password"}
    clear_by_name |= {"ssl_cafile", "ssl_certfile", "ssl_keyfile"}  # Kafka's own
    for name, section in Settings.model_fields.items():
        fields = section.annotation.model_fields  # type: ignore[union-attr]
        undocumented = {key for key, field in fields.items() if not field.description} - clear_by_name
        assert not undocumented, f"{name}: {undocumented}"


def test_requests_are_kept_for_as_long_as_no_trainer_takes_them(make_settings: MakeSettings) -> None:
    settings = make_settings(topics={"retention_hours": 1})
    kept = {spec.name: spec.config.get("retention.ms") for spec in settings.topic_specs}
    assert kept[settings.names.retrain_requests] == "-1"
    assert kept[settings.names.profiles] == "3600000"

"""`ecluse topics` and `ecluse config` through the command line."""

import tomllib

import pytest

from ecluse.errors import SettingsError
from ecluse.settings import Settings, load
from tests.cli import config_file, ecluse, json_of
from tests.conftest import MakeSettings


def test_topics_are_checked_made_and_checked_again(servers: str, make_settings: MakeSettings) -> None:
    settings = make_settings(servers)
    missing = ecluse(settings, "topics", "check")
    assert missing.exit_code == 1
    assert f"The topic {settings.names.events} is missing" in missing.stdout

    made = ecluse(settings, "topics", "create", "--json")
    assert made.exit_code == 0, made.output
    assert json_of(made)["created"] == [spec.name for spec in settings.topic_specs]

    assert ecluse(settings, "topics", "check").exit_code == 0
    assert json_of(ecluse(settings, "topics", "check", "--json")) == {"ok": True, "problems": []}
    assert f"{settings.names.events}: was there, 4 partitions" in ecluse(settings, "topics", "create").stdout


def test_the_shown_configuration_is_a_configuration(make_settings: MakeSettings) -> None:
    settings = make_settings(stream={"fields": {"odd name, [really]": "number", "é": "text"}, "id_field": None,
                                     "time_field": None, "key_field": None})  # fmt: skip
    printed = ecluse(settings, "config", "show").stdout
    assert tomllib.loads(printed) == json_of(ecluse(settings, "config", "show", "--json"))
    assert load(config_file(settings)).stream == settings.stream


def test_secrets_are_shown_as_stars(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_SASL_PASSWORD", "hunter-two")
    for flag in ((), ("--json",)):
        result = ecluse(make_settings(), "config", "show", *flag)
        assert result.exit_code == 0, result.output
        assert "hunter-two" not in result.output
        assert "**********" in result.stdout


def test_environment_and_flags_stand_over_the_file(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECLUSE_WORKER__STUCK_AFTER_SECONDS", "7.5")
    result = ecluse(make_settings(), "config", "show", "--bootstrap-servers", "kafka.example:9")
    assert "stuck_after_seconds = 7.5" in result.stdout
    assert 'bootstrap_servers = "kafka.example:9"' in result.stdout


def test_an_unknown_setting_is_refused_by_name(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings()
    monkeypatch.setenv("ECLUSE_WORKER__NONSENSE", "1")
    result = ecluse(settings, "config", "show")
    assert isinstance(result.exception, SettingsError)
    assert "worker.nonsense" in str(result.exception)


def test_commands_answer_for_a_stream_made_by_the_settings(stream: Settings) -> None:
    assert ecluse(stream, "topics", "check").exit_code == 0

"""The configuration: one frozen value, made once.

Flags stand over environment, environment over ``ecluse.toml``, that over the defaults here. Environment names are
``ECLUSE_<SECTION>__<KEY>`` (``ECLUSE_TOPICS__PARTITIONS=8``), and Kafka's usual names for the section `kafka`
(``KAFKA_BOOTSTRAP_SERVERS``); the name of a secret may end in ``_FILE`` and then names a file that holds it. Unknown keys
are refused by name.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from ecluse.contract.schema import Field, FieldType
from ecluse.contract.topics import Topics, TopicSpec, replays_spec, topic_specs
from ecluse.errors import SettingsError
from ecluse.loop_sections import MonitorSettings, StudySettings, TrainerSettings
from ecluse.sections import (
    AutoscaleSettings,
    BypassSettings,
    KafkaSettings,
    LabelSettings,
    ModelSettings,
    ServeSettings,
    StoreSettings,
    StreamSettings,
    ThresholdSettings,
    TopicSettings,
    WorkerSettings,
)

DEFAULT_FILE = Path("ecluse.toml")
_ENV_PREFIX = "ECLUSE_"


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_ENV_PREFIX,
        env_nested_delimiter="__",
        env_nested_max_split=1,
        use_attribute_docstrings=True,
    )

    stream: StreamSettings
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    model: ModelSettings = ModelSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    worker: WorkerSettings = WorkerSettings()
    autoscale: AutoscaleSettings = AutoscaleSettings()
    serve: ServeSettings = ServeSettings()
    bypass: BypassSettings = BypassSettings()
    labels: LabelSettings = LabelSettings()
    store: StoreSettings = StoreSettings()
    monitor: MonitorSettings = MonitorSettings()
    trainer: TrainerSettings = TrainerSettings()
    study: StudySettings = StudySettings()

    @model_validator(mode="after")
    def _label_apart(self) -> "Settings":
        if self.model.label in self.stream.fields:
            raise ValueError(
                f"model.label names '{self.model.label}', which stream.fields declares too: the truth is not known when the "
                "event happens, so no event carries it"
            )
        return self

    @model_validator(mode="after")
    def _bypass_fits(self) -> "Settings":
        bypass, fields = self.bypass, self.stream.fields
        if unknown := [name for name in bypass.never if name not in fields]:
            raise ValueError(f"bypass.never names '{unknown[0]}', which is not in stream.fields")
        if bypass.amount_field is not None:
            field = fields.get(bypass.amount_field)
            if field is None or field.type not in (FieldType.NUMBER, FieldType.INTEGER):
                raise ValueError(
                    f"bypass.amount_field names '{bypass.amount_field}', which must be a number in stream.fields"
                )
        elif bypass.max_amount is not None or bypass.budget is not None:
            raise ValueError("bypass.max_amount and bypass.budget need bypass.amount_field")
        return self

    @model_validator(mode="after")
    def _private_names_join(self) -> "Settings":
        for what in ("id_field", "key_field"):
            name = getattr(self.stream, what)
            if name is not None and name.lower() in {field.lower() for field in (*self.store.drop, *self.store.mask)}:
                raise ValueError(
                    f"store.drop and store.mask cannot name '{name}', which is stream.{what}: labels find their events by it, "
                    "or `ecluse store forget` an entity. store.hash can"
                )
        return self

    @property
    def stored_fields(self) -> dict[str, Field]:
        """The stream's fields as the training store has them: without those that it drops; hashed or masked ones are text."""
        dropped = {name.lower() for name in self.store.drop}
        covered = {name.lower() for name in (*self.store.hash, *self.store.mask)}
        return {
            name: Field(FieldType.TEXT, required=False) if name.lower() in covered else field
            for name, field in self.stream.fields.items()
            if name.lower() not in dropped
        }

    @property
    def names(self) -> Topics:
        """The names of the stream's topics."""
        return self.stream.topics

    @property
    def group(self) -> str:
        """The workers' consumer group, which is also the Faust app's id."""
        return f"{self.names.prefix}workers"

    @property
    def model_name(self) -> str:
        """The stream's model."""
        return self.model.name or self.stream.name

    @property
    def topic_specs(self) -> tuple[TopicSpec, ...]:
        """How the topics must be made."""
        return topic_specs(
            self.names,
            partitions=self.topics.partitions,
            replication=self.topics.replication,
            retention_ms=self.topics.retention_hours * 3_600_000,
            max_message_bytes=self.topics.max_message_bytes,
            origins=self.labels.origins,
        )

    @property
    def replays_spec(self) -> TopicSpec:
        """How the topic of replays must be made."""
        return replays_spec(self.names, self.topic_specs)


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the configuration.

    Args:
        file: the configuration file; ``ecluse.toml`` in the working folder where None.
        flags: what the command line sets, by section: ``{"kafka": {"bootstrap_servers": "…"}}``.

    Raises:
        SettingsError: the file is missing or cannot be read, a key is unknown, or a value cannot be.
    """
    path = file or DEFAULT_FILE
    from_file = _read_toml(path)
    _refuse_unknown_environment()
    from_kafka_names = {"kafka": _kafka_environment()}

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            lower = (InitSettingsSource(settings_cls, layer) for layer in (from_kafka_names, from_file))
            del dotenv_settings, file_secret_settings  # no .env file, no folder of secrets
            return init_settings, env_settings, *lower

    try:
        return Loaded(**(flags or {}))
    except ValidationError as error:
        raise SettingsError([_sentence(path, problem) for problem in error.errors()]) from error
    except SourceError as error:
        raise SettingsError([f"An environment variable cannot be read: {error}."]) from error


def shown(settings: Settings) -> dict[str, Any]:
    """The merged configuration as plain values; secrets are stars."""
    return settings.model_dump(mode="json", exclude_none=True)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "`ecluse init FILE` writes one from a labelled file; `--config` names another."
        raise SettingsError([f"There is no configuration at {path}. {hint}"]) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError([f"{path} cannot be read: {error}."]) from error


def _refuse_unknown_environment() -> None:
    sections = tuple(f"{_ENV_PREFIX}{name.upper()}" for name in Settings.model_fields)
    unknown = [
        name for name in os.environ if name.startswith(_ENV_PREFIX) and name.split("__", maxsplit=1)[0] not in sections
    ]
    if unknown:
        raise SettingsError(
            [f"The environment variable {name} names no section of the configuration." for name in unknown]
        )


def _kafka_environment() -> dict[str, str]:
    """The section `kafka` by Kafka's usual names, where they are set."""
    found = {}
    for key in KafkaSettings.model_fields:
        name = f"KAFKA_{key.upper()}"
        if value := os.environ.get(name):
            found[key] = value
        elif file := os.environ.get(f"{name}_FILE"):
            try:
                found[key] = Path(file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SettingsError([f"{name}_FILE names {file}, which cannot be read: {error.strerror}."]) from error
            except UnicodeDecodeError:  # it holds the secret: neither its words nor a traceback may be shown
                raise SettingsError([f"{name}_FILE names {file}, which is not UTF-8 text."]) from None
    return found


def _sentence(path: Path, problem: Mapping[str, Any]) -> str:
    """One problem that pydantic found, in words."""
    place = [str(part) for part in problem["loc"]]
    key = ".".join(place)
    names = [_ENV_PREFIX + "__".join(place[:2]).upper(), f"KAFKA_{place[-1].upper()}" if place[:1] == ["kafka"] else ""]
    where = next((name for name in names if name in os.environ), path)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: there is no setting '{key}'."
    if problem["type"] == "missing":
        return f"{path}: the setting '{key}' is missing."
    reason = str(problem["msg"]).removeprefix("Value error, ").rstrip(".").replace("Input should be", "it must be")
    reason = re.sub(r"a (valid )?dictionary( or (an )?instance of \w+)?", "a table of settings", reason)
    reason = re.sub(r"a valid (\w+)(, unable to parse string as an? \w+)?$", r"of type \1", reason)
    return f"{where}: {f'{key}: ' if key else ''}{reason[:1].lower()}{reason[1:]}."

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
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic import Field as setting
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import (
    SettingsError as SourceError,
)

from ecluse.contract.codecs import Encoding
from ecluse.contract.schema import ILLEGAL_IN_NAMES, EventSchema, Field, FieldType
from ecluse.contract.topics import NAME, PREFIX, Topics, TopicSpec, topic_specs
from ecluse.errors import SettingsError

DEFAULT_FILE = Path("ecluse.toml")
_ENV_PREFIX = "ECLUSE_"

#: In ``ecluse.toml`` a field is its type (``amount = "number"``) or a table (``{ type = "number", required = false }``).
DeclaredField = Annotated[Field, BeforeValidator(lambda value: {"type": value} if isinstance(value, str) else value)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StreamSettings(_Section):
    """One use case: one events topic, one input schema, one model name."""

    name: str
    """Lower-case letters, digits and hyphens; part of every topic's name."""
    prefix: str = ""
    """Before every topic's name; ``ecluse.<name>.`` where it is left empty."""
    fields: dict[str, DeclaredField]
    """The input schema: what an event must or may carry. Types: number, integer, text, boolean, time."""
    id_field: str | None = None
    """The field that holds an event's id, where no ce_id header does; else its place (topic-partition-offset) is its id."""
    time_field: str | None = None
    """The field that holds an event's time, where no ce_time header does; else the record's Kafka timestamp is its time."""
    key_field: str | None = None
    """The column that `ecluse publish` takes as record key: the entity (card, customer). Need not be a declared field."""
    shown_fields: tuple[str, ...] | None = None
    """What people may see of an event in alerts, reasons and dead letters; every declared field but text where not set."""
    encoding: Encoding = "msgpack"
    """The format of the records that Écluse writes."""

    @field_validator("name")
    @classmethod
    def _legal_name(cls, name: str) -> str:
        if not NAME.match(name):
            raise ValueError("a stream's name has lower-case letters, digits and hyphens, 64 at most")
        return name

    @model_validator(mode="after")
    def _fits(self) -> "StreamSettings":
        if self.prefix and not PREFIX.match(self.prefix):
            raise ValueError("a prefix has lower-case letters, digits, dots and hyphens, and ends in a dot")
        if not self.fields:
            raise ValueError("a stream needs at least one field")
        if illegal := [name for name in self.fields if ILLEGAL_IN_NAMES.search(name)]:
            raise ValueError(f"the name of the field {illegal[0]!r} holds a quote, a backslash or a control character")
        named = {"id_field": self.id_field, "time_field": self.time_field}
        for setting_name, field in named.items():
            if field is not None and field not in self.fields:
                raise ValueError(f"{setting_name} names '{field}', which is not in stream.fields")
        if self.time_field and self.fields[self.time_field].type is not FieldType.TIME:
            raise ValueError(f"time_field names '{self.time_field}', whose type must be time")
        if self.id_field and self.fields[self.id_field].type not in (FieldType.TEXT, FieldType.INTEGER):
            raise ValueError(f"id_field names '{self.id_field}', whose type must be text or integer")
        unknown = [name for name in self.shown_fields or () if name not in self.fields]
        if unknown:
            raise ValueError(f"shown_fields names {', '.join(unknown)}, not in stream.fields")
        return self

    @property
    def topics(self) -> Topics:
        """The names of the stream's topics."""
        return Topics(self.prefix or f"ecluse.{self.name}.")

    @property
    def visible(self) -> tuple[str, ...]:
        """The fields that people may see."""
        if self.shown_fields is not None:
            return self.shown_fields
        return tuple(name for name, field in self.fields.items() if field.type is not FieldType.TEXT)

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields of type text."""
        return tuple(name for name, field in self.fields.items() if field.type is FieldType.TEXT)

    def schema_of_events(self) -> EventSchema:
        """The decoder of this stream's events."""
        return EventSchema(self.fields)


class KafkaSettings(_Section):
    """How to reach the cluster, by Kafka's usual names."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None


class TopicSettings(_Section):
    """How `ecluse topics create` makes the topics."""

    partitions: int = setting(16, ge=1, le=1024)
    """Of events and all that comes of them; fixed for a stream's life (growth is a new prefix and a drain)."""
    replication: int = setting(1, ge=1, le=9)
    """3 on a cluster; 1 suits the development broker only."""
    retention_hours: int = setting(168, ge=1)
    """How long events and what comes of them are kept."""
    max_message_bytes: int = setting(4 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """The largest event; outputs allow 64 KiB more."""


class ModelSettings(_Section):
    """The stream's model and how it is trained."""

    name: str = ""
    """The model's name; the stream's where it is left empty."""
    store: str = ".ecluse/models"
    """A folder, or the URL of an object store (s3://…, gs://…, az://…)."""
    label: str = "label"
    """The column of the training file that holds the truth: 0 or 1, true or false, or `positive` and anything else."""
    positive: str | None = None
    """The label's value that means 1, where it is neither 0/1 nor true/false."""
    features: tuple[str, ...] | None = None
    """What the model sees: a field, or what is made of one (``amount.log1p``, ``time.hour``, ``time.weekday``); every usable
    declared field where not set."""
    script: str = "default"
    """``FILE.py:FUNCTION``, the data scientists' `train(frame, features) -> estimator`; `default` is gradient boosting."""
    holdout: float = setting(0.2, gt=0.0, lt=0.9)
    """The share of rows, the latest in time, on which metrics and thresholds are measured and which training never sees."""


class ThresholdSettings(_Section):
    """How thresholds are chosen on the held-out slice."""

    policy: Literal["budget", "cost"] = "budget"
    """`budget`: a share of events may alert. `cost`: the least cost of false alarms and missed cases."""
    alert_budget: float = setting(0.005, gt=0, lt=1)
    """Budget: the share of events that may raise an alert (review or block)."""
    block_budget: float = setting(0.001, ge=0, lt=1)
    """Budget: the share of events that may be blocked."""
    cost_missed: float = setting(100.0, gt=0)
    """Cost: of a case let through."""
    cost_review: float = setting(5.0, gt=0)
    """Cost: of a review, whatever it finds."""
    cost_block: float = setting(50.0, gt=0)
    """Cost: of blocking a legitimate event."""

    @model_validator(mode="after")
    def _ordered(self) -> "ThresholdSettings":
        if self.block_budget > self.alert_budget:
            raise ValueError("block_budget is part of alert_budget and cannot be larger")
        return self


class WorkerSettings(_Section):
    """How a worker scores."""

    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    """`exactly_once`: outputs and offsets in one transaction; who reads committed records sees each output once.
    `at_least_once`: quicker by some milliseconds; a crash may double outputs, which their `source` tells."""
    group_protocol: Literal["classic", "consumer"] = "classic"
    """`consumer` is KIP-848 (Kafka 4.0 and later): the broker sets the session (group.consumer.session.timeout.ms)."""
    slot: str = setting("", pattern=r"^[A-Za-z0-9._-]{0,90}$")
    """Names this worker's place among its group; a restart in the same slot ends the open transaction of the one before at
    once. Two live workers must never share one. Left empty, each start makes its own."""
    static_member: bool = False
    """Static membership (group.instance.id, from the slot, which must be set): a restart within the session moves nothing, but
    the partitions of a worker that stops wait for the session."""
    session_timeout_seconds: float = setting(10.0, ge=1, le=300)
    """How long a silent worker keeps its partitions, and its open transaction holds back readers of committed records.
    The broker must allow it (group.min.session.timeout.ms)."""
    commit_interval_seconds: float = setting(0.1, gt=0, le=60)
    """How often offsets are committed under a backlog; with little lag exactly-once commits after 10 ms."""
    metrics_host: str = "127.0.0.1"
    """Where /metrics, /health/live and /health/ready listen; 0.0.0.0 in a container."""
    metrics_port: int = setting(0, ge=0, le=65535)
    """0 takes a free port, which the worker prints."""
    stuck_after_seconds: float = setting(60.0, gt=0)
    """/health/live fails when a chunk has been in the worker's hands for longer."""
    standby_join_seconds: float = setting(10.0, gt=0)
    """A standby joins when more seconds of work wait, or when events have waited for so long and nothing was committed."""
    standby_settle_seconds: float = setting(60.0, gt=0)
    """It leaves when less than a tenth of that has waited for so long (or up to twice as long: two do not leave at once)."""

    @model_validator(mode="after")
    def _static_needs_a_slot(self) -> "WorkerSettings":
        if self.static_member and not self.slot:
            raise ValueError("static_member needs a slot: the member's name must be the same after a restart")
        return self


class AutoscaleSettings(_Section):
    """When `ecluse autoscale` starts and stops workers, in seconds of work: the lag over the measured rate."""

    up_seconds: float = setting(5.0, gt=0)
    """More workers are started when more work waits than this."""
    down_seconds: float = setting(1.0, gt=0)
    """One is stopped when less work than this has waited for `settle_seconds`, and one fewer can take what comes in."""
    settle_seconds: float = setting(30.0, gt=0)
    """How long little work must have waited before a worker is stopped. A model that loads for minutes deserves more."""

    @model_validator(mode="after")
    def _apart(self) -> "AutoscaleSettings":
        if self.down_seconds >= self.up_seconds:
            raise ValueError("down_seconds must be less than up_seconds: between the two nothing changes")
        return self


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

    @model_validator(mode="after")
    def _label_apart(self) -> "Settings":
        if self.model.label in self.stream.fields:
            raise ValueError(
                f"model.label names '{self.model.label}', which stream.fields declares too: the truth is not known when the "
                "event happens, so no event carries it"
            )
        return self

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
        )


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

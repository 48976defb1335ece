"""The sections of the configuration: what can be set, each setting documented where it is declared."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, field_validator, model_validator
from pydantic import Field as setting

from ecluse.contract.codecs import Encoding
from ecluse.contract.schema import ILLEGAL_IN_NAMES, EventSchema, Field, FieldType
from ecluse.contract.topics import HEADROOM_BYTES, NAME, PREFIX, Topics

#: In ``ecluse.toml`` a field is its type (``amount = "number"``) or a table (``{ type = "number", required = false }``).
DeclaredField = Annotated[Field, BeforeValidator(lambda value: {"type": value} if isinstance(value, str) else value)]


class Section(BaseModel):
    """A section of the configuration: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StreamSettings(Section):
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
    clock: Literal["arrival", "event"] = "arrival"
    """When an event counts as known, and to which day it belongs: at its arrival (the record's Kafka timestamp), or at its own
    time, for streams that replay the past."""

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


class KafkaSettings(Section):
    """How to reach the cluster, by Kafka's usual names."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None


class TopicSettings(Section):
    """How `ecluse topics create` makes the topics."""

    partitions: int = setting(16, ge=1, le=1024)
    """Of events and all that comes of them; fixed for a stream's life (growth is a new prefix and a drain)."""
    replication: int = setting(1, ge=1, le=9)
    """3 on a cluster; 1 suits the development broker only."""
    retention_hours: int = setting(168, ge=1)
    """How long events and what comes of them are kept."""
    max_message_bytes: int = setting(4 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """The largest event; outputs allow 64 KiB more."""

    @property
    def largest_output(self) -> int:
        """What a record that comes of an event may take, in bytes."""
        return self.max_message_bytes + HEADROOM_BYTES


class ModelSettings(Section):
    """The stream's model and how it is trained."""

    name: str = ""
    """The model's name; the stream's where it is left empty."""
    store: str = ".ecluse/models"
    """A folder, or the URL of an object store (s3://…, gs://…, az://…)."""
    cache: Path = Path(".ecluse/cache")
    """Where artefacts are kept after their download, each checked before it is used; all processes of a machine share it."""
    trusted_keys: tuple[Path, ...] = ()
    """Public keys (PEM, elliptic curve): only what one of them signed is loaded. Several, so that keys can be changed."""
    signing_key: Path | None = None
    """The private key that signs what is trained or registered; only who publishes models needs it."""
    production: bool = False
    """Refuse development keys: those that `ecluse init` and the demo make."""
    unpickle: tuple[str, ...] = ()
    """Models whose joblib form may be loaded where they have no ONNX. Unpickling runs code: only for who made it is trusted."""
    memory_budget_mb: int | None = setting(None, ge=16)
    """The memory for the model that scores and the one that is to take its place; what the machine has free where not set."""
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


class ThresholdSettings(Section):
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


class WorkerSettings(Section):
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


class ServeSettings(Section):
    """How `ecluse serve` answers over HTTP."""

    host: str = "127.0.0.1"
    """Where it listens; 0.0.0.0 in a container."""
    port: int = setting(8080, ge=0, le=65535)
    """0 takes a free port, which is printed."""
    batch_rows: int = setting(256, ge=1, le=100_000)
    """Requests that wait together share a model call of at most so many rows."""
    batch_wait_ms: float = setting(0.0, ge=0, le=1000)
    """How long a request waits for others to share its model call; with 0 only those share one that wait already."""
    queue_rows: int = setting(10_000, ge=1)
    """Rows that may wait for the model; with more, a request is answered 429."""
    request_rows: int = setting(1000, ge=1)
    """The most rows of one request."""
    request_bytes: int = setting(4 * 1024 * 1024, ge=1024)
    """The largest body of a request."""
    request_seconds: float = setting(5.0, gt=0)
    """How long a request may take: a body that comes too slowly is answered 408, a score that comes too late 503."""
    keys_file: Path | None = None
    """A line `name:SHA-256` for each bearer key that may ask; without the file anyone may who reaches the port. A change
    of the file counts within a second."""
    tls_certfile: Path | None = None
    """The certificate (PEM, with its chain) for HTTPS."""
    tls_keyfile: Path | None = None
    """The certificate's private key (PEM)."""

    @model_validator(mode="after")
    def _fits(self) -> "ServeSettings":
        if self.request_rows > self.queue_rows:
            raise ValueError("queue_rows must hold a request: it is less than request_rows")
        if (self.tls_certfile is None) != (self.tls_keyfile is None):
            raise ValueError("tls_certfile and tls_keyfile belong together: one of them is set alone")
        return self


class AutoscaleSettings(Section):
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


class BypassSettings(Section):
    """Which events may go past the model, so that its mistakes can be seen. `ecluse bypass set` turns it on."""

    secret_file: Path | None = None
    """The operator's secret, 32 bytes or more, that draws which entities go past; the same for all workers. `ecluse init` makes
    one. Without it nothing goes past."""
    max_share: float = setting(0.1, ge=0, le=1)
    """No switch may send a larger share past the model; a worker ignores one that does, and says so."""
    amount_field: str | None = None
    """The field (number or integer) that holds what an event is worth: for `max_amount` and `budget`."""
    max_amount: float | None = setting(None, gt=0)
    """Events worth more never go past, nor do those that do not say what they are worth."""
    never: dict[str, tuple[str | int | bool, ...]] = {}
    """Segments that never go past: values by field, as in ``never = { channel = ["wire"] }``."""
    budget: float | None = setting(None, gt=0)
    """The sum of amounts that may go past in a day (UTC); a controller lowers the share to keep it."""
    control_seconds: float = setting(10.0, gt=0)
    """How often the controller looks: the budget is overspent by one such interval at most."""


#: An origin of labels is part of a topic's name.
Origin = Annotated[str, setting(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class LabelSettings(Section):
    """Where the truth comes from, and how it becomes the outcome of an event."""

    origins: tuple[Origin, ...] = ("chargeback", "analyst")
    """Each has a topic of its own, `labels.<origin>`; where two contradict each other, the first of them is believed."""
    maturity_hours: float = setting(720.0, ge=0, le=20 * 366 * 24)
    """How long after an event its outcome counts as known: what has no label by then will have none."""
    silence: Literal["negative", "unknown"] = "negative"
    """What no label means, once mature, for an event that was let through: that all was well, or nothing."""

    @field_validator("origins")
    @classmethod
    def _each_once(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not origins or len(set(origins)) < len(origins) or "silence" in origins:
            raise ValueError("labels need at least one origin, each named once, and none is called silence")
        return origins


class StoreSettings(Section):
    """The training store that `ecluse store` writes: Delta tables."""

    url: str = ".ecluse/store"
    """A folder, or the URL of an object store (s3://…, gs://…, az://…); its credentials come by its usual environment names."""
    commit_rows: int = setting(50_000, ge=1)
    """A table's rows are committed when so many wait …"""
    commit_seconds: float = setting(10.0, gt=0)
    """… or when the oldest of them has waited for so long."""
    compact_files: int = setting(50, ge=2)
    """A day's files are put together when so many small ones lie in it."""
    retention_hours: float = setting(168.0, ge=0)
    """How long files that no version of a table needs any more are kept for those who still read an older one."""
    drop: tuple[str, ...] = ()
    """Fields of an event, declared or not, that never reach the store, at any depth. Their names do not tell small letters from
    capitals."""
    hash: tuple[str, ...] = ()
    """Fields of which only a keyed hash reaches the store, as text: equal values stay equal."""
    mask: tuple[str, ...] = ()
    """Fields of which only the last four characters reach the store, as text; nothing of values shorter than eight."""
    hash_key_file: Path | None = None
    """The key of those hashes, and of those that `ecluse store forget` keeps, 32 bytes or more. `ecluse init` makes one."""
    metrics_host: str = "127.0.0.1"
    """Where /metrics, /health/live and /health/ready listen; 0.0.0.0 in a container."""
    metrics_port: int = setting(0, ge=0, le=65535)
    """0 takes a free port, which is printed."""

    @model_validator(mode="after")
    def _private(self) -> "StoreSettings":
        named = [name.lower() for name in (*self.drop, *self.hash, *self.mask)]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is named twice among drop, hash and mask")
        if self.hash and self.hash_key_file is None:
            raise ValueError("hash needs hash_key_file")
        return self

"""The contract as documents: JSON Schemas of the records and an AsyncAPI document of the topics.

``python -m ecluse.contract.documents docs/contract`` writes them anew; a test holds the committed ones current.
Sources: JSON Schema 2020-12; AsyncAPI 3.0.0; AsyncAPI Kafka bindings 0.5.0.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from ecluse.contract.codecs import CONTENT_TYPE, CONTENT_TYPES
from ecluse.contract.headers import REPLAY_RUN, cloud_event_headers, dead_letter_headers
from ecluse.contract.loop import DriftReport, Profile, RetrainRequest, Run
from ecluse.contract.records import Alert, BypassSample, Label, Prediction, Release, Route, Source, Switch
from ecluse.contract.schema import EventSchema
from ecluse.contract.topics import Topics, replays_spec, topic_specs
from ecluse.errors import RecordError, Stage

#: Of the contract: the second number grows when a record gains a field.
VERSION = "1.2.0"
RECORDS: dict[str, type[msgspec.Struct]] = {
    "predictions": Prediction,
    "alerts": Alert,
    "bypass": BypassSample,
    "labels": Label,
    "releases": Release,
    "routes": Route,
    "switches": Switch,
    "runs": Run,
    "profiles": Profile,
    "drift-reports": DriftReport,
    "retrain-requests": RetrainRequest,
}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BINDING = "0.5.0"
_BY_STREAM = Topics("ecluse.{stream}.")
_ENTITY = "The event's own key: what it is about (card, customer)."

JsonObject = dict[str, Any]


def record_schema(record: type[msgspec.Struct]) -> JsonObject:
    """The JSON Schema of a record, in either format."""
    return {"$schema": _DIALECT, **_dedented(msgspec.json.schema(record))}


def event_schema(schema: EventSchema) -> JsonObject:
    """The JSON Schema of a stream's events; fields that it does not declare are ignored."""
    return {"$schema": _DIALECT, **msgspec.json.schema(schema.struct)}


def asyncapi() -> JsonObject:
    """The topics as an AsyncAPI 3.0 document; Écluse is the application, so it receives events and sends predictions."""
    _, schemas = msgspec.json.schema_components(RECORDS.values(), ref_template="#/components/schemas/{name}")
    event = {
        "type": "object",
        "description": "A flat object with the fields that [stream.fields] of ecluse.toml declares; others are ignored.",
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Écluse",
            "version": VERSION,
            "description": "Events in, predictions and alerts out. Readers ignore fields that they do not know; a field is "
            "never removed or retyped, only added with a default. Each topic's name starts with `ecluse.<stream>.` unless "
            "the stream sets another prefix.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPES["msgpack"].decode(),
        "channels": _channels(),
        "operations": {
            "receiveEvents": _operation("receive", "events", "Workers score what producers publish."),
            "sendPredictions": _operation("send", "predictions", "Exactly one for each event, or one dead letter."),
            "sendAlerts": _operation("send", "alerts", "What a person should look at, with reasons."),
            "sendDeadLetters": _operation(
                "send", "deadLetters", "What could not be scored, as it was, with the reason."
            ),
            "sendBypass": _operation("send", "bypass", "What went past the model, for the training store."),
            "receiveLabels": _operation("receive", "labels", "What was right, as back offices and people say."),
            "sendModels": _operation("send", "models", "Training announces versions and what scores the stream."),
            "sendReplays": _operation("send", "replays", "`ecluse replay` scores a past range of events again."),
            "sendProfiles": _operation("send", "profiles", "What workers count, for the drift monitor."),
            "sendDrift": _operation("send", "drift", "What the monitor says of a version when a window closes."),
            "receiveRequests": _operation("receive", "retrainRequests", "The trainer answers each with a run."),
            "receiveModels": _operation("receive", "models", "Every worker reads the topic whole, from its start."),
        },
        "components": {"schemas": {"Event": event, **_dedented(schemas)}, "messages": _messages()},
    }


def _policies() -> dict[str, str]:
    specs = topic_specs(
        _BY_STREAM, partitions=1, replication=1, retention_ms=1, max_message_bytes=1, origins=("{origin}",)
    )
    return {spec.name: spec.config["cleanup.policy"] for spec in (*specs, replays_spec(_BY_STREAM, specs))}


_POLICIES = _policies()
_PARAMETERS = {
    "stream": {"description": "The stream's name: one use case."},
    "origin": {"description": "Who says what was right, as [labels] of ecluse.toml lists them."},
}


def _channel(address: str, description: str, *messages: str) -> JsonObject:
    return {
        "address": address,
        "description": description,
        "parameters": {name: said for name, said in _PARAMETERS.items() if f"{{{name}}}" in address},
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "kafka": {
                "topic": address,
                "topicConfiguration": {"cleanup.policy": [_POLICIES[address]]},
                "bindingVersion": _BINDING,
            }
        },
    }


def _channels() -> JsonObject:
    return {
        "events": _channel(_BY_STREAM.events, "What producers publish, with any Kafka client.", "event"),
        "predictions": _channel(
            _BY_STREAM.predictions, "What was decided about each event, on the event's own partition.", "prediction"
        ),
        "alerts": _channel(_BY_STREAM.alerts, "Events that a person should look at.", "alert"),
        "bypass": _channel(_BY_STREAM.bypass, "Events that went past the model.", "bypassSample"),
        "labels": _channel(_BY_STREAM.labels("{origin}"), "What was right, one topic an origin.", "label"),
        "deadLetters": _channel(_BY_STREAM.dead_letters, "Records that could not be scored.", "deadLetter"),
        "models": _channel(
            _BY_STREAM.models,
            "Versions, routes, the bypass switch and the trainer's runs: compacted, one partition.",
            "release",
            "route",
            "switch",
            "run",
        ),
        "profiles": _channel(_BY_STREAM.profiles, "Counts of inputs, scores and decisions: one partition.", "profile"),
        "drift": _channel(
            _BY_STREAM.drift,
            "Reports of the monitor: compacted, one partition. Records under other keys (state/…) are its own.",
            "driftReport",
        ),
        "retrainRequests": _channel(
            _BY_STREAM.retrain_requests, "Requests for a new version: one partition.", "retrainRequest"
        ),
        "replays": _channel(
            _BY_STREAM.replays,
            "What another version would have decided: beside the stream, never acted upon.",
            "replayed",
        ),
    }


def _operation(action: str, channel: str, summary: str) -> JsonObject:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _message(payload: str, key: str, headers: JsonObject) -> JsonObject:
    return {
        "contentType": CONTENT_TYPES["msgpack"].decode(),
        "headers": headers,
        "payload": {"$ref": f"#/components/schemas/{payload}"},
        "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": _BINDING}},
    }


def _messages() -> JsonObject:
    formats = [kind.decode() for kind in CONTENT_TYPES.values()]
    ours = _headers({CONTENT_TYPE: {"enum": formats, "description": "The value's format; set by stream.encoding."}})
    ours["required"] = [CONTENT_TYPE]
    replayed = _headers({**ours["properties"], REPLAY_RUN: {"description": "The run of `ecluse replay` that made it."}})
    replayed["required"] = [CONTENT_TYPE, REPLAY_RUN]
    connect = dead_letter_headers(None, Source("", 0, 0), RecordError(Stage.DECODE, ""), app="", worker="")
    dead = _headers({name: {} for name, _ in connect})
    dead["required"] = [name for name, _ in connect]
    dead["description"] = (
        "The record's own headers, and these of Kafka Connect; incoming headers of these names are dropped."
    )
    dead["properties"]["__connect.errors.stage"]["enum"] = [stage.value for stage in Stage]
    return {
        "event": {
            **_message("Event", f"{_ENTITY} Optional.", _cloud_events(formats)),
            "contentType": CONTENT_TYPES["json"].decode(),
            "summary": "JSON or msgpack, with or without CloudEvents headers; CloudEvents structured mode too.",
        },
        "prediction": _message("Prediction", _ENTITY, ours),
        "alert": _message("Alert", _ENTITY, ours),
        "bypassSample": _message("BypassSample", _ENTITY, ours),
        "label": {
            **_message("Label", "The event's id.", _headers({CONTENT_TYPE: {"enum": formats}})),
            "contentType": CONTENT_TYPES["json"].decode(),
        },
        "deadLetter": {
            "contentType": "application/octet-stream",
            "summary": "The record as it was, key and value byte for byte.",
            "headers": dead,
            "payload": {"description": "Any bytes."},
            "bindings": {"kafka": {"key": {"description": "As it was."}, "bindingVersion": _BINDING}},
        },
        "replayed": _message("Prediction", _ENTITY, replayed),
        "release": _message("Release", "release/<name>/<version>", ours),
        "route": _message("Route", "route/<name>", ours),
        "switch": _message("Switch", "switch/<name>", ours),
        "run": _message("Run", "run/<name>/<request>", ours),
        "profile": _message("Profile", "The model's version.", ours),
        "driftReport": _message("DriftReport", "report/<model>/<version>/<end of the span>", ours),
        "retrainRequest": _message("RetrainRequest", "The model's name.", ours),
    }


def _cloud_events(formats: list[str]) -> JsonObject:
    names = [name for name, _ in cloud_event_headers("", "", "", "", b"")]
    headers = _headers({name: {} for name in names})
    headers["description"] = "CloudEvents 1.0, binary mode. None is required: a plain record is scored too."
    headers["properties"][CONTENT_TYPE]["examples"] = [*formats, "application/cloudevents+json"]
    headers["properties"]["ce_time"]["format"] = "date-time"
    return headers


def _headers(properties: dict[str, JsonObject]) -> JsonObject:
    return {"type": "object", "properties": {name: {"type": "string", **more} for name, more in properties.items()}}


def _dedented(schema: Any) -> Any:
    """The same with the indentation of docstrings taken off."""
    if isinstance(schema, dict):
        return {
            key: inspect.cleandoc(value) if key == "description" else _dedented(value) for key, value in schema.items()
        }
    return [_dedented(item) for item in schema] if isinstance(schema, list) else schema


def documents() -> dict[str, str]:
    """Every document by file name."""
    found = {f"{name}.schema.json": record_schema(record) for name, record in RECORDS.items()}
    found["asyncapi.json"] = asyncapi()
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in found.items()}


def write(folder: Path) -> list[Path]:
    """Write every document into a folder; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")
        written.append(folder / name)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m ecluse.contract.documents FOLDER\n")
        sys.exit(2)
    sys.stdout.writelines(f"{path}\n" for path in write(Path(sys.argv[1])))

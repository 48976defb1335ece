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
from ecluse.contract.headers import cloud_event_headers, dead_letter_headers
from ecluse.contract.records import Alert, Prediction, Release, Route, Source
from ecluse.contract.schema import EventSchema
from ecluse.contract.topics import Topics, topic_specs
from ecluse.errors import RecordError, Stage

#: Of the contract: the second number grows when a record gains a field.
VERSION = "1.0.0"
RECORDS: dict[str, type[msgspec.Struct]] = {
    "predictions": Prediction,
    "alerts": Alert,
    "releases": Release,
    "routes": Route,
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
            "sendModels": _operation("send", "models", "Training announces versions and what scores the stream."),
            "receiveModels": _operation("receive", "models", "Every worker reads the topic whole, from its start."),
        },
        "components": {"schemas": {"Event": event, **_dedented(schemas)}, "messages": _messages()},
    }


def _channels() -> JsonObject:
    specs = topic_specs(_BY_STREAM, partitions=1, replication=1, retention_ms=1, max_message_bytes=1)
    policies = {spec.name: spec.config["cleanup.policy"] for spec in specs}

    def channel(address: str, description: str, *messages: str) -> JsonObject:
        return {
            "address": address,
            "description": description,
            "parameters": {"stream": {"description": "The stream's name: one use case."}},
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            "bindings": {
                "kafka": {
                    "topic": address,
                    "topicConfiguration": {"cleanup.policy": [policies[address]]},
                    "bindingVersion": _BINDING,
                }
            },
        }

    return {
        "events": channel(_BY_STREAM.events, "What producers publish, with any Kafka client.", "event"),
        "predictions": channel(
            _BY_STREAM.predictions, "What was decided about each event, on the event's own partition.", "prediction"
        ),
        "alerts": channel(_BY_STREAM.alerts, "Events that a person should look at.", "alert"),
        "deadLetters": channel(_BY_STREAM.dead_letters, "Records that could not be scored.", "deadLetter"),
        "models": channel(_BY_STREAM.models, "Versions and routes: compacted, one partition.", "release", "route"),
    }


def _operation(action: str, channel: str, summary: str) -> JsonObject:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _messages() -> JsonObject:
    def message(payload: str, key: str, headers: JsonObject) -> JsonObject:
        return {
            "contentType": CONTENT_TYPES["msgpack"].decode(),
            "headers": headers,
            "payload": {"$ref": f"#/components/schemas/{payload}"},
            "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": _BINDING}},
        }

    formats = [kind.decode() for kind in CONTENT_TYPES.values()]
    ours = _headers({CONTENT_TYPE: {"enum": formats, "description": "The value's format; set by stream.encoding."}})
    ours["required"] = [CONTENT_TYPE]
    connect = dead_letter_headers(None, Source("", 0, 0), RecordError(Stage.DECODE, ""), app="", worker="")
    dead = _headers({name: {} for name, _ in connect})
    dead["required"] = [name for name, _ in connect]
    dead["description"] = (
        "The record's own headers, and these of Kafka Connect; incoming headers of these names are dropped."
    )
    dead["properties"]["__connect.errors.stage"]["enum"] = [stage.value for stage in Stage]
    return {
        "event": {
            **message("Event", f"{_ENTITY} Optional.", _cloud_events(formats)),
            "contentType": CONTENT_TYPES["json"].decode(),
            "summary": "JSON or msgpack, with or without CloudEvents headers; CloudEvents structured mode too.",
        },
        "prediction": message("Prediction", _ENTITY, ours),
        "alert": message("Alert", _ENTITY, ours),
        "deadLetter": {
            "contentType": "application/octet-stream",
            "summary": "The record as it was, key and value byte for byte.",
            "headers": dead,
            "payload": {"description": "Any bytes."},
            "bindings": {"kafka": {"key": {"description": "As it was."}, "bindingVersion": _BINDING}},
        },
        "release": message("Release", "release/<name>/<version>", ours),
        "route": message("Route", "route/<name>", ours),
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

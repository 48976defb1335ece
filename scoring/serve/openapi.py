"""The interface as an OpenAPI 3.1 document, made of the structs that decode and encode its messages."""

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from ecluse import __version__
from ecluse.contract.schema import EventSchema, FieldType
from scoring.serve.protocol import (
    JSON_LENGTH,
    Error,
    IndexedModel,
    IndexRequest,
    InferRequest,
    InferResponse,
    Live,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
)

_MESSAGES = (
    ServerMetadata,
    Live,
    ModelMetadata,
    ModelReady,
    InferRequest,
    InferResponse,
    IndexRequest,
    list[IndexedModel],
    Error,
)
JsonObject = dict[str, Any]
_REASONS = {
    400: "The request is not as it must be; the sentence says where.",
    401: "A bearer key is needed.",
    404: "There is no such model, or another version is its champion.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many rows wait for the model, or requests hold too many bytes.",
    503: "No model is warm yet, the score did not come in time, or the server stops.",
}


#: A value of each type, for the example of a request.
_EXAMPLES: dict[FieldType, Any] = {
    FieldType.NUMBER: 12.5,
    FieldType.INTEGER: 3,
    FieldType.TEXT: "text",
    FieldType.BOOLEAN: True,
    FieldType.TIME: "2026-03-01T09:30:00Z",
}


def openapi(model: str, events: EventSchema, *, with_keys: bool) -> JsonObject:
    """The document for the model of a stream with such events; `with_keys`: requests need a bearer key."""
    messages = (*_MESSAGES, events.struct)
    schemas, components = msgspec.json.schema_components(messages, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(messages, schemas, strict=True))
    components["Event"]["description"] = "What an element of the input `events` holds, as JSON text."
    paths = _Paths(by_type, _example(events), with_keys=with_keys)
    found = {
        "/v2": paths.get("server", "What answers", ServerMetadata),
        "/v2/health/live": paths.get("live", "Whether the process lives", Live, open_to_all=True),
        "/v2/health/ready": paths.get("ready", "Whether a champion is warm", Live, 503, open_to_all=True),
        "/v2/repository/index": paths.post(
            "index", "The model, whether it answers or not", IndexRequest, list[IndexedModel]
        ),
        "/metrics": paths.text("metrics", "Metrics for Prometheus"),
        "/openapi.json": paths.get("document", "This document", None),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Écluse",
            "version": __version__,
            "description": "Scores by the champion of a stream, by the Open Inference Protocol v2. Nothing is recorded: what "
            "the system shall learn from is published to the events topic.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "paths": found | _model_paths(paths, model),
        "components": {"schemas": _dedented(components)}
        | ({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if with_keys else {}),
    }


def _example(events: EventSchema) -> JsonObject:
    """A request with an event of the stream."""
    event = msgspec.json.encode({name: _EXAMPLES[field.type] for name, field in events.fields.items()}).decode()
    return {"inputs": [{"name": "events", "shape": [1], "datatype": "BYTES", "data": [event]}]}


def _model_paths(paths: "_Paths", model: str) -> JsonObject:
    """The paths of the model, and the same of one version."""
    name = _parameter("model", {"type": "string", "enum": [model]}, "The stream's model.")
    version = _parameter(
        "version", {"type": "integer", "minimum": 1}, "The champion's version; for any other the answer is 404."
    )
    found: JsonObject = {}
    models = {"/v2/models/{model}": [name], "/v2/models/{model}/versions/{version}": [name, version]}
    for path, parameters in models.items():
        suffix = "OfVersion" if len(parameters) == 2 else ""
        of_one = {
            path: paths.get(f"metadata{suffix}", "What the champion takes and gives", ModelMetadata, 404, 503),
            f"{path}/ready": paths.get(f"modelReady{suffix}", "Whether the model answers", ModelReady, 404, 503),
            f"{path}/infer": paths.post(f"infer{suffix}", "Score rows", InferRequest, InferResponse, 404, 503),
        }
        found |= {key: {"parameters": parameters, **item} for key, item in of_one.items()}
    return found


def _parameter(name: str, schema: JsonObject, description: str) -> JsonObject:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": description}


class _Paths:
    """Builds operations with the statuses that any of them may have."""

    def __init__(self, schemas: dict[Any, JsonObject], example: JsonObject, *, with_keys: bool) -> None:
        self._schemas = schemas
        self._example = example
        self._with_keys = with_keys

    def get(self, name: str, summary: str, answer: Any, *statuses: int, open_to_all: bool = False) -> JsonObject:
        schema = self._schemas[answer] if answer is not None else {"type": "object"}
        content = {"application/json": {"schema": schema}}
        return {"get": self._operation(name, summary, content, statuses, open_to_all=open_to_all)}

    def text(self, name: str, summary: str) -> JsonObject:
        return {"get": self._operation(name, summary, {"text/plain": {"schema": {"type": "string"}}}, ())}

    def post(self, name: str, summary: str, body: Any, answer: Any, *statuses: int) -> JsonObject:
        content: JsonObject = {"application/json": {"schema": self._schemas[answer]}}
        request: JsonObject = {"content": {"application/json": {"schema": self._schemas[body]}}}
        operation = self._operation(name, summary, content, (400, 408, 413, 429, *statuses))
        if body is InferRequest:
            request["required"] = True
            request["content"]["application/json"]["example"] = self._example
            content["application/octet-stream"] = {}  # the JSON, and binary data behind it
            length = {"schema": {"type": "integer"}, "description": "Where binary tensors follow: the JSON's length."}
            operation["responses"]["200"]["headers"] = {JSON_LENGTH: length}
        return {"post": operation | {"requestBody": request}}

    def _operation(
        self, name: str, summary: str, content: JsonObject, statuses: Sequence[int], *, open_to_all: bool = False
    ) -> JsonObject:
        closed = self._with_keys and not open_to_all
        error = {"application/json": {"schema": self._schemas[Error]}}
        refusals = {
            str(status): {"description": _REASONS[status], "content": error} | _headers(status)
            for status in sorted({*statuses, *((401,) if closed else ())})
        }
        return {
            "operationId": name,
            "summary": summary,
            "responses": {"200": {"description": summary, "content": content}, **refusals},
        } | ({"security": [{"key": []}]} if closed else {})


def _headers(status: int) -> JsonObject:
    if status in (429, 503):
        return {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}}
    if status == 401:
        return {"headers": {"WWW-Authenticate": {"schema": {"type": "string"}}}}
    return {}


def _dedented(schema: Any) -> Any:
    """The same with the indentation of docstrings taken off."""
    if isinstance(schema, dict):
        return {
            key: inspect.cleandoc(value) if key == "description" and isinstance(value, str) else _dedented(value)
            for key, value in schema.items()
        }
    return [_dedented(item) for item in schema] if isinstance(schema, list) else schema

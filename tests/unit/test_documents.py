"""The published documents are current, legal, and true of what is written."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecluse.contract import documents, headers
from ecluse.contract.codecs import CONTENT_TYPES
from ecluse.contract.records import Source
from ecluse.contract.schema import EventSchema, Field, FieldType
from ecluse.contract.topics import Topics
from ecluse.errors import RecordError, Stage
from tests.unit import records

COMMITTED = Path(__file__).parents[2] / "docs" / "contract"
SCHEMAS = {name: documents.record_schema(record) for name, record in documents.RECORDS.items()}
STRATEGIES = {
    "predictions": records.predictions,
    "alerts": records.alerts,
    "releases": records.releases,
    "routes": records.routes,
}


def valid(document: Any, schema: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(document))


def test_the_committed_documents_are_those_that_the_records_give_now() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in COMMITTED.iterdir()}
    assert committed == documents.documents(), "run `make contract` and commit what it writes"


def test_one_command_writes_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ecluse.contract.documents"]
    done = subprocess.run([*command, str(tmp_path / "new")], capture_output=True, text=True, check=True)
    assert {Path(line).name for line in done.stdout.split()} == set(documents.documents())
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(documents.documents())
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_record_schema_is_legal_and_describes_its_fields(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    record = SCHEMAS[name]["$defs"][documents.RECORDS[name].__name__]
    assert record["description"]
    assert set(record["required"]) <= set(record["properties"])
    assert set(record["properties"]) == set(documents.RECORDS[name].__struct_fields__)


@given(data=st.data(), name=st.sampled_from(sorted(STRATEGIES)))
def test_every_encoded_record_is_valid_by_its_schema(data: st.DataObject, name: str) -> None:
    record = data.draw(STRATEGIES[name])
    assert valid(json.loads(msgspec.json.encode(record)), SCHEMAS[name])
    assert valid(msgspec.msgpack.decode(msgspec.msgpack.encode(record)), SCHEMAS[name])


@given(data=st.data(), name=st.sampled_from(sorted(STRATEGIES)))
def test_a_schema_allows_what_a_later_version_adds_and_refuses_what_lacks_a_field(
    data: st.DataObject, name: str
) -> None:
    document = json.loads(msgspec.json.encode(data.draw(STRATEGIES[name])))
    assert valid(document | {"added later": 1}, SCHEMAS[name])
    required = SCHEMAS[name]["$defs"][documents.RECORDS[name].__name__]["required"]
    del document[data.draw(st.sampled_from(required))]
    assert not valid(document, SCHEMAS[name])


def test_the_schema_of_events_agrees_with_the_decoder() -> None:
    schema = EventSchema({"amount": Field(FieldType.NUMBER), "shop": Field(FieldType.TEXT, required=False)})
    published = documents.event_schema(schema)
    jsonschema.Draft202012Validator.check_schema(published)
    for event in (
        {"amount": 1},
        {"amount": 1.5, "shop": None, "more": []},
        {},
        {"amount": "1"},
        {"amount": 1, "shop": 2},
    ):
        try:
            schema.decode(msgspec.json.encode(event))
        except RecordError:
            assert not valid(event, published), event
        else:
            assert valid(event, published), event


ASYNCAPI = documents.asyncapi()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def resolve(reference: str) -> Any:
    node: Any = ASYNCAPI
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def test_the_asyncapi_document_has_what_its_specification_requires() -> None:
    # AsyncAPI 3.0.0: root `asyncapi` and `info` (with title and version); an operation needs `action` and `channel`, and
    # its channel must be one of the root's; parameters are those of the address, and only those.
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    assert ASYNCAPI["info"]["title"]
    assert ASYNCAPI["info"]["version"]
    for operation in ASYNCAPI["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"].startswith("#/channels/")
    for channel in ASYNCAPI["channels"].values():
        assert all(f"{{{name}}}" in channel["address"] for name in channel["parameters"])
        assert channel["messages"]
        assert channel["bindings"]["kafka"]["bindingVersion"] == "0.5.0"
    for message in ASYNCAPI["components"]["messages"].values():
        assert message["headers"]["type"] == "object"
        assert "key" in message["bindings"]["kafka"]
        jsonschema.Draft7Validator.check_schema(message["headers"])
    for schema in ASYNCAPI["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def test_every_reference_leads_somewhere_and_every_message_is_on_a_channel() -> None:
    found = set(references(ASYNCAPI))
    assert found
    assert all(isinstance(resolve(reference), dict) for reference in found)
    components = {f"#/components/{kind}/{name}" for kind, some in ASYNCAPI["components"].items() for name in some}
    assert components <= found, "a component that nothing refers to"


def test_every_topic_is_a_channel() -> None:
    topics = Topics("ecluse.{stream}.")
    addresses = {channel["address"] for channel in ASYNCAPI["channels"].values()}
    assert addresses == {
        topics.events,
        topics.predictions,
        topics.alerts,
        topics.bypass,
        topics.labels("{origin}"),
        topics.profiles,
        topics.drift,
        topics.retrain_requests,
        topics.dead_letters,
        topics.models,
        topics.replays,
    }


def test_headers_that_are_written_are_valid_by_the_document() -> None:
    def shown(written: list[tuple[str, bytes | None]]) -> dict[str, str]:
        return {name: (content or b"").decode() for name, content in written}

    messages = ASYNCAPI["components"]["messages"]
    error = RecordError(Stage.VALIDATE, "because")
    dead = shown(headers.dead_letter_headers([("mine", b"1")], Source("t", 1, 2), error, app="a", worker="w"))
    assert valid(dead, messages["deadLetter"]["headers"])
    assert not valid({"mine": "1"}, messages["deadLetter"]["headers"])
    event = shown(headers.cloud_event_headers("1", "/s", "t", "2024-01-01T00:00:00Z", CONTENT_TYPES["json"]))
    assert valid(event, messages["event"]["headers"])
    for content_type in CONTENT_TYPES.values():
        assert valid({"content-type": content_type.decode()}, messages["prediction"]["headers"])

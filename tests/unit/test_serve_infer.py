"""What a request to `ecluse serve` may hold, and what it is answered."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecluse.errors import RequestRefused
from scoring.serve.protocol import numbers, read_request, tensors
from tests.conftest import MakeSettings
from tests.serving import FakeLive, Served, by_amount, features, make_champion, raw_events, served, tensor


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from ecluse.settings import Settings
    from tests.conftest import FIELDS

    settings = Settings(
        stream={"name": "payments", "fields": FIELDS | {"limit": {"type": "number", "required": False}}},
        serve={"port": 0, "request_rows": 50, "request_bytes": 64 * 1024, "request_seconds": 10},
    )
    with served(settings) as running:
        yield running


EVENT = {"amount": 600.0, "terminal_risk_30d": 0.0, "night": 1, "time": "2026-03-01T09:30:00Z"}


def outputs(answer: Any) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer.json["outputs"]}


def test_rows_of_features_get_scores_predictions_and_decisions_of_the_champion(server: Served) -> None:
    answer = server.infer(features([100.0, 0.0, 9.0], [600.0, 0.0, 9.0], [950.0, 0.0, 9.0]), id="a-1")
    assert answer.status == 200
    assert answer.json["id"] == "a-1"
    assert (answer.json["model_name"], answer.json["model_version"]) == ("payments", "3")
    assert answer.json["parameters"] == {"version": 3, "route_revision": 7}
    assert [(o["name"], o["datatype"], o["shape"]) for o in answer.json["outputs"]] == [
        ("predict", "INT64", [3]),
        ("predict_proba", "FP64", [3, 2]),
        ("decision", "BYTES", [3]),
    ]
    assert outputs(answer) == {
        "predict": [0, 1, 1],
        "predict_proba": [0.9, 0.1, 0.4, 0.6, 1 - 0.95, 0.95],
        "decision": ["allow", "review", "block"],
    }


def test_events_features_and_names_give_the_same_scores(server: Served) -> None:
    asked = [
        [raw_events(EVENT)],
        [features([600.0, 0.0, 9.0])],
        [tensor("features", [1, 3], "FP64", [600.0, 0.0, 9.0])],
        [tensor("features", [1, 3], "INT32", [600, 0, 9])],
        [
            tensor("hour", [1], "UINT8", [9]),
            tensor("risk", [1, 1], "FP32", [[0]]),
            tensor("amount", [1], "FP32", [600]),
        ],
        [tensor("events", [1, 1], "BYTES", [[json.dumps(EVENT)]])],
    ]
    answers = [server.infer(*inputs) for inputs in asked]
    assert [answer.status for answer in answers] == [200] * len(asked), [answer.json for answer in answers]
    assert all(outputs(answer) == outputs(answers[0]) for answer in answers)


def test_a_missing_feature_is_null_and_takes_what_events_without_it_take(server: Served) -> None:
    answer = server.infer(features([100.0, None, None]))
    assert outputs(answer)["predict_proba"][1] == pytest.approx(0.10025)


def test_only_the_outputs_that_are_asked_for_come_back_in_that_order(server: Served) -> None:
    asked = [{"name": "decision"}, {"name": "predict_proba"}]
    answer = server.infer(features([600.0, 0.0, 9.0]), outputs=asked)
    assert list(outputs(answer)) == ["decision", "predict_proba"]
    assert "id" not in answer.json


def test_binary_tensors_follow_the_json_both_ways(server: Served) -> None:
    rows = np.array([[600.0, 0.0, 9.0], [100.0, np.nan, 9.0]], dtype="<f4").tobytes()
    head = {
        "inputs": [
            {"name": "features", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(rows)}}
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    path = f"/v2/models/{server.settings.model_name}/infer"
    answer = server.ask("POST", path, text + rows, **{"Inference-Header-Content-Length": str(len(text))})
    assert answer.status == 200, answer.body
    split = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(answer.body[:split])["outputs"]]
    predict, probabilities, decision = sizes
    rest = answer.body[split:]
    assert len(rest) == sum(sizes)
    assert struct.unpack("<2q", rest[:predict]) == (1, 0)
    assert np.frombuffer(rest[predict : predict + probabilities])[[1, 3]] == pytest.approx([0.6, 0.10025])
    assert rest[-decision:] == b"\x06\0\0\0review\x05\0\0\0allow"


ROW = [1.0, 0.0, 9.0]
REFUSED = {
    "no input": ([], "length >= 1"),
    "unknown output": (([features(ROW)], {"outputs": [{"name": "transform"}]}), "no output 'transform'"),
    "an output twice": (([features(ROW)], {"outputs": [{"name": "decision"}] * 2}), "asked for twice"),
    "unknown input": ([tensor("colour", [1], "FP32", [1])], "'amount'"),
    "a feature too many": (
        [tensor(name, [1], "FP32", [1]) for name in ("amount", "risk", "hour", "colour")],
        "no feature 'colour'",
    ),
    "a feature too few": ([tensor("amount", [1], "FP32", [1])], "no input 'risk'"),
    "unequal rows": (
        [tensor("amount", [2], "FP32", [1, 2]), tensor("risk", [1], "FP32", [1]), tensor("hour", [1], "FP32", [1])],
        "different numbers of rows",
    ),
    "two ways at once": ([features(ROW), raw_events(EVENT)], "no other"),
    "twice the same": ([tensor("hour", [1], "FP32", [1])] * 2, "same name"),
    "too narrow": ([tensor("features", [1, 2], "FP32", [1, 2])], "takes 3"),
    "not in rows": ([tensor("features", [3], "FP32", ROW)], "[rows, features]"),
    "cube": ([tensor("features", [1, 3, 1], "FP32", ROW)], "3 dimensions"),
    "shape of more": ([tensor("features", [2, 3], "FP32", ROW)], "3 elements"),
    "ragged": ([tensor("features", [2, 3], "FP32", [ROW, [1.0], [1.0, 2.0]])], "shape [2, 3]"),
    "negative shape": ([tensor("features", [-1, 3], "FP32", ROW)], ">= 0"),
    "no rows": ([tensor("features", [0, 3], "FP32", [])], "0 rows"),
    "too many rows": ([tensor("features", [51, 3], "FP32", ROW * 51)], "51 rows: a request has 1 to 50"),
    "a huge shape": ([tensor("features", [50, 1000], "FP32", ROW)], "3 elements"),
    "too many features": ([tensor("features", [50, 10**18], "FP32", ROW)], "features: 1,000 are the most"),
    "too many inputs": ([tensor(f"f{i}", [1], "FP32", [1]) for i in range(1001)], "1,001 inputs: 1,000 are the most"),
    "a shape beyond words": ([tensor("features", [50, 10**4298], "FP32", ROW)], "shape[1]"),
    "an empty row": ([tensor("features", [1, 3], "FP32", [[], ROW])], "length >= 1"),
    "no such type": ([tensor("features", [1, 3], "FP8", ROW)], "FP8"),
    "features as text": ([tensor("features", [1, 3], "BYTES", ["1", "2", "3"])], "must hold numbers"),
    "events as numbers": ([tensor("events", [1], "FP32", [1])], "must hold BYTES"),
    "text as number": ([tensor("features", [1, 3], "FP32", ["1", 2, 3])], "not FP32"),
    "fraction as integer": ([tensor("features", [1, 3], "INT8", [1.5, 2, 3])], "not INT8"),
    "beyond the type": ([tensor("features", [1, 3], "INT8", [300, 2, 3])], "INT8 cannot"),
    "infinite": ([tensor("features", [1, 3], "FP32", [1e999, 2, 3])], "malformed"),
    "no data": ([{"name": "features", "shape": [1, 3], "datatype": "FP32"}], "no data"),
    "an event that is none": ([raw_events(EVENT, {**EVENT, "amount": "much"})], "Row 1: "),
    "an event in two": ([tensor("events", [1], "BYTES", ['{"amount": 1'])], "Row 0: "),
    "an infinite field": ([tensor("events", [1], "BYTES", ['{"amount":1,"terminal_risk_30d":1,"night":1e400}'])], "Row 0"),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_scored_is_refused_with_a_sentence(server: Served, why: str) -> None:
    asked, expected = REFUSED[why]
    inputs, more = asked if isinstance(asked, tuple) else (asked, {})
    answer = server.infer(*inputs, **more)
    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert expected in answer.json["error"]


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [
        ("x", 12, "Inference-Header-Content-Length"),
        ("-1", 12, "Inference-Header-Content-Length"),
        ("9" * 30, 12, "Inference-Header-Content-Length"),
        ("0" * 12 + "9" * 5000, 12, "Inference-Header-Content-Length"),
        (None, 13, "binary_data_size"),
        (None, 11, "longer than its tensors"),
        (None, 8, "longer than its tensors"),
        (None, True, "binary_data_size"),
        (None, "12", "binary_data_size"),
    ],
)
def test_binary_data_that_do_not_add_up_are_refused(
    server: Served, length: str | None, size: object, expected: str
) -> None:
    head = {
        "inputs": [{"name": "features", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": size}}]
    }
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(text))}
    answer = server.ask("POST", f"/v2/models/{server.settings.model_name}/infer", text + bytes(12), **headers)
    assert answer.status == 400
    assert expected in answer.json["error"]


def test_an_infinite_number_in_binary_data_is_refused_by_its_row() -> None:
    rows = np.array([[1, 2, 3], [1, np.inf, 3]], dtype="<f4")
    head = {
        "inputs": [{"name": "features", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}]
    }
    text = json.dumps(head).encode()
    from ecluse.contract.schema import EventSchema, Field, FieldType
    from scoring.serve.rows import RowReader

    read = RowReader(EventSchema({"amount": Field(FieldType.NUMBER)}), 50)
    with pytest.raises(RequestRefused, match="Row 1: input 'features' holds an infinite number"):
        read(*read_request(text + rows.tobytes(), str(len(text))))


@given(
    st.lists(st.lists(st.floats(width=32, allow_infinity=False), min_size=4, max_size=4), min_size=1, max_size=5),
    st.booleans(),
)
def test_json_flat_or_nested_and_binary_carry_the_same_numbers(rows: list[list[float]], nested: bool) -> None:
    shape = [len(rows), 4]
    nulls = [[None if np.isnan(value) else value for value in row] for row in rows]
    data = nulls if nested else [value for row in nulls for value in row]
    as_json = json.dumps({"inputs": [tensor("features", shape, "FP32", data)]}).encode()
    raw = np.array(rows, dtype="<f4").tobytes()
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}]}
    ).encode()
    one, other = (
        next(numbers(*pair) for pair in tensors(*read_request(body, length)))
        for body, length in ((as_json, None), (head + raw, str(len(head))))
    )
    np.testing.assert_array_equal(one, other)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner))


def almost_requests() -> st.SearchStrategy[Any]:
    """Requests of which each part is right or wrong by chance."""
    one = st.fixed_dictionaries(
        {
            "name": st.sampled_from(["features", "events", "amount", "risk", "hour", ""]) | json_values(),
            "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=3) | json_values(),
            "datatype": st.sampled_from(["FP32", "INT8", "UINT64", "BOOL", "BYTES", "FP16"]) | json_values(),
            "data": st.lists(st.floats() | st.integers() | st.booleans() | st.text(), max_size=6) | json_values(),
        },
        optional={"parameters": st.fixed_dictionaries({"binary_data_size": st.integers() | json_values()})},
    )
    return st.fixed_dictionaries(
        {"inputs": st.lists(one, max_size=3) | json_values()},
        optional={
            "id": st.text() | json_values(),
            "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["predict", "x"])})) | json_values(),
            "parameters": json_values(),
        },
    )


@given(st.binary(max_size=200) | (almost_requests() | json_values()).map(lambda value: json.dumps(value).encode()))
@hypothesis_settings(max_examples=150, deadline=None)
def test_no_body_breaks_the_server(server: Served, body: bytes) -> None:
    answer = server.ask("POST", f"/v2/models/{server.settings.model_name}/infer", body)
    assert answer.status in (200, 400, 413), (body, answer.body)
    assert answer.status == 200 or list(answer.json) == ["error"]


def test_a_row_on_which_the_model_fails_is_named_and_other_requests_do_not_hear_of_it(
    make_settings: MakeSettings,
) -> None:
    def fails_on_13(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        if (matrix[:, 0] == 13).any():
            raise RuntimeError("secret 4711")
        return by_amount(matrix)

    settings = make_settings(serve={"port": 0, "batch_wait_ms": 200})
    with served(settings, FakeLive(make_champion(settings, fails_on_13))) as server:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            bad = pool.submit(server.infer, features([1.0, 0.0, 0.0], [13.0, 0.0, 0.0]))
            good = pool.submit(server.infer, features([500.0, 0.0, 0.0]))
            assert (bad.result().status, good.result().status) == (400, 200)
            assert bad.result().json == {"error": "Row 1: the model fails on it (RuntimeError)."}
            assert outputs(good.result())["decision"] == ["review"]


def test_a_model_that_fails_on_everything_is_the_servers_fault(make_settings: MakeSettings) -> None:
    def broken(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        raise RuntimeError("broken")

    settings = make_settings(serve={"port": 0})
    with served(settings, FakeLive(make_champion(settings, broken))) as server:
        answer = server.infer(features([1.0, 0.0, 0.0]))
        assert answer.status == 503
        assert "fails on its own usual values" in answer.json["error"]

"""The messages of the Open Inference Protocol v2, and tensors as JSON and as binary data.

Sources: the Open Inference Protocol's REST specification; Triton's binary tensor data extension, which is how
``tritonclient`` speaks by default: the tensors' bytes follow the JSON, whose length a header names.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from ecluse.errors import RequestRefused

#: The length of the JSON before binary tensors, in requests and answers.
JSON_LENGTH = "Inference-Header-Content-Length"

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
Parameters = dict[str, str | int | float | bool]
Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Data = Annotated[
    msgspec.Raw,
    Meta(
        description="The elements, row by row, flat or nested. A number may be null: missing. An element of BYTES is text.",
        extra_json_schema={"type": "array"},
    ),
]


class RequestInput(msgspec.Struct):
    """One input tensor. Without `data` its bytes follow the JSON: `binary_data_size` in `parameters` says how many."""

    name: str
    shape: list[Size]
    datatype: Datatype
    parameters: Parameters = {}
    data: Data | UnsetType = UNSET


class RequestOutput(msgspec.Struct):
    """An output that is asked for. `binary_data` in `parameters` asks for its bytes behind the JSON."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct):
    """Rows to score. `binary_data_output` in `parameters` asks for the bytes of all outputs behind the JSON."""

    inputs: Annotated[list[RequestInput], Meta(min_length=1)]
    id: str | UnsetType = UNSET
    parameters: Parameters = {}
    outputs: list[RequestOutput] = []


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """One output tensor; `data` is flat, row by row."""

    name: str
    shape: list[int]
    datatype: Datatype
    data: Sequence[float | int | str] | UnsetType = UNSET
    parameters: Parameters = {}


class InferResponse(msgspec.Struct):
    """The answer. Its `parameters` name the version again, as a number, and the revision of the route that chose it."""

    model_name: str
    model_version: str
    parameters: Parameters
    outputs: list[OutputTensor]
    id: str | UnsetType = UNSET


class ServerMetadata(msgspec.Struct):
    """What answers."""

    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct):
    """Health; the protocol calls it `live` for liveness and for readiness."""

    live: bool


class TensorMetadata(msgspec.Struct):
    """A tensor's name, type and shape; -1 is any number of rows. Of an input, `parameters` say which way of asking it is of."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: Parameters = {}


class ModelMetadata(msgspec.Struct):
    """The champion. One way of asking is sent: `features`, or `events`, or every feature by its name."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: Parameters


class ModelReady(msgspec.Struct):
    """Whether the model answers."""

    name: str
    ready: bool


class IndexRequest(msgspec.Struct):
    """Asks for the models; with `ready` only for those that answer."""

    ready: bool = False


class IndexedModel(msgspec.Struct):
    """A model of the repository."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class Error(msgspec.Struct):
    """Why a request is not answered, in a sentence."""

    error: str


#: Little-endian, as the extension wants it.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}


def _decoders(element: Any) -> tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]:
    """Of flat data and of rows."""
    row = Annotated[list[element], Meta(min_length=1)]
    return msgspec.json.Decoder(list[element]), msgspec.json.Decoder(list[row])


_FLOATS, _INTEGERS, _BOOLEANS, _TEXTS = map(_decoders, (float | None, int, bool, str))
_requests = msgspec.json.Decoder(InferRequest)
_index_requests = msgspec.json.Decoder(IndexRequest)
encode = msgspec.json.Encoder().encode


def read_index_request(body: bytes) -> IndexRequest:
    """The request of a repository index; an empty body asks for everything.

    Raises:
        RequestRefused: it is none.
    """
    try:
        return _index_requests.decode(body) if body else IndexRequest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"The body is no request of an index: {error}.") from error


def read_request(body: bytes, json_length: str | None) -> tuple[InferRequest, memoryview]:
    """The JSON of an inference request and what follows it; `json_length` is the header's value, where there is one.

    Raises:
        RequestRefused: it is no inference request.
    """
    view = memoryview(body)
    if json_length is None:
        split = len(body)
    elif not (
        json_length.isascii() and json_length.isdigit() and len(json_length) < 19 and int(json_length) <= len(body)
    ):
        raise RequestRefused(f"The header {JSON_LENGTH} must be a length within the body.")
    else:
        split = int(json_length)
    try:
        return _requests.decode(view[:split]), view[split:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"The body is no inference request: {error}.") from error


def tensors(request: InferRequest, binary: memoryview) -> Iterator[tuple[RequestInput, memoryview | None]]:
    """Each input with its part of the binary data; None where its data are in the JSON.

    Raises:
        RequestRefused: the parts do not add up to the binary data, or an input has no data.
    """
    at = 0
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            yield tensor, None
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - at:
            raise RequestRefused(f"Input '{tensor.name}': binary_data_size must be a length within the body.")
        yield tensor, binary[at : at + size]
        at += size
    if at != len(binary):
        raise RequestRefused("The body is longer than its tensors.")


def numbers(tensor: RequestInput, binary: memoryview | None) -> NDArray[np.float64]:
    """A tensor's values, in its shape; missing ones are NaN.

    Raises:
        RequestRefused: they are none, or of another number than the shape says.
    """
    dtype, count = _DTYPES.get(tensor.datatype), _count(tensor)
    if dtype is None:
        raise RequestRefused(f"Input '{tensor.name}' must hold numbers, not {tensor.datatype}.")
    if binary is not None:
        _require_count(tensor, len(binary), count * dtype.itemsize, "bytes")
        return np.frombuffer(binary, dtype).astype(np.float64).reshape(tensor.shape)
    decoders = _FLOATS if dtype.kind == "f" else _BOOLEANS if dtype.kind == "b" else _INTEGERS
    values = _elements(tensor, decoders)
    _require_count(tensor, len(values), count, "elements")
    try:
        exact = np.array(values, dtype=np.float64 if dtype.kind == "f" else dtype)
    except OverflowError as error:
        raise RequestRefused(f"Input '{tensor.name}' holds a number that {tensor.datatype} cannot.") from error
    return exact.reshape(tensor.shape).astype(np.float64, copy=False)


def texts(tensor: RequestInput, binary: memoryview | None) -> list[bytes]:
    """The elements of a tensor of BYTES. In binary data each follows its length, 4 bytes, little-endian.

    Raises:
        RequestRefused: they are none, or of another number than the shape says.
    """
    count = _count(tensor)
    if tensor.datatype != "BYTES":
        raise RequestRefused(f"Input '{tensor.name}' must hold BYTES, not {tensor.datatype}.")
    found = [text.encode() for text in _elements(tensor, _TEXTS)] if binary is None else _split(tensor, binary)
    _require_count(tensor, len(found), count, "elements")
    return found


def joined(elements: Sequence[str]) -> bytes:
    """Elements of BYTES as binary data."""
    return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, elements))


def _split(tensor: RequestInput, binary: memoryview) -> list[bytes]:
    found: list[bytes] = []
    at, count = 0, _count(tensor)
    while at < len(binary):
        if len(found) == count:
            raise RequestRefused(f"Input '{tensor.name}' has more elements than the {count} that its shape makes.")
        end = at + 4 + int.from_bytes(binary[at : at + 4], "little")
        if end > len(binary):
            raise RequestRefused(f"Input '{tensor.name}' ends within an element.")
        found.append(bytes(binary[at + 4 : end]))
        at = end
    return found


def _elements(tensor: RequestInput, decoders: tuple[msgspec.json.Decoder[Any], ...]) -> list[Any]:
    """The flat elements of data in JSON."""
    if tensor.data is UNSET:
        raise RequestRefused(f"Input '{tensor.name}' has no data.")
    flat, nested = decoders
    try:
        try:
            return flat.decode(tensor.data)  # type: ignore[no-any-return]
        except msgspec.ValidationError:
            if not bytes(memoryview(tensor.data)[:64]).translate(None, b" \t\r\n").startswith(b"[["):
                raise
            rows = nested.decode(tensor.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"The data of input '{tensor.name}' are not {tensor.datatype}: {error}.") from error
    if any(len(row) != tensor.shape[-1] for row in rows):
        raise RequestRefused(f"The data of input '{tensor.name}' are not of the shape {tensor.shape}.")
    return [element for row in rows for element in row]


def _count(tensor: RequestInput) -> int:
    """The elements that the shape says: rows, or rows of several."""
    if not 1 <= len(tensor.shape) <= 2:
        raise RequestRefused(
            f"Input '{tensor.name}' has {len(tensor.shape)} dimensions, where one or two are expected."
        )
    return tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 2 else 1)


def _require_count(tensor: RequestInput, found: int, count: int, what: str) -> None:
    if found != count:
        raise RequestRefused(f"Input '{tensor.name}' has {found} {what}, and its shape {tensor.shape} makes {count}.")

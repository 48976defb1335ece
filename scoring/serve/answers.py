"""What a request is answered: outputs as JSON, or as binary data behind it."""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ecluse import __version__
from ecluse.errors import RequestRefused
from ecluse.model.manifest import ONNX
from scoring.champion import Champion
from scoring.serve.batcher import Scored
from scoring.serve.protocol import (
    Datatype,
    InferRequest,
    InferResponse,
    ModelMetadata,
    OutputTensor,
    Parameters,
    RequestOutput,
    ServerMetadata,
    TensorMetadata,
    encode,
    joined,
)
from scoring.serve.rows import EVENTS, FEATURES

SERVER = ServerMetadata("ecluse", __version__, ["binary_tensor_data"])


class _Output(NamedTuple):
    """An output's type, the sizes after the rows, its values for scored rows, and the same as bytes."""

    datatype: Datatype
    more: list[int]
    values: Callable[[Scored], Sequence[float | int | str]]
    binary: Callable[[Scored], bytes]


def _probabilities(scored: Scored) -> list[float]:
    return [probability for score in scored.scores for probability in (1.0 - score, score)]


def _predictions(scored: Scored) -> list[int]:
    return [int(level > 0) for level in scored.levels]


def _decisions(scored: Scored) -> list[str]:
    verdicts = scored.champion.verdicts
    return [verdicts[level].decision.value for level in scored.levels]


OUTPUTS: dict[str, _Output] = {
    "predict": _Output(
        "INT64", [], _predictions, lambda scored: struct.pack(f"<{len(scored.levels)}q", *_predictions(scored))
    ),
    "predict_proba": _Output(
        "FP64",
        [2],
        _probabilities,
        lambda scored: struct.pack(f"<{2 * len(scored.scores)}d", *_probabilities(scored)),
    ),
    "decision": _Output("BYTES", [], _decisions, lambda scored: joined(_decisions(scored))),
}


def require_outputs(request: InferRequest) -> None:
    """Refuse outputs that there are not, and more than there are: each would be made again.

    Raises:
        RequestRefused: one is unknown, or asked for twice.
    """
    if len({output.name for output in request.outputs}) < len(request.outputs):
        raise RequestRefused("An output is asked for twice.")
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise RequestRefused(f"There is no output '{output.name}', only {', '.join(OUTPUTS)}.")


def answer(request: InferRequest, scored: Scored) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of the JSON that it begins with where binary data follow."""
    champion, rows = scored.champion, len(scored.scores)
    everything = request.parameters.get("binary_data_output") is True
    tensors, parts = [], []
    for asked in request.outputs or _ALL:
        output = OUTPUTS[asked.name]
        shape = [rows, *output.more]
        if asked.parameters.get("binary_data", everything) is True:
            parts.append(output.binary(scored))
            tensors.append(
                OutputTensor(asked.name, shape, output.datatype, parameters={"binary_data_size": len(parts[-1])})
            )
        else:
            tensors.append(OutputTensor(asked.name, shape, output.datatype, output.values(scored)))
    parameters: Parameters = {"version": champion.version, "route_revision": champion.revision}
    head = encode(InferResponse(champion.name, str(champion.version), parameters, tensors, request.id))
    return (b"".join([head, *parts]), len(head)) if parts else (head, None)


_ALL: Sequence[RequestOutput] = [RequestOutput(name) for name in OUTPUTS]


def metadata(champion: Champion, degraded: str) -> ModelMetadata:
    """What the champion takes and gives; `degraded` says why it still scores, where the route names another version."""
    features = champion.model.features.names
    one_way: Parameters = {"way": FEATURES}
    other: Parameters = {"way": EVENTS}
    named: Parameters = {"way": "named"}
    parameters: Parameters = {"version": champion.version, "route_revision": champion.revision}
    return ModelMetadata(
        name=champion.name,
        versions=[str(champion.version)],
        platform="onnxruntime_onnx" if ONNX in champion.model.manifest.files else "sklearn_joblib",
        inputs=[
            TensorMetadata(FEATURES, "FP32", [-1, len(features)], one_way),
            TensorMetadata(EVENTS, "BYTES", [-1], other),
            *(TensorMetadata(name, "FP32", [-1], named) for name in features),
        ],
        outputs=[TensorMetadata(name, output.datatype, [-1, *output.more]) for name, output in OUTPUTS.items()],
        parameters=parameters | ({"degraded": degraded} if degraded else {}),
    )

"""What the two baselines do with an event, written as one would without Écluse: decode, features, model, prediction.

The records, the model and the formats are those of the worker. What the worker does beside it (dead letters, alerts with
reasons, checks of ids and keys, CloudEvents, metrics) is left out.
"""

import datetime as dt
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]

from ecluse.contract.records import Decision, Prediction, Source
from ecluse.model.artefact import verified
from ecluse.model.manifest import ONNX
from ecluse.model.registry import read_registry
from ecluse.settings import load

CONTENT_TYPE = ("content-type", b"application/msgpack")


class Work:
    """The work on one batch of events, for the champion of the stream that `config` describes."""

    def __init__(self, config: Path) -> None:
        self.settings = settings = load(config)
        stream = settings.stream
        registry = read_registry(settings)
        routed = registry.routes[settings.model_name]
        arm = routed.route.champion
        manifest, folder = verified(settings, arm.version, registry.releases[settings.model_name, arm.version])
        if any(feature.transform != "number" or feature.missing is not None for feature in manifest.features):
            raise ValueError("the baselines know features that are plain numbers only")
        if not stream.id_field or not stream.time_field:
            raise ValueError("the baselines need an id field and a time field")
        names = [feature.field for feature in manifest.features]
        event = msgspec.defstruct(
            "Event",
            [(stream.id_field, int), (stream.time_field, dt.datetime | float), *((name, float) for name in names)],
            gc=False,
        )
        self.decode = msgspec.json.Decoder(event).decode
        self._inputs = attrgetter(*names)
        self._id, self._time = attrgetter(stream.id_field), attrgetter(stream.time_field)
        self._encode = msgspec.msgpack.Encoder().encode
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[-1].name
        self._model, self._arm, self._revision = manifest.name, arm, routed.revision

    def __call__(self, records: list[tuple[Any, bytes, int, int]]) -> list[bytes]:
        """Encoded predictions for records given as key, value, partition and offset."""
        events = [self.decode(value) for _, value, _, _ in records]
        matrix = np.array(list(map(self._inputs, events)), dtype=np.float32)
        scores = self._session.run([self._output], {self._input: matrix})[0][:, 1].tolist()
        now, arm, topic = time.time(), self._arm, self.settings.names.events
        review, block = arm.thresholds.review, arm.thresholds.block
        encoded = []
        for (key, _, partition, offset), event, score in zip(records, events, scores, strict=True):
            at = self._time(event)
            encoded.append(
                self._encode(
                    Prediction(
                        str(self._id(event)),
                        key.decode(),
                        at.timestamp() if isinstance(at, dt.datetime) else at,
                        now,
                        self._model,
                        arm.version,
                        arm.name,
                        arm.share,
                        score,
                        Decision.BLOCK if score >= block else Decision.REVIEW if score >= review else Decision.ALLOW,
                        block if score >= block else review,
                        self._revision,
                        Source(topic, partition, offset),
                    )
                )
            )
        return encoded

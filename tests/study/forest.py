"""A forest of a gigabyte: grown by scikit-learn, and its ONNX written tree by tree, byte for byte as skl2onnx writes it."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, load_from_string
from sklearn.ensemble import ExtraTreesClassifier  # type: ignore[import-untyped]

from ecluse.model.features import Feature
from ecluse.model.manifest import ONNX, SAMPLES
from ecluse.model.samples import Samples
from ecluse.settings import Settings
from retrain.convert import to_onnx_bytes
from retrain.drafting import Reference, write_draft
from retrain.script import probabilities
from retrain.thresholds import choose_thresholds
from tests.workers import labelled_rows

FEATURES = ("amount", "terminal_risk_30d", "night")
SEED = 20180401


def rows(count: int, seed: int = SEED) -> pl.DataFrame:
    """Rows like those of the other tests, and every third label is chance: trees that learn it by heart are deep."""
    random = np.random.default_rng(seed)
    frame = labelled_rows(count, seed)
    noise, coin = random.random(count) < 1 / 3, random.random(count) < 0.5
    spread = pl.Series(frame["amount"].to_numpy() + random.random(count))  # cents alone are too few different values
    return frame.with_columns(
        spread.alias("amount"), pl.Series(np.where(noise, coin, frame["fraud"].to_numpy()).astype(int)).alias("fraud")
    )


def matrix(frame: pl.DataFrame) -> NDArray[np.float32]:
    """The rows of features, shape (rows, 3)."""
    return frame.select(FEATURES).to_numpy().astype(np.float32)


def grow(frame: pl.DataFrame, trees: int) -> ExtraTreesClassifier:
    """A forest that knows every row by heart."""
    forest = ExtraTreesClassifier(trees, max_features=1, n_jobs=2, random_state=SEED)
    return forest.fit(matrix(frame), frame["fraud"].to_numpy())


def onnx_of(forest: ExtraTreesClassifier) -> bytes:
    """What `retrain.convert.to_onnx_bytes` gives for the forest, tree by tree: its lists of Python numbers are too large."""
    stump = ExtraTreesClassifier(1, max_depth=1, random_state=0).fit([[0.0] * 3, [1.0] * 3], [0, 1])
    model: ModelProto = load_from_string(to_onnx_bytes(stump, 3))
    (node,) = model.graph.node
    attributes = {attribute.name: attribute for attribute in node.attribute}
    for name, attribute in attributes.items():
        if name.startswith(("nodes_", "class_")):
            del attribute.ints[:], attribute.floats[:], attribute.strings[:]
    for number, tree in enumerate(forest.estimators_):
        _add(attributes, number, tree.tree_, 1 / len(forest.estimators_))
    return bytes(model.SerializeToString())


def _add(attributes: dict[str, AttributeProto], number: int, tree: object, weight: float) -> None:
    left, right = tree.children_left, tree.children_right  # type: ignore[attr-defined]
    leaf, count = left < 0, len(left)
    leaves = np.flatnonzero(leaf)
    exact = np.where(leaf, 0.0, tree.threshold)  # type: ignore[attr-defined]
    limits = exact.astype(np.float32)
    limits = np.where(limits > exact, np.nextafter(limits, np.float32(-np.inf)), limits)  # the inputs are float32 too
    shares = tree.value[leaves, 0, :]  # type: ignore[attr-defined]
    shares = shares[:, 1] / shares.sum(axis=1) * weight
    integers = {
        "nodes_treeids": np.full(count, number),
        "nodes_nodeids": np.arange(count),
        "nodes_featureids": np.where(leaf, 0, tree.feature),  # type: ignore[attr-defined]
        "nodes_truenodeids": np.where(leaf, 0, left),
        "nodes_falsenodeids": np.where(leaf, 0, right),
        "nodes_missing_value_tracks_true": np.where(leaf, 0, tree.missing_go_to_left),  # type: ignore[attr-defined]
        "class_treeids": np.full(len(leaves), number),
        "class_nodeids": leaves,
        "class_ids": np.zeros(len(leaves), dtype=int),
    }
    floats = {"nodes_values": limits, "nodes_hitrates": np.ones(count), "class_weights": shares}
    for name, values in integers.items():
        attributes[name].ints.extend(values.tolist())
    for name, values in floats.items():
        attributes[name].floats.extend(values.tolist())
    attributes["nodes_modes"].strings.extend([b"LEAF" if end else b"BRANCH_LEQ" for end in leaf.tolist()])


@dataclass(frozen=True)
class Drafted:
    """How many nodes the forest has, and how long each step took, in seconds."""

    nodes: int
    seconds: dict[str, float]


def draft(settings: Settings, folder: Path, count: int, trees: int) -> Drafted:
    """Grow a forest and make a draft of it, as `retrain` does."""
    seconds, began = {}, time.monotonic()

    def lap(step: str) -> None:
        nonlocal began
        seconds[step], began = time.monotonic() - began, time.monotonic()

    frame = rows(count)
    forest = grow(frame, trees)
    lap("fit")
    nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
    reference = Reference.of([Feature(name, name, "number") for name in FEATURES], matrix(frame))
    later = rows(20_000, SEED + 1)
    scores = probabilities(forest, matrix(later))
    samples = Samples.of(reference.samples, probabilities(forest, reference.samples))
    (folder / ONNX).write_bytes(onnx_of(forest))
    del forest
    lap("ONNX")
    thresholds = choose_thresholds(scores, later["fraud"].to_numpy().astype(np.int8), settings.thresholds)
    account = {"metrics": {}, "training": {"rows": count, "seed": SEED}, "onnx": {}}
    write_draft(settings, folder, {SAMPLES: samples.encode()}, reference, scores, thresholds, **account)
    lap("load on trial, digests")
    return Drafted(nodes, seconds)


def in_a_process(settings: Settings, folder: Path, count: int, trees: int) -> Drafted:
    """`draft` in a process that gives its gigabytes back."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(draft, settings, folder, count, trees).result()

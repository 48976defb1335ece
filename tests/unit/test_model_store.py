import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ecluse.contract.records import Release, Thresholds
from ecluse.contract.schema import EventSchema, Field, FieldType
from ecluse.errors import ModelError, ModelNotFound, ModelRefused
from ecluse.model.features import Feature
from ecluse.model.manifest import ONNX, Histogram, Manifest, histogram, reference_histogram, sha256
from ecluse.model.runtime import load_model
from ecluse.model.store import ModelStore
from retrain.convert import to_onnx_bytes

SCHEMA = EventSchema({"amount": Field(FieldType.NUMBER)})
ROWS = np.arange(40, dtype=np.float32)[:, None]
ESTIMATOR = LogisticRegression().fit(ROWS, ROWS[:, 0] > 20)
MODEL = to_onnx_bytes(ESTIMATOR, 1)


def manifest(version: int, model: bytes = MODEL, name: str = "cards", field: str = "amount") -> Manifest:
    return Manifest(
        name=name,
        version=version,
        created_at=0.0,
        features=(Feature(field, field, "number"),),
        reference={field: histogram(ROWS[:, 0])},
        score_reference=Histogram((), (1,), 0, 0.5),
        thresholds=Thresholds(0.5, 0.9),
        policy={},
        metrics={},
        training={},
        onnx={},
        libraries={},
        files={ONNX: sha256(model)},
        sizes={ONNX: len(model)},
    )


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "not" / "there" / "yet"))


def released(store: ModelStore, version: int, model: bytes = MODEL, **of_manifest: str) -> Release:
    digest = store.write(manifest(version, model, **of_manifest), {ONNX: model})
    return Release("cards", version, time.time(), digest, len(model))


def test_a_stored_model_scores_as_its_estimator(store: ModelStore) -> None:
    model = load_model(store, "cards", 1, SCHEMA, released(store, 1))
    model.warm()
    scores = model.score(ROWS)
    np.testing.assert_allclose(scores, ESTIMATOR.predict_proba(ROWS)[:, 1], atol=1e-6)
    assert scores.dtype == np.float64 and model.score(ROWS[:0]).shape == (0,)
    assert (model.name, model.version, model.usual.tolist()) == ("cards", 1, [20.0])


def test_trainers_that_run_at_once_never_share_a_version(store: ModelStore) -> None:
    with ThreadPoolExecutor(8) as trainers:
        claimed = list(trainers.map(lambda _: store.claim("cards"), range(40)))
    assert sorted(claimed) == list(range(1, 41))


def test_versions_only_grow_past_what_is_stored_or_released(store: ModelStore) -> None:
    released(store, 7)
    assert store.claim("cards") == 8
    assert store.claim("cards", above=11) == 12
    assert store.claim("cards") == 13
    assert store.claim("loans") == 1
    assert store.versions("cards") == [7]


def test_a_version_without_a_manifest_is_not_there(store: ModelStore) -> None:
    store.claim("cards")
    with pytest.raises(ModelNotFound, match="holds no version 1 of model cards"):
        load_model(store, "cards", 1, SCHEMA, None)


def test_a_version_is_written_once(store: ModelStore) -> None:
    released(store, 1)
    with pytest.raises(ModelRefused, match="stored already"):
        released(store, 1)


def test_files_other_than_the_manifests_are_not_stored(store: ModelStore) -> None:
    with pytest.raises(ModelRefused, match="not those that the manifest lists"):
        store.write(manifest(1), {ONNX: b"another"})


def place(store: ModelStore, file: str, version: int = 1) -> Path:
    return Path(store.location) / "cards" / str(version) / file


def test_an_artefact_that_was_changed_after_its_release_is_refused(store: ModelStore) -> None:
    release = released(store, 1)
    place(store, ONNX).write_bytes(MODEL + b" ")
    with pytest.raises(ModelRefused, match=r"model\.onnx of version 1 of model cards is not the one"):
        load_model(store, "cards", 1, SCHEMA, release)
    path = place(store, "manifest.json")
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(ModelRefused, match="changed after its release"):
        load_model(store, "cards", 1, SCHEMA, release)


def test_an_artefact_in_anothers_place_is_refused(store: ModelStore) -> None:
    released(store, 1)
    place(store, "", 2).mkdir()
    for file in (ONNX, "manifest.json"):
        place(store, file, 2).write_bytes(place(store, file).read_bytes())
    with pytest.raises(ModelRefused, match="calls itself cards version 1"):
        load_model(store, "cards", 2, SCHEMA, None)


def test_a_model_that_needs_a_field_of_another_stream_is_refused(store: ModelStore) -> None:
    release = released(store, 1, field="balance")
    with pytest.raises(ModelRefused, match="needs the field 'balance'"):
        load_model(store, "cards", 1, SCHEMA, release)


def test_bytes_that_are_no_model_are_refused(store: ModelStore) -> None:
    with pytest.raises(ModelRefused, match="ONNX cannot be loaded"):
        load_model(store, "cards", 1, SCHEMA, released(store, 1, b"nothing of the kind"))
    wide = to_onnx_bytes(LogisticRegression().fit(np.hstack([ROWS, ROWS]), ROWS[:, 0] > 20), 2)
    with pytest.raises(ModelRefused, match="does not take rows of 1 float32"):
        load_model(store, "cards", 2, SCHEMA, released(store, 2, wide))


@pytest.mark.parametrize("name", ["../cards", "", "Cards", "a/b", "claims/.."])
def test_a_name_is_no_way_out_of_the_store(store: ModelStore, name: str) -> None:
    for use in (store.claim, store.versions, lambda name: store.manifest(name, 1)):
        with pytest.raises(ModelRefused, match="no name for a model"):
            use(name)


def test_a_manifest_reads_back_as_it_was_and_has_lines_for_people() -> None:
    written = manifest(3).encode()
    assert Manifest.decode(written) == manifest(3)
    assert written.count(b"\n") > 20
    with pytest.raises(ModelRefused, match="manifest cannot be read"):
        Manifest.decode(b"{}")
    assert msgspec.json.decode(written)["files"] == {ONNX: sha256(MODEL)}


def test_a_histogram_counts_every_value_once() -> None:
    values = np.concatenate([np.random.default_rng(20180401).random(1000), [np.nan] * 7]).astype(np.float32)
    counted = histogram(values)
    assert (len(counted.edges), len(counted.counts), sum(counted.counts), counted.missing) == (19, 20, 1000, 7)
    assert max(counted.counts) - min(counted.counts) <= 2
    assert counted.median in values
    few = histogram(np.array([0, 0, 0, 1, 5], dtype=np.float32))
    assert (few.edges, few.counts, few.median) == ((0.0, 1.0), (3, 1, 1), 0.0)
    assert histogram(np.full(3, 2.0)) == Histogram((), (3,), 0, 2.0)


def test_the_usual_value_of_a_category_is_the_most_frequent() -> None:
    shop = Feature("shop", "shop", "category", categories=("web", "corner"))
    counted = reference_histogram(shop, np.array([0, 0, 0, 1, 2, 2, np.nan], dtype=np.float32))
    assert counted == Histogram((0.5, 1.5), (3, 1, 2), 1, 0.0)


def test_a_store_that_cannot_be_listed_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cards").write_text("a file where a folder must be", encoding="utf-8")
    with pytest.raises(ModelError, match=r"^The model store .* cannot be read: .*$") as refused:
        ModelStore(str(tmp_path)).claim("cards")
    assert "\n" not in str(refused.value)

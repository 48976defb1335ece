import contextlib
import shutil
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import BaseError

from ecluse.errors import ModelError, ModelNotFound, ModelRefused
from ecluse.model.features import Feature
from ecluse.model.manifest import (
    MANIFEST,
    ONNX,
    SAMPLES,
    SIGNATURE,
    Histogram,
    Manifest,
    histogram,
    reference_histogram,
    sha256,
)
from ecluse.model.samples import Samples, synthetic_rows
from ecluse.model.store import ModelStore, require_listed
from tests.unit.artefacts import FILES, MODEL, lay, manifest

NAME = "cards"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "not" / "there" / "yet"))


def written(store: ModelStore, folder: Path, version: int = 1) -> str:
    """The digest of a version that was written in the proper way."""
    draft = lay(folder / f"draft-{version}", manifest(NAME, version))
    (draft / SIGNATURE).write_bytes(b"a signature")
    return store.write(draft)


def place(store: ModelStore, file: str, version: int = 1) -> Path:
    return Path(store.location) / NAME / str(version) / file


def fetch(store: ModelStore, folder: Path, version: int = 1, digest: str | None = None) -> Manifest:
    shutil.rmtree(folder / "into", ignore_errors=True)
    (folder / "into").mkdir()
    return store.fetch(NAME, version, digest, folder / "into", None)


class Breaking:
    """Stands for a transfer that brings so many bytes and then breaks off."""

    def __init__(self, data: bytes, most: int) -> None:
        self.data, self.most = data, most

    def stream(self, min_chunk_size: int) -> Iterator[bytes]:
        yield self.data[: self.most]
        if len(self.data) > self.most or not self.data:
            raise BaseError("the transfer took too long")


def test_a_transfer_that_breaks_off_goes_on_where_it_broke(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = written(store, tmp_path)
    get, starts = obstore.get, set()

    def breaking(at: Any, path: str, *, options: Any) -> Breaking:
        starts.add(options.get("range", {"offset": 0})["offset"])
        return Breaking(bytes(get(at, path, options=options).bytes()), 10)

    monkeypatch.setattr(obstore, "get", breaking)
    assert fetch(store, tmp_path, digest=digest) == manifest(NAME)
    assert {0, 10, 20} <= starts


def test_a_transfer_that_brings_nothing_more_is_given_up(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, tmp_path)
    monkeypatch.setattr(obstore, "get", lambda *_, options: Breaking(b"" if options else b"{" * 20, 10))
    with pytest.raises(ModelError, match="cannot be read"):
        fetch(store, tmp_path)


def test_what_was_written_is_fetched_as_it_was(store: ModelStore, tmp_path: Path) -> None:
    digest = written(store, tmp_path)
    told: list[tuple[int, int]] = []
    (tmp_path / "into").mkdir()
    fetched = store.fetch(NAME, 1, digest, tmp_path / "into", lambda *of: told.append(of))
    assert fetched == manifest(NAME) == store.manifest(NAME, 1, digest)
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total)
    there = {file.name: file.read_bytes() for file in (tmp_path / "into").iterdir()}
    assert there == FILES | {MANIFEST: manifest(NAME).encode(), SIGNATURE: b"a signature"}


def test_trainers_that_run_at_once_never_share_a_version(store: ModelStore) -> None:
    with ThreadPoolExecutor(8) as trainers:
        claimed = list(trainers.map(lambda _: store.claim(NAME), range(40)))
    assert sorted(claimed) == list(range(1, 41))


def test_versions_only_grow_past_what_is_stored_or_released(store: ModelStore, tmp_path: Path) -> None:
    written(store, tmp_path, 7)
    assert store.claim(NAME) == 8
    assert store.claim(NAME, above=11) == 12
    assert store.claim(NAME) == 13
    assert store.claim("loans") == 1
    assert store.versions(NAME) == [7]


def test_a_version_without_a_manifest_is_not_there(store: ModelStore, tmp_path: Path) -> None:
    store.claim(NAME)
    with pytest.raises(ModelNotFound, match="holds no version 1 of model cards"):
        fetch(store, tmp_path)


def test_a_version_is_written_once_and_its_signature_may_be_changed(store: ModelStore, tmp_path: Path) -> None:
    written(store, tmp_path)
    with pytest.raises(ModelRefused, match="stored already"):
        written(store, tmp_path)
    store.sign(NAME, 1, b"another")
    assert place(store, SIGNATURE).read_bytes() == b"another"


def test_files_other_than_the_manifests_are_not_stored(store: ModelStore, tmp_path: Path) -> None:
    draft = lay(tmp_path / "draft", manifest(NAME))
    (draft / ONNX).write_bytes(MODEL + b" ")
    with pytest.raises(ModelRefused, match=r"model\.onnx is not the file"):
        store.write(draft)
    (draft / ONNX).write_bytes(MODEL)
    (draft / "notes.txt").write_bytes(b"")
    with pytest.raises(ModelRefused, match=r"'notes\.txt', which its manifest does not name"):
        store.write(draft)
    assert store.versions(NAME) == []


def test_a_file_that_was_changed_in_the_store_is_refused(store: ModelStore, tmp_path: Path) -> None:
    digest = written(store, tmp_path)
    place(store, ONNX).write_bytes(MODEL[:-1] + b" ")
    with pytest.raises(ModelRefused, match=r"model\.onnx of version 1 of model cards is not the one"):
        fetch(store, tmp_path, digest=digest)
    path = place(store, MANIFEST)
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(ModelRefused, match="changed after its release"):
        fetch(store, tmp_path, digest=digest)


def test_a_file_that_grew_in_the_store_does_not_fill_the_disk(store: ModelStore, tmp_path: Path) -> None:
    written(store, tmp_path)
    place(store, ONNX).write_bytes(MODEL + bytes(30_000_000))
    with pytest.raises(ModelRefused, match="was changed"):
        fetch(store, tmp_path)
    assert (tmp_path / "into" / ONNX).stat().st_size <= len(MODEL)
    place(store, MANIFEST).write_bytes(bytes(30_000_000))
    with pytest.raises(ModelRefused, match=r"manifest\.json in the model store is larger than 16,777,216 bytes"):
        fetch(store, tmp_path)


def test_a_file_that_is_missing_in_the_store_is_named(store: ModelStore, tmp_path: Path) -> None:
    written(store, tmp_path)
    place(store, SAMPLES).unlink()
    with pytest.raises(ModelNotFound, match=r"does not hold 'samples\.json', which its manifest names"):
        fetch(store, tmp_path)


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(ModelError, match=r"has 10 bytes free, and version 1 of cards takes [\d,]+\.$"):
        fetch(store, tmp_path)
    assert list((tmp_path / "into").iterdir()) == []


def test_an_artefact_in_anothers_place_is_refused(store: ModelStore, tmp_path: Path) -> None:
    written(store, tmp_path)
    shutil.copytree(place(store, ""), place(store, "", 2))
    with pytest.raises(ModelRefused, match="calls itself cards version 1"):
        fetch(store, tmp_path, 2)


@pytest.mark.parametrize("name", ["../cards", "", "Cards", "a/b", "claims/.."])
def test_a_name_is_no_way_out_of_the_store(store: ModelStore, name: str) -> None:
    for use in (store.claim, store.versions, lambda name: store.manifest(name, 1)):
        with pytest.raises(ModelRefused, match="no name for a model"):
            use(name)


TRICKS = ["../x", "/etc/passwd", "a/b", "", ".", "..", "a\\b", "a\0b", "a\nb", ".gitattributes", "x" * 200, MANIFEST]


@pytest.mark.parametrize("file", [*TRICKS, SIGNATURE])
def test_a_manifests_file_name_is_no_way_out_of_its_folder(file: str) -> None:
    tricky = manifest(NAME, files=FILES | {file: b""})
    with pytest.raises(ModelRefused, match=r"names .*, which can be no file of its folder\.$"):
        require_listed(tricky, {*tricky.files, MANIFEST})


def test_a_manifest_gives_the_size_of_each_file() -> None:
    with pytest.raises(ModelRefused, match="does not give the size"):
        require_listed(manifest(NAME, sizes={ONNX: 1}), {*FILES, MANIFEST})


def test_a_manifest_reads_back_as_it_was_and_has_lines_for_people() -> None:
    encoded = manifest(NAME, 3).encode()
    assert Manifest.decode(encoded) == manifest(NAME, 3)
    assert encoded.count(b"\n") > 20
    assert msgspec.json.decode(encoded)["files"] == {file: sha256(data) for file, data in FILES.items()}


ENCODED = manifest(NAME).encode()
NO_MANIFESTS = {
    "empty": b"",
    "no JSON": b"{",
    "another object": b"{}",
    "a list": b"[]",
    "NaN": ENCODED.replace(b'"created_at": 0.0', b'"created_at": NaN'),
    "no number": ENCODED.replace(b'"created_at": 0.0', b'"created_at": 1e999'),
    "not UTF-8": ENCODED.replace(b'"cards"', b'"\xff"'),
    "nested without end": ENCODED.replace(b'"training": {}', b'"training": {"a": ' + b"[" * 1_000_000),
}


@pytest.mark.parametrize("data", NO_MANIFESTS.values(), ids=NO_MANIFESTS)
def test_what_is_no_manifest_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(ModelRefused, match="manifest cannot be read") as refused:
        Manifest.decode(data)
    assert len(str(refused.value)) < 300


@given(st.binary() | st.tuples(st.integers(0, len(ENCODED) - 1), st.binary(min_size=1, max_size=3)))
def test_whatever_stands_in_a_manifest_it_is_read_or_refused(data: bytes | tuple[int, bytes]) -> None:
    if not isinstance(data, bytes):
        at, other = data
        data = ENCODED[:at] + other + ENCODED[at + len(other) :]
    with contextlib.suppress(ModelRefused):
        Manifest.decode(data)


SAMPLED = Samples(((1.0,), (None,)), (0.5, 0.25)).encode()


@given(st.binary() | st.tuples(st.integers(0, len(SAMPLED) - 1), st.binary(min_size=1, max_size=3)))
def test_whatever_stands_in_sample_rows_they_are_read_or_refused(data: bytes | tuple[int, bytes]) -> None:
    if not isinstance(data, bytes):
        at, other = data
        data = SAMPLED[:at] + other + SAMPLED[at + len(other) :]
    try:
        samples = Samples.decode(data, 1)
    except ModelRefused:
        return
    assert samples.rows and len(samples.rows) == len(samples.scores)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"rows": [[NaN]], "scores": [0.5]}', "sample rows cannot be read"),
        (b'{"rows": [[1.0, 2.0]], "scores": [0.5]}', "do not have the model's 1 features"),
        (b'{"rows": [[1.0]], "scores": []}', "not a score for each"),
        (b'{"rows": [], "scores": []}', "no sample rows"),
        (b'{"rows": ' + b"[" * 1_000_000, "sample rows cannot be read"),
    ],
)
def test_sample_rows_that_are_none_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ModelRefused, match=sentence):
        Samples.decode(data, 1)


def test_sample_rows_read_back_as_they_were_missing_values_too() -> None:
    samples = Samples.decode(SAMPLED, 1)
    np.testing.assert_array_equal(samples.matrix, np.array([[1.0], [np.nan]], dtype=np.float32))
    assert samples.matrix.dtype == np.float32
    assert Samples.of(samples.matrix, np.array(samples.scores)).encode() == SAMPLED


def test_synthetic_rows_fall_into_every_bin_that_held_a_row_and_are_always_the_same() -> None:
    random = np.random.default_rng(5)
    wide = np.concatenate([random.lognormal(20, 2, 100_000), [np.nan]]).astype(np.float32)
    flag = np.array([0.0] * 99_999 + [1.0, np.nan], dtype=np.float32)
    shop = np.array([0.0] * 99_998 + [1.0, 2.0, np.nan], dtype=np.float32)
    always = np.full(100_001, 7.0, dtype=np.float32)
    features = [
        Feature("wide", "wide", "number"),
        Feature("flag", "flag", "number"),
        Feature("shop", "shop", "category", categories=("web", "corner")),
        Feature("always", "always", "number"),
    ]
    columns = [wide, flag, shop, always]
    reference = {f.name: reference_histogram(f, column) for f, column in zip(features, columns, strict=True)}
    rows = synthetic_rows(features, reference)
    np.testing.assert_array_equal(rows, synthetic_rows(features, reference))
    assert rows.shape == (256, 4) and rows.dtype == np.float32
    for feature, column in zip(features, rows.T, strict=True):
        seen = histogram(column, reference[feature.name].edges)
        assert [count > 0 for count in seen.counts] == [count > 0 for count in reference[feature.name].counts]
        assert (seen.missing > 0) == (reference[feature.name].missing > 0)
    assert set(rows[~np.isnan(rows[:, 1]), 1]) == {0.0, 1.0}
    assert set(rows[~np.isnan(rows[:, 2]), 2]) == {0.0, 1.0, 2.0}
    assert set(rows[:, 3]) == {7.0}


def test_synthetic_rows_of_a_feature_that_was_never_there_are_all_missing() -> None:
    feature = Feature("x", "x", "number")
    rows = synthetic_rows([feature], {"x": histogram(np.full(5, np.nan))})
    assert np.isnan(rows).all()


def test_a_histogram_counts_every_value_once() -> None:
    values = np.concatenate([np.random.default_rng(20180401).random(1000), [np.nan] * 7]).astype(np.float32)
    counted = histogram(values)
    assert (len(counted.edges), len(counted.counts), sum(counted.counts), counted.missing) == (19, 20, 1000, 7)
    assert max(counted.counts) - min(counted.counts) <= 2
    assert counted.median in values
    few = histogram(np.array([0, 0, 0, 1, 5], dtype=np.float32))
    assert (few.edges, few.counts, few.median) == ((0.0, 1.0), (3, 1, 1), 0.0)
    assert histogram(np.full(3, 2.0)) == Histogram((), (3,), 0, 2.0, low=2.0, high=2.0)


def test_the_usual_value_of_a_category_is_the_most_frequent() -> None:
    shop = Feature("shop", "shop", "category", categories=("web", "corner"))
    counted = reference_histogram(shop, np.array([0, 0, 0, 1, 2, 2, np.nan], dtype=np.float32))
    assert counted == Histogram((0.5, 1.5), (3, 1, 2), 1, 0.0)


def test_a_store_that_cannot_be_listed_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("a file where a folder must be", encoding="utf-8")
    with pytest.raises(ModelError, match=r"^The model store .* cannot be read: .*$") as refused:
        ModelStore(str(tmp_path)).claim(NAME)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["/etc/passwd", "/nowhere", MANIFEST])
def test_a_link_in_the_store_never_comes_along(store: ModelStore, tmp_path: Path, target: str) -> None:
    """obstore does not list links that lead out of the store; one that stays within is a file that nobody named."""
    written(store, tmp_path)
    place(store, "link").symlink_to(target)
    with contextlib.suppress(ModelRefused):
        fetch(store, tmp_path)
        assert target != MANIFEST
    assert "link" not in {file.name for file in (tmp_path / "into").iterdir()}
